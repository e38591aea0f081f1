"""An encoder's patches of a clip over time to one vector a band: mean, GeM, RDP, and GeM with RDP's weights.

Source: K. Wilkinghoff, S. Yadav, Z.-H. Tan, Temporal Pooling Strategies for Training-Free Anomalous Sound Detection
with Self-Supervised Audio Embeddings, arXiv 2603.04605 (2026); GeM from F. Radenović, G. Tolias, O. Chum, TPAMI 2019.

With patches x_t of one band over a clip's own T moments:

    mean     Σ x_t / T
    GeM      (Σ max(x_t, 0)^p / T)^(1/p), each dimension by itself: 1 is the mean of what is above zero, ∞ the maximum
    RDP      Σ w_t x_t,  w_t ∝ (1 + d_t / max d)^γ,  d_t = |x_t − mean|: 0 is the mean
    RDP+GeM  (Σ w_t max(x_t, 0)^p)^(1/p)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from offkey.models.config import PatchPooling
from offkey.models.masking import frame_mask
from offkey.types import Float, Int

__all__ = ["deviation_weights", "pool_patches", "power_mean"]


def pool_patches(
    grid: Float[Tensor, "B Pt Pf D"],
    counts: Int[Tensor, " B"],
    pooling: PatchPooling = "rdp+gem",
    power: float = 3.0,
    gamma: float = 9.0,
    negatives: Literal["zero", "kept"] = "zero",
) -> Float[Tensor, "B Pf D"]:
    """Pool patches over time, each band by itself; the first `counts` (B,) patches are a clip's own, at least one.

    `power` > 0 (GeM), `gamma` ≥ 0 (RDP). What lies past a clip's own patches is not looked at.
    """
    own = frame_mask(counts, grid.shape[1])[:, :, None]  # (B, Pt, 1)
    # a clip is its own patches alone: whatever stands behind them, also what is no number
    grid = grid.masked_fill(~own[..., None], 0.0)
    even = own.to(grid.dtype) / counts[:, None, None]
    weights = deviation_weights(grid, own, even, gamma) if "rdp" in pooling else even
    if "gem" in pooling:
        return power_mean(grid, weights, power, negatives)
    return (grid * weights[..., None]).sum(1)


def deviation_weights(
    grid: Float[Tensor, "B Pt Pf D"], own: Tensor, even: Tensor, gamma: float
) -> Float[Tensor, "B Pt Pf"]:
    """RDP's weights, which sum to 1 over a clip's own moments; even ones where all moments are alike.

    `own` (B, Pt, 1) marks a clip's own moments, `even` (B, Pt, 1) is 1 / T there and 0 behind.
    """
    mean = (grid * even[..., None]).sum(1, keepdim=True)
    distance = torch.linalg.vector_norm(grid - mean, dim=-1) * own
    farthest = distance.amax(1, keepdim=True)
    # what is left of equal patches after the mean is taken off is rounding
    size = torch.linalg.vector_norm(mean, dim=-1)
    relative = distance / farthest.clamp_min(torch.finfo(grid.dtype).tiny) * (farthest > 1e-5 * size)
    raised = (1.0 + relative).pow(gamma) * own
    return raised / raised.sum(1, keepdim=True)


def power_mean(
    grid: Float[Tensor, "B Pt Pf D"], weights: Tensor, power: float, negatives: Literal["zero", "kept"] = "zero"
) -> Float[Tensor, "B Pf D"]:
    """(Σ w_t x_t^p)^(1/p) with weights (B, Pt, Pf or 1) that sum to 1, each dimension by itself.

    Numbers below zero count as zero, as published. With `negatives` "kept" they count as −|x|^p, and the root of a
    negative sum is negative: at p = 1 that is the mean.
    """
    x = grid if negatives == "kept" else grid.clamp_min(0.0)
    # in units of the largest, so that no power overflows or vanishes
    largest = x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(grid.dtype).tiny)
    share = x / largest
    total = (share.sign() * share.abs().pow(power) * weights[..., None]).sum(1)
    return largest[:, 0] * total.sign() * total.abs().pow(1.0 / power)
