"""Building blocks of the simulated machines: slow curves, order-tracked tones, shaped noise, ringing modes.

All signals are float32 arrays (N,). Filters act on the whole array by FFT and therefore wrap around: a scene
starts `WARM_UP` seconds before its clip, and what wraps falls into that part, which is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "Array",
    "Number",
    "convolve",
    "curve_db",
    "db",
    "expand",
    "frequencies",
    "impulses",
    "lookup",
    "modes",
    "noise_spectrum",
    "phase",
    "place",
    "rms",
    "shaped_noise",
    "slow",
    "times_of_phase",
    "unit_rms",
    "wavetable",
]

Array = NDArray[np.float32]

Number = float | int
"""A real number: run-time checks do not take 3 for 3.0 by themselves."""

BLOCK = 128
"""Samples between two values of a slow curve (8 ms at 16 kHz)."""

_TABLE = 8192


def db(value: float) -> float:
    """Amplitude factor of a level difference in dB.

    >>> round(db(20.0), 6)
    10.0
    """
    return float(10.0 ** (value / 20.0))


def rms(x: Array) -> float:
    """Root mean square of a signal."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float32), dtype=np.float64)))


def unit_rms(x: Array) -> Array:
    """The signal scaled to RMS 1; silence stays silence."""
    level = rms(x)
    return x / np.float32(level) if level > 0 else x


