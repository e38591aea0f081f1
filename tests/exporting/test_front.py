"""Front ends in plain operations give the numbers of the ones that networks are trained with."""

from __future__ import annotations

import pytest
import torch

from offkey.audio import fbank
from offkey.audio.mel import LogMel, MelConfig
from offkey.audio.resample import Resample
from offkey.encoders.beats import Beats
from offkey.encoders.efficientat import EfficientAT
from offkey.exporting.encoders import encoder_graph
from offkey.exporting.front import (
    FilterBank,
    Fourier,
    InverseFourier,
    MelGraph,
    PowerBands,
    ResampleGraph,
    Slope,
    framed,
)


@pytest.fixture
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    """Three clips of noise of unequal length; what lies behind two of them is loud and must not be heard."""
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(3, 24000, generator=generator), torch.tensor([24000, 8001, 13579])


@pytest.mark.parametrize("size", [16, 100, 400, 509, 512, 1024])
def test_power_is_that_of_a_fourier_transform(size: int) -> None:
    frames = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(1))
    expected = torch.fft.rfft(frames.double()).abs().square()
    found = PowerBands(size, torch.eye(size // 2 + 1))(frames)
    assert (found - expected).abs().max() < 1e-5 * expected.max()


@pytest.mark.parametrize("size", [16, 100, 400, 509, 512, 1024])
def test_the_transform_and_its_inverse_are_those_of_torch(size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(2, 3, size, generator=generator)
    expected = torch.fft.rfft(frames.double())
    real, imaginary = Fourier(size)(frames)
    assert (torch.complex(real, imaginary) - expected).abs().max() < 1e-6 * expected.abs().max()
    # also of what is no transform of real frames: the first bin's imaginary part is not heard
    spectrum = torch.randn(2, 3, size // 2 + 1, dtype=torch.complex64, generator=generator)
    found = InverseFourier(size)(spectrum.real, spectrum.imag)
    assert (found - torch.fft.irfft(spectrum, size)).abs().max() < 1e-6


@pytest.mark.parametrize("config", [MelConfig(), MelConfig(n_fft=400, hop=160, n_mels=40, scale="htk", floor_db=-80)])
def test_log_mel(clips: tuple[torch.Tensor, torch.Tensor], config: MelConfig) -> None:
    mel = LogMel(16000, config)
    torch.testing.assert_close(MelGraph(mel)(*clips), mel(*clips), rtol=0, atol=2e-4)


def test_the_filter_bank_of_beats(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.testing.assert_close(FilterBank()(clips[0]), fbank.kaldi_fbank(clips[0]), rtol=0, atol=2e-4)


@pytest.mark.parametrize("rates", [(16000, 32000), (44100, 16000), (16000, 16000)])
def test_resampling(clips: tuple[torch.Tensor, torch.Tensor], rates: tuple[int, int]) -> None:
    resample = Resample(*rates)
    made = ResampleGraph(resample)
    torch.testing.assert_close(made(*clips), resample(*clips), rtol=0, atol=1e-6)
    assert made.lengths(clips[1]).tolist() == resample.lengths(clips[1]).tolist()


BEATS = {
    "encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4,
    "embed_dim": 24, "conv_pos": 8, "conv_pos_groups": 4, "max_distance": 60, "num_buckets": 32,
}  # fmt: skip


@pytest.mark.parametrize("changed", [{}, {"layer_norm_first": True, "deep_norm": False}, {"activation_fn": "glu"}])
def test_beats_of_unequal_clips(clips: tuple[torch.Tensor, torch.Tensor], changed: dict[str, object]) -> None:
    torch.manual_seed(0)
    encoder = Beats.build(BEATS | changed).eval()
    made = encoder_graph(encoder)
    with torch.no_grad():
        for one, other in zip(made.layers(*clips, [1, 2]), encoder.layers(*clips, [1, 2]), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    few = torch.arange(1, 30000, 37)
    assert made.patch_counts(few).tolist() == encoder.patch_counts(few).tolist()


def test_efficientat_of_unequal_clips(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    encoder = EfficientAT.build({"width_mult": 0.1}).eval()
    made = encoder_graph(encoder)
    with torch.no_grad():
        expected = encoder.patches(*clips)
        torch.testing.assert_close(made.patches(*clips), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    few = torch.arange(1, 60000, 37)
    assert made.patch_counts(few).tolist() == encoder.patch_counts(few).tolist()


@pytest.mark.parametrize(
    ("length", "size", "step"), [(1000, 400, 160), (1025, 64, 32), (77, 7, 5), (30, 30, 4), (31, 4, 6)]
)
def test_frames_are_those_of_unfold(length: int, size: int, step: int) -> None:
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(framed(x, size, step), x.unfold(1, size, step), rtol=0, atol=0)


@pytest.mark.parametrize("highest", [1.0, 2.5])
def test_slopes_of_any_size(highest: float) -> None:
    prelu = torch.nn.PReLU(3)
    prelu.weight.data = torch.tensor([-0.5, 0.25, highest])
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(Slope(prelu)(x), prelu(x))
