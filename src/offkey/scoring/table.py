"""All scorers by name, and how one is made from its config or its saved state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from numpy.typing import NDArray
from pydantic import Field

from offkey.scoring.base import Scorer, ScorerOptions, ScoringError, read_header
from offkey.scoring.density import Density, DensityOptions
from offkey.scoring.gmm import Mixture, MixtureOptions
from offkey.scoring.magnitude import Level, LevelOptions
from offkey.scoring.mahalanobis import Mahalanobis, MahalanobisOptions
from offkey.scoring.neighbours import Neighbours, NeighboursOptions
from offkey.scoring.reconstruction import Value, ValueOptions

__all__ = ["SCORERS", "ScorerConfig", "build_scorer", "scorer_from_state"]

SCORERS: dict[str, type[Scorer]] = {
    "mahalanobis": Mahalanobis,
    "gmm": Mixture,
    "neighbours": Neighbours,
    "density": Density,
    "level": Level,
    "value": Value,
}

ScorerConfig = Annotated[
    MahalanobisOptions | MixtureOptions | NeighboursOptions | DensityOptions | LevelOptions | ValueOptions,
    Field(discriminator="name"),
]


def build_scorer(config: ScorerOptions, seed: int = 0) -> Scorer:
    """A fresh, unfitted scorer; `seed` decides wherever it draws at random.

    >>> build_scorer(NeighboursOptions(k=3)).name
    'neighbours'
    """
    name = str(getattr(config, "name", None))
    if name not in SCORERS:
        raise ScoringError(f"there is no scorer called {name!r}; choose from {', '.join(SCORERS)}")
    return SCORERS[name](config, seed)


def scorer_from_state(state: Mapping[str, NDArray[Any]]) -> Scorer:
    """The fitted scorer that `Scorer.state` described, whichever it was."""
    name = str(read_header(state)["name"])
    if name not in SCORERS:
        raise ScoringError(f"there is no scorer called {name!r} in this offkey; update offkey or fit again")
    return SCORERS[name].from_state(state)
