"""Layers that look only at a clip's own frames, so that padding never changes an answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from offkey.types import Bool, Float, Int

__all__ = ["ClipBatchNorm", "FrameNorm", "frame_mask", "kept_statistics", "single"]


def frame_mask(frames: Int[Tensor, " B"], width: int) -> Bool[Tensor, "B {width}"]:
    """Mark each clip's own frames: `mask[b, f] = f < frames[b]`.

    >>> frame_mask(torch.tensor([1, 3]), 3).int().tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    return torch.arange(width, device=frames.device) < frames[:, None]


def single(x: Tensor) -> Tensor:
    """Widen half precision to float32; float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class FrameNorm(nn.Module):
    """Normalise every channel of every clip over its own frames; one gain and offset a channel.

    Takes the place of the origin's LayerNorm over exactly 313 frames (STgram-MFN), which fits one clip
    length.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "B C F"], mask: Bool[Tensor, "B F"] | None = None) -> Float[Tensor, "B C F"]:
        """Normalise `x`; frames outside `mask` come out as zero; without a mask every frame counts."""
        wide = single(x)  # sums over long clips overflow half precision
        if mask is None:
            variance, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
        else:
            own = mask[:, None, :]
            count = own.sum(-1, keepdim=True).clamp_min(1)
            mean = wide.mul(own).sum(-1, keepdim=True) / count
            variance = (wide - mean).mul(own).square().sum(-1, keepdim=True) / count
        scale = self.gain[:, None] * torch.rsqrt(variance + self.eps)
        result = (wide - mean) * scale + self.offset[:, None]
        if mask is not None:
            result = result * mask[:, None, :]
        return result.to(x.dtype)


class ClipBatchNorm(nn.Module):
    """Batch normalisation whose training statistics leave padding out; otherwise as `nn.BatchNorm2d`.

    A batch with a single value a channel has no variance: the running statistics serve it, where torch's
    own layers raise. Takes (B, C) or (B, C, H, W).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.eps = eps
        self.momentum = momentum

    def kept(self) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """Factor and offset (C,) that the running statistics come to in eval mode: x · factor + offset."""
        factor = self.weight * torch.rsqrt(self.running_var + self.eps)
        return factor, self.bias - self.running_mean * factor

    def forward(self, x: Float[Tensor, "B C *HW"], mask: Bool[Tensor, "B W"] | None = None) -> Float[Tensor, "B C *HW"]:
        """Normalise `x` by channel. Columns outside `mask` are not counted; what they become is undefined."""
        if not self.training or mask is None or x.ndim != 4:
            fresh = self.training and x.numel() > x.shape[1]
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, fresh, self.momentum, self.eps
            )
        wide = single(x)
        own = mask[:, None, None, :]
        count = (mask.sum() * x.shape[2]).clamp_min(1)
        mean = wide.mul(own).sum((0, 2, 3)) / count
        variance = (wide - mean[:, None, None]).mul(own).square().sum((0, 2, 3)) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp_min(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (wide * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)


@contextlib.contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norms in `module` as they are; in training they still use the batch's."""
    norms = [part for part in module.modules() if isinstance(part, ClipBatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
