"""Work ahead of its use: order, errors, and an early end."""

import threading
import time

import pytest

from offkey.data.ahead import AHEAD, worked_ahead


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_groups_come_in_the_order_given_whichever_is_quicker(workers: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        return -number

    groups = [[5, 3], [2], [], [1, 4, 0]]
    assert list(worked_ahead(groups, work, workers)) == [(group, [-number for number in group]) for group in groups]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_where_its_group_is_asked_for(workers: int) -> None:
    found = worked_ahead([[1], [0]], lambda number: 1 // number, workers)
    assert next(found) == ([1], [1])
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_nothing_begins_after_an_early_end_and_little_is_ahead_of_it() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            begun.append(number)
        return number

    found = worked_ahead(([number] for number in range(100)), work, 1)
    next(found)
    found.close()
    time.sleep(0.05)
    assert len(begun) <= AHEAD + 1
