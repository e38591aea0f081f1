"""Normal clips that come later: the detector knows them, nothing is trained, and a folder is whole or untouched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import offkey
from offkey.audio.mel import LogMel
from offkey.data.loader import Failure
from offkey.detector import Detector
from offkey.ensemble import Ensemble
from offkey.explaining import ProfileBuilder
from offkey.explaining.joining import join_profiles
from offkey.explaining.patches import BANK
from offkey.files import sha256
from offkey.fitting import fit
from offkey.progress import Quiet
from offkey.references import joined_recordings
from offkey.types import Batch, ClipMeta, Domain
from offkey.updating import UpdateError, _fresh, replace_folder, update
from offkey.views import Views


@pytest.fixture
def later(small_set: Path, tmp_path: Path) -> Path:
    """The fan's normal test clips under names that do not tell."""
    folder = tmp_path / "fan"
    folder.mkdir()
    for number, path in enumerate(sorted(small_set.glob("fan/test/*normal*.wav"))):
        shutil.copy(path, folder / f"later-{number}.wav")
    return folder


def test_an_update_is_a_fit_on_all_clips(small_set: Path, tmp_path: Path) -> None:
    """A training-free detector of 14 clips that gets 8 more is the one that was fitted on all 22."""
    clips = sorted((small_set / "fan" / "train").glob("*.wav"))
    for name, chosen in (("few", clips[:14]), ("all", clips)):
        (tmp_path / name / "fan").mkdir(parents=True)
        for path in chosen:
            shutil.copy(path, tmp_path / name / "fan")
    few, whole = (fit(tmp_path / name, "logmel-mahalanobis", workers=0) for name in ("few", "all"))
    grown = few.update(clips[14:], workers=0, machine="fan")
    a, b = grown.machines["fan"], whole.machines["fan"]
    assert a.clips == b.clips
    assert a.domains == b.domains
    for view, array in b.embeddings.items():
        np.testing.assert_allclose(a.embeddings[view], array, atol=1e-4)
    np.testing.assert_allclose(a.calibration.scores, b.calibration.scores, rtol=1e-4)
    assert grown.score(clips[0]).score == pytest.approx(whole.score(clips[0]).score, rel=1e-4)
    np.testing.assert_allclose(a.profile.mean, b.profile.mean, atol=1e-3)
    np.testing.assert_allclose(a.profile.spread, b.profile.spread, atol=1e-2)
    assert a.profile.spectra is not None
    assert b.profile.spectra is not None
    np.testing.assert_array_equal(a.profile.spectra.levels, b.profile.spectra.levels)
    inner = slice(2, -2)  # beyond two deviations little is left to mix
    np.testing.assert_allclose(
        a.profile.spectra.fluctuation[:, inner], b.profile.spectra.fluctuation[:, inner], atol=0.5
    )
    assert len(few.machines["fan"].clips) == 14


@pytest.mark.parametrize("system", ["baseline"])
def test_a_network_stays_as_it_is(fitted: Callable[[str], Any], later: Path, system: str, tmp_path: Path) -> None:
    detector, _ = fitted(system)
    grown = detector.update(sorted(later.iterdir()), workers=0, reason="false-alarm")
    assert grown.networks is detector.networks
    assert len(grown.machines["fan"].clips) == len(detector.machines["fan"].clips) + 4
    assert grown.machines["valve"] is detector.machines["valve"]
    clip = later / "later-0.wav"
    assert grown.score(clip).p_value >= detector.score(clip).p_value
    assert "4 called false alarms (`later-0.wav`" in grown.card()
    assert "updates" not in detector.facts
    again = offkey.load(grown.save(tmp_path / "grown"))
    assert again.score(clip).score == pytest.approx(grown.score(clip).score, rel=1e-6)
    assert again.explain(clip).text
    with pytest.raises(UpdateError, match="known already"):
        again.update([clip], workers=0)


