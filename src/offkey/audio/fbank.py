"""The Kaldi-style filter bank that BEATs listens through, for whole batches.

Source: Kaldi's `compute-fbank-feats` (Povey et al. 2011) in the arithmetic of `torchaudio.compliance.kaldi.fbank`,
whose numbers it gives to the last bit: 25 ms frames every 10 ms, their mean removed, pre-emphasis 0.97, Povey window,
512-point power spectrum, 128 triangular mel filters from 20 to 8000 Hz, natural logarithm.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from offkey.types import Float, Int, OffkeyError

__all__ = ["FRAME", "HOP", "RATE", "SPAN", "ClipTooShortError", "frames", "kaldi_fbank", "mel_bank"]

RATE = 16000
"""Samples a second that the filter bank is made for."""
FRAME = 400
"""Samples of a frame."""
HOP = 160
"""Samples from one frame to the next."""
BANDS = 128
SPAN = 20.0, RATE / 2
"""Lowest and highest hertz of the mel filters."""

_FFT = 512
_PRE_EMPHASIS = 0.97
_FLOOR = torch.finfo(torch.float32).eps
_GROUP = 32  # bands whose filters are summed together
_FRAMES_AT_A_TIME = 500


class ClipTooShortError(OffkeyError):
    """A clip that does not fill one frame."""


def frames(lengths: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """How many whole frames clips of `lengths` samples have; 0 below 400 samples.

    >>> frames(torch.tensor([399, 400, 559, 560, 160000])).tolist()
    [0, 1, 1, 2, 998]
    """
    return (torch.div(lengths - FRAME, HOP, rounding_mode="floor") + 1).clamp_min(0)


def mel_bank() -> Float[Tensor, "128 257"]:
    """Triangular filters (128, 257) from power bins to mel bands, peak 1, mel = 1127 ln(1 + f / 700)."""
    lowest, highest = (1127.0 * math.log(1.0 + f / 700.0) for f in SPAN)
    step = (highest - lowest) / (BANDS + 1)
    # Python floats meet float32 tensors in the same places as in the original: the bits of the filters depend on it.
    band = torch.arange(BANDS)[:, None]
    left, centre, right = lowest + band * step, lowest + (band + 1.0) * step, lowest + (band + 2.0) * step
    mel = 1127.0 * (1.0 + (RATE / _FFT) * torch.arange(_FFT / 2) / 700.0).log()
    filters = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_min(0.0)
    return torch.nn.functional.pad(filters, (0, 1))  # the bin at half the rate counts nothing


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Window (400,) and filters (257, 128) on a device."""
    with torch.inference_mode(False):
        window = torch.hann_window(FRAME, periodic=False, device=device).pow(0.85)
        return window, mel_bank().to(device).T


@lru_cache(maxsize=1)
def _parts() -> list[tuple[slice, slice, Tensor]]:
    """The filters in four groups of bands: bins and bands of each, and its filters (bins, 32)."""
    with torch.inference_mode(False):
        parts = []
        for bands in (slice(start, start + _GROUP) for start in range(0, BANDS, _GROUP)):
            filters = _constants(torch.device("cpu"))[1][:, bands]
            used = filters.any(1).nonzero()
            bins = slice(int(used[0]), int(used[-1]) + 1)
            parts.append((bins, bands, filters[bins].contiguous()))
        return parts


def _sum_parts(power: Tensor, out: Tensor) -> None:
    for bins, bands, filters in _parts():
        torch.mm(power[:, bins], filters, out=out[:, bands])


