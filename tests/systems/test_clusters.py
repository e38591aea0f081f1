"""Pseudo-classes: groups that are plainly there are found, and none where there are none to find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from offkey.systems.clusters import MOST_CLUSTERS, SMALLEST_CLUSTER, cluster


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
