"""A system of a frozen encoder: its settings, what is saved, what is kept on disk, and a real encoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import offkey
from offkey.encoders import load_encoder
from offkey.encoders.base import Encoder
from offkey.encoders.weights import WeightsError
from offkey.fitting import fit
from offkey.models.retrieval import RetrievalError
from offkey.systems.config import load_preset
from offkey.systems.settings import SettingsError


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("encoder.name=none", "listens with a pretrained encoder: set encoder.name to beats, or to efficientat"),
        ("encoder.unfreeze=last:2", "nothing learns in a retrieval system"),
        ("encoder.lora_rank=4", "nothing learns in a retrieval system"),
        ("kind=discriminative", "kind must be training-free, not discriminative"),
        ("kind=auto", "kind must be training-free, not auto"),
        ("networks=machine", "one frozen encoder for all machines"),
        ("scoring.scorers.0.view=error", "an autoencoder's; a retrieval system rebuilds nothing"),
        ("model.layers=[0]", "counted from 1, or from -1 backwards"),
        ("model.layers=[2,2]", "each is named once"),
        ("model.pooling=max", "model.pooling"),
        ("model.power=0", "model.power"),
        ("model.latent=8", "model.latent"),
    ],
)
def test_settings_that_make_no_sense_are_told_in_words(override: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said.replace("(", r"\(")):
        load_preset("retrieval", [override])


def test_an_encoder_that_no_scorer_looks_at_is_an_error() -> None:
    views = ["scoring.scorers.0.view=logmel", "scoring.scorers.1.view=logmel"]
    with pytest.raises(SettingsError, match="no scorer looks at what the encoder hears"):
        load_preset("retrieval", views)


def test_other_systems_keep_their_models() -> None:
    with pytest.raises(SettingsError, match=r"model\.name retrieval trains nothing: kind must be"):
        load_preset("system3", ["model.name=retrieval"])
    with pytest.raises(SettingsError, match="system retrieval"):
        load_preset("logmel-knn", ["encoder.name=beats"])


def test_a_layer_that_the_encoder_has_not_is_told_before_anything_is_heard(small_set: Path, small_beats: Path) -> None:
    overrides = [f"encoder.weights={small_beats}", "model.layers=[5]"]
    with pytest.raises(RetrievalError, match=r"beats has layers 1 to 4 .* model.layers asks for \[5\]"):
        fit(small_set, "retrieval", overrides=overrides, machines=["fan"])


def test_weights_that_are_not_at_hand_are_told_with_the_ways_out(small_set: Path) -> None:
    with pytest.raises(WeightsError, match="offkey weights fetch"):
        fit(small_set, "retrieval", machines=["fan"])


def test_a_detector_needs_nothing_but_its_folder(
    small_set: Path, small_beats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.pt"
    shutil.copy(small_beats, weights)
    detector = fit(small_set, "retrieval", out=tmp_path / "m", overrides=[f"encoder.weights={weights}"])
    weights.unlink()
    monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path / "empty"))
    clip = sorted((small_set / "fan" / "test").glob("*.wav"))[0]
    loaded = offkey.load(tmp_path / "m")
    assert loaded.score(clip).score == pytest.approx(detector.score(clip).score, rel=1e-4)
    saved = load_file(tmp_path / "m" / "model.safetensors")
    published = load_encoder("beats", small_beats, classifier=False).state_dict()
    assert all(torch.equal(saved[f"encoder.{name}"], value) for name, value in published.items())
    card = (tmp_path / "m" / "CARD.md").read_text()
    assert "Nothing was trained. A frozen encoder listens: beats" in card
    assert "layers 4, pooled over time by rdp+gem, each frequency band by itself: 256 numbers" in card
    assert set(loaded.score(clip).parts) == {"network:density.1", "network:density.2"}


def test_what_was_heard_is_not_heard_again(
    small_set: Path, small_beats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path / "cache"))
    clips = 0
    plain = Encoder.layers

    def counted(self: Encoder, waveform: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
        nonlocal clips
        clips += len(waveform)
        return plain(self, waveform, *rest)

    monkeypatch.setattr(Encoder, "layers", counted)
    overrides = [f"encoder.weights={small_beats}"]
    fit(small_set, "retrieval", overrides=overrides, machines=["fan"])
    assert clips == 22
    # other scorers and thresholds ask nothing of the encoder
    again = fit(
        small_set, "retrieval", machines=["fan"],
        overrides=[*overrides, "scoring.scorers.1.scorer.k_source=2", "calibration.false_alarm_rate=0.2"],
    )  # fmt: skip
    assert clips == 22
    clip = sorted((small_set / "fan" / "test").glob("*.wav"))[0]
    told = again.score(clip)
    assert clips == 23
    assert again.score(clip) == told
    assert clips == 23


def test_parts_are_settled_as_the_model_says(small_set: Path, small_beats: Path, tmp_path: Path) -> None:
    overrides = [
        f"encoder.weights={small_beats}", "model.layers=[2,-1]", "scoring.scorers.0.scorer.parts=0",
        "scoring.scorers.1.view=logmel", "scoring.scorers.1.scorer.parts=0",
    ]  # fmt: skip
    detector = fit(small_set, "retrieval", out=tmp_path, overrides=overrides, machines=["fan"])
    first, second = (entry.scorer.parts for entry in detector.config.scoring.scorers)  # type: ignore[union-attr]
    assert (first, second) == (16, 1)
    assert detector.machines["fan"].scorers[0].state()["local_mean"].shape == (22, 16)
    clip = sorted((small_set / "fan" / "test").glob("*.wav"))[0]
    assert offkey.load(tmp_path).score(clip) == detector.score(clip)
    # asked for again with the same words, it is the same detector
    assert fit(small_set, "retrieval", out=tmp_path, overrides=overrides, machines=["fan"]).facts == detector.facts


@pytest.mark.parametrize("layers", ["[-1]", "[13,16]"])
def test_a_real_encoder_for_laptops(
    layers: str, small_set: Path, shared_data: Path, tmp_path: Path, quick_of: Callable[[str], tuple[str, ...]]
) -> None:
    weights = next((shared_data / "weights").glob("mn04_as*.pt"))
    overrides = ["encoder.name=efficientat", f"encoder.weights={weights}", f"model.layers={layers}"]
    detector = fit(small_set, "retrieval", out=tmp_path, overrides=overrides)
    clips = [sorted((small_set / name / "test").glob("*.wav"))[0] for name in ("fan", "valve")]
    together = [row.verdict.score for row in detector.score_files(clips) if row.verdict is not None]
    loaded = offkey.load(tmp_path)
    for clip, score in zip(clips, together, strict=True):
        assert loaded.score(clip).score == pytest.approx(score, rel=1e-3)
    assert "efficientat" in detector.card()
    assert detector.explain(clips[0]).text
