"""Each scorer against an independent reference: scikit-learn, SciPy, or loops that anybody can read."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from offkey.scoring import (
    Density,
    DensityOptions,
    Level,
    LevelOptions,
    Mahalanobis,
    MahalanobisOptions,
    Mixture,
    MixtureOptions,
    Neighbours,
    NeighboursOptions,
    Query,
    Reference,
)
from offkey.scoring.covariance import ledoit_wolf
from offkey.scoring.nearest import k_smallest, nearest_others, prepare
from offkey.scoring.neighbours import smote


@pytest.fixture
def query():
    return np.random.default_rng(11).normal(2.0, 3.0, size=(25, 6))


@pytest.mark.parametrize(("clips", "width"), [(200, 5), (30, 12), (8, 40), (2, 3)])
def test_shrinkage_is_ledoit_wolf(clips, width):
    rng = np.random.default_rng(clips)
    points = rng.normal(size=(clips, width)) @ rng.normal(size=(width, width))
    expected = LedoitWolf(assume_centered=True).fit(points)
    covariance, shrinkage = ledoit_wolf(points)
    np.testing.assert_allclose(covariance, expected.covariance_, rtol=1e-10, atol=1e-12)
    assert shrinkage == pytest.approx(expected.shrinkage_)


def covariance_of(reference, labels):
    """Ledoit–Wolf of what remains after each group's mean, times N / (N − groups)."""
    points = np.array(reference.embedding)
    for label in set(labels):
        points[labels == label] -= points[labels == label].mean(axis=0)
    return LedoitWolf(assume_centered=True).fit(points).covariance_ * len(points) / (len(points) - len(set(labels)))


@pytest.mark.parametrize("centre", ["identity", "domain", "all"])
def test_mahalanobis_with_one_covariance(reference, query, centre):
    parts = {
        "identity": [f"{i}{d}" for i, d in zip(reference.identity, reference.domain, strict=True)],
        "domain": list(reference.domain),
        "all": ["all"] * len(reference),
    }[centre]
    labels = np.array(parts)
    centres = [reference.embedding[labels == label].mean(axis=0) for label in sorted(set(parts))]
    inverse = np.linalg.inv(covariance_of(reference, labels))
    expected = cdist(query, centres, "mahalanobis", VI=inverse).min(axis=1)
    ours = Mahalanobis(MahalanobisOptions(centre=centre)).fit(reference).score(Query(query))
    np.testing.assert_allclose(ours, expected, rtol=1e-8)


def test_mahalanobis_selective_takes_the_nearer_domain(reference, query):
    expected = np.full(len(query), np.inf)
    for domain in ("source", "target"):
        part = reference.take(reference.domain == domain)
        inverse = np.linalg.inv(covariance_of(part, np.array(part.domain)))
        distance = cdist(query, part.embedding.mean(axis=0)[None], "mahalanobis", VI=inverse)[:, 0]
        expected = np.minimum(expected, distance)
    options = MahalanobisOptions(centre="domain", covariance="domain", min_clips=5)
    ours = Mahalanobis(options).fit(reference).score(Query(query))
    np.testing.assert_allclose(ours, expected, rtol=1e-8)
    shared = Mahalanobis(MahalanobisOptions(centre="domain")).fit(reference).score(Query(query))
    too_few = MahalanobisOptions(centre="domain", covariance="domain", min_clips=1000)
    np.testing.assert_allclose(Mahalanobis(too_few).fit(reference).score(Query(query)), shared)


def test_one_gaussian_without_shrinkage_is_the_sample_gaussian(reference, query):
    points = reference.embedding
    covariance = np.cov(points.T, bias=True)
    expected = -multivariate_normal(points.mean(axis=0), covariance).logpdf(query)
    ours = Mixture(MixtureOptions(components=1, shrinkage=0.0)).fit(reference).score(Query(query))
    np.testing.assert_allclose(ours, expected, rtol=1e-4)  # 1e-6 of the pooled covariance is always added


