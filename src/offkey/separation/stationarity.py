"""The prior of separation without examples: background is what stays the same through a clip.

From the part of a clip's spectrum that is always there, smooth over frequency, new noise is drawn: it has the colour of
the clip's surroundings and nothing of the machine's rhythm, tones and strokes. Surroundings fill the valleys that the
machine leaves between its tones and strokes: how deep these are tells which clips have less of them.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from offkey.separation.recipe import PriorConfig
from offkey.types import Float

__all__ = ["coloured_floor", "stationary_floor", "stationary_noise", "valley_depth"]

_MEDIAN_OF_POWER = float(np.log(2.0))  # of an exponential law of mean 1, which the power of noise in a bin follows
_OCTAVES = np.geomspace(40.0, 9000.0, 9)
_BANDS = 40  # of equal width in octaves, where the lowest are not narrower than a bin
_QUIET_TIME = 0.1  # quantile over time
_QUIET_BANDS = 1 / 3
_NOTHING = 1e-8  # of a clip's power: a band 80 dB below it holds no sound, but what rounding and codecs left


def stationary_floor(samples: Float[np.ndarray, " T"], rate: int, config: PriorConfig) -> Float[np.ndarray, " F"]:
    """Power of what is always there in each of `n_fft / 2 + 1` bins: median over time, then over neighbouring bins.

    What comes and goes in time, and lines that are narrower than half of `smooth_hz`, do not raise it.
    """
    from scipy.ndimage import median_filter

    size = config.n_fft
    power = _power(samples, size)
    width = 2 * round(config.smooth_hz * size / rate / 2) + 1
    floor = np.median(power, axis=0) / _MEDIAN_OF_POWER
    return np.asarray(median_filter(floor, width, mode="nearest"), dtype=np.float64)


def valley_depth(samples: Float[np.ndarray, " T"], config: PriorConfig) -> float:
    """How far a clip's quietest bands lie below the whole clip in its quiet moments, dB; 0 for silence, at most 80.

    Among clips of one machine a deeper one has less of its surroundings in it: with 48 simulated clips each of six
    machines, 0 to 12 dB above theirs, ranks correlate by 0.41 (fan) to 0.85 with the true level, and the deepest third
    lies 9.1 dB above its surroundings, all clips 6.0. Of two machines it tells nothing.
    """
    power = _power(samples, config.n_fft)
    bins = power.shape[1]
    edges = np.unique(np.round(np.geomspace(1, bins - 1, _BANDS + 1)).astype(int))
    bands = np.add.reduceat(power, edges[:-1], axis=1)
    whole = float(power.sum(1).mean())
    if not whole > 0:
        return 0.0
    quiet = np.sort(np.maximum(np.quantile(bands, _QUIET_TIME, axis=0) / whole, _NOTHING))
    return float(-10.0 * np.log10(quiet[: max(1, round(_QUIET_BANDS * len(quiet)))]).mean())


def _power(samples: Float[np.ndarray, " T"], size: int) -> Float[np.ndarray, "N F"]:
    """Power of frames of `size` samples, half overlapped; a clip that is shorter is filled with silence."""
    if len(samples) < size:
        samples = np.pad(samples, (0, size - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[:: size // 2]
    return np.asarray(np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1)) ** 2)


def coloured_floor(bins: int, rate: int, rng: np.random.Generator) -> Float[np.ndarray, " {bins}"]:
    """Power spectrum of surroundings as halls have them: flat below 200 Hz, falling by 0 to 7 dB an octave, uneven."""
    hertz = np.maximum(np.linspace(0.0, rate / 2, bins), 1.0)
    octaves = np.maximum(np.log2(hertz / 200.0), 0.0)
    uneven = np.interp(np.log(hertz), np.log(_OCTAVES), 3.0 * rng.standard_normal(len(_OCTAVES)))
    return np.asarray(10.0 ** ((uneven - rng.uniform(0.0, 7.0) * octaves) / 10.0))


def stationary_noise(
    floor: Float[np.ndarray, " F"], samples: int, rate: int, swell_db: float, rng: np.random.Generator
) -> Float[np.ndarray, " {samples}"]:
    """Gaussian noise of this power spectrum in which three bands rise and fall slowly; float32, RMS 1."""
    white = np.fft.rfft(rng.standard_normal(samples).astype(np.float32))
    hertz = np.linspace(0.0, rate / 2, len(white))
    shaped = white * np.interp(hertz, np.linspace(0.0, rate / 2, len(floor)), np.sqrt(floor))
    edges = np.array([0.0, *np.sort(rng.uniform(0.03, 0.3, 2)) * rate / 2, rate])
    place = np.linspace(0.0, 1.0, samples)
    knots = max(3, round(samples / rate) + 2)  # about one a second
    noise = np.zeros(samples)
    for low, high in pairwise(edges):
        band = np.where((hertz >= low) & (hertz < high), shaped, 0.0)
        swell = np.interp(place, np.linspace(0.0, 1.0, knots), swell_db * rng.standard_normal(knots))
        noise += np.fft.irfft(band, n=samples) * 10.0 ** (swell / 20.0)
    root = float(np.sqrt(np.mean(noise**2)))
    return np.asarray(noise / root if root > 0 else noise, dtype=np.float32)
