"""A grouped convolution with a long kernel as products of matrices: what a CPU is quickest at.

Blocks of a signal of length n are taken apart into n/2 + 1 waves, where the convolution is a product a wave (overlap
and save). As kernels of BEATs have 128 taps and 48 channels a group, even the Fourier transforms are quickest as
products with matrices of cosines and sines; together they need less than half of the operations of the plain sum, and
run at the speed of a large product, where the plain sum of narrow groups reaches half of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LongConvolution"]

_BLOCKS = 32  # of a signal at a time: their waves then take about 100 MB


class LongConvolution:
    """Sums y[t, o] = Σ w[o, i, k] x[t + k − K // 2, i] over k and the channels i of o's group; no gradients.

    `weight` (C, C / groups, K) float32 of a layer with as many outputs as inputs. Its waves are found at once, which
    costs about as much as the plain sum does over 2 K moments.
    """

    def __init__(self, weight: Tensor, groups: int) -> None:
        self.channels, inner, self.kernel = weight.shape
        self.groups = groups
        self.size = 2 * self.kernel  # of a block
        self.step = self.size - self.kernel + 1  # outputs of a block that do not meet its other end
        self.waves = self.size // 2 + 1
        table = 2 * torch.pi * torch.arange(self.size, dtype=torch.float64) / self.size
        angle = torch.arange(self.waves)[:, None] * torch.arange(self.size) % self.size
        cosine, sine = table.cos()[angle], table.sin()[angle]
        self._apart = torch.cat([cosine, -sine]).to(weight.dtype)  # (2 waves, size): real parts, then imaginary ones
        share = torch.full((self.waves, 1), 2.0 / self.size, dtype=torch.float64)
        share[0], share[-1] = 1.0 / self.size, 1.0 / self.size  # these waves have no mirror image
        together = torch.cat([cosine * share, -sine * share]).T[: self.step]
        self._together = together.to(weight.dtype).contiguous()  # (step, 2 waves)
        shape = (self.waves * groups, self.channels // groups, inner)
        flat = weight.reshape(-1, self.kernel).T
        self._real, self._imaginary = (  # the conjugate of the kernel's waves: it is not mirrored
            torch.mm(wave[:, : self.kernel].to(weight.dtype), flat).view(shape).transpose(1, 2)
            for wave in (cosine, sine)
        )

    def __call__(self, signals: Sequence[Tensor]) -> list[Tensor]:
        """Signals (B, L, C), of any B and L each, to sums of the same shapes."""
        counts = [-(-signal.shape[1] // self.step) for signal in signals]
        before = self.kernel // 2
        blocks = []
        for signal, count in zip(signals, counts, strict=True):
            behind = (count - 1) * self.step + self.size - before - signal.shape[1]
            padded = F.pad(signal, (0, 0, before, behind))
            blocks.append(padded.unfold(1, self.size, self.step).transpose(2, 3).flatten(0, 1))
        heard = torch.cat([self._sums(part) for part in torch.cat(blocks).split(_BLOCKS)])
        found, start = [], 0
        for signal, count in zip(signals, counts, strict=True):
            clips = signal.shape[0]
            own = heard[start : start + clips * count].reshape(clips, count * self.step, self.channels)
            found.append(own[:, : signal.shape[1]])
            start += clips * count
        return found

    def _sums(self, blocks: Tensor) -> Tensor:
        """Blocks (N, size, C) to (N, step, C)."""
        count = len(blocks)
        waves = torch.matmul(self._apart, blocks)  # (N, 2 waves, C)
        # every wave and group is a product of its own: (waves groups, 2 N, inner), where nothing has to be moved
        rows = waves.view(2 * count, self.waves * self.groups, -1).transpose(0, 1)
        real = torch.bmm(rows, self._real).view(self.waves, self.groups, count, 2, -1)
        imaginary = torch.bmm(rows, self._imaginary).view(self.waves, self.groups, count, 2, -1)
        out = torch.empty_like(waves).view(count, 2, self.waves, self.groups, -1)
        real, imaginary = (part.permute(2, 3, 0, 1, 4) for part in (real, imaginary))
        torch.sub(real[:, 0], imaginary[:, 1], out=out[:, 0])
        torch.add(real[:, 1], imaginary[:, 0], out=out[:, 1])
        return torch.matmul(self._together, out.view(waves.shape))
