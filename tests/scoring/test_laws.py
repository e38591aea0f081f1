"""The laws that every scorer in the table obeys, under several options each."""

from importlib.util import find_spec

import numpy as np
import pytest
from pydantic import TypeAdapter
from safetensors.numpy import load, save

from offkey.scoring import (
    SCORERS,
    Query,
    Reference,
    ScorerConfig,
    ScoringError,
    build_scorer,
    scorer_from_state,
)
from offkey.scoring.base import _canonical_order
from offkey.types import Condition, Domain

ADAPTER = TypeAdapter(ScorerConfig)

CONFIGS = {
    "mahalanobis": [
        {},
        {"centre": "domain", "covariance": "domain", "min_clips": 5},
        {"centre": "all", "standardise": True},
    ],
    "gmm": [
        {},
        {"components": 4, "choose": "bic", "clips_per_component": 3},
        {"domains": "minimum", "shrinkage": 0.2, "standardise": True},
    ],
    "neighbours": [
        {},
        {"metric": "euclidean", "k": 3, "domains": "pooled", "standardise": True},
        {"smote_ratio": 0.5, "smote_k": 2, "domain_scale": True},
    ],
    "density": [
        {},
        {"mode": "difference", "metric": "euclidean", "among": "domain"},
        {"mode": "variance", "metric": "euclidean", "standardise": True},
        {"mode": "log-variance", "metric": "euclidean", "k": 1},
        {"among": "domain", "smote_ratio": 0.5},
    ],
    "level": [{}, {"min_clips": 20}],
}
if find_spec("faiss"):  # of the extra `index`
    CONFIGS["neighbours"].append({"index": "approximate", "k": 2})
    CONFIGS["density"].append({"index": "approximate", "mode": "log-variance", "smote_ratio": 0.3})
CASES = [(name, options) for name, variants in CONFIGS.items() for options in variants]


def test_the_laws_cover_the_whole_table():
    # value learns nothing and takes one number a clip: test_reconstruction.py holds it to what is left of the laws
    assert {*CONFIGS, "value"} == set(SCORERS)


def build(case, seed=0):
    name, options = case
    return build_scorer(ADAPTER.validate_python({"name": name, **options}), seed)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'-'.join(map(str, case[1])) or 'default'}")
def case(request):
    return request.param


@pytest.fixture
def query(reference):
    rng = np.random.default_rng(7)
    near = reference.embedding[::7] + 0.1 * rng.normal(size=reference.embedding[::7].shape)
    return Query(np.concatenate([near, reference.embedding[:3], near + 5.0]))


def test_score_is_finite_float64_a_clip(case, reference, query):
    scores = build(case).fit(reference).score(query)
    assert scores.shape == (len(query),)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > len(query) // 2


def test_order_of_the_reference_does_not_matter(case, reference, query):
    shuffled = reference.take(np.random.default_rng(1).permutation(len(reference)))
    expected = build(case).fit(reference).score(query)
    np.testing.assert_array_equal(build(case).fit(shuffled).score(query), expected)