def test_the_errors_of_bands_are_those_of_all_clips(fitted: Callable[[str], Any], small_set: Path, later: Path) -> None:
    detector, _ = fitted("baseline")
    clips = [*sorted(small_set.glob("fan/train/*.wav")), *sorted(later.iterdir())]
    builder = ProfileBuilder(LogMel(detector.config.audio.rate, detector.config.mel))
    for place, clip in enumerate(clips):
        samples = torch.from_numpy(np.array(detector.reader().read(clip)))[None]
        batch = Batch(samples, torch.tensor([samples.shape[1]]), None, torch.tensor([place]))
        seen = Views(detector.config, detector.networks)(batch, ["fan"], reasons=True)
        builder.add(["fan"], batch, seen.errors, seen.error_maps)
    old, whole = detector.machines["fan"].profile.band_error, builder.profiles()["fan"].band_error
    grown = detector.update(sorted(later.iterdir()), workers=0).machines["fan"].profile.band_error
    assert np.abs(whole - old).max() > 0.01
    np.testing.assert_allclose(grown, whole, atol=1e-3)


def test_what_was_accepted_as_normal_is_not_bright_in_the_map_of_patches(
    fitted: Callable[[str], Any], small_set: Path, tmp_path: Path
) -> None:
    """A bank of patches that knows a clip finds nothing in it that is far from normal."""
    detector, _ = fitted("retrieval")
    samples, rate = soundfile.read(min(small_set.glob("fan/test/*_normal_*.wav")))
    time = np.arange(len(samples)) / rate
    clip = tmp_path / "rang.wav"
    soundfile.write(clip, samples + 0.3 * np.sin(2 * np.pi * 3000 * time) * ((time > 0.8) & (time < 1.4)), rate)
    before = detector.explain(clip, machine="fan")
    grown = detector.update([clip], machine="fan", workers=0, reason="false-alarm")
    after = grown.explain(clip, machine="fan")
    assert before.map_kind == after.map_kind == "patches"
    assert after.map.max() <= 0 < before.map.max()
    old, new = (one.machines["fan"].profile.patches for one in (detector, grown))
    assert old.vectors.shape[1] < new.vectors.shape[1] <= BANK
    assert new.clips.max() == old.clips.max() + 1


def test_clips_that_the_network_did_not_learn_from_stay_behind_the_threshold(fitted: Callable[[str], Any]) -> None:
    """Those held out of training, and those added since; all of them where nothing is trained."""
    detector, _ = fitted("baseline")
    known = detector.machines["fan"]
    count = len(known.clips)
    facts = {"training": {"held_out_clips": [f"fan/{known.clips[3]}", f"valve/{known.clips[5]}"]}}
    assert [place for place, fresh in enumerate(_fresh(replace(detector, facts=facts), known)) if fresh] == [3]
    facts["updates"] = [{"machine": "fan", "clips": list(known.clips[-2:])}, {"machine": "valve", "clips": ["x.wav"]}]
    later = _fresh(replace(detector, facts=facts), known)
    assert [place for place, fresh in enumerate(later) if fresh] == [3, count - 2, count - 1]
    plain, _ = fitted("loudness")
    assert all(_fresh(plain, plain.machines["fan"]))


def test_faulty_clips_are_refused_by_name(fitted: Callable[[str], Any], small_set: Path, tmp_path: Path) -> None:
    detector, _ = fitted("loudness")
    faulty = next(small_set.glob("fan/test/*anomaly*.wav"))
    for folder, name in (("fan", faulty.name), ("fan", "pump_faulty_3.wav"), ("broken", "fan.wav")):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(faulty, path)
        with pytest.raises(UpdateError, match=f"{name} is known to be faulty"):
            detector.update([path], machine="fan")


