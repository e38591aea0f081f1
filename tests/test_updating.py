"""Normal clips that come later: the detector knows them, nothing is trained, and a folder is whole or untouched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offkey
from offkey.data.loader import Failure
from offkey.explaining.joining import join_profiles
from offkey.files import sha256
from offkey.fitting import fit
from offkey.types import ClipMeta, Domain
from offkey.updating import UpdateError, _fresh, replace_folder, update


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
    replace_folder(grown, folder)
    assert len(offkey.load(folder).machines["fan"].clips) == len(grown.machines["fan"].clips)
    assert set(folder.parent.iterdir()) == beside


def test_profiles_are_joined() -> None:
    from offkey.explaining import Profile, Spectra

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
    same = join_profiles(new, new, 0.5)
    np.testing.assert_allclose(same.spectra.fluctuation, spectra.fluctuation, atol=0.06)
    np.testing.assert_allclose(same.frame_error, new.frame_error, rtol=1e-6)
