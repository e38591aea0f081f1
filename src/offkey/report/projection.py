"""A flat map of embeddings: principal components of the standardised vectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offkey.types import Float

__all__ = ["Projection", "project"]


class Projection(NamedTuple):
    """`reference` (N, 2) and `query` (M, 2) places, float64; shares of variation of the two directions."""

    reference: NDArray[np.float64]
    query: NDArray[np.float64]
    explained: tuple[float, float]


def project(reference: Float[np.ndarray, "N D"], query: Float[np.ndarray, "M D"]) -> Projection:
    """Lay embeddings out in two dimensions by principal component analysis.

    Every dimension is standardised with the reference's mean and spread, so that all count alike; the two
    directions of largest variation are then taken over reference and query together, because what makes a
    query strange may not vary among the references at all. It is a picture, never a score. The same numbers
    give the same map: each direction points to where its largest loading is positive.

    Rows with NaN or infinities get NaN places. A dimension in which the references never vary is scaled by
    the spread of all clips instead; one that never varies at all counts for nothing.

    >>> reference = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    >>> places = project(reference, np.array([[3.0, 3.0]]))
    >>> np.allclose(places.reference[:, 1], 0.0), places.explained[0]
    (True, 1.0)
    """
    known = np.asarray(reference, dtype=np.float64)
    asked = np.asarray(query, dtype=np.float64)
    everything = np.concatenate([known, asked])
    finite = np.isfinite(everything).all(axis=1)
    basis = known[np.isfinite(known).all(axis=1)]
    if len(basis) < 2:
        basis = everything[finite]
    places = np.full((len(everything), 2), np.nan)
    if not len(basis):
        return Projection(places[: len(known)], places[len(known) :], (0.0, 0.0))
    spread = basis.std(axis=0)
    varies = spread > 1e-9 * np.maximum(1.0, np.abs(basis.mean(axis=0)))
    spread = np.where(varies, spread, everything[finite].std(axis=0))
    standard = (everything[finite] - basis.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    centred = standard - standard.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / max(1, len(centred) - 1))
    order = np.argsort(values)[::-1][:2]
    directions = vectors[:, order]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])])
    flat = np.zeros((len(centred), 2))
    flat[:, : directions.shape[1]] = centred @ directions
    places[finite] = flat
    total = float(np.clip(values, 0.0, None).sum())
    shares = [max(0.0, float(values[i])) / total if total > 0 else 0.0 for i in order] + [0.0]
    return Projection(places[: len(known)], places[len(known) :], (shares[0], shares[1]))