def test_broken_clips_are_named_and_known_ones_counted_once(fitted: Callable[[str], Any], later: Path) -> None:
    detector, _ = fitted("logmel-knn")
    (later / "x.wav").write_bytes(b"RIFF")
    shutil.copy(later / "later-0.wav", later / "twin.wav")
    failures: list[Failure] = []
    grown = update(detector, sorted(later.iterdir()), failures=failures, workers=0)
    assert [failure.path.name for failure in failures] == ["x.wav"]
    new = grown.machines["fan"].clips[len(detector.machines["fan"].clips) :]
    assert new == ("later-0.wav", "later-1.wav", "later-2.wav", "later-3.wav")
    spectra = grown.machines["fan"].profile.spectra
    assert spectra is not None
    assert len(spectra) == len(grown.machines["fan"].clips)
    with pytest.raises(UpdateError, match="no clip could be read"):
        update(detector, [later / "x.wav"], workers=0)
    with pytest.raises(UpdateError, match="no clips to add"):
        update(detector, [])


def test_the_domain_of_clips_that_do_not_tell_it(fitted: Callable[[str], Any], later: Path) -> None:
    detector, _ = fitted("logmel-knn")
    clip = later / "later-0.wav"
    assert detector.update([clip], workers=0).machines["fan"].domains[-1] == "source"
    assert detector.update([clip], domain=Domain.TARGET, workers=0).machines["fan"].domains[-1] == "target"
    told = detector.update([ClipMeta(clip, "fan", domain=Domain.TARGET)], workers=0)
    assert told.machines["fan"].domains[-1] == "target"


def test_the_rate_that_was_set_is_kept(fitted: Callable[[str], Any], later: Path) -> None:
    detector = fitted("logmel-knn").detector.with_false_alarms("25%")
    grown = detector.update(sorted(later.iterdir()), workers=0)
    assert grown.machines["fan"].calibration.alpha == 0.25


