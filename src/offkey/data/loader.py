"""Batches of clips of any length: which clips go together, and their decoding ahead of use.

Threads decode ahead (libsndfile and soxr release Python's lock). What comes out never depends on which thread was
quicker.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from offkey.audio.cache import ArrayCache, content_key
from offkey.audio.io import AudioConfig, AudioError, prepare, read_clip, read_header
from offkey.data.ahead import AHEAD, worked_ahead
from offkey.data.labels import LabelSpace
from offkey.types import Batch, ClipMeta, Labels

__all__ = ["ClipReader", "Failure", "FrontEnd", "balanced_order", "load_batches", "load_by_length"]

# FLAC is among them on purpose: 10 s at 16 kHz decode in 2 ms and would take three times the space.
_QUICK = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC"})
_WINDOW = 4  # batches whose clips are sorted by length together
_HELD_SAMPLES = 1 << 25  # in one window: 128 MiB, half an hour at 16 kHz
_BATCH_SAMPLES = 1 << 23  # in one batch, padding included: 32 MiB, nine minutes at 16 kHz


class Failure(NamedTuple):
    """A clip that was left out of its batch, and why."""

    path: Path
    problem: str


@runtime_checkable
class FrontEnd(Protocol):
    """Stands between a recording and everything that hears it, such as `offkey.separation.front_end.FrontEnd`."""

    @property
    def fingerprint(self) -> str:
        """Stands for what is done to a clip."""

    def read(self, path: Path, config: AudioConfig, cache: ArrayCache | None = None) -> NDArray[np.float32]:
        """(T,) float32 of a file at the configured rate and level; raises `AudioError` as `read_clip` does."""

    def prepare(
        self, samples: NDArray[Any], rate: int, config: AudioConfig, name: str = "array"
    ) -> NDArray[np.float32]:
        """The same for sound in memory, as `offkey.audio.io.prepare`."""


class ClipReader:
    """Reads clips as `read_clip` does, and keeps what was costly to decode in `cache`.

    Costly is what has to be resampled or has a lossy format; to keep the rest would fill the disk for
    little. A cached clip comes memory-mapped and read-only. Safe to share between threads. With a `front_end`, what it
    makes of a clip is read instead.
    """

    def __init__(
        self, config: AudioConfig | None = None, cache: ArrayCache | None = None, front_end: FrontEnd | None = None
    ) -> None:
        self.config = config or AudioConfig()
        self.cache = cache
        self.front_end = front_end
        self._costly: dict[Path, bool] = {}  # looking at a header takes half as long as decoding a FLAC

    def read(self, path: Path) -> NDArray[np.float32]:
        """(T,) float32 at the configured rate; raises `AudioError` on a clip that cannot be used."""
        cache = self.cache
        if self.front_end is not None:
            return self.front_end.read(path, self.config, cache)
        if cache is None:
            return read_clip(path, self.config)
        costly = self._costly.get(path)
        if costly is None:
            header = read_header(path)
            costly = header is not None and (header[0] != self.config.rate or header[2] not in _QUICK)
            self._costly[path] = costly
        if not costly:
            return read_clip(path, self.config)
        try:
            key = content_key(path, "waveform", self.config)
        except OSError:
            return read_clip(path, self.config)  # which says what is wrong with the file
        found: NDArray[np.float32] = cache.fetch(key, lambda: read_clip(path, self.config))
        return found

    def prepare(self, samples: NDArray[Any], rate: int, name: str = "array") -> NDArray[np.float32]:
        """`read` for sound in memory, (T,) or (T, channels) at `rate` Hz."""
        if self.front_end is not None:
            return self.front_end.prepare(samples, rate, self.config, name)
        return prepare(samples, rate, self.config, name)


def balanced_order(
    domains: ArrayLike,
    identities: ArrayLike,
    batch_size: int,
    target_share: float = 0.25,
    seed: int = 0,
    epoch: int = 0,
) -> list[list[int]]:
    """Batches of places for one epoch, with target clips in every batch where there are any.

    `domains` (N,) holds 0 source, 1 target, -1 not known (taken for source); `identities` (N,) class numbers.
    Every source clip comes once. Target clips are repeated evenly until about `target_share` of what is
    drawn is target and no batch is without one; where the data has more of them than that, each comes once.
    Identities are spread evenly over the epoch. The last batch may be smaller, but never a single clip
    beside others (normalisation over a batch needs two): it then joins the batch before.

    >>> balanced_order([0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 2], batch_size=3, seed=1)
    [[..., 5, ...], ...]
    """
    domain = np.asarray(domains, dtype=np.int64).reshape(-1)
    identity = np.asarray(identities, dtype=np.int64).reshape(-1)
    if len(domain) != len(identity):
        raise ValueError(f"{len(domain)} domains for {len(identity)} identities")
    if batch_size < 1 or not 0.0 <= target_share < 1.0:
        raise ValueError(f"batch_size {batch_size} must be positive and target_share {target_share} in [0, 1)")
    if len(domain) == 0:
        return []
    rng = np.random.default_rng([seed, epoch])
    source, target = np.flatnonzero(domain != 1), np.flatnonzero(domain == 1)
    if len(source) == 0 or len(target) == 0 or batch_size == 1:
        drawn = _spread(np.arange(len(domain)), identity, rng)
    else:
        wanted = round(len(source) * target_share / (1.0 - target_share))
        # So many that between two of them there are at most batch_size - 1 source clips.
        draws = max(len(target), wanted, -(-len(source) // (batch_size - 1)))
        passes = [_spread(target, identity, rng) for _ in range(-(-draws // len(target)))]
        targets = np.concatenate(passes)[:draws]
        sources = _spread(source, identity, rng)
        when = np.concatenate([_even(len(sources)), _even(draws)])
        drawn = np.concatenate([sources, targets])[np.argsort(when, kind="stable")]
    batches = [[int(place) for place in drawn[at : at + batch_size]] for at in range(0, len(drawn), batch_size)]
    if len(target) and len(source) and batch_size > 1 and not (domain[batches[-1]] == 1).any():
        batches[-1].append(int(rng.choice(target)))
    if len(batches) > 1 and len(batches[-1]) == 1 and batch_size > 1:
        lone = batches.pop()
        batches[-1] += lone
    return batches


def _even(count: int) -> NDArray[np.float64]:
    """`count` moments at equal distances in (0, 1)."""
    return (np.arange(count) + 0.5) / max(count, 1)


def _spread(places: NDArray[np.int64], identity: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of `places` in which the members of every identity are spread evenly."""
    moment = np.empty(len(places))
    for name in np.unique(identity[places]):
        members = np.flatnonzero(identity[places] == name)
        moment[rng.permutation(members)] = (np.arange(len(members)) + rng.random()) / len(members)
    return places[np.argsort(moment, kind="stable")]


