"""Distance to the nearest normal clips, each domain asked on its own.

The nearest reference of either domain decides, so that a target domain of ten clips is not drowned by a
thousand source clips. SMOTE: N. Chawla et al., JAIR 16 (2002), 321–357.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from offkey.scoring.base import Query, Reference, Scorer, ScorerOptions
from offkey.scoring.nearest import k_smallest, nearest_others, prepare
from offkey.scoring.standardise import Standardise

__all__ = ["Neighbours", "NeighboursOptions", "smote"]


class NeighboursOptions(ScorerOptions):
    """Options of `Neighbours`."""

    name: Literal["neighbours"] = "neighbours"
    metric: Literal["cosine", "euclidean"] = Field(default="cosine", description="distance between embeddings")
    k: int = Field(default=1, ge=1, description="the mean of the k smallest distances counts")
    domains: Literal["minimum", "pooled"] = Field(
        default="minimum",
        description="each domain on its own and the smallest result, or all clips in one pool",
    )
    domain_scale: bool = Field(
        default=False,
        description="z-score each domain's distances by its own leave-one-out ones before the minimum",
    )
    smote_ratio: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="fill smaller domains up to this share of the largest; 0.2 is usual",
    )
    smote_k: int = Field(default=2, ge=1, description="neighbours between which SMOTE draws")
    standardise: bool = Field(default=False, description="z-score every feature on the reference first")


class Neighbours(Scorer):
    """Mean distance to the k nearest normal clips, ≥ 0 (any sign with `domain_scale`)."""

    Options = NeighboursOptions

    def _fit(self, reference: Reference) -> None:
        options = self.options
        self._standardise = Standardise.of(reference.embedding, options.standardise)
        points = self._standardise(reference.embedding)
        names = reference.domain if options.domains == "minimum" else np.full(len(points), "all")
        order = sorted(set(names.tolist()))
        pools = [points[names == name] for name in order]
        largest = max(len(pool) for pool in pools)
        generator = np.random.default_rng(self.seed)
        real = [prepare(pool, options.metric) for pool in pools]
        if options.smote_ratio > 0:
            wanted = round(options.smote_ratio * largest)
            pools = [
                np.concatenate([pool, smote(pool, wanted - len(pool), options.smote_k, options.metric, generator)])
                for pool in pools
            ]
        self._sizes = np.array([len(pool) for pool in pools], dtype=np.int64)
        self._points = np.concatenate([prepare(pool, options.metric) for pool in pools])
        self._centre = np.zeros(len(pools))
        self._scale = np.ones(len(pools))
        if options.domain_scale:
            self._centre, self._scale = self._typical(real)

    def _typical(self, pools: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and spread of each domain's leave-one-out distances; fewer than 3 clips borrow everyone's.

        Where no domain has 3 clips, or a domain consists of copies, there is nothing to scale by: 0 and 1, or
        the mean distance for the spread.
        """
        options = self.options
        left_out = [
            nearest_others(pool, options.k, options.metric)[0].mean(axis=1) if len(pool) >= 3 else np.zeros(0)
            for pool in pools
        ]
        everyone = np.concatenate(left_out)
        centre, scale = np.zeros(len(pools)), np.ones(len(pools))
        for i, values in enumerate(left_out):
            known = values if values.size else everyone
            if known.size:
                centre[i] = known.mean()
                scale[i] = max(float(known.std()), 1e-6 * float(known.mean())) or 1.0
        return centre, scale

    def _score(self, query: Query) -> NDArray[np.float64]:
        points = prepare(self._standardise(query.embedding), self.options.metric)
        best = np.full(len(points), np.inf)
        for i, pool in enumerate(np.split(self._points, np.cumsum(self._sizes)[:-1])):
            found = k_smallest(points, pool, self.options.k, self.options.metric).mean(axis=1)
            best = np.minimum(best, (found - self._centre[i]) / self._scale[i])
        return best

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return self._standardise.arrays() | {
            "points": self._points,
            "sizes": self._sizes,
            "centre": self._centre,
            "scale": self._scale,
        }

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._standardise = Standardise.restore(arrays)
        self._points, self._sizes = arrays["points"], arrays["sizes"]
        self._centre, self._scale = arrays["centre"], arrays["scale"]


def smote(
    points: NDArray[Any],
    count: int,
    k: int,
    metric: Literal["cosine", "euclidean"],
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """(count, D) new points, each at a random place between a random point and one of its k nearest others.

    None where `count` ≤ 0 or where there is only one point to draw from.
    """
    if count <= 0 or len(points) < 2:
        return np.zeros((0, points.shape[1]))
    _, places = nearest_others(prepare(points, metric), k, metric)
    first = generator.integers(len(points), size=count)
    second = places[first, generator.integers(places.shape[1], size=count)]
    share = generator.random((count, 1))
    return np.asarray(points[first] + share * (points[second] - points[first]))