def slow(rng: np.random.Generator, n: int, rate: int, cutoff_hz: float) -> NDArray[np.float64]:
    """Smooth random curve (n // BLOCK + 2,) of mean 0 and variance 1, a value a BLOCK, up to `cutoff_hz`.

    Gaussian; its mean over the clip drawn too.
    """
    count = n // BLOCK + 2
    bins = max(1, int(cutoff_hz * count * BLOCK / rate))
    spectrum = np.zeros(count // 2 + 1, dtype=np.complex128)
    bins = min(bins, len(spectrum) - 1)
    draws = rng.standard_normal((2, bins))
    constant = rng.standard_normal()
    weight = np.sqrt(1.0 / (2.0 * bins + 1.0))
    spectrum[1 : bins + 1] = (draws[0] + 1j * draws[1]) * weight / np.sqrt(2.0)
    spectrum[0] = constant * weight
    return np.fft.irfft(spectrum, count) * count


def expand(curve: NDArray[np.float64], n: int) -> Array:
    """A slow curve (n // BLOCK + 2,) drawn out to samples (n,) by straight lines."""
    values = curve.astype(np.float32)
    ramp = np.arange(BLOCK, dtype=np.float32) / np.float32(BLOCK)
    lines = values[:-1, None] + np.diff(values)[:, None] * ramp
    return lines.reshape(-1)[:n]


def phase(hertz: NDArray[np.float64], n: int, rate: int, start: float) -> NDArray[np.float64]:
    """Turns (n,) of something that turns at `hertz` (one value a BLOCK) from `start` ≥ 0 turns on."""
    step = hertz / rate
    begin = start + np.concatenate(([0.0], np.cumsum(step[:-1] * BLOCK)))
    return (begin[:, None] + step[:, None] * np.arange(BLOCK)).reshape(-1)[:n]


def times_of_phase(turns: NDArray[np.float64], marks: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """Seconds at which `turns` (n,) passes each of `marks`; marks outside are left out."""
    inside = marks[(marks >= turns[0]) & (marks <= turns[-1])]
    coarse = np.arange(0, len(turns), 32)
    return np.interp(inside, turns[coarse], coarse / rate)


def wavetable(orders: NDArray[np.float64], amplitudes: NDArray[np.float64], phases: NDArray[np.float64]) -> Array:
    """One turn of a periodic wave, `sum a cos(2π order x + phase)`; orders are whole numbers below 2048."""
    spectrum = np.zeros(_TABLE // 2 + 1, dtype=np.complex128)
    np.add.at(spectrum, orders.astype(np.int64), amplitudes * np.exp(1j * phases) * (_TABLE / 2))
    table = np.fft.irfft(spectrum, _TABLE)
    return np.concatenate((table, table[:1])).astype(np.float32)


def lookup(table: Array, turns: NDArray[np.float64]) -> Array:
    """The wave of `wavetable` read at `turns` (n,): its harmonics follow the turning exactly."""
    place_in = turns * _TABLE
    whole = place_in.astype(np.int64)
    part = (place_in - whole).astype(np.float32)
    whole &= _TABLE - 1
    return table[whole] + part * (table[1:] - table[:-1])[whole]


@lru_cache(maxsize=32)
def frequencies(n: int, rate: int) -> Array:
    """Frequencies (n // 2 + 1,) of a real FFT in hertz (shared: do not write to it)."""
    f = np.fft.rfftfreq(n, 1.0 / rate).astype(np.float32)
    f.flags.writeable = False
    return f


def curve_db(points: Sequence[tuple[Number, Number]], n: int, rate: int) -> Array:
    """Amplitude (n // 2 + 1,) of a response given as (hertz, dB) points, straight over log frequency."""
    grid = np.geomspace(10.0, rate / 2.0, 192)
    hertz, level = np.array(points, dtype=np.float64).T
    gain = 10.0 ** (np.interp(np.log(grid), np.log(hertz), level) / 20.0)
    return np.interp(frequencies(n, rate), grid, gain).astype(np.float32)


def noise_spectrum(rng: np.random.Generator, gain: Array, n: int) -> NDArray[np.complex64]:
    """Real-FFT spectrum (n // 2 + 1,) of Gaussian noise of RMS 1 with amplitude spectrum ∝ `gain`."""
    draws = rng.standard_normal(2 * len(gain), dtype=np.float32).view(np.complex64)
    power = float(np.sum(np.square(gain), dtype=np.float64))
    # E|draw|² = 2; a real signal has each bin twice, so its mean square is 4 Σ gain² / n².
    draws *= gain * np.float32(n / (2.0 * np.sqrt(power)))
    return draws


def shaped_noise(rng: np.random.Generator, gain: Array, n: int) -> Array:
    """Gaussian noise (n,) of RMS 1 with amplitude spectrum ∝ `gain` (n // 2 + 1,)."""
    from scipy import fft

    return fft.irfft(noise_spectrum(rng, gain, n), n)


def impulses(seconds: NDArray[np.float64], sizes: NDArray[np.float64], n: int, rate: int) -> Array:
    """Train (n,) of unit-area pulses at any, not only whole, samples; those outside are left out."""
    at = seconds * rate
    inside = (at >= 0) & (at < n - 1)
    at, sizes = at[inside], sizes[inside]
    whole = at.astype(np.int64)
    part = at - whole
    train = np.bincount(whole, sizes * (1.0 - part), minlength=n)
    train += np.bincount(whole + 1, sizes * part, minlength=n)
    return train[:n].astype(np.float32)


def modes(hertz: Sequence[Number], ring_s: Sequence[Number], sizes: Sequence[Number], rate: int) -> Array:
    """Impulse response of a struck body: damped sines of amplitude `sizes`, down to 1/e in `ring_s` s."""
    t = np.arange(int(6.0 * max(ring_s) * rate) + 1)[:, None] / rate
    waves = np.sin(2.0 * np.pi * np.asarray(hertz) * t) * np.exp(-t / np.asarray(ring_s)) * np.asarray(sizes)
    return np.asarray(waves.sum(axis=1), dtype=np.float32)


def convolve(x: Array, response: Array) -> Array:
    """`x` (n,) through a short causal response, wrapping around at the end."""
    from scipy import fft

    n = len(x)
    return fft.irfft(fft.rfft(x) * fft.rfft(response, n), n)


def place(target: Array, piece: Array, second: float, rate: int) -> None:
    """Add `piece` to `target` in place, starting at `second`; what lies outside is left out."""
    start = round(second * rate)
    first, last = max(start, 0), min(start + len(piece), len(target))
    if first < last:
        target[first:last] += piece[first - start : last - start]
