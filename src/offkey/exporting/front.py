"""Front ends in operations that every ONNX runtime has: no complex numbers, no strided views, no Fourier transform.

A Fourier transform of N = p·q points is two small matrix products with a multiplication between them (Cooley and
Tukey, 1965). With n = q·a + b and k = k₁ + p·k₂,

    X[k] = Σ_b  e^(−2πi b k₂ / q) · e^(−2πi b k₁ / N) · Σ_a  e^(−2πi a k₁ / p) · x[q·a + b]

For 1024 points that is a sixth of the multiplications of the full matrix, and its rounding error is as small as that
of a fast transform. ONNX has an operation of its own, which its runtime computes far more slowly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from offkey.audio import fbank
from offkey.audio.mel import LogMel
from offkey.audio.resample import Resample
from offkey.encoders.efficientat import EfficientAT

__all__ = [
    "EncoderMel",
    "FilterBank",
    "Fourier",
    "InverseFourier",
    "MelGraph",
    "PowerBands",
    "ResampleGraph",
    "Slope",
    "framed",
    "own",
    "parted",
]


def own(counts: Tensor, width: int) -> Tensor:
    """Mark (B, width) the first `counts` (B,) of each row; `width` may be a traced number."""
    return torch.arange(width, device=counts.device) < counts[:, None]


def parted(x: Tensor, axis: int, *sizes: int) -> Tensor:
    """`x.unflatten(axis, sizes)` for `axis` ≥ 0; torch's own would freeze the sizes of the other axes when traced."""
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def framed(x: Tensor, size: int, step: int, count: int | None = None) -> Tensor:
    """Frames (B, F, size) of (B, T), one every `step` samples; all that fit, or the first `count`."""
    if count is None:
        count = (x.shape[1] - size) // step + 1
    # whole blocks are gathered, as long as they can be: single samples would take ten times as long
    block = math.gcd(size, step)
    blocks = (x.shape[1] + block - 1) // block
    x = nn.functional.pad(x, (0, block))[:, : blocks * block].reshape(x.shape[0], blocks, block)
    places = torch.arange(count, device=x.device)[:, None] * (step // block) + torch.arange(size // block)
    return x[:, places].flatten(2)


class Slope(nn.Module):
    """PReLU with one slope a channel, from operations that ONNX Runtime computes ten times as fast as its own PRelu."""

    slope: Tensor

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__()
        slope = prelu.weight.detach().clone()
        self.below_one = bool((slope <= 1).all())
        self.register_buffer("slope", slope)

    def forward(self, x: Tensor) -> Tensor:
        """max(x, 0) + slope·min(x, 0) of (B, C, H, W)."""
        slope = self.slope[:, None, None]
        if self.below_one:
            return torch.maximum(x, slope * x)
        return slope * x + (1.0 - slope) * x.clamp_min(0.0)


class _Rows(nn.Module):
    """Frames (B, F, N) to real and imaginary part of X[k], (B, F, kept, q) each: row k₁, column k₂."""

    first: Tensor
    second: Tensor
    turn_real: Tensor
    turn_imaginary: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.p, self.q, self.kept = p, q, kept = _parts(size)
        c, s = _turns(kept, p, p)
        self.register_buffer("first", torch.cat([c, -s]).float())
        c, s = _turns(kept, q, size)
        self.register_buffer("turn_real", c.float())
        self.register_buffer("turn_imaginary", s.float())
        c, s = _turns(q, q, q)
        self.register_buffer("second", torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)]).float())
        bins = torch.arange(size // 2 + 1)
        self.mirrored = bins % p >= kept
        bins = torch.where(self.mirrored, size - bins, bins)
        self.places = bins % p * q + bins // p
        """(N // 2 + 1,) where each bin lies in a flattened part; of those `mirrored`, it is the conjugate."""

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        half = self.first @ parted(frames, 2, self.p, self.q)  # (B, F, 2·kept, q)
        real, imaginary = half[..., : self.kept, :], half[..., self.kept :, :]
        turned = torch.cat(
            [
                real * self.turn_real + imaginary * self.turn_imaginary,
                imaginary * self.turn_real - real * self.turn_imaginary,
            ],
            -1,
        )
        spectrum = turned @ self.second
        return spectrum[..., : self.q], spectrum[..., self.q :]


def _parts(size: int) -> tuple[int, int, int]:
    """p, q with p·q = `size` and p ≤ q, and the rows that are kept: of real frames the others are mirror images."""
    p = next(p for p in range(math.isqrt(size), 0, -1) if size % p == 0)
    return p, size // p, p // 2 + 1


def _turns(rows: int, columns: int, points: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (rows, columns) of 2π·row·column / points."""
    angle = torch.arange(rows)[:, None] * torch.arange(columns) % points * (2.0 * math.pi / points)
    return angle.double().cos(), angle.double().sin()


class PowerBands(nn.Module):
    """Frames (B, F, N) to the power |X|² summed to bands by `filters` (M, N // 2 + 1): (B, F, M)."""

    filters: Tensor

    def __init__(self, size: int, filters: Tensor) -> None:
        super().__init__()
        self.rows = _Rows(size)
        moved = torch.zeros(len(filters), self.rows.kept * self.rows.q)
        moved[:, self.rows.places] = filters.float()
        self.register_buffer("filters", moved.T.contiguous())

    def forward(self, frames: Tensor) -> Tensor:
        """Sum each frame's power to bands."""
        real, imaginary = self.rows(frames)
        return (real.square() + imaginary.square()).flatten(-2) @ self.filters


class Fourier(nn.Module):
    """`torch.fft.rfft` of frames (B, F, N), as real and imaginary part (B, F, N // 2 + 1)."""

    sign: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.rows = _Rows(size)
        self.register_buffer("sign", torch.where(self.rows.mirrored, -1.0, 1.0))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Transform each frame."""
        real, imaginary = self.rows(frames)
        return real.flatten(-2)[..., self.rows.places], imaginary.flatten(-2)[..., self.rows.places] * self.sign


class InverseFourier(nn.Module):
    """`torch.fft.irfft` of real and imaginary part (B, F, N // 2 + 1): frames (B, F, N).

    The same two products the other way: of bin k = q·a + b and sample n = n₁ + p·n₂,
    x[n] = Re Σ_b e^(2πi b n₂ / q) · e^(2πi b n₁ / N) · Σ_a e^(2πi a n₁ / p) · c[k] X[k], with c[k] = 2 / N, half of it
    for the bins that have no mirror image.
    """

    share: Tensor
    first: Tensor
    second: Tensor
    turn_real: Tensor
    turn_imaginary: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.p, self.q, self.kept = p, q, kept = _parts(size)
        bins = torch.arange(size // 2 + 1)
        self.register_buffer("share", torch.where((bins == 0) | (2 * bins == size), 1.0, 2.0) / size)
        self.missing = kept * q - len(bins)
        c, s = _turns(p, kept, p)
        self.register_buffer("first", torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)]).float())
        c, s = _turns(p, q, size)
        self.register_buffer("turn_real", c.float())
        self.register_buffer("turn_imaginary", s.float())
        c, s = _turns(q, q, q)
        self.register_buffer("second", torch.cat([c, -s]).float())

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Transform each frame back."""
        both = torch.stack([real, imaginary], 2) * self.share
        both = parted(nn.functional.pad(both, (0, self.missing)), 3, self.kept, self.q).flatten(2, 3)
        both = self.first @ both  # (B, F, 2·p, q)
        real, imaginary = both[..., : self.p, :], both[..., self.p :, :]
        turned = torch.cat(
            [
                real * self.turn_real - imaginary * self.turn_imaginary,
                real * self.turn_imaginary + imaginary * self.turn_real,
            ],
            -1,
        )
        return (turned @ self.second).transpose(2, 3).flatten(2)


class MelGraph(nn.Module):
    """`offkey.audio.mel.LogMel` with the same face and the same numbers, up to rounding."""

    window: Tensor

    def __init__(self, mel: LogMel) -> None:
        super().__init__()
        self.rate, self.config = mel.rate, mel.config
        self.register_buffer("window", mel.window.clone())
        self.power = PowerBands(mel.config.n_fft, mel.filters)

    def frames(self, lengths: Tensor) -> Tensor:
        """How many frames clips of `lengths` samples have."""
        return torch.div(lengths, self.config.hop, rounding_mode="floor") + 1

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel levels (B, M, F) in dB; `floor_db` past a clip's own frames."""
        size, floor = self.config.n_fft, self.config.floor_db
        x = waveform * own(lengths, waveform.shape[1])
        x = nn.functional.pad(x, (size // 2, size // 2))
        power = self.power(framed(x, size, self.config.hop) * self.window).transpose(1, 2)
        level = (10.0 / math.log(10.0)) * torch.log(power.clamp_min(10.0 ** (floor / 10.0)))
        return level.masked_fill(~own(self.frames(lengths), level.shape[-1])[:, None], floor)


class FilterBank(nn.Module):
    """`offkey.audio.fbank.kaldi_fbank`: (B, T) at 16 kHz, T ≥ 400, to (B, F, 128) log energies."""

    window: Tensor
    size = 512

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(fbank.FRAME, periodic=False).pow(0.85))
        self.power = PowerBands(self.size, fbank.mel_bank())

    def forward(self, waveform: Tensor) -> Tensor:
        """Log mel energies."""
        x = framed(waveform, fbank.FRAME, fbank.HOP)
        x = x - x.mean(-1, keepdim=True)
        x = (x - 0.97 * torch.cat([x[..., :1], x[..., :-1]], -1)) * self.window
        x = nn.functional.pad(x, (0, self.size - fbank.FRAME))
        return self.power(x).clamp_min(torch.finfo(torch.float32).eps).log()


class EncoderMel(nn.Module):
    """The log-mel that EfficientAT hears, with the face of its own front end."""

    frame: Tensor

    def __init__(self, encoder: EfficientAT) -> None:
        super().__init__()
        front = encoder.front
        self.n_fft, self.hop = front.n_fft, front.hop
        self.register_buffer("frame", front.frame.clone())
        self.power = PowerBands(front.n_fft, front.filters)

    def frames(self, lengths: Tensor) -> Tensor:
        """How many frames clips of `lengths` samples have."""
        return torch.div(lengths + self.hop - 1, self.hop, rounding_mode="floor")

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, M, F), zero past a clip's own frames."""
        half = self.n_fft // 2
        x = waveform[:, 1:] - 0.97 * waveform[:, :-1]
        # every clip is mirrored at both of its own ends
        place = (torch.arange(x.shape[1] + 2 * half, device=x.device) - half).abs()[None, :]
        last = (lengths - 2)[:, None]
        place = torch.where(place > last, 2 * last - place, place).clamp_min(0)
        x = framed(x.gather(1, place), self.n_fft, self.hop) * self.frame
        level = (torch.log(self.power(x).transpose(1, 2) + 1e-5) + 4.5) / 5.0
        return level.masked_fill(~own(self.frames(lengths), level.shape[-1])[:, None], 0.0)


class ResampleGraph(nn.Module):
    """`offkey.audio.resample.Resample` with the same face and the same numbers, up to rounding."""

    weight: Tensor

    def __init__(self, resample: Resample) -> None:
        super().__init__()
        self.rate_in, self.rate_out = resample.rate_in, resample.rate_out
        self.up, self.down = resample.up, resample.down
        weight = resample.weight
        self.outputs = len(weight)
        self.step = self.outputs * self.down // self.up
        self.reach = (weight.shape[1] - self.step) // 2
        self.register_buffer("weight", weight.T.contiguous())

    def lengths(self, lengths: Tensor) -> Tensor:
        """Samples at the new rate of clips of `lengths` samples."""
        return torch.div(lengths * self.up + self.down - 1, self.down, rounding_mode="floor")

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Resample; zero past a clip's own samples."""
        x = waveform * own(lengths, waveform.shape[1])
        if self.up == self.down:
            return x
        width = self.weight.shape[0]
        samples = (x.shape[1] * self.up + self.down - 1) // self.down
        steps = (samples + self.outputs - 1) // self.outputs
        x = nn.functional.pad(x, (self.reach, width + self.step))
        x = (framed(x, width, self.step, steps) @ self.weight).flatten(1)[:, :samples]
        return x * own(self.lengths(lengths), x.shape[1])
