"""Approach 2: what a frozen encoder hears and what Tgram finds, squeezed through a small vector and rebuilt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from offkey.audio.mel import LogMel
from offkey.encoders.base import Encoder
from offkey.encoders.cache import FeatureCache
from offkey.models.config import ReconstructiveConfig
from offkey.models.encoder_frames import EncoderFrames
from offkey.models.masking import ClipBatchNorm, frame_mask
from offkey.models.tgram import TgramNet
from offkey.models.windows import Windows, cover, cut_frames, cut_samples, lay_back, own_frames
from offkey.types import Batch, Bool, Float, Int, OffkeyError, Representation

__all__ = ["ConvAutoencoder", "Reconstructive", "ReconstructiveConfig", "frozen_frames"]

_SILENCE = 1e-8  # variance over time below which a Tgram channel counts as collapsed; speech at -60 dBFS gives 1e-7
_SMALLEST_SHARE = 0.1  # of a stream's typical deviation: a channel that slept in training must not drown the others
_SMALLEST_STD = 1e-6
_AT_ONCE = 512  # windows in scoring, so that an hour's recording does not fill the memory


def frozen_frames(encoder: Encoder, rate: int, hop: int, cache: FeatureCache | None = None) -> EncoderFrames:
    """Frames (B, D, F) of an encoder that stays as it is, without a learnt projection; `encoder` is frozen by this."""
    frames = EncoderFrames(encoder.requires_grad_(False), rate, hop, 1, cache, cache_training=True)
    frames.add_module("norm", nn.Identity())
    frames.add_module("projection", nn.Identity())
    return frames


class ConvAutoencoder(nn.Module):
    """Convolutions over time of a window (N, C, W) -> latent (N, L) -> the window again, (N, C, W).

    A convolution over channels alone, `halvings` ones of four frames that halve time, a linear layer; and the same way
    back. For 896 channels and windows of 32 frames: 0.95 million weights, and 0.47 million multiplications a frame (for
    512: 0.82 and 0.34; TgramNet of 128 channels has 0.28 and 0.28). A training step takes three times as many.
    """

    def __init__(self, channels: int, window: int, latent: int, width: int = 160, halvings: int = 3) -> None:
        super().__init__()
        short = window // 2**halvings
        self.enter = _Unit(nn.Conv1d(channels, width, 1, bias=False), width)
        self.down = nn.Sequential(
            *(_Unit(nn.Conv1d(width, width, 4, 2, 1, bias=False), width) for _ in range(halvings))
        )
        self.squeeze = nn.Linear(width * short, latent)
        self.expand = nn.Linear(latent, width * short)
        self.up = nn.Sequential(
            *(_Unit(nn.ConvTranspose1d(width, width, 4, 2, 1, bias=False), width) for _ in range(halvings))
        )
        self.leave = nn.Conv1d(width, channels, 1)

    def forward(self, x: Float[Tensor, "N C W"]) -> tuple[Float[Tensor, "N C W"], Float[Tensor, "N L"]]:
        """Return the window rebuilt and its latent."""
        deep = self.down(self.enter(x))
        latent = self.squeeze(deep.flatten(1))
        return self.leave(self.up(self.expand(latent).view_as(deep))), latent


class _Unit(nn.Module):
    def __init__(self, convolution: nn.Module, channels: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = ClipBatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.norm(self.convolution(x)))


class Reconstructive(nn.Module):
    """Batch -> Representation with `embedding` (B, L), the mean latent of a clip's windows, and `frame_error` (B, F).

    `frame_error` is the mean squared error of each frame over all channels, and it is what training minimises: it
    carries the gradient. About 1 is what a net pays that knows the training set's mean only; zero past a clip's own
    frames.

    Each of `streams` is called as `stream(waveform (B, T), lengths (B,), frames)` and gives (B, D, frames), one after
    another along D: fixed features, such as `frozen_frames`. A batch with `features` (B, C', W) holds windows, cut as
    `offkey.models.windows` says, of which those are the fixed features as `fixed_features` gives them, and `lengths`
    the samples that its own frames see; the streams are not called then. Otherwise clips of any length are cut into
    windows that cover them, and errors of frames that two windows hold are averaged. In eval mode a clip's answer does
    not depend on its company.

    **What keeps the target from collapsing.** A net that may change what it has to rebuild does best by changing it to
    nothing. Here fixed channels are standardised by the training set (`fit_normalisation`), each of Tgram's by its own
    mean and variance over the window, without a gain that could be learnt, and the whole target is detached. So no
    gradient makes the target easier; Tgram learns through the autoencoder's input alone: to hand over what helps
    to rebuild all the channels of the moment and to tell the identity. What is left of a Tgram channel that is constant
    would be zero, which is rebuilt for nothing. Its missing variance is therefore added to the error: a collapsed
    channel costs 1, as much as one that cannot be foreseen at all, and the gradient leads out of it.
    """

    fixed_mean: Tensor
    fixed_std: Tensor

    def __init__(
        self,
        mel: LogMel,
        config: ReconstructiveConfig | None = None,
        streams: Sequence[nn.Module] = (),
        stream_channels: Sequence[int] = (),
    ) -> None:
        """`stream_channels` are the D of each stream; raises OffkeyError where nothing is left to be rebuilt."""
        super().__init__()
        self.config = config = config or ReconstructiveConfig()
        self.mel = mel
        self.streams = nn.ModuleList(streams)
        self.stream_channels = (*stream_channels, *((mel.config.n_mels,) if config.use_log_mel else ()))
        fixed = sum(self.stream_channels)
        learnt = config.tgram_channels if config.use_tgram else 0
        if fixed + learnt == 0:
            raise OffkeyError(
                "there is nothing to reconstruct: choose an encoder, model.use_tgram or model.use_log_mel"
            )
        self.tgram: TgramNet | None = None
        if config.use_tgram:
            self.tgram = TgramNet(learnt, mel.config.hop, mel.config.n_fft, config.tgram_layers)
            self.tgram.frame.padding = (0,)  # the samples of a window hold half a frame on either side already
        self.autoencoder = ConvAutoencoder(fixed + learnt, config.window, config.latent, config.width, config.halvings)
        self.register_buffer("fixed_mean", torch.zeros(fixed))
        self.register_buffer("fixed_std", torch.ones(fixed))

    def forward(self, batch: Batch) -> Representation:
        """Rebuild windows or whole clips; raises EncoderError where a stream cannot hear a clip."""
        hop, kernel, width = self.mel.config.hop, self.mel.config.n_fft, self.config.window
        if batch.features is not None:
            error, latent = self._windows(batch.waveform, batch.features, own_frames(batch.lengths, hop, kernel))
            return Representation(latent, frame_error=error)
        frames = self.mel.frames(batch.lengths)
        fixed = self.fixed_features(batch.waveform, batch.lengths)
        windows = cover(frames, width)
        # batch normalisation must see all of a training batch together
        step = len(windows.clip) if self.training else _AT_ONCE
        answers = []
        for part in zip(*(numbers.split(step) for numbers in windows), strict=True):
            some = Windows(*part)
            samples = batch.waveform[:0]
            if self.tgram is not None:
                samples = cut_samples(batch.waveform, batch.lengths, some, width, hop, kernel)
            answers.append(self._windows(samples, cut_frames(fixed, some, width), some.frames))
        error = torch.cat([error for error, _ in answers])
        latent = torch.cat([latent for _, latent in answers])
        count = torch.bincount(windows.clip, minlength=len(frames))
        total = latent.new_zeros(len(frames), latent.shape[1]).index_add(0, windows.clip, latent)
        return Representation(total / count[:, None], frame_error=lay_back(error, windows, frames, fixed.shape[-1]))

    @torch.no_grad()
    def error_map(self, batch: Batch) -> Float[Tensor, "B M F"]:
        """Squared error of every band and mel frame, both standardised; frames that two windows hold are averaged.

        Raises OffkeyError where log-mel is not among what is rebuilt.
        """
        if not self.config.use_log_mel:
            raise OffkeyError("this network rebuilds no log-mel: set model.use_log_mel")
        frames, bands = self.mel.frames(batch.lengths), self.mel.config.n_mels
        width, fixed = self.config.window, self.fixed_features(batch.waveform, batch.lengths)
        windows = cover(frames, width)
        told = []
        for part in zip(*(numbers.split(_AT_ONCE) for numbers in windows), strict=True):
            some = Windows(*part)
            samples = batch.waveform[:0]
            if self.tgram is not None:
                samples = cut_samples(
                    batch.waveform, batch.lengths, some, width, self.mel.config.hop, self.mel.config.n_fft
                )
            mask = frame_mask(some.frames, width)
            target, _ = self.window_features(samples, cut_frames(fixed, some, width), mask)
            rebuilt, _ = self.autoencoder(target)
            # log-mel is the last of the fixed channels
            own = slice(len(self.fixed_mean) - bands, len(self.fixed_mean))
            told.append((rebuilt[:, own].float() - target[:, own]).square() * mask[:, None])
        error = torch.cat(told)
        return torch.stack([lay_back(error[:, band], windows, frames, fixed.shape[-1]) for band in range(bands)], dim=1)

    def error_frames(self, lengths: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
        """How many numbers of `frame_error` are a clip's own, for `lengths` in samples."""
        return self.mel.frames(lengths)

    def _windows(
        self, samples: Tensor, fixed: Float[Tensor, "N C W"], frames: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N W"], Float[Tensor, "N L"]]:
        """Error a frame, zero past a window's own `frames`, and the latent."""
        mask = frame_mask(frames, self.config.window)
        target, missing = self.window_features(samples, fixed, mask)
        rebuilt, latent = self.autoencoder(target)
        error = nn.functional.mse_loss(rebuilt.float(), target.detach(), reduction="none").mean(1)
        return (error + missing[:, None]) * mask, latent.float()

    def window_features(
        self, samples: Tensor, fixed: Float[Tensor, "N C W"], mask: Bool[Tensor, "N W"]
    ) -> tuple[Float[Tensor, "N D W"], Float[Tensor, " N"]]:
        """The map that is rebuilt (N, C' + Tgram's channels, W), and what Tgram's lack of variance costs (N,).

        `samples` (N, S) and `fixed` are those of a batch of windows; `mask` tells its own frames, and the map is
        zero past them.
        """
        standard = (fixed - self.fixed_mean[:, None]) / self.fixed_std[:, None]
        if self.tgram is None:
            return standard * mask[:, None, :], standard.new_zeros(len(standard))
        learnt = self.tgram(samples, mask.sum(1)).float()
        own = mask[:, None, :]
        count = own.sum(-1, keepdim=True)
        centred = (learnt - learnt.sum(-1, keepdim=True) / count) * own
        variance = centred.square().sum(-1, keepdim=True) / count
        learnt = centred * torch.rsqrt(variance + _SILENCE)
        missing = (_SILENCE / (variance + _SILENCE)).sum((1, 2)) / self.autoencoder.leave.out_channels
        return torch.cat([standard * own, learnt], 1), missing

    @torch.no_grad()
    def fixed_features(self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B C F"]:
        """Streams and log-mel as they are, before standardisation; F = T // hop + 1, zero past a clip's own frames.

        Raises EncoderError where a stream cannot hear a clip.
        """
        width = waveform.shape[-1] // self.mel.config.hop + 1
        parts = [stream(waveform, lengths, width).float() for stream in self.streams]
        if self.config.use_log_mel:
            parts.append(self.mel(waveform, lengths))
        if not parts:
            return waveform.new_zeros(len(waveform), 0, width)
        return torch.cat(parts, 1) * frame_mask(self.mel.frames(lengths), width)[:, None, :]

    @torch.no_grad()
    def fit_normalisation(self, batches: Iterable[Batch]) -> None:
        """Learn mean and deviation of each fixed channel over the own frames of training clips or windows of them.

        They are kept in buffers and travel with the weights. A deviation counts as at least a tenth of what is typical
        of its stream (root mean square). Raises OffkeyError where there is no clip to learn from.
        """
        total = torch.zeros(len(self.fixed_mean), dtype=torch.float64)
        squares = torch.zeros_like(total)
        shift: Tensor | None = None
        count = 0
        hop, kernel = self.mel.config.hop, self.mel.config.n_fft
        device = self.fixed_mean.device
        for batch in batches:
            lengths = batch.lengths.to(device)
            if batch.features is not None:
                fixed, frames = batch.features.to(device), own_frames(lengths, hop, kernel)
            else:
                fixed, frames = self.fixed_features(batch.waveform.to(device), lengths), self.mel.frames(lengths)
            own = fixed.transpose(1, 2)[frame_mask(frames, fixed.shape[-1])].double().cpu()
            if shift is None:
                shift = own.mean(0)  # squares of numbers near zero do not drown small deviations
            total += (own - shift).sum(0)
            squares += (own - shift).square().sum(0)
            count += len(own)
        if shift is None or count == 0:
            raise OffkeyError("the scale of the features cannot be fitted: there is no training clip to learn from")
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        floors = [
            part.square().mean().sqrt().mul(_SMALLEST_SHARE).clamp_min(_SMALLEST_STD).expand(len(part))
            for part in std.split(self.stream_channels)
        ]
        self.fixed_mean.copy_(mean + shift)
        self.fixed_std.copy_(torch.maximum(std, torch.cat([std[:0], *floors])))

    @property
    def encoder(self) -> Encoder | None:
        """The pretrained encoder among the streams, if there is one."""
        return next((stream.encoder for stream in self.streams if isinstance(stream, EncoderFrames)), None)

    def encoder_rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        """No weights: the encoder does not learn in this approach."""
        return iter(())
