"""A separator as a module that can be traced: STFT, TF-Locoformer and back for padded batches, without complex numbers.

The original sends clips through one by one, and long ones in chunks. Here all of a clip goes through at once, and
masks make its end the end of the sound. That is the same where attention along time is bounded: the original's chunks
overlap by all that a frame hears. Where it is not, a clip of one chunk at most is heard alike, and longer ones are not
taken. Bounded attention is computed in blocks, so that work and memory grow with the length and not with its square.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offkey.audio.io import AudioConfig
from offkey.exporting.front import Fourier, InverseFourier, framed, own, parted
from offkey.exporting.problem import ExportError
from offkey.separation.front_end import FrontEnd
from offkey.separation.locoformer import RMSGroupNorm, TFLocoformer, entry_planes
from offkey.separation.separator import _INAUDIBLE, _QUIETEST, CHUNK_SECONDS, Separator

__all__ = ["LocoformerGraph", "SeparatorGraph", "front_end_graph"]

_FAR = -1e9  # instead of infinity: rows of padding must stay finite


def front_end_graph(front_end: FrontEnd, audio: AudioConfig) -> SeparatorGraph:
    """What a detector with these `audio` settings hears through its front end.

    Raises ExportError where the separator has no such form, or works at another rate.
    """
    separator: Any = front_end.separator
    if not isinstance(separator, Separator):
        raise ExportError(
            f"the separator in front of this detector is a {type(separator).__name__}, which cannot be exported; fit "
            "the detector with one of `offkey fit-separator`, or score with the detector itself"
        )
    if separator.config.rate != audio.rate:
        raise ExportError(
            f"this detector hears at {audio.rate} Hz through a separator that works at {separator.config.rate} Hz, and "
            "the resampling between them cannot be exported; fit it with audio.rate = "
            f"{separator.config.rate}, or score with the detector itself"
        )
    return SeparatorGraph(separator, front_end.keep)


class SeparatorGraph(nn.Module):
    """(waveform (B, T), lengths (B,)) to the part that is kept (B, T), zero past a clip's own samples.

    `longest` is the number of samples up to which it gives what `Separator.separate` does; None: any.
    """

    window: Tensor
    share: Tensor

    def __init__(self, separator: Separator, keep: Literal["foreground", "background"] = "foreground") -> None:
        super().__init__()
        self.config = config = separator.config
        self.keep = keep
        self.network = LocoformerGraph(copy.deepcopy(separator.network).eval().requires_grad_(False))
        self.fourier, self.inverse = Fourier(config.n_fft), InverseFourier(config.n_fft)
        window = separator.window.detach().clone()
        self.register_buffer("window", window)
        self.register_buffer("share", window.square().view(-1, config.hop).sum(0))  # of a sample's frames together
        self.longest: int | None = None
        if separator.network.reach is None:
            chunk = separator._plan(1_000_000, CHUNK_SECONDS, None)[0].end
            self.longest = chunk * config.hop - (config.n_fft - config.hop)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Separate a batch; `lengths` are 1 or more."""
        config = self.config
        size, hop = config.n_fft, config.hop
        before = size - hop
        mine = own(lengths, waveform.shape[1])
        sound = waveform * mine
        power = sound.double().square().sum(1) / lengths
        level = (power.clamp_min(_QUIETEST**2).sqrt() * (power > _QUIETEST**2)).float()
        levelled = sound / level.clamp_min(_QUIETEST)[:, None]
        total = (waveform.shape[1] + before + hop - 1) // hop
        frames = torch.div(lengths + before + hop - 1, hop, rounding_mode="floor")
        cut = framed(F.pad(levelled, (before, size)), size, hop, total) * self.window
        scale = math.sqrt(size)  # both directions are scaled by the root
        real, imaginary = (part / scale for part in self.fourier(cut))
        heard = real, imaginary
        if config.compression != 1.0:
            factor = (real.square() + imaginary.square() + _INAUDIBLE) ** (0.5 * (config.compression - 1.0))
            heard = real * factor, imaginary * factor
        found = self.network(*heard, frames)
        if config.output == "mask":
            found = [(a * real - b * imaginary, a * imaginary + b * real) for a, b in found]
        if len(found) == 1:
            spectrum = found[0]
        else:
            (a, b), (c, d) = found
            spectrum = 0.5 * (real + a - c), 0.5 * (imaginary + b - d)
        foreground = self._synthesise(*spectrum)[:, before:][:, : waveform.shape[1]] * scale * level[:, None]
        return (foreground if self.keep == "foreground" else sound - foreground) * mine

    def _synthesise(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Overlap and add frames (B, F, N)."""
        count = self.config.n_fft // self.config.hop
        pieces = parted(self.inverse(real, imaginary) * self.window, 2, count, self.config.hop)
        shifted = [F.pad(pieces[:, :, place], (0, 0, place, count - 1 - place)) for place in range(count)]
        return (torch.stack(shifted).sum(0) / self.share).flatten(1)


class LocoformerGraph(nn.Module):
    """`TFLocoformer.spectra` of clips of unequal length; spectra are real and imaginary part (B, F, N)."""

    frequency_angles: Tensor
    time_angles: Tensor

    def __init__(self, network: TFLocoformer) -> None:
        super().__init__()
        self.config = config = network.config
        self.entry, self.entry_norm, self.exit = network.entry, network.entry_norm, network.exit
        for name in ("frequency_angles", "time_angles"):
            self.register_buffer(name, getattr(network, name).detach().float().clone())
        self.blocks = nn.ModuleList()
        for block in network.blocks:
            paths = [_Path(block.frequency), _Path(block.time)]
            self.blocks.append(nn.ModuleList(paths))
        self.time_first = config.order == "time-frequency"

    def forward(self, real: Tensor, imaginary: Tensor, frames: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Spectra of the sources; `frames` (B,) are each clip's own, behind which the input is zero."""
        bins, step = real.shape[2], self.config.frequency_stride
        mine = own(frames, real.shape[1])
        x = self.entry(entry_planes(real, imaginary, self.config.contrast_frames, mine))  # (B, C, F, K)
        x = self._normalise(x, frames, mine[:, None, :, None]).permute(0, 2, 3, 1)
        along_frequency = _turns(x.shape[2], self.frequency_angles)
        along_time = _turns(x.shape[1], self.time_angles)
        for block in self.blocks:
            frequency, time = cast(nn.ModuleList, block)
            if self.time_first:
                x = time(x.transpose(1, 2), along_time, frames).transpose(1, 2)
            x = frequency(x, along_frequency, None)
            if not self.time_first:
                x = time(x.transpose(1, 2), along_time, frames).transpose(1, 2)
        x = x.permute(0, 3, 1, 2) * mine[:, None, :, None]
        extra = (0, (int(bins) - 1) % step)  # bins behind the last step
        out = F.conv_transpose2d(x, self.exit.weight, self.exit.bias, (1, step), (1, step), extra)
        return [(out[:, 2 * source], out[:, 2 * source + 1]) for source in range(self.config.sources)]

    def _normalise(self, x: Tensor, frames: Tensor, mine: Tensor) -> Tensor:
        norm = self.entry_norm
        count = (frames * (x.shape[1] * x.shape[3]))[:, None, None, None]
        mean = (x * mine).sum((1, 3), keepdim=True).sum(2, keepdim=True) / count
        apart = (x - mean) * mine
        variance = apart.square().sum((1, 3), keepdim=True).sum(2, keepdim=True) / count
        return apart * (norm.weight[:, None, None] * torch.rsqrt(variance + norm.eps)) + norm.bias[:, None, None]


class _Path(nn.Module):
    def __init__(self, path: Any) -> None:
        super().__init__()
        self.feeds = nn.ModuleList(_Feed(feed) for feed in path.feeds)
        self.feed_norms = nn.ModuleList(_norm(norm) for norm in path.feed_norms)
        self.attention_norm = _norm(path.attention_norm)
        self.attention = _Attention(path.attention)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], counts: Tensor | None) -> Tensor:
        """Rows (B, S, L, C), of whose L points the first `counts` (B,) are sound; None: all."""
        if len(self.feeds) == 2:
            x = x + self.feeds[0](self.feed_norms[0](x), counts)
        x = x + self.attention(self.attention_norm(x), turns, counts)
        return x + self.feeds[-1](self.feed_norms[-1](x), counts)


