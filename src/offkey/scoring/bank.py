"""The reference clips' points, searched exactly or, where they are very many, by an approximate index.

Exact search looks at every point, block by block: its memory beside the points stays below about 200 MB however many
there are. The approximate index is that of faiss (extra `index`): the points are divided among some of themselves, by
which they lie nearest to, and a query looks through the nearest of these heaps only (a random ball cover, L. Cayton,
2012, as an inverted file). What it finds is measured exactly, so a distance is never wrong; a neighbour can be missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from offkey.scoring.base import ScorerOptions, ScoringError
from offkey.scoring.nearest import Metric, blocks, distances, k_smallest, nearest_others

__all__ = ["Bank", "BankOptions", "Index", "split_parts"]

Index = Literal["exact", "approximate"]

FEWEST = 1024
"""Points below which looking at all of them costs nothing."""

CANDIDATES = 128
"""Points of a pool that are measured for a query, at least."""

_LOOKED_THROUGH = 0.1  # of a pool
_SEED = 20250
_QUERIES = 16  # at a time: faiss measures larger batches in another way, and a clip's score must not heed its company
_GATHER_BYTES = 64 * 2**20


class BankOptions(ScorerOptions):
    """What scorers that search among references have in common."""

    smote_ratio: float = Field(
        default=0.0, ge=0.0, le=1.0, description="fill smaller domains up to this share of the largest; 0.2 is usual"
    )
    smote_k: int = Field(default=2, ge=1, description="neighbours between which SMOTE draws")
    parts: int = Field(
        default=1,
        ge=0,
        description="equal parts of the embedding, each judged by itself and the scores summed; 0: as many as the "
        "model says (a band of a layer each in a retrieval system)",
    )
    index: Index = Field(
        default="exact", description="exact search, or approximate for very many references (extra `index`)"
    )
    standardise: bool = Field(default=False, description="z-score every feature on the reference first")


class Bank:
    """Prepared points (N, D) in pools one behind the other, of `sizes`.

    Each pool is searched by itself, so that none drowns another. Raises ScoringError where an approximate index is
    asked for and faiss is not installed.
    """

    def __init__(
        self,
        points: NDArray[np.float64],
        metric: Metric,
        index: Index = "exact",
        sizes: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        self.points = np.ascontiguousarray(points)
        self.metric = metric
        self.exact = index == "exact"
        self._pools: list[tuple[int, int, Any]] = []
        if self.exact:
            return
        faiss = _faiss()
        self._centre = self.points.mean(axis=0)  # float32 has digits to spare near zero only
        start = 0
        for size in [len(points)] if sizes is None else map(int, sizes):
            pool = self.points[start : start + size]
            self._pools.append((start, size, _heaps(faiss, pool - self._centre) if size > FEWEST else None))
            start += size

    def blocks(
        self, query: NDArray[np.float64], most: int = CANDIDATES
    ) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.int64] | None]]:
        """Some rows of a prepared query (M, D), distances (rows, C), and of which points (rows, C); None: of all.

        What an index did not find lies at infinity.
        """
        if self.exact:
            for part in blocks(len(query), len(self.points)):
                yield part, distances(query[part], self.points, self.metric), None
            return
        width = sum(size if heaps is None else min(size, max(most, CANDIDATES)) for _, size, heaps in self._pools)
        step = max(1, _GATHER_BYTES // (8 * width * self.points.shape[1]))
        for start in range(0, len(query), step):
            part = slice(start, min(len(query), start + step))
            places = self._candidates(query[part], most)
            away = self.points[places] - query[part][:, None]
            squares = np.einsum("mcd,mcd->mc", away, away)
            found = np.sqrt(squares) if self.metric == "euclidean" else 0.5 * squares
            found[places < 0] = np.inf
            yield part, found, np.maximum(places, 0)

    def k_smallest(self, query: NDArray[np.float64], k: int) -> NDArray[np.float64]:
        """(M, k') distances of each query row to its k nearest points, ascending; k' = min(k, N)."""
        if self.exact:
            return k_smallest(query, self.points, k, self.metric)
        k = min(k, len(self.points))
        found = np.empty((len(query), k))
        for part, block, _ in self.blocks(query, k):
            found[part] = np.sort(np.partition(block, k - 1, axis=1)[:, :k], axis=1)
        return found

    def nearest_others(self, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(N, k') distances to the k nearest OTHER points, ascending, and their rows; k' = min(k, N − 1)."""
        if self.exact:
            return nearest_others(self.points, k, self.metric)
        k = min(k, len(self.points) - 1)
        found, rows = np.empty((len(self.points), k)), np.empty((len(self.points), k), np.int64)
        for part, block, places in self.blocks(self.points, k + 1):
            assert places is not None  # noqa: S101 - an index says which
            block[places == np.arange(part.start, part.stop)[:, None]] = np.inf
            order = np.lexsort((places, block), axis=1)[:, :k]  # equally near ones by their place
            found[part] = np.take_along_axis(block, order, axis=1)
            rows[part] = np.take_along_axis(places, order, axis=1)
        return found, rows

    def _candidates(self, query: NDArray[np.float64], most: int) -> NDArray[np.int64]:
        """(rows, C) points that may be near, −1 where there are fewer."""
        columns = []
        for start, size, heaps in self._pools:
            if heaps is None:
                columns.append(np.broadcast_to(np.arange(start, start + size), (len(query), size)))
                continue
            asked = (query - self._centre).astype(np.float32)
            count = min(size, max(most, CANDIDATES))
            parts = [heaps.search(asked[at : at + _QUERIES], count)[1] for at in range(0, len(asked), _QUERIES)]
            found = np.concatenate(parts).astype(np.int64)
            columns.append(np.where(found < 0, -1, found + start))
        return np.concatenate(columns, axis=1)


def split_parts(width: int, parts: int, name: str) -> list[slice]:
    """The columns of each of `parts` equal parts of `width` numbers; ScoringError where that cannot be."""
    if parts == 0:
        raise ScoringError(
            f"{name}: parts = 0 leaves it to the model how many parts an embedding has, and nobody has said; set it to "
            "a number (1: the embedding is one)"
        )
    if width % parts:
        raise ScoringError(f"{name}: embeddings of {width} numbers cannot be taken apart into {parts} equal parts")
    step = width // parts
    return [slice(at, at + step) for at in range(0, width, step)]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ScoringError(
            'index = "approximate" needs faiss, which is not installed: `pip install offkey[index]`, or leave index at '
            '"exact"'
        ) from None
    return faiss


def _heaps(faiss: Any, pool: NDArray[np.float64]) -> Any:
    """Points (N, D) in about 4 √N heaps around points drawn from them; the same points give the same heaps."""
    count = int(4 * np.sqrt(len(pool)))
    sites = np.sort(np.random.default_rng(_SEED).choice(len(pool), count, replace=False))
    ready = pool.astype(np.float32)
    coarse = faiss.IndexFlatL2(pool.shape[1])
    index = faiss.IndexIVFFlat(coarse, pool.shape[1], count)
    coarse.add(ready[sites])
    index.train(ready[sites])  # finds that its heaps are there already
    index.add(ready)
    index.nprobe = max(16, int(_LOOKED_THROUGH * count))
    return index
