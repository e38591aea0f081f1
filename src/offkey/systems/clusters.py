"""Pseudo-classes: groups of normal clips that sound alike, found without labels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from offkey.types import Float

__all__ = ["cluster"]

MOST_CLUSTERS = 16
SMALLEST_CLUSTER = 4
MOST_COMPARED = 3000
"""Clips that are clustered; of more, evenly spaced ones are, and each other clip joins the group with the nearest mean.

Comparing all pairs of 3000 clips takes about a second and 70 MB, of 30 000 a hundred times as much.
"""

_VARIATION_KEPT = 0.9
_GAIN_LEFT = 0.02  # groups that are not round would otherwise be cut into round ones


def cluster(features: Float[np.ndarray, "N D"], count: int = 0, seed: int = 0) -> NDArray[np.int64]:
    """(N,) group of each clip, numbered from 0 in order of first appearance.

    Ward clustering of the standardised features' leading principal components (90 % of the variation). `count` 0
    chooses up to 16 groups by the BIC of round Gaussians of one width, as in X-means (Pelleg and Moore, ICML 2000): the
    fewest that gain 98 % of what the best number gains over one group. Where the best is one group, the mean silhouette
    chooses between 2 and 16, for few clips cannot pay for a group's mean in many dimensions. A choice that would leave
    a group of fewer than 4 clips is not considered. Too few clips, or clips that are all alike, are one group.

    >>> cluster(np.array([[0.0], [9.0], [0.1], [9.1], [0.2], [9.2], [0.3], [9.3]])).tolist()
    [0, 1, 0, 1, 0, 1, 0, 1]
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    points = components(features, seed)
    alone = np.zeros(len(points), dtype=np.int64)
    if len(points) < 2 * SMALLEST_CLUSTER or not points.shape[1]:
        return alone
    compared = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_COMPARED)).round().astype(np.int64))
    chosen = points[compared]
    tree = linkage(chosen, "ward")
    if count:
        best = fcluster(tree, count, "maxclust").astype(np.int64) - 1
    else:
        cuts = [fcluster(tree, number, "maxclust").astype(np.int64) - 1 for number in range(1, MOST_CLUSTERS + 1)]
        best = _chosen(chosen, [groups for groups in cuts if np.bincount(groups).min() >= SMALLEST_CLUSTER])
    return _in_order(best if len(chosen) == len(points) else _joined(points, chosen, best))


def _chosen(points: NDArray[np.float64], cuts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The first grouping of nearly the lowest BIC; where that is into one group, the one of the highest silhouette."""
    from sklearn.metrics import silhouette_score

    values = [bic(points, groups) for groups in cuts]
    enough = min(values) + _GAIN_LEFT * (values[0] - min(values))
    best = next(groups for groups, value in zip(cuts, values, strict=True) if value <= enough)
    several = [groups for groups in cuts if groups.max() > 0]
    if best.max() > 0 or not several:
        return best
    return max(several, key=lambda groups: float(silhouette_score(points, groups)))


def bic(points: Float[np.ndarray, "N P"], groups: NDArray[np.int64]) -> float:
    """Bayesian information criterion of round Gaussians, one a group, with one width for all; the lower, the better."""
    count, width = points.shape
    sizes = np.bincount(groups)
    means = np.stack([points[groups == number].mean(axis=0) for number in range(len(sizes))])
    left = float(np.square(points - means[groups]).sum())
    freedom = width * max(count - len(sizes), 1)
    variance = max(left / freedom, 1e-12)
    likelihood = float((sizes * np.log(sizes / count)).sum())
    likelihood -= count * width / 2 * math.log(2 * math.pi * variance) + left / variance / 2
    return math.log(count) * (len(sizes) - 1 + len(sizes) * width + 1) - 2 * likelihood


def components(features: Float[np.ndarray, "N D"], seed: int = 0) -> NDArray[np.float64]:
    """Standardised features along their leading principal components, (N, P).

    They hold 90 % of the variation; P is 0 where nothing varies.
    """
    from sklearn.decomposition import PCA

    values = np.asarray(features, dtype=np.float64)
    if len(values) < 2:
        return np.zeros((len(values), 0))
    spread = values.std(axis=0)
    varying = spread > 1e-9
    if not varying.any():
        return np.zeros((len(values), 0))
    standard = (values[:, varying] - values[:, varying].mean(axis=0)) / spread[varying]
    fitted = PCA(svd_solver="full", random_state=seed).fit(standard)
    share = np.cumsum(fitted.explained_variance_ratio_)
    turned: NDArray[np.float64] = fitted.transform(standard)
    return turned[:, : int(np.searchsorted(share, _VARIATION_KEPT)) + 1]


def _joined(points: NDArray[np.float64], chosen: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group with the nearest mean for every clip."""
    means = np.stack([chosen[groups == number].mean(axis=0) for number in range(groups.max() + 1)])
    distance = np.stack([np.square(points - mean).sum(axis=1) for mean in means])
    return distance.argmin(axis=0).astype(np.int64)


def _in_order(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same groups, numbered in order of first appearance."""
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[numbers]
