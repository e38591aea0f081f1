"""From a data set to a published table: plan, stages, comparison; every number can be audited in the run folder."""

from __future__ import annotations

from offkey.reproducing.plan import EXPERIMENTS, Experiment, Plan, ReproduceError, experiment
from offkey.reproducing.stages import PLAN, STAGES, FinishedRun, Stage, Work, finished_runs, reproduce, year_of
from offkey.reproducing.tables import PUBLISHED, Comparison, compare

__all__ = [
    "EXPERIMENTS",
    "PLAN",
    "PUBLISHED",
    "STAGES",
    "Comparison",
    "Experiment",
    "FinishedRun",
    "Plan",
    "ReproduceError",
    "Stage",
    "Work",
    "compare",
    "experiment",
    "finished_runs",
    "reproduce",
    "year_of",
]
