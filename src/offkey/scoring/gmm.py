"""Gaussian mixture with full covariances that are shrunk as far as the number of clips demands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from offkey.scoring.base import Query, Reference, Scorer, ScorerOptions
from offkey.scoring.covariance import ledoit_wolf, whitening
from offkey.scoring.nearest import blocks
from offkey.scoring.standardise import Standardise

__all__ = ["Mixture", "MixtureOptions"]

_CACHE_BYTES = 2**18  # of points at a time in EM, so that what is made of them stays in a core's cache


class MixtureOptions(ScorerOptions):
    """Options of `Mixture`."""

    name: Literal["gmm"] = "gmm"
    components: int = Field(default=2, ge=1, le=16, description="Gaussians; with choose = bic the largest number tried")
    choose: Literal["fixed", "bic"] = Field(default="fixed", description="take that number, or the one of least BIC")
    clips_per_component: int = Field(default=5, ge=1, description="fewer clips than this a Gaussian: fewer Gaussians")
    shrinkage: float = Field(
        default=1.0,
        ge=0.0,
        description="weight of the pooled covariance, in clips a dimension; 0 is maximum likelihood",
    )
    domains: Literal["pooled", "minimum"] = Field(
        default="pooled", description="one mixture for all clips, or one a domain and the smallest result"
    )
    restarts: int = Field(default=3, ge=1, description="seeded starts; the likeliest fit is kept")
    iterations: int = Field(default=200, ge=1, description="at most this many steps of EM a start")
    standardise: bool = Field(default=False, description="z-score every feature on the reference first")


class Mixture(Scorer):
    """Negative log-likelihood of a clip in nats (any sign).

    EM runs in the space where the Ledoit–Wolf covariance of all clips is the identity. A component's
    covariance there is (n S + κ I) / (n + κ) with κ = shrinkage · D: the posterior mode, up to a constant,
    under an inverse-Wishart prior about the pooled covariance (C. Fraley, A. Raftery, Journal of
    Classification 24, 2007).
    """

    Options = MixtureOptions

    def _fit(self, reference: Reference) -> None:
        self._standardise = Standardise.of(reference.embedding, self.options.standardise)
        points = self._standardise(reference.embedding)
        self._origin = points.mean(axis=0)
        points = points - self._origin
        size = float(np.sqrt(np.square(points).mean())) or 1e-6
        self._space = whitening(ledoit_wolf(points)[0], size)
        white = points @ self._space
        if self.options.domains == "pooled":
            members = [np.arange(len(white))]
        else:
            members = [np.flatnonzero(reference.domain == domain) for domain in reference.domains]
        generator = np.random.default_rng(self.seed)
        fitted = [self._mixture(white[where], generator) for where in members]
        self._sizes = np.array([len(m.weights) for m in fitted], dtype=np.int64)
        self._weights = np.concatenate([m.weights for m in fitted])
        self._means = np.concatenate([m.means for m in fitted])
        self._factors = np.concatenate([m.factors for m in fitted])

    def _mixture(self, points: NDArray[np.float64], generator: np.random.Generator) -> _Fit:
        options = self.options
        most = max(1, min(options.components, len(points) // options.clips_per_component))
        kappa = max(options.shrinkage * points.shape[1], 1e-6 * len(points))
        tried = range(1, most + 1) if options.choose == "bic" else [most]
        fits = [
            max(
                (
                    _em(points, count, kappa, options.iterations, generator)
                    for _ in range(1 if count == 1 else options.restarts)
                ),
                key=lambda fit: fit.objective,
            )
            for count in tried
        ]
        return min(fits, key=lambda fit: fit.bic)

    def _score(self, query: Query) -> NDArray[np.float64]:
        points = self._standardise(query.embedding) - self._origin
        # the density in the original space is the density in the white one times |det W|
        volume = float(np.linalg.slogdet(self._space)[1])
        ends = np.cumsum(self._sizes)
        least = np.full(len(points), np.inf)
        for part in blocks(len(points), 2 * points.shape[1] + len(self._weights)):
            joint = _log_joint(points[part] @ self._space, self._weights, self._means, self._factors)
            for start, end in zip(ends - self._sizes, ends, strict=True):
                found = -_log_sum(joint[:, start:end]) - volume
                least[part] = np.minimum(least[part], found)
        return least

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return self._standardise.arrays() | {
            "origin": self._origin,
            "space": self._space,
            "sizes": self._sizes,
            "weights": self._weights,
            "means": self._means,
            "factors": self._factors,
        }

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._standardise = Standardise.restore(arrays)
        self._origin, self._space, self._sizes = arrays["origin"], arrays["space"], arrays["sizes"]
        self._weights, self._means, self._factors = arrays["weights"], arrays["means"], arrays["factors"]


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """K Gaussians: `weights` (K,), `means` (K, D), `factors` (K, D, D) with x ↦ (x − mean) factor white."""

    weights: NDArray[Any]
    means: NDArray[Any]
    factors: NDArray[Any]
    objective: float
    bic: float


def _em(points: NDArray[Any], count: int, kappa: float, iterations: int, generator: np.random.Generator) -> _Fit:
    n, width = points.shape
    share = _first_shares(points, count, generator)
    objective = -np.inf
    for _ in range(iterations):
        weights, means, factors = _maximise(points, share, kappa)
        joint = _log_joint(points, weights, means, factors)
        total = _log_sum(joint)
        before, objective = objective, float(total.sum()) + _log_prior(factors, kappa)
        share = np.exp(joint - total[:, None])
        if objective - before < 1e-8 * n:
            break
    free = width * (width + 1) / 2
    clips = weights * n
    parameters = (count - 1) + count * width + free * float((clips / (clips + kappa)).sum())
    return _Fit(weights, means, factors, objective, parameters * np.log(n) - 2 * float(total.sum()))


def _first_shares(points: NDArray[Any], count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(N, K) each clip wholly in its nearest centre: drawn by k-means++, then ten steps of k-means."""
    chosen = [int(generator.integers(len(points)))]
    away = np.square(points - points[chosen[0]]).sum(axis=1)
    for _ in range(1, count):
        mass = away.sum()
        odds = away / mass if mass > 0 else np.full(len(points), 1.0 / len(points))
        chosen.append(int(generator.choice(len(points), p=odds)))
        away = np.minimum(away, np.square(points - points[chosen[-1]]).sum(axis=1))
    centres = points[chosen]
    share = np.zeros((len(points), count))
    for _ in range(10):
        # |x|² is the same for every centre and may be left out of the comparison
        nearest = (np.square(centres).sum(axis=1) - 2 * points @ centres.T).argmin(axis=1)
        share = np.eye(count)[nearest]
        sizes = share.sum(axis=0)
        centres = np.where(sizes[:, None] > 0, share.T @ points / np.maximum(sizes, 1)[:, None], centres)
    return share


