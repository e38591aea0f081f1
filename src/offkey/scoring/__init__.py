"""Scores of clips from embeddings, and what they mean: `Scorer`, its kinds, blending and calibration."""

from __future__ import annotations

from offkey.scoring.base import Query, Reference, Scorer, ScorerOptions, ScoringError
from offkey.scoring.blend import NormalQuantile, blend, blend_normal, left_out_quantiles, weighted_mean
from offkey.scoring.calibrate import Calibration, clips_needed, cross_fit, folds_of, rate_law, sessions_apart
from offkey.scoring.density import Density, DensityOptions
from offkey.scoring.gmm import Mixture, MixtureOptions
from offkey.scoring.magnitude import Level, LevelOptions
from offkey.scoring.mahalanobis import Mahalanobis, MahalanobisOptions
from offkey.scoring.neighbours import Neighbours, NeighboursOptions
from offkey.scoring.rate import FalseAlarms
from offkey.scoring.table import SCORERS, ScorerConfig, build_scorer, scorer_from_state

__all__ = [
    "Reference",
    "Query",
    "Scorer",
    "ScorerOptions",
    "ScoringError",
    "SCORERS",
    "ScorerConfig",
    "build_scorer",
    "scorer_from_state",
    "Mahalanobis",
    "MahalanobisOptions",
    "Mixture",
    "MixtureOptions",
    "Neighbours",
    "NeighboursOptions",
    "Density",
    "DensityOptions",
    "Level",
    "LevelOptions",
    "blend",
    "blend_normal",
    "left_out_quantiles",
    "weighted_mean",
    "NormalQuantile",
    "Calibration",
    "clips_needed",
    "cross_fit",
    "folds_of",
    "rate_law",
    "sessions_apart",
    "FalseAlarms",
]
