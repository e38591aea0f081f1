"""`auto` beside the single detector: retrieval where weights are at hand, a separator, time; and it says why."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.separation.stand_in import LowPass
from tests.systems.test_choose import clips

import offkey
from offkey.encoders.catalog import WeightsError
from offkey.ensemble import Ensemble
from offkey.fitting import fit
from offkey.manifest import MANIFEST
from offkey.reproducing.plan import COSTS
from offkey.separation import fitting
from offkey.systems import auto
from offkey.systems.config import SystemConfig, load_preset
from offkey.systems.members import member_systems
from offkey.systems.settings import SettingsError
from offkey.types import ClipMeta, Content

NOISE = clips("fan", 4, content=Content.NOISE)
BOTH = [*clips("fan", 20, content=Content.NOISE), *clips("fan", 20, content=Content.MACHINE)]


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Names of encoders whose weights are at hand from now on; a system that takes an encoder stands for retrieval."""

    def put(*names: str) -> None:
        def find(name: str) -> Path:
            if name not in names:
                raise WeightsError(f"{name} is not here")
            return Path(name)

        monkeypatch.setattr(auto, "find", find)
        monkeypatch.setattr(auto, "RETRIEVAL", "discriminative")

    return put


def test_without_weights_the_single_detector_is_as_it_was(weights: Callable[..., None]) -> None:
    from offkey.systems.choose import choose

    weights()
    known = clips("fan", 60, 3)
    config, reasons = auto.settle(load_preset("auto"), known, NOISE)
    assert config == choose(load_preset("auto"), known, NOISE)[0]
    assert any("no weights of an encoder are at hand" in reason for reason in reasons)
    assert [entry.view for entry in config.scoring.scorers] == ["network", "logmel", "logmel"]


def test_weights_at_hand_bring_a_second_system(weights: Callable[..., None]) -> None:
    for count, name in ((60, "network"), (20, "logmel")):
        weights("beats", "efficientat")
        config, reasons = auto.settle(load_preset("auto", ["seed=3", "training.epochs=2"]), clips("fan", count, 2))
        assert config.kind == "ensemble"
        systems = member_systems(config)
        assert list(systems) == [name, auto.RETRIEVAL]
        own, other = systems.values()
        assert (own.kind, own.auto.retrieval, own.training.epochs, own.seed) == ("auto", False, 2, 3)
        assert own.encoder.name == "none"
        assert (other.encoder.name, other.seed) == ("beats", 3)
        assert other.training.epochs != 2
        assert any("weights of beats are at hand" in reason for reason in reasons)
        # the member is then settled as the single detector would have been
        alone, _ = auto.settle(own, clips("fan", count, 2))
        assert alone.kind == ("discriminative" if count == 60 else "training-free")
    weights("efficientat")
    assert auto.encoder_at_hand(load_preset("auto"))[0] == "efficientat"


def test_the_encoder_that_somebody_named_wins(weights: Callable[..., None]) -> None:
    weights("beats")
    named = load_preset("auto", ["encoder.name=efficientat", "encoder.weights=own.pt"])
    config, _ = auto.settle(named, clips("fan", 60, 2))
    own, other = member_systems(config).values()
    assert (own.encoder.name, own.encoder.weights) == ("none", None)
    assert (other.encoder.name, other.encoder.weights) == ("efficientat", "own.pt")
    for told in ("encoder.name=none", "auto.retrieval=false"):
        config, _ = auto.settle(load_preset("auto", [told]), clips("fan", 60, 2))
        assert config.kind == "discriminative"


