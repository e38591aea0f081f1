"""Batches of windows: what frozen layers said of every clip lies on disk, and only a batch's windows are copied.

All clips stand one behind another in two long arrays, frames by channels and samples. A window has a number there: that
of its first frame. So an epoch is a list of numbers, and a killed run goes on in the middle of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offkey.data.loader import balanced_order
from offkey.models.windows import cover, window_samples
from offkey.training.batches import BatchPlan
from offkey.types import Batch, Labels, OffkeyError

__all__ = ["ClipRow", "EveryWindow", "WindowBatches", "lay_out"]

_STARTS, _SPLIT = 21, 31  # purposes of random numbers, apart from those of other modules


@dataclass(frozen=True, eq=False)
class ClipRow:
    """Clips one behind another: `features` (sum of F_i, C') float32 or float16, a row a frame; `samples` (sum of T_i,).

    Both may be memory-mapped; `samples` is None where the model needs none. `lengths` (N,) int64 samples a clip,
    `labels` of N clips, `place` (N,) int64 where each stands in the list of the caller, `hop` samples between frames:
    a clip has lengths // hop + 1 of them.
    """

    features: NDArray[Any]
    samples: NDArray[np.float32] | None
    lengths: NDArray[np.int64]
    labels: Labels
    place: NDArray[np.int64]
    hop: int

    @property
    def frames(self) -> NDArray[np.int64]:
        """Frames a clip (N,)."""
        return self.lengths // self.hop + 1

    @property
    def first_frame(self) -> NDArray[np.int64]:
        """Number of each clip's first frame among the frames of all (N,)."""
        return np.cumsum(self.frames) - self.frames

    def copy(self, numbers: Sequence[int], width: int, kernel: int) -> Batch:
        """The windows of `width` frames that begin at the frames of these numbers, frames seeing `kernel` samples.

        `waveform` (B, S) holds the samples that the frames see, (B, 0) where none are kept; `features` (B, C', width),
        zero past a short clip's end; `lengths` the samples that the window's own frames see; `place` the clip's.
        """
        begin = np.asarray(numbers, dtype=np.int64)
        clip = np.searchsorted(self.first_frame, begin, side="right") - 1
        own = np.minimum(self.frames[clip], width)
        columns = np.arange(width)
        features = self.features[np.minimum(begin[:, None] + columns, len(self.features) - 1)]
        features = features.astype(np.float32, copy=False)
        features[columns >= own[:, None]] = 0.0
        of = torch.from_numpy(clip)
        return Batch(
            torch.from_numpy(self._samples(begin, clip, width, kernel)),
            torch.from_numpy((own - 1) * self.hop + kernel),
            Labels(*(column[of] for column in self.labels)),
            torch.from_numpy(self.place[clip]),
            torch.from_numpy(features).transpose(1, 2),
        )

    def _samples(
        self, begin: NDArray[np.int64], clip: NDArray[np.int64], width: int, kernel: int
    ) -> NDArray[np.float32]:
        if self.samples is None:
            return np.zeros((len(begin), 0), np.float32)
        size = window_samples(width, self.hop, kernel)
        waveform = np.zeros((len(begin), size), np.float32)
        # in samples of the clip, half a frame before the first one is centred; before the clip at its start
        begins = (begin - self.first_frame[clip]) * self.hop - kernel // 2
        ends = np.minimum(begins + size, self.lengths[clip])
        places = (np.cumsum(self.lengths) - self.lengths)[clip]
        for row, place, start, end in zip(waveform, places.tolist(), begins.tolist(), ends.tolist(), strict=True):
            at = max(start, 0)
            row[at - start : end - start] = self.samples[place + at : place + end]
        return waveform


def lay_out(
    batches: Iterable[Batch],
    describe: Callable[[Tensor, Tensor], Tensor],
    hop: int,
    folder: Path | None = None,
    precision: Literal["float32", "float16"] = "float32",
    with_samples: bool = True,
) -> ClipRow:
    """Describe every clip once, `describe(waveform (B, T), lengths (B,)) -> (B, C', F)`, and lay the answers in a row.

    The arrays are written to `folder` as they come, a batch at a time, and memory-mapped (10 s of 768 channels take
    1 MB, or half of it as "float16", which is off by at most 5e-4 of a number's size; samples 0.6 MB); without a
    folder they stay in memory. Raises OffkeyError for batches without labels, where there is no clip, and where the
    folder cannot be written.
    """
    lengths: list[int] = []
    place: list[int] = []
    labels: list[Labels] = []
    width = 0
    sheets = _Sheets(folder)
    with sheets:
        for batch in batches:
            if batch.labels is None:
                raise OffkeyError("training needs labels: load the batches with a label space")
            fixed = describe(batch.waveform, batch.lengths)
            width = fixed.shape[1]
            for row, clip, size in zip(fixed, batch.waveform, batch.lengths.tolist(), strict=True):
                sheets.add("features", row[:, : size // hop + 1].T.cpu().numpy().astype(precision))
                if with_samples:
                    sheets.add("samples", clip[:size].cpu().numpy())
                lengths.append(size)
            place += batch.place.tolist()
            labels.append(batch.labels)
    if not lengths:
        raise OffkeyError("there is no training clip to cut windows from")
    sizes = np.array(lengths, dtype=np.int64)
    frames = int((sizes // hop + 1).sum())
    return ClipRow(
        sheets.read("features", np.dtype(precision), (frames, width)),
        sheets.read("samples", np.dtype(np.float32), (int(sizes.sum()),)) if with_samples else None,
        sizes,
        Labels(*(torch.cat(columns) for columns in zip(*labels, strict=True))),
        np.array(place, dtype=np.int64),
        hop,
    )


class _Sheets:
    """Long arrays by name that grow at the end: in memory, or as plain files of numbers in `folder`."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.parts: dict[str, list[NDArray[Any]]] = {}
        self.files: dict[str, BinaryIO] = {}

    def __enter__(self) -> None:
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OffkeyError(f"features cannot be kept in {self.folder}: {error}") from None

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def add(self, name: str, array: NDArray[Any]) -> None:
        if self.folder is None:
            self.parts.setdefault(name, []).append(np.array(array))
            return
        try:
            if name not in self.files:
                self.files[name] = (self.folder / f"{name}.bin").open("wb")
            self.files[name].write(np.ascontiguousarray(array).data)
        except OSError as error:
            raise OffkeyError(f"features cannot be kept in {self.folder}: {error}") from None

    def read(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        if self.folder is None:
            return np.concatenate(self.parts[name])
        if 0 in shape:  # an empty file cannot be mapped
            return np.zeros(shape, dtype)
        return np.memmap(self.folder / f"{name}.bin", dtype, "r", shape=shape)


class _Windows:
    """Windows of `width` frames, told by the number of their first frame among the frames of all clips."""

    def __init__(self, clips: ClipRow, width: int, kernel: int, batch_size: int, seed: int) -> None:
        self.clips = clips
        self.width = width
        self.kernel = kernel
        self.batch_size = batch_size
        self.seed = seed

    def load(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Copy the windows of these numbers, a batch at a time; see `ClipRow.copy`."""
        for numbers in order:
            yield self.clips.copy(numbers, self.width, self.kernel)

    def _in_order(self, numbers: NDArray[np.int64]) -> BatchPlan:
        listed, size = numbers.tolist(), self.batch_size
        return BatchPlan([listed[at : at + size] for at in range(0, len(listed), size)], self.load)


class WindowBatches(_Windows):
    """Epochs of windows of `window` frames, and batches of them for a model that takes `Batch.features`.

    A clip of F frames gives F / window windows an epoch, rounded up, spread over the clip and begun anew at random in
    every epoch; one that is shorter than a window gives itself, with zeros behind. Windows of target clips are
    repeated, each time from another start, as `balanced_order` repeats clips. Everything drawn follows from `seed` and
    the epoch. `kernel` is the length of a frame in samples.
    """

    def __init__(
        self, clips: ClipRow, window: int, kernel: int, batch_size: int, target_share: float = 0.25, seed: int = 0
    ) -> None:
        super().__init__(clips, window, kernel, batch_size, seed)
        self.target_share = target_share
        frames = clips.frames
        self._last_start = np.maximum(frames - window, 0)
        self._first_frame = clips.first_frame
        self._counts = np.maximum(-(-frames // window), 1)

    def epoch(self, epoch: int) -> BatchPlan:
        """All clips once in random windows, in random order; target clips repeated and in every batch."""
        clip = np.repeat(np.arange(len(self._counts)), self._counts)
        part = np.arange(len(clip)) - np.repeat(np.cumsum(self._counts) - self._counts, self._counts)
        labels = self.clips.labels
        order = balanced_order(
            labels.domain.numpy()[clip], labels.identity.numpy()[clip], self.batch_size, self.target_share, self.seed,
            epoch,
        )  # fmt: skip
        rng = np.random.default_rng([self.seed, epoch, _STARTS])
        numbers = []
        for places in order:
            mine, at = clip[places], part[places]
            share = (at + rng.random(len(at))) / self._counts[mine]
            start = np.floor(share * (self._last_start[mine] + 1)).astype(np.int64)
            numbers.append((self._first_frame[mine] + np.minimum(start, self._last_start[mine])).tolist())
        return BatchPlan(numbers, self.load)

    def cover(self) -> BatchPlan:
        """Every frame of every clip, clip by clip, in the windows that scoring looks at: for the held-out loss."""
        windows = cover(torch.from_numpy(self.clips.frames), self.width)
        return self._in_order(self._first_frame[windows.clip.numpy()] + windows.start.numpy())


class EveryWindow(_Windows):
    """Every window of `width` neighbouring frames once an epoch, in random order: how the DCASE baseline learns.

    A clip of F frames has F - width + 1 windows, at least one. `held_out_share` of all windows, rounded up, is drawn at
    random and kept from training, as the official baseline does: these windows overlap with those learnt from, so
    their loss tells little of other clips. A last batch of a single window is left out, which is official too.
    `kernel` is the length of a frame in samples. Everything drawn follows from `seed` and the epoch.
    """

    def __init__(
        self,
        clips: ClipRow,
        width: int,
        kernel: int,
        batch_size: int = 256,
        seed: int = 0,
        held_out_share: float = 0.0,
    ) -> None:
        super().__init__(clips, width, kernel, batch_size, seed)
        counts = np.maximum(clips.frames - width + 1, 1)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = np.repeat(clips.first_frame, counts) + within
        drawn = np.random.default_rng([seed, _SPLIT]).permutation(len(numbers))
        held = int(np.ceil(held_out_share * len(numbers)))
        self.learnt, self.waiting = numbers[np.sort(drawn[held:])], numbers[np.sort(drawn[:held])]

    def epoch(self, epoch: int) -> BatchPlan:
        """All windows to learn from, in an order of this epoch's own."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.learnt).tolist()
        order = [shuffled[at : at + self.batch_size] for at in range(0, len(shuffled), self.batch_size)]
        if len(order) > 1 and len(order[-1]) == 1:
            order.pop()
        return BatchPlan(order, self.load)

    def held_out(self, _: int = 0) -> BatchPlan:
        """The windows that were kept from training, in the order of the clips."""
        return self._in_order(self.waiting)

    def in_order(self) -> BatchPlan:
        """The windows to learn from, in the order of the clips."""
        return self._in_order(self.learnt)
