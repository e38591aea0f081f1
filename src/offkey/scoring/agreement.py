"""How far several scores agree on which normal clips are odd: weights of a blend without a single faulty clip."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offkey.types import Bool, Float

__all__ = ["FEWEST_IN_COMMON", "SMALLEST_WEIGHT", "agreement", "agreement_weights"]

FEWEST_IN_COMMON = 10
"""Clips below which a rank correlation of two scores says nothing."""

SMALLEST_WEIGHT = 0.1
"""What a score keeps that agrees with no other: it may be the only one that hears something."""


def agreement(scores: Float[np.ndarray, "N S"], fresh: Bool[np.ndarray, "N S"]) -> NDArray[np.float64]:
    """(S, S) Spearman correlation of each two columns over the clips that are fresh for both, 1 on the diagonal.

    NaN where that are fewer than 10 clips; 0 where one of the two finds all of them alike.

    >>> scores = np.stack([np.arange(12.0), np.arange(12.0) ** 3, -np.arange(12.0)], axis=1)
    >>> agreement(scores, np.full((12, 3), True))[0].round(6).tolist()
    [1.0, 1.0, -1.0]
    """
    from scipy.stats import rankdata

    count = scores.shape[1]
    found = np.eye(count)
    for one in range(count):
        for other in range(one):
            both = fresh[:, one] & fresh[:, other]
            value = np.nan
            if both.sum() >= FEWEST_IN_COMMON:
                ranks = rankdata(scores[both][:, [one, other]], axis=0)
                ranks -= ranks.mean(axis=0)
                size = np.sqrt((ranks**2).sum(axis=0).prod())
                value = float((ranks[:, 0] * ranks[:, 1]).sum() / size) if size > 0 else 0.0
            found[one, other] = found[other, one] = value
    return found


def agreement_weights(tables: list[NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """(S,) weights from one `agreement` a machine: the mean correlation with the others, at least 0.1.

    Pairs that could not be compared are left out. None where nothing is to be told apart: fewer than three scores (two
    always agree with each other alike), or one that could be compared with none.

    >>> agreement_weights([np.array([[1.0, 0.6, 0.2], [0.6, 1.0, -0.4], [0.2, -0.4, 1.0]])]).round(6).tolist()
    [0.4, 0.1, 0.1]
    """
    every = np.stack(tables)
    if every.shape[1] < 3:
        return None
    others = every[:, ~np.eye(every.shape[1], dtype=bool)].reshape(len(every), every.shape[1], -1)
    known = np.isfinite(others)
    counts = known.sum(axis=(0, 2))
    if (counts == 0).any():
        return None
    return np.maximum(np.where(known, others, 0.0).sum(axis=(0, 2)) / counts, SMALLEST_WEIGHT)
