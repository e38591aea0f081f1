"""Nearest neighbours in the light of how crowded the neighbourhood is.

A reference that lies alone among normal clips (the target domain, a rare setting) is far from its normal
successors too. Its mean distance b to its K nearest other references says how far is usual there.

Ratio and difference: K. Wilkinghoff, H. Yang, J. Ebbers, F. Germain, G. Wichern, J. Le Roux: Keeping the Balance:
Anomaly Score Calculation for Domain Generalization, ICASSP 2025; with K a domain in the GenRep system of DCASE 2025.
Least variance: Matsumoto and others, DCASE Workshop 2025; of logarithms: K. Wilkinghoff, S. Yadav, Z.-H. Tan, arXiv
2603.04605 (2026).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from offkey.scoring.bank import Bank, BankOptions, split_parts
from offkey.scoring.base import Query, Reference, Scorer
from offkey.scoring.nearest import prepare
from offkey.scoring.neighbours import smote
from offkey.scoring.standardise import Standardise

__all__ = ["Density", "DensityOptions", "smallest_distance"]

_ALPHA = {"ratio": 0.0, "difference": 1.0, "variance": 0.0, "log-variance": 0.0}


class DensityOptions(BankOptions):
    """Options of `Density`."""

    name: Literal["density"] = "density"
    mode: Literal["ratio", "difference", "variance", "log-variance"] = Field(
        default="ratio",
        description="d / b, d − b, d − α b with α chosen so that normal scores vary least, or the same of the "
        "logarithms of d and b",
    )
    metric: Literal["cosine", "euclidean"] = Field(default="cosine", description="distance between embeddings")
    among: Literal["all", "domain"] = Field(
        default="all", description="whose neighbours count for b: all references, or those of the same domain"
    )
    k: int = Field(default=4, ge=1, description="neighbours for b among all references, or in an unknown domain")
    k_source: int = Field(default=16, ge=1, description="neighbours for b in the source domain (among = domain)")
    k_target: int = Field(default=9, ge=1, description="neighbours for b in the target domain (among = domain)")


class Density(Scorer):
    """min over references i of d_i / b_i (ratio), d_i − b_i (difference), d_i − α b_i, or log d_i − α log b_i.

    d_i is the clip's distance to reference i, b_i the mean distance of i to its K nearest OTHER references (K
    is cut to what there is; a domain of one clip borrows from all; a single reference has b = 1). Copies of
    one clip would have b = 0: b is at least 1e-6 of its median over the references, or 1e-12 where that is 0
    as well; a logarithm takes no smaller d either.

    With SMOTE the points that it makes are references as well, and their b is the mean distance to the K nearest real
    ones; α and the b of real references come from real ones alone. With `parts` the score is the sum of those of the
    parts, each with references, b and α of its own.
    """

    Options = DensityOptions

    def _fit(self, reference: Reference) -> None:
        options = self.options
        columns = split_parts(reference.width, options.parts, self.name)
        self._standardise = Standardise.of(reference.embedding, options.standardise)
        everything = self._standardise(reference.embedding)
        names = reference.domains
        pools = [everything[reference.domain == name] for name in names]
        drawn = self._drawn(pools)
        domain = np.repeat(names, [len(pool) for pool in pools])
        added = np.repeat(names, [len(pool) for pool in drawn])
        # a pool's real points first, then those that were made
        order = np.argsort(np.concatenate([_numbers(pools), _numbers(drawn)]), kind="stable")
        self._sizes = np.array([len(p) + len(q) for p, q in zip(pools, drawn, strict=True)], dtype=np.int64)
        real, made = np.concatenate(pools), np.concatenate(drawn)
        points, local_mean, alpha = [], [], []
        for part in columns:
            ready, new = prepare(real[:, part], options.metric), prepare(made[:, part], options.metric)
            local = self._local(ready, domain)
            floor = smallest_distance(local)
            local = np.maximum(local, floor)
            alpha.append(self._least_variance(ready, local, floor) if len(ready) > 2 else _ALPHA[options.mode])
            around = np.maximum(self._local_of_made(new, added, ready, domain), floor)
            points.append(np.concatenate([ready, new])[order])
            local_mean.append(np.concatenate([local, around])[order])
        self._local_mean, self._alpha = np.stack(local_mean, axis=1), np.array(alpha)
        self._banks = [Bank(part, options.metric, options.index, self._sizes) for part in points]

    def _drawn(self, pools: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        """What SMOTE adds to each pool."""
        options = self.options
        wanted = round(options.smote_ratio * max(len(pool) for pool in pools))
        generator = np.random.default_rng(self.seed)
        return [smote(pool, wanted - len(pool), options.smote_k, options.metric, generator) for pool in pools]

    def _k_of(self, domain: str) -> int:
        return int({"source": self.options.k_source, "target": self.options.k_target}.get(domain, self.options.k))

    def _local(self, points: NDArray[np.float64], domain: NDArray[Any]) -> NDArray[np.float64]:
        options = self.options
        if len(points) == 1:
            return np.ones(1)
        if options.among == "all":
            return Bank(points, options.metric, options.index).nearest_others(options.k)[0].mean(axis=1)
        local = np.empty(len(points))
        for name in set(domain.tolist()):
            members, k = np.flatnonzero(domain == name), self._k_of(name)
            if len(members) > 1:
                local[members] = Bank(points[members], options.metric, options.index).nearest_others(k)[0].mean(axis=1)
            else:  # itself, at distance 0, is the nearest
                others = Bank(np.delete(points, members, axis=0), options.metric, options.index)
                local[members] = others.k_smallest(points[members], k).mean(axis=1)
        return local

    def _local_of_made(
        self, made: NDArray[np.float64], added: NDArray[Any], points: NDArray[np.float64], domain: NDArray[Any]
    ) -> NDArray[np.float64]:
        """(S,) mean distance of points that SMOTE made to the real ones of their domain, or to all."""
        options, local = self.options, np.empty(len(made))
        for name in set(added.tolist()):
            rows = added == name
            pool = points if options.among == "all" else points[domain == name]
            k = options.k if options.among == "all" else self._k_of(name)
            local[rows] = Bank(pool, options.metric, options.index).k_smallest(made[rows], k).mean(axis=1)
        return local

    def _least_variance(self, points: NDArray[np.float64], local: NDArray[np.float64], floor: float) -> float:
        """α = Cov(d, b) / Var(b), d the leave-one-out distance of a reference, b that of its neighbour."""
        options = self.options
        if options.mode in ("ratio", "difference"):
            return _ALPHA[options.mode]
        found, places = Bank(points, options.metric, options.index).nearest_others(1)
        d, b = found[:, 0], local[places[:, 0]]
        if options.mode == "log-variance":
            d, b = np.log(np.maximum(d, floor)), np.log(b)
        spread = float(b.var())
        # equal b differ by rounding only, which is no spread
        least = 1e-24 * float(np.square(b).mean()) if options.mode == "log-variance" else 1e-24
        return float(((d - d.mean()) * (b - b.mean())).mean() / spread) if spread > least else 0.0

    def _score(self, query: Query) -> NDArray[np.float64]:
        options = self.options
        given = self._standardise(query.embedding)
        scores = np.zeros(len(given))
        for number, (part, bank) in enumerate(
            zip(split_parts(given.shape[1], options.parts, self.name), self._banks, strict=True)
        ):
            local, alpha = self._local_mean[:, number], float(self._alpha[number])
            floor = smallest_distance(local)
            for rows, block, places in bank.blocks(prepare(given[:, part], options.metric)):
                b = local if places is None else local[places]
                if options.mode == "ratio":
                    block /= b
                elif options.mode == "log-variance":
                    block = np.log(np.maximum(block, floor, out=block), out=block)
                    block -= alpha * np.log(b)
                else:
                    block -= alpha * b
                scores[rows] += block.min(axis=1)
        return scores

    def _arrays(self) -> dict[str, NDArray[Any]]:
        pools = {} if self.options.index == "exact" else {"sizes": self._sizes}
        return self._standardise.arrays() | pools | {
            "points": np.concatenate([bank.points for bank in self._banks], axis=1),
            "local_mean": self._local_mean,
            "alpha": self._alpha,
        }  # fmt: skip

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        options = self.options
        self._standardise = Standardise.restore(arrays)
        points = arrays["points"]
        columns = split_parts(points.shape[1], options.parts, self.name)
        self._local_mean = arrays["local_mean"]
        self._alpha = arrays["alpha"]
        self._sizes = np.array([len(points)]) if options.index == "exact" else arrays["sizes"]
        shapes = self._local_mean.shape, self._alpha.shape
        if shapes != ((len(points), len(columns)), (len(columns),)) or int(self._sizes.sum()) != len(points):
            raise ValueError("its arrays do not fit together")
        self._banks = [Bank(points[:, part], options.metric, options.index, self._sizes) for part in columns]


def smallest_distance(local: NDArray[np.float64]) -> float:
    """Below this, distances are all alike: a millionth of the median of the (N,) local means."""
    return max(1e-6 * float(np.median(local)), 1e-12)


def _numbers(pools: list[NDArray[np.float64]]) -> NDArray[np.int64]:
    """The pool of each point."""
    return np.repeat(np.arange(len(pools)), [len(pool) for pool in pools])
