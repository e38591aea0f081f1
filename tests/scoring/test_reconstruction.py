"""A value passed on: what is left of the scorers' laws for one that learns nothing."""

import numpy as np
import pytest
from pydantic import TypeAdapter
from safetensors.numpy import load, save

from offkey.scoring import Query, Reference, ScorerConfig, ScoringError, build_scorer, cross_fit, scorer_from_state

CONFIG = TypeAdapter(ScorerConfig).validate_python({"name": "value"})
REFERENCE = Reference([[3.0], [1.0], [2.0]], ["source", "source", "target"])
QUERY = Query([[2.5], [-1.0], [1e9]])


def test_the_score_is_the_number() -> None:
    scorer = build_scorer(CONFIG).fit(REFERENCE)
    scores = scorer.score(QUERY)
    assert scores.dtype == np.float64
    assert scores.tolist() == [2.5, -1.0, 1e9]
    assert scorer.score(QUERY.take([1])).tolist() == [-1.0]
    assert scorer.score(QUERY.take(slice(0, 0))).shape == (0,)
    scores[:] = 0  # a copy
    assert scorer.score(QUERY).tolist() == [2.5, -1.0, 1e9]


def test_the_reference_changes_nothing() -> None:
    other = Reference([[-9.0]], "source")
    assert (
        build_scorer(CONFIG).fit(other).score(QUERY).tolist()
        == build_scorer(CONFIG).fit(REFERENCE).score(QUERY).tolist()
    )
    assert cross_fit(lambda: build_scorer(CONFIG), REFERENCE).tolist() == [3.0, 1.0, 2.0]


def test_several_numbers_are_refused() -> None:
    with pytest.raises(ScoringError, match="one number a clip, but this view has 2"):
        build_scorer(CONFIG).fit(Reference([[1.0, 2.0]]))
    with pytest.raises(ScoringError, match="2 dimensions"):
        build_scorer(CONFIG).fit(REFERENCE).score(Query([[1.0, 2.0]]))


def test_before_fit_there_is_no_score() -> None:
    with pytest.raises(ScoringError, match=r"call fit"):
        build_scorer(CONFIG).score(QUERY)
    with pytest.raises(ScoringError, match="before fit"):
        build_scorer(CONFIG).state()


def test_it_survives_a_file_and_a_harmed_state_is_refused() -> None:
    scorer = build_scorer(CONFIG, seed=3).fit(REFERENCE)
    restored = scorer_from_state(load(save(scorer.state())))
    assert restored.score(QUERY).tolist() == scorer.score(QUERY).tolist()
    assert (restored.seed, restored.options) == (3, CONFIG)
    with pytest.raises(ScoringError, match="fit again"):
        scorer_from_state({})
    with pytest.raises(ScoringError, match="fit again"):
        scorer_from_state({**scorer.state(), "centres": np.zeros(3)})
