"""Official metrics, the rules of each challenge year, result files and tables."""

from __future__ import annotations

from offkey.evaluation.decisions import Decisions
from offkey.evaluation.metrics import (
    MetricError,
    RocCurve,
    auc,
    harmonic_mean,
    official_score,
    partial_auc,
    roc_curve,
)
from offkey.evaluation.protocol import (
    PROTOCOLS,
    EvaluationError,
    Protocol,
    ScoredClip,
    choose_protocol,
    evaluate,
)
from offkey.evaluation.result import MachineResult, Result
from offkey.evaluation.submission import (
    SubmissionError,
    Truth,
    check_label,
    check_scored,
    read_submission,
    read_truth,
    truth_of_name,
    write_package,
    write_submission,
)
from offkey.evaluation.tables import Cell, Run, Table, summarise

__all__ = [
    "auc",
    "partial_auc",
    "harmonic_mean",
    "official_score",
    "roc_curve",
    "RocCurve",
    "MetricError",
    "PROTOCOLS",
    "Protocol",
    "ScoredClip",
    "choose_protocol",
    "evaluate",
    "EvaluationError",
    "Result",
    "MachineResult",
    "Decisions",
    "Truth",
    "read_submission",
    "read_truth",
    "truth_of_name",
    "check_label",
    "check_scored",
    "write_package",
    "write_submission",
    "SubmissionError",
    "Run",
    "Cell",
    "Table",
    "summarise",
]
