"""Random changes of training clips: waveform, mixup and spectrogram masks.

Every draw follows from a `Moment` (seed, epoch, step, process), set by `seek`: nothing here reads global
random state, and a resumed run repeats what an undisturbed one would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offkey.objectives.multitask import Mix
from offkey.training.config import (
    AugmentationConfig,
    FeatExConfig,
    MixupConfig,
    NoiseConfig,
    ShiftConfig,
    SpecAugmentConfig,
)
from offkey.training.randomness import Moment
from offkey.types import Batch, Bool, Float, Int, OffkeyError

__all__ = ["SpecAugment", "StreamExchange", "WaveformAugmentation", "coloured_noise"]

_SHIFT, _POLARITY, _GAIN, _NOISE, _MIXUP, _MASKS, _EXCHANGE = range(1, 8)  # purposes of `Moment`
_FALL = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # power falls as 1 / frequency^this


def coloured_noise(
    count: int, samples: int, fall: Sequence[float], generator: torch.Generator
) -> Float[Tensor, "{count} {samples}"]:
    """Gaussian noise whose power falls as 1/f^`fall` (0 white, 1 pink, 2 brown), each row of mean power 1."""
    white = torch.randn(count, samples, generator=generator)
    if samples < 2:
        return white
    exponent = torch.tensor(list(fall), dtype=torch.float32)[:, None] / 2
    bins = torch.arange(samples // 2 + 1, dtype=torch.float32)
    shape = bins.clamp_min(1.0) ** -exponent
    coloured = exponent[:, 0] > 0
    shape[coloured, 0] = 0.0  # a falling spectrum would put most of its power into a constant
    noise = torch.fft.irfft(torch.fft.rfft(white) * shape, n=samples)
    return noise / noise.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)


class WaveformAugmentation:
    """Time shift, polarity, noise, gain and mixup of a batch, in this order, each as its settings say.

    `noise_pool` holds noise recordings at `rate` for the noise kind "pool". Clips are changed within their
    own samples; what is past them stays zero. Call `seek` before every batch.
    """

    def __init__(self, config: AugmentationConfig, rate: int, noise_pool: Sequence[NDArray[np.float32]] = ()) -> None:
        if config.noise.enabled and config.noise.kinds == ("pool",) and not noise_pool:
            raise OffkeyError(
                "augmentation.noise.kinds is only 'pool', but there is no noise recording: "
                "add generated kinds (white, pink, brown) or give noise recordings"
            )
        self.config = config
        self.rate = rate
        self.noise_pool = [np.asarray(noise, dtype=np.float32) for noise in noise_pool if len(noise)]
        self.moment = Moment(0, 0, 0)

    def seek(self, moment: Moment) -> None:
        """Set the place in the run that the next draws follow from."""
        self.moment = moment

    def __call__(self, batch: Batch) -> tuple[Batch, Mix | None]:
        """Return a changed copy of the batch and, where mixup met it, how its clips were mixed."""
        waveform, lengths, config = batch.waveform, batch.lengths, self.config
        if config.shift.enabled:
            waveform = self._shift(waveform, lengths, config.shift)
        if config.polarity.enabled:
            rng = self.moment.numbers(_POLARITY)
            flip = rng.random(len(waveform)) < config.polarity.probability
            waveform = waveform * _column(np.where(flip, -1.0, 1.0), waveform)
        if config.noise.enabled:
            waveform = self._noise(waveform, lengths, config.noise)
        if config.gain.enabled:
            rng = self.moment.numbers(_GAIN)
            decibels = rng.uniform(config.gain.min_db, config.gain.max_db, len(waveform))
            met = rng.random(len(waveform)) < config.gain.probability
            waveform = waveform * _column(np.where(met, 10.0 ** (decibels / 20.0), 1.0), waveform)
        mix = None
        if config.mixup.enabled:
            waveform, mix = self._mixup(waveform, lengths, config.mixup)
        return batch._replace(waveform=waveform), mix

    def _shift(
        self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"], config: ShiftConfig
    ) -> Float[Tensor, "B T"]:
        rng = self.moment.numbers(_SHIFT)
        own = lengths.cpu().numpy()
        furthest = own if not config.max_seconds else np.minimum(own, round(config.max_seconds * self.rate))
        shift = np.round(rng.uniform(-1.0, 1.0, len(own)) * furthest).astype(np.int64)
        shift[rng.random(len(own)) >= config.probability] = 0
        place = torch.arange(waveform.shape[1], device=waveform.device)
        length = lengths.clamp_min(1)[:, None]
        rolled = torch.remainder(place - torch.from_numpy(shift).to(waveform.device)[:, None], length)
        return waveform.gather(1, torch.where(place < length, rolled, place))

    def _noise(
        self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"], config: NoiseConfig
    ) -> Float[Tensor, "B T"]:
        rng = self.moment.numbers(_NOISE)
        count, samples = waveform.shape
        pooled = "pool" in config.kinds and bool(self.noise_pool)
        kinds = ["pool"] if pooled else [kind for kind in config.kinds if kind != "pool"]
        kind = rng.integers(len(kinds), size=count)
        snr = rng.uniform(config.min_snr_db, config.max_snr_db, count)
        met = np.flatnonzero(rng.random(count) < config.probability)
        if not len(met):
            return waveform
        fall = [_FALL.get(kinds[kind[row]], 0.0) for row in met]
        noise = coloured_noise(len(met), samples, fall, self.moment.noise(_NOISE))
        for index, row in enumerate(met):
            if kinds[kind[row]] == "pool":
                recording = self.noise_pool[rng.integers(len(self.noise_pool))]
                start = int(rng.integers(len(recording)))
                take = (start + np.arange(samples)) % len(recording)
                noise[index] = torch.from_numpy(recording[take])
        rows = torch.from_numpy(met).to(waveform.device)
        clips = waveform[rows]
        own = torch.arange(samples, device=waveform.device) < lengths[rows, None]
        noise = noise.to(waveform.device) * own
        noise_power = noise.square().sum(1, keepdim=True)
        clip_power = (clips * own).square().sum(1, keepdim=True)
        ratio = _column(10.0 ** (snr[met] / 10.0), waveform)
        scale = (clip_power / (noise_power * ratio).clamp_min(1e-20)).sqrt()  # a silent clip gets no noise
        mixed = clips + scale * noise
        # as loud as before: otherwise the level would tell how much noise there is
        mixed = mixed * (clip_power / mixed.square().sum(1, keepdim=True).clamp_min(1e-20)).sqrt()
        return waveform.index_copy(0, rows, mixed)

    def _mixup(
        self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"], config: MixupConfig
    ) -> tuple[Float[Tensor, "B T"], Mix | None]:
        rng = self.moment.numbers(_MIXUP)
        count, samples = waveform.shape
        if rng.random() >= config.probability or count < 2:
            return waveform, None
        partner = torch.from_numpy(rng.permutation(count)).to(waveform.device)
        weight = rng.beta(config.alpha, config.alpha, count)
        share = _column(weight, waveform)
        own = torch.arange(samples, device=waveform.device) < lengths[:, None]
        mixed = share * waveform + (1.0 - share) * waveform[partner] * own
        return mixed, Mix(partner, share[:, 0])


class SpecAugment(nn.Module):
    """Masks over time and frequency, as in Park et al., "SpecAugment" (Interspeech 2019), without warping.

    Works on a normalised spectrogram: masked places become 0, the mean of the training set. Widths are drawn
    evenly from 0 to the longest; stretches lie within each clip's own frames. Call `seek` before every batch.
    """

    def __init__(self, config: SpecAugmentConfig) -> None:
        super().__init__()
        self.config = config
        self.moment = Moment(0, 0, 0)

    def seek(self, moment: Moment) -> None:
        """Set the place in the run that the next draws follow from."""
        self.moment = moment

    def forward(self, spectrogram: Float[Tensor, "B M F"], frames: Int[Tensor, " B"]) -> Float[Tensor, "B M F"]:
        """Return a masked copy; off in eval mode and where it is not enabled."""
        if not (self.training and self.config.enabled):
            return spectrogram
        config, rng = self.config, self.moment.numbers(_MASKS)
        count, bands, width = spectrogram.shape
        met = rng.random(count) < config.probability
        own = frames.cpu().numpy().astype(np.float64)
        time = _stretches(rng, own, config.time_share, config.time_masks, width)
        band = _stretches(rng, np.full(count, float(bands)), config.frequency_share, config.frequency_masks, bands)
        hidden = (band[:, :, None] | time[:, None, :]) & met[:, None, None]
        return spectrogram.masked_fill(torch.from_numpy(hidden).to(spectrogram.device), 0.0)


class StreamExchange(nn.Module):
    """FeatEx at the input: clips keep their first stream and take the others from another clip of the batch.

    After K. Wilkinghoff, "Self-supervised learning for anomalous sound detection" (ICASSP 2024), where the exchange is
    between the embeddings of two branches; here the branches meet in the net's first convolution, so the maps
    that go into it are exchanged. Call `seek` before every batch.
    """

    def __init__(self, config: FeatExConfig) -> None:
        super().__init__()
        self.config = config
        self.moment = Moment(0, 0, 0)

    def seek(self, moment: Moment) -> None:
        """Set the place in the run that the next draws follow from."""
        self.moment = moment

    def forward(
        self, streams: Float[Tensor, "B S M F"], frames: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B S M F"], Int[Tensor, " B"], Bool[Tensor, " B"]] | None:
        """Exchanged copy, (B,) who lent the streams after the first, (B,) bool which clips it met; None if no clip.

        A partner is never the clip itself. Where a partner is shorter, what it lends begins anew until it fills the
        clip's `frames`; what is past them stays as it was.
        """
        count, width = len(streams), streams.shape[-1]
        if not (self.training and self.config.enabled) or count < 2:
            return None
        rng = self.moment.numbers(_EXCHANGE)
        ring = rng.permutation(count)
        partner = np.empty(count, dtype=np.int64)
        partner[ring] = np.roll(ring, 1)
        drawn = rng.random(count) < self.config.probability
        if not drawn.any():
            return None
        lender, met = torch.from_numpy(partner).to(streams.device), torch.from_numpy(drawn).to(streams.device)
        place = torch.arange(width, device=streams.device)
        column = torch.remainder(place, frames[lender][:, None].to(streams.device))
        others = streams[lender, 1:]
        lent = others.gather(3, column[:, None, None, :].expand(-1, *others.shape[1:3], -1))
        takes = met[:, None] & (place < frames[:, None].to(streams.device))
        rest = torch.where(takes[:, None, None, :], lent, streams[:, 1:])
        return torch.cat([streams[:, :1], rest], 1), lender, met


def _stretches(
    rng: np.random.Generator, size: NDArray[np.float64], share: float, masks: int, width: int
) -> NDArray[np.bool_]:
    """Mark `masks` random stretches a row, of up to share·size places, within the first `size` of `width`."""
    length = np.floor(rng.random((masks, len(size))) * (np.floor(share * size) + 1))
    start = np.floor(rng.random((masks, len(size))) * (size - length + 1))
    place = np.arange(width)
    inside = (place >= start[..., None]) & (place < (start + length)[..., None])
    return np.asarray(inside.any(0), dtype=np.bool_)


def _column(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(device=like.device, dtype=like.dtype)[:, None]
