"""What a pretrained encoder hears, as one more channel beside the log-mel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from offkey.audio.resample import Resample
from offkey.encoders.base import Encoder
from offkey.encoders.cache import FeatureCache
from offkey.types import Batch, Float, Int, Representation

__all__ = ["EncoderFrames", "EncoderMean", "long_enough"]


class EncoderFrames(nn.Module):
    """Patches averaged over frequency, projected to `bands` numbers, and interpolated to the mel frames.

    `rate` is that of the waveforms it is given, `hop` the samples between mel frames; frame f and patch p are brought
    together by the second on which they are centred, so that neither padding nor the clip's length matters. Which
    weights of the encoder learn is settled beforehand (`offkey.training.unfreeze`), and `layer_decay` is what their
    rate loses from each stage to the one before. A frozen encoder's patches come from `cache`, where there is one: in
    scoring always, in training if `cache_training` says that the same samples come again.
    """

    def __init__(
        self,
        encoder: Encoder,
        rate: int,
        hop: int,
        bands: int = 128,
        cache: FeatureCache | None = None,
        cache_training: bool = False,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.resample = Resample(rate, encoder.rate)
        self.norm = nn.LayerNorm(encoder.dimension)
        self.projection = nn.Linear(encoder.dimension, bands)
        self.frame_seconds = hop / rate
        self.cache = cache
        self.cache_training = cache_training
        self.layer_decay = layer_decay

    def forward(
        self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"], frames: int
    ) -> Float[Tensor, "B M {frames}"]:
        """One channel (B, bands, frames); what lies past a clip's own frames repeats its last patch.

        Raises EncoderError where a clip is too short for the encoder.
        """
        waveform, lengths = long_enough(waveform, lengths, self.encoder, self.resample)
        columns = self.projection(self.norm(self._columns(waveform, lengths))).transpose(1, 2)
        counts = self.encoder.patch_counts(self.resample.lengths(lengths))
        return self._interpolate(columns, counts, frames)

    def _columns(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Patches averaged over frequency (B, Pt, D), from the cache where they never change."""
        frozen = not any(weights.requires_grad for weights in self.encoder.parameters())
        if self.cache is not None and frozen and (self.cache_training or not self.training):
            return self.cache.frames(self.encoder, waveform, lengths, self.resample)
        heard = self.resample(waveform, lengths)
        return self.encoder.patches(heard, self.resample.lengths(lengths)).mean(2)

    def _interpolate(self, columns: Tensor, counts: Tensor, frames: int) -> Tensor:
        """Columns (B, M, Pt), one a patch, drawn linearly through the moments of the mel frames: (B, M, frames)."""
        moments = torch.arange(frames, device=columns.device) * self.frame_seconds
        place = (moments - self.encoder.patch_offset) / self.encoder.patch_seconds
        place = place.clamp_min(0).minimum(counts[:, None] - 1)  # (B, F)
        patches = torch.arange(columns.shape[-1], device=columns.device)
        share = (1 - (place[:, None, :] - patches[:, None]).abs()).clamp_min(0)  # (B, Pt, F), tents
        return columns @ share.to(columns.dtype)

    def encoder_rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        """The encoder's weights that learn, each with its factor on the encoder's learning rate."""
        return self.encoder.rates(self.layer_decay)


class EncoderMean(nn.Module):
    """Mean over all patches of a frozen encoder, which need not be trained to describe a clip: `embedding` (B, D).

    `rate` is that of the waveforms. What the encoder hears is kept in `cache`, as frames, where `EncoderFrames`
    finds it again.
    """

    def __init__(self, encoder: Encoder, rate: int, cache: FeatureCache | None = None) -> None:
        super().__init__()
        self.encoder = encoder.eval()
        self.resample = Resample(rate, encoder.rate)
        self.cache = cache

    @torch.no_grad()
    def forward(self, batch: Batch) -> Representation:
        """Describe a batch; only a clip's own patches count."""
        waveform, lengths = long_enough(batch.waveform, batch.lengths, self.encoder, self.resample)
        if self.cache is not None:
            columns = self.cache.frames(self.encoder, waveform, lengths, self.resample)
        else:
            heard = self.resample(waveform, lengths)
            columns = self.encoder.patches(heard, self.resample.lengths(lengths)).mean(2)
        counts = self.encoder.patch_counts(self.resample.lengths(lengths))
        # past a clip's own patches the columns are zero
        return Representation(columns.sum(1) / counts[:, None])


def long_enough(
    waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"], encoder: Encoder, resample: Resample
) -> tuple[Tensor, Tensor]:
    """Clips (B, T) and their real samples (B,): those too short for the encoder are heard with silence behind them."""
    shortest = -(-encoder.shortest * resample.rate_in // resample.rate_out)
    if waveform.shape[1] < shortest:
        waveform = nn.functional.pad(waveform, (0, shortest - waveform.shape[1]))
    return waveform, lengths.clamp_min(shortest)
