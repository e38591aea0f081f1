"""Lessons for a separator, mixed on the fly: which two clips meet, how loud each is, and which crop of them.

A lesson is a pair of sounds whose sum the separator hears. Every draw follows from a `Moment` (seed, epoch, batch): a
run that was killed draws the same lessons again, whatever the number of threads that read clips.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from offkey.data.loader import ClipReader
from offkey.separation.recipe import PriorConfig, SeparationRecipe
from offkey.separation.stationarity import coloured_floor, stationary_floor, stationary_noise, valley_depth
from offkey.training.batches import BatchPlan
from offkey.training.randomness import Moment
from offkey.types import Batch, ClipMeta, Content, OffkeyError

__all__ = ["Lesson", "MixtureLessons", "Pair", "SupervisedLessons", "fixed_lessons", "lesson_plan", "teacher_epoch"]

Shelf = Mapping[str, Sequence[ClipMeta]]
"""Clips by machine."""

_LESSON, _HELD_OUT = 31, 32  # purposes of random numbers, apart from those of training/, systems/ and remix
_LEVEL = 0.1  # RMS of a foreground before the gain; the separator hears levels relatively anyway
_AHEAD = 2  # batches being made while one is used
_FEWEST = 8  # clips of a machine and domain that stand for foreground, where there are as many


class Lesson(IntEnum):
    """What the two parts of a lesson are; it decides what the separator is to answer."""

    KNOWN = 0
    """Foreground and background: they are the answer."""
    EXTRA_NOISE = 1
    """A normal clip and a background: what the teacher finds in the clip, the background added to its background."""
    SUM = 2
    """Two normal clips: the sums of what the teacher finds in each."""


Pair = tuple[Lesson, NDArray[np.float32], NDArray[np.float32]]
"""A lesson's kind and its two parts, (T,) float32 each."""


@runtime_checkable
class Lessons(Protocol):
    """Draws one lesson after the other."""

    def draw(self, rng: np.random.Generator, with_teacher: bool) -> Pair:
        """One lesson; one that asks the teacher only where there is one yet."""


