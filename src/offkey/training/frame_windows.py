"""Epochs of all windows there are, one frame apart, as the DCASE baseline learns from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from offkey.training.batches import BatchPlan
from offkey.training.windows import ClipRow
from offkey.types import Batch, Labels

__all__ = ["EveryWindow"]

_SPLIT = 31  # purpose of random numbers, apart from those of other modules


class EveryWindow:
    """Every window of `width` neighbouring frames once an epoch, in random order, as `Batch.features`.

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
        self.clips = clips
        self.width = width
        self.kernel = kernel
        self.batch_size = batch_size
        self.seed = seed
        counts = np.maximum(clips.frames - width + 1, 1)
        self._first_frame = first_frame = np.cumsum(clips.frames) - clips.frames
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = np.repeat(first_frame, counts) + within
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
        waiting, size = self.waiting.tolist(), self.batch_size
        return BatchPlan([waiting[at : at + size] for at in range(0, len(waiting), size)], self.load)

    def load(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Copy windows, a batch at a time; a window's number is that of its first frame among the frames of all clips.

        `features` (B, M, width), zero past a short clip's end; `waveform` (B, 0); `lengths` the samples that the own
        frames of a window see; `place` the clip's.
        """
        clips = self.clips
        for numbers in order:
            first = np.asarray(numbers, dtype=np.int64)
            clip = np.searchsorted(self._first_frame, first, side="right") - 1
            own = np.minimum(clips.frames[clip], self.width)
            within = np.arange(self.width)
            frames = np.minimum(first[:, None] + within, len(clips.features) - 1)
            features = torch.from_numpy(clips.features[frames].astype(np.float32, copy=False))
            features = features.masked_fill_(torch.from_numpy(within >= own[:, None])[..., None], 0.0)
            of = torch.from_numpy(clip)
            yield Batch(
                torch.zeros(len(first), 0),
                torch.from_numpy((own - 1) * clips.hop + self.kernel),
                Labels(*(column[of] for column in clips.labels)),
                torch.from_numpy(clips.place[clip]),
                features.transpose(1, 2),
            )
