"""Batches of one epoch that can be counted, and taken in part without loading the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice

from offkey.types import Batch

__all__ = ["BatchPlan", "count_batches", "take_batches"]


class BatchPlan:
    """`order`, the clips of every batch, and `load`, which turns such lists into batches.

    A plain list or iterable of batches trains as well; a plan spares a resumed run, and each of many
    processes, the decoding of batches that it does not use.
    """

    def __init__(
        self,
        order: Sequence[Sequence[int]],
        load: Callable[[Sequence[Sequence[int]]], Iterable[Batch]],
    ) -> None:
        self.order = order
        self.load = load

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.load(self.order))

    def part(self, places: range) -> Iterator[Batch]:
        """Load the batches at these places of the order only."""
        return iter(self.load([self.order[place] for place in places]))


def count_batches(batches: Iterable[Batch]) -> int:
    """How many batches there are; an iterable without a length is read to its end."""
    return len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)


def take_batches(batches: Iterable[Batch], places: range) -> Iterator[Batch]:
    """Yield the batches at `places`, loading as few others as can be."""
    if isinstance(batches, BatchPlan):
        return batches.part(places)
    return islice(iter(batches), places.start, max(places.start, places.stop), places.step)
