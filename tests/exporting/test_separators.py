"""A separator in front of a detector gives as a module, and as ONNX, what it gives as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch

from offkey.ensemble import Ensemble
from offkey.exporting import ExportError, export_detector
from offkey.exporting.separators import SeparatorGraph
from offkey.runtime import Exported, RuntimeProblem
from offkey.separation.config import LocoformerConfig, SeparatorConfig
from offkey.separation.front_end import FrontEnd
from offkey.separation.separator import Separator

SMALL: dict[str, Any] = {
    "blocks": 2, "width": 8, "groups": 2, "heads": 2, "attention_width": 8, "hidden": (12, 12), "frequency_stride": 8,
    "attention_frames": 5,
}  # fmt: skip
AROUND: dict[str, Any] = {"n_fft": 256, "hop": 128}


def separator(inside: dict[str, Any] | None = None, around: dict[str, Any] | None = None) -> Separator:
    """A network that does something to what it hears, though it has learnt nothing."""
    config = SeparatorConfig(locoformer=LocoformerConfig(**SMALL | (inside or {})), **AROUND | (around or {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Separator(config)
        for weight in made.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
    return made.eval()


KINDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"attention_frames": None}, {}),
    ({"attention_frames": 40}, {}),
    ({"contrast_frames": 3}, {}),
    ({"contrast_frames": 100}, {}),
    ({"norm": "layer"}, {}),
    ({"feed_forward": ("silu", "swiglu"), "kernel": 5, "stride": 3}, {}),
    ({"feed_forward": ("silu", "silu"), "kernel": 6, "stride": 1}, {}),
    ({"feed_forward": ("swiglu",), "hidden": (12,), "order": "time-frequency"}, {}),
    ({"sources": 1}, {}),
    ({"frequency_stride": 1}, {"output": "mapping", "compression": 1.0, "hop": 64}),
    ({"frequency_stride": 3}, {"n_fft": 250, "hop": 50}),
]


@pytest.mark.parametrize("keep", ["foreground", "background"])
@pytest.mark.parametrize(("inside", "around"), KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_parts_of_unequal_clips_are_those_of_each_alone(
    inside: dict[str, Any], around: dict[str, Any], keep: str
) -> None:
    made = separator(inside, around)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([5000, 37, 2777, 1000])
    waves = 0.1 * torch.randn(4, 5000, generator=generator)  # loud behind the ends, where nobody may listen
    waves[3] = 0.0
    with torch.no_grad():
        found = SeparatorGraph(made, keep)(waves, lengths)  # type: ignore[arg-type]
    for wave, length, part in zip(waves, lengths.tolist(), found, strict=True):
        expected = made.separate(wave[:length].numpy())[["foreground", "background"].index(keep)]
        np.testing.assert_allclose(part[:length], expected, rtol=0, atol=3e-5 * max(np.abs(expected).max(), 1e-9))
        assert not part[length:].any()


def test_a_long_clip_is_what_its_chunks_make() -> None:
    """The original cuts after 30 s; bounded attention hears the same in one piece."""
    made = separator(around={"rate": 1000, "n_fft": 64, "hop": 32})
    wave = 0.1 * torch.randn(1, 80_000, generator=torch.Generator().manual_seed(2))
    expected = made.separate(wave[0].numpy())[0]
    graph = SeparatorGraph(made)
    assert graph.longest is None
    with torch.no_grad():
        found = graph(wave, torch.tensor([80_000]))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


def test_attention_without_bounds_ends_where_chunks_begin() -> None:
    made = separator({"attention_frames": None}, {"rate": 1000, "n_fft": 64, "hop": 32})
    longest = SeparatorGraph(made).longest
    assert longest is not None
    plans = [made._plan(made.frames(samples), 30.0, None) for samples in (longest, longest + 1)]
    assert [len(plan) for plan in plans] == [1, 2]


@pytest.fixture
def heard(fitted: Callable[[str], Any]) -> Callable[..., Any]:
    """A detector that hears through such a separator, `audio` changed."""

    def made(
        inside: dict[str, Any], around: dict[str, Any], keep: Literal["foreground", "background"], **audio: Any
    ) -> Any:
        plain = fitted("logmel-mahalanobis").detector
        config = plain.config.model_copy(update={"audio": plain.config.audio.model_copy(update=audio)})
        return replace(plain, config=config, front_end=FrontEnd(separator(inside, around), keep))

    return made


def test_a_detector_hears_through_it_as_onnx(heard: Callable[..., Any], small_set: Path, tmp_path: Path) -> None:
    detector = heard({"contrast_frames": 3}, {}, "background", level_dbfs=-26.0)
    made = export_detector(detector, tmp_path / "out")
    assert made.check.passed
    runtime = Exported.load(tmp_path / "out")
    assert runtime.one_by_one
    assert runtime.longest is None
    files = [path for name in ("fan", "valve") for path in sorted((small_set / name / "test").glob("*.wav"))[:2]]
    for row in runtime.score_files(files):
        expected = detector.score(row.path)
        assert row.verdict is not None
        assert row.verdict.score == pytest.approx(expected.score, rel=1e-4)
    # nothing in the file hangs on clips going through it alone
    waves = [soundfile.read(files[0], dtype="float32")[0][:length] for length in (9000, 31000)]
    alone = runtime.judge(waves, ["fan", "fan"])
    runtime.one_by_one = False
    for one, other in zip(alone, runtime.judge(waves, ["fan", "fan"]), strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-4)


def test_members_that_hear_through_the_same_one_share_it(
    heard: Callable[..., Any], fitted: Callable[[str], Any], small_set: Path, tmp_path: Path
) -> None:
    first = heard({}, {}, "foreground")
    # as members read from disk: equal weights, but not the same network
    second = replace(fitted("logmel-knn").detector, front_end=FrontEnd(separator()))
    ensemble = Ensemble.of([first, second, fitted("loudness").detector])
    made = export_detector(ensemble, tmp_path / "out")
    assert made.check.passed
    file = next((small_set / "fan" / "test").glob("*.wav"))
    verdict = next(iter(Exported.load(tmp_path / "out").score_files([file]))).verdict
    assert verdict is not None
    assert verdict.score == pytest.approx(ensemble.score(file).score, abs=1e-3)


def test_clips_beyond_its_reach_are_refused_in_words(
    heard: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from offkey.cli.app import run

    detector = heard({"attention_frames": None, "blocks": 1}, {}, "foreground")
    export_detector(detector, tmp_path / "out")
    runtime = Exported.load(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert runtime.longest == told["max_samples"] == 479_872
    wave = (0.1 * np.random.default_rng(0).standard_normal(31 * 16000)).astype(np.float32)
    with pytest.raises(RuntimeProblem, match=r"too long: 31\.0 s, .* at most 30\.0 s at a time; cut the recording"):
        runtime.judge([wave], ["fan"])
    for name, samples in (("long", wave), ("short", wave[:8000])):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000)
    files = [str(tmp_path / name) for name in ("long.wav", "short.wav")]
    assert run(["score", str(tmp_path / "out"), *files, "--machine", "fan"]) == 1
    said = capsys.readouterr()
    assert "long.wav: too long" in said.err
    assert "short.wav" in said.out


def test_another_rate_is_refused_in_words(heard: Callable[..., Any], tmp_path: Path) -> None:
    detector = heard({"blocks": 1}, {"rate": 8000}, "foreground")
    with pytest.raises(ExportError, match="16000 Hz through a separator that works at 8000 Hz"):
        export_detector(detector, tmp_path / "out")
