"""What the separator is asked to answer, the teacher, and a run that is killed and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offkey.separation.losses import si_snr
from offkey.separation.mixing import Lesson, Pair, lesson_plan, to_batch
from offkey.separation.recipe import MixingConfig, PriorConfig, SeparationRecipe
from offkey.separation.training import SeparationTask
from offkey.training.batches import BatchPlan
from offkey.training.config import TrainingConfig
from offkey.training.loop import train
from offkey.types import Batch, OffkeyError

TRAINING = TrainingConfig(epochs=4, batch_size=4, learning_rate=0.1, keep_memory=False, threads=1)
RECIPE = SeparationRecipe(
    mixing=MixingConfig(batches=5), prior=PriorConfig(alone_share=0.5), training=TRAINING, teacher_momentum=0.5
)


class Bands(nn.Module):
    """A stand-in for the separator: a gain for each of 33 bands."""

    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.zeros(33))
        self.register_buffer("window", torch.hann_window(64))

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        spectrum = torch.stft(waveform, 64, 32, window=self.window, pad_mode="constant", return_complex=True)
        mask = torch.sigmoid(self.gains)[:, None]
        front = torch.istft(spectrum * mask, 64, 32, window=self.window, length=waveform.shape[1])
        return torch.stack([front, waveform - front], dim=1)


class Tones:
    """Low tones are machines, high ones are noise; with a teacher, all three kinds of lesson come."""

    def draw(self, rng: np.random.Generator, with_teacher: bool) -> Pair:
        time = np.arange(1600) / 16000
        low, high = (np.sin(2 * np.pi * rng.uniform(*span) * time) for span in ((500, 2000), (4000, 7000)))
        noisy = low + 0.5 * np.sin(2 * np.pi * rng.uniform(4000, 7000) * time)
        kind = Lesson(int(rng.integers(3))) if with_teacher else Lesson.KNOWN
        first = low if kind is Lesson.KNOWN else noisy
        second = noisy[::-1].copy() if kind is Lesson.SUM else high
        return kind, first.astype(np.float32), second.astype(np.float32)


def seeded(kind: Lesson, seed: int) -> Pair:
    rng = np.random.default_rng(seed)
    first, second = (rng.standard_normal(800).astype(np.float32) for _ in range(2))
    return kind, first, second


def test_what_the_separator_is_to_answer() -> None:
    task = SeparationTask(Bands(), RECIPE, teacher=True)
    kinds = [Lesson.SUM, Lesson.KNOWN, Lesson.EXTRA_NOISE, Lesson.SUM]
    batch = to_batch([seeded(kind, number) for number, kind in enumerate(kinds)])
    target = task._answers(batch.waveform, batch.lengths, batch.place)

    def taught(wave: Tensor) -> Tensor:
        assert task.teacher is not None
        with torch.no_grad():
            return task.teacher(wave[None], torch.tensor([len(wave)]))[0]  # type: ignore[no-any-return]

    for row, kind in enumerate(kinds):
        first, second = batch.waveform[row]
        wanted = {
            Lesson.KNOWN: lambda a, b: torch.stack([a, b]),
            Lesson.EXTRA_NOISE: lambda a, b: taught(a) + torch.stack([torch.zeros_like(b), b]),
            Lesson.SUM: lambda a, b: taught(a) + taught(b),
        }[kind](first, second)
        assert torch.allclose(target[row], wanted, atol=1e-5)
        assert torch.allclose(target[row].sum(0), first + second, atol=1e-5)


def test_the_teacher_follows_slowly_and_learns_from_nobody() -> None:
    separator = Bands()
    task = SeparationTask(separator, RECIPE, teacher=True).train()
    assert task.teacher is not None
    assert not task.teacher.training
    with torch.no_grad():
        separator.gains.fill_(1.0)
    batch = to_batch([seeded(Lesson.EXTRA_NOISE, 0), seeded(Lesson.SUM, 1)])
    losses = task(batch)
    assert torch.allclose(task.teacher.gains, torch.tensor(0.5))  # momentum 0.5: half of the way
    losses["total"].backward()
    assert separator.gains.grad is not None
    assert float(separator.gains.grad.abs().max()) > 0
    assert task.teacher.gains.grad is None
    task.eval()
    task(batch)
    assert torch.allclose(task.teacher.gains, torch.tensor(0.5))


def test_lessons_that_need_a_teacher_without_one() -> None:
    with pytest.raises(OffkeyError, match="teacher=True"):
        SeparationTask(Bands(), RECIPE)(to_batch([seeded(Lesson.SUM, 0)]))


def test_the_exam_tells_the_gain() -> None:
    separator = Bands()
    with torch.no_grad():
        separator.gains.copy_(torch.where(torch.arange(33) < 12, 9.0, -9.0))
    task = SeparationTask(separator, RECIPE).eval()
    assert task.measured() is None
    rng = np.random.default_rng(0)
    batches = [to_batch([Tones().draw(rng, False) for _ in range(count)]) for count in (4, 2)]
    with torch.no_grad():
        told = [task(batch) for batch in batches]
    measured = task.measured()
    assert measured is not None
    assert measured.clips == 6
    every = torch.cat([batch.waveform for batch in batches])
    assert measured.before == pytest.approx(float(si_snr(every.sum(1), every[:, 0]).mean()), abs=1e-4)
    assert measured.gain > 10
    mean = (4 * told[0]["si_snr_gain"] + 2 * told[1]["si_snr_gain"]) / 6
    assert measured.gain == pytest.approx(float(mean), abs=1e-3)
    assert task.measured() is None


class Killed(Exception):
    pass


def run(folder: Path, stop_after: int | None = None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train the stand-in; `stop_after` steps the process is as good as dead."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = SeparationTask(Bands(), RECIPE, teacher=True)
    steps = 0

    def dying(batches: Iterator[Batch]) -> Iterator[Batch]:
        nonlocal steps
        for batch in batches:
            if steps == stop_after:
                raise Killed
            steps += 1
            yield batch

    def plan(epoch: int) -> BatchPlan:
        own = lesson_plan(Tones(), RECIPE, epoch, workers=0)
        return BatchPlan(own.order, lambda order: dying(iter(own.load(order))))

    rng = np.random.default_rng(5)
    exam = [to_batch([Tones().draw(rng, False) for _ in range(8)])]
    settings = TRAINING.model_copy(update={"checkpoint_every_steps": 3})
    history = train(task, plan, lambda _: exam, settings, folder, seed=RECIPE.seed)
    return task.state_dict(), history.epochs[-1].held_out


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    wanted, held_out = run(tmp_path / "whole")
    assert held_out["si_snr_gain"] > 3
    for stop in (4, 9):
        with pytest.raises(Killed):
            run(tmp_path / "killed", stop_after=stop)
    resumed, again = run(tmp_path / "killed")
    assert again == held_out
    assert resumed.keys() == wanted.keys()
    assert any(name.startswith("teacher.") for name in wanted)
    for name, tensor in wanted.items():
        assert torch.equal(tensor, resumed[name]), name
