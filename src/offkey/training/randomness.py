"""Random numbers that follow from where training stands, so that a resumed run draws the same ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

__all__ = ["Moment"]


class Moment(NamedTuple):
    """A place in a training run: `step` counts the batches of one process within an epoch.

    >>> bool(Moment(0, 1, 2, 0).numbers().random() == Moment(0, 1, 2, 0).numbers().random())
    True
    >>> bool(Moment(0, 1, 2, 0).numbers().random() == Moment(0, 1, 3, 0).numbers().random())
    False
    """

    seed: int
    epoch: int
    step: int
    rank: int = 0

    def numbers(self, purpose: int = 0) -> np.random.Generator:
        """A generator of its own for each purpose: switching one augmentation on leaves the others alone."""
        return np.random.default_rng([*self, purpose])

    def torch_seed(self, purpose: int = 0) -> int:
        """A seed for torch, for noise by the million and for dropout."""
        return int(np.random.SeedSequence([*self, purpose]).generate_state(1, np.uint64)[0] >> 1)

    def noise(self, purpose: int = 0) -> torch.Generator:
        """A torch generator on the CPU, so that every device gets the same numbers."""
        return torch.Generator().manual_seed(self.torch_seed(purpose))
