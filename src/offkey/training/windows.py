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

__all__ = ["ClipRow", "WindowBatches", "lay_out"]

_STARTS = 21  # purpose of random numbers, apart from those of other modules


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


class WindowBatches:
    """Epochs of windows of `window` frames, and batches of them for a model that takes `Batch.features`.

    A clip of F frames gives F / window windows an epoch, rounded up, spread over the clip and begun anew at random in
    every epoch; one that is shorter than a window gives itself, with zeros behind. Windows of target clips are
    repeated, each time from another start, as `balanced_order` repeats clips. Everything drawn follows from `seed` and
    the epoch. `kernel` is the length of a frame in samples.
    """

    def __init__(
        self, clips: ClipRow, window: int, kernel: int, batch_size: int, target_share: float = 0.25, seed: int = 0
    ) -> None:
        self.clips = clips
        self.window = window
        self.kernel = kernel
        self.batch_size = batch_size
        self.target_share = target_share
        self.seed = seed
        frames = clips.frames
        self._last_start = np.maximum(frames - window, 0)
        self._first_frame = np.cumsum(frames) - frames
        self._first_sample = np.cumsum(clips.lengths) - clips.lengths
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
        windows = cover(torch.from_numpy(self.clips.frames), self.window)
        numbers = (self._first_frame[windows.clip.numpy()] + windows.start.numpy()).tolist()
        size = self.batch_size
        return BatchPlan([numbers[at : at + size] for at in range(0, len(numbers), size)], self.load)

    def load(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Copy the windows of these numbers, a batch at a time.

        `waveform` (B, S) holds the samples that the frames see, (B, 0) where none are kept; `features` (B, C', W);
        `lengths` the samples that the window's own frames see; `place` the clip's.
        """
        for numbers in order:
            yield self._copy(np.asarray(numbers, dtype=np.int64))

    def _copy(self, numbers: NDArray[np.int64]) -> Batch:
        clips, hop, half = self.clips, self.clips.hop, self.kernel // 2
        mine = np.searchsorted(self._first_frame, numbers, side="right") - 1
        own = np.minimum(clips.frames[mine], self.window)
        features = np.zeros((len(numbers), self.window, clips.features.shape[1]), np.float32)
        for row, number, count in zip(features, numbers.tolist(), own.tolist(), strict=True):
            row[:count] = clips.features[number : number + count]
        size = 0 if clips.samples is None else window_samples(self.window, hop, self.kernel)
        waveform = np.zeros((len(numbers), size), np.float32)
        if clips.samples is not None:
            begins = (numbers - self._first_frame[mine]) * hop - half  # in samples of the clip; before it at its start
            ends = np.minimum(begins + size, clips.lengths[mine])
            for row, first, begin, end in zip(
                waveform, self._first_sample[mine].tolist(), begins.tolist(), ends.tolist(), strict=True
            ):
                at = max(begin, 0)
                row[at - begin : end - begin] = clips.samples[first + at : first + end]
        place = torch.from_numpy(mine)
        return Batch(
            torch.from_numpy(waveform),
            torch.from_numpy((own - 1) * hop + self.kernel),
            Labels(*(column[place] for column in clips.labels)),
            torch.from_numpy(clips.place[mine]),
            torch.from_numpy(features).transpose(1, 2),
        )
