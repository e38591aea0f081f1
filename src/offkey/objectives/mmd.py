"""Maximum mean discrepancy: how differently two sets of embeddings are distributed."""

from __future__ import annotations

import torch
from torch import Tensor

from offkey.types import Float

__all__ = ["multi_kernel_mmd"]


def multi_kernel_mmd(
    x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], kernels: int = 5, factor: float = 2.0
) -> Float[Tensor, ""]:
    """Biased estimate of MMD² with the mean of `kernels` Gaussian kernels exp(−‖a−b‖² / h); in [0, 2].

    The middle bandwidth h is the mean squared distance over all pairs of different points, taken as a
    constant; the others are `factor` apart (Gretton et al., JMLR 2012; Long et al., "Deep adaptation
    networks", 2015). It is 0 for equal sets, and never negative since the kernel matrix is positive
    semi-definite. A set of fewer than two points says nothing of a distribution: the result is 0, with
    gradients of 0.

    >>> points = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    >>> float(multi_kernel_mmd(points, points))
    0.0
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        if len(x) < 2 or len(y) < 2:
            return (x.sum() + y.sum()) * 0.0
        both = torch.cat([x, y])
        # distances do not change under a shift, and small numbers cancel better below
        both = both - both.detach().mean(0)
        square = both.square().sum(1)
        distance = (square[:, None] + square[None, :] - 2.0 * both @ both.T).clamp_min(0.0)
        count = len(both)
        off_diagonal = 1.0 - torch.eye(count, device=x.device, dtype=distance.dtype)
        distance = distance * off_diagonal
        middle = distance.detach().sum() / (count * (count - 1))
        middle = middle.clamp_min(torch.finfo(middle.dtype).tiny * factor**kernels)
        powers = torch.arange(kernels, device=x.device) - kernels // 2
        bandwidths = middle * factor**powers
        kernel = torch.exp(-distance / bandwidths[:, None, None]).mean(0)
        within_x = kernel[: len(x), : len(x)].mean()
        within_y = kernel[len(x) :, len(x) :].mean()
        between = kernel[: len(x), len(x) :].mean()
        return (within_x + within_y - 2.0 * between).clamp_min(0.0)
