"""Approach 1: log-mel, Tgram and any further streams, stacked as channels of one net that embeds a clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from offkey.audio.mel import LogMel
from offkey.encoders.base import Encoder
from offkey.models.config import DiscriminativeConfig
from offkey.models.encoder_frames import EncoderFrames
from offkey.models.masking import frame_mask, kept_statistics
from offkey.models.mobilefacenet import MobileFaceNet
from offkey.models.tgram import TgramNet
from offkey.types import Batch, Bool, Exchanged, Float, Int, OffkeyError, Representation

__all__ = ["Discriminative", "DiscriminativeConfig"]

_TYPICAL_MEAN_DB, _TYPICAL_STD_DB = -45.0, 15.0  # until a training set has been seen
_SMALLEST_STD_DB = 1.0  # a band that never changes must not turn rounding noise into signal
_SILENCE_STD_DB = 1e-3


class Discriminative(nn.Module):
    """Batch -> Representation with `embedding` (B, D) float32, and `modalities` (B, S, M) if `tell_modalities`.

    `spectrogram_augmentation`, called as `module(spectrogram (B, M, F), frames (B,))`, acts in training mode
    only, on the normalised log-mel. Each of `extra_streams` is a module called as `stream(waveform (B, T),
    lengths (B,), frames)` that gives (B, M, frames), one more channel of the net (encoder frames, for
    example); what it gives past a clip's own frames is not looked at. `stream_exchange`, called as `module(streams
    (B, S, M, F), frames (B,))` in training mode, gives exchanged streams, partners (B,) and which clips it met, or
    None: they are embedded as well and told as `exchanged`. A stream may have `encoder_rates()`: weights that
    learn at the encoder's rate times a factor. `modalities` are the means of every channel over a clip's own frames.
    """

    mel_mean: Tensor
    mel_std: Tensor

    def __init__(
        self,
        mel: LogMel,
        config: DiscriminativeConfig | None = None,
        spectrogram_augmentation: nn.Module | None = None,
        extra_streams: Sequence[nn.Module] = (),
        tell_modalities: bool = False,
        stream_exchange: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or DiscriminativeConfig()
        bands = mel.config.n_mels
        self.mel = mel
        self.spectrogram_augmentation = spectrogram_augmentation
        self.tgram = (
            TgramNet(bands, mel.config.hop, mel.config.n_fft, config.tgram_layers) if config.use_tgram else None
        )
        self.extra_streams = nn.ModuleList(extra_streams)
        self.tell_modalities = tell_modalities
        channels = 1 + int(config.use_tgram) + len(extra_streams)
        if stream_exchange is not None and channels < 2:
            raise OffkeyError(
                "augmentation.featex exchanges input streams between clips, but the model has the log-mel alone: give "
                "it a second one (model.use_tgram, encoder.name), or turn featex off"
            )
        self.stream_exchange = stream_exchange
        self.net = MobileFaceNet(channels, config.embedding, config.width, config.bottlenecks)
        self.register_buffer("mel_mean", torch.full((bands,), _TYPICAL_MEAN_DB))
        self.register_buffer("mel_std", torch.full((bands,), _TYPICAL_STD_DB))

    def forward(self, batch: Batch) -> Representation:
        """Embed clips of any lengths; in eval mode a clip's embedding does not depend on its company."""
        frames = self.mel.frames(batch.lengths)
        # a batch without padding skips all masking
        padded = bool((frames != batch.waveform.shape[-1] // self.mel.config.hop + 1).any())
        spectrogram = self.spectrogram(batch.waveform, batch.lengths)
        if self.training and self.spectrogram_augmentation is not None:
            spectrogram = self.spectrogram_augmentation(spectrogram, frames)
        channels = [spectrogram]
        if self.tgram is not None:
            channels.append(self.tgram(batch.waveform, frames if padded else None))
        width = spectrogram.shape[-1]
        channels += [stream(batch.waveform, batch.lengths, width) for stream in self.extra_streams]
        x = torch.stack([channel.to(spectrogram.dtype) for channel in channels], dim=1)
        modalities = None
        if self.tell_modalities:
            own = frame_mask(frames, width)[:, None, None, :]
            modalities = (x * own).float().sum(-1) / frames[:, None, None]
        embedding = self.net(x, frames if padded else None)
        return Representation(embedding, modalities=modalities, exchanged=self._exchanged(x, frames, padded))

    def _exchanged(self, streams: Tensor, frames: Tensor, padded: bool) -> Exchanged | None:
        """What the net makes of exchanged streams; its running statistics stay those of clips as they are."""
        drawn = self.stream_exchange(streams, frames) if self.training and self.stream_exchange is not None else None
        if drawn is None:
            return None
        exchanged, partner, met = drawn
        with kept_statistics(self.net):
            return Exchanged(self.net(exchanged, frames if padded else None), partner, met)

    def spectrogram(self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B M F"]:
        """Normalised log-mel; zero past each clip's own frames."""
        with torch.autocast(waveform.device.type, enabled=False):  # a power spectrum overflows half precision
            decibels = self.mel(waveform.float(), lengths)
            mask = frame_mask(self.mel.frames(lengths), decibels.shape[-1])[:, None, :]
            if self.config.normalise == "dataset":
                decibels = (decibels - self.mel_mean[:, None]) / self.mel_std[:, None]
            elif self.config.normalise == "instance":
                decibels = _per_clip(decibels, mask)
            return decibels * mask

    @torch.no_grad()
    def fit_normalisation(self, batches: Iterable[Batch]) -> None:
        """Learn each band's mean and standard deviation over the real frames of training clips, in dB.

        They are kept in buffers and travel with the weights; only `normalise = "dataset"` reads them. Raises
        OffkeyError where there is no clip to learn from.
        """
        total = torch.zeros(len(self.mel_mean), dtype=torch.float64)
        squares = torch.zeros_like(total)
        count = 0
        for batch in batches:
            device = self.mel_mean.device
            lengths = batch.lengths.to(device)
            decibels = self.mel(batch.waveform.to(device), lengths).double().cpu()
            frames = self.mel.frames(lengths).cpu()
            own = decibels * frame_mask(frames, decibels.shape[-1])[:, None, :]
            # shifted by a typical level: the squares of -100 dB would drown small deviations
            shifted = (own - _TYPICAL_MEAN_DB) * frame_mask(frames, decibels.shape[-1])[:, None, :]
            total += shifted.sum((0, 2))
            squares += shifted.square().sum((0, 2))
            count += int(frames.sum())
        if count == 0:
            raise OffkeyError("the log-mel scale cannot be fitted: there is no training clip to learn from")
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        self.mel_mean.copy_(mean + _TYPICAL_MEAN_DB)
        self.mel_std.copy_(std.clamp_min(_SMALLEST_STD_DB))

    @property
    def encoder(self) -> Encoder | None:
        """The pretrained encoder among the streams, if there is one."""
        return next((stream.encoder for stream in self.extra_streams if isinstance(stream, EncoderFrames)), None)

    def encoder_rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Pretrained weights, each with its factor on the encoder's rate (none without extra streams)."""
        for stream in self.extra_streams:
            own = getattr(stream, "encoder_rates", None)
            if own is not None:
                yield from own()


def _per_clip(decibels: Float[Tensor, "B M F"], mask: Bool[Tensor, "B 1 F"]) -> Float[Tensor, "B M F"]:
    """Give every clip mean 0 and deviation 1 over all of its bands and frames: level goes, spectrum stays."""
    count = mask.sum((1, 2), keepdim=True) * decibels.shape[1]
    mean = (decibels * mask).sum((1, 2), keepdim=True) / count
    variance = ((decibels - mean) * mask).square().sum((1, 2), keepdim=True) / count
    return (decibels - mean) / variance.sqrt().clamp_min(_SILENCE_STD_DB)
