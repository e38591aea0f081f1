"""An exported ensemble: all members in one file, what they share in it once, and the blend of the original."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offkey.ensemble import Ensemble
from offkey.exporting import ExportError, export_detector
from offkey.models.retrieval import Retrieval
from offkey.runtime import Exported


@pytest.fixture
def heard_otherwise(fitted: Callable[[str], Any]) -> Callable[..., Any]:
    """The detector of a system with other settings of `audio`."""

    def changed(system: str, **audio: Any) -> Any:
        detector = fitted(system).detector
        told = detector.config.audio.model_copy(update=audio)
        return replace(detector, config=detector.config.model_copy(update={"audio": told}))

    return changed


def judged_alike(ensemble: Ensemble, folder: Path, files: list[Path]) -> None:
    told = [row.verdict for row in Exported.load(folder).score_files(files, batch_size=3)]
    for path, verdict in zip(files, told, strict=True):
        expected = ensemble.score(path)
        assert verdict is not None
        assert verdict.score == pytest.approx(expected.score, abs=1e-3)  # ranks among 20 clips are steep in places
        assert verdict.threshold == expected.threshold
        assert list(verdict.parts) == list(expected.parts)
        for name, part in verdict.parts.items():
            assert part == pytest.approx(expected.parts[name], rel=1e-4), name


@pytest.fixture
def files(small_set: Path) -> list[Path]:
    return sorted(small_set.glob("*/test/*.wav"))[::3]


def test_members_that_want_other_levels_hear_the_same_file(
    heard_otherwise: Callable[..., Any], fitted: Callable[[str], Any], files: list[Path], tmp_path: Path
) -> None:
    quiet = heard_otherwise("logmel-knn", level_dbfs=-40.0, min_seconds=0.5)
    ensemble = Ensemble.of([fitted("loudness").detector, quiet], weights=[0.3, 1.0])
    made = export_detector(ensemble, tmp_path / "out")
    assert made.check.passed
    assert made.check.largest <= 1e-4
    judged_alike(ensemble, tmp_path / "out", files)
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (told["level_dbfs"], told["min_seconds"], told["scorers"]) == (None, 0.5, ["logmel-knn", "loudness"])


def test_a_member_without_a_say_is_told_beside(fitted: Callable[[str], Any], files: list[Path], tmp_path: Path) -> None:
    ensemble = Ensemble.of([fitted(name).detector for name in ("loudness", "logmel-knn")], weights=[0.0, 1.0])
    export_detector(ensemble, tmp_path / "out")
    judged_alike(ensemble, tmp_path / "out", files)


def test_a_file_a_machine_where_a_member_has_a_network_a_machine(
    fitted: Callable[[str], Any], files: list[Path], tmp_path: Path
) -> None:
    ensemble = Ensemble.of([fitted(name).detector for name in ("baseline", "logmel-mahalanobis")])
    export_detector(ensemble, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.onnx")) == ["model0.onnx", "model1.onnx"]
    judged_alike(ensemble, tmp_path / "out", files)


def test_an_encoder_that_two_members_share_is_there_once(
    exported: Callable[..., Any], files: list[Path], tmp_path: Path
) -> None:
    import onnx

    first = exported("retrieval")
    network = first.detector.network
    config = first.detector.config
    pooling = config.model.model_copy(update={"pooling": "mean"})
    second = replace(
        first.detector,
        config=config.model_copy(update={"model": pooling}),
        networks={"": Retrieval(network.encoder, pooling, config.audio.rate)},
    )
    ensemble = Ensemble.of({"one": first.detector, "other": second})
    made = export_detector(ensemble, tmp_path / "out")
    judged_alike(ensemble, tmp_path / "out", files)

    def softmaxes(path: Path) -> int:
        return sum(node.op_type == "Softmax" for node in onnx.load(path).graph.node)

    assert softmaxes(tmp_path / "out" / "model.onnx") == softmaxes(first.export.folder / "model.onnx") == 4
    small = export_detector(ensemble, tmp_path / "small", int8=True)
    assert small.exact.largest == pytest.approx(made.check.largest)
    assert small.megabytes < made.megabytes
    assert small.check.median > 0


def test_what_a_member_cannot_is_said_with_its_name(
    heard_otherwise: Callable[..., Any], fitted: Callable[[str], Any], tmp_path: Path
) -> None:
    plain = fitted("loudness").detector
    other = Ensemble.of([plain, heard_otherwise("logmel-knn", rate=8000)])
    with pytest.raises(ExportError, match=r"members of this ensemble differ in audio\.rate \(16000, 8000\)"):
        export_detector(other, tmp_path / "out")

    class Stranger:
        def fingerprint(self) -> str:
            return "strange"

    from offkey.separation.front_end import FrontEnd

    behind = replace(fitted("logmel-knn").detector, front_end=FrontEnd(Stranger()))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="the member logmel-knn of this ensemble: the separator in front"):
        export_detector(Ensemble.of([plain, behind]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_blend_that_is_not_the_ensembles_is_deleted(
    fitted: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offkey.exporting import write
    from offkey.exporting.graph import graphs_of

    def swapped(detector: Any) -> Any:
        graphs = graphs_of(detector)
        graphs["model"].judges[0].blend.share += torch.tensor([0.05, -0.05])
        return graphs

    monkeypatch.setattr(write, "graphs_of", swapped)
    ensemble = Ensemble.of([fitted(name).detector for name in ("loudness", "logmel-knn")])
    with pytest.raises(ExportError, match="so it was deleted"):
        export_detector(ensemble, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_member_that_eight_bits_would_change_keeps_exact_weights(
    fitted: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    from offkey.exporting import write

    checked = write.check_export

    def moved(*given: Any, **asked: Any) -> Any:
        found = checked(*given, **asked)
        return replace(found, passed=True, members={"retrieval": 0.6, "discriminative": 0.1} if found.int8 else {})

    monkeypatch.setattr(write, "check_export", moved)
    ensemble = Ensemble.of([fitted(name).detector for name in ("retrieval", "discriminative", "loudness")])
    said: list[str] = []
    export_detector(ensemble, tmp_path / "out", int8=True, say=said.append)
    assert said[-1] == "8-bit weights change retrieval too much: exact weights there"
    assert json.loads((tmp_path / "out" / "export.json").read_text())["exact_members"] == ["retrieval"]
    kinds = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert "DequantizeLinear" in kinds  # the other's convolutions
    assert "MatMulInteger" not in kinds
