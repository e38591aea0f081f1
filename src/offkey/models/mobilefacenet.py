"""MobileFaceNet for spectrogram-like maps of any length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from offkey.models.activation import PReLU
from offkey.models.masking import ClipBatchNorm, frame_mask, single
from offkey.types import Bool, Float, Int

__all__ = ["DEFAULT_BOTTLENECKS", "MobileFaceNet", "pooling_matrix"]

DEFAULT_BOTTLENECKS: tuple[tuple[int, int, int, int], ...] = ((2, 128, 2, 2), (4, 128, 2, 2), (4, 128, 2, 2))
_STEM, _HEAD, _POOLED = 64, 512, (8, 20)  # 128 bins x 313 frames (10 s) shrink to 8 x 20 by themselves


def pooling_matrix(lengths: Int[Tensor, " B"], width: int, bins: int) -> Float[Tensor, "B {width} {bins}"]:
    """Weights that average a clip's first `lengths[b]` of `width` columns into `bins` bins.

    Bin j covers columns floor(j·n/bins) … ceil((j+1)·n/bins) − 1, as in torch's adaptive pooling; a clip with
    as many columns as bins gets the identity, one with fewer repeats its columns.

    >>> pooling_matrix(torch.tensor([2, 4]), 4, 2).tolist()
    [[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]], [[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]]]
    """
    length = lengths.clamp(1, width)[:, None]
    step = torch.arange(bins, device=lengths.device)
    start = step * length // bins
    end = ((step + 1) * length + bins - 1) // bins
    column = torch.arange(width, device=lengths.device)[:, None]
    inside = (column >= start[:, None, :]) & (column < end[:, None, :])
    return inside.float() / (end - start)[:, None, :]


class _Convolution(nn.Module):
    """Convolution, batch norm and (unless linear) PReLU; columns past a clip's end come out as zero."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        nn.init.normal_(self.convolution.weight, 0.0, math.sqrt(2.0 / (kernel * kernel * outputs)))
        self.norm = ClipBatchNorm(outputs)
        self.activation = nn.Identity() if linear else PReLU(outputs)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.activation(self._normal(x, mask))
        return x if mask is None else x * mask[:, None, None, :]

    def _normal(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.norm.training:
            return self.norm(self.convolution(x), mask)
        # kept statistics are a factor and an offset: inside the convolution they cost no pass over the map
        convolution, (factor, offset) = self.convolution, self.norm.kept()
        weight = convolution.weight * factor[:, None, None, None]
        return nn.functional.conv2d(
            x, weight, offset, convolution.stride, convolution.padding, groups=convolution.groups
        )


class _Bottleneck(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear; the input is added where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.stride = stride
        self.residual = stride == 1 and inputs == outputs
        self.expand = _Convolution(inputs, middle, 1)
        self.depthwise = _Convolution(middle, middle, 3, stride, groups=middle)
        self.project = _Convolution(middle, outputs, 1, linear=True)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        y = self.project(self.depthwise(self.expand(x, before), after), after)
        return x + y if self.residual else y


class MobileFaceNet(nn.Module):
    """Map (B, in_channels, M, F) to an embedding (B, embedding); M and F may be anything from 1 up.

    The layout follows Liu et al. (STgram-MFN, ICASSP 2022; DCASE 2022 Task 2 report), itself after Chen et
    al., "MobileFaceNets" (2018). There the last map must be 8 x 20; here each clip's own part of it is pooled
    to 8 x 20, which changes nothing at 128 bins and 306–320 frames.

    `settings` are stages (expansion, channels, blocks, stride); `width` multiplies all channels but the
    embedding.
    """

    def __init__(
        self,
        in_channels: int,
        embedding: int = 256,
        width: float = 1.0,
        settings: Sequence[tuple[int, int, int, int]] = DEFAULT_BOTTLENECKS,
    ) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, round(channels * width / 8) * 8)

        channels = scaled(_STEM)
        self.stem = _Convolution(in_channels, channels, 3, stride=2)
        self.stem_depthwise = _Convolution(channels, channels, 3, groups=channels)
        blocks = []
        for expansion, stage_channels, count, stride in settings:
            for index in range(count):
                outputs = scaled(stage_channels)
                blocks.append(_Bottleneck(channels, outputs, stride if index == 0 else 1, expansion))
                channels = outputs
        self.blocks: Sequence[_Bottleneck] = nn.ModuleList(blocks)  # type: ignore[assignment]
        head = scaled(_HEAD)
        self.head = _Convolution(channels, head, 1)
        self.global_weight = nn.Parameter(torch.empty(head, *_POOLED))
        nn.init.normal_(self.global_weight, 0.0, math.sqrt(2.0 / (_POOLED[0] * _POOLED[1])))
        self.global_norm = ClipBatchNorm(head)
        self.project = nn.Linear(head, embedding, bias=False)
        nn.init.normal_(self.project.weight, 0.0, math.sqrt(2.0 / embedding))
        self.project_norm = ClipBatchNorm(embedding)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU

    def forward(self, x: Float[Tensor, "B C M F"], frames: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B D"]:
        """Embed a batch of maps whose clip b owns the first `frames[b]` columns (None: all of them).

        Columns past a clip's own are zeroed after every convolution and left out of every average, so a
        padded clip gets the embedding of the same clip alone (in eval mode).
        """
        columns, mask = frames, None
        if columns is not None:
            mask = frame_mask(columns, x.shape[-1])
            x = x * mask[:, None, None, :]
        x = x.contiguous(memory_format=torch.channels_last)
        columns, mask = _halve(columns, mask, 2)
        x = self.stem(x, mask)
        x = self.stem_depthwise(x, mask)
        for block in self.blocks:
            columns, after = _halve(columns, mask, block.stride)
            x = block(x, mask, after)
            mask = after
        x = self.head(x, mask)
        x = _pool(x, columns)
        x = torch.einsum("bchw,chw->bc", x, self.global_weight.to(x.dtype))
        x = self.project(self.global_norm(x))
        return self.project_norm(single(x))


def _halve(
    columns: Tensor | None, mask: Bool[Tensor, "B W"] | None, stride: int
) -> tuple[Tensor | None, Tensor | None]:
    """Say which columns are a clip's own after a padded 3-wide convolution of this stride."""
    if columns is None or mask is None or stride == 1:
        return columns, mask
    # output column j is centred on input column j·stride, so it is the clip's own while that one is
    return (columns + stride - 1) // stride, mask[:, ::stride]


def _pool(x: Tensor, columns: Tensor | None) -> Tensor:
    """Average each clip's own part of (B, C, H, W) to 8 x 20 bins."""
    # matrix products rather than adaptive_avg_pool2d: its backward pass on a GPU is not reproducible
    height, width = x.shape[2:]
    if height != _POOLED[0]:
        tall = torch.full((1,), height, device=x.device)
        x = torch.einsum("bchw,hk->bckw", x, pooling_matrix(tall, height, _POOLED[0])[0].to(x.dtype))
    if columns is not None or width != _POOLED[1]:
        if columns is None:
            columns = torch.full((x.shape[0],), width, device=x.device)
        x = torch.einsum("bchw,bwk->bchk", x, pooling_matrix(columns, width, _POOLED[1]).to(x.dtype))
    return x
