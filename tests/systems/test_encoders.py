"""Discriminative systems with a pretrained encoder: which one, which of its layers learn, what is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import offkey
from offkey.detector import Detector, DetectorError
from offkey.encoders import load_encoder
from offkey.encoders.base import Encoder
from offkey.encoders.weights import WeightsError
from offkey.fitting import fit
from offkey.progress import Quiet
from offkey.systems.config import load_preset
from offkey.systems.settings import SettingsError
from offkey.training.checkpoint import CheckpointError

STREAM = "extra_streams.0.encoder."


class Told(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="session")
def small_mn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain state dict of a narrow EfficientAT network with random weights, under the published names."""
    from offkey.encoders.efficientat import EfficientAT

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = EfficientAT.build({"width_mult": 0.1})
    weights = encoder.state_dict()
    path = tmp_path_factory.mktemp("mn") / "mn01.pt"
    torch.save({theirs: weights[ours] for ours, theirs in encoder._published_names().items()}, path)
    return path


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def encoder_state(folder: Path) -> dict[str, torch.Tensor]:
    saved = load_file(folder / "model.safetensors")
    return {name.removeprefix(STREAM): value for name, value in saved.items() if name.startswith(STREAM)}


@pytest.mark.parametrize("system", ["system1", "system2"])
@pytest.mark.parametrize("name", ["efficientat", "none"])
def test_a_laptops_encoder_or_none_takes_beats_place(
    system: str, name: str, small_set: Path, small_mn: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    told = Told()
    overrides = (*quick, f"encoder.name={name}", f"encoder.weights={small_mn}")
    detector = fit(small_set, system, out=tmp_path / "m", overrides=overrides, machines=["fan"], progress=told)
    assert detector.network is not None
    assert (detector.network.encoder is None) == (name == "none")
    remarks = [line for line in told.lines if "positional convolution" in line]
    assert len(remarks) == int(name == "efficientat" and system == "system1")
    clip = sorted((small_set / "fan" / "test").glob("*.wav"))[0]
    assert offkey.load(tmp_path / "m").score(clip) == detector.score(clip)
    assert set(detector.score(clip).parts) == {"network:mahalanobis", "network:gmm", "network:density"}


def test_exactly_the_layers_asked_for_have_learnt(fitted: Callable[[str], Any], small_beats: Path) -> None:
    published = load_encoder("beats", small_beats, classifier=False).state_dict()
    moved = changed(published, encoder_state(fitted("system1").folder))
    assert all(name.startswith(("blocks.", "pos_conv.", "norm.")) for name in moved)
    assert {name.split(".")[1] for name in moved if name.startswith("blocks.")} == {"0", "1", "2", "3"}
    assert changed(published, encoder_state(fitted("system2").folder)) > moved
    facts = fitted("system1").detector.facts["training"]
    assert facts["encoder"]["learnt"] == ["pos_conv", "block.0", "block.1", "block.2", "block.3"]
    assert facts["learnt"] < fitted("system2").detector.facts["training"]["learnt"] <= facts["parameters"]


def test_what_a_frozen_encoder_heard_is_never_computed_twice(
    small_set: Path, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path / "cache"))
    clips = 0
    plain = Encoder.layers

    def counted(self: Encoder, waveform: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
        nonlocal clips
        clips += len(waveform)
        return plain(self, waveform, *rest)

    monkeypatch.setattr(Encoder, "layers", counted)
    still = [f"augmentation.{change}.enabled=false" for change in ("shift", "noise")]
    overrides = (*quick, "encoder.unfreeze=none", "training.epochs=2", "labels.supplemental=false", *still)
    first = fit(small_set, "system1", overrides=overrides, machines=["fan"])
    assert clips == 22  # two epochs, the held-out loss twice, and the reference
    again = fit(small_set, "system1", overrides=overrides, machines=["fan"], seed=0)
    assert clips == 22
    assert torch.equal(first.network.net(torch.ones(1, 3, 128, 63)), again.network.net(torch.ones(1, 3, 128, 63)))
    without = fit(small_set, "system1", overrides=(*overrides, "encoder.cache=false"), machines=["fan"])
    assert clips > 60
    clip = sorted((small_set / "fan" / "test").glob("*.wav"))[0]
    assert without.score(clip).score == pytest.approx(first.score(clip).score, rel=1e-2)


def test_low_rank_changes_are_folded_into_the_saved_weights(
    small_set: Path, small_beats: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = (*quick, "encoder.unfreeze=none", "encoder.lora_rank=4", "training.encoder_learning_rate=0.01")
    detector = fit(small_set, "system1", out=tmp_path / "m", overrides=overrides, machines=["fan"])
    published = load_encoder("beats", small_beats, classifier=False).state_dict()
    moved = changed(published, encoder_state(tmp_path / "m"))
    assert moved == {f"blocks.{n}.attention.{p}_proj.weight" for n in range(4) for p in "qv"}
    clip = sorted((small_set / "fan" / "test").glob("*.wav"))[0]
    assert Detector.load(tmp_path / "m").score(clip) == detector.score(clip)


def test_weights_that_are_not_at_hand_are_told_with_the_ways_out(small_set: Path) -> None:
    with pytest.raises(WeightsError, match=r"offkey weights fetch") as raised:
        fit(small_set, "system1", machines=["fan"])
    assert "encoder.name" in str(raised.value)


def test_a_run_does_not_go_on_with_another_encoder(
    small_set: Path, small_mn: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    class Killed(Quiet):
        def step(self, done: int, note: str = "") -> None:
            if "epoch 2" in note:
                raise KeyboardInterrupt

    common = (*quick, "training.epochs=3", "training.checkpoint_every_steps=1", "encoder.name=efficientat")
    with pytest.raises(KeyboardInterrupt):
        fit(small_set, "system1", out=tmp_path, overrides=(*common, f"encoder.weights={small_mn}"), progress=Killed())
    weights = torch.load(small_mn, weights_only=True)
    weights[next(iter(weights))] += 0.01
    other = tmp_path / "other.pt"
    torch.save(weights, other)
    with pytest.raises(CheckpointError, match="does not match"):
        fit(small_set, "system1", out=tmp_path, overrides=(*common, f"encoder.weights={other}"))


def test_a_model_file_that_hides_its_encoder_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("system1")
    detector = Detector.load(folder)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    with pytest.raises(DetectorError, match=r"model\.safetensors is not the file that was saved"):
        Detector.load(folder)
    detector.network.extra_streams[0].encoder = None  # type: ignore[assignment]
    detector.save(folder)
    with pytest.raises(DetectorError, match="damaged"):
        Detector.load(folder)


def test_layers_that_no_encoder_has_are_an_error_of_settings() -> None:
    with pytest.raises(SettingsError, match=r"encoder\.unfreeze"):
        load_preset("system1", ["encoder.unfreeze=first:3"])
    with pytest.raises(SettingsError, match="efficientat"):
        load_preset("system1", ["encoder.name=efficient"])


def test_an_encoder_that_nothing_would_listen_to_is_an_error() -> None:
    with pytest.raises(SettingsError, match="training-free system has no network for an encoder"):
        load_preset("logmel-knn", ["encoder.name=efficientat"])


def test_auto_without_enough_clips_does_without_its_encoder(
    small_set: Path, small_mn: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = (*quick, "encoder.name=efficientat", f"encoder.weights={small_mn}", "auto.retrieval=false")
    detector = fit(small_set, "auto", out=tmp_path, overrides=overrides, machines=["fan"])
    assert detector.network is None
    assert any("efficientat is not asked" in reason for reason in detector.reasons)
    assert offkey.load(tmp_path).config.encoder.name == "none"


@pytest.mark.parametrize("system", ["discriminative", "auto"])
def test_other_systems_that_train_take_an_encoder_too(
    system: str, small_set: Path, small_mn: Path, quick: tuple[str, ...]
) -> None:
    overrides = (*quick, "encoder.name=efficientat", f"encoder.weights={small_mn}", "auto.retrieval=false")
    detector = fit(small_set, system, overrides=overrides)
    assert detector.network is not None
    assert detector.network.encoder is not None
    assert detector.facts["training"]["encoder"]["learnt"] == []
