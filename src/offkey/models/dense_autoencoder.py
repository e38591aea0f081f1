"""The autoencoder of the DCASE Task 2 baselines of 2023 to 2026, with both of its scores.

N. Harada, D. Niizumi, Y. Ohishi, D. Takeuchi, M. Yasuda: First-shot anomaly detection for machine condition
monitoring: a domain generalization baseline, EUSIPCO 2023, 191-195. Where the paper and the organisers' code differ,
the code is followed, for its numbers are those that everybody compares with; `benchmarks/baseline_parity.py` shows
that ours are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from offkey.audio.mel import LogMel
from offkey.models.config import BaselineConfig
from offkey.models.masking import ClipBatchNorm, frame_mask, single
from offkey.models.windows import own_frames
from offkey.types import Batch, Bool, Float, Int, OffkeyError, Representation

__all__ = ["FLOOR_DB", "DenseAutoencoder", "SelectiveMahalanobis"]

FLOOR_DB = -156.53559774527022
"""The official floor of a log-mel level, 10 log10 of float64's epsilon; the log-mel given should have it."""

_MOMENTUM, _EPS = 0.01, 1e-3
_SMALLEST_SHARE, _SMALLEST_VARIANCE = 1e-10, 1e-12  # of the mean variance; in dB²


class DenseAutoencoder(nn.Module):
    """Batch -> Representation: every `frames` neighbouring log-mel frames are one vector, rebuilt through 8 numbers.

    Vector v holds frames v, v + 1, … one after the other, all bands of each: V = F − frames + 1 vectors a clip. A
    clip of fewer frames is held on its last one until it gives one vector. `embedding` (B, latent) is the mean of the
    latent vectors, `frame_error` (B, V) the mean squared error of each, in dB², zero past a clip's own.
    Levels are taken as they are, in dB. Where the batch has `features` (B, M, F), they are the levels of windows. In
    training mode every own vector of the batch counts once in the normalisations.
    """

    covariance: Tensor

    def __init__(self, mel: LogMel, config: BaselineConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or BaselineConfig()
        self.mel = mel
        bands = mel.config.n_mels
        size = bands * config.frames
        hidden = [config.width] * config.layers
        self.encoder = nn.Sequential(*_blocks([size, *hidden, config.latent]))
        self.decoder = nn.Sequential(*_blocks([config.latent, *hidden]), nn.Linear(config.width, size))
        # of residuals, (source and target, M, M); zero until `fit_residuals`
        self.register_buffer("covariance", torch.zeros(2, bands, bands, dtype=torch.float64))

    def error_frames(self, lengths: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
        """How many vectors clips of `lengths` samples have, at least 1."""
        return (self.mel.frames(lengths) - self.config.frames + 1).clamp_min(1)

    def forward(self, batch: Batch) -> Representation:
        """Rebuild clips of any lengths; in eval mode a clip's answer does not depend on its company."""
        vectors, own = self._vectors(batch)
        latent = self.encoder(vectors)
        error = (self.decoder(latent) - vectors).square().mean(1)
        mean = _spread(latent.float(), own).sum(1) / own.sum(1, keepdim=True)
        return Representation(mean, _spread(error, own))

    @torch.no_grad()
    def error_map(self, batch: Batch) -> Float[Tensor, "B M F"]:
        """Squared error of every band and mel frame in dB², averaged over the vectors that hold the frame."""
        difference, own = self._difference(batch)
        squares = _spread(difference.square(), own).permute(0, 3, 1, 2)  # (B, M, V, frames)
        held = self.config.frames
        width = own.shape[1]
        total = squares.new_zeros(len(own), squares.shape[1], width + held - 1)
        count = squares.new_zeros(len(own), 1, width + held - 1)
        for place in range(held):
            total[..., place : place + width] += squares[..., place]
            count[..., place : place + width] += own[:, None]
        frames = self._frames(batch)
        inside = frame_mask(frames, total.shape[-1])[:, None, :]
        return (total / count.clamp_min(1) * inside)[..., : max(int(frames.max()), 1)]

    # ---- selective Mahalanobis: residuals, a band each, measured by how they vary in either domain

    @torch.no_grad()
    def fit_residuals(self, batches: Iterable[Batch]) -> None:
        """Learn how residuals of source and of target clips vary, from labelled batches as training saw them.

        As the official code has it: residuals are single frames (M bands), centred on the mean of their domain in their
        batch, and the sum of their outer products is divided by the number of VECTORS less one. Clips of unknown
        domain count as source. A domain without clips borrows the other's covariance. Directions without variance
        are given a very small one. Raises OffkeyError where there is nothing to learn from, or no labels.
        """
        sums = torch.zeros_like(self.covariance)
        counts = [0, 0]
        training = self.training
        self.eval()
        for batch in batches:
            if batch.labels is None:
                raise OffkeyError("residuals are learnt a domain each: load the batches with a label space")
            difference, own = self._difference(batch)
            target = (batch.labels.domain.to(own.device) == 1)[own.nonzero()[:, 0]]  # a vector each
            for number, members in enumerate((~target, target)):
                rows = difference[members].double().flatten(0, 1)
                if len(rows):
                    rows = rows - rows.mean(0)
                    sums[number] += rows.T @ rows
                    counts[number] += int(members.sum())
        self.train(training)
        if not any(counts):
            raise OffkeyError("residuals cannot be learnt: there is no training clip")
        known = [number for number in (0, 1) if counts[number]]
        for number in (0, 1):
            origin = number if counts[number] else known[0]
            self.covariance[number] = _positive(sums[origin] / max(counts[origin] - 1, 1))

    @torch.no_grad()
    def mean_residual_distances(self, batch: Batch) -> Float[Tensor, "B 2"]:
        """Squared Mahalanobis length of each clip's MEAN residual, by source's and by target's covariance, float64.

        The official score: its code averages the products of all pairs of residuals of a clip, and that is this.
        Raises OffkeyError before `fit_residuals`.
        """
        difference, own = self._difference(batch)
        total = _spread(difference.double().sum(1), own).sum(1)  # (B, M)
        return self._squared_lengths(total / (own.sum(1, keepdim=True) * self.config.frames)).T

    @torch.no_grad()
    def distances(self, batch: Batch) -> Float[Tensor, "B 2 V"]:
        """Squared Mahalanobis length of each vector's residuals by source's and target's covariance, float64.

        The mean over the frames of a vector; zero past a clip's own vectors. Raises OffkeyError before `fit_residuals`.
        """
        difference, own = self._difference(batch)
        lengths = self._squared_lengths(difference.double().flatten(0, 1))
        by_vector = lengths.reshape(2, -1, self.config.frames).mean(2)
        return torch.stack([_spread(row, own) for row in by_vector], dim=1)

    def _squared_lengths(self, points: Float[Tensor, "N M"]) -> Float[Tensor, "2 N"]:
        if not self.covariance.any():
            raise OffkeyError("it is not known how residuals vary: call fit_residuals with training batches first")
        root = torch.linalg.cholesky(self.covariance)
        white = torch.linalg.solve_triangular(root, points.T.expand(2, -1, -1), upper=False)
        return white.square().sum(1)

    def _difference(self, batch: Batch) -> tuple[Float[Tensor, "N K M"], Bool[Tensor, "B V"]]:
        """Input less reconstruction of all own vectors, by frame and band."""
        vectors, own = self._vectors(batch)
        difference = single(vectors - self.decoder(self.encoder(vectors)))
        return difference.reshape(len(vectors), self.config.frames, -1), own

    def _vectors(self, batch: Batch) -> tuple[Float[Tensor, "N D"], Bool[Tensor, "B V"]]:
        """All own vectors of the batch, clip after clip, and where in the batch they stand."""
        levels = self.mel(batch.waveform.float(), batch.lengths) if batch.features is None else batch.features.float()
        frames, held = self._frames(batch), self.config.frames
        if bool((frames < held).any()):
            place = torch.arange(max(levels.shape[-1], held), device=levels.device).minimum(frames[:, None] - 1)
            levels = levels.gather(2, place[:, None, :].expand(-1, levels.shape[1], -1))
        stacks = levels.unfold(2, held, 1).permute(0, 2, 3, 1)  # (B, V, frames, M)
        own = frame_mask((frames - held + 1).clamp_min(1), stacks.shape[1])
        return stacks[own].flatten(1), own

    def _frames(self, batch: Batch) -> Int[Tensor, " B"]:
        """Own frames of each clip or window."""
        if batch.features is None:
            return self.mel.frames(batch.lengths)
        return own_frames(batch.lengths, self.mel.config.hop, self.mel.config.n_fft)


class SelectiveMahalanobis(nn.Module):
    """A view of a clip: its selective Mahalanobis score, the smaller of the two domains', `embedding` (B, 1) float32.

    Squared, of no unit; which of two ways it is pooled over the clip, `mahalanobis` of the network's settings says.
    """

    def __init__(self, network: DenseAutoencoder) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, batch: Batch) -> Representation:
        """Measure a batch; higher is stranger. Raises OffkeyError before `fit_residuals`."""
        if self.network.config.mahalanobis == "residual":
            by_domain = self.network.mean_residual_distances(batch)
        else:
            counts = self.network.error_frames(batch.lengths)
            by_domain = self.network.distances(batch).sum(2) / counts[:, None]
        return Representation(by_domain.amin(1, keepdim=True).float())


def _blocks(sizes: list[int]) -> list[nn.Module]:
    """Linear, normalisation, ReLU from each size to the next."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        # unlike torch's own it takes a batch of a single vector
        layers += [nn.Linear(before, after), ClipBatchNorm(after, _EPS, _MOMENTUM), nn.ReLU()]
    return layers


def _spread(rows: Float[Tensor, "N ..."], own: Bool[Tensor, "B V"]) -> Float[Tensor, "B V ..."]:
    """Put the rows of own vectors back to where they stand in the batch; zero elsewhere."""
    empty = rows.new_zeros(*own.shape, *rows.shape[1:])
    return empty.index_put((own,), rows)


def _positive(covariance: Float[Tensor, "M M"]) -> Float[Tensor, "M M"]:
    """Raise variances that vanish, so that there is an inverse; others are left to the last bit."""
    values, directions = torch.linalg.eigh(covariance)
    floor = max(_SMALLEST_SHARE * float(values.mean()), _SMALLEST_VARIANCE)
    if float(values[0]) >= floor:
        return covariance
    return (directions * values.clamp_min(floor)) @ directions.T
