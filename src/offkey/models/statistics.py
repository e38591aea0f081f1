"""Embeddings that need no training: log-mel statistics, and loudness as the honest straw man."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from offkey.audio.mel import LogMel
from offkey.models.masking import frame_mask
from offkey.types import Batch, Representation

__all__ = ["LogMelStatistics", "Loudness"]

_SILENCE_DBFS = -120.0


class LogMelStatistics(nn.Module):
    """Statistics over time of each log-mel band, in dB, side by side: a clip of any length -> one vector.

    In this order, each part (M,) numbers: `mean`; `std` (population standard deviation); `change` (root mean
    square difference of neighbouring frames, which hears roughness and clicks; 0 for a one-frame clip);
    `quantiles`, one part for each in [0, 1], with linear interpolation between frames. Only a clip's own
    frames count. `size` is the length of the vector. Raises ValueError where every part is off.
    """

    def __init__(
        self,
        mel: LogMel,
        mean: bool = True,
        std: bool = False,
        change: bool = False,
        quantiles: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if not all(0 <= quantile <= 1 for quantile in quantiles):
            raise ValueError(f"quantiles lie in [0, 1], not {tuple(quantiles)}")
        self.mel = mel
        self.mean = mean
        self.std = std
        self.change = change
        self.quantiles = tuple(quantiles)
        self.size = mel.config.n_mels * (int(mean) + int(std) + int(change) + len(self.quantiles))
        if self.size == 0:
            raise ValueError("log-mel statistics with every part off describe nothing: turn one on")

    @torch.no_grad()
    def forward(self, batch: Batch) -> Representation:
        """Describe a batch: `embedding` (B, size) float32."""
        decibels = self.mel(batch.waveform, batch.lengths)
        frames = self.mel.frames(batch.lengths)
        mask = frame_mask(frames, decibels.shape[-1])[:, None, :]
        count = frames[:, None]
        mean = (decibels * mask).sum(-1) / count
        parts = []
        if self.mean:
            parts.append(mean)
        if self.std:
            parts.append((((decibels - mean[..., None]) * mask).square().sum(-1) / count).sqrt())
        if self.change:
            steps = decibels.diff(dim=-1) * mask[..., 1:]
            parts.append((steps.square().sum(-1) / (count - 1).clamp_min(1)).sqrt())
        if self.quantiles:
            ordered = decibels.masked_fill(~mask, torch.inf).sort(dim=-1).values
            parts += [_quantile(ordered, frames, quantile) for quantile in self.quantiles]
        return Representation(torch.cat(parts, dim=1))


def _quantile(ordered: Tensor, frames: Tensor, quantile: float) -> Tensor:
    """One quantile a clip, from sorted frames (B, M, F) of which the first `frames` are the clip's own."""
    place = quantile * (frames - 1).double()
    low = place.floor().long()[:, None, None].expand(-1, ordered.shape[1], 1)
    high = place.ceil().long()[:, None, None].expand(-1, ordered.shape[1], 1)
    share = (place - place.floor()).float()[:, None]
    return torch.lerp(ordered.gather(-1, low)[..., 0], ordered.gather(-1, high)[..., 0], share)


class Loudness(nn.Module):
    """The level of a clip, nothing else: `embedding` (B, 1), root mean square in dBFS; −120 is silence."""

    size = 1

    @torch.no_grad()
    def forward(self, batch: Batch) -> Representation:
        """Measure a batch; only a clip's own samples count."""
        own = batch.waveform * frame_mask(batch.lengths, batch.waveform.shape[-1])
        power = own.double().square().sum(-1) / batch.lengths.clamp_min(1)
        level = 10.0 * power.clamp_min(10.0 ** (_SILENCE_DBFS / 10)).log10()
        return Representation(level[:, None].float())
