"""Another sampling rate for whole batches, inside a network: any device, differentiable, nothing to save.

Method: an output sample is a sum of the inputs around it, weighted by a sinc under a Kaiser window (Smith, "Digital
Audio Resampling"). With rates in the ratio `up : down` the weights repeat every `up` outputs, during which the
input moves on by `down`; so one convolution with stride `down` and a channel for each of the `up` outputs
does all of it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offkey.types import Float, Int, OffkeyError

__all__ = ["Resample"]

_EDGE = 0.475  # of the lower rate, the middle of the slope from the pass band (0.45) to the stop band (0.5)
_REACH = 46.0  # samples at the lower rate that the window reaches to either side
_BETA = 7.0  # of the Kaiser window: side lobes below -70 dB
_ROW = 64  # outputs that one step of the convolution makes, at least: a matrix product needs something to chew
_LARGEST = 1 << 24  # weights; rates without a common divisor would need billions


class Resample(nn.Module):
    """Waveforms (B, T) at `rate_in` hertz to (B, ceil(T · rate_out / rate_in)) at `rate_out`.

    Flat within 0.01 dB up to 0.45 of the lower rate, and more than 70 dB down from 0.5 on: neither aliases nor
    images. Beyond a clip's ends it hears zeros, therefore a padded clip gets the samples of the clip alone.
    Equal rates change nothing. Raises OffkeyError for rates below 1 and for pairs with hardly a common divisor.
    """

    weight: Tensor

    def __init__(self, rate_in: int, rate_out: int) -> None:
        super().__init__()
        if min(rate_in, rate_out) < 1:
            raise OffkeyError(f"cannot resample from {rate_in} to {rate_out} Hz: rates are at least 1 Hz")
        common = math.gcd(rate_in, rate_out)
        self.rate_in, self.rate_out = rate_in, rate_out
        self.up, self.down = rate_out // common, rate_in // common
        periods = math.ceil(_ROW / self.up)
        self._outputs, self._step = periods * self.up, periods * self.down
        slow = min(rate_out / rate_in, 1.0)  # the lower rate in units of the input's
        self._reach = math.ceil(_REACH / slow)
        if self._outputs * (2 * self._reach + self._step) > _LARGEST:
            raise OffkeyError(
                f"{rate_in} and {rate_out} Hz have too small a common divisor to resample in a network; "
                "resample the recordings beforehand"
            )
        taps = _taps(self._outputs, self._step, self.down / self.up, self._reach, slow)
        self.register_buffer("weight", torch.from_numpy(taps).float(), persistent=False)

    def lengths(self, lengths: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
        """Samples at the new rate of clips of `lengths` samples, ceil(n · rate_out / rate_in)."""
        return (lengths * self.up + self.down - 1) // self.down

    def forward(self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B S"]:
        """Resample; `lengths` (B,) are the real samples of each clip, what lies behind them counts as zero.

        Output past a clip's own `self.lengths(lengths)` samples is zero. Comes out as float32, or float64
        if that went in.
        """
        x = waveform if waveform.dtype == torch.float64 else waveform.float()
        if lengths is not None:
            x = _cut(x, lengths)
        if self.up == self.down:
            return x
        samples = -(-x.shape[1] * self.up // self.down)
        steps = -(-samples // self._outputs)
        behind = (steps - 1) * self._step + self.weight.shape[1] - self._reach - x.shape[1]
        x = nn.functional.pad(x, (self._reach, max(behind, 0)))
        with torch.autocast(x.device.type, enabled=False):
            x = x.unfold(1, self.weight.shape[1], self._step)[:, :steps] @ self.weight.to(x.dtype).T
        x = x.flatten(1)[:, :samples]
        return x if lengths is None else _cut(x, self.lengths(lengths))


def _cut(x: Tensor, lengths: Tensor) -> Tensor:
    return x.masked_fill(torch.arange(x.shape[1], device=x.device) >= lengths[:, None], 0.0)


def _taps(outputs: int, step: int, move: float, reach: int, slow: float) -> NDArray[np.float64]:
    """Weights (outputs, step + 2·reach); output p lies at input `p * move`, column c is input c - reach."""
    away = np.arange(outputs)[:, None] * move - (np.arange(step + 2 * reach) - reach)
    inside = np.clip(1.0 - (away * slow / _REACH) ** 2, 0.0, None)
    window = np.where(inside > 0.0, np.i0(_BETA * np.sqrt(inside)) / np.i0(_BETA), 0.0)
    taps = np.sinc(2.0 * _EDGE * slow * away) * window
    scaled: NDArray[np.float64] = taps / taps.sum(1, keepdims=True)  # a constant stays one, to the last bit or so
    return scaled
