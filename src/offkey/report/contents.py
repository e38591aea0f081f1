"""What a report is made of: plain values, filled in by whoever ran the detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offkey.types import Condition, Domain, Float

__all__ = ["ClipReport", "EmbeddingMap", "MachineReport", "Reason", "ReportData"]


@dataclass(frozen=True, slots=True)
class ClipReport:
    """One scored clip. `file` is the name that is shown; `path` is where its sound is read, if anywhere."""

    file: str
    path: Path | None
    score: float
    is_anomalous: bool
    p_value: float | None = None
    domain: Domain = Domain.UNKNOWN
    condition: Condition = Condition.UNKNOWN


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a clip is strange: a sentence, where the system objects, and the nearest normal clip.

    `strength` (M, F) from 0 to 1 over the clip's `seconds`, and `normal` (M, C) dB over the normal clip's, both in
    bands between `edges` (M + 1,) in hertz. `box` is (start, end, low, high) of the strangest region in seconds and
    hertz. `part` names what a front end lets the system hear ("foreground"), which map and normal clip show; empty
    for whole recordings.
    """

    text: str
    strength: Float[np.ndarray, "M F"]
    strength_name: str
    normal: Float[np.ndarray, "M C"]
    nearest: str
    edges: Float[np.ndarray, " M1"]
    seconds: float
    box: tuple[float, float, float, float]
    part: str = ""


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """Two-dimensional places of a machine's reference clips and of its scored clips.

    `clips` has one row for each of the machine's `clips`, in their order; rows with NaN are not drawn.
    `reference_domains` is empty or has one entry a reference row. `explained` is the share of the variation,
    0 to 1, that each of the two directions carries; None where that has no meaning.
    """

    reference: Float[np.ndarray, "N 2"]
    clips: Float[np.ndarray, "M 2"]
    reference_domains: Sequence[Domain] = ()
    explained: tuple[float, float] | None = None
    method: str = "principal components of the standardised embeddings"


@dataclass(frozen=True, slots=True)
class MachineReport:
    """One machine: its scored clips, its threshold and what normal scores look like.

    `false_alarm_rate` is the share of normal clips, 0 to 1, that the threshold was set to let raise an alarm.
    `reference_scores` are the cross-fitted scores of the normal clips that the detector learnt from; empty
    where they were not kept.
    """

    name: str
    clips: Sequence[ClipReport]
    threshold: float
    false_alarm_rate: float
    reference_scores: Float[np.ndarray, " N"] = field(default_factory=lambda: np.empty(0, np.float64))
    embedding: EmbeddingMap | None = None


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that the page shows.

    `created` is an ISO date or date and time. `result` is what an evaluation says (fractions, not percent):
    `{"protocol", "official_score", "interval": [lo, hi], "machines": {name: {"auc_source", "auc_target",
    "pauc", "intervals": {…}}}}`; absent keys are left blank, None means that no labels are known. `facts` are
    (label, value) pairs, `reasons` say why `auto` chose what it chose, `problems` are (file, reason) pairs.
    """

    title: str
    system: str
    created: str
    version: str
    machines: Sequence[MachineReport]
    result: Mapping[str, Any] | None = None
    facts: Sequence[tuple[str, str]] = ()
    reasons: Sequence[str] = ()
    problems: Sequence[tuple[str, str]] = ()
    config_toml: str = ""
    notes: Sequence[str] = ()