def load_batches(
    clips: Sequence[ClipMeta],
    order: Iterable[Sequence[int]],
    reader: ClipReader,
    labels: LabelSpace | None = None,
    workers: int = 2,
    failures: list[Failure] | None = None,
) -> Iterator[Batch]:
    """Decode `clips` in batches by `order` (places in `clips`), `workers` threads ahead of the use.

    Clips of a batch are padded with zeros at the end to the longest.

    A clip that cannot be read is left out and noted in `failures`, once; without such a list its
    `AudioError` is raised. A batch of which nothing is left is skipped.
    """
    codes = None if labels is None else [labels.encode(clip) for clip in clips]
    heads = 0 if labels is None else len(labels.attribute_heads)
    noted: set[int] = set()

    def load(place: int) -> NDArray[np.float32] | AudioError:
        try:
            return reader.read(clips[place].path)
        except AudioError as error:
            return error

    def gather(places: Sequence[int], waves: list[Any]) -> Batch | None:
        good: list[tuple[int, NDArray[np.float32]]] = []
        for place, wave in zip(places, waves, strict=True):
            if not isinstance(wave, AudioError):
                good.append((place, wave))
            elif failures is None:
                raise wave
            elif place not in noted:
                noted.add(place)
                failures.append(Failure(clips[place].path, wave.problem))
        if not good:
            return None
        lengths = torch.tensor([len(wave) for _, wave in good])
        waveform = _padded([wave for _, wave in good])
        numbers = None
        if codes is not None:
            mine = [codes[place] for place, _ in good]
            numbers = Labels(
                torch.tensor([identity for identity, _, _ in mine]),
                torch.tensor([values for _, values, _ in mine], dtype=torch.int64).reshape(len(mine), heads),
                torch.tensor([domain for _, _, domain in mine]),
            )
        return Batch(torch.from_numpy(waveform), lengths, numbers, torch.tensor([place for place, _ in good]))

    for places, waves in worked_ahead(order, load, workers):
        batch = gather(places, waves)
        if batch is not None:
            yield batch


