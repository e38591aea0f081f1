"""Reconstruction errors of a clip's frames -> one number a clip."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from offkey.models.dense_config import Pooling
from offkey.models.masking import frame_mask
from offkey.types import Batch, Float, Int, OffkeyError, Representation

__all__ = ["PooledError", "pool_errors"]


def pool_errors(
    error: Float[Tensor, "B F"], frames: Int[Tensor, " B"], pooling: Pooling = "mean", top: int = 10
) -> Float[Tensor, " B"]:
    """(B,) the mean, the largest, or the mean of the `top` largest errors of each clip's own first `frames`.

    A clip of fewer than `top` frames gives the mean of all it has.

    >>> pool_errors(torch.tensor([[1.0, 3.0, 2.0, 9.0]]), torch.tensor([3]), "top", 2).tolist()
    [2.5]
    """
    own = frame_mask(frames, error.shape[1])
    if pooling == "mean":
        return error.mul(own).sum(1) / frames
    ordered = error.masked_fill(~own, -torch.inf).sort(dim=1, descending=True).values
    if pooling == "max":
        return ordered[:, 0]
    counts = frames.clamp_max(top)
    return ordered.masked_fill(~frame_mask(counts, error.shape[1]), 0.0).sum(1) / counts


class PooledError(nn.Module):
    """A view of a clip: its reconstruction error as the one number of an embedding, `embedding` (B, 1) float32.

    `network` maps a Batch to a Representation with `frame_error`; `counts` tells how many of these errors are a clip's
    own, from lengths in samples. Raises OffkeyError for a network that reconstructs nothing.
    """

    def __init__(
        self, network: nn.Module, counts: Callable[[Tensor], Tensor], pooling: Pooling = "mean", top: int = 10
    ) -> None:
        super().__init__()
        self.network = network
        self.counts = counts
        self.pooling: Pooling = pooling
        self.top = top

    @torch.no_grad()
    def forward(self, batch: Batch) -> Representation:
        """Pool the errors of a batch; higher is stranger."""
        heard: Representation = self.network(batch)
        if heard.frame_error is None:
            raise OffkeyError("this network reconstructs nothing, so there is no error to score: choose another view")
        pooled = pool_errors(heard.frame_error.float(), self.counts(batch.lengths), self.pooling, self.top)
        return Representation(pooled[:, None], heard.frame_error)
