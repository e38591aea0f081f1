"""Pseudo-classes: groups of normal clips that sound alike, found without labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offkey.types import Float

__all__ = ["cluster"]

MOST_CLUSTERS = 8
SMALLEST_CLUSTER = 4
_VARIATION_KEPT = 0.9


def cluster(features: Float[np.ndarray, "N D"], count: int = 0, seed: int = 0) -> NDArray[np.int64]:
    """(N,) group of each clip, numbered from 0 in order of first appearance.

    Ward clustering of the standardised features' leading principal components (90 % of the variation). `count` 0
    chooses between 2 and 8 groups by the mean silhouette; a choice that would leave a group of fewer than 4 clips is
    not considered. Too few clips, or clips that are all alike, are one group.

    >>> cluster(np.array([[0.0], [9.0], [0.1], [9.1], [0.2], [9.2], [0.3], [9.3]])).tolist()
    [0, 1, 0, 1, 0, 1, 0, 1]
    """
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    values = np.asarray(features, dtype=np.float64)
    alone = np.zeros(len(values), dtype=np.int64)
    if len(values) < 2 * SMALLEST_CLUSTER:
        return alone
    spread = values.std(axis=0)
    varying = spread > 1e-9
    if not varying.any():
        return alone
    standard = (values[:, varying] - values[:, varying].mean(axis=0)) / spread[varying]
    components = PCA(svd_solver="full", random_state=seed).fit(standard)
    share = np.cumsum(components.explained_variance_ratio_)
    points = components.transform(standard)[:, : int(np.searchsorted(share, _VARIATION_KEPT)) + 1]
    best, best_value = alone, -1.0
    for number in [count] if count else range(2, MOST_CLUSTERS + 1):
        if number < 2 or number >= len(values):
            continue
        groups = AgglomerativeClustering(n_clusters=number, linkage="ward").fit_predict(points)
        if not count and np.bincount(groups).min() < SMALLEST_CLUSTER:
            continue
        value = float(silhouette_score(points, groups)) if not count else 1.0
        if value > best_value:
            best, best_value = groups, value
    _, first = np.unique(best, return_index=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[best]
