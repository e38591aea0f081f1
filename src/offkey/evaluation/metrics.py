"""The challenge's numbers from labels and scores, in plain numpy.

Everything rests on one routine: the ROC curve of weighted clips, for many weightings at once. A weighting of
ones is the plain curve; counts drawn with replacement are a bootstrap sample. Scores may be any finite
float64, of any size and sign; NaN and infinity are refused, never ranked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offkey.types import OffkeyError

__all__ = [
    "FLOOR",
    "MetricError",
    "RocCurve",
    "auc",
    "harmonic_mean",
    "official_score",
    "partial_auc",
    "roc_curve",
    "weighted_areas",
]

FLOOR = sys.float_info.epsilon
"""What stands for a value of 0 in a harmonic mean, as in the challenge's own evaluators."""


class MetricError(OffkeyError):
    """A metric has no value for what it was given; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class RocCurve:
    """Corners of a ROC curve from (0, 0) to (1, 1): clips with score ≥ `threshold` (G,) raise the alarm."""

    false_alarm_rate: NDArray[Any]
    hit_rate: NDArray[Any]
    threshold: NDArray[Any]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, 0 to 1: how often an anomaly beats a normal clip; ties count half.

    `labels` (N,) 1 or True for anomalies, 0 or False for normal clips; `scores` (N,) higher is more
    anomalous. Raises `MetricError` on NaN, on shapes that differ, and where one of the classes is missing.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    positive, values = _checked(labels, scores)
    return float(weighted_areas(positive, values, np.ones((1, len(values))), None)[0][0])


def partial_auc(labels: ArrayLike, scores: ArrayLike, max_fpr: float = 0.1) -> float:
    """Standardised partial area under the ROC curve up to the false-alarm rate `max_fpr`, 0 to 1.

    With A the area left of max_fpr, m = max_fpr²/2 the area of guessing and M = max_fpr that of perfection,
    it is (1 + (A − m)/(M − m)) / 2: 0.5 for guessing (D. McClish, Medical Decision Making 9, 1989). Equals
    scikit-learn's `roc_auc_score(labels, scores, max_fpr=max_fpr)`. Raises as `auc` does.
    """
    positive, values = _checked(labels, scores)
    return float(weighted_areas(positive, values, np.ones((1, len(values))), max_fpr)[1][0])


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> RocCurve:
    """The ROC curve with one corner a distinct score, for plots. Raises as `auc` does."""
    positive, values = _checked(labels, scores)
    threshold, hits, alarms = _curve(positive, values, np.ones((1, len(values))))
    return RocCurve(
        alarms[0] / alarms[0, -1],
        hits[0] / hits[0, -1],
        np.concatenate([[np.inf], threshold]),
    )


def harmonic_mean(values: Iterable[float] | NDArray[Any]) -> float:
    """The n / Σ 1/v of values in [0, 1] or larger; values below the float epsilon count as epsilon.

    >>> round(harmonic_mean([0.5, 1.0]), 4)
    0.6667
    """
    array = np.asarray(list(values), dtype=np.float64)
    if array.size == 0:
        raise MetricError("a mean of no values does not exist")
    if np.isnan(array).any() or (array < 0).any():
        raise MetricError("a harmonic mean needs numbers ≥ 0; a value is negative or NaN")
    return float(len(array) / np.sum(1.0 / np.maximum(array, FLOOR)))


def official_score(values: Iterable[float] | NDArray[Any]) -> float:
    """The challenge's one number since 2021: the harmonic mean of all AUC and pAUC values (fractions)."""
    return harmonic_mean(values)


def weighted_areas(
    positive: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any], max_fpr: float | None = 0.1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(R,) AUC and (R,) pAUC under R weightings (R, N) ≥ 0 of the same N clips.

    `positive` (N,) bool, `scores` (N,) finite. NaN where a weighting leaves a class empty. With `max_fpr`
    None the second array is empty.
    """
    _, hits, alarms = _curve(positive, scores, weights)
    all_hits, all_alarms = hits[:, -1:], alarms[:, -1:]
    width, height = np.diff(alarms, axis=1), hits[:, :-1] + hits[:, 1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        full = (width * height).sum(axis=1) / (2.0 * all_hits * all_alarms)[:, 0]
        if max_fpr is None:
            return full, np.zeros(0)
        if not 0 < max_fpr <= 1:
            raise MetricError(f"max_fpr must lie in (0, 1], not {max_fpr}")
        if max_fpr == 1:
            return full, full
        # of each trapezoid only the share left of max_fpr counts; its right edge is interpolated
        room = max_fpr * all_alarms - alarms[:, :-1]
        share = np.clip(np.where(width > 0, room / np.where(width > 0, width, 1.0), 0.0), 0.0, 1.0)
        rise = np.diff(hits, axis=1)
        area = (width * share * (hits[:, :-1] + 0.5 * share * rise)).sum(axis=1)
        area = area / (all_hits * all_alarms)[:, 0]
    least, most = 0.5 * max_fpr**2, max_fpr
    return full, 0.5 * (1.0 + (area - least) / (most - least))


def _curve(
    positive: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Distinct scores (G,) from high to low; the weight of anomalies, of normal clips, at or above each.

    The two (R, G+1) arrays of weights start with a column of zeros.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    weights = np.asarray(weights, dtype=np.float64)[:, order]
    sign = positive[order]
    start = np.zeros((len(weights), 1))
    hits = np.cumsum(weights * sign, axis=1)[:, last]
    alarms = np.cumsum(weights * ~sign, axis=1)[:, last]
    return ordered[last], np.hstack([start, hits]), np.hstack([start, alarms])


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise MetricError(f"labels and scores must be two lists of equal length, not {truth.shape}, {values.shape}")
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise MetricError(f"score {place} is {values[place]}; only finite scores can be ranked")
    if not np.isin(truth, (0, 1)).all():
        raise MetricError("labels must be 0 (normal) or 1 (anomaly)")
    positive = truth.astype(bool)
    if positive.all() or not positive.any():
        missing = "normal" if positive.any() else "anomalous"
        raise MetricError(f"an AUC needs both kinds of clips; there is no {missing} clip among the {len(values)}")
    return positive, values