def test_auto_with_weights_fits_an_ensemble(
    small_set: Path, small_beats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a quick system that takes no encoder stands for retrieval
    monkeypatch.setattr(auto, "RETRIEVAL", "logmel-knn")
    monkeypatch.setattr(auto, "_FOR_RETRIEVAL", ("calibration.",))
    told = ("encoder.name=beats", f"encoder.weights={small_beats}", "calibration.false_alarm_rate=0.2")
    detector = fit(small_set, "auto", out=tmp_path, overrides=told, machines=["fan"], workers=0)
    assert isinstance(detector, Ensemble)
    assert list(detector.members) == ["logmel", "logmel-knn"]
    assert detector.config.system == "auto"
    assert {each.config.calibration.false_alarm_rate for each in (detector, *detector.members.values())} == {0.2}
    card = (tmp_path / "CARD.md").read_text(encoding="utf-8")
    assert all(reason in card for reason in detector.reasons)
    again = offkey.load(tmp_path)
    clip = next((small_set / "fan" / "test").glob("*.wav"))
    assert again.score(clip) == detector.score(clip)
    finished = fit(small_set, "auto", out=tmp_path, overrides=told, machines=["fan"], workers=0)
    assert finished.score(clip) == again.score(clip)


def test_time_is_reckoned_from_measured_rates(small_set: Path) -> None:
    assert all(COSTS[name].cpu == rate for name, rate in auto.RATES.items())
    assert all(COSTS[name].gpu == rate for name, rate in auto.GPU_RATES.items())
    known = [clip for clip in offkey.data.source.open_source(small_set).clips if clip.machine == "fan"][:22]
    _, reasons = auto.settle(load_preset("auto"), known)
    assert reasons[-1].startswith("22 normal clips of 2.0 s: about 1 s on")
    assert auto.settle(load_preset("auto"), clips("fan", 50))[1][-1] == "50 normal clips"


def test_what_a_separator_hears_takes_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_seconds", lambda clip: 100.0)
    monkeypatch.setattr(auto, "_gpu", lambda: False)

    def told(*overrides: str) -> str:
        return auto.settle(load_preset("auto", ["separation.front_end=x", *overrides]), clips("fan", 60, 3), BOTH)[1][
            -1
        ]

    monkeypatch.setattr(auto, "_seconds", lambda clip: 30.0)
    assert "about a minute on" in told()
    monkeypatch.setattr(auto, "_seconds", lambda clip: 100.0)
    assert "about 4 minutes on" in told()  # 60 clips of ten times 10 s, 0.32 s each, and reading
    network = "scoring.scorers=[{view = 'network', scorer = {name = 'gmm'}}]"
    assert "about 16 minutes on" in told(network)  # 100 clips through the separator, and 16 epochs of 100


def test_a_time_bound_leaves_the_network_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_seconds", lambda clip: 100.0)
    monkeypatch.setattr(auto, "_gpu", lambda: False)
    known = clips("fan", 60, 3)
    free, reasons = auto.settle(load_preset("auto"), known)
    assert free.kind == "discriminative"
    assert (
        "about 6 minutes on two processor cores" in reasons[-1]
    )  # 60 clips of ten times 10 s, 16 epochs, 0.038 s each
    bound, reasons = auto.settle(load_preset("auto", ["auto.minutes=5"]), known)
    assert bound.kind == "training-free"
    assert all(entry.view == "logmel" for entry in bound.scoring.scorers)
    assert "a network would take about 6 minutes to train, and auto.minutes allows 5 minutes" in reasons[0]


@pytest.fixture
def differ(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """By how many dB clips of noise alone and of the machine alone differ from now on."""

    def put(noise: float, machine: float) -> None:
        def unlikeness(clips: Sequence[ClipMeta], *_: Any) -> float:
            return noise if clips[0].content is Content.NOISE else machine

        monkeypatch.setattr(auto, "unlikeness", unlikeness)

    return put


def separator(*overrides: str, extra: Any = BOTH, system: str = "auto") -> tuple[bool, str]:
    return auto.wants_separator(load_preset(system, overrides), clips("fan", 60, 3), extra)


def test_a_separator_is_fitted_where_surroundings_change_more_than_the_machine(differ: Callable[..., None]) -> None:
    differ(3.0, 1.0)
    wanted, reason = separator()
    assert wanted
    assert "noise alone differs by 3.0 dB, the machine alone by 1.0 dB: a separator is fitted first" in reason
    differ(1.0, 3.0)
    wanted, reason = separator()
    assert not wanted
    assert "would bring little (separation.fit=always fits one)" in reason
    differ(1.0, float("nan"))
    wanted, reason = separator()
    assert not wanted
    assert "no two of them of one machine could be read and compared" in reason


def test_a_separator_needs_enough_to_learn_from(differ: Callable[..., None]) -> None:
    differ(3.0, 1.0)
    assert separator(extra=BOTH[1:]) == (
        False,
        "20 clips of the machine alone and 19 clips of noise alone: too few for a separator, which takes 20 of each "
        "(separation.fit=always)",
    )
    assert "4 clips of noise alone: too few" in separator(extra=NOISE)[1]
    assert separator(extra=()) == (False, "")


def test_a_separator_needs_time(differ: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    differ(3.0, 1.0)
    monkeypatch.setattr(auto, "_seconds", lambda clip: 100.0)
    monkeypatch.setattr(auto, "_gpu", lambda: False)
    no_room = (False, "for a separator, about 22 minutes more, auto.minutes has no room")
    assert separator("auto.minutes=26")[0]  # no network is trained behind one
    assert separator("auto.minutes=21") == no_room
    assert separator("auto.minutes=24") == no_room  # every clip goes through it as well
    network = "scoring.scorers=[{view = 'network', scorer = {name = 'gmm'}}]"
    assert separator("auto.minutes=38", network)[0]
    assert separator("auto.minutes=26", network) == no_room
    # a network that is always trained has to fit in; members that train none take no time
    fit_first = ("separation.fit=auto", "training.epochs=100", "auto.minutes=40")
    assert separator(*fit_first, system="discriminative") == no_room
    assert separator(*fit_first, "ensemble.members=['logmel-density', 'discriminative']", system="ensemble") == no_room
    assert separator("auto.minutes=26", "ensemble.members=['logmel-density', 'loudness']", system="ensemble")[0]


def test_a_separator_that_was_asked_for_is_fitted_and_no_second_one(differ: Callable[..., None]) -> None:
    differ(1.0, 3.0)
    assert separator("separation.fit=always", extra=NOISE) == (True, "a separator first, as the settings say")
    differ(3.0, 1.0)
    assert separator("separation.fit=never") == (False, "")
    assert separator("separation.fit=always", "separation.front_end=x") == (False, "")
    assert separator(system="discriminative") == (False, "")
    _, reasons = auto.settle(load_preset("auto", ["separation.front_end=x"]), clips("fan", 60, 3), BOTH)
    assert any("goes through a separator first, which passes on its foreground" in reason for reason in reasons)


def test_auto_hears_through_its_own_separator(small_set: Path, tmp_path: Path, separators: list[Path]) -> None:
    told = ["separation.fit=always"]
    out = tmp_path / "m"
    detector = fit(small_set, "auto", out=out, overrides=told, machines=["fan"], workers=0)
    assert separators == [out / "separator"]
    assert any("goes through a separator first" in reason for reason in detector.reasons)
    clip = next((small_set / "fan" / "test").glob("*.wav"))
    plain = fit(small_set, "auto", machines=["fan"], workers=0)
    assert not np.isclose(detector.score(clip).score, plain.score(clip).score)
    assert fit(small_set, "auto", out=out, overrides=told, machines=["fan"], workers=0).score(clip) == detector.score(
        clip
    )
    dense = fit(small_set, "logmel-density", overrides=told, machines=["fan"], workers=0)  # any system may have one
    assert dense.front_end is not None
    # what has no separator of its own is not started over for the time of one
    fit(small_set, "auto", out=tmp_path / "p", machines=["fan"], workers=0)
    with pytest.raises(offkey.detector.DetectorError, match="without a separator of its own"):
        fit(small_set, "auto", out=tmp_path / "p", overrides=told, machines=["fan"], workers=0)


def test_who_names_one_folder_shares_the_separator_of_a_seed(
    small_set: Path, tmp_path: Path, separators: list[Path]
) -> None:
    told = ["separation.fit=always", f"separation.folder={tmp_path}/shared"]
    fitted = {}
    for name, seed, machine in (("a", 0, "fan"), ("b", 0, "fan"), ("c", 1, "fan"), ("d", 0, "valve")):
        again = {"out": tmp_path / name, "overrides": told, "machines": [machine], "seed": seed, "workers": 0}
        fitted[name] = fit(small_set, "loudness", **again)
        assert fit(small_set, "loudness", **again).front_end is not None
    places = {name: Path(detector.config.separation.front_end) for name, detector in fitted.items()}
    assert all(place.parent == tmp_path / "shared" for place in places.values())
    assert places["a"] == places["b"] != places["c"]
    assert places["d"] not in (places["a"], places["c"])  # of other clips
    assert not (tmp_path / "a" / "separator").exists()
    first = fit(small_set, "loudness", overrides=[*told, "audio.channel=0"], machines=["fan"], seed=0, workers=0)
    assert Path(first.config.separation.front_end) not in places.values()  # it would be refused
    separators.remove(Path(first.config.separation.front_end))
    # each keeps what it hears through, and overwriting one takes nothing from the others
    fit(small_set, "loudness", out=tmp_path / "a", overrides=told, machines=["fan"], workers=0, overwrite=True)
    kept = set(separators)
    shutil.rmtree(tmp_path / "shared")
    assert kept == set(places.values())
    assert all(offkey.load(tmp_path / name).front_end is not None for name in fitted)


def test_a_separator_that_a_member_names_is_part_of_what_was_asked(
    small_set: Path, tmp_path: Path, separators: list[Path]
) -> None:
    LowPass(1000.0).save(tmp_path / "s")
    member = f"{{system = 'loudness', settings = ['separation.front_end={tmp_path}/s']}}"
    told: dict[str, Any] = {
        "out": tmp_path / "m", "overrides": [f"ensemble.members=[{member}, 'logmel-knn']", "separation.fit=never"],
        "machines": ["fan"], "workers": 0,
    }  # fmt: skip
    fit(small_set, "ensemble", **told)
    fit(small_set, "ensemble", **told)
    LowPass(500.0).save(tmp_path / "s")
    with pytest.raises(offkey.detector.DetectorError, match="other settings or clips"):
        fit(small_set, "ensemble", **told)


def test_a_detector_tells_why_it_hears_through_a_separator(small_set: Path, separators: list[Path]) -> None:
    told = ["separation.fit=always", "ensemble.members=['logmel-density', 'loudness']"]
    for system in ("auto", "ensemble"):
        overrides = told if system == "ensemble" else told[:1]
        detector = fit(small_set, system, overrides=overrides, machines=["fan"], workers=0)
        assert detector.reasons.count("a separator first, as the settings say") == 1
        assert "- a separator first, as the settings say" in detector.card()


def test_a_detector_that_was_moved_is_still_the_one_asked_for(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separators: list[Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = ["separation.fit=always", "ensemble.members=['logmel-density', 'loudness']"]
    for system in ("loudness", "ensemble"):
        overrides = told if system == "ensemble" else told[:1]
        fit(small_set, system, out=system, overrides=overrides, machines=["fan"], workers=0)
        kept = (tmp_path / system / MANIFEST).stat().st_mtime_ns
        fit(small_set, system, out=tmp_path / system, overrides=overrides, machines=["fan"], workers=0)
        assert (tmp_path / system / MANIFEST).stat().st_mtime_ns == kept
        moved = (tmp_path / system).rename(tmp_path / f"{system} elsewhere")
        fit(small_set, system, out=moved, overrides=overrides, machines=["fan"], workers=0)
        assert (moved / MANIFEST).stat().st_mtime_ns == kept
        shutil.rmtree(moved / "separator")
        with pytest.raises(offkey.detector.DetectorError, match="without a separator of its own beside it"):
            fit(small_set, system, out=moved, overrides=overrides, machines=["fan"], workers=0)


def test_what_was_overwritten_leaves_no_front_end_behind(
    small_set: Path, tmp_path: Path, separators: list[Path]
) -> None:
    out = tmp_path / "m"
    fit(small_set, "loudness", out=out, overrides=["separation.fit=always"], machines=["fan"], workers=0)
    (out / "front_end" / MANIFEST).write_text("{}")  # real ones have it
    (out / "model.safetensors").write_bytes(b"of a network that was here before")
    fit(small_set, "loudness", out=out, machines=["fan"], workers=0, overwrite=True)
    assert not (out / "front_end").exists()
    assert not (out / "model.safetensors").exists()


def test_a_killed_run_that_overwrites_goes_on_without_the_detector_that_was_there(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separators: list[Path]
) -> None:
    told: dict[str, Any] = {"overrides": ["separation.fit=always"], "machines": ["fan"], "workers": 0}
    out = tmp_path / "m"
    fit(small_set, "loudness", out=out, **told)
    working = fitting.fit_separator

    def killed(source: Any, out: Path, recipe: Any, **keywords: Any) -> None:
        (out / MANIFEST).unlink()  # as the real one does when it overwrites
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit_separator", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(small_set, "loudness", out=out, overwrite=True, **told)
    monkeypatch.setattr(fitting, "fit_separator", working)
    assert fit(small_set, "loudness", out=out, **told).front_end is not None


def test_supplemental_clips_that_nothing_listens_to_are_not_separated(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separators: list[Path]
) -> None:
    told: dict[str, Any] = {"overrides": ["separation.fit=always"], "machines": ["fan"], "workers": 0}
    for system in ("auto", "logmel-density"):
        monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path / f"cache of {system}"))
        detector = fit(small_set, system, **told)
        front_end: Any = detector.front_end
        assert front_end.separator.asked == len(detector.machines["fan"].clips)


def test_an_ensemble_asks_once_whether_a_separator_pays_and_its_members_share_it(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separators: list[Path]
) -> None:
    assert load_preset("ensemble").separation.fit == "auto"
    members = "ensemble.members=['logmel-density', 'loudness']"
    heard: list[str] = []
    pays = True

    def wants(config: SystemConfig, *_: Any) -> tuple[bool, str]:
        heard.append(config.separation.fit)
        return (True, "it pays") if pays and config.separation.fit == "auto" else (False, "it does not pay")

    monkeypatch.setattr("offkey.fitting.wants_separator", wants)
    blend = fit(small_set, "ensemble", out=tmp_path / "m", overrides=[members], machines=["fan"], workers=0)
    assert separators == [tmp_path / "m" / "separator"]
    assert isinstance(blend, Ensemble)
    assert all(member.front_end is not None for member in blend.members.values())

    pays = False
    heard.clear()
    plain = fit(small_set, "ensemble", overrides=[members], machines=["fan"], workers=0)
    assert heard == ["auto", "never", "never"]  # the members do not decide again
    assert "it does not pay" in plain.reasons
    assert len(separators) == 1


def test_settings_of_older_versions_say_whether_a_separator_is_fitted() -> None:
    tree = load_preset("auto").model_dump(exclude={"separation"})
    for told, fit_first in ((True, "always"), (False, "never"), (None, "auto")):
        older = SystemConfig.model_validate(tree | {"auto": {"separator": told, "minutes": 5.0}})
        assert (older.separation.fit, older.auto.minutes) == (fit_first, 5.0)
    # what somebody still asks for by the old name is not overruled by the preset
    assert load_preset("auto", ["auto.separator=false"]).separation.fit == "never"
    assert load_preset("logmel-density", ["auto.separator=true"]).separation.fit == "always"
    with pytest.raises(SettingsError, match=r"separation\.fit"):
        load_preset("auto", ["auto.separator=perhaps"])


def test_what_a_separator_takes_out_is_not_put_in() -> None:
    with pytest.raises(SettingsError, match="takes them out"):
        load_preset(
            "discriminative", ["separation.fit=always", "augmentation.remix.enabled=true", "separation.model=s"]
        )


def test_too_little_time_switches_remix_off_and_says_so(
    weights: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights()
    told = ["auto.minutes=0.0001", "augmentation.remix.enabled=true", "separation.model=s"]
    monkeypatch.setattr(auto, "_sound", lambda clips: 10.0)
    config, reasons = auto.settle(load_preset("auto", told), clips("fan", 60, 3))
    assert config.kind == "training-free"
    assert not config.augmentation.remix.enabled
    assert "auto.minutes allows" in reasons[0]
    assert "augmentation.remix is switched off" in reasons[1]
