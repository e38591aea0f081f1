"""A score that the model itself has found, a reconstruction error for example: passed on as it is."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offkey.scoring.base import Query, Reference, Scorer, ScorerOptions, ScoringError

__all__ = ["Value", "ValueOptions"]


class ValueOptions(ScorerOptions):
    """Options of `Value`: there are none."""

    name: Literal["value"] = "value"


class Value(Scorer):
    """The one number of the embedding, in its own unit; the view must make it so that higher is stranger.

    It learns nothing from the reference: a clip's score is the same whichever clips it is fitted on. Raises
    `ScoringError` where the embedding has more than one number.
    """

    Options = ValueOptions

    def _fit(self, reference: Reference) -> None:
        if reference.width != 1:
            raise ScoringError(
                f"value: the score is one number a clip, but this view has {reference.width}; "
                "choose the view of an error, or a scorer that measures embeddings (mahalanobis, neighbours)"
            )

    def _score(self, query: Query) -> NDArray[np.float64]:
        return np.array(query.embedding[:, 0])

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        if arrays:
            raise ValueError(f"unexpected {', '.join(arrays)}")
