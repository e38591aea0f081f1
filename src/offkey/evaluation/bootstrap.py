"""Resampling with replacement, as counts: how often each clip is drawn.

B. Efron, R. Tibshirani: An Introduction to the Bootstrap, 1993 (percentile intervals); whole groups are drawn
where clips of one group are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["interval_of", "resamples"]

_BLOCK = 4_000_000  # counts held at a time


def resamples(
    strata: Sequence[str], groups: Sequence[str] | None, repetitions: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Blocks (r, N) of counts, `repetitions` rows in all.

    Each stratum is drawn from on its own, so that no class of clips ever vanishes. With `groups` a group is
    the unit, and groups are drawn within those that reach into the same strata.
    """
    clips = len(strata)
    names = np.arange(clips) if groups is None else np.asarray(list(groups), dtype=np.str_)
    _, unit = np.unique(names, return_inverse=True)
    reach: list[set[str]] = [set() for _ in range(int(unit.max()) + 1)]
    for place, stratum in zip(unit.tolist(), strata, strict=True):
        reach[place].add(stratum)
    pools: dict[tuple[str, ...], list[int]] = {}
    for place, reached in enumerate(reach):
        pools.setdefault(tuple(sorted(reached)), []).append(place)
    generator = np.random.default_rng(seed)
    step = max(1, _BLOCK // clips)
    for start in range(0, repetitions, step):
        rows = min(step, repetitions - start)
        counts = np.zeros((rows, len(reach)))
        for members in (pools[key] for key in sorted(pools)):
            size = len(members)
            drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
            counts[:, members] = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
        yield counts[:, unit]


def interval_of(values: NDArray[Any], level: float = 0.95) -> tuple[float, float]:
    """The percentile interval that leaves (1 − level)/2 of the values out on either side."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
