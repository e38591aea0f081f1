"""Pseudo-classes: groups that are plainly there are found, and none where there are none to find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, silhouette_score

from offkey.systems.clusters import MOST_CLUSTERS, SMALLEST_CLUSTER, bic, cluster, components


def blobs(groups: int, each: int = 12, width: int = 10, apart: float = 12.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(groups), each))
    return rng.normal(size=(groups, width))[truth] * apart + rng.normal(size=(len(truth), width)), truth


@pytest.mark.parametrize("groups", [2, 3, 5])
@pytest.mark.parametrize("told", [True, False])
def test_groups_far_apart_are_found(groups: int, told: bool) -> None:
    features, truth = blobs(groups)
    assert adjusted_rand_score(truth, cluster(features, groups if told else 0)) == 1.0


def test_groups_are_numbered_as_they_first_appear() -> None:
    features, _ = blobs(4)
    found = cluster(features)
    _, first = np.unique(found, return_index=True)
    assert np.all(np.diff(first) > 0)
    assert found[0] == 0


def test_the_scale_of_a_feature_does_not_matter() -> None:
    features, _ = blobs(3)
    scale = 10.0 ** np.random.default_rng(1).uniform(-4, 4, features.shape[1])
    assert cluster(features * scale + 7.0).tolist() == cluster(features).tolist()


def test_the_order_of_clips_does_not_matter() -> None:
    features, _ = blobs(3, seed=2)
    order = np.random.default_rng(0).permutation(len(features))
    assert adjusted_rand_score(cluster(features)[order], cluster(features[order])) == 1.0


@pytest.mark.parametrize(
    "features",
    [np.zeros((20, 3)), np.ones((1, 4)), np.zeros((0, 4)), np.random.default_rng(0).normal(size=(7, 3))],
    ids=["all alike", "one clip", "no clip", "few clips"],
)
def test_nothing_to_tell_apart_is_one_group(features: np.ndarray) -> None:
    assert cluster(features).tolist() == [0] * len(features)


@given(
    st.integers(8, 40).flatmap(
        lambda rows: st.integers(0, 2**32 - 1).map(
            lambda seed: np.random.default_rng(seed).standard_t(2, size=(rows, 3)).round(1)
        )
    )
)
@settings(deadline=None, max_examples=40)
def test_chosen_groups_are_neither_many_nor_tiny(features: np.ndarray) -> None:
    found = cluster(features)
    sizes = np.bincount(found)
    assert len(found) == len(features)
    assert 1 <= len(sizes) <= MOST_CLUSTERS
    assert sizes.min() >= min(SMALLEST_CLUSTER, len(features))
    assert cluster(features).tolist() == found.tolist()


def test_a_lone_outlier_is_no_group() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4))
    features[11] += 100.0
    assert np.bincount(cluster(features)).min() >= SMALLEST_CLUSTER


def test_many_groups_are_counted_where_the_silhouette_would_stop_at_two() -> None:
    # pairs of groups: two far apart, each of them two that are closer to each other
    rng, truth = np.random.default_rng(0), np.repeat(np.arange(4), 30)
    place = 6.0 * rng.normal(size=(2, 24))[[0, 0, 1, 1]] + 1.6 * rng.normal(size=(4, 24))
    features = place[truth] + rng.normal(size=(120, 24))
    points = components(features)
    assert silhouette_score(points, truth // 2) > silhouette_score(points, truth)
    assert adjusted_rand_score(truth, cluster(features)) == 1.0


def test_few_clips_in_many_dimensions_are_told_apart_by_silhouette() -> None:
    features, truth = blobs(2, each=5, width=60, apart=1.0)
    points = components(features)
    assert bic(points, truth) > bic(points, np.zeros(10, dtype=np.int64))  # which alone would leave one group
    assert adjusted_rand_score(truth, cluster(features)) == 1.0


def test_bic_is_that_of_the_likelihood_of_each_clip() -> None:
    features, truth = blobs(3, each=6, width=4)
    left, likelihood = 0.0, 0.0
    means = [features[truth == k].mean(0) for k in range(3)]
    for row, k in zip(features, truth, strict=True):
        left += float(((row - means[k]) ** 2).sum())
    variance = left / (4 * (18 - 3))
    for row, k in zip(features, truth, strict=True):
        density = np.log(1 / 3) - 0.5 * 4 * np.log(2 * np.pi * variance) - ((row - means[k]) ** 2).sum() / variance / 2
        likelihood += float(density)
    assert bic(features, truth) == pytest.approx(np.log(18) * (2 + 3 * 4 + 1) - 2 * likelihood)


def test_of_very_many_clips_some_are_compared_and_the_others_join(monkeypatch: pytest.MonkeyPatch) -> None:
    features, truth = blobs(3, each=60)
    whole = cluster(features)
    monkeypatch.setattr("offkey.systems.clusters.MOST_COMPARED", 50)
    assert cluster(features).tolist() == whole.tolist()
    assert adjusted_rand_score(truth, cluster(features, 3)) == 1.0
