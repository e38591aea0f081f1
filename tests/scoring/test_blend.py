"""Blending keeps every part's ranks and weighs as it is told."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, spearmanr

from offkey.scoring import (
    Blend,
    BlendOptions,
    LevelOptions,
    MahalanobisOptions,
    NeighboursOptions,
    NormalQuantile,
    Query,
    ScoringError,
    build_scorer,
)
from offkey.scoring import cross_fit as fit_across


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


def test_blend_is_the_weighted_mean_of_cross_fitted_quantiles(reference):
    parts = (MahalanobisOptions(), NeighboursOptions(k=2))
    options = BlendOptions(parts=parts, weights=(1.0, 3.0), folds=4)
    query = Query(np.random.default_rng(3).normal(3.0, 2.0, size=(15, 6)))
    scorer = Blend(options, seed=2).fit(reference)
    expected = np.zeros(15)
    for part, weight in zip(parts, (0.25, 0.75), strict=True):
        # the blend fits its folds on the reference in canonical order; here on its own copy of that order
        normal = fit_across(lambda p=part: build_scorer(p, 2), canonical(reference), folds=4, seed=2)
        expected += weight * NormalQuantile.of(normal)(build_scorer(part, 2).fit(reference).score(query))
    np.testing.assert_allclose(scorer.score(query), expected)


def canonical(reference):
    from offkey.scoring.base import _canonical_order

    return reference.take(_canonical_order(reference))


def test_a_blend_of_one_part_ranks_as_that_part(reference):
    query = Query(np.random.default_rng(3).normal(3.0, 4.0, size=(60, 6)))
    part = MahalanobisOptions(centre="domain")
    alone = build_scorer(part).fit(reference).score(query)
    blended = Blend(BlendOptions(parts=(part,))).fit(reference).score(query)
    assert spearmanr(alone, blended).statistic == pytest.approx(1.0)
    assert len(np.unique(blended)) == len(np.unique(alone))


def test_parts_are_told_apart(reference):
    options = BlendOptions(parts=(NeighboursOptions(), NeighboursOptions(k=3), LevelOptions()))
    scorer = Blend(options).fit(reference)
    query = reference.take([0, 1]).query()
    parts = scorer.part_scores(query)
    assert list(parts) == ["neighbours.0", "neighbours.1", "level"]
    np.testing.assert_array_equal(
        parts["neighbours.1"], build_scorer(NeighboursOptions(k=3)).fit(reference).score(query)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": (1.0,)}, "2 parts but 1 weights"),
        ({"weights": (1.0, -1.0)}, "≥ 0"),
        ({"weights": (0.0, 0.0)}, "not all 0"),
        ({"parts": ()}, "at least 1"),
        ({"parts": ({"name": "blend"},)}, "blend"),
    ],
)
def test_refuses_weights_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        BlendOptions(**settings)


def test_one_clip_cannot_be_blended(reference):
    with pytest.raises(ScoringError, match="at least 2 normal clips"):
        Blend().fit(reference.take([0]))
