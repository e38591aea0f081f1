"""Work of threads ahead of its use, in the order given; loading this module loads no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["AHEAD", "worked_ahead"]

AHEAD = 2
"""Groups that are worked on while one is used."""

Given = TypeVar("Given")
Found = TypeVar("Found")


def worked_ahead(
    groups: Iterable[Sequence[Given]], work: Callable[[Given], Found], workers: int
) -> Iterator[tuple[Sequence[Given], list[Found]]]:
    """Each group with what `work` made of its members, by `workers` threads (0: none, when it is asked for).

    What has not begun when the consumer stops is not done any more. An error of `work` is raised here.

    >>> list(worked_ahead([[1, 2], [3]], lambda number: number**2, workers=2))
    [([1, 2], [1, 4]), ([3], [9])]
    """
    if workers <= 0:
        for group in groups:
            yield group, [work(member) for member in group]
        return
    waiting: deque[tuple[Sequence[Given], list[Future[Found]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for group in groups:
                waiting.append((group, [pool.submit(work, member) for member in group]))
                if len(waiting) > AHEAD:
                    first, futures = waiting.popleft()
                    yield first, [future.result() for future in futures]
            while waiting:
                first, futures = waiting.popleft()
                yield first, [future.result() for future in futures]
        finally:  # also where the consumer stops early
            for _, futures in waiting:
                for future in futures:
                    future.cancel()