def _maximise(
    points: NDArray[Any], share: NDArray[Any], kappa: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    width = points.shape[1]
    clips = share.sum(axis=0) + 1e-12
    weights = clips / clips.sum()
    means = share.T @ points / clips[:, None]
    factors = np.empty((len(clips), width, width))
    for k, size in enumerate(clips):
        # the mean is taken off the product and not off all points; κ is large beside what that rounds away
        covariance = kappa * np.eye(width) - size * np.outer(means[k], means[k])
        for part in blocks(len(points), width, _CACHE_BYTES):
            covariance += (points[part] * share[part, k : k + 1]).T @ points[part]
        # the inverse of the Cholesky factor: upper triangular once transposed, whitens rows from the right
        lower = np.linalg.cholesky(covariance / (size + kappa))
        factors[k] = np.linalg.solve(lower, np.eye(width)).T
    return weights, means, factors


def _log_joint(
    points: NDArray[Any], weights: NDArray[Any], means: NDArray[Any], factors: NDArray[Any]
) -> NDArray[np.float64]:
    """(N, K) log of weight × density."""
    joint = np.empty((len(points), len(weights)))
    for k, (weight, mean, factor) in enumerate(zip(weights, means, factors, strict=True)):
        constant = np.log(weight) + np.log(np.diag(factor)).sum() - 0.5 * points.shape[1] * np.log(2 * np.pi)
        for part in blocks(len(points), points.shape[1], _CACHE_BYTES):
            white = (points[part] - mean) @ factor
            joint[part, k] = constant - 0.5 * np.einsum("nd,nd->n", white, white)
    return joint


def _log_sum(joint: NDArray[Any]) -> NDArray[np.float64]:
    top = joint.max(axis=1)
    return np.asarray(top + np.log(np.exp(joint - top[:, None]).sum(axis=1)))


def _log_prior(factors: NDArray[Any], kappa: float) -> float:
    """What the pull towards the identity adds to the log-likelihood that EM climbs."""
    determinants = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum()
    return float(kappa * determinants - 0.5 * kappa * np.square(factors).sum())