class _Feed(nn.Module):
    """A convolution over windows of a row and its transpose; a clip has as many windows as it has alone."""

    def __init__(self, feed: Any) -> None:
        super().__init__()
        self.gated, self.kernel, self.stride = feed.gated, feed.kernel, feed.stride
        self.spare = self.kernel - self.stride
        self.enter, self.leave = feed.enter, feed.leave

    def windows(self, points: Tensor) -> Tensor:
        """How many windows rows of `points` points have."""
        if self.gated:
            return torch.div(points + self.spare + self.stride - 1, self.stride, rounding_mode="floor")
        more = (points + self.spare // 2 - self.kernel).clamp_min(0)
        return torch.div(more + self.stride - 1, self.stride, rounding_mode="floor") + 1

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        rows, size = x.shape[1], x.shape[2]
        front, skip = (self.spare, self.spare) if self.gated else (0, self.spare // 2)
        if counts is None:
            counts = torch.zeros_like(x[:, 0, 0, 0], dtype=torch.int64) + size
        else:
            x = x * own(counts, size)[:, None, :, None]
        flat = x.flatten(0, 1).transpose(1, 2)
        inner = self.enter(F.pad(flat, (front, self.kernel + self.stride)))
        if self.gated:
            values, gate = inner.chunk(2, dim=1)
            inner = values * F.silu(gate)
        else:
            inner = F.silu(inner)
        there = own(self.windows(counts), inner.shape[2])[:, None].expand(-1, rows, -1).flatten(0, 1)
        outer = self.leave(inner * there[:, None])
        return parted(outer[..., skip:][..., :size].transpose(1, 2), 0, -1, rows)


class _Attention(nn.Module):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads, self.reach = attention.heads, attention.reach
        self.project, self.gather = attention.project, attention.gather

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], counts: Tensor | None) -> Tensor:
        rows = x.shape[1]
        projected = parted(self.project(x.flatten(0, 1)), 2, 3, self.heads, -1)  # (R, L, 3, H, D)
        query, key = (_turned(projected[:, :, place], turns).transpose(1, 2) for place in (0, 1))
        value = projected[:, :, 2].transpose(1, 2)
        query = query * query.shape[-1] ** -0.5
        if self.reach is None or counts is None:
            scores = query @ key.transpose(2, 3)
            if counts is not None:
                scores = scores + _behind(own(counts, x.shape[2])[:, None, :], rows)
            heard = scores.softmax(-1) @ value
        else:
            heard = self._near(query, key, value, counts, rows)
        return parted(self.gather(heard.transpose(1, 2).flatten(2)), 0, -1, rows)

    def _near(self, query: Tensor, key: Tensor, value: Tensor, counts: Tensor, rows: int) -> Tensor:
        """Each point hears those up to `reach` away: blocks of queries, each with the keys around it."""
        size, reach = query.shape[2], self.reach
        block = max(reach, 16)
        number = (size + block - 1) // block
        start = torch.arange(number, device=query.device)[:, None] * block
        asks = start + torch.arange(block)  # (N, block)
        told = start - reach + torch.arange(block + 2 * reach)  # (N, keys)
        near = (asks[:, :, None] - told[:, None, :]).abs() <= reach
        near = near & (told >= 0)[:, None, :] & (told < counts[:, None, None])[:, :, None, :]  # (B, N, block, keys)
        last = torch.zeros_like(told) + size - 1
        asks, told = torch.minimum(asks, last[:, :1]), torch.minimum(told.clamp_min(0), last)
        scores = query[:, :, asks] @ key[:, :, told].transpose(3, 4) + _behind(near, rows)
        heard = scores.softmax(-1) @ value[:, :, told]  # (R, H, N, block, D)
        return heard.flatten(2, 3)[:, :, :size]


def _behind(heard: Tensor, rows: int) -> Tensor:
    """(B·rows, 1, …) what is added to scores where `heard` (B, …) is false."""
    far = (1.0 - heard.float()) * _FAR
    return far[:, None].expand(-1, rows, *[-1] * (heard.ndim - 1)).flatten(0, 1)[:, None]


def _turns(count: int, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (count, 1, pairs) of the angle by which each position turns each pair of features."""
    angle = (torch.arange(count, device=angles.device).float()[:, None] * angles)[:, None]
    return angle.cos(), angle.sin()


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions of (R, L, H, D)."""
    cosine, sine = turns
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2)


class _GroupNorm(nn.Module):
    def __init__(self, norm: RMSGroupNorm) -> None:
        super().__init__()
        self.groups, self.eps, self.gain = norm.groups, norm.eps, norm.gain

    def forward(self, x: Tensor) -> Tensor:
        grouped = parted(x, 3, self.groups, -1)
        root = grouped.square().mean(-1, keepdim=True).sqrt()
        return (grouped / (root + self.eps)).flatten(-2) * self.gain


def _norm(norm: nn.Module) -> nn.Module:
    return _GroupNorm(norm) if isinstance(norm, RMSGroupNorm) else norm
