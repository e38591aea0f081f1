"""The strangest region is the one that was put in, and chance is charged for."""

from __future__ import annotations

import numpy as np
import pytest

from offkey.explaining.profile import KNOTS, Profile, Spectra, local, stretches
from offkey.explaining.scan import (
    Ordinary,
    Region,
    ordinary,
    strangest_always,
    strangest_band,
    strangest_region,
    strangest_regions,
    widened,
)

FRAME = 0.032
BANDS, FRAMES = 64, 190


def noise(seed: int, frames: int = FRAMES) -> np.ndarray:
    return 5.0 * np.random.default_rng(seed).standard_normal((BANDS, frames))


def profile_of_noise(clips: int = 24, swing: float = 0.0) -> Profile:
    """Clips of even noise, each as a whole up to `swing` dB louder or quieter than the next."""
    gains = np.random.default_rng(1).uniform(-swing, swing, clips)
    maps = [noise(100 + number) + gain for number, gain in enumerate(gains)]
    every = np.concatenate([local(one, FRAME) for one in maps], axis=1)
    from scipy.special import ndtr

    spectra = Spectra(
        np.stack([stretches(one) for one in maps]).astype(np.float16),
        np.full(clips, FRAMES * FRAME, np.float32),
        np.quantile(every, ndtr(KNOTS), axis=1).T.astype(np.float32),
    )
    level = np.concatenate(maps, axis=1)
    return Profile(level.mean(axis=1).astype(np.float32), level.std(axis=1).astype(np.float32), spectra)


@pytest.fixture(scope="module")
def usual() -> Ordinary:
    return ordinary(profile_of_noise(), None, False, FRAME)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("low", "high", "start", "end"), [(20, 40, 60, 90), (0, 63, 100, 120), (30, 31, 30, 110), (50, 63, 150, 189)]
)
def test_it_is_the_one_that_was_put_in(usual: Ordinary, low: int, high: int, start: int, end: int, sign: float) -> None:
    level = noise(0)
    level[low : high + 1, start : end + 1] += 9.0 * sign
    found = strangest_region(local(level, FRAME), usual)
    assert abs(found.start - start) <= 4
    assert abs(found.end - end) <= 4
    assert abs(found.low - low) <= 2
    assert abs(found.high - high) <= 2
    assert found.strangeness > 4


def test_in_normal_clips_nothing_sticks_out(usual: Ordinary) -> None:
    found = [strangest_region(local(noise(seed), FRAME), usual).strangeness for seed in range(10)]
    assert np.median(found) < 1.5
    assert max(found) < 3.0


def test_a_clip_that_is_louder_as_a_whole_is_strange_only_where_normal_clips_are_not() -> None:
    typical = np.median(stretches(noise(0)), axis=1) + 4.0
    even = ordinary(profile_of_noise(swing=0.0), None, False, FRAME)
    varied = ordinary(profile_of_noise(swing=6.0), None, False, FRAME)
    assert strangest_always(typical, even, FRAMES).strangeness > 3
    assert strangest_always(typical, varied, FRAMES).strangeness < 1


def test_what_normal_clips_do_by_themselves_is_no_surprise() -> None:
    """A machine that is 15 dB louder half of the time."""
    quiet = profile_of_noise()
    beats = np.where(np.arange(FRAMES) // 10 % 2 == 0, 15.0, 0.0)
    every = np.concatenate([local(noise(100 + number) + beats, FRAME) for number in range(24)], axis=1)
    from scipy.special import ndtr

    known = Spectra(
        np.stack([stretches(noise(100 + number) + beats) for number in range(24)]).astype(np.float16),
        quiet.spectra.seconds,
        np.quantile(every, ndtr(KNOTS), axis=1).T.astype(np.float32),
    )
    busy = ordinary(Profile(quiet.mean, quiet.spread, known), None, False, FRAME)
    heard = local(noise(7) + beats, FRAME)
    assert strangest_region(heard, busy).strangeness < 2
    assert strangest_region(heard, ordinary(quiet, None, False, FRAME)).strangeness > 5


def test_the_band_of_a_given_time(usual: Ordinary) -> None:
    level = noise(0)
    level[10:15, 50:100] += 9.0
    level[40:60, 150:180] += 20.0
    found = strangest_band(local(level, FRAME), usual, 50, 99)
    assert abs(found.low - 10) <= 1
    assert abs(found.high - 14) <= 1


def test_regions_one_after_another_share_no_time(usual: Ordinary) -> None:
    level = noise(0)
    level[10:20, 20:50] += 12.0
    level[40:50, 100:130] += 9.0
    first, second = strangest_regions(local(level, FRAME), usual, 2)
    assert (abs(first.start - 20) <= 4, abs(second.start - 100) <= 4) == (True, True)
    assert first.strangeness > second.strangeness


def test_a_region_takes_in_the_bands_beside_it_where_the_map_is_as_strong() -> None:
    strength = np.zeros((BANDS, FRAMES))
    strength[10:30, 50:60] = 1.0
    strength[5:10, 50:60] = 0.2
    strength[40:50, 50:60] = 1.0  # not beside it
    strength[30:40, 0:20] = 9.0  # not in its time
    assert widened(Region(15, 20, 50, 59, 3.0), strength) == Region(10, 29, 50, 59, 3.0)


@pytest.mark.parametrize("frames", [1, 2, 3, 17])
def test_very_short_clips_have_a_region(usual: Ordinary, frames: int) -> None:
    level = noise(0, frames)
    found = strangest_region(local(level, FRAME), usual)
    assert 0 <= found.start <= found.end < frames
    assert stretches(level).shape == (BANDS, 16)
