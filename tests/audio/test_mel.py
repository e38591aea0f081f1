"""The log-mel spectrogram agrees with librosa, and padding does not change a clip's own frames."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offkey.audio.mel import LogMel, MelConfig, mel_filters

RATE = 16000


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("norm", ["slaney", "none"])
@pytest.mark.parametrize(
    ("rate", "n_fft", "n_mels", "f_min", "f_max"),
    [(16000, 1024, 128, 0.0, None), (44100, 2048, 64, 50.0, 11000.0), (8000, 400, 30, 20.0, 4000.0)],
)
def test_filters_are_librosas(scale, norm, rate, n_fft, n_mels, f_min, f_max):
    mine = mel_filters(rate, MelConfig(n_fft=n_fft, n_mels=n_mels, f_min=f_min, f_max=f_max, scale=scale, norm=norm))
    with np.errstate(all="ignore"):
        theirs = librosa.filters.mel(
            sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max, htk=scale == "htk",
            norm="slaney" if norm == "slaney" else None, dtype=np.float64,
        )  # fmt: skip
    np.testing.assert_allclose(mine, theirs, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("samples", [16000, 16001, 16383, 700, 512, 1])
def test_levels_are_librosas(scale, samples):
    x = noise(2, samples)
    x += 0.3 * np.sin(np.arange(samples) / 7).astype(np.float32)
    mine = LogMel(RATE, MelConfig(scale=scale))(torch.from_numpy(x)).numpy()
    with pytest.warns(UserWarning, match="n_fft") if samples < 1024 else np.errstate():
        power = librosa.feature.melspectrogram(
            y=x.astype(np.float64), sr=RATE, n_fft=1024, hop_length=512, n_mels=128, power=2.0,
            htk=scale == "htk", pad_mode="constant", dtype=np.float64,
        )  # fmt: skip
    theirs = 10 * np.log10(np.maximum(power, 1e-10))
    assert mine.shape == theirs.shape == (2, 128, samples // 512 + 1)
    # float32 holds each band to about 1e-6 of its frame: to 1e-4 dB where it is not far below the loudest
    near = theirs > theirs.max() - 50
    assert np.abs(mine - theirs)[near].max() < 2e-4
    assert np.abs(mine - theirs).max() < 2e-2


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=4),
    extra=st.integers(0, 2000),
    hop=st.sampled_from([160, 512, 700]),
)
def test_padding_changes_nothing_and_is_at_the_floor(lengths, extra, hop):
    mel = LogMel(RATE, MelConfig(hop=hop, n_mels=32))
    clips = [torch.from_numpy(noise(n, seed=n)) for n in lengths]
    padded = torch.zeros(len(lengths), max(lengths) + extra)
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    together = mel(padded, torch.tensor(lengths))
    frames = mel.frames(torch.tensor(lengths))
    for clip, level, count in zip(clips, together, frames.tolist(), strict=True):
        alone = mel(clip[None])[0]
        assert alone.shape[-1] == count == len(clip) // hop + 1
        torch.testing.assert_close(level[:, :count], alone, atol=1e-3, rtol=0)
        assert (level[:, count:] == -100.0).all()


def test_what_lies_in_the_padding_is_not_heard():
    mel = LogMel(RATE)
    clip = torch.from_numpy(noise(1, 6000))
    dirty = torch.cat([clip, torch.ones(1, 3000)], dim=1)
    torch.testing.assert_close(mel(dirty, torch.tensor([6000]))[..., :12], mel(clip), atol=1e-3, rtol=0)


def test_silence_is_at_the_floor():
    assert (LogMel(RATE, MelConfig(floor_db=-80.0))(torch.zeros(1, 4000)) == -80.0).all()


def test_half_precision_around_it_does_not_reach_inside():
    mel, x = LogMel(RATE), torch.from_numpy(noise(1, 8000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mel(x)
    torch.testing.assert_close(inside, mel(x), atol=0, rtol=0)


def test_nothing_of_it_is_saved_and_gradients_pass():
    mel = LogMel(RATE)
    assert mel.state_dict() == {}
    x = torch.from_numpy(noise(1, 2000)).requires_grad_()
    mel(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_a_band_above_half_the_rate_is_refused():
    with pytest.raises(ValueError, match="half the rate"):
        LogMel(8000, MelConfig(f_max=5000.0))
