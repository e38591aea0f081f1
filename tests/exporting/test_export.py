"""A detector and its exported form give the same verdicts; a form that does not is not kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from offkey.audio import io
from offkey.exporting import ExportError, check, export_detector, write
from offkey.exporting.graph import graphs_of
from offkey.exporting.networks import network_graph
from offkey.runtime import Exported, RuntimeProblem
from offkey.separation.front_end import FrontEnd

EXPORTED = ["loudness", "logmel-mahalanobis", "auto", "baseline", "system4", "retrieval", "ensemble"]


def clips_of(root: Path, machine: str) -> list[Path]:
    return sorted((root / machine / "test").glob("*.wav"))[:3]


@pytest.mark.parametrize("system", EXPORTED)
def test_verdicts_are_those_of_the_detector(exported: Callable[..., Any], small_set: Path, system: str) -> None:
    detector, made = exported(system)
    assert made.check.passed
    assert made.check.noise < 1e-2
    files = [path for name in ("fan", "valve") for path in clips_of(small_set, name)]
    told = list(Exported.load(made.folder).score_files(files, batch_size=4))
    for path, row in zip(files, told, strict=True):
        expected = detector.score(path)
        spread = float(np.std(detector.machines[expected.machine].calibration.scores))
        allowed = max(1e-4, 4 * made.check.noise) * max(abs(expected.score), spread)
        assert row.verdict is not None
        assert (row.verdict.machine, row.verdict.threshold) == (expected.machine, expected.threshold)
        assert row.verdict.score == pytest.approx(expected.score, abs=allowed)
        assert row.verdict.p_value == pytest.approx(expected.p_value, abs=0.05)
        assert list(row.verdict.parts) == list(expected.parts)


@pytest.mark.parametrize("system", ["auto", "system4"])
def test_unequal_lengths_in_a_batch_are_as_single_clips(
    exported: Callable[..., Any], small_set: Path, system: str
) -> None:
    detector, made = exported(system)
    runtime = Exported.load(made.folder)
    rng = np.random.default_rng(0)
    waves = [(0.1 * rng.standard_normal(length)).astype(np.float32) for length in (1700, 16000, 40001, 33333)]
    keys = ["fan", "valve", "fan", "valve"]
    together = runtime.judge(waves, keys)
    for wave, key, verdict in zip(waves, keys, together, strict=True):
        alone = runtime.judge([wave], [key])[0]
        assert alone.score == pytest.approx(verdict.score, rel=2e-3)
        assert detector.score(wave, machine=key).score == pytest.approx(verdict.score, rel=2e-3)


def test_absurd_sound_is_refused_and_what_is_no_number_is_no_verdict(
    exported: Callable[..., Any], small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is not above any threshold: garbage would be called normal."""
    detector, made = exported("logmel-mahalanobis")
    runtime = Exported.load(made.folder)
    huge = np.float32(3e38) * np.sin(np.arange(32000, dtype=np.float32))
    good, bad = clips_of(small_set, "fan")[0], tmp_path / "fan" / "huge.wav"
    bad.parent.mkdir()
    soundfile.write(bad, huge, 16000, subtype="FLOAT")
    files = [good, bad, good]
    rows = list(runtime.score_files(files))
    assert [row.error for row in rows] == [row.error for row in detector.score_files(files)]
    assert "not sound" in str(rows[1].error)
    monkeypatch.setattr(io, "SOUND_LIMITS", (0.0, np.inf))
    rows = list(runtime.score_files(files))
    assert [row.verdict is None for row in rows] == [False, True, False]
    assert "its score is" in str(rows[1].error)
    with pytest.raises(RuntimeProblem, match="its score is"):
        runtime.score(bad)


