"""Shares add up to the score that they are shares of."""

from __future__ import annotations

import numpy as np
import pytest

from offkey.explaining import contributions, nearest_rows
from offkey.scoring import Query, Reference, Scorer, ScorerConfig, build_scorer
from offkey.scoring.density import DensityOptions
from offkey.scoring.mahalanobis import MahalanobisOptions
from offkey.scoring.neighbours import NeighboursOptions

RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((40, 6)) @ RNG.standard_normal((6, 6)) + 3.0
DOMAINS = ["source"] * 28 + ["target"] * 12


def fitted(options: ScorerConfig) -> Scorer:
    return build_scorer(options, 0).fit(Reference(POINTS, domain=DOMAINS))


@pytest.mark.parametrize(
    "options",
    [
        MahalanobisOptions(centre="all"),
        MahalanobisOptions(centre="domain", covariance="domain", min_clips=5),
        MahalanobisOptions(centre="domain", standardise=True),
    ],
    ids=str,
)
def test_mahalanobis_shares_add_up_to_the_squared_score(options: MahalanobisOptions) -> None:
    scorer = fitted(options)
    for point in RNG.standard_normal((5, 6)) + 3.0:
        told = contributions(scorer, point, POINTS[0])
        assert told.sum() == pytest.approx(scorer.score(Query(point[None]))[0] ** 2)


def test_the_feature_that_was_moved_makes_the_distance() -> None:
    points = np.random.default_rng(1).standard_normal((200, 6))
    scorer = build_scorer(MahalanobisOptions(centre="all"), 0).fit(Reference(points))
    told = contributions(scorer, np.array([0.0, 0, 0, 8.0, 0, 0]), points[0])
    assert told[3] / told.sum() > 0.95


def test_euclidean_neighbours_share_the_squared_distance() -> None:
    scorer = fitted(NeighboursOptions(metric="euclidean", k=1))
    point = POINTS[5] + 0.1
    row = nearest_rows(scorer, point[None], POINTS, 3)[0]
    assert row[0] == 5
    told = contributions(scorer, point, POINTS[row[0]])
    assert told.sum() == pytest.approx(scorer.score(Query(point[None]))[0] ** 2)


def test_the_nearest_are_those_of_the_scorer_and_never_oneself() -> None:
    scorer = fitted(DensityOptions(metric="cosine"))
    near = nearest_rows(scorer, POINTS, POINTS, 3, leave_out=True)
    assert near.shape == (40, 3)
    assert not (near == np.arange(40)[:, None]).any()
    unit = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)
    likeness = unit @ unit.T - 9 * np.eye(40)
    assert near[:, 0].tolist() == likeness.argmax(axis=1).tolist()
    assert nearest_rows(scorer, POINTS[:1], POINTS[:2], 5).shape == (1, 2)
    rest = nearest_rows(scorer, POINTS[:1], POINTS, 40, without=np.array([0, near[0, 0]]))
    assert rest.shape == (1, 38)
    assert rest[0, 0] == near[0, 1]
    assert not {0, near[0, 0]} & set(rest[0].tolist())