def test_two_gaussians_are_scikit_learns():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 4))
    points = np.concatenate([rng.normal(size=(150, 4)), 2.0 + rng.normal(size=(80, 4)) @ mixing])
    query = rng.normal(size=(40, 4)) * 3
    theirs = GaussianMixture(2, n_init=5, tol=1e-10, max_iter=2000, random_state=0).fit(points)
    options = MixtureOptions(components=2, shrinkage=0.0, restarts=5, iterations=2000)
    ours = Mixture(options).fit(Reference(points)).score(Query(query))
    np.testing.assert_allclose(ours, -theirs.score_samples(query), rtol=2e-3, atol=2e-2)


def test_gaussian_shrinkage_is_the_posterior_mode(reference, query):
    points = reference.embedding
    n, width = points.shape
    pooled = LedoitWolf().fit(points).covariance_
    weight = 2.0 * width
    covariance = (n * np.cov(points.T, bias=True) + weight * pooled) / (n + weight)
    expected = -multivariate_normal(points.mean(axis=0), covariance).logpdf(query)
    ours = Mixture(MixtureOptions(components=1, shrinkage=2.0)).fit(reference).score(Query(query))
    np.testing.assert_allclose(ours, expected, rtol=1e-8)


def test_bic_finds_the_clusters_and_few_clips_limit_them():
    rng = np.random.default_rng(4)
    centres = 12 * np.eye(3)
    points = np.concatenate([c + rng.normal(size=(40, 3)) for c in centres])
    options = MixtureOptions(components=5, choose="bic", shrinkage=0.1)
    assert Mixture(options).fit(Reference(points)).state()["sizes"].tolist() == [3]
    single = Mixture(options).fit(Reference(points[:40]))
    assert single.state()["sizes"].tolist() == [1]
    few = Mixture(MixtureOptions(components=4, clips_per_component=10)).fit(Reference(points[:25]))
    assert few.state()["sizes"].tolist() == [2]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_are_scikit_learns(reference, query, metric, k):
    def mean_distance(points):
        return NearestNeighbors(n_neighbors=k, metric=metric).fit(points).kneighbors(query)[0].mean(axis=1)

    pooled = NeighboursOptions(metric=metric, k=k, domains="pooled")
    ours = Neighbours(pooled).fit(reference).score(Query(query))
    np.testing.assert_allclose(ours, mean_distance(reference.embedding), atol=1e-12)

    by_domain = [mean_distance(reference.embedding[reference.domain == d]) for d in ("source", "target")]
    ours = Neighbours(NeighboursOptions(metric=metric, k=k)).fit(reference).score(Query(query))
    np.testing.assert_allclose(ours, np.minimum(*by_domain), atol=1e-12)


def test_neighbours_scaled_by_domain(reference, query):
    expected = np.full(len(query), np.inf)
    for domain in ("source", "target"):
        points = reference.embedding[reference.domain == domain]
        left_out = [min(np.linalg.norm(p - q) for j, q in enumerate(points) if j != i) for i, p in enumerate(points)]
        nearest = cdist(query, points).min(axis=1)
        expected = np.minimum(expected, (nearest - np.mean(left_out)) / np.std(left_out))
    options = NeighboursOptions(metric="euclidean", domain_scale=True)
    np.testing.assert_allclose(Neighbours(options).fit(reference).score(Query(query)), expected)


def test_smote_fills_the_small_domain_between_neighbours(reference):
    options = NeighboursOptions(metric="euclidean", smote_ratio=0.5, smote_k=2)
    state = Neighbours(options, seed=1).fit(reference).state()
    assert state["sizes"].tolist() == [51, 26]  # source stays; target is filled from 9 to half of 51
    target = reference.embedding[reference.domain == "target"]
    made = smote(target, 40, 2, "euclidean", np.random.default_rng(0))
    assert made.shape == (40, 6)
    distances = cdist(target, target)
    for point in made:  # lies on a segment from some target clip to one of its two nearest others
        on_segment = []
        for i, start in enumerate(target):
            for j in np.argsort(distances[i])[1:3]:
                step = target[j] - start
                share = (point - start) @ step / (step @ step)
                on_segment.append(0 <= share <= 1 and np.allclose(start + share * step, point))
        assert any(on_segment)