def test_the_files_tell_what_they_are(exported: Callable[..., Any]) -> None:
    import onnx

    detector, made = exported("baseline")
    told = json.loads((made.folder / "export.json").read_text())
    assert {entry["file"] for entry in told["machines"].values()} == {"model0.onnx", "model1.onnx"}  # a net a machine
    for name, entry in told["machines"].items():
        known = detector.machines[name].calibration
        assert entry["threshold"] == known.threshold()
        assert entry["calibration"][""] == known.scores.tolist()
        model = onnx.load(made.folder / entry["file"])
        onnx.checker.check_model(model)
        own = {prop.key: prop.value for prop in model.metadata_props}
        assert json.loads(own["offkey.machines"]) == [name]
        assert json.loads(own["offkey.thresholds"]) == [known.threshold()]
        assert own["offkey.rate"] == "16000"
        assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx.ml", "com.microsoft.nchwc"} | {
            opset.domain for opset in model.opset_import if not any(n.domain == opset.domain for n in model.graph.node)
        }
        assert [entry.name for entry in model.graph.input] == told["inputs"] == ["waveform", "lengths", "machine"]
        assert [entry.name for entry in model.graph.output] == told["outputs"]


def test_eight_bits_are_smaller_and_change_little(exported: Callable[..., Any]) -> None:
    exact, small = exported("system4").export, exported("system4", True).export
    assert small.megabytes < 0.75 * exact.megabytes
    assert 0 < small.check.median < check.LARGEST_SHIFT
    assert small.exact.largest == pytest.approx(exact.check.largest)
    assert json.loads((small.folder / "export.json").read_text())["weights"] == "int8"


def test_an_export_that_gives_other_scores_is_deleted(
    fitted: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(detector: Any) -> Any:
        graphs = graphs_of(detector)
        graphs["model"].judges[0].scorers[0].mean += 0.5  # one machine's usual level
        return graphs

    monkeypatch.setattr(write, "graphs_of", shifted)
    with pytest.raises(ExportError, match="so it was deleted: 8 clips"):
        export_detector(fitted("loudness").detector, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_older_export_is_replaced_and_nothing_else(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    detector = fitted("loudness").detector
    export_detector(detector, out)
    (out / "scores.csv").write_text("mine")
    (out / "notes").mkdir()
    (out / "notes" / "a.txt").write_text("mine too")
    export_detector(detector, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "scores.csv").read_text() + (out / "notes" / "a.txt").read_text() == "minemine too"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ExportError, match="holds no exported detector; choose another folder"):
        export_detector(detector, tmp_path / "mine")


class Halver:
    """A separator of somebody else's."""

    def fingerprint(self) -> str:
        return "half"


def test_what_cannot_be_exported_is_said_in_words(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(ExportError, match="network of the kind Linear cannot be exported yet"):
        network_graph(torch.nn.Linear(1, 1))
    detector = replace(fitted("loudness").detector)
    detector.front_end = FrontEnd(Halver())  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="the separator in front of this detector is a Halver, which cannot"):
        export_detector(detector, tmp_path / "out")


def test_a_missing_package_is_named(
    fitted: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"package onnx: pip install 'offkey\[export\]'"):
        export_detector(fitted("loudness").detector, tmp_path / "out")


def test_normal_like_clips_have_the_usual_spectrum(fitted: Callable[[str], Any]) -> None:
    detector = fitted("logmel-knn").detector
    waves = check.reference_like(detector, "fan")
    assert len({len(wave) for wave in waves}) == 3
    scores = [detector.score(wave, machine="fan").score for wave in waves]
    white = (0.1 * np.random.default_rng(0).standard_normal(32000)).astype(np.float32)
    assert max(scores) < detector.score(white, machine="fan").score


def test_writing_eight_bits_says_nothing_of_its_own(
    exported: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's quantiser gives advice through the root logger, and a handler to it."""
    import logging

    from offkey.exporting.quantise import quantise

    before = list(logging.getLogger().handlers)
    quantise(exported("system4").export.folder / "model.onnx", tmp_path / "small.onnx")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert logging.getLogger().handlers == before
