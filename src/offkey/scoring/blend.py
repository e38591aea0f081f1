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

__all__ = ["NormalQuantile", "blend", "blend_normal", "left_out_quantiles", "weighted_mean"]


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
        starts = _starts(values)
        n, spread = len(values), float(values[-1] - values[0])
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


def _starts(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """(K,) where each knot's run begins in the sorted (n,) `values`; `ScoringError` on none or NaN.

    Scores closer than rounding noise share one knot: a slope between them would mean nothing.
    """
    if values.size == 0 or not np.isfinite(values).all():
        raise ScoringError("a normal quantile needs at least one finite score")
    least = 1e-12 * max(float(values[-1] - values[0]), abs(float(values[0])))
    return np.flatnonzero(np.concatenate([[True], np.diff(values) > least]))


def left_out_quantiles(
    scores: NDArray[Any], learnt: NDArray[np.bool_] | None = None, groups: Sequence[Any] | NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """(n,) the quantile of each normal clip, by a map that was learnt on the `scores` (n,) of the others.

    A map gives the clips that it was learnt on no quantile beyond Φ⁻¹(1 − 1/2n), while it goes on in a straight line
    for a new clip that scores higher. A threshold from such quantiles is too low; these here are like a new clip's.
    `learnt` (n,) says on which clips the map is learnt (default: all); the others get theirs from the whole map.
    `groups` (n,): all clips of a group (a recording session) are left out together. Clips without any other to learn
    on get 0. Takes O(n log n).

    >>> left_out_quantiles(np.array([1.0, 2.0, 4.0])).round(2)
    array([-1.35, -0.22,  3.37])
    """
    scores = np.asarray(scores, dtype=np.float64)
    if learnt is not None and not learnt.all():
        quantiles = NormalQuantile.of(scores[learnt])(scores)
        own = None if groups is None else np.asarray(groups)[learnt]
        quantiles[learnt] = left_out_quantiles(scores[learnt], groups=own)
        return quantiles
    from scipy.special import ndtri

    order = np.argsort(scores, kind="stable")
    values, n = scores[order], len(scores)
    group = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1][order]
    starts = _starts(values)
    ends, knots, last = np.append(starts[1:], n), values[starts], len(starts) - 1
    run = np.repeat(np.arange(len(starts)), ends - starts)
    # the clips that a group has in a run: a sorted number for each clip, the same where group and run are
    base = len(starts) + 1
    members = np.sort(group * base + run)
    pairs, counts = np.unique(members, return_counts=True)
    gone = counts == (ends - starts)[pairs % base]  # the run holds no clip of another group
    # runs that are gone lie in blocks: what stays of the map begins below the first and above the last
    follows = np.concatenate([[False], gone[1:] & gone[:-1] & (np.diff(pairs) == 1)])
    block = np.cumsum(~follows) - 1
    heads = np.flatnonzero(~follows)
    tails = np.append(heads[1:], len(pairs)) - 1
    pair = np.searchsorted(pairs, group * base + run)
    below = np.where(gone, pairs[heads[block]] % base - 1, pairs % base)[pair]
    above = np.where(gone, pairs[tails[block]] % base + 1, pairs % base)[pair]

    found = np.zeros(n)
    inside = (below >= 0) & (above <= last)
    mine, low, high = group[inside], below[inside], above[inside]
    first, rest = np.searchsorted(members, mine * base), n - np.bincount(group)[mine]

    def left(at: NDArray[np.int64]) -> NDArray[np.float64]:
        """The quantiles of the knots `at`, learnt without the clip's group."""
        taken = np.searchsorted(members, mine * base + at) + np.searchsorted(members, mine * base + at + 1) - 2 * first
        return np.asarray(ndtri(0.5 * (starts[at] + ends[at] - taken) / rest))

    way = np.where(high > low, values[inside] - knots[low], 0.0) / np.where(high > low, knots[high] - knots[low], 1.0)
    found[inside] = (1.0 - way) * left(low) + way * left(high)
    for name in np.unique(group[~inside]):  # two groups at most: those of the lowest and of the highest score
        rest = values[group != name]
        found[group == name] = NormalQuantile.of(rest)(values[group == name]) if len(rest) else 0.0
    quantiles = np.empty(n)
    quantiles[order] = found
    return quantiles


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
    return weighted_mean(np.stack([to(parts[:, number]) for number, to in enumerate(quantiles)], axis=1), weights)


def blend_normal(
    parts: Float[np.ndarray, "N S"],
    weights: Sequence[float],
    learnt: NDArray[np.bool_] | None = None,
    groups: Sequence[Any] | NDArray[Any] | None = None,
) -> Float[np.ndarray, " N"]:
    """(N,) as `blend`, of the normal clips that the maps are learnt on: each by maps that do not know it.

    `learnt` and `groups` as for `left_out_quantiles`.
    """
    return weighted_mean(np.stack([left_out_quantiles(part, learnt, groups) for part in parts.T], axis=1), weights)


def weighted_mean(columns: Float[np.ndarray, "M S"], weights: Sequence[float]) -> Float[np.ndarray, " M"]:
    """(M,) from columns (M, S) that have a scale in common, such as quantiles."""
    share = np.asarray(weights, dtype=np.float64)
    return np.asarray(columns @ (share / share.sum()))
