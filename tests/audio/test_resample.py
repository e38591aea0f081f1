"""Resampling in a network: agrees with soxr, keeps the band flat and clean, and hears nothing of the padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offkey.audio.resample import Resample
from offkey.types import OffkeyError

PAIRS = [(16000, 32000), (32000, 16000), (44100, 32000), (48000, 32000), (22050, 16000), (16000, 44100), (51200, 32000)]


def in_band_noise(samples: int, rate: int, top: float, seed: int = 0) -> np.ndarray:
    """Noise that falls by 6 dB an octave, as speech does, and has nothing above `top` hertz."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / rate)
    spectrum *= (frequency < top) / np.maximum(frequency, 100.0)
    wave = np.fft.irfft(spectrum, samples)
    return 0.1 * wave / wave.std()


def levels(rate_in: int, rate_out: int, hertz: float) -> tuple[float, float]:
    """dB of a tone after resampling, at its own frequency and of the loudest thing elsewhere."""
    time = np.arange(rate_in // 2) / rate_in
    tone = torch.from_numpy(np.sin(2 * np.pi * hertz * time))[None]
    out = Resample(rate_in, rate_out)(tone)[0].numpy()
    window = np.kaiser(len(out), 20)
    spectrum = 20 * np.log10(2 * np.abs(np.fft.rfft(out * window)) / window.sum() + 1e-12)
    near = np.abs(np.fft.rfftfreq(len(out), 1 / rate_out) - hertz) < 60
    return float(spectrum[near].max(initial=-240)), float(spectrum[~near].max())


@pytest.mark.parametrize(("rate_in", "rate_out"), PAIRS)
def test_agrees_with_soxr(rate_in, rate_out):
    x = in_band_noise(rate_in, rate_in, 0.44 * min(rate_in, rate_out))
    theirs = soxr.resample(x, rate_in, rate_out, quality="HQ")
    mine = Resample(rate_in, rate_out)(torch.from_numpy(x)[None])[0].numpy()
    assert len(mine) == math.ceil(len(x) * rate_out / rate_in)
    inner = slice(200, min(len(theirs), len(mine)) - 200)
    assert np.linalg.norm((mine[: len(theirs)] - theirs[: len(mine)])[inner]) < 5e-4 * np.linalg.norm(theirs[inner])


@pytest.mark.parametrize(("rate_in", "rate_out"), PAIRS)
def test_flat_below_and_silent_above(rate_in, rate_out):
    lower = min(rate_in, rate_out)
    for part in (0.01, 0.2, 0.4, 0.45):
        level, rest = levels(rate_in, rate_out, part * lower)
        assert abs(level) < 0.01
        assert rest < -70, f"an alias or image at {part} of {lower} Hz"
    # what the slope lets through of the last tones of the band has no image either
    assert levels(rate_in, rate_out, 0.49 * lower)[1] < -70
    if rate_in > rate_out:
        assert max(levels(rate_in, rate_out, 0.51 * lower)) < -70


def test_a_constant_stays_a_constant():
    x = torch.ones(1, 4000)
    for rate_in, rate_out in PAIRS:
        y = Resample(rate_in, rate_out)(x)[0]
        torch.testing.assert_close(y[300:-300], torch.ones(len(y) - 600), atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    pair=st.sampled_from([*PAIRS, (3, 7), (16000, 16000)]),
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=4),
    extra=st.integers(0, 300),
)
def test_padding_changes_nothing_and_comes_out_as_zero(pair, lengths, extra):
    resample = Resample(*pair)
    generator = torch.Generator().manual_seed(sum(lengths))
    padded = torch.randn(len(lengths), max(lengths) + extra, generator=generator)
    padded[:, max(lengths) :] = math.nan  # padding that nobody cleared
    together = resample(padded, torch.tensor(lengths))
    counts = resample.lengths(torch.tensor(lengths)).tolist()
    assert together.shape[1] == resample.lengths(torch.tensor(padded.shape[1])).item()
    for row, clip, n, count in zip(together, padded, lengths, counts, strict=True):
        assert count == math.ceil(n * pair[1] / pair[0])
        torch.testing.assert_close(row[:count], resample(clip[None, :n])[0], atol=1e-6, rtol=1e-5)
        assert (row[count:] == 0).all()


def test_equal_rates_change_nothing():
    x = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Resample(16000, 16000)(x), x)


def test_gradients_are_those_of_a_linear_map():
    for pair in ((2, 3), (3, 2), (5, 1)):
        resample = Resample(*pair)
        x = torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, r=resample: r(x, torch.tensor([40, 23])), x)


def test_nothing_is_saved_and_half_precision_is_widened():
    resample = Resample(16000, 32000)
    assert not resample.state_dict()
    x = torch.randn(1, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = resample(x)
    assert torch.equal(y, resample(x.float()))


def test_impossible_rates_are_refused():
    with pytest.raises(OffkeyError, match="at least 1 Hz"):
        Resample(0, 16000)
    with pytest.raises(OffkeyError, match="44101 and 32000 Hz have too small a common divisor"):
        Resample(44101, 32000)
