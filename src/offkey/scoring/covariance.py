"""Covariance of few points in many dimensions: Ledoit–Wolf shrinkage, and the whitening that belongs to it.

O. Ledoit, M. Wolf: A well-conditioned estimator for large-dimensional covariance matrices, Journal of
Multivariate Analysis 88 (2004), 365–411.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ledoit_wolf", "whitening"]


def ledoit_wolf(residuals: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """(D, D) shrunk covariance of residuals (N, D) whose mean is taken to be 0, and the shrinkage in [0, 1].

    With S the second moment and μ = tr S / D, the estimate is (1 − ρ) S + ρ μ I. ρ is the ratio of S's
    sampling variance (from the scatter of x xᵀ about S) to its distance from μ I, both in Frobenius norm.
    """
    n, width = residuals.shape
    moment = residuals.T @ residuals / n
    mean_variance = float(np.trace(moment)) / width
    square_norm = float(np.square(moment).sum())
    scatter = (float(np.square(np.square(residuals).sum(axis=1)).sum()) / n - square_norm) / n
    distance = square_norm - width * mean_variance**2
    scatter = min(max(scatter, 0.0), distance)
    shrinkage = scatter / distance if scatter > 0 else 0.0
    covariance = (1.0 - shrinkage) * moment
    covariance.flat[:: width + 1] += shrinkage * mean_variance
    return covariance, shrinkage


def whitening(covariance: NDArray[Any], size: float) -> NDArray[np.float64]:
    """(D, D) matrix W such that (x − y) W has the Mahalanobis length of x − y.

    Directions in which the reference does not vary at all would make every new clip infinitely strange:
    variances below 1e-10 of the mean one, or of (1e-6 · `size`)², are raised to that. `size` is the typical
    magnitude of the embeddings.
    """
    values, vectors = np.linalg.eigh(covariance)
    floor = max(1e-10 * float(values.mean()), (1e-6 * size) ** 2, 1e-200)
    return np.asarray(vectors / np.sqrt(np.maximum(values, floor)))
