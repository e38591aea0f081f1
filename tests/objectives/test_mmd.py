"""Multi-kernel MMD against the double sum of its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offkey.objectives.mmd import multi_kernel_mmd


def points(count: int, size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


def slow_mmd(x: np.ndarray, y: np.ndarray, kernels: int, factor: float) -> float:
    both = np.concatenate([x, y])
    pairs = [((a - b) ** 2).sum() for i, a in enumerate(both) for j, b in enumerate(both) if i != j]
    middle = np.mean(pairs)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        d = ((a - b) ** 2).sum()
        return np.mean([math.exp(-d / (middle * factor ** (k - kernels // 2))) for k in range(kernels)])

    def mean(p: np.ndarray, q: np.ndarray) -> float:
        return np.mean([kernel(a, b) for a in p for b in q])

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


@pytest.mark.parametrize(("kernels", "factor"), [(5, 2.0), (1, 2.0), (3, 4.0)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_value_is_the_definition(kernels: int, factor: float, offset: float) -> None:
    x, y = points(7, 4, 0, offset), points(5, 4, 1, offset + 0.8)
    expected = slow_mmd(x.double().numpy(), y.double().numpy(), kernels, factor)
    assert float(multi_kernel_mmd(x, y, kernels, factor)) == pytest.approx(expected, abs=2e-5)


@given(n=st.integers(2, 12), m=st.integers(2, 12), shift=st.floats(-3, 3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_it_is_never_negative_and_symmetric(n: int, m: int, shift: float, seed: int) -> None:
    x, y = points(n, 3, seed), points(m, 3, seed + 1, shift)
    value = multi_kernel_mmd(x, y)
    assert 0 <= value.item() <= 2
    torch.testing.assert_close(value, multi_kernel_mmd(y, x), atol=1e-5, rtol=1e-4)


def test_equal_sets_do_not_differ_and_moved_ones_do() -> None:
    x = points(20, 3, 0)
    assert float(multi_kernel_mmd(x, x[torch.randperm(20)])) < 1e-6
    values = [float(multi_kernel_mmd(x, x + shift)) for shift in (0.5, 1.0, 2.0)]
    assert 0.01 < values[0] < values[1] < values[2]


def test_following_the_gradient_brings_two_sets_together() -> None:
    x, y = points(15, 2, 0), points(15, 2, 1, 2.0).requires_grad_()
    before = multi_kernel_mmd(x, y)
    before.backward()
    after = multi_kernel_mmd(x, y.detach() - 5.0 * y.grad)
    assert after.item() < before.item()


@pytest.mark.parametrize(("n", "m"), [(0, 5), (1, 5), (5, 0), (5, 1), (0, 0)])
def test_too_few_points_give_zero_with_a_whole_graph(n: int, m: int) -> None:
    x, y = points(n, 3, 0).requires_grad_(), points(m, 3, 1).requires_grad_()
    value = multi_kernel_mmd(x, y)
    value.backward()
    assert value.item() == 0
    assert (x.grad == 0).all()
    assert (y.grad == 0).all()


def test_all_points_equal_give_zero_not_nan() -> None:
    x = torch.ones(4, 3, requires_grad=True)
    value = multi_kernel_mmd(x, torch.ones(3, 3))
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(x.grad).all()
