"""EfficientAT: the published code's numbers, its files, and the short cuts that must change nothing."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offkey.encoders.base import EncoderError
from offkey.encoders.checkpoint import Checkpoint
from offkey.encoders.efficientat import EfficientAT, EfficientATArchitecture, _Unit

GOLDEN = Path(__file__).with_name("efficientat_golden")
NOWHERE = Path("mn.pt")

spec = importlib.util.spec_from_file_location("efficientat_golden_make", GOLDEN / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def published_form(width: float, classes: int = 7, **settings) -> dict[str, torch.Tensor]:
    """A state dict of the published form with the weights of the golden vectors."""
    encoder = EfficientAT(EfficientATArchitecture(width_mult=width, classes=classes, **settings))
    ours = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    return make.weights_of({name: ours[key] for key, name in encoder._published_names().items()})


def open_published(path: Path, **options) -> EfficientAT:
    return EfficientAT.from_checkpoint(Checkpoint(path, {}, torch.load(path, weights_only=True)), **options)


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, relative: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() <= relative * theirs.norm()


@pytest.mark.parametrize("samples", make.LENGTHS)
def test_the_spectrogram_is_the_published_one(golden, samples):
    level = EfficientAT().front(make.waveform_of(samples)[None], None)
    # the published filters have only float32's precision, and so have narrow bands
    torch.testing.assert_close(torch.from_numpy(make.thinned(level, 300)), golden[f"mel/{samples}"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("width", make.WIDTHS)
@pytest.mark.parametrize("samples", make.LENGTHS)
@torch.no_grad()
def test_every_layer_and_the_classifier_are_the_published_ones(golden, width, samples):
    encoder = EfficientAT.from_checkpoint(Checkpoint(NOWHERE, {}, published_form(width)))
    waveform = make.waveform_of(samples)[None]
    for number, grid in enumerate(encoder.layers(waveform, None, range(1, 17)), 1):
        channels_first = grid.permute(0, 3, 2, 1)
        assert_near(torch.from_numpy(make.thinned(channels_first)), golden[f"{width}/{samples}/layer/{number}"])
    assert_near(encoder.embed(waveform)[0], golden[f"{width}/{samples}/embedding"])
    assert_near(encoder.classify(waveform)[0], golden[f"{width}/{samples}/classes"])


@torch.no_grad()
def test_the_published_weights_hear_real_clips_as_published(golden, shared_data):
    encoder = open_published(shared_data / "weights" / "mn04_as_mAP_432.pt")
    assert (encoder.dimension, encoder.bands, encoder.patch_seconds) == (384, 4, 0.32)
    assert encoder.architecture == {**EfficientAT().architecture, "classes": 527}
    assert sum(weight.numel() for weight in encoder.parameters()) == 983_599
    for name in make.CLIPS:
        waveform = make.clip_of(shared_data / "mimii8", name)[None]
        assert_near(encoder.embed(waveform)[0], golden[f"{name}/embedding"])
        torch.testing.assert_close(encoder.classify(waveform)[0], golden[f"{name}/classes"], atol=1e-5, rtol=0)


def test_without_its_classifier_a_file_gives_the_same_patches():
    tensors = published_form(0.1)
    whole = EfficientAT.from_checkpoint(Checkpoint(NOWHERE, {}, tensors))
    bare = EfficientAT.from_checkpoint(Checkpoint(NOWHERE, {}, tensors), classifier=False)
    waveform = make.waveform_of(4000)[None]
    assert torch.equal(whole.patches(waveform), bare.patches(waveform))
    assert not any(name.startswith("classifier") for name in bare.state_dict())
    with pytest.raises(EncoderError, match="has no classifier"):
        bare.classify(waveform)


@pytest.mark.parametrize("width", [0.1, 0.2, 0.37, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 2.0])
def test_the_width_is_read_from_the_shapes(width):
    with torch.device("meta"):
        known = EfficientAT(EfficientATArchitecture(width_mult=width))
    tensors = {name: torch.zeros(known.state_dict()[key].shape) for key, name in known._published_names().items()}
    loaded = EfficientAT.from_checkpoint(Checkpoint(NOWHERE, {}, tensors))
    assert loaded.settings.width_mult == width
    assert not loaded.training


def test_a_file_may_tell_its_mel_settings():
    told = {"n_mels": 40, "hop": 160, "classes": 99}
    encoder = EfficientAT.from_checkpoint(Checkpoint(NOWHERE, told, published_form(0.1)))
    assert (encoder.bands, encoder.patch_seconds, encoder.settings.classes) == (2, 0.16, 7)
    assert encoder.patches(make.waveform_of(5121)[None]).shape == (1, 2, 2, 96)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("features.5.block.2.conc_se_layers.0.fc1.bias"), "fc1.bias is missing"),
        (lambda t: t.update({"features.17.0.weight": torch.zeros(1)}), "features.17.0.weight is left over"),
        (lambda t: t.update({"features.3.block.0.1.bias": torch.zeros(3)}), r"has the shape \[3\], not \[8\]"),
        (lambda t: t.pop("features.16.0.weight"), "features.16.0.weight: missing"),
        (lambda t: t.update({"features.0.0.weight": torch.zeros(32, 1, 3, 3)}), "of any width: .*weight: 32"),
        (lambda t: t.pop("classifier.2.weight"), "classifier.2.weight is missing"),
        (lambda t: t.clear(), "not the channels of an efficientat mn network"),
    ],
)
def test_other_weights_are_refused(change, words):
    tensors = published_form(0.1)
    change(tensors)
    with pytest.raises(EncoderError, match=f"^mn.pt: .*{words}"):
        EfficientAT.from_checkpoint(Checkpoint(NOWHERE, {}, tensors))


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"width_mult": 100}, "width_mult: .* less than or equal to 8"),
        ({"encoder_layers": 12}, "encoder_layers: Extra inputs"),
        ({"window": 2000}, "window of 2000 samples does not fit into 1024 points"),
        ({"f_max": 20000}, "0 to 20000 Hz does not fit below 16000 Hz"),
    ],
)
def test_impossible_architectures_are_refused(architecture, words):
    with pytest.raises(EncoderError, match=words):
        EfficientAT.build(architecture)


@pytest.mark.parametrize("activation", [None, nn.functional.relu, nn.functional.hardswish])
def test_a_folded_norm_computes_and_learns_as_one_by_itself(activation):
    torch.manual_seed(0)
    unit = _Unit(4, 8, 3, stride=2, groups=2, activation=activation)
    nn.init.uniform_(unit.norm.weight)
    nn.init.normal_(unit.norm.bias)
    unit.norm.running_mean.normal_()
    unit.norm.running_var.uniform_(0.5, 2.0)
    unit.eval()

    def plain(x):
        x = unit.norm(unit.convolution(x))
        return x if activation is None else activation(x)

    results = []
    for forward in (unit, plain):
        unit.zero_grad()
        x = torch.randn(2, 4, 7, 9, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = forward(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        results.append([y, x.grad, *(weight.grad.clone() for weight in unit.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_the_shortest_clip_is_the_published_codes():
    encoder = EfficientAT().eval()
    assert encoder.shortest == 514
    assert encoder.patches(make.waveform_of(514)[None]).shape == (1, 1, 4, 384)
    with pytest.raises(EncoderError, match=r"0\.016 s is too short"):
        encoder.patches(make.waveform_of(513)[None])


def test_ten_seconds_are_32_patches():
    assert EfficientAT().patch_counts(torch.tensor([320000, 32000, 10240, 10241])).tolist() == [32, 4, 1, 2]


@torch.no_grad()
def test_a_tone_lies_in_the_filter_that_its_place_in_the_span_says():
    encoder = EfficientAT()
    low, high = (1127.0 * math.log1p(hertz / 700.0) for hertz in encoder.span)
    seconds = torch.arange(encoder.rate) / encoder.rate
    for part in (0.2, 0.5, 0.9):
        hertz = 700.0 * math.expm1((low + part * (high - low)) / 1127.0)
        heard = encoder.front(torch.sin(2 * math.pi * hertz * seconds)[None], None).squeeze()
        assert abs(int(heard.mean(-1).argmax()) - part * encoder.settings.n_mels) <= 1
