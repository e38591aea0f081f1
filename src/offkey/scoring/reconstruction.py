"""A score that the model itself has found, a reconstruction error for example: passed on as it is."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from offkey.scoring.base import Query, Reference, Scorer, ScorerOptions, ScoringError

__all__ = ["Value", "ValueOptions"]


class ValueOptions(ScorerOptions):
    """Options of `Value`."""

    name: Literal["value"] = "value"
    column: int | None = Field(
        default=None, ge=0, description="which number of the view, from 0; null: the only one that it has"
    )


class Value(Scorer):
    """One number of the embedding, in its own unit; the view must make it so that higher is stranger.

    It learns nothing from the reference: a clip's score is the same whichever clips it is fitted on. Raises
    `ScoringError` where the embedding has more than one number and none is named, or has no such column.
    """

    Options = ValueOptions

    def _fit(self, reference: Reference) -> None:
        column = self.options.column
        if column is not None and column >= reference.width:
            raise ScoringError(f"value: there is no column {column}, the view has {reference.width}, counted from 0")
        if column is None and reference.width != 1:
            raise ScoringError(
                f"value: the score is one number a clip, but this view has {reference.width}; "
                "choose the view of an error, or a scorer that measures embeddings (mahalanobis, neighbours)"
            )

    def _score(self, query: Query) -> NDArray[np.float64]:
        return np.array(query.embedding[:, self.options.column or 0])

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        if arrays:
            raise ValueError(f"unexpected {', '.join(arrays)}")
