"""Embeddings of several equal parts: each is judged by itself, and the scores are summed."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from offkey.scoring import Query, Reference, ScorerConfig, ScoringError, build_scorer, scorer_from_state

KINDS = [
    {"name": "neighbours", "metric": "euclidean", "k": 2},
    {"name": "neighbours", "metric": "cosine", "domain_scale": True},
    {"name": "density", "metric": "cosine"},
    {"name": "density", "metric": "euclidean", "mode": "variance", "standardise": True},
    {"name": "density", "metric": "euclidean", "mode": "log-variance", "k": 1},
    {"name": "density", "metric": "euclidean", "mode": "difference", "among": "domain"},
]


def build(kind, **more):
    return build_scorer(TypeAdapter(ScorerConfig).validate_python(kind | more), seed=1)


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def kind(request):
    return request.param


@pytest.fixture
def asked():
    return Query(np.random.default_rng(4).normal(3.0, 2.0, size=(12, 6)))


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_the_score_is_the_sum_of_those_of_scorers_of_each_part(kind, parts, reference, asked):
    expected = np.zeros(len(asked))
    for columns in np.split(np.arange(6), parts):
        own = Reference(reference.embedding[:, columns], reference.domain, reference.identity)
        expected += build(kind).fit(own).score(Query(asked.embedding[:, columns]))
    np.testing.assert_allclose(build(kind, parts=parts).fit(reference).score(asked), expected, rtol=1e-9)


def test_the_order_of_parts_does_not_matter(kind, reference, asked):
    turned = [4, 5, 0, 1, 2, 3]
    other = Reference(reference.embedding[:, turned], reference.domain, reference.identity)
    scores = build(kind, parts=3).fit(other).score(Query(asked.embedding[:, turned]))
    np.testing.assert_allclose(scores, build(kind, parts=3).fit(reference).score(asked), rtol=1e-9)


def test_parts_survive_being_kept(kind, reference, asked):
    scorer = build(kind, parts=3, smote_ratio=0.4).fit(reference)
    restored = scorer_from_state(scorer.state())
    np.testing.assert_array_equal(restored.score(asked), scorer.score(asked))


def test_a_state_without_a_column_a_part_is_refused(kind, reference):
    state = build(kind, parts=2).fit(reference).state()
    for key in ("local_mean", "centre", "scale"):
        if key in state:
            state[key] = state[key][:, 0]
    with pytest.raises(ScoringError, match="damaged"):
        scorer_from_state(state)


def test_what_cannot_be_taken_apart_is_refused(kind, reference):
    with pytest.raises(ScoringError, match="6 numbers cannot be taken apart into 4 equal parts"):
        build(kind, parts=4).fit(reference)
    with pytest.raises(ScoringError, match="parts = 0 leaves it to the model"):
        build(kind, parts=0).fit(reference)
