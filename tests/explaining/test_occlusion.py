"""Occlusion finds what makes a score, changes nothing else, and asks no more often than it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offkey.audio.mel import LogMel
from offkey.explaining.occlusion import BANDS, ROUNDS, SPLIT, TIMES, Tile, _Occluder, occlusion_map

RATE = 16000
MEL = LogMel(RATE)


def clip(seconds: float = 3.0) -> np.ndarray:
    return (0.05 * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


def level(waveforms: np.ndarray) -> np.ndarray:
    return MEL(torch.from_numpy(waveforms)).double().numpy()


class Place:
    """A score that is the mean level of a place; counts how many clips it was asked about."""

    def __init__(self, *inside: slice) -> None:
        self.inside, self.asked = inside, 0

    def __call__(self, waveforms: np.ndarray) -> np.ndarray:
        self.asked += len(waveforms)
        return level(waveforms)[:, *self.inside].mean(axis=(1, 2))


def test_the_share_lies_where_the_score_comes_from() -> None:
    score = Place(slice(60, 80), slice(40, 60))
    change = np.full((128, 94), -10.0)
    drawn = occlusion_map(clip(), MEL, change, score)
    inside = drawn[55:85, 35:65].clip(min=0).sum()
    assert inside > 0.85 * drawn.clip(min=0).sum()
    band, frame = np.unravel_index(int(drawn.argmax()), drawn.shape)
    assert (58 <= band <= 82, 36 <= frame <= 64) == (True, True)
    assert score.asked <= 1 + TIMES * BANDS + ROUNDS * SPLIT * 4
    np.testing.assert_array_equal(occlusion_map(clip(), MEL, change, score), drawn)


def test_what_is_normal_already_has_no_share() -> None:
    drawn = occlusion_map(clip(), MEL, np.zeros((128, 94)), Place(slice(60, 80), slice(40, 60)))
    np.testing.assert_allclose(drawn, 0.0, atol=1e-6)


def test_a_part_that_makes_a_clip_more_normal_counts_below_0() -> None:
    calm = Place(slice(60, 80), slice(40, 60))
    drawn = occlusion_map(clip(), MEL, np.full((128, 94), -10.0), lambda waveforms: -calm(waveforms))
    assert drawn[64:76, 44:56].max() < 0


def test_a_tile_is_brought_to_the_level_asked_for_and_the_rest_stays() -> None:
    change = np.full((128, 94), -12.0)
    made = _Occluder(clip(), MEL, change)([Tile(40, 70, 30, 60), Tile(0, 128, 0, 0)])
    before, (after, same) = level(clip()[None])[0], level(made)
    np.testing.assert_allclose(same, before, atol=0.01)
    gain = np.median(after - before)  # the clip's level is kept
    assert (after - before)[44:66, 34:56].mean() == pytest.approx(-12.0 + gain, abs=0.7)
    np.testing.assert_allclose((after - before)[75:], gain, atol=0.5)
    np.testing.assert_allclose((after - before)[:, 65:], gain, atol=0.5)
    np.testing.assert_allclose(np.sqrt(np.square(made).mean(axis=1)), np.sqrt(np.square(clip()).mean()), rtol=1e-4)


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.4])
def test_short_clips_have_a_map(seconds: float) -> None:
    frames = int(seconds * RATE) // 512 + 1
    drawn = occlusion_map(clip(seconds), MEL, np.full((128, frames), -6.0), Place(slice(0, 128), slice(0, 2)))
    assert drawn.shape == (128, frames)
    assert np.isfinite(drawn).all()


def test_frames_that_do_not_overlap_can_be_put_together_again() -> None:
    from offkey.audio.mel import MelConfig

    mel = LogMel(RATE, MelConfig(n_fft=512, hop=512))
    made = _Occluder(clip(), mel, np.zeros((128, 94)))([Tile(0, 128, 0, 94)])
    np.testing.assert_allclose(made[0], clip(), atol=1e-5)
