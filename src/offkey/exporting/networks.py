"""The networks of a detector as modules that can be traced: waveforms in, what the views show out.

A new kind of network gets a case in `network_graph`, whose module takes (waveform (B, T), lengths (B,)) and returns
`Heard`. Modules are copies; the detector stays as it is. They must be traced with clips of unequal lengths.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from offkey.exporting.encoders import encoder_graph
from offkey.exporting.front import MelGraph, ResampleGraph, Slope, own, parted
from offkey.exporting.problem import ExportError
from offkey.models.dense_autoencoder import DenseAutoencoder
from offkey.models.discriminative import Discriminative
from offkey.models.encoder_frames import EncoderFrames
from offkey.models.reconstructive import Reconstructive
from offkey.models.retrieval import Retrieval
from offkey.models.windows import window_samples
from offkey.types import Batch

__all__ = ["Heard", "network_graph", "shortest_samples"]


class Heard(NamedTuple):
    """`embedding` (B, D); `errors` (B, F) a frame, of which `counts` (B,) are a clip's own; `residual` (B, 1)."""

    embedding: Tensor
    errors: Tensor | None = None
    counts: Tensor | None = None
    residual: Tensor | None = None


def network_graph(network: nn.Module) -> nn.Module:
    """The form of a detector's network that can be traced; raises ExportError where there is none yet."""
    match network:
        case Discriminative():
            return _Discriminative(network)
        case Reconstructive():
            return _Reconstructive(network)
        case DenseAutoencoder():
            return _DenseAutoencoder(network)
        case Retrieval():
            return _Retrieval(network)
    raise ExportError(
        f"a network of the kind {type(network).__name__} cannot be exported yet; score with the detector itself"
    )


