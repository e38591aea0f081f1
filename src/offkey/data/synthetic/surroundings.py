"""Where a machine stands: the factory's noise, and the room between machine and microphones."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from offkey.data.synthetic.signals import (
    Array,
    curve_db,
    db,
    expand,
    frequencies,
    lookup,
    modes,
    noise_spectrum,
    phase,
    place,
    rms,
    shaped_noise,
    slow,
    wavetable,
)

__all__ = ["Place", "factory_noise", "through_room"]

Place = tuple[int, ...]
"""Entropy of a place (seed, machine, domain): equal numbers stand for the same walls and neighbours."""

_NEAR, _FAR = 0, 1


@lru_cache(maxsize=64)
def _room(where: Place, microphone: int, n: int, rate: int) -> NDArray[np.complex64]:
    """Frequency response (n // 2 + 1,) from machine to microphone: direct sound, first reflections, tail.

    The far microphone hears the machine later, and more of the room.
    """
    from scipy import fft

    rng = np.random.default_rng([*where, 11, microphone])
    length = round(0.35 * rate)
    response = np.zeros(length)
    lag = 0.0 if microphone == _NEAR else rng.uniform(0.006, 0.012)  # 2 to 4 m further
    direct = 1.0 if microphone == _NEAR else 0.45
    response[round(lag * rate)] = direct
    for _ in range(6):
        response[round((lag + rng.uniform(0.002, 0.03)) * rate)] += 0.25 * rng.normal() * 0.6
    t = np.arange(length) / rate
    tail = rng.standard_normal(length) * np.exp(-6.9 * t / rng.uniform(0.18, 0.30)) * (t > lag + 0.008)
    response += tail * (0.28 / np.sqrt(np.sum(tail**2)))
    colour = _random_curve(rng, 1.5)
    # A clip's worth of warm-up goes before the clip, so the response may wrap around.
    spectrum = fft.rfft(response.astype(np.float32), n) * curve_db(colour, n, rate)
    out = spectrum.astype(np.complex64)
    out.flags.writeable = False
    return out


def through_room(dry: Array, where: Place, channels: int, rate: int) -> Array:
    """Machine sound (n,) as each microphone hears it: (channels, n), near one first."""
    from scipy import fft

    n = len(dry)
    spectrum = fft.rfft(dry)
    heard = np.stack([fft.irfft(spectrum * _room(where, m, n, rate), n) for m in range(channels)])
    return np.asarray(heard, dtype=np.float32)


def factory_noise(
    where: Place, channels: int, n: int, rate: int, rng: np.random.Generator
) -> tuple[Array, tuple[str, ...]]:
    """Noise of a factory hall (channels, n) at a level of its own, RMS of some tenths, and what passed in it.

    Coloured noise whose spectrum drifts, mains hum and a neighbouring machine belong to the place; hammering,
    voices and a passing truck come and go.
    """
    from scipy import fft

    fixed = np.random.default_rng([*where, 12])
    colour, tone_hz, tone_db, hum_db = _plant(fixed)
    tilt = rng.normal(0.0, 1.2)
    body = curve_db(tuple((f, g + tilt * float(np.log2(f / 800.0))) for f, g in colour), n, rate)
    # Three bands that swell on their own: the spectrum is never quite the same for long.
    f = frequencies(n, rate)
    edges = (0.0, *fixed.uniform((250.0, 1200.0), (500.0, 2200.0)), rate / 2.0)
    spectrum = noise_spectrum(rng, body, n)
    noise = np.zeros(n, dtype=np.float32)
    for low, high in pairwise(edges):
        first, last = np.searchsorted(f, (low, high))
        band = np.zeros_like(spectrum)
        band[first:last] = spectrum[first:last]
        swell = 10.0 ** (1.6 * slow(rng, n, rate, 0.5) / 20.0)
        noise += fft.irfft(band, n) * expand(swell, n)

    hum = wavetable(np.array([1.0, 2.0, 3.0, 6.0]), np.array([0.5, 1.0, 0.3, 0.2]), np.zeros(4))
    mains = phase(np.full(n // 128 + 2, 50.0 + rng.normal(0.0, 0.03)), n, rate, 1.0 + rng.random())
    noise += np.float32(db(hum_db + rng.normal(0.0, 1.5))) * lookup(hum, mains)

    events: list[str] = []
    if rng.random() < 0.5:
        events.append("neighbour")
        noise += _neighbour(tone_hz, tone_db, n, rate, rng)
    if rng.random() < 0.35:
        events.append("hammering")
        _hammer(noise, rate, rng)
    if rng.random() < 0.35:
        events.append("voices")
        _voices(noise, rate, rng)
    if rng.random() < 0.25:
        events.append("truck")
        noise += _truck(n, rate, rng)
    if channels == 1:
        return noise[None, :], tuple(events)
    # Diffuse noise: what the far microphone hears is partly the same, later, and partly its own.
    own = shaped_noise(rng, body, n)
    lag = round(rng.uniform(0.004, 0.010) * rate)
    far = np.float32(0.9) * np.roll(noise, lag) + np.float32(0.65 * rms(noise)) * own
    return np.stack([noise, far]), tuple(events)


def _random_curve(rng: np.random.Generator, spread_db: float) -> tuple[tuple[float, float], ...]:
    """Smooth random frequency response."""
    points = np.geomspace(40.0, 9000.0, 9)
    return tuple((float(f), float(g)) for f, g in zip(points, spread_db * rng.standard_normal(9), strict=True))


def _plant(rng: np.random.Generator) -> tuple[tuple[tuple[float, float], ...], float, float, float]:
    """What is built in: colour of the noise, pitch and level of a neighbouring machine, level of the hum."""
    slope = rng.uniform(-5.5, -3.0)  # dB an octave
    colour = tuple((f, slope * max(float(np.log2(f / 200.0)), -1.0) + g) for f, g in _random_curve(rng, 2.5))
    return (
        colour,
        float(rng.uniform(70.0, 240.0)),
        float(rng.uniform(-16.0, -9.0)),
        float(rng.uniform(-22.0, -14.0)),
    )


def _neighbour(hertz: float, level_db: float, n: int, rate: int, rng: np.random.Generator) -> Array:
    """Another machine that runs up and down in loudness."""
    orders = np.arange(1.0, 13.0)
    size = 10.0 ** ((level_db - 1.6 * (orders - 1.0) + 2.5 * rng.standard_normal(12)) / 20.0)
    table = wavetable(orders, size, rng.uniform(0.0, 2.0 * np.pi, 12))
    count = n // 128 + 2
    pitch = hertz * (1.0 + rng.normal(0.0, 0.02))
    turns = phase(pitch * (1.0 + 0.002 * slow(rng, n, rate, 1.0)[:count]), n, rate, 1.0 + rng.random())
    return lookup(table, turns) * expand(10.0 ** (3.0 * slow(rng, n, rate, 0.4) / 20.0), n)


def _hammer(noise: Array, rate: int, rng: np.random.Generator) -> None:
    """Some blows of a hammer far off, added in place."""
    blows = int(rng.integers(1, 6))
    gap = rng.uniform(0.35, 0.9)
    start = rng.uniform(0.0, max(len(noise) / rate - blows * gap, 0.5))
    pitch = rng.uniform(300.0, 1400.0)
    hertz = [pitch, 2.3 * pitch, 0.55 * pitch, min(3.9 * pitch, 0.45 * rate)]
    ring = modes(hertz, [0.035, 0.02, 0.03, 0.012], [1.0, 0.7, 0.6, 0.4], rate)
    size = db(rng.uniform(-3.0, 8.0))
    for k in range(blows):
        strength = np.float32(size * rng.lognormal(0.0, 0.2))
        place(noise, ring * strength, start + gap * (k + rng.normal(0.0, 0.05)), rate)


def _voices(noise: Array, rate: int, rng: np.random.Generator) -> None:
    """Somebody speaks far off: pitch and formants in the rhythm of syllables, no words; added in place."""
    seconds = rng.uniform(0.8, 2.5)
    m = round(min(seconds, len(noise) / rate) * rate)
    pitch = rng.uniform(95.0, 220.0)
    orders = np.arange(1.0, int(3400.0 / pitch) + 1.0)
    formants = np.array([rng.uniform(400.0, 750.0), rng.uniform(1100.0, 1900.0), 2600.0])
    size = np.exp(-0.5 * ((orders[:, None] * pitch - formants) / 180.0) ** 2) @ np.array([1.0, 0.5, 0.25])
    table = wavetable(orders, size + 0.02, rng.uniform(0.0, 2.0 * np.pi, len(orders)))
    turns = phase(pitch * (1.0 + 0.07 * slow(rng, m, rate, 4.0)), m, rate, 1.0)
    syllables = np.maximum(slow(rng, m, rate, 5.0) + 0.3, 0.0)
    speech = lookup(table, turns) * expand(syllables, m)
    place(
        noise,
        np.float32(db(rng.uniform(-14.0, -6.0))) * speech,
        rng.uniform(0.0, len(noise) / rate - m / rate),
        rate,
    )


def _truck(n: int, rate: int, rng: np.random.Generator) -> Array:
    """A truck that passes: low rumble that swells and fades."""
    rumble = curve_db(((10.0, -12.0), (60.0, 0.0), (180.0, -6.0), (600.0, -18.0), (9000.0, -50.0)), n, rate)
    t = np.arange(n // 128 + 2) * 128 / rate
    swell = np.exp(-0.5 * ((t - rng.uniform(0.0, n / rate)) / rng.uniform(0.7, 1.8)) ** 2)
    return shaped_noise(rng, rumble, n) * expand(db(rng.uniform(-4.0, 3.0)) * swell, n)
