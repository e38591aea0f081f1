"""Settings of the DCASE baseline; loading this module loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BaselineConfig", "Pooling"]

Pooling = Literal["mean", "max", "top"]


class BaselineConfig(BaseModel):
    """The dense autoencoder of the DCASE baselines of 2023 to 2026, as published where nothing is changed.

    >>> BaselineConfig(width=64).latent
    8
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: int = Field(default=5, ge=1, description="log-mel frames side by side in one input vector")
    width: int = Field(default=128, ge=1, description="numbers in a hidden layer")
    layers: int = Field(default=4, ge=1, description="hidden layers before the latent one, and as many after it")
    latent: int = Field(default=8, ge=1, description="numbers in the narrowest layer")
    pooling: Pooling = Field(
        default="mean", description="errors of a clip's vectors -> one score: mean (official), max, or mean of the top"
    )
    top: int = Field(default=10, ge=1, description="vectors that count where pooling is top")
    mahalanobis: Literal["residual", "distance"] = Field(
        default="residual",
        description="residual: distance of a clip's mean residual, which is what the official code computes; "
        "distance: mean of every frame's distance, which is what its paper describes",
    )
