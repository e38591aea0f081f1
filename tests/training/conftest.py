"""A tiny thing to train: a net with dropout and batch norm, on clips that a line could separate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from offkey.training.randomness import Moment
from offkey.types import Batch, Labels


class TinyTask(nn.Module):
    """Batch -> cross-entropy, with everything that makes resuming hard: dropout, running statistics, own draws."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(12, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Linear(8, 3)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif parameter is not self.norm.weight:
                parameter.data.zero_()
        self.moment = Moment(0, 0, 0)

    def seek(self, moment: Moment) -> None:
        self.moment = moment

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        x = batch.waveform
        if self.training:
            noise = torch.randn(x.shape, generator=self.moment.noise()) * 0.1
            x = x + noise.to(x.device)
        logits = self.last(self.dropout(torch.relu(self.norm(self.first(x)))))
        loss = nn.functional.cross_entropy(logits, batch.labels.identity)
        return {"total": loss, "accuracy": (logits.argmax(1) == batch.labels.identity).float().mean()}


def tiny_batches(epoch: int, count: int = 9, size: int = 6) -> list[Batch]:
    rng = np.random.default_rng([7, epoch])
    centres = np.random.default_rng(5).standard_normal((3, 12)) * 2
    batches = []
    for number in range(count):
        identity = rng.integers(3, size=size)
        waveform = torch.from_numpy((centres[identity] + rng.standard_normal((size, 12))).astype(np.float32))
        target = torch.from_numpy(identity)
        labels = Labels(target, torch.full((size, 0), -1), torch.zeros(size, dtype=torch.int64))
        place = torch.arange(size) + number * size
        batches.append(Batch(waveform, torch.full((size,), 12), labels, place))
    return batches


@pytest.fixture
def tiny_task() -> Callable[..., TinyTask]:
    return TinyTask


@pytest.fixture
def batches() -> Callable[..., list[Batch]]:
    return tiny_batches
