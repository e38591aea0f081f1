"""What a machine is told before it sounds, and what every simulated machine is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offkey.data.synthetic.faults import Fault, FaultKind
from offkey.data.synthetic.signals import Array, db, expand, rms, slow, unit_rms

__all__ = ["WARM_UP", "Machine", "Scene", "Setting"]

WARM_UP = 0.5
"""Seconds, at the least, that a scene runs before its clip begins: echoes build up, filters wrap around."""


@dataclass(frozen=True, slots=True)
class Setting:
    """An operating setting (attribute) with the values that it takes in either domain."""

    name: str
    source: tuple[str, ...]
    target: tuple[str, ...]


@dataclass(slots=True)
class Scene:
    """One clip to come: `n` samples at `rate`, the clip itself after `lead` of them, settings and fault.

    `unit` draws what belongs to this very machine (the same numbers in every clip), `rng` what varies from
    clip to clip, `fault_rng` what only the fault needs: so a clip with and without its fault share all else.
    """

    n: int
    rate: int
    lead: int
    settings: Mapping[str, str]
    fault: Fault | None
    unit: np.random.Generator
    rng: np.random.Generator
    fault_rng: np.random.Generator

    def value(self, setting: str) -> float:
        """The number that a setting's value begins with ("28V" -> 28)."""
        text = self.settings[setting]
        return float("".join(c for c in text if c.isdigit() or c == "."))

    def severity(self, kind: str) -> float | None:
        """How bad the fault `kind` is here; None where the clip does not have it."""
        return self.fault.severity if self.fault is not None and self.fault.name == kind else None

    def boost(self, kind: str, mild_db: float, worst_db: float) -> float:
        """Amplitude factor that the fault applies: 1 without it."""
        severity = self.severity(kind)
        return 1.0 if severity is None else db(mild_db + severity * (worst_db - mild_db))

    def add(self, signal: Array, kind: str, piece: Array, mild_db: float, worst_db: float) -> None:
        """Add the sound of a fault to `signal` in place, at a level in dB against the sound machine.

        A passing event is cut to its time first; the level is that of the event while it lasts.
        """
        severity = self.severity(kind)
        if severity is None or self.fault is None:
            return
        gain = rms(signal) * db(mild_db + severity * (worst_db - mild_db))
        first, last = self.window(self.fault)
        shaped = unit_rms(piece[first:last])
        if last - first < self.n:
            shaped = shaped * fade(last - first, self.rate)
        signal[first:last] += shaped * np.float32(gain)

    def window(self, fault: Fault) -> tuple[int, int]:
        """First and last sample of a fault in this scene, warm-up included where it is always heard."""
        if fault.start_s <= 0.0 and fault.end_s * self.rate >= self.n - self.lead - 1:
            return 0, self.n
        first, last = (self.lead + round(second * self.rate) for second in (fault.start_s, fault.end_s))
        return first, min(last, self.n)

    def jitter(self, spread_db: float) -> float:
        """Amplitude factor that varies from clip to clip with a standard deviation in dB."""
        return db(spread_db * float(self.rng.standard_normal()))

    def flutter(self, spread_db: float, cutoff_hz: float) -> Array:
        """Slowly varying amplitude factor (n,) around 1."""
        curve = slow(self.rng, self.n, self.rate, cutoff_hz)
        return expand(10.0 ** (spread_db * curve / 20.0), self.n)

    def mains(self) -> NDArray[np.float64]:
        """Turns (n,) of the 50 Hz mains, begun anywhere."""
        return 50.0 * np.arange(self.n) / self.rate + self.rng.uniform(1.0, 2.0)

    def speed(self, hertz: float, spread: float, wander: float, cutoff_hz: float = 1.0) -> NDArray[np.float64]:
        """Turning speed, one value a BLOCK: off by fractions: `spread` between clips, `wander` within."""
        off = 1.0 + spread * float(np.clip(self.rng.standard_normal(), -2.5, 2.5))
        curve = np.clip(slow(self.rng, self.n, self.rate, cutoff_hz), -3.0, 3.0)
        return hertz * off * (1.0 + wander * curve)


def fade(n: int, rate: int) -> Array:
    """Window (n,) that opens and closes within 10 ms."""
    edge = min(n // 4, round(0.01 * rate))
    shape = np.ones(n, dtype=np.float32)
    if edge > 0:
        slope = (0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)).astype(np.float32)
        shape[:edge] = slope
        shape[-edge:] = slope[::-1]
    return shape


class Machine(ABC):
    """A simulated machine: its settings, what can go wrong, how it sounds close by, without surroundings."""

    name: ClassVar[str]
    settings: ClassVar[tuple[Setting, ...]]
    faults: ClassVar[tuple[FaultKind, ...]]

    @abstractmethod
    def render(self, scene: Scene) -> Array:
        """Sound (scene.n,) of the machine, of any level."""
