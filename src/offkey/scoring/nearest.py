"""Exact nearest neighbours in bounded memory: plain brute force, block by block.

Distances are summed from differences and not from |a|² + |b|² − 2ab: a clip's distance to its own copy is
then exactly 0, and what comes out does not depend on which other clips are asked about in the same call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Metric", "blocks", "distances", "k_smallest", "nearest_others", "prepare"]

Metric = Literal["cosine", "euclidean"]

_BLOCK_BYTES = 64 * 2**20


def prepare(points: NDArray[Any], metric: Metric) -> NDArray[np.float64]:
    """The points (N, D) in the space in which `distances` measures.

    For "cosine" every row is scaled to length 1, and a row of zeros stays what it is: it then lies at 0 from
    another row of zeros and at 0.5 from everything else.
    """
    points = np.ascontiguousarray(points, dtype=np.float64)
    if metric == "euclidean":
        return points
    ready = np.empty_like(points)
    for part in blocks(len(points), points.shape[1]):
        largest = np.abs(points[part]).max(axis=1, keepdims=True)  # first by the largest entry: squares cannot overflow
        scaled = points[part] / np.where(largest > 0, largest, 1.0)
        length = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
        ready[part] = scaled / np.where(length > 0, length, 1.0)
    return ready


def distances(a: NDArray[Any], b: NDArray[Any], metric: Metric) -> NDArray[np.float64]:
    """(A, B) distances between prepared points: Euclidean, or 1 − cosine (half the squared chord; 0 to 2)."""
    from scipy.spatial.distance import cdist

    if metric == "euclidean":
        return np.asarray(cdist(a, b, "euclidean"))
    squares = np.asarray(cdist(a, b, "sqeuclidean"))
    squares *= 0.5
    return squares


def blocks(rows: int, columns: int, limit: int = _BLOCK_BYTES) -> Iterator[slice]:
    """Slices over `rows` such that a (slice, columns) float64 matrix stays within `limit` bytes."""
    step = max(1, limit // (8 * max(1, columns)))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def k_smallest(
    query: NDArray[Any], points: NDArray[Any], k: int, metric: Metric, limit: int = _BLOCK_BYTES
) -> NDArray[np.float64]:
    """(M, k') distances of each query row to its k nearest points, ascending; k' = min(k, N)."""
    k = min(k, len(points))
    found = np.empty((len(query), k), dtype=np.float64)
    for part in blocks(len(query), len(points), limit):
        found[part] = np.sort(np.partition(distances(query[part], points, metric), k - 1, axis=1)[:, :k], axis=1)
    return found


def nearest_others(
    points: NDArray[Any], k: int, metric: Metric, limit: int = _BLOCK_BYTES
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N, k') distances to the k nearest OTHER points, ascending, and their rows; k' = min(k, N − 1).

    A point leaves out itself only: its copies count, at distance 0.
    """
    k = min(k, len(points) - 1)
    found = np.empty((len(points), k), dtype=np.float64)
    places = np.empty((len(points), k), dtype=np.int64)
    for part in blocks(len(points), len(points), limit):
        block = distances(points[part], points, metric)
        block[np.arange(len(block)), np.arange(part.start, part.stop)] = np.inf
        if k == 0:
            continue
        few = np.sort(np.argpartition(block, k - 1, axis=1)[:, :k], axis=1)
        near = np.take_along_axis(block, few, axis=1)
        order = np.argsort(near, axis=1, kind="stable")  # equally near ones by their place
        places[part] = np.take_along_axis(few, order, axis=1)
        found[part] = np.take_along_axis(near, order, axis=1)
    return found, places
