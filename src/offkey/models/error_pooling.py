"""Reconstruction errors of a clip's frames -> one number a clip."""

from __future__ import annotations

import torch
from torch import Tensor

from offkey.models.config import Pooling
from offkey.models.masking import frame_mask
from offkey.types import Float, Int

__all__ = ["pool_errors"]


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
