"""Faults: what can go wrong with a machine, how badly, and where in a clip it is heard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Fault", "FaultKind", "draw_fault"]


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One thing that can go wrong with a machine.

    `low_hz` and `high_hz` bound where it is heard (0 and infinity: anywhere). `event_s` is how long a passing
    event lasts, from the mildest to the worst; None for a fault that is heard through the whole clip.
    """

    name: str
    low_hz: float = 0.0
    high_hz: float = float("inf")
    event_s: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in one clip: `severity` 0 … 1, heard from `start_s` to `end_s` between `low_hz` and `high_hz`.

    Outside that time the clip is, gain aside, what it would be without the fault (but for a short echo).
    """

    name: str
    severity: float
    start_s: float
    end_s: float
    low_hz: float
    high_hz: float


def draw_fault(
    kinds: tuple[FaultKind, ...],
    severity: tuple[float, float],
    seconds: float,
    rate: int,
    rng: np.random.Generator,
    number: int,
) -> Fault:
    """A fault for clip `number` of a group: kinds take turns, all the rest is drawn.

    >>> kinds = (FaultKind("knock", 200.0, 4000.0, event_s=(0.5, 1.5)),)
    >>> fault = draw_fault(kinds, (0.5, 0.5), 10.0, 16000, np.random.default_rng(0), number=3)
    >>> fault.name, fault.severity, round(fault.end_s - fault.start_s, 3)
    ('knock', 0.5, 1.0)
    """
    kind = kinds[number % len(kinds)]
    amount = float(rng.uniform(*severity))
    place = float(rng.uniform())
    high = min(kind.high_hz, rate / 2.0)
    if kind.event_s is None:
        return Fault(kind.name, amount, 0.0, seconds, kind.low_hz, high)
    mildest, worst = kind.event_s
    length = min(mildest + amount * (worst - mildest), 0.8 * seconds)
    margin = 0.1 * (seconds - length)
    start = margin + place * (seconds - length - 2.0 * margin)
    return Fault(kind.name, amount, start, start + length, kind.low_hz, high)