def slow_density(reference, query, mode, metric, local_k, alpha=None):
    """Loops over clips and references, as the formula reads. `local_k` says whose and how many neighbours."""

    def away(a, b):
        if metric == "euclidean":
            return float(np.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))))
        return 1.0 - float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))

    points = reference.embedding
    local = []
    for i, point in enumerate(points):
        k, pool = local_k(i)
        local.append(np.mean(sorted(away(point, points[j]) for j in pool if j != i)[:k]))
    scores = []
    for asked in query:
        found = []
        for point, b in zip(points, local, strict=True):
            d = away(asked, point)
            found.append(d / b if mode == "ratio" else d - (1.0 if alpha is None else alpha) * b)
        scores.append(min(found))
    return np.array(scores)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("mode", ["ratio", "difference"])
def test_density_among_all(reference, query, mode, metric):
    expected = slow_density(reference, query, mode, metric, lambda i: (4, range(len(reference))))
    ours = Density(DensityOptions(mode=mode, metric=metric)).fit(reference).score(Query(query))
    np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-10)


def test_density_of_each_domain(reference, query):
    members = {d: np.flatnonzero(reference.domain == d) for d in ("source", "target")}
    count = {"source": 7, "target": 3}
    expected = slow_density(
        reference,
        query,
        "ratio",
        "euclidean",
        lambda i: (count[reference.domain[i]], members[reference.domain[i]]),
    )
    options = DensityOptions(metric="euclidean", among="domain", k_source=7, k_target=3)
    np.testing.assert_allclose(Density(options).fit(reference).score(Query(query)), expected, rtol=1e-9)


def test_density_of_least_variance(reference, query):
    points = reference.embedding
    distance = cdist(points, points) + np.diag(np.full(len(points), np.inf))
    local = np.sort(distance, axis=1)[:, :4].mean(axis=1)
    d, b = distance.min(axis=1), local[distance.argmin(axis=1)]
    alpha = np.cov(d, b)[0, 1] / np.var(b, ddof=1)
    scorer = Density(DensityOptions(mode="variance", metric="euclidean")).fit(reference)
    assert scorer.state()["alpha"][0] == pytest.approx(alpha)
    expected = slow_density(reference, query, "variance", "euclidean", lambda i: (4, range(len(points))), alpha)
    np.testing.assert_allclose(scorer.score(Query(query)), expected, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 3])
def test_density_of_least_variance_of_logarithms(reference, query, k):
    points = reference.embedding
    distance = cdist(points, points) + np.diag(np.full(len(points), np.inf))
    local = np.sort(distance, axis=1)[:, :k].mean(axis=1)
    # the slope of the line through (log b, log d) that leaves least variance, found by search instead of by formula
    d, b = np.log(distance.min(axis=1)), np.log(local[distance.argmin(axis=1)])
    slopes = np.linspace(-1, 3, 40001)
    alpha = slopes[np.argmin([np.var(d - slope * b) for slope in slopes])]
    expected = (np.log(cdist(query, points)) - alpha * np.log(local)).min(axis=1)
    scorer = Density(DensityOptions(mode="log-variance", metric="euclidean", k=k)).fit(reference)
    assert scorer.state()["alpha"][0] == pytest.approx(alpha, abs=1e-4)
    np.testing.assert_allclose(scorer.score(Query(query)), expected, atol=5e-4)


def test_logarithms_of_a_copy_are_finite_and_least(reference):
    scorer = Density(DensityOptions(mode="log-variance", metric="euclidean", k=1)).fit(reference)
    copies, others = scorer.score(reference.query()), scorer.score(Query(reference.embedding + 0.1))
    assert np.isfinite(copies).all()
    assert copies.max() < others.min()