class _Shelves:
    """Reads random crops of clips, every machine being as likely as any other."""

    def __init__(self, reader: ClipReader, recipe: SeparationRecipe) -> None:
        self.reader = reader
        self.recipe = recipe
        self.rate = recipe.separator.rate
        self.samples = round(recipe.mixing.crop_seconds * self.rate)

    def take(
        self, shelf: Shelf, rng: np.random.Generator, machine: str | None = None, other_than: str | None = None
    ) -> tuple[str, NDArray[np.float32]]:
        """A machine and one of its clips, whole, at RMS 1; `other_than` is avoided where there is another machine."""
        names = [name for name in sorted(shelf) if name != other_than] or sorted(shelf)
        name = machine if machine is not None and machine in shelf else names[int(rng.integers(len(names)))]
        clips = shelf[name]
        whole = self.reader.read(clips[int(rng.integers(len(clips)))].path)
        level = float(np.sqrt(np.mean(np.square(whole, dtype=np.float64))))
        return name, np.asarray(whole / np.float32(max(level, 1e-12)), dtype=np.float32)

    def crop(self, whole: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """A random stretch; a clip that is too short is repeated."""
        if len(whole) < self.samples:
            whole = np.resize(whole, self.samples)
        start = int(rng.integers(len(whole) - self.samples + 1))
        return whole[start : start + self.samples]

    def at_snr(self, rng: np.random.Generator, low_db: float, high_db: float) -> tuple[np.float32, np.float32]:
        """Factors of the two parts: the first above the second by a level drawn evenly, and a gain of both."""
        mixing = self.recipe.mixing
        snr = rng.uniform(low_db, high_db)
        gain = _LEVEL * 10.0 ** (rng.uniform(mixing.min_gain_db, mixing.max_gain_db) / 20.0)
        return np.float32(gain), np.float32(gain * 10.0 ** (-snr / 20.0))

    def meet(
        self,
        kind: Lesson,
        first: NDArray[np.float32],
        second: NDArray[np.float32],
        rng: np.random.Generator,
        limits: tuple[float, float],
    ) -> Pair:
        """Crops of both, the SNR being that of the whole clips."""
        one, two = self.at_snr(rng, *limits)
        return kind, self.crop(first, rng) * one, self.crop(second, rng) * two


class SupervisedLessons:
    """Clean machine and noise recordings, of any two machines.

    Machines of which there are normal clips but no clean ones join with noise on top of a normal clip, once the teacher
    has learnt from the others.

    Raises OffkeyError where there are no clean clips or no noise clips.
    """

    def __init__(self, clips: Sequence[ClipMeta], reader: ClipReader, recipe: SeparationRecipe) -> None:
        self.machine = by_machine(clips, Content.MACHINE)
        self.noise = by_machine(clips, Content.NOISE)
        if not self.machine or not self.noise:
            raise OffkeyError("supervised separation needs clips of a machine alone and clips of noise alone")
        self.unheard = {
            name: found for name, found in by_machine(clips, Content.MIXTURE).items() if name not in self.machine
        }
        self._shelves = _Shelves(reader, recipe)
        self._limits = recipe.mixing.min_snr_db, recipe.mixing.max_snr_db

    @property
    def needs_teacher(self) -> bool:
        """Whether some lessons ask the teacher."""
        return bool(self.unheard)

    def draw(self, rng: np.random.Generator, with_teacher: bool) -> Pair:
        """One lesson; machines without clean clips get as many as any other."""
        share = len(self.unheard) / (len(self.unheard) + len(self.machine))
        asks = bool(rng.random() < share) and with_teacher
        shelf = self.unheard if asks else self.machine
        _, front = self._shelves.take(shelf, rng)
        _, back = self._shelves.take(self.noise, rng)
        return self._shelves.meet(Lesson.EXTRA_NOISE if asks else Lesson.KNOWN, front, back, rng, self._limits)


class MixtureLessons:
    """Normal clips alone, and the prior that background is stationary.

    A background drawn from the stationary part of a clip (or a noise recording, where there are any) is added to a
    normal clip, which stands for the foreground although it has noise of its own: what a net learns to take away, it
    takes away from the clip as well (noisy-target training: Fujimura et al., EUSIPCO 2021). Those with the deepest
    valleys are taken (`PriorConfig.clearest_share`): they have least of it. Clips of a machine alone, where there are
    any, are foregrounds as they are.

    With `PriorConfig.sum_share`, the teacher, a running mean of the net, later separates two normal clips, and the net
    learns that the separation of their sum is the sum of their separations (mixture-invariant, after Wisdom et al.,
    NeurIPS 2020; the teacher decides which part is which).

    Raises OffkeyError where there are no normal clips.
    """

    def __init__(self, clips: Sequence[ClipMeta], reader: ClipReader, recipe: SeparationRecipe) -> None:
        self.normal = by_machine(clips, Content.MIXTURE)
        self.clean = by_machine(clips, Content.MACHINE)
        self.noise = by_machine(clips, Content.NOISE)
        if not self.normal:
            raise OffkeyError("separation learns from normal clips, and there are none")
        self._shelves = _Shelves(reader, recipe)
        self._recipe = recipe
        self.clearest = {name: _clearest(own, reader, recipe.prior) for name, own in self.normal.items()}
        self._limits = recipe.mixing.min_snr_db, recipe.mixing.max_snr_db

    @property
    def needs_teacher(self) -> bool:
        """Whether some lessons ask the teacher."""
        return self._recipe.prior.sum_share > 0

    def draw(self, rng: np.random.Generator, with_teacher: bool) -> Pair:
        """One lesson; of those that are not sums, a machine's clean clips have as many as its normal ones."""
        if rng.random() < self._recipe.prior.sum_share and with_teacher:
            ratio = self._recipe.mixing.sum_ratio_db
            name, clip = self._shelves.take(self.normal, rng)
            _, other = self._shelves.take(self.normal, rng, other_than=name)
            return self._shelves.meet(Lesson.SUM, clip, other, rng, (-ratio, ratio))
        clean = self.clean and rng.random() < len(self.clean) / (len(self.clean) + len(self.normal))
        name, front = self._shelves.take(self.clean if clean else self.clearest, rng)
        return self._shelves.meet(Lesson.KNOWN, front, self._background(name, rng), rng, self._limits)

    def _background(self, name: str, rng: np.random.Generator) -> NDArray[np.float32]:
        prior, rate = self._recipe.prior, self._shelves.rate
        if self.noise:
            return self._shelves.take(self.noise, rng)[1]
        if rng.random() < prior.coloured_share:
            floor = coloured_floor(prior.n_fft // 2 + 1, rate, rng)
        else:
            own = name if rng.random() < prior.same_machine_share else None
            floor = stationary_floor(self._shelves.take(self.normal, rng, machine=own)[1], rate, prior)
        return stationary_noise(floor, self._shelves.samples, rate, prior.swell_db, rng)


def _clearest(clips: Sequence[ClipMeta], reader: ClipReader, prior: PriorConfig) -> list[ClipMeta]:
    """Those of one machine's clips that have least of their surroundings, of each domain by itself, in the order given.

    Domains may differ in their surroundings, and neither shall be left out.
    """
    if prior.clearest_share == 1 or len(clips) <= _FEWEST:
        return list(clips)
    kept: set[int] = set()
    for domain in {clip.domain for clip in clips}:
        own = [place for place, clip in enumerate(clips) if clip.domain is domain]
        depths = [valley_depth(np.asarray(reader.read(clips[place].path)), prior) for place in own]
        count = max(_FEWEST, round(prior.clearest_share * len(own)))
        kept |= {own[rank] for rank in np.argsort(np.negative(depths), kind="stable")[:count]}
    return [clip for place, clip in enumerate(clips) if place in kept]


def by_machine(clips: Iterable[ClipMeta], content: Content) -> dict[str, list[ClipMeta]]:
    """Clips of one content by machine, in the order given."""
    found: dict[str, list[ClipMeta]] = {}
    for clip in clips:
        if clip.content is content:
            found.setdefault(clip.machine, []).append(clip)
    return dict(sorted(found.items()))


def teacher_epoch(recipe: SeparationRecipe, epochs: int | None = None) -> int:
    """The first epoch in which the teacher is asked."""
    return max(1, round(recipe.prior.alone_share * (epochs or recipe.training.epochs)))


def lesson_plan(lessons: Lessons, recipe: SeparationRecipe, epoch: int, workers: int = 2) -> BatchPlan:
    """Batches of one epoch: `waveform` (B, 2, T) holds the two parts, `place` (B,) the kind of `Lesson`.

    `workers` threads make batches ahead of their use; they change nothing in them.
    """
    with_teacher = epoch >= teacher_epoch(recipe)

    def make(number: int) -> Batch:
        rng = Moment(recipe.seed, epoch, number).numbers(_LESSON)
        return to_batch([lessons.draw(rng, with_teacher) for _ in range(recipe.training.batch_size)])

    def load(order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        numbers = iter([places[0] for places in order])
        if workers <= 0:
            yield from map(make, numbers)
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="mixing") as pool:
            waiting: deque[Future[Batch]] = deque(pool.submit(make, number) for number in islice(numbers, _AHEAD))
            try:
                while waiting:
                    done = waiting.popleft().result()
                    waiting.extend(pool.submit(make, number) for number in islice(numbers, 1))
                    yield done
            finally:  # also where the consumer stops early
                for future in waiting:
                    future.cancel()

    return BatchPlan([[number] for number in range(recipe.mixing.batches)], load)


def fixed_lessons(lessons: Lessons, recipe: SeparationRecipe, count: int) -> list[Batch]:
    """`count` lessons without a teacher, the same at every call: what a separator is examined by."""
    size = recipe.training.batch_size
    rng = Moment(recipe.seed, 0, 0).numbers(_HELD_OUT)
    return [
        to_batch([lessons.draw(rng, False) for _ in range(min(size, count - start))]) for start in range(0, count, size)
    ]


def to_batch(pairs: Sequence[Pair]) -> Batch:
    """Lessons of equal length as one batch."""
    waveform = torch.from_numpy(np.stack([np.stack([first, second]) for _, first, second in pairs]))
    lengths = torch.full((len(pairs),), waveform.shape[-1], dtype=torch.int64)
    return Batch(waveform, lengths, None, torch.tensor([int(kind) for kind, _, _ in pairs]))
