"""Nearest neighbours in the light of how crowded the neighbourhood is.

A reference that lies alone among normal clips (the target domain, a rare setting) is far from its normal
successors too. Its mean distance b to its K nearest other references says how far is usual there.

K. Wilkinghoff, H. Yang, J. Ebbers, F. Germain, G. Wichern, J. Le Roux: Keeping the Balance: Anomaly Score
Calculation for Domain Generalization, ICASSP 2025 (ratio; with K a domain in the GenRep system of DCASE
2025).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from offkey.scoring.base import Query, Reference, Scorer, ScorerOptions
from offkey.scoring.nearest import blocks, distances, nearest_others, prepare
from offkey.scoring.standardise import Standardise

__all__ = ["Density", "DensityOptions"]


class DensityOptions(ScorerOptions):
    """Options of `Density`."""

    name: Literal["density"] = "density"
    mode: Literal["ratio", "difference", "variance"] = Field(
        default="ratio", description="d / b, d − b, or d − α b with α chosen so that normal scores vary least"
    )
    metric: Literal["cosine", "euclidean"] = Field(default="cosine", description="distance between embeddings")
    among: Literal["all", "domain"] = Field(
        default="all", description="whose neighbours count for b: all references, or those of the same domain"
    )
    k: int = Field(default=4, ge=1, description="neighbours for b among all references, or in an unknown domain")
    k_source: int = Field(default=16, ge=1, description="neighbours for b in the source domain (among = domain)")
    k_target: int = Field(default=9, ge=1, description="neighbours for b in the target domain (among = domain)")
    standardise: bool = Field(default=False, description="z-score every feature on the reference first")


class Density(Scorer):
    """min over references i of d_i / b_i (ratio), d_i − b_i (difference) or d_i − α b_i (variance).

    d_i is the clip's distance to reference i, b_i the mean distance of i to its K nearest OTHER references (K
    is cut to what there is; a domain of one clip borrows from all; a single reference has b = 1). Copies of
    one clip would have b = 0: b is at least 1e-6 of its median over the references, or 1e-12 where that is 0
    as well.
    """

    Options = DensityOptions

    def _fit(self, reference: Reference) -> None:
        options = self.options
        self._standardise = Standardise.of(reference.embedding, options.standardise)
        self._points = prepare(self._standardise(reference.embedding), options.metric)
        local = self._local(reference)
        self._local_mean = np.maximum(local, max(1e-6 * float(np.median(local)), 1e-12))
        self._alpha = {"ratio": 0.0, "difference": 1.0, "variance": 0.0}[options.mode]
        if options.mode == "variance" and len(self._points) > 2:
            self._alpha = self._least_variance()

    def _local(self, reference: Reference) -> NDArray[np.float64]:
        options, points = self.options, self._points
        if len(points) == 1:
            return np.ones(1)
        if options.among == "all":
            return nearest_others(points, options.k, options.metric)[0].mean(axis=1)
        local = np.empty(len(points))
        for domain in reference.domains:
            members = np.flatnonzero(reference.domain == domain)
            k = {"source": options.k_source, "target": options.k_target}.get(domain, options.k)
            if len(members) > 1:
                local[members] = nearest_others(points[members], k, options.metric)[0].mean(axis=1)
            else:
                local[members] = nearest_others(points, k, options.metric)[0].mean(axis=1)[members]
        return local

    def _least_variance(self) -> float:
        """α = Cov(d, b) / Var(b), d the leave-one-out distance of a reference, b that of its neighbour."""
        found, places = nearest_others(self._points, 1, self.options.metric)
        d, b = found[:, 0], self._local_mean[places[:, 0]]
        spread = float(b.var())
        return float(((d - d.mean()) * (b - b.mean())).mean() / spread) if spread > 1e-24 else 0.0

    def _score(self, query: Query) -> NDArray[np.float64]:
        metric = self.options.metric
        points = prepare(self._standardise(query.embedding), metric)
        scores = np.empty(len(points))
        for part in blocks(len(points), len(self._points)):
            block = distances(points[part], self._points, metric)
            if self.options.mode == "ratio":
                block /= self._local_mean
            else:
                block -= self._alpha * self._local_mean
            scores[part] = block.min(axis=1)
        return scores

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return self._standardise.arrays() | {
            "points": self._points,
            "local_mean": self._local_mean,
            "alpha": np.array([self._alpha]),
        }

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._standardise = Standardise.restore(arrays)
        self._points, self._local_mean = arrays["points"], arrays["local_mean"]
        self._alpha = float(arrays["alpha"][0])
