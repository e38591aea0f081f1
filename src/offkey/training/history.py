"""What a training run leaves to read: losses of every epoch, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["EpochRecord", "TrainingHistory"]


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Means over one epoch: `train` and `held_out` losses by name (empty without held-out clips)."""

    epoch: int
    step: int
    train: dict[str, float]
    held_out: dict[str, float]
    learning_rate: float
    seconds: float


@dataclass(slots=True)
class TrainingHistory:
    """Epochs in order: `best_epoch` has the lowest held-out loss, the weights of `kept_epoch` stayed.

    `resumed_at` is the optimiser step from which this call went on; None where it began anew.
    """

    epochs: list[EpochRecord] = field(default_factory=list)
    best_epoch: int | None = None
    kept_epoch: int | None = None
    stopped_early: bool = False
    resumed_at: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON.

        >>> TrainingHistory.from_dict(TrainingHistory(best_epoch=2).to_dict()).best_epoch
        2
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingHistory:
        """The inverse of `to_dict`."""
        return cls(**{**values, "epochs": [EpochRecord(**record) for record in values["epochs"]]})
