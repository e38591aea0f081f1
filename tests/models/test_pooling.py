"""Pooling of patches over time, against loops that read as the formulas do."""

import numpy as np
import pytest
import torch

from offkey.models.pooling import pool_patches

KINDS = ["mean", "gem", "rdp", "rdp+gem"]


def grids(seed: int = 0, clips: int = 3, times: int = 7, bands: int = 2, width: int = 5) -> torch.Tensor:
    return torch.randn(clips, times, bands, width, generator=torch.Generator().manual_seed(seed))


def oracle(clip: np.ndarray, pooling: str, power: float, gamma: float, negatives: str) -> np.ndarray:
    """One clip (T, bands, D), nothing but its own patches; float64."""
    clip = clip.astype(np.float64)
    times, bands, width = clip.shape
    pooled = np.zeros((bands, width))
    for band in range(bands):
        x = clip[:, band]
        weights = np.ones(times) / times
        if "rdp" in pooling:
            mean = x.mean(axis=0)
            away = np.array([np.sqrt(sum((a - b) ** 2 for a, b in zip(row, mean, strict=True))) for row in x])
            if away.max() > 0:
                weights = (1 + away / away.max()) ** gamma
                weights = weights / weights.sum()
        for j in range(width):
            if "gem" not in pooling:
                pooled[band, j] = sum(w * v for w, v in zip(weights, x[:, j], strict=True))
            elif negatives == "zero":
                total = sum(w * max(v, 0.0) ** power for w, v in zip(weights, x[:, j], strict=True))
                pooled[band, j] = total ** (1 / power)
            else:
                total = sum(w * np.sign(v) * abs(v) ** power for w, v in zip(weights, x[:, j], strict=True))
                pooled[band, j] = np.sign(total) * abs(total) ** (1 / power)
    return pooled


@pytest.mark.parametrize("pooling", KINDS)
@pytest.mark.parametrize(("power", "gamma"), [(3.0, 9.0), (2.5, 0.5), (1.0, 0.0), (10.0, 20.0)])
@pytest.mark.parametrize("negatives", ["zero", "kept"])
def test_it_is_what_the_formula_says(pooling, power, gamma, negatives):
    grid, counts = grids(), [7, 4, 1]
    ours = pool_patches(grid, torch.tensor(counts), pooling, power, gamma, negatives)
    assert ours.shape == (3, 2, 5)
    for row, clip, count in zip(ours, grid.numpy(), counts, strict=True):
        expected = oracle(clip[:count], pooling, power, gamma, negatives)
        np.testing.assert_allclose(row.numpy(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("pooling", KINDS)
@pytest.mark.parametrize("behind", [0.0, 1e6, float("nan"), float("inf")])
def test_what_lies_behind_a_clip_is_not_looked_at(pooling, behind):
    grid = grids()
    short = pool_patches(grid[:, :4], torch.tensor([4, 4, 4]), pooling)
    grid[:, 4:] = behind
    torch.testing.assert_close(pool_patches(grid, torch.tensor([4, 4, 4]), pooling), short, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooling", KINDS)
def test_the_order_of_moments_does_not_matter(pooling):
    grid, counts = grids(), torch.tensor([7, 7, 7])
    turned = grid[:, torch.randperm(7, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(pool_patches(turned, counts, pooling), pool_patches(grid, counts, pooling))


def test_the_ends_of_every_setting():
    grid, counts = grids().abs(), torch.tensor([7, 7, 7])
    mean = grid.mean(1)
    for pooling, more in (("gem", {"power": 1.0}), ("rdp", {"gamma": 0.0}), ("rdp+gem", {"power": 1.0, "gamma": 0.0})):
        torch.testing.assert_close(pool_patches(grid, counts, pooling, **more), mean)
    loudest = pool_patches(grid, counts, "gem", power=100.0)
    torch.testing.assert_close(loudest, grid.amax(1), rtol=0.03, atol=0.0)
    below = -grid
    assert (pool_patches(below, counts, "gem") == 0).all()
    torch.testing.assert_close(pool_patches(below, counts, "gem", negatives="kept"), -pool_patches(grid, counts, "gem"))


def test_one_strange_moment_counts_more_with_rdp():
    grid = torch.zeros(1, 50, 1, 3)
    grid[:, :, :, 0] = 1.0
    grid[0, 20, 0] = torch.tensor([1.0, 5.0, 0.0])
    shares = [float(pool_patches(grid, torch.tensor([50]), how, gamma=16.0)[0, 0, 1]) / 5 for how in ("mean", "rdp")]
    assert shares[0] == pytest.approx(0.02)
    assert shares[1] > 0.99


@pytest.mark.parametrize("pooling", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1e15])
def test_moments_that_are_all_alike_are_what_they_are(pooling, value):
    grid = torch.full((1, 9, 2, 4), value)
    pooled = pool_patches(grid, torch.tensor([9]), pooling, 25.0, 25.0)
    torch.testing.assert_close(pooled, grid[:, 0], rtol=1e-5, atol=1e-37)
