"""How many standard deviations from the usual level: the honest straw man, made for one number a clip."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from offkey.scoring.base import Query, Reference, Scorer, ScorerOptions
from offkey.scoring.standardise import safe_scale

__all__ = ["Level", "LevelOptions"]


class LevelOptions(ScorerOptions):
    """Options of `Level`."""

    name: Literal["level"] = "level"
    min_clips: int = Field(default=5, ge=2, description="clips that a domain needs for a spread of its own")


class Level(Scorer):
    """Distance from the nearest domain's mean in units of its standard deviation, ≥ 0.

    Made for a loudness in dB (D = 1); with more dimensions it is the root mean square of their distances.
    Domains with fewer than `min_clips` clips borrow the spread that all domains have about their own means.
    """

    Options = LevelOptions

    def _fit(self, reference: Reference) -> None:
        points = reference.embedding
        size = np.abs(points).max(axis=0)
        pools = [points[reference.domain == domain] for domain in reference.domains]
        self._mean = np.stack([pool.mean(axis=0) for pool in pools])
        spreads = [pool.std(axis=0) for pool in pools]
        few = [len(pool) < self.options.min_clips for pool in pools]
        if any(few):
            residuals = np.concatenate([pool - mean for pool, mean in zip(pools, self._mean, strict=True)])
            shared = residuals.std(axis=0)
            spreads = [shared if little else own for little, own in zip(few, spreads, strict=True)]
        self._spread = np.stack([safe_scale(spread, size) for spread in spreads])

    def _score(self, query: Query) -> NDArray[np.float64]:
        best = np.full(len(query), np.inf)
        for mean, spread in zip(self._mean, self._spread, strict=True):
            away = np.sqrt(np.square((query.embedding - mean) / spread).mean(axis=1))
            best = np.minimum(best, away)
        return best

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"mean": self._mean, "spread": self._spread}

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._mean, self._spread = arrays["mean"], arrays["spread"]