def test_clips_are_scored_one_by_one(case, reference, query):
    scorer = build(case).fit(reference)
    whole = scorer.score(query)
    alone = np.concatenate([scorer.score(query.take([i])) for i in range(len(query))])
    np.testing.assert_allclose(alone, whole, rtol=1e-9, atol=1e-9)
    back = np.arange(len(query))[::-1]
    np.testing.assert_allclose(scorer.score(query.take(back)), whole[::-1], rtol=1e-9, atol=1e-9)
    half = scorer.score(query.take(slice(0, len(query) // 2)))
    np.testing.assert_allclose(half, whole[: len(query) // 2], rtol=1e-9, atol=1e-9)
    assert scorer.score(query.take(slice(0, 0))).shape == (0,)


def test_fitting_again_forgets(case, reference, query):
    elsewhere = Reference(reference.embedding[:20] - 9.0, "source")
    expected = build(case).fit(reference).score(query)
    again = build(case).fit(elsewhere)
    assert not np.allclose(again.score(query), expected)
    np.testing.assert_array_equal(again.fit(reference).score(query), expected)


def test_state_survives_a_safetensors_file(case, reference, query):
    scorer = build(case, seed=3).fit(reference)
    restored = scorer_from_state(load(save(scorer.state())))
    assert type(restored) is type(scorer)
    assert restored.options == scorer.options
    assert restored.seed == 3
    np.testing.assert_array_equal(restored.score(query), scorer.score(query))
    again = restored.state()
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in scorer.state().items()}


def test_the_state_is_a_copy(case, reference, query):
    scorer = build(case).fit(reference)
    before = scorer.score(query)
    for array in scorer.state().values():
        array[...] = 0
    np.testing.assert_array_equal(scorer.score(query), before)


def test_nothing_given_is_changed(case):
    rng = np.random.default_rng(0)
    embedding, asked = rng.normal(size=(30, 4)), rng.normal(size=(5, 4))
    identity, domain = np.arange(30) % 3, np.array(["source"] * 25 + ["target"] * 5)
    kept = [a.copy() for a in (embedding, asked, identity, domain)]
    scorer = build(case).fit(Reference(embedding, domain, identity))
    before = scorer.score(Query(asked))
    for array, copy in zip((embedding, asked, identity, domain), kept, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert array.flags.writeable
    embedding[:] = 0  # what the scorer knows is its own
    np.testing.assert_array_equal(scorer.score(Query(asked)), before)


def test_far_is_stranger_than_near(case, reference):
    scorer = build(case).fit(reference)
    usual = scorer.score(reference.query())
    rng = np.random.default_rng(3)
    # away from everything in direction and in length, so that cosine and Euclidean distance both see it
    far = scorer.score(Query(-4.0 - 6.0 * rng.random((20, reference.width))))
    assert far.min() > usual.max()


def test_same_seed_same_scores(case, reference, query):
    first, second = build(case, 5).fit(reference), build(case, 5).fit(reference)
    np.testing.assert_array_equal(first.score(query), second.score(query))


def test_float32_is_taken_as_it_is(case, reference, query):
    single = Reference(reference.embedding.astype(np.float32), reference.domain, reference.identity)
    double = Reference(single.embedding.astype(np.float64), reference.domain, reference.identity)
    asked = query.embedding.astype(np.float32)
    np.testing.assert_array_equal(
        build(case).fit(single).score(Query(asked)),
        build(case).fit(double).score(Query(asked.astype(np.float64))),
    )


def test_copies_and_constant_features_give_finite_scores(case):
    rng = np.random.default_rng(0)
    embedding = np.repeat(rng.normal(size=(4, 5)), 6, axis=0)
    embedding[:, 2] = 1.0
    domain = ["source"] * 18 + ["target"] * 6
    scorer = build(case).fit(Reference(embedding, domain, np.arange(24) // 6))
    scores = scorer.score(Query(np.concatenate([embedding[:1], embedding[:1] + 1.0, -9.0 * embedding[:1]])))
    assert np.isfinite(scores).all()
    assert scores[0] < scores[2]


def test_a_reference_of_one_point_many_times(case):
    scorer = build(case).fit(Reference(np.ones((12, 3)), ["source"] * 8 + ["target"] * 4))
    same, away = scorer.score(Query([[1.0, 1.0, 1.0], [1.0, -2.0, 0.5]]))
    assert np.isfinite([same, away]).all()
    assert same < away


def test_few_clips_are_enough(case):
    reference = Reference([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], ["source", "source", "target"])
    scores = build(case).fit(reference).score(Query([[1.0, 0.01], [-5.0, -5.0]]))
    assert scores[0] < scores[1]
    one = build(case).fit(reference.take([0])).score(Query([[1.0, 0.0], [-5.0, 3.0]]))
    assert one[0] < one[1]


def test_more_dimensions_than_clips(case):
    rng = np.random.default_rng(0)
    reference = Reference(4.0 + rng.normal(size=(25, 80)), ["source"] * 20 + ["target"] * 5)
    scorer = build(case).fit(reference)
    far = scorer.score(Query(-30.0 + rng.normal(size=(5, 80))))
    assert far.min() > scorer.score(Query(4.0 + rng.normal(size=(5, 80)))).max()


def test_refuses_before_fit(case):
    with pytest.raises(ScoringError, match=r"call fit"):
        build(case).score(Query([[0.0]]))
    with pytest.raises(ScoringError, match="before fit"):
        build(case).state()


def test_refuses_the_wrong_width(case, reference):
    with pytest.raises(ScoringError, match="7 dimensions"):
        build(case).fit(reference).score(Query(np.zeros((2, 7))))


def test_refuses_an_empty_reference(case):
    with pytest.raises(ScoringError, match="empty"):
        build(case).fit(Reference(np.zeros((0, 4))))


def test_refuses_a_state_that_was_cut(case, reference):
    state = build(case).fit(reference).state()
    for key in state:
        with pytest.raises(ScoringError, match="fit again"):
            scorer_from_state({k: v for k, v in state.items() if k != key})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(value):
    bad = np.zeros((3, 2))
    bad[1, 1] = value
    with pytest.raises(ScoringError, match="row 1"):
        Query(bad)
    with pytest.raises(ScoringError, match="row 1"):
        Reference(bad)
    with pytest.raises(ScoringError, match="frame_error"):
        Query(np.zeros((3, 2)), frame_error=bad[:, 1])


@pytest.mark.parametrize("condition", [Condition.ANOMALY, Condition.UNKNOWN])
def test_only_normal_clips_are_a_reference(condition):
    with pytest.raises(ScoringError, match=r"row 1.*normal recordings only"):
        Reference(np.zeros((2, 2)), condition=[Condition.NORMAL, condition])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": ["source"]}, None),
        ({"domain": ["source", "target", "source"]}, "domain must have the shape"),
        ({"domain": "factory"}, "must be one of source, target, unknown"),
        ({"identity": [1.5, 2.0]}, "whole class numbers"),
        ({"identity": [1, 2, 3]}, "identity must have the shape"),
        ({"frame_error": [1.0]}, "frame_error must be one number a clip"),
    ],
)
def test_a_reference_checks_its_shapes(arguments, message):
    if message is None:
        assert Reference(np.zeros((2, 2)), **arguments).domain.tolist() == ["source", "source"]
        return
    with pytest.raises(ScoringError, match=message):
        Reference(np.zeros((2, 2)), **arguments)


def test_a_vector_is_not_a_list_of_clips():
    with pytest.raises(ScoringError, match="one row a clip"):
        Query(np.zeros(4))


def test_take_keeps_clips_together(reference):
    part = reference.take([5, 2])
    np.testing.assert_array_equal(part.embedding, reference.embedding[[5, 2]])
    np.testing.assert_array_equal(part.identity, reference.identity[[5, 2]])
    np.testing.assert_array_equal(part.frame_error, reference.frame_error[[5, 2]])
    mask = reference.domain == "target"
    assert set(reference.take(mask).domain.tolist()) == {str(Domain.TARGET)}
    assert reference.domains == ["source", "target"]


def test_an_unknown_scorer_and_an_unknown_option_are_refused():
    with pytest.raises(ValueError, match="nearest"):
        ADAPTER.validate_python({"name": "nearest"})
    with pytest.raises(ValueError, match="neighbors"):
        ADAPTER.validate_python({"name": "neighbours", "neighbors": 3})
    with pytest.raises(ScoringError, match="build_scorer"):
        SCORERS["gmm"](ADAPTER.validate_python({"name": "level"}))


@pytest.mark.parametrize("distinct", [True, False])
def test_the_order_of_clips_is_that_of_all_their_bytes(distinct):
    generator = np.random.default_rng(3)
    points = generator.normal(size=(60, 5)) if distinct else generator.integers(-1, 2, size=(60, 5)).astype(float)
    domain = generator.choice(["source", "target", "unknown"], 60)
    reference = Reference(points, domain, generator.integers(-1, 3, 60), frame_error=generator.integers(0, 2, 60))
    codes = [["source", "target", "unknown"].index(name) for name in domain]
    rows = np.column_stack([codes, reference.identity, reference.frame_error, points]) + 0.0
    expected = sorted(range(60), key=lambda row: rows[row].tobytes())
    assert _canonical_order(reference).tolist() == expected


def test_a_part_of_a_reference_is_as_good_as_a_new_one():
    whole = Reference(np.arange(12.0).reshape(4, 3), ["source", "target", "source", "unknown"], np.arange(4))
    part = whole.take([2, 0])
    assert part.domain.tolist() == ["source", "source"]
    assert part.identity.tolist() == [2, 0]
    assert part.frame_error is None
    with pytest.raises(ValueError, match="read-only"):
        part.embedding[0, 0] = 1.0