def shortest_samples(network: nn.Module | None) -> int:
    """Samples that a batch must be padded to, at the network's rate, so that an encoder has something to hear."""
    found = [1]
    for module in network.modules() if network is not None else ():
        if isinstance(module, EncoderFrames | Retrieval):
            rates = module.resample
            found.append(-(-module.encoder.shortest * rates.rate_in // rates.rate_out))
    return max(found)


def _traceable(network: nn.Module) -> nn.Module:
    """A copy whose front ends are in plain operations and whose encoders keep nothing on disk."""
    # a cache holds locks, which cannot be copied; None is put into its place
    caches = {id(part.cache): None for part in network.modules() if isinstance(part, EncoderFrames | Retrieval)}
    made = copy.deepcopy(network, caches).eval().requires_grad_(False)
    mel = getattr(made, "mel", None)
    if mel is not None:
        made.add_module("mel", MelGraph(mel))
    for module in list(made.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.PReLU):
                module.add_module(name, Slope(part))
        if isinstance(module, EncoderFrames | Retrieval):
            module.add_module("resample", ResampleGraph(module.resample))
            module.add_module("encoder", encoder_graph(module.encoder))
    return made


class _Retrieval(nn.Module):
    """Layers of a frozen encoder, pooled."""

    network: Retrieval

    def __init__(self, network: Retrieval) -> None:
        super().__init__()
        self.shortest = shortest_samples(network)
        self.add_module("network", _traceable(network))

    def forward(self, waveform: Tensor, lengths: Tensor) -> Heard:
        network = self.network
        lengths = lengths.clamp_min(self.shortest)
        heard, own = network.resample(waveform, lengths), network.resample.lengths(lengths)
        grids = network.encoder.layers(heard, own, network.layers)
        return Heard(network.pool(grids, [network.encoder.patch_counts(own, layer) for layer in network.layers]))


def _batch(waveform: Tensor, lengths: Tensor) -> Batch:
    return Batch(waveform, lengths, None, torch.zeros_like(lengths))


class _Discriminative(nn.Module):
    def __init__(self, network: Discriminative) -> None:
        super().__init__()
        self.network = _traceable(network)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Heard:
        return Heard(self.network(_batch(waveform, lengths)).embedding)


class _Reconstructive(nn.Module):
    """Every clip is cut into as many windows as the longest; those past its own count nowhere."""

    network: Reconstructive

    def __init__(self, network: Reconstructive) -> None:
        super().__init__()
        self.add_module("network", _traceable(network))

    def forward(self, waveform: Tensor, lengths: Tensor) -> Heard:
        network = self.network
        mel, width = network.mel, network.config.window
        hop, kernel = mel.config.hop, mel.config.n_fft
        frames = mel.frames(lengths)
        fixed = network.fixed_features(waveform, lengths)  # (B, C, F)
        total = waveform.shape[1] // hop + 1
        slots = (total + width - 1) // width
        counts = torch.div(frames + width - 1, width, rounding_mode="floor")
        number = torch.arange(slots, device=waveform.device)[None, :]
        last = (frames - width).clamp_min(0)  # first frame of a clip's last window, which ends with the clip
        start = torch.minimum(number * width, last[:, None])  # (B, K)
        held = frames.clamp_max(width)
        inside = own(held, width)  # (B, W), the same in all windows of a clip
        columns = start[..., None] + torch.arange(width, device=waveform.device)
        reached = columns.flatten(1).clamp_max(fixed.shape[2] - 1)[:, None, :].expand(-1, fixed.shape[1], -1)
        cut = parted(fixed.gather(2, reached), 2, slots, width).transpose(1, 2)  # (B, K, C, W)
        cut = (cut * inside[:, None, None, :]).flatten(0, 1)
        samples = waveform.new_zeros(1, 1)
        if network.tgram is not None:
            size = window_samples(width, hop, kernel)
            padded = waveform * own(lengths, waveform.shape[1])
            padded = nn.functional.pad(padded, (kernel // 2, size + hop))
            place = (start * hop)[..., None] + torch.arange(size, device=waveform.device)
            samples = padded.gather(1, place.flatten(1)).reshape(-1, size)
        mask = inside[:, None, :].expand(-1, slots, -1).flatten(0, 1)
        target, missing = network.window_features(samples, cut, mask)
        rebuilt, latent = network.autoencoder(target)
        error = ((rebuilt - target).square().mean(1) + missing[:, None]) * mask
        error = parted(error, 0, -1, slots)  # (B, K, W)
        real = number < counts[:, None]
        embedding = (parted(latent, 0, -1, slots) * real[..., None]).sum(1) / counts[:, None]

        # A frame lies in the window that its number says, and may lie in the last one too, which was moved back.
        frame = torch.arange(total, device=waveform.device)[None, :]
        ends = (counts - 1)[:, None]
        regular = torch.div(frame, width, rounding_mode="floor").expand(frames.shape[0], -1)
        first = error.flatten(1).gather(1, (regular * width + frame % width).clamp_max(slots * width - 1))
        moved = frame - last[:, None]
        second = error.flatten(1).gather(1, (ends * width + moved.clamp(0, width - 1)))
        in_first = (regular < ends).float()
        in_second = ((moved >= 0) & (moved < held[:, None])).float()
        mean = (first * in_first + second * in_second) / (in_first + in_second).clamp_min(1)
        return Heard(embedding, mean * own(frames, total), frames)


class _DenseAutoencoder(nn.Module):
    network: DenseAutoencoder
    inverse: Tensor

    def __init__(self, network: DenseAutoencoder) -> None:
        super().__init__()
        self.add_module("network", _traceable(network))
        self.measured = bool(network.covariance.any())
        inverse = network.covariance
        if self.measured:
            inverse = torch.linalg.inv(torch.linalg.cholesky(network.covariance)).transpose(1, 2)
        self.register_buffer("inverse", inverse.contiguous())  # (2, M, M), whitens rows from the right

    def forward(self, waveform: Tensor, lengths: Tensor) -> Heard:
        network = self.network
        held = network.config.frames
        frames = network.mel.frames(lengths)
        levels = nn.functional.pad(network.mel(waveform, lengths), (0, held))
        # a clip of fewer frames is held on its last one until it gives one vector
        place = torch.arange(levels.shape[2], device=levels.device).minimum(
            torch.maximum(frames - 1, frames.new_zeros(1))[:, None]
        )
        levels = levels.gather(2, place[:, None, :].expand(-1, levels.shape[1], -1))
        stacks = framed_columns(levels, held)  # (B, V, held, M)
        counts = (frames - held + 1).clamp_min(1)
        mask = own(counts, stacks.shape[1])
        vectors = stacks.flatten(2)
        latent = network.encoder(vectors.flatten(0, 1))
        difference = vectors - parted(network.decoder(latent), 0, -1, stacks.shape[1])
        errors = difference.square().mean(2) * mask
        embedding = (parted(latent, 0, -1, stacks.shape[1]) * mask[..., None]).sum(1) / counts[:, None]
        residual = None
        if self.measured:
            residual = self._residual(parted(difference, 2, held, -1).double(), mask, counts)
        return Heard(embedding, errors, counts, residual)

    def _residual(self, difference: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
        """(B, 1) the view `residual`, of differences (B, V, held, M)."""
        if self.network.config.mahalanobis == "residual":
            total = (difference.sum(2) * mask[..., None]).sum(1)
            mean = total / (counts[:, None] * self.network.config.frames)
            by_domain = (mean[None] @ self.inverse).square().sum(2)
        else:
            white = difference[None] @ self.inverse[:, None, None]
            by_vector = white.square().sum(4).mean(3)  # (2, B, V)
            by_domain = (by_vector * mask).sum(2) / counts
        return by_domain.amin(0)[:, None].float()


def framed_columns(x: Tensor, size: int) -> Tensor:
    """(B, M, F) to (B, F - size, size, M), every `size` neighbouring columns, but for the last."""
    count = x.shape[2] - size
    places = torch.arange(count, device=x.device)[:, None] + torch.arange(size, device=x.device)
    return x.transpose(1, 2)[:, places]
