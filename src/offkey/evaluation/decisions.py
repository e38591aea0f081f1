"""Alarms against truth: precision, recall and F1 as the challenge's evaluators compute them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offkey.evaluation.metrics import FLOOR

__all__ = ["RATES", "Decisions", "rates_of", "tally"]

RATES = ("precision", "recall", "f1")


@dataclass(frozen=True, slots=True)
class Decisions:
    """How the alarms of some clips turned out.

    `precision` is the share of alarms that were right, `recall` the share of anomalies that raised one, `f1`
    their harmonic mean; each is 0 where nothing stands in its denominator. `intervals` has a bootstrap
    interval for each, where one was asked for.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    precision: float
    recall: float
    f1: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "true_positives": self.true_positives,
            "false_positives": self.false_positives,
            "false_negatives": self.false_negatives,
            "true_negatives": self.true_negatives,
            "intervals": {k: list(v) for k, v in self.intervals.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decisions:
        """The reverse of `to_dict`."""
        intervals = {k: (float(v[0]), float(v[1])) for k, v in data["intervals"].items()}
        return cls(**{**data, "intervals": intervals})


def tally(
    alarm: NDArray[Any], anomalous: NDArray[Any], weights: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(R, 4) counts TP, FP, FN, TN and (R, 3) precision, recall, F1 under R weightings (R, N) of N clips.

    `alarm` and `anomalous` are (N,) bool.
    """
    sides = np.stack([alarm & anomalous, alarm & ~anomalous, ~alarm & anomalous, ~alarm & ~anomalous], axis=1)
    counts = np.asarray(weights, dtype=np.float64) @ sides.astype(np.float64)
    return counts, rates_of(counts)


def rates_of(counts: NDArray[Any]) -> NDArray[np.float64]:
    """(R, 3) precision, recall, F1 of (R, 4) counts TP, FP, FN, TN."""
    hit, false, missed = counts[:, 0], counts[:, 1], counts[:, 2]
    precision = hit / np.maximum(hit + false, FLOOR)
    recall = hit / np.maximum(hit + missed, FLOOR)
    f1 = 2 * precision * recall / np.maximum(precision + recall, FLOOR)
    return np.stack([precision, recall, f1], axis=1)
