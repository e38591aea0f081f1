"""What every system must obey: fit, save, load and score on a tiny simulated set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import offkey
from offkey.audio.io import AudioError
from offkey.data.source import open_source
from offkey.detector import Detector, DetectorError
from offkey.files import sha256
from offkey.fitting import fit
from offkey.systems.config import preset_names
from offkey.types import Clip, Verdict


@pytest.fixture(params=preset_names())
def case(request: pytest.FixtureRequest, fitted: Callable[[str], Any]) -> Any:
    return fitted(request.param)


@pytest.fixture(scope="module")
def clips(small_set: Path) -> list[Path]:
    """Test clips of both machines, interleaved."""
    fans, valves = (sorted((small_set / name / "test").glob("*.wav")) for name in ("fan", "valve"))
    return [path for pair in zip(fans, valves, strict=True) for path in pair]


def hiss(length: int = 32000, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal(length)).astype(np.float32)


def verdicts(detector: Detector, paths: list[Path], **keywords: Any) -> list[Verdict]:
    rows = list(detector.score_files(paths, **keywords))
    assert [row.path for row in rows] == list(paths)
    assert [row.error for row in rows] == [None] * len(paths)
    return [row.verdict for row in rows]


def alike(some: list[Verdict], others: list[Verdict], detector: Detector) -> None:
    """The same verdicts but for the rounding of float32 in batches of other shapes."""
    assert [v.machine for v in some] == [v.machine for v in others]
    for name, known in detector.machines.items():
        spread = float(np.std(known.calibration.scores))
        for one, other in zip(some, others, strict=True):
            if one.machine == name:
                assert abs(one.score - other.score) <= 0.02 * spread + 1e-9
                assert one.threshold == other.threshold


def test_a_loaded_detector_gives_the_verdicts_of_the_saved_one(case: Any, clips: list[Path]) -> None:
    assert verdicts(offkey.load(case.folder), clips) == verdicts(case.detector, clips)


def test_loading_and_saving_again_gives_the_same_bytes(case: Any, tmp_path: Path) -> None:
    Detector.load(case.folder).save(tmp_path)
    saved = {path.name: sha256(path) for path in case.folder.iterdir() if path.is_file()}
    assert {path.name: sha256(path) for path in tmp_path.iterdir() if path.is_file()} == saved


def test_verdicts_hold_together(case: Any, clips: list[Path]) -> None:
    for path, verdict in zip(clips, verdicts(case.detector, clips), strict=True):
        assert verdict.machine == path.parent.parent.name
        assert np.isfinite(verdict.score)
        assert 0 < verdict.p_value <= 1
        assert np.isfinite(verdict.threshold)
        assert verdict.threshold == case.detector.threshold(verdict.machine)
        assert verdict.is_anomalous == (verdict.score > verdict.threshold)
        assert len(verdict.parts) == len(case.detector.config.scoring.scorers)
        assert all(np.isfinite(part) for part in verdict.parts.values())


def test_stranger_clips_have_no_greater_p_values(case: Any, clips: list[Path]) -> None:
    for machine in case.detector.machines:
        mine = sorted(
            (v for v in verdicts(case.detector, clips) if v.machine == machine), key=lambda verdict: verdict.score
        )
        assert [v.p_value for v in mine] == sorted((v.p_value for v in mine), reverse=True)


def test_samples_are_judged_as_their_file(case: Any, clips: list[Path]) -> None:
    path = clips[0]
    samples, rate = soundfile.read(path, dtype="float32")
    told = case.detector.score(path)
    assert case.detector.score(samples, machine="fan") == told
    assert case.detector.score(samples[:, None], machine="fan", rate=rate) == told
    assert case.detector.score(Clip(samples, rate), machine="fan") == told
    assert case.detector.score(str(path)) == told


def test_a_clip_alone_is_judged_as_in_a_batch(case: Any, clips: list[Path]) -> None:
    together = verdicts(case.detector, clips, batch_size=5)
    alike([case.detector.score(path) for path in clips], together, case.detector)


def test_a_longer_neighbour_does_not_matter(case: Any, clips: list[Path], tmp_path: Path) -> None:
    samples, rate = soundfile.read(clips[1], dtype="float32")
    long = tmp_path / "valve" / "long.wav"
    long.parent.mkdir()
    soundfile.write(long, np.tile(samples, 2)[: int(1.4 * len(samples))], rate, subtype="FLOAT")
    alone = [case.detector.score(path) for path in (clips[0], long, clips[1])]
    alike(verdicts(case.detector, [clips[0], long, clips[1]]), alone, case.detector)


def test_the_order_of_files_does_not_matter(case: Any, clips: list[Path]) -> None:
    order = np.random.default_rng(0).permutation(len(clips))
    shuffled = verdicts(case.detector, [clips[place] for place in order])
    straight = verdicts(case.detector, clips)
    alike(shuffled, [straight[place] for place in order], case.detector)


def test_the_number_of_workers_does_not_matter(case: Any, clips: list[Path]) -> None:
    told = verdicts(case.detector, clips, workers=0)
    assert verdicts(case.detector, clips, workers=1) == told
    assert verdicts(case.detector, clips, workers=3) == told


def test_scikit_learns_manner_says_the_same(case: Any, clips: list[Path]) -> None:
    told = [case.detector.score(path) for path in clips]
    samples = case.detector.score_samples(clips)
    assert samples.dtype == np.float64
    assert samples.tolist() == [-v.score for v in told]
    assert case.detector.decision_function(iter(clips)).tolist() == [v.threshold - v.score for v in told]
    assert case.detector.predict(clips).tolist() == [-1 if v.is_anomalous else 1 for v in told]


def test_one_seed_gives_the_same_bits_again(
    case: Any, small_set: Path, quick_of: Callable[[str], tuple[str, ...]], tmp_path: Path
) -> None:
    again = fit(small_set, case.folder.name, out=tmp_path, overrides=quick_of(case.folder.name), workers=2)
    for name in ("config.toml", "scorer.safetensors", "model.safetensors"):
        first = case.folder / name
        assert first.exists() == (tmp_path / name).exists()
        if first.exists():
            assert first.read_bytes() == (tmp_path / name).read_bytes(), name
    for name, known in case.detector.machines.items():
        assert np.array_equal(known.calibration.scores, again.machines[name].calibration.scores)
        assert known.clips == again.machines[name].clips


def test_no_reference_clip_comes_from_the_test(case: Any, small_set: Path) -> None:
    train = {clip.path.name for clip in open_source(small_set).train()}
    for known in case.detector.machines.values():
        assert set(known.clips) <= train
        assert len(known.clips) == len(known.domains) == len(known.identities) == 22
        assert known.domains.count("target") == 2
        assert all(len(array) == 22 for array in known.embeddings.values())


def test_no_normal_clip_is_judged_by_a_scorer_that_knows_it(case: Any) -> None:
    # a neighbour that is the clip itself would make every cross-fitted score 0
    for known in case.detector.machines.values():
        assert len(np.unique(known.calibration.scores)) > len(known.calibration.scores) // 2
        assert np.all(np.isfinite(known.calibration.scores))


def test_a_machine_that_it_does_not_know_is_refused(case: Any, clips: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match="does not know the machine 'pump'; it knows fan, valve"):
        case.detector.score(hiss(), machine="pump")
    with pytest.raises(DetectorError, match="which machine is array"):
        case.detector.score(hiss())
    stray = tmp_path / "elsewhere.wav"
    stray.write_bytes(clips[0].read_bytes())
    rows = list(case.detector.score_files([clips[0], stray, clips[1]]))
    assert [row.verdict is None for row in rows] == [False, True, False]
    assert "which machine is elsewhere.wav" in str(rows[1].error)
    alike([rows[0].verdict, rows[2].verdict], [case.detector.score(path) for path in clips[:2]], case.detector)


def test_the_machine_can_be_told(case: Any, clips: list[Path], tmp_path: Path) -> None:
    stray = tmp_path / "elsewhere.wav"
    stray.write_bytes(clips[0].read_bytes())
    assert case.detector.score(stray, machine="fan") == case.detector.score(clips[0])
    assert case.detector.score(stray, machine="valve").machine == "valve"


def test_broken_files_have_rows_with_reasons(case: Any, clips: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "fan"
    folder.mkdir()
    broken = [folder / "none.wav", folder / "empty.wav", folder / "text.wav"]
    broken[1].write_bytes(b"")
    broken[2].write_text("not a sound")

    def asked() -> Iterator[Path]:
        yield from (broken[0], clips[0], broken[1], broken[2], clips[2], broken[0])

    rows = list(case.detector.score_files(list(asked()), batch_size=2, workers=1))
    assert [row.path for row in rows] == list(asked())
    assert [row.verdict is None for row in rows] == [True, False, True, True, False, True]
    assert all((row.verdict is None) == bool(row.error) for row in rows)
    with pytest.raises(AudioError, match=r"empty\.wav"):
        case.detector.score(broken[1])


def test_samples_that_are_no_sound_are_refused(case: Any) -> None:
    empty, silent = np.zeros(0, np.float32), np.zeros(32000, np.float32)
    for samples in (empty, silent, np.full(32000, np.nan, np.float32), hiss(24).reshape(2, 3, 4)):
        with pytest.raises(AudioError):
            case.detector.score(samples, machine="fan")


def test_faint_and_full_scale_sounds_have_verdicts(case: Any) -> None:
    square = np.sign(np.sin(np.arange(32000, dtype=np.float32)))
    for samples in (hiss(level=1e-6), square):
        verdict = case.detector.score(samples, machine="valve")
        assert np.isfinite(verdict.score)
        assert 0 < verdict.p_value <= 1


def test_an_explanation_points_at_the_tone_that_was_added(case: Any, clips: list[Path]) -> None:
    samples, rate = soundfile.read(clips[0], dtype="float32")
    time = np.arange(len(samples)) / rate
    sounding = (time > 0.8) & (time < 1.3)
    tone = (0.5 * np.sin(2 * np.pi * 3000 * time) * sounding).astype(np.float32)
    found = case.detector.explain(samples + tone, machine="fan")
    assert found.deviation.shape == found.decibels.shape
    rebuilds = case.detector.config.kind == "reconstructive"
    assert (found.kind == "reconstruction", found.map_kind == "reconstruction") == (rebuilds, rebuilds)
    assert found.map.shape == found.decibels.shape
    assert 0.6 < found.start < 1.0
    assert 1.1 < found.end < 1.5
    assert found.low <= 3050
    assert found.high >= 2950
    assert found.high - found.low < 2000
    assert found.difference > 6
    assert "above normal" in found.text


def test_any_length_is_judged(case: Any, clips: list[Path]) -> None:
    samples, _ = soundfile.read(clips[0], dtype="float32")
    for length in (2000, 16000, 31999, 90000):
        verdict = case.detector.score(np.resize(samples, length), machine="fan")
        assert np.isfinite(verdict.score)
