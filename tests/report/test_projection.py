"""The flat map is the principal components of the standardised embeddings."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA

from offkey.report import project


def _sets(dimensions=8):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(dimensions, dimensions))
    return rng.normal(size=(50, dimensions)) @ mixing, rng.normal(size=(20, dimensions)) @ mixing + 1.0


def test_map_equals_scikit_learns_principal_components():
    reference, query = _sets()
    made = project(reference, query)
    standard = (np.concatenate([reference, query]) - reference.mean(0)) / reference.std(0)
    other = PCA(2, svd_solver="full").fit(standard)
    places = other.transform(standard)
    ours = np.concatenate([made.reference, made.query])
    np.testing.assert_allclose(np.abs(ours), np.abs(places), atol=1e-9)
    np.testing.assert_allclose(made.explained, other.explained_variance_ratio_, atol=1e-12)


def test_scale_of_a_dimension_does_not_matter():
    reference, query = _sets()
    scale = np.geomspace(1e-3, 1e3, reference.shape[1])
    plain, scaled = project(reference, query), project(reference * scale, query * scale)
    np.testing.assert_allclose(plain.query, scaled.query, atol=1e-8)


def test_order_of_clips_does_not_matter():
    reference, query = _sets()
    np.testing.assert_allclose(project(reference[::-1], query).query, project(reference, query).query, atol=1e-9)


def test_float32_and_narrow_and_constant_embeddings_are_borne():
    reference, query = _sets()
    np.testing.assert_allclose(
        project(reference.astype(np.float32), query.astype(np.float32)).query,
        project(reference, query).query,
        atol=1e-4,
    )
    one = project(reference[:, :1], query[:, :1])
    assert one.explained == (1.0, 0.0)
    assert not one.query[:, 1].any()
    flat = project(np.ones((5, 4)), np.ones((3, 4)))
    assert not flat.query.any()
    assert flat.explained == (0.0, 0.0)


def test_what_only_the_queries_vary_in_is_seen():
    reference = np.zeros((10, 3))
    reference[:, 0] = np.arange(10) * 1e-3
    query = np.zeros((4, 3))
    query[:, 1] = [0.0, 0.0, 5.0, 5.0]
    places = project(reference, query).query
    assert np.linalg.norm(places[2] - places[0]) > 1.0


def test_rows_that_are_not_finite_are_lost_alone():
    reference, query = _sets()
    broken = query.copy()
    broken[3, 2] = np.inf
    made = project(reference, broken)
    assert np.isnan(made.query[3]).all()
    assert np.isfinite(np.delete(made.query, 3, axis=0)).all()
    none = project(np.full((2, 3), np.nan), np.full((1, 3), np.nan))
    assert np.isnan(none.query).all()
    empty = project(np.empty((0, 3)), query[:, :3])
    assert empty.reference.shape == (0, 2)
    assert np.isfinite(empty.query).all()
