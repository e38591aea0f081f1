"""Distance to the nearest normal clips, each domain asked on its own.

The nearest reference of either domain decides, so that a target domain of ten clips is not drowned by a
thousand source clips. SMOTE: N. Chawla et al., JAIR 16 (2002), 321–357.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from offkey.scoring.bank import Bank, BankOptions, split_parts
from offkey.scoring.base import Query, Reference, Scorer
from offkey.scoring.nearest import nearest_others, prepare
from offkey.scoring.standardise import Standardise

__all__ = ["Neighbours", "NeighboursOptions", "smote"]


class NeighboursOptions(BankOptions):
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


class Neighbours(Scorer):
    """Mean distance to the k nearest normal clips, ≥ 0 (any sign with `domain_scale`).

    With `parts` the score is the sum of those of the parts, each with nearest clips (and a nearest domain) of its own.
    """

    Options = NeighboursOptions

    def _fit(self, reference: Reference) -> None:
        options = self.options
        columns = split_parts(reference.width, options.parts, self.name)
        self._standardise = Standardise.of(reference.embedding, options.standardise)
        points = self._standardise(reference.embedding)
        names = reference.domain if options.domains == "minimum" else np.full(len(points), "all")
        order = sorted(set(names.tolist()))
        real = [points[names == name] for name in order]
        pools = real
        if options.smote_ratio > 0:
            wanted = round(options.smote_ratio * max(len(pool) for pool in real))
            generator = np.random.default_rng(self.seed)
            pools = [
                np.concatenate([pool, smote(pool, wanted - len(pool), options.smote_k, options.metric, generator)])
                for pool in real
            ]
        self._sizes = np.array([len(pool) for pool in pools], dtype=np.int64)
        # (pools, parts)
        self._centre, self._scale = np.zeros((len(pools), len(columns))), np.ones((len(pools), len(columns)))
        self._points = [np.concatenate([prepare(pool[:, part], options.metric) for pool in pools]) for part in columns]
        self._banks = self._build()
        for number, part in enumerate(columns):
            if options.domain_scale:
                mine = [prepare(pool[:, part], options.metric) for pool in real]
                self._centre[:, number], self._scale[:, number] = self._typical(mine)

    def _build(self) -> list[list[Bank]]:
        """A bank a pool, for each part."""
        options, cuts = self.options, np.cumsum(self._sizes)[:-1]
        return [[Bank(pool, options.metric, options.index) for pool in np.split(part, cuts)] for part in self._points]

    def _typical(self, pools: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and spread of each domain's leave-one-out distances; fewer than 3 clips borrow everyone's.

        Where no domain has 3 clips, or a domain consists of copies, there is nothing to scale by: 0 and 1, or
        the mean distance for the spread.
        """
        options = self.options
        left_out = [
            Bank(pool, options.metric, options.index).nearest_others(options.k)[0].mean(axis=1)
            if len(pool) >= 3
            else np.zeros(0)
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
        options = self.options
        given = self._standardise(query.embedding)
        scores = np.zeros(len(given))
        for number, part in enumerate(split_parts(given.shape[1], options.parts, self.name)):
            points = prepare(given[:, part], options.metric)
            best = np.full(len(points), np.inf)
            for i, bank in enumerate(self._banks[number]):
                found = bank.k_smallest(points, options.k).mean(axis=1)
                best = np.minimum(best, (found - self._centre[i, number]) / self._scale[i, number])
            scores += best
        return scores

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return self._standardise.arrays() | {
            "points": np.concatenate(self._points, axis=1),
            "sizes": self._sizes,
            "centre": self._centre,
            "scale": self._scale,
        }

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._standardise = Standardise.restore(arrays)
        points, self._sizes = arrays["points"], arrays["sizes"]
        columns = split_parts(points.shape[1], self.options.parts, self.name)
        self._centre, self._scale = arrays["centre"], arrays["scale"]
        shape = (len(self._sizes), len(columns))
        if {self._centre.shape, self._scale.shape} != {shape} or int(self._sizes.sum()) != len(points):
            raise ValueError("its arrays do not fit together")
        self._points = [np.ascontiguousarray(points[:, part]) for part in columns]
        self._banks = self._build()


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
