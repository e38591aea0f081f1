"""Every scorer of the table, the blend and the p-value give as modules what they give as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from offkey.exporting import ExportError
from offkey.exporting.scorers import SCORER_GRAPHS, BlendGraph, PValues, QuantileGraph, scorer_graph
from offkey.scoring import SCORERS, Calibration, NormalQuantile, Query, Reference, ScorerConfig, blend, build_scorer

CASES: list[dict[str, Any]] = [
    {"name": "mahalanobis"},
    {"name": "mahalanobis", "centre": "domain", "covariance": "domain", "min_clips": 5},
    {"name": "mahalanobis", "centre": "all", "standardise": True},
    {"name": "gmm"},
    {"name": "gmm", "components": 4, "domains": "minimum", "standardise": True},
    {"name": "neighbours"},
    {"name": "neighbours", "metric": "euclidean", "k": 3, "domains": "pooled", "standardise": True},
    {"name": "neighbours", "k": 50, "smote_ratio": 0.5, "domain_scale": True},
    {"name": "density"},
    {"name": "density", "mode": "difference", "metric": "euclidean", "among": "domain"},
    {"name": "density", "mode": "variance", "metric": "euclidean", "standardise": True},
    {"name": "density", "mode": "log-variance", "metric": "euclidean", "parts": 2},
    {"name": "density", "mode": "ratio", "among": "domain", "k_source": 16, "k_target": 3, "smote_ratio": 0.5},
    {"name": "density", "mode": "log-variance", "among": "domain", "parts": 3, "smote_ratio": 0.4, "standardise": True},
    {"name": "density", "index": "approximate"},
    {"name": "neighbours", "index": "approximate", "k": 2},
    {"name": "neighbours", "metric": "cosine", "parts": 2, "smote_ratio": 0.5},
    {"name": "level"},
    {"name": "value"},
    {"name": "value", "column": 2},
]


def test_the_cases_are_all_scorers() -> None:
    assert {case["name"] for case in CASES} == set(SCORERS)
    assert set(SCORER_GRAPHS) == set(SCORERS.values())


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_a_scorer_as_a_module_gives_its_scores(case: dict[str, Any], offset: float) -> None:
    if case.get("index") == "approximate":
        pytest.importorskip("faiss")
    rng = np.random.default_rng(5)
    width = 1 if case == {"name": "value"} else 12
    points = rng.normal(size=(60, width)) @ rng.normal(size=(width, width)) + offset
    reference = Reference(points, domain=["source"] * 50 + ["target"] * 10, identity=rng.integers(0, 3, 60))
    scorer = build_scorer(TypeAdapter(ScorerConfig).validate_python(case), 0).fit(reference)
    asked = np.concatenate([points[:5], points[:9] + 0.1 * rng.normal(size=(9, width)), 5 * points[:4] + 7])
    before = {name: value.copy() for name, value in scorer.state().items()}
    with torch.no_grad():
        found = scorer_graph(scorer)(torch.from_numpy(asked)).numpy()
    expected = scorer.score(Query(asked))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max())
    assert np.abs(found - expected)[5:].max() <= 1e-8 * np.abs(expected).max()
    for name, value in scorer.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_zeros_lie_where_cosine_puts_them() -> None:
    scorer = build_scorer(TypeAdapter(ScorerConfig).validate_python({"name": "neighbours"})).fit(Reference(np.eye(4)))
    asked = np.concatenate([np.zeros((1, 4)), 1e-200 * np.eye(4)])
    found = scorer_graph(scorer)(torch.from_numpy(asked)).numpy()
    np.testing.assert_allclose(found, scorer.score(Query(asked)), atol=1e-12)


def test_a_scorer_of_another_kind_is_refused_in_words() -> None:
    class Odd(SCORERS["level"]):  # type: ignore[misc]
        pass

    with pytest.raises(ExportError, match="level cannot be exported yet; choose one of density, gmm"):
        scorer_graph(Odd().fit(Reference(np.ones((3, 1)))))


@pytest.mark.parametrize("name", ["neighbours", "density"])
def test_a_search_that_misses_neighbours_is_refused_in_words(name: str) -> None:
    pytest.importorskip("faiss")
    points = np.random.default_rng(0).normal(size=(1100, 3))
    config = TypeAdapter(ScorerConfig).validate_python({"name": name, "index": "approximate"})
    with pytest.raises(ExportError, match=f"the scorer {name} searches its 1100 references approximately"):
        scorer_graph(build_scorer(config).fit(Reference(points)))


@pytest.mark.parametrize("scores", [[1.0, 2.0, 2.0, 4.5, 9.0], [3.0, 3.0], np.random.default_rng(0).normal(size=200)])
def test_quantiles(scores: Any) -> None:
    to = NormalQuantile.of(np.asarray(scores))
    asked = np.concatenate([np.linspace(-8, 12, 401), to.knots])
    np.testing.assert_allclose(QuantileGraph(to)(torch.from_numpy(asked)).numpy(), to(asked), rtol=1e-9, atol=1e-9)


def test_the_blend() -> None:
    rng = np.random.default_rng(1)
    parts, weights = rng.normal(size=(20, 3)), [1.0, 0.0, 2.0]
    quantiles = [NormalQuantile.of(rng.normal(size=30)) for _ in weights]
    for given in (quantiles, []):
        found = BlendGraph(given, weights)(torch.from_numpy(parts)).numpy()
        np.testing.assert_allclose(found, blend(parts, given, weights), rtol=1e-9)


@pytest.mark.parametrize("session", [None, [str(number // 3) for number in range(20)]])
@pytest.mark.parametrize("domain", [None, ["source"] * 15 + ["target"] * 5])
def test_p_values_ties_domains_and_sessions(domain: list[str] | None, session: list[str] | None) -> None:
    scores = np.round(np.random.default_rng(2).normal(size=20), 1)
    calibration = Calibration(scores, domain=domain, session=session)
    asked = np.concatenate([calibration.scores, [-9.0, 9.0, 0.05]])
    found = PValues(calibration)(torch.from_numpy(asked)).numpy()
    np.testing.assert_allclose(found, calibration.p_values(asked), rtol=1e-12)