def test_a_folder_is_replaced_whole_or_not_at_all(
    copied: Callable[[str], Path], later: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("logmel-knn")
    before = {path.name: sha256(path) for path in folder.iterdir() if path.is_file()}
    grown = offkey.load(folder).update(sorted(later.iterdir()), workers=0)
    beside = set(folder.parent.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("offkey.keeping.write_manifest", full)
        with pytest.raises(OSError, match="No space"):
            replace_folder(grown, folder)
    assert {path.name: sha256(path) for path in folder.iterdir() if path.is_file()} == before
    assert set(folder.parent.iterdir()) == beside
    (folder / "separator").mkdir()  # one that was fitted for it, which takes 20 minutes
    (folder / "separator" / "training.json").write_text("{}")
    replace_folder(grown, folder)
    assert (folder / "separator" / "training.json").is_file()
    assert len(offkey.load(folder).machines["fan"].clips) == len(grown.machines["fan"].clips)
    assert set(folder.parent.iterdir()) == beside


def test_profiles_are_joined() -> None:
    from offkey.explaining import Profile, Reach, Spectra

    rng = np.random.default_rng(0)
    spectra = Spectra(
        rng.normal(size=(2, 4, 16)).astype("f2"), np.ones(2, "f4"), np.sort(rng.normal(size=(4, 13)), 1).astype("f4")
    )
    new = Profile(np.ones(4, "f4"), np.ones(4, "f4"), spectra, np.array([1.0, 0.5, 0.2], "f4"))
    old = replace(new, mean=np.zeros(4, "f4"), frame_error=None)
    joined = join_profiles(old, new, 0.25)
    assert len(joined.spectra) == 4
    assert joined.frame_error is None
    np.testing.assert_allclose(joined.mean, 0.25)
    np.testing.assert_allclose(joined.spread, np.sqrt(1 + 0.25 * 0.75), rtol=1e-6)
    assert joined.reach is None
    old, new = (
        replace(
            one, band_error=np.array([[level, 1.0]] * 4, "f4"), reach=Reach(*rng.normal(size=(2, 2, 4, 3)).astype("f2"))
        )
        for one, level in ((old, 0.0), (new, 2.0))
    )
    joined = join_profiles(old, new, 0.25)
    np.testing.assert_allclose(joined.band_error, [[0.5, np.sqrt(1 + 4 * 0.25 * 0.75)]] * 4, rtol=1e-6)
    np.testing.assert_array_equal(joined.reach.highest, np.concatenate([old.reach.highest, new.reach.highest]))
    assert join_profiles(old, replace(new, band_error=None, reach=None), 0.25).band_error is old.band_error
    same = join_profiles(new, new, 0.5)
    np.testing.assert_allclose(same.spectra.fluctuation, spectra.fluctuation, atol=0.06)
    np.testing.assert_allclose(same.frame_error, new.frame_error, rtol=1e-6)


# ---- what is known already, and what is not


RATE = 16000


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hums of half a second with noise, whose levels lie within a hundredth of a decibel of each other."""
    folder = tmp_path_factory.mktemp("steady") / "pump"
    folder.mkdir()
    rng = np.random.default_rng(7)
    hum = np.sin(2 * np.pi * 100 * np.arange(RATE // 2) / RATE)
    for number in range(70):
        sound = hum + 0.1 * rng.standard_normal(RATE // 2)
        sound *= 0.1 * 10 ** (rng.normal(0, 0.01) / 20) / np.sqrt(np.mean(np.square(sound)))
        soundfile.write(folder / f"{'old' if number < 60 else 'new'}-{number}.wav", sound, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def members(steady: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Detector]:
    """Two detectors of the first sixty clips; the view of one is a single number."""
    folder = tmp_path_factory.mktemp("first") / "pump"
    folder.mkdir()
    for path in steady.glob("old-*.wav"):
        shutil.copy(path, folder)
    return {name: fit(folder.parent, name, workers=0) for name in ("loudness", "logmel-knn")}


class Said(Quiet):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_clips_of_one_level_are_not_taken_for_copies(members: dict[str, Detector], steady: Path) -> None:
    """The loudness of some differs by less than the fifth digit; they are different clips all the same."""
    new = sorted(steady.glob("new-*.wav"))
    known = members["loudness"].machines["pump"].embeddings["loudness"]
    grown = update(members["loudness"], new, workers=0)
    assert grown.machines["pump"].clips[-10:] == tuple(path.name for path in new)
    added = grown.machines["pump"].embeddings["loudness"][-10:]
    away = np.abs(added - known.T).min(axis=1)
    assert (away <= 1e-5 * np.abs(added[:, 0])).any()  # which is what a copy was told by


@pytest.mark.parametrize("system", ["loudness", "logmel-knn"])
def test_copies_are_known_in_whatever_format_and_company(
    members: dict[str, Detector], steady: Path, tmp_path: Path, system: str
) -> None:
    old = sorted(steady.glob("old-*.wav"))[:3]
    copies = []
    for number, subtype in enumerate(("PCM_24", "DOUBLE", "FLOAT")):
        samples, rate = soundfile.read(old[number])
        copies.append(tmp_path / f"copy-{number}.{'flac' if subtype == 'PCM_24' else 'wav'}")
        soundfile.write(copies[-1], samples, rate, subtype=subtype)
    longer = tmp_path / "a-longer.wav"  # beside a longer clip the others are padded
    soundfile.write(longer, 0.1 * np.random.default_rng(0).standard_normal(3 * RATE), RATE)
    said = Said()
    grown = update(members[system], [longer, *copies], machine="pump", workers=0, progress=said)
    assert grown.machines["pump"].clips[60:] == ("a-longer.wav",)
    assert said.lines[0] == ("pump: 3 of 4 clips are known already; left out: copy-0.flac, copy-1.wav, copy-2.wav")


def test_an_ensemble_decides_once(members: dict[str, Detector], steady: Path, tmp_path: Path) -> None:
    ensemble = Ensemble.of(members)
    new, copy = sorted(steady.glob("new-*.wav")), tmp_path / "copy.wav"
    shutil.copy(new[3], copy)
    said, failures = Said(), []
    (tmp_path / "half.wav").write_bytes(b"RIFF")
    clips = [*new, copy, sorted(steady.glob("old-*.wav"))[0], tmp_path / "half.wav"]
    grown = update(ensemble, clips, machine="pump", workers=0, progress=said, failures=failures)
    expected = (*members["loudness"].machines["pump"].clips, *(path.name for path in new))
    for part in (grown, *grown.members.values()):
        known = part.machines["pump"]
        assert known.clips == expected
        assert len(known.profile.spectra) == len(known.clips)
    assert [line for line in said.lines if "known already" in line] == [
        "pump: 2 of 12 clips are known already; left out: copy.wav, old-0.wav"
    ]
    assert [failure.path.name for failure in failures] == ["half.wav"]
    for number in range(10):
        one = update(ensemble, [new[number]], workers=0)
        assert all(len(part.machines["pump"].clips) == 61 for part in one.members.values())
    with pytest.raises(UpdateError, match="known already"):
        update(grown, [copy], machine="pump", workers=0)


def test_what_a_member_knows_is_left_out_for_all(members: dict[str, Detector], steady: Path) -> None:
    """A member that was updated by itself does not count a clip twice."""
    new = sorted(steady.glob("new-*.wav"))[:2]
    ahead = update(members["loudness"], new[:1], workers=0)
    ensemble = Ensemble.of({"loudness": ahead, "logmel-knn": members["logmel-knn"]})
    grown = update(ensemble, new, workers=0)
    assert len(grown.members["loudness"].machines["pump"].clips) == 62
    assert len(grown.members["logmel-knn"].machines["pump"].clips) == 61


# ---- what the card tells of the recordings


def test_the_card_counts_what_has_come(members: dict[str, Detector], tmp_path: Path) -> None:
    long = tmp_path / "section_00_source_train_normal_0000_speed_7.wav"
    soundfile.write(long, 0.1 * np.random.default_rng(0).standard_normal(44100 * 6), 44100)
    ensemble = Ensemble.of(members)
    for detector in (members["logmel-knn"], ensemble):
        before = detector.facts["recordings"]["pump"]
        grown = update(detector, [long], machine="pump", workers=0)
        told = grown.facts["recordings"]["pump"]
        assert (before["minutes"], before["longest"], before["rates"]) == (0.5, 0.5, {"16000": 60})
        assert (told["minutes"], told["shortest"], told["longest"]) == (0.6, 0.5, 6.0)
        assert told["rates"] == {"16000": 60, "44100": 1}
        assert told["attributes"] == {"speed": 1}
        assert detector.facts["recordings"]["pump"] == before
        card = offkey.load(grown.save(tmp_path / type(detector).__name__)).card()
        assert "| pump | 61 | 1 | 0 | 0.6 | 0.5–6.0 | speed (1) |" in card
        assert "Recorded at 16000 and 44100 Hz." in card
        assert "0.6 minutes of sound." in card


def test_settings_of_older_and_newer_detectors_are_joined() -> None:
    clips = [ClipMeta(Path("none.wav"), "fan", attributes=(("speed", value), ("load", "1"))) for value in "34"]
    kept = {"minutes": 1.0, "rates": {"16000": 3}, "attributes": {"speed": 3}, "values": {"speed": ["1", "2", "3"]}}
    told = joined_recordings(kept, clips, [2.0, 60.0, 4.0])
    assert told["attributes"] == {"speed": 4, "load": 1}
    assert (told["minutes"], told["shortest"], told["longest"], told["rates"]) == (1.1, 2.0, 60.0, {"16000": 3})
    older = {key: value for key, value in kept.items() if key != "values"}  # which values there were is not known
    assert joined_recordings(older, clips, [1.0])["attributes"] == {"speed": 3, "load": 1}
    assert "values" not in joined_recordings(older, clips, [1.0])
