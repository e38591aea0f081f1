"""Features brought to mean 0 and standard deviation 1 on the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Standardise", "safe_scale"]


def safe_scale(deviation: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviations to divide by: those that are rounding noise beside `size` become 1.

    A feature that never moves on normal clips has no scale of its own; it is left in its own unit.
    """
    return np.where(deviation > 1e-12 * np.maximum(size, 1e-280), deviation, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Standardise:
    """`(x − mean) / scale` with `mean` and `scale` (D,)."""

    mean: NDArray[Any]
    scale: NDArray[Any]

    @classmethod
    def of(cls, points: NDArray[Any], wanted: bool = True) -> Standardise:
        """Learnt on `points` (N, D); changes nothing where not `wanted`."""
        width = points.shape[1]
        if not wanted:
            return cls(np.zeros(width), np.ones(width))
        return cls(points.mean(axis=0), safe_scale(points.std(axis=0), np.abs(points).max(axis=0)))

    def __call__(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """(N, D) float64; the points themselves where nothing changes."""
        if not self.mean.any() and (self.scale == 1.0).all():
            return np.asarray(points, dtype=np.float64)
        return (np.asarray(points, dtype=np.float64) - self.mean) / self.scale

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a scorer's state."""
        return {"standardise_mean": self.mean, "standardise_scale": self.scale}

    @classmethod
    def restore(cls, arrays: dict[str, NDArray[Any]]) -> Standardise:
        """From a scorer's state."""
        return cls(arrays["standardise_mean"], arrays["standardise_scale"])
