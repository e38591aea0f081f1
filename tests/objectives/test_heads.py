"""What every identity head obeys: mixtures, unknown classes, one class, half precision, and that it can be learnt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from offkey.objectives.adacos import AdaCos
from offkey.objectives.arcface import ArcFace
from offkey.objectives.head import IdentityHead
from offkey.types import OffkeyError

Build = Callable[..., IdentityHead]


def arcface(classes: int = 4, size: int = 6, **settings: object) -> IdentityHead:
    torch.manual_seed(0)
    return ArcFace(size, classes, **settings)


def adacos(classes: int = 4, size: int = 6, **settings: object) -> IdentityHead:
    torch.manual_seed(0)
    return AdaCos(size, classes, **{"sub_centres": 3, **settings})


@pytest.fixture(params=[arcface, adacos])
def build(request: pytest.FixtureRequest) -> Build:
    return request.param


def points(count: int, size: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_a_mixture_is_the_weighted_sum_of_both_losses(build: Build) -> None:
    head, embedding = build().eval(), points(5)
    first, second = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 1, 0, 2, 3])
    weight = torch.tensor([0.0, 0.3, 1.0, 0.5, 0.9])
    each = [
        weight[row] * head.loss(embedding[row : row + 1], first[row : row + 1])
        + (1 - weight[row]) * head.loss(embedding[row : row + 1], second[row : row + 1])
        for row in range(5)
    ]
    torch.testing.assert_close(head.loss(embedding, first, second, weight), torch.stack(each).mean())


def test_shares_of_several_classes_are_a_soft_label(build: Build) -> None:
    head, embedding = build().eval(), points(3)
    targets, shares = torch.tensor([[0, 1, 2, 3]] * 3), torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 3)
    each = [head.loss(embedding, targets[:, place]) * shares[0, place] for place in range(4)]
    torch.testing.assert_close(head.shared_loss(embedding, targets, shares), torch.stack(each).sum())
    torch.testing.assert_close(
        head.shared_loss(embedding, targets.flip(1), shares.flip(1)), head.shared_loss(embedding, targets, shares)
    )


@pytest.mark.parametrize("training", [True, False])
def test_unknown_classes_cost_nothing_and_change_nothing(build: Build, training: bool) -> None:
    head, embedding = build().train(training), points(4).requires_grad_()
    target = torch.tensor([2, -1, 0, -1])
    known = build().train(training)(embedding[[0, 2]], target[[0, 2]])
    torch.testing.assert_close(head(embedding, target), known)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    loss = head(embedding, torch.full((4,), -1))
    loss.backward()
    assert loss.item() == 0
    assert (embedding.grad == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_one_class_costs_nothing_and_none_is_refused(build: Build) -> None:
    head, embedding = build(1).train(), points(3).requires_grad_()
    loss = head(embedding, torch.tensor([0, 0, -1]))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert embedding.grad.abs().max() < 1e-6
    with pytest.raises(OffkeyError, match="no identity labels"):
        build(0)


def test_the_length_of_an_embedding_and_of_a_centre_does_not_matter(build: Build) -> None:
    head, embedding, target = build().eval(), points(5), torch.arange(5) % 4
    told = head(embedding, target)
    with torch.no_grad():
        head.weight.mul_(torch.rand(4, 1, 1) + 0.5)
    torch.testing.assert_close(head(7.0 * embedding, target), told)


def test_weights_of_classes_are_those_of_torch(build: Build) -> None:
    weights = torch.tensor([1.0, 5.0, 0.5, 2.0])
    plain, weighted = build().eval(), build(class_weights=weights).eval()
    embedding, target = points(6), torch.tensor([0, 1, 2, 3, 1, 0])
    each = torch.stack([plain(embedding[row : row + 1], target[row : row + 1]) for row in range(6)])
    expected = (each * weights[target]).sum() / weights[target].sum()
    torch.testing.assert_close(weighted(embedding, target), expected)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_changes_the_loss_by_rounding_only(build: Build, kind: torch.dtype) -> None:
    embedding, target = points(16, 64), torch.arange(16) % 4
    exact = build(size=64)(embedding, target)
    rounded = embedding.to(kind).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = build(size=64)(rounded, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert torch.isfinite(rounded.grad).all()


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("learn", [True, False])
def test_classes_are_learnt_with_centres_that_move_or_stay(build: Build, classes: int, learn: bool) -> None:
    head = build(classes, 16, learn_centres=learn).train()
    centres = head.weight.detach().clone()
    net = torch.nn.Linear(8, 16)
    optimiser = torch.optim.Adam([*net.parameters(), *(p for p in head.parameters() if p.requires_grad)], 0.02)
    place, noise = points(classes, 8, seed=1) * 2, torch.Generator().manual_seed(2)
    target = torch.arange(60) % classes
    losses = []
    for _ in range(150):
        embedding = net(place[target] + 0.5 * torch.randn(60, 8, generator=noise))
        loss = head(embedding, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert (head.logits(embedding).argmax(1) == target).float().mean() > 0.95
    assert torch.equal(head.weight, centres) != learn
