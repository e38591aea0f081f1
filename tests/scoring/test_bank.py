"""Exact search in bounded memory, and the approximate index beside it."""

import sys
import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from offkey.scoring import (
    Density,
    DensityOptions,
    Neighbours,
    NeighboursOptions,
    Query,
    Reference,
    ScoringError,
    bank,
    scorer_from_state,
)  # fmt: skip
from offkey.scoring.bank import Bank
from offkey.scoring.nearest import prepare


def crowds(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    """Points around a few centres, far from the origin."""
    rng = np.random.default_rng(seed)
    return 50.0 + rng.normal(0, 4, size=(12, width))[rng.integers(12, size=count)] + rng.normal(size=(count, width))


@pytest.fixture
def approximate(monkeypatch):
    """Heaps are made of few points already; skips without faiss."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(bank, "FEWEST", 200)
    monkeypatch.setattr(bank, "CANDIDATES", 32)


def test_memory_of_exact_search_does_not_grow_with_the_references():
    peaks = []
    for count in (50_000, 400_000):
        points, query = np.zeros((count, 2)), np.ones((300, 2))
        points[:, 0] = np.arange(count)
        kept = Bank(points, "euclidean")
        tracemalloc.start()
        found = kept.k_smallest(query, 3)
        least = [block.min() for _, block, _ in kept.blocks(query)]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        np.testing.assert_allclose(found[0], [1.0, np.sqrt(2), np.sqrt(2)])
        assert min(least) == 1.0
    # all distances at once would be 960 MB
    assert max(peaks) < 220e6


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_index_finds_nearly_all_and_measures_exactly(approximate, metric):
    points, query = prepare(crowds(3000), metric), prepare(crowds(60, seed=1), metric)
    sizes = [2700, 300]
    exact, index = Bank(points, metric), Bank(points, metric, "approximate", sizes)
    ours, theirs = index.k_smallest(query, 3), exact.k_smallest(query, 3)
    assert (ours >= theirs * (1 - 1e-9)).all()  # nothing is nearer than the nearest
    assert np.isclose(ours, theirs, rtol=1e-9).mean() > 0.95  # also of clips that are far from all of them
    for part, block, places in index.blocks(query):
        true = cdist(query[part], points, "euclidean" if metric == "euclidean" else "cosine")
        there = np.isfinite(block)  # heaps that hold fewer leave the rest out
        assert there.mean() > 0.5
        np.testing.assert_allclose(block[there], np.take_along_axis(true, places, axis=1)[there], rtol=1e-6, atol=1e-9)
    found, rows = index.nearest_others(2)
    best, _ = exact.nearest_others(2)
    assert (rows != np.arange(3000)[:, None]).all()
    assert np.isclose(found, best, rtol=1e-9).mean() > 0.97


def test_every_pool_has_candidates(approximate):
    """A hundred times as many clips of another domain do not drown those of a small one."""
    crowd, few = np.zeros((3000, 4)), np.full((5, 4), 9.0)
    crowd[:] = np.random.default_rng(0).normal(size=crowd.shape) * 0.01
    index = Bank(np.concatenate([crowd, few]), "euclidean", "approximate", [3000, 5])
    ((_, _, places),) = list(index.blocks(np.zeros((1, 4))))
    assert set(range(3000, 3005)) <= set(places[0].tolist())


@pytest.mark.parametrize(
    "options", [{"mode": "ratio", "among": "domain"}, {"mode": "log-variance", "k": 1, "parts": 2}]
)
def test_density_with_an_index_comes_close_and_survives_being_kept(approximate, options):
    reference = Reference(crowds(1500), ["source"] * 1450 + ["target"] * 50)
    query = Query(crowds(40, seed=2))
    exact = Density(DensityOptions(metric="euclidean", **options)).fit(reference).score(query)
    scorer = Density(DensityOptions(metric="euclidean", index="approximate", **options)).fit(reference)
    scores = scorer.score(query)
    assert np.corrcoef(exact, scores)[0, 1] > 0.99
    state = scorer.state()
    assert all(isinstance(array, np.ndarray) and array.dtype.kind in "fiu" for array in state.values())
    restored = scorer_from_state(state)
    np.testing.assert_array_equal(restored.score(query), scores)
    alone = np.concatenate([scorer.score(query.take([row])) for row in range(len(query))])
    np.testing.assert_allclose(alone, scores, rtol=1e-12)


@pytest.mark.parametrize("build", [lambda: Density(DensityOptions(index="approximate")),
                                   lambda: Neighbours(NeighboursOptions(index="approximate"))])  # fmt: skip
def test_without_faiss_the_extra_is_named(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ScoringError, match=r"pip install offkey\[index\]"):
        build().fit(Reference(np.eye(5)))
