"""Curves of training for TensorBoard, by option."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from offkey.types import OffkeyError

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Loss curves for TensorBoard in `folder`; a resumed run goes on at `step` and drops what lies beyond.

    Raises OffkeyError where TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise OffkeyError(
                "training.log is 'tensorboard', but TensorBoard is not installed: "
                "pip install 'offkey[track]', or set training.log to 'none'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=step)

    def write(self, step: int, part: str, values: Mapping[str, float]) -> None:
        """Add one point to the curve `part/name` of every value."""
        for name, value in values.items():
            self._writer.add_scalar(f"{part}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
