"""`auto` beside the single detector: retrieval where weights are at hand, a separator, time; and it says why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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
from offkey.systems import auto
from offkey.systems.config import load_preset
from offkey.systems.members import member_systems
from offkey.types import Content

NOISE = clips("fan", 4, content=Content.NOISE)


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


def test_what_a_separator_could_bring_is_told_once() -> None:
    known = clips("fan", 60, 3)

    def said(*overrides: str, extra: Any = NOISE) -> str:
        return " ".join(auto.settle(load_preset("auto", overrides), known, extra)[1])

    assert "4 clips of noise alone: `offkey fit-separator`" in said()
    assert "fit-separator" not in said(extra=())
    through = said("separation.front_end=x")
    assert "fit-separator" not in through
    assert "goes through a separator first, which passes on its foreground" in through


def test_a_separator_is_fitted_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_seconds", lambda clip: 100.0)
    monkeypatch.setattr(auto, "_gpu", lambda: False)
    known = clips("fan", 60, 3)

    def wanted(*overrides: str, extra: Any = NOISE) -> bool:
        return auto.wants_separator(load_preset("auto", overrides), known, extra)

    assert not wanted()
    assert wanted("auto.separator=true")
    assert not wanted("auto.separator=true", "separation.front_end=x")
    assert not auto.wants_separator(load_preset("discriminative"), known, NOISE)
    assert wanted("auto.minutes=30")
    assert not wanted("auto.minutes=20")  # with the network it would be 25
    assert not wanted("auto.minutes=30", extra=())


def test_auto_hears_through_its_own_separator(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def fit_separator(source: Any, out: Path, recipe: Any, **keywords: Any) -> None:
        asked.append(out)
        LowPass(1000.0).save(out)
        (out / MANIFEST).write_text("{}")

    monkeypatch.setitem(sys.modules, "offkey.separation.separator", SimpleNamespace(Separator=LowPass))
    monkeypatch.setattr("offkey.separation.fitting.fit_separator", fit_separator)
    told = ["auto.separator=true"]
    out = tmp_path / "m"
    detector = fit(small_set, "auto", out=out, overrides=told, machines=["fan"], workers=0)
    assert asked == [out / "separator"]
    assert any("goes through a separator first" in reason for reason in detector.reasons)
    clip = next((small_set / "fan" / "test").glob("*.wav"))
    plain = fit(small_set, "auto", machines=["fan"], workers=0)
    assert not np.isclose(detector.score(clip).score, plain.score(clip).score)
    assert fit(small_set, "auto", out=out, overrides=told, machines=["fan"], workers=0).score(clip) == detector.score(
        clip
    )
    # what has no separator of its own is not started over for the time of one
    fit(small_set, "auto", out=tmp_path / "p", machines=["fan"], workers=0)
    with pytest.raises(offkey.detector.DetectorError, match="without a separator of its own"):
        fit(small_set, "auto", out=tmp_path / "p", overrides=told, machines=["fan"], workers=0)
