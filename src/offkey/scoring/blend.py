"""Several scorers as one: every score becomes a normal quantile, then a weighted mean is taken.

Scores of different scorers have different units and tails. What they share is their rank among normal clips:
the place of a score among cross-fitted normal scores, expressed as a quantile of the standard normal
distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from offkey.scoring.base import Query, Reference, Scorer, ScorerOptions, ScoringError
from offkey.scoring.calibrate import cross_fit
from offkey.scoring.density import Density, DensityOptions
from offkey.scoring.gmm import Mixture, MixtureOptions
from offkey.scoring.magnitude import Level, LevelOptions
from offkey.scoring.mahalanobis import Mahalanobis, MahalanobisOptions
from offkey.scoring.neighbours import Neighbours, NeighboursOptions

__all__ = ["Blend", "BlendOptions", "NormalQuantile", "PartConfig", "SIMPLE_SCORERS"]

SIMPLE_SCORERS: dict[str, type[Scorer]] = {
    "mahalanobis": Mahalanobis,
    "gmm": Mixture,
    "neighbours": Neighbours,
    "density": Density,
    "level": Level,
}

PartConfig = Annotated[
    MahalanobisOptions | MixtureOptions | NeighboursOptions | DensityOptions | LevelOptions,
    Field(discriminator="name"),
]


@dataclass(frozen=True, slots=True, eq=False)
class NormalQuantile:
    """A strictly increasing map from scores to quantiles of the standard normal distribution.

    `knots` (K,) distinct normal scores, ascending; `quantiles` (K,) Φ⁻¹((average rank − ½) / n) of each;
    linear between the knots. Beyond them it goes on along the straight line of least squares through all
    knots' own normal scores (the slope 1/σ where they are Gaussian), so that ranks are kept far outside what
    was seen. Steps smaller than float64 resolves can round to equal values, as everywhere.
    """

    knots: NDArray[Any]
    quantiles: NDArray[Any]
    slope: float

    @classmethod
    def of(cls, scores: NDArray[Any]) -> NormalQuantile:
        """Learnt on the (n,) cross-fitted scores of normal clips; `ScoringError` on none or NaN."""
        from scipy.special import ndtri

        values = np.sort(np.asarray(scores, dtype=np.float64))
        if values.size == 0 or not np.isfinite(values).all():
            raise ScoringError("a normal quantile needs at least one finite score")
        n = len(values)
        spread = float(values[-1] - values[0])
        # scores closer than rounding noise share one knot: a slope between them would mean nothing
        first = np.concatenate([[True], np.diff(values) > 1e-12 * max(spread, abs(float(values[0])))])
        starts = np.flatnonzero(first)
        ends = np.append(starts[1:], n)
        knots = values[starts]
        quantiles = ndtri(0.5 * (starts + ends) / n)
        if len(knots) == 1:
            return cls(knots, np.zeros(1), 1.0 / (abs(float(knots[0])) or 1.0))
        weights = (ends - starts).astype(np.float64)
        dx = (knots - np.average(knots, weights=weights)) / spread
        dz = quantiles - np.average(quantiles, weights=weights)
        slope = float((weights * dx * dz).sum() / (weights * dx * dx).sum()) / spread
        return cls(knots, quantiles, slope)

    def __call__(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """(M,) quantiles of (M,) scores."""
        inside = np.interp(scores, self.knots, self.quantiles)
        below = np.minimum(scores - self.knots[0], 0.0)
        above = np.maximum(scores - self.knots[-1], 0.0)
        return np.asarray(inside + self.slope * (below + above))


class BlendOptions(ScorerOptions):
    """Options of `Blend`."""

    name: Literal["blend"] = "blend"
    parts: tuple[PartConfig, ...] = Field(
        default=(MahalanobisOptions(), DensityOptions()), min_length=1, description="the scorers to blend"
    )
    weights: tuple[float, ...] | None = Field(
        default=None, description="one weight ≥ 0 a part; equal ones if not given"
    )
    folds: int = Field(default=5, ge=2, description="folds of the cross-fit behind the quantiles")

    @model_validator(mode="after")
    def _weights_fit(self) -> BlendOptions:
        if self.weights is not None:
            if len(self.weights) != len(self.parts):
                raise ValueError(f"{len(self.parts)} parts but {len(self.weights)} weights")
            if min(self.weights) < 0 or sum(self.weights) <= 0:
                raise ValueError("weights must be ≥ 0 and not all 0")
        return self


class Blend(Scorer):
    """Weighted mean of the parts' normal quantiles: about 0 for usual clips, above 2 for rare ones.

    Fitting needs at least two clips, and fits every part folds + 1 times.
    """

    Options = BlendOptions

    def _fit(self, reference: Reference) -> None:
        options = self.options
        self._parts = [SIMPLE_SCORERS[part.name](part, self.seed) for part in options.parts]
        self._maps = []
        for part in options.parts:
            build = partial(SIMPLE_SCORERS[part.name], part, self.seed)
            scores = cross_fit(build, reference, options.folds, seed=self.seed)
            self._maps.append(NormalQuantile.of(scores))
        for part in self._parts:
            part.fit(reference)

    def _weights(self) -> NDArray[np.float64]:
        given = self.options.weights or (1.0,) * len(self.options.parts)
        return np.asarray(given, dtype=np.float64) / sum(given)

    def _score(self, query: Query) -> NDArray[np.float64]:
        quantiles = [to(part.score(query)) for part, to in zip(self._parts, self._maps, strict=True)]
        return np.asarray(sum(w * q for w, q in zip(self._weights(), quantiles, strict=True)))

    def part_scores(self, query: Query) -> dict[str, NDArray[np.float64]]:
        """Each part's own score (M,) before blending; a name that occurs twice gets a number."""
        names = [part.name for part in self._parts]
        labels = [f"{n}.{i}" if names.count(n) > 1 else n for i, n in enumerate(names)]
        return {label: part.score(query) for label, part in zip(labels, self._parts, strict=True)}

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for i, (part, to) in enumerate(zip(self._parts, self._maps, strict=True)):
            arrays[f"{i}.knots"], arrays[f"{i}.quantiles"] = to.knots, to.quantiles
            arrays[f"{i}.slope"] = np.array([to.slope])
            arrays |= {f"{i}.part.{key}": value for key, value in part.state().items()}
        return arrays

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._parts, self._maps = [], []
        for i, config in enumerate(self.options.parts):
            prefix = f"{i}.part."
            state = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
            self._parts.append(SIMPLE_SCORERS[config.name].from_state(state))
            slope = float(arrays[f"{i}.slope"][0])
            self._maps.append(NormalQuantile(arrays[f"{i}.knots"], arrays[f"{i}.quantiles"], slope))