@lru_cache(maxsize=1024)
def _parts_agree(rows: int, threads: int) -> bool:  # noqa: ARG001  # threads may change how a product is cut up
    """Whether leaving out the zeros of the filters leaves every bit of a product of `rows` rows as it is.

    It does where the product adds bin after bin, which is for the library to choose by shape and processor.
    """
    with torch.inference_mode():
        power = torch.rand(rows, _FFT // 2 + 1, generator=torch.Generator().manual_seed(0))
        out = torch.empty(rows, BANDS)
        _sum_parts(power, out)
        return torch.equal(out, power @ _constants(torch.device("cpu"))[1])


def kaldi_fbank(waveform: Float[Tensor, "B T"]) -> Float[Tensor, "B F 128"]:
    """Log mel energies (B, F, 128) float32 of clips at 16 kHz, F = 1 + (T - 400) // 160.

    Samples are taken as they come; BEATs scales them to 16-bit range (times 2¹⁵) first. Every clip's result
    has the bits that `torchaudio.compliance.kaldi.fbank(clip[None], num_mel_bins=128, sample_frequency=16000,
    frame_length=25, frame_shift=10)` gives on the same machine. Computed in float32 even inside autocast. Raises
    ClipTooShortError below 400 samples.
    """
    if waveform.shape[-1] < FRAME:
        raise ClipTooShortError(f"a clip of {waveform.shape[-1]} samples does not fill one frame of {FRAME} samples")
    with torch.autocast(waveform.device.type, enabled=False):
        if waveform.device.type == "cpu" and not (waveform.requires_grad and torch.is_grad_enabled()):
            with torch.no_grad():
                return _piecewise(waveform.float())
        return _at_once(waveform.float())


def _at_once(waveform: Tensor) -> Tensor:
    window, filters = _constants(waveform.device)
    frame = waveform.unfold(-1, FRAME, HOP)
    frame = frame - frame.mean(-1, keepdim=True)
    before = torch.cat((frame[..., :1], frame[..., :-1]), -1)
    frame = (frame - _PRE_EMPHASIS * before) * window
    power = torch.fft.rfft(frame, n=_FFT).abs().pow(2.0)
    # One product a clip: how many rows a product has decides in which order it adds, and so its last bits.
    mel = torch.stack([clip @ filters for clip in power])
    return mel.clamp_min(_FLOOR).log()


def _piecewise(waveform: Tensor) -> Tensor:
    """The same numbers from a processor's caches: a few hundred frames at a time, in the same few buffers."""
    clips, total = waveform.shape[0], 1 + (waveform.shape[1] - FRAME) // HOP
    size, bins = min(_FRAMES_AT_A_TIME, total), _FFT // 2 + 1
    window, whole = _constants(waveform.device)
    by_parts = _parts_agree(total, torch.get_num_threads())
    mean, frame, before = torch.empty(size, 1), torch.empty(size, FRAME), torch.empty(size, FRAME)
    padded = torch.zeros(size, _FFT)
    spectrum = torch.empty(size, bins, dtype=torch.complex64)
    halves, power = torch.empty(2, size, bins), torch.empty(total, bins)
    result = torch.empty(clips, total, BANDS)
    for clip, mel in zip(waveform.unfold(-1, FRAME, HOP), result, strict=True):
        for start in range(0, total, size):
            n = min(size, total - start)
            source, x, scaled = clip[start : start + n], frame[:n], before[:n]
            torch.sub(source, torch.mean(source, -1, keepdim=True, out=mean[:n]), out=x)
            torch.mul(x, _PRE_EMPHASIS, out=scaled)
            first = x[:, 0] - scaled[:, 0]
            x.view(-1)[1:].sub_(scaled.view(-1)[:-1])  # in one run over all frames, so their first samples are wrong
            x[:, 0] = first
            torch.mul(x, window, out=padded[:n, :FRAME])
            torch.fft.rfft(padded[:n], out=spectrum[:n])
            # The magnitude of a complex number is this function of its halves, which is twice as quick on them.
            real, imaginary = halves[:, :n].copy_(torch.view_as_real(spectrum[:n]).movedim(-1, 0))
            torch.hypot(real, imaginary, out=power[start : start + n]).square_()
        if by_parts:
            _sum_parts(power, mel)
        else:
            torch.mm(power, whole, out=mel)
    return result.clamp_(min=_FLOOR).log_()
