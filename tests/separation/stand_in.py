"""A separator for tests: what lies below 1 kHz is the machine. Has the face of `separation.separator.Separator`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile

from offkey.types import ClipMeta, Condition, Content, Domain, Split

RATE = 16000


class LowPass:
    """Splits at `edge` hertz, exactly linear and indifferent to level; counts how often it was asked."""

    def __init__(self, edge: float = 1000.0, rate: int = RATE) -> None:
        self.edge, self.config, self.asked = edge, SimpleNamespace(rate=rate), 0

    def separate(self, waveform: np.ndarray) -> np.ndarray:
        self.asked += 1
        spectrum = np.fft.rfft(waveform)
        spectrum[np.fft.rfftfreq(len(waveform), 1 / self.config.rate) > self.edge] = 0
        low = np.fft.irfft(spectrum, len(waveform)).astype(np.float32)
        return np.stack([low, waveform - low])

    def fingerprint(self) -> str:
        return f"low-pass {self.edge:g} {self.config.rate}"

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "edge.txt").write_text(str(self.edge))

    @classmethod
    def load(cls, folder: Path) -> LowPass:
        return cls(float((folder / "edge.txt").read_text()))


def sound(
    machine_hz: float, noise_hz: float, seconds: float = 0.5, loud: float = 0.1, noise: float = 0.05, rate: int = RATE
) -> np.ndarray:
    """A low tone (the machine) and a high one (its surroundings), both with a whole number of turns a half second."""
    time = np.arange(round(seconds * rate)) / rate
    low, high = np.sin(2 * np.pi * machine_hz * time), np.sin(2 * np.pi * noise_hz * time)
    return (loud * low + noise * high).astype(np.float32)


def write(
    path: Path,
    samples: np.ndarray,
    machine: str = "fan",
    domain: Domain = Domain.SOURCE,
    content: Content = Content.MIXTURE,
    rate: int = RATE,
) -> ClipMeta:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    split = Split.TRAIN if content is Content.MIXTURE else Split.SUPPLEMENTAL
    return ClipMeta(path, machine, "00", domain, Condition.NORMAL, split, (), content)
