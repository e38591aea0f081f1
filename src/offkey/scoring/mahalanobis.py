"""Mahalanobis distance to the nearest class centre.

K. Lee et al.: A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks,
NeurIPS 2018 (class centres with one tied covariance); the DCASE baseline's "selective" mode keeps one
covariance a domain and takes the smaller distance.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from offkey.scoring.base import Query, Reference, Scorer, ScorerOptions, domain_order
from offkey.scoring.covariance import ledoit_wolf, whitening
from offkey.scoring.nearest import blocks
from offkey.scoring.standardise import Standardise

__all__ = ["Mahalanobis", "MahalanobisOptions"]


class MahalanobisOptions(ScorerOptions):
    """Options of `Mahalanobis`."""

    name: Literal["mahalanobis"] = "mahalanobis"
    centre: Literal["identity", "domain", "all"] = Field(
        default="identity",
        description="one centre an identity class and domain, a domain, or one for all clips",
    )
    covariance: Literal["shared", "domain"] = Field(
        default="shared",
        description="one covariance for all, or one a domain where it has min_clips clips (selective)",
    )
    min_clips: int = Field(default=10, ge=2, description="clips that a domain needs for a covariance of its own")
    standardise: bool = Field(default=False, description="z-score every feature on the reference first")


class Mahalanobis(Scorer):
    """Smallest Mahalanobis distance to any centre, over all classes and domains; in units of σ, ≥ 0.

    The covariance is Ledoit–Wolf's, pooled over what remains after each class's own centre is taken off, and
    scaled by N / (N − classes): a centre that was learnt on its own few clips lies too close to them. Where
    classes are so small that fewer than two degrees of freedom remain, centres of domains, then one centre
    for all, serve for the covariance.
    """

    Options = MahalanobisOptions

    def _fit(self, reference: Reference) -> None:
        self._standardise = Standardise.of(reference.embedding, self.options.standardise)
        points = self._standardise(reference.embedding)
        self._origin = points.mean(axis=0)
        points = points - self._origin
        size = float(np.sqrt(np.square(points).mean())) or 1e-6
        groups = _groups(reference, self.options.centre)
        order = reference.domains
        shared = _fit_covariance(points, reference, groups)
        kinds, centres, spaces = [], [], [whitening(shared, size)]
        own = {}
        if self.options.covariance == "domain":
            for domain in order:
                members = np.flatnonzero(reference.domain == domain)
                if len(members) >= self.options.min_clips:
                    part = reference.take(members)
                    covariance = _fit_covariance(points[members], part, groups[members])
                    own[domain] = len(spaces)
                    spaces.append(whitening(covariance, size))
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            centre = points[members].mean(axis=0)
            for space in sorted({own.get(d, 0) for d in domain_order(reference.domain[members])}):
                kinds.append(space)
                centres.append(centre @ spaces[space])
        self._spaces = np.stack(spaces)
        self._centres = np.stack(centres)
        self._kinds = np.array(kinds, dtype=np.int64)

    def _score(self, query: Query) -> NDArray[np.float64]:
        from scipy.spatial.distance import cdist

        points = self._standardise(query.embedding) - self._origin
        nearest = np.full(len(points), np.inf)
        for space in np.unique(self._kinds):
            centres = self._centres[self._kinds == space]
            for part in blocks(len(points), max(len(centres), points.shape[1])):
                found = cdist(points[part] @ self._spaces[space], centres).min(axis=1)
                nearest[part] = np.minimum(nearest[part], found)
        return nearest

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return self._standardise.arrays() | {
            "origin": self._origin,
            "spaces": self._spaces,
            "centres": self._centres,
            "kinds": self._kinds,
        }

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._standardise = Standardise.restore(arrays)
        self._origin, self._spaces = arrays["origin"], arrays["spaces"]
        self._centres, self._kinds = arrays["centres"], arrays["kinds"]


def _groups(reference: Reference, centre: str) -> NDArray[np.int64]:
    """(N,) which centre a clip belongs to. Clips of unknown identity form one class a domain."""
    if centre == "all":
        return np.zeros(len(reference), dtype=np.int64)
    domain = np.zeros(len(reference), dtype=np.int64)
    for number, name in enumerate(reference.domains):
        domain[reference.domain == name] = number
    if centre == "domain":
        return domain
    _, identity = np.unique(reference.identity, return_inverse=True)
    return (identity * (domain.max() + 1) + domain).astype(np.int64)


def _fit_covariance(points: NDArray[Any], reference: Reference, groups: NDArray[Any]) -> NDArray[np.float64]:
    for labels in (groups, _groups(reference, "domain"), _groups(reference, "all")):
        _, label = np.unique(labels, return_inverse=True)
        freedom = len(points) - (int(label.max()) + 1)
        if freedom >= 2:
            break
    sizes = np.bincount(label)
    starts = np.cumsum(sizes) - sizes
    sums = np.add.reduceat(points[np.argsort(label, kind="stable")], starts, axis=0)
    residuals = points - (sums / sizes[:, None])[label]
    covariance, _ = ledoit_wolf(residuals)
    return covariance * (len(points) / max(1, freedom))