def load_by_length(
    clips: Sequence[ClipMeta],
    reader: ClipReader,
    batch_size: int = 8,
    workers: int = 2,
    problems: dict[int, str] | None = None,
) -> Iterator[Batch]:
    """Every clip once, in batches of like length, `workers` threads ahead of the use: the way to score many files.

    Clips are taken in the order given, a window of up to four batches at a time, and sorted by length within it, so
    that little is padded and a clip comes out soon after those before it. A batch has at most `batch_size` clips, and
    fewer where they are long. What is held does not grow with the number of clips, nor, beyond the longest few
    clips, with their length.

    Why a clip could not be read is noted in `problems` by its place, before any batch of its window comes out; without
    such a dict its `AudioError` is raised. Raises ValueError for a `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"a batch has at least one clip, not {batch_size}")
    window: list[tuple[int, NDArray[np.float32]]] = []
    held, size = 0, batch_size  # the first windows are smaller, so that the model need not wait long
    with contextlib.closing(_in_order(clips, reader, workers, (_WINDOW + AHEAD) * batch_size)) as decoded:
        for place, wave in decoded:
            if not isinstance(wave, AudioError):
                window.append((place, wave))
                held += len(wave)
            elif problems is None:
                raise wave
            else:
                problems[place] = wave.problem
            if len(window) >= size or held >= _HELD_SAMPLES:
                yield from _alike(window, batch_size)
                window, held, size = [], 0, min(2 * size, _WINDOW * batch_size)
        yield from _alike(window, batch_size)


def _in_order(
    clips: Sequence[ClipMeta], reader: ClipReader, workers: int, ahead: int
) -> Generator[tuple[int, NDArray[np.float32] | AudioError], None, None]:
    """Each clip's place and what was read, or why not; up to `ahead` are decoded before they are asked for.

    Fewer where clips are long: the longest of the last ones stands for those that are on their way.
    """

    def load(place: int) -> NDArray[np.float32] | AudioError:
        try:
            return reader.read(clips[place].path)
        except AudioError as error:
            return error

    if workers <= 0:
        for place in range(len(clips)):
            yield place, load(place)
        return
    waiting: deque[Future[NDArray[np.float32] | AudioError]] = deque()
    asked, usual = 0, _HELD_SAMPLES  # until one was read, it may be an hour long
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for place in range(len(clips)):
                most = max(workers, min(ahead, _HELD_SAMPLES // max(usual, 1)))
                while asked < len(clips) and len(waiting) < most:
                    waiting.append(pool.submit(load, asked))
                    asked += 1
                wave = waiting.popleft().result()
                if not isinstance(wave, AudioError):
                    usual = max(len(wave), usual * 9 // 10 if place else 0)
                yield place, wave
        finally:  # also where the consumer stops early: what has not begun is not decoded any more
            for future in waiting:
                future.cancel()


def _alike(window: list[tuple[int, NDArray[np.float32]]], batch_size: int) -> Iterator[Batch]:
    """The clips of a window, the shortest first, in batches without labels."""
    queue = deque(sorted(window, key=lambda entry: len(entry[1])))
    while queue:
        mine = [queue.popleft()]
        while queue and len(mine) < batch_size and (len(mine) + 1) * len(queue[0][1]) <= _BATCH_SAMPLES:
            mine.append(queue.popleft())
        lengths = torch.tensor([len(wave) for _, wave in mine])
        yield Batch(
            torch.from_numpy(_padded([wave for _, wave in mine])), lengths, None, torch.tensor([p for p, _ in mine])
        )


def _padded(waves: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Clips as rows (B, T), with zeros behind the shorter ones."""
    rows = np.zeros((len(waves), max(len(wave) for wave in waves)), np.float32)
    for row, wave in zip(rows, waves, strict=True):
        row[: len(wave)] = wave
    return rows
