"""Several scorers as one: every score becomes a normal quantile, then a weighted mean is taken.

Scores of different scorers have different units and tails. What they share is their rank among normal clips:
the place of a score among cross-fitted normal scores, expressed as a quantile of the standard normal
distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offkey.scoring.base import ScoringError
from offkey.types import Float

__all__ = ["NormalQuantile", "blend"]


@dataclass(frozen=True, slots=True, eq=False)
class NormalQuantile:
    """A strictly increasing map from scores to quantiles of the standard normal distribution.

    `knots` (K,) distinct normal scores, ascending; `quantiles` (K,) Φ⁻¹((average rank − ½) / n) of each;
    linear between the knots. Beyond them it goes on along the straight line of least squares through all
    knots' own normal scores (the slope 1/σ where they are Gaussian), so that ranks are kept far outside what
    was seen. Steps smaller than float64 resolves can round to equal values, as everywhere.
    """

    knots: NDArray[Any]
    quantiles: NDArray[Any]
    slope: float

    @classmethod
    def of(cls, scores: NDArray[Any]) -> NormalQuantile:
        """Learnt on the (n,) cross-fitted scores of normal clips; `ScoringError` on none or NaN."""
        from scipy.special import ndtri

        values = np.sort(np.asarray(scores, dtype=np.float64))
        if values.size == 0 or not np.isfinite(values).all():
            raise ScoringError("a normal quantile needs at least one finite score")
        n = len(values)
        spread = float(values[-1] - values[0])
        # scores closer than rounding noise share one knot: a slope between them would mean nothing
        first = np.concatenate([[True], np.diff(values) > 1e-12 * max(spread, abs(float(values[0])))])
        starts = np.flatnonzero(first)
        ends = np.append(starts[1:], n)
        knots = values[starts]
        quantiles = ndtri(0.5 * (starts + ends) / n)
        if len(knots) == 1:
            return cls(knots, np.zeros(1), 1.0 / (abs(float(knots[0])) or 1.0))
        weights = (ends - starts).astype(np.float64)
        dx = (knots - np.average(knots, weights=weights)) / spread
        dz = quantiles - np.average(quantiles, weights=weights)
        slope = float((weights * dx * dz).sum() / (weights * dx * dx).sum()) / spread
        return cls(knots, quantiles, slope)

    def __call__(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """(M,) quantiles of (M,) scores."""
        inside = np.interp(scores, self.knots, self.quantiles)
        below = np.minimum(scores - self.knots[0], 0.0)
        above = np.maximum(scores - self.knots[-1], 0.0)
        return np.asarray(inside + self.slope * (below + above))


def blend(
    parts: Float[np.ndarray, "M S"], quantiles: Sequence[NormalQuantile], weights: Sequence[float]
) -> Float[np.ndarray, " M"]:
    """(M,) from the scores (M, S) of S scorers: about 0 for usual clips, above 2 for rare ones.

    The weighted mean of each column's normal quantile; without `quantiles` the column of the largest weight, the only
    one that counts, as it is.

    >>> to = NormalQuantile.of(np.array([1.0, 2.0, 3.0]))
    >>> blend(np.array([[2.0, 2.0]]), [to, to], [1.0, 1.0]).round(6)
    array([0.])
    """
    if not quantiles:
        return parts[:, int(np.argmax(weights))]
    columns = np.stack([to(parts[:, number]) for number, to in enumerate(quantiles)], axis=1)
    share = np.asarray(weights, dtype=np.float64)
    return np.asarray(columns @ (share / share.sum()))