@pytest.mark.parametrize("among", ["all", "domain"])
def test_density_with_points_that_smote_made(reference, query, among):
    """b of real clips as without SMOTE; b of made points from real ones; all are references."""
    options = DensityOptions(metric="euclidean", among=among, k=4, k_source=4, k_target=4, smote_ratio=0.5)
    scorer = Density(options, seed=3).fit(reference)
    state = scorer.state()
    plain = Density(options.model_copy(update={"smote_ratio": 0.0})).fit(reference).state()
    known = {tuple(point): local for point, local in zip(plain["points"], plain["local_mean"], strict=True)}
    sources, targets = (reference.take(reference.domain == d).embedding for d in ("source", "target"))
    made = 0
    for point, local in zip(state["points"], state["local_mean"], strict=True):
        if tuple(point) in known:
            assert local == known[tuple(point)]
            continue
        made += 1
        pool = targets if among == "domain" else np.concatenate([sources, targets])
        assert local[0] == pytest.approx(np.sort(np.linalg.norm(pool - point, axis=1))[:4].mean())
        # it lies between two target clips, one of which is a near neighbour of the other
        between = [
            np.linalg.norm(a - point) + np.linalg.norm(point - b) - np.linalg.norm(a - b)
            for a in targets for b in targets
        ]  # fmt: skip
        assert min(between) < 1e-9
    assert made == round(0.5 * len(sources)) - len(targets)
    expected = (cdist(query, state["points"]) / state["local_mean"][:, 0]).min(axis=1)
    np.testing.assert_allclose(scorer.score(Query(query)), expected, rtol=1e-9)


def test_a_crowded_neighbourhood_forgives_less():
    rng = np.random.default_rng(0)
    crowd, sparse = rng.normal(size=(50, 2)) * 0.1, 10 + rng.normal(size=(10, 2)) * 2.0
    reference = Reference(np.concatenate([crowd, sparse]))
    asked = Query([[1.0, 0.0], [10.0, 14.0]])  # about as far from their neighbours
    by_crowd, by_sparse = Density(DensityOptions(metric="euclidean")).fit(reference).score(asked)
    assert by_crowd > 2 * by_sparse


def test_level_is_a_z_score_of_the_nearest_domain():
    level = np.array([-30.0, -29.0, -31.0, -30.5, -29.5, -20.0, -18.0])[:, None]
    reference = Reference(level, ["source"] * 5 + ["target"] * 2)
    pooled = np.concatenate([level[:5] - level[:5].mean(), level[5:] - level[5:].mean()]).std()
    asked = np.array([-30.0, -25.0, -19.0, -10.0])
    expected = np.minimum(abs(asked + 30.0) / level[:5].std(), abs(asked + 19.0) / pooled)
    ours = Level(LevelOptions(min_clips=5)).fit(reference).score(Query(asked[:, None]))
    np.testing.assert_allclose(ours, expected)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_blocks_change_nothing(metric):
    rng = np.random.default_rng(0)
    points, query = prepare(rng.normal(size=(37, 5)), metric), prepare(rng.normal(size=(23, 5)), metric)
    tiny = 3 * 8 * len(points)  # three rows at a time
    np.testing.assert_array_equal(k_smallest(query, points, 4, metric, tiny), k_smallest(query, points, 4, metric))
    for small, large in zip(nearest_others(points, 3, metric, tiny), nearest_others(points, 3, metric), strict=True):
        np.testing.assert_array_equal(small, large)


def test_a_copy_lies_at_distance_zero_exactly():
    points = np.random.default_rng(0).normal(1e4, 1.0, size=(20, 300))
    for metric in ("cosine", "euclidean"):
        ready = prepare(points, metric)
        assert (k_smallest(ready, ready, 1, metric) == 0.0).all()
        assert (nearest_others(ready, 1, metric)[0] > 0.0).all()


def test_vectors_of_any_length_have_a_cosine():
    points = prepare(np.array([[1e200, 1e200], [1e-200, 0.0], [0.0, 0.0]]), "cosine")
    found = k_smallest(points, points, 3, "cosine")
    np.testing.assert_allclose(found[0], [0.0, 1 - np.sqrt(0.5), 0.5])
    np.testing.assert_allclose(found[2], [0.0, 0.5, 0.5])
