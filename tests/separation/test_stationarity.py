"""The prior: what stays through a clip is found, what comes and goes is not, and noise drawn from it is alike."""

from __future__ import annotations

import numpy as np

from offkey.separation.recipe import PriorConfig
from offkey.separation.stationarity import coloured_floor, stationary_floor, stationary_noise, valley_depth

RATE, PRIOR = 16000, PriorConfig()


def falling_noise(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    floor = 1.0 / (1.0 + np.arange(513) / 20.0) ** 2
    return stationary_noise(floor, round(seconds * RATE), RATE, 0.0, rng)


def decibels(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(10 * np.log10(one[5:500] / other[5:500]))


def test_the_floor_of_noise_is_its_spectrum_and_blows_and_tones_hardly_raise_it() -> None:
    noise = falling_noise(6.0, 0)
    wanted = 1.0 / (1.0 + np.arange(513) / 20.0) ** 2
    plain = stationary_floor(noise, RATE, PRIOR)
    off = decibels(plain, wanted)
    assert np.std(off) < 0.7  # the level is another; the shape is the same
    time = np.arange(len(noise)) / RATE
    tone = 2 * np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    blows = np.where(time % 0.5 < 0.1, 5 * np.random.default_rng(1).standard_normal(len(noise)), 0).astype(np.float32)
    toned = decibels(stationary_floor(noise + tone, RATE, PRIOR), plain)
    assert toned.max() < 3.0
    assert np.abs(toned).mean() < 0.2
    # blows in a third of all frames: the median moves by 3 dB, the mean power by 20
    beaten = decibels(stationary_floor(noise + blows, RATE, PRIOR), plain)
    assert np.mean(beaten) < 4.5
    assert 10 * np.log10(np.mean((noise + tone + blows) ** 2) / np.mean(noise**2)) > 7


def test_noise_drawn_from_a_floor_has_it_again() -> None:
    rng = np.random.default_rng(2)
    floor = coloured_floor(513, RATE, rng)
    noise = stationary_noise(floor, 5 * RATE, RATE, 2.0, rng)
    assert noise.dtype == np.float32
    assert np.isclose(np.mean(noise**2), 1.0, atol=1e-3)
    assert np.std(decibels(stationary_floor(noise, RATE, PRIOR), floor)) < 2.0


def test_short_clips_and_silence_have_a_floor() -> None:
    assert stationary_floor(np.ones(10, np.float32), RATE, PRIOR).shape == (513,)
    floor = stationary_floor(np.zeros(RATE, np.float32), RATE, PRIOR)
    assert not floor.any()
    assert not stationary_noise(floor, 100, RATE, 2.0, np.random.default_rng(0)).any()


def test_colours_differ() -> None:
    rng = np.random.default_rng(0)
    falls = [10 * np.log10(floor[13] / floor[410]) for floor in (coloured_floor(513, RATE, rng) for _ in range(40))]
    assert min(falls) < 10 < 25 < max(falls)


def test_valleys_are_as_deep_as_surroundings_are_soft() -> None:
    time = np.arange(3 * RATE) / RATE
    hum = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 12))
    strokes = np.where(time % 0.5 < 0.1, np.random.default_rng(3).standard_normal(len(time)), 0)
    for machine in (hum, strokes):
        machine = (machine / np.std(machine)).astype(np.float32)
        noise = falling_noise(3.0, 4)
        depths = [
            valley_depth((level * (machine + 10 ** (-snr / 20) * noise)).astype(np.float32), PRIOR)
            for snr, level in (
                (-5, 0.3),
                (0, 0.01),
                (5, 1.0),
                (10, 0.1),
                (20, 2.0),
            )  # how loud a clip is does not matter
        ]
        assert depths == sorted(depths)
        assert depths[-1] - depths[0] > 10


def test_the_depth_of_silence_of_a_click_and_of_bands_without_sound() -> None:
    assert valley_depth(np.zeros(RATE, np.float32), PRIOR) == 0  # never taken for the clearest
    assert 0 < valley_depth(np.ones(10, np.float32), PRIOR) <= 80
    click = np.zeros(RATE, np.float32)
    click[5] = 1
    assert np.isclose(valley_depth(click, PRIOR), 80)
