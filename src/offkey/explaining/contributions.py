"""Which normal clips a clip is compared with, and which features make its score: read from a fitted scorer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from offkey.scoring import Mahalanobis, Scorer
from offkey.scoring.nearest import Metric, distances, prepare
from offkey.scoring.standardise import Standardise

__all__ = ["contributions", "metric_of", "nearest_rows"]


def metric_of(scorer: Scorer, width: int) -> Metric:
    """The distance that a scorer measures; for one that has no such option cosine, Euclidean for a single number."""
    default: Metric = "euclidean" if width == 1 else "cosine"
    metric: Metric = getattr(scorer.options, "metric", default)
    return metric


def nearest_rows(
    scorer: Scorer,
    query: NDArray[Any],
    reference: NDArray[Any],
    count: int,
    leave_out: bool = False,
    without: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """(M, k) rows of the `count` reference clips (N, D) nearest to each query clip (M, D), nearest first; k ≤ count.

    `leave_out`: the query IS the reference, and no clip is near to itself. `without`: rows that are not looked at.
    """
    metric = metric_of(scorer, reference.shape[1])
    places = prepare(reference, metric)
    between = distances(prepare(query, metric), places, metric)
    if leave_out:
        np.fill_diagonal(between, np.inf)
    most = len(reference) - 1 if leave_out else len(reference)
    if without is not None:
        between[:, without] = np.inf
        most -= len(without)
    return np.argsort(between, axis=1, kind="stable")[:, : min(count, most)].astype(np.int64)


def contributions(scorer: Scorer, point: NDArray[Any], nearest: NDArray[Any]) -> NDArray[np.float64]:
    """(D,) what each feature of a clip `point` (D,) adds to its squared distance from normal.

    Mahalanobis: with d the difference to the nearest centre, dᵢ (Σ⁻¹ d)ᵢ; the sum is the squared score. A feature
    that moves as its neighbours make it expect can count below 0. Every other scorer: the squared difference to the
    nearest normal clip (D,), in the space in which the scorer measures.
    """
    if isinstance(scorer, Mahalanobis):
        return _mahalanobis(scorer, point)
    metric = metric_of(scorer, len(point))
    both = prepare(np.stack([point, nearest]), metric)
    return np.asarray(np.square(both[0] - both[1]))


def _mahalanobis(scorer: Mahalanobis, point: NDArray[Any]) -> NDArray[np.float64]:
    state = scorer.state()
    inner = Standardise.restore(state)(point[None])[0] - state["origin"]
    found: tuple[float, int, NDArray[np.float64]] | None = None
    for kind, centre in zip(state["kinds"].tolist(), state["centres"], strict=True):
        whitened = inner @ state["spaces"][kind] - centre
        length = float(whitened @ whitened)
        if found is None or length < found[0]:
            found = length, kind, whitened
    if found is None:
        raise ValueError("a fitted scorer has at least one centre")
    _, kind, whitened = found
    space = state["spaces"][kind]  # columns are orthogonal, so W⁻¹ = diag(1 / |column|²) Wᵀ
    difference = (whitened / np.square(space).sum(axis=0)) @ space.T
    return np.asarray(difference * (space @ whitened))
