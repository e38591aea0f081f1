"""AUC and pAUC are scikit-learn's, on any finite scores, ties included."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from offkey.evaluation.metrics import (
    MetricError,
    auc,
    harmonic_mean,
    official_score,
    partial_auc,
    roc_curve,
    weighted_areas,
)

# scikit-learn subtracts neighbouring scores, which overflows near the largest float; those are tested below
finite = st.floats(-1e300, 1e300, allow_nan=False, width=64)
tied = st.integers(-3, 3).map(float)


@st.composite
def labelled(draw):
    size = draw(st.integers(2, 40))
    scores = draw(st.lists(draw(st.sampled_from([finite, tied])), min_size=size, max_size=size))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    labels[0], labels[1] = 0, 1
    return np.array(labels), np.array(scores)


@settings(max_examples=300, deadline=None)
@given(labelled(), st.sampled_from([0.01, 0.1, 0.5, 0.99, 1.0]))
def test_equals_sklearn(data, max_fpr):
    labels, scores = data
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = roc_auc_score(labels, scores, max_fpr=max_fpr)
    assert partial_auc(labels, scores, max_fpr) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(labelled())
def test_auc_is_the_share_of_pairs_won(data):
    labels, scores = data
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    won = [(a > n) + 0.5 * (a == n) for a in anomalous for n in normal]
    assert auc(labels, scores) == pytest.approx(np.mean(won), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(labelled(), st.integers(0, 2**32 - 1))
def test_a_weight_of_n_is_n_copies(data, seed):
    labels, scores = data
    weights = np.random.default_rng(seed).integers(0, 4, size=len(scores))
    weights[:2] += 1  # both classes stay
    full, partial = weighted_areas(labels.astype(bool), scores, weights[None, :], 0.1)
    copies = np.repeat(np.arange(len(scores)), weights)
    assert full[0] == pytest.approx(roc_auc_score(labels[copies], scores[copies]), abs=1e-12)
    assert partial[0] == pytest.approx(roc_auc_score(labels[copies], scores[copies], max_fpr=0.1), abs=1e-12)


def test_many_weightings_are_the_same_as_one_after_another():
    rng = np.random.default_rng(0)
    labels, scores = rng.random(30) < 0.4, rng.integers(0, 9, 30).astype(float)
    weights = rng.integers(1, 5, (7, 30))
    together = weighted_areas(labels, scores, weights, 0.1)
    single = [weighted_areas(labels, scores, row[None], 0.1) for row in weights]
    np.testing.assert_array_equal(together[0], [s[0][0] for s in single])
    np.testing.assert_array_equal(together[1], [s[1][0] for s in single])


def test_scores_of_extreme_size_keep_their_ranks():
    scores = [-sys.float_info.max, -1e-300, 5e-324, sys.float_info.max]
    assert auc([0, 1, 0, 1], scores) == 0.75
    assert auc([0, 0, 1, 1], [1.0, 1.0 + 1e-15, 1.0 + 2e-15, 1e308]) == 1.0


def test_curve_has_sklearns_corners():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 50), rng.integers(0, 12, 50).astype(float)
    ours = roc_curve(labels, scores)
    alarms, hits, thresholds = sklearn_roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(ours.false_alarm_rate, alarms)
    np.testing.assert_allclose(ours.hit_rate, hits)
    np.testing.assert_array_equal(ours.threshold[1:], thresholds[1:])


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.0, float("nan")], "score 1 is nan"),
        ([0, 1], [0.0, float("inf")], "only finite"),
        ([0, 0], [0.0, 1.0], "no anomalous clip"),
        ([1, 1], [0.0, 1.0], "no normal clip"),
        ([0, 1, 1], [0.0, 1.0], "equal length"),
        ([0, 2], [0.0, 1.0], "0 .normal. or 1"),
    ],
)
@pytest.mark.parametrize("metric", [auc, partial_auc, roc_curve])
def test_refuses_with_the_reason(metric, labels, scores, message):
    with pytest.raises(MetricError, match=message):
        metric(labels, scores)


def test_official_score_is_the_floored_harmonic_mean():
    values = [0.5, 0.75, 1.0]
    assert official_score(values) == pytest.approx(hmean(values), abs=1e-15)
    assert official_score([0.0, 0.9]) == pytest.approx(hmean([sys.float_info.epsilon, 0.9]))
    assert 0 < official_score([0.0] * 3) < 1e-15
    with pytest.raises(MetricError, match="no values"):
        harmonic_mean([])
    with pytest.raises(MetricError, match="NaN"):
        harmonic_mean([0.5, float("nan")])
