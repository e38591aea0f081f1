"""Blending keeps every part's ranks and weighs as it is told."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from offkey.scoring import NormalQuantile, ScoringError, blend, blend_normal, left_out_quantiles


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=40),
    st.sets(st.integers(-2000, 2000), min_size=2, max_size=30),
    st.sampled_from([1e-6, 0.01, 1.0, 1e6]),
)
def test_is_strictly_increasing_also_beyond_what_was_seen(normal, asked, unit):
    to = NormalQuantile.of(unit * np.array(normal, dtype=float))
    quantiles = to(unit * 0.25 * np.array(sorted(asked), dtype=float))
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles) > 0).all()


@pytest.mark.parametrize("far", [1e3, 1e8, 1e15])
def test_far_scores_are_not_squashed(far):
    to = NormalQuantile.of(np.random.default_rng(0).gamma(2.0, size=100))
    assert to(np.array([2 * far]))[0] == pytest.approx(2 * to(np.array([far]))[0], rel=0.01)
    assert to(np.array([-2 * far]))[0] < to(np.array([-far]))[0] < -100


def test_gaussian_scores_keep_their_z_score():
    scores = norm.ppf((np.arange(500) + 0.5) / 500, loc=7.0, scale=3.0)
    to = NormalQuantile.of(scores)
    asked = np.array([-20.0, 1.0, 7.0, 13.0, 40.0])
    np.testing.assert_allclose(to(asked), (asked - 7.0) / 3.0, rtol=1e-9)


def test_knots_are_the_normal_quantiles_of_the_average_ranks():
    to = NormalQuantile.of(np.array([5.0, 1.0, 5.0, 9.0]))
    np.testing.assert_allclose(to(np.array([1.0, 5.0, 9.0])), norm.ppf([0.5 / 4, 2.0 / 4, 3.5 / 4]), atol=1e-15)


def test_scores_apart_by_rounding_noise_make_no_cliff():
    values = np.array([1.0, 1.0 + 2e-16, 1.0 + 4e-16, 2.0, 3.0])
    to = NormalQuantile.of(values)
    assert np.isfinite(to(np.array([0.0, 1.0, 1.0 + 2e-16, 5.0]))).all()
    assert len(to.knots) == 3


@pytest.mark.parametrize("scores", [[], [np.nan]])
def test_needs_scores(scores):
    with pytest.raises(ScoringError, match="finite score"):
        NormalQuantile.of(np.array(scores, dtype=float))


def test_blend_is_the_weighted_mean_of_quantiles():
    rng = np.random.default_rng(3)
    maps = [NormalQuantile.of(rng.gamma(2.0, size=30)), NormalQuantile.of(rng.normal(50.0, 9.0, size=30))]
    parts = np.stack([rng.gamma(2.0, size=15), rng.normal(50.0, 9.0, size=15)], axis=1)
    expected = [0.25 * maps[0](row[:1])[0] + 0.75 * maps[1](row[1:])[0] for row in parts]
    np.testing.assert_allclose(blend(parts, maps, [1.0, 3.0]), expected)


def test_the_unit_of_a_part_does_not_matter():
    rng = np.random.default_rng(4)
    normal, asked = rng.gamma(2.0, size=(2, 40)), rng.gamma(3.0, size=(9, 2))
    plain = blend(asked, [NormalQuantile.of(column) for column in normal], [1.0, 1.0])
    scaled = [NormalQuantile.of(1e6 * normal[0] - 5), NormalQuantile.of(normal[1])]
    np.testing.assert_allclose(blend(asked * [1e6, 1] - [5, 0], scaled, [1.0, 1.0]), plain, rtol=1e-6, atol=1e-9)


def test_a_lone_scorer_is_used_as_it_is():
    np.testing.assert_array_equal(blend(np.array([[3.0], [1.0]]), (), [1.0]), [3.0, 1.0])


# ---- normal clips, each without itself


def one_by_one(scores, groups):
    """The definition, slowly: a map for each clip, learnt on those of other groups."""
    groups, found = np.asarray(groups), np.zeros(len(scores))
    for place, score in enumerate(scores):
        others = scores[groups != groups[place]]
        if len(others):
            found[place] = NormalQuantile.of(others)(np.array([score]))[0]
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 6)), min_size=1, max_size=30),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1e-6, 1.0, 1e5]),
)
def test_each_clip_is_left_out_as_one_by_one(clips, grouped, ties, unit):
    scores = unit * np.array([score for score, _ in clips], dtype=float)
    if not ties:
        scores = scores + unit * np.random.default_rng(len(clips)).random(len(clips))
    groups = [group for _, group in clips] if grouped else list(range(len(clips)))
    found = left_out_quantiles(scores, groups=groups if grouped else None)
    np.testing.assert_allclose(found, one_by_one(scores, groups), rtol=1e-9, atol=1e-12)


def test_the_highest_clip_is_not_capped():
    """What a whole map gives its highest clip is bounded by its rank; a new clip's quantile is not."""
    scores = np.random.default_rng(5).lognormal(size=50)
    scores[0] = 1e3
    assert NormalQuantile.of(scores)(scores)[0] == pytest.approx(norm.ppf(1 - 1 / 100))
    assert left_out_quantiles(scores)[0] > 100


def test_clips_that_the_map_was_not_learnt_on_get_theirs_from_the_whole_map():
    scores, learnt = np.random.default_rng(6).gamma(2.0, size=30), np.arange(30) % 3 > 0
    found = left_out_quantiles(scores, learnt)
    np.testing.assert_array_equal(found[~learnt], NormalQuantile.of(scores[learnt])(scores[~learnt]))
    np.testing.assert_array_equal(found[learnt], left_out_quantiles(scores[learnt]))


def test_normal_clips_are_blended_by_the_same_weights():
    scores = np.random.default_rng(7).gamma(2.0, size=(30, 2))
    expected = 0.25 * left_out_quantiles(scores[:, 0]) + 0.75 * left_out_quantiles(scores[:, 1])
    np.testing.assert_allclose(blend_normal(scores, [1.0, 3.0]), expected)


@pytest.mark.parametrize("scores", [[], [1.0, np.nan]])
def test_leaving_out_needs_scores(scores):
    with pytest.raises(ScoringError, match="finite score"):
        left_out_quantiles(np.array(scores, dtype=float))


def test_many_clips_are_left_out_quickly():
    """One map a clip would take minutes."""
    scores = np.random.default_rng(8).lognormal(size=20_000)
    start = time.perf_counter()
    left_out_quantiles(scores)
    left_out_quantiles(scores, groups=np.arange(20_000) // 8)
    assert time.perf_counter() - start < 5
