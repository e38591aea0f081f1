"""Sub-cluster AdaCos against its definition written out slowly, and the law of its scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offkey.objectives.adacos import LARGEST_SCALE, SMALLEST_SCALE, AdaCos, adapted_scale, fixed_scale


def points(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow_scale(embedding: np.ndarray, centres: np.ndarray, soft: np.ndarray, scale: float) -> float:
    """log B / cos(min(45°, median angle)), clip by clip, class by class, centre by centre."""
    sums, angles = [], []
    for vector, share in zip(unit(embedding), soft, strict=True):
        total, angle = 0.0, 0.0
        for k, subs in enumerate(unit(centres)):
            cosines = [float(vector @ centre) for centre in subs]
            if share[k] == 0:
                total += sum(math.exp(scale * cosine) for cosine in cosines)
            else:
                angle += share[k] * math.acos(max(cosines))
        sums.append(total)
        angles.append(angle)
    return math.log(sum(sums) / len(sums)) / math.cos(min(math.pi / 4, float(np.median(angles))))


def slow_loss(embedding: np.ndarray, centres: np.ndarray, soft: np.ndarray, scale: float) -> float:
    """Cross-entropy with soft labels; a class's probability is the sum of those of its centres."""
    losses = []
    for vector, share in zip(unit(embedding), soft, strict=True):
        odds = [sum(math.exp(scale * float(vector @ centre)) for centre in subs) for subs in unit(centres)]
        losses.append(-sum(part * math.log(odd / sum(odds)) for part, odd in zip(share, odds, strict=True)))
    return float(np.mean(losses))


def near(head: AdaCos, target: torch.Tensor, away: float, seed: int = 3) -> torch.Tensor:
    """Embeddings close to a centre of their class."""
    unit_centres = torch.nn.functional.normalize(head.weight.detach(), dim=2)
    return unit_centres[target, torch.arange(len(target)) % head.weight.shape[1]] + away * points(
        len(target), head.weight.shape[2], seed
    )


@pytest.mark.parametrize("sub_centres", [1, 4, 16])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("away", [0.1, 0.25, 3.0])
def test_loss_and_scale_are_their_definition(sub_centres: int, mixed: bool, away: float) -> None:
    torch.manual_seed(0)
    head = AdaCos(24, 6, sub_centres).train()
    first, second = torch.arange(11) % 6, (torch.arange(11) * 2 + 1) % 6
    weight = torch.tensor([0.3, 1.0, 0.5, 0.9, 0.2, 0.7, 0.6, 0.1, 0.8, 0.4, 1.0])
    embedding = near(head, first, away)
    soft = np.zeros((11, 6))
    shares = weight.double().numpy() if mixed else np.ones(11)
    np.add.at(soft, (np.arange(11), first.numpy()), shares)
    np.add.at(soft, (np.arange(11), second.numpy()), 1 - shares)
    started = float(head.scale)
    loss = head.loss(embedding, first, second, weight) if mixed else head.loss(embedding, first)
    centres = head.weight.detach().double().numpy()
    scale = slow_scale(embedding.double().numpy(), centres, soft, started)
    assert float(head.scale) == pytest.approx(min(max(scale, SMALLEST_SCALE), LARGEST_SCALE), rel=1e-4)
    assert loss.item() == pytest.approx(
        slow_loss(embedding.double().numpy(), centres, soft, float(head.scale)), rel=1e-4, abs=1e-6
    )


def test_with_one_centre_a_class_the_fixed_scale_is_that_of_adacos() -> None:
    assert fixed_scale(10) == pytest.approx(math.sqrt(2) * math.log(9))
    assert fixed_scale(10, 16) == pytest.approx(math.sqrt(2) * math.log(159))
    # what the formula is made from: a centre 45 degrees away, all others at right angles, gets half the probability
    scale, classes = fixed_scale(100), 100
    own = math.exp(scale * math.cos(math.pi / 4))
    assert own / (own + classes - 1) == pytest.approx(0.5)


def test_two_classes_have_a_scale_with_which_they_can_be_told_apart() -> None:
    assert math.log(2 - 1) == 0  # what the formula would give
    head = AdaCos(4, 2, sub_centres=1).train()
    with torch.no_grad():
        head.weight[1] = -head.weight[0]
    embedding = head.weight[:, 0].detach().clone().requires_grad_()
    loss = head(embedding, torch.tensor([0, 1]))
    loss.backward()
    assert float(head.scale) == pytest.approx(SMALLEST_SCALE)
    assert loss.item() == pytest.approx(-math.log(0.99), rel=1e-3)
    swapped = head(embedding.flip(0), torch.tensor([0, 1]))
    assert swapped > 4
    assert torch.isfinite(embedding.grad).all()


@pytest.mark.parametrize(("classes", "sub_centres"), [(1, 1), (2, 1), (2, 16), (3, 1), (1000, 16)])
def test_the_scale_stays_within_its_bounds_whatever_comes(classes: int, sub_centres: int) -> None:
    torch.manual_seed(1)
    head = AdaCos(8, classes, sub_centres).train()
    for step in range(30):
        target = torch.randint(classes, (12,))
        away = [0.0, 0.3, 5.0][step % 3]
        loss = head(near(head, target if step % 2 else (target + 1) % classes, away), target)
        assert torch.isfinite(loss)
        assert SMALLEST_SCALE - 1e-6 <= float(head.scale) <= LARGEST_SCALE


def test_the_scale_falls_as_classes_are_told_apart_and_does_not_run_away() -> None:
    # summed over all centres, a clip's own among them, it passed 5000 here within 200 steps
    torch.manual_seed(0)
    head, net = AdaCos(64, 4, 16).train(), torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU())
    optimiser = torch.optim.AdamW([*net.parameters(), *head.parameters()], 1e-3)
    place, noise = 1.5 * points(4, 20), torch.Generator().manual_seed(1)
    begun = float(head.scale)
    for _ in range(120):
        target = torch.randint(4, (16,), generator=noise)
        loss = head(net(place[target] + torch.randn(16, 20, generator=noise)), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 1.0
    assert float(head.scale) < begun


def test_the_scale_moves_in_training_alone_and_is_part_of_the_state() -> None:
    head, target = AdaCos(6, 4, 2), torch.arange(8) % 4
    begun = float(head.scale)
    head.eval()(points(8, 6), target)
    assert float(head.scale) == begun
    head.train()(points(8, 6), target)
    assert float(head.scale) != begun
    again = AdaCos(6, 4, 2)
    again.load_state_dict(head.state_dict())
    assert float(again.scale) == float(head.scale)
    still = AdaCos(6, 4, 2, adaptive=False).train()
    still(points(8, 6), target)
    assert float(still.scale) == pytest.approx(begun)


def test_a_clip_that_belongs_to_every_class_says_nothing_of_the_scale() -> None:
    cosines = torch.rand(3, 2, 4)
    both, half = torch.tensor([[0, 1]] * 3), torch.full((3, 2), 0.5)
    assert adapted_scale(cosines, both, half, 5.0) == 5.0
    mostly = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    alone = adapted_scale(cosines[:1], both[:1], mostly[:1], 5.0)
    assert adapted_scale(cosines, both, mostly, 5.0) == pytest.approx(alone)


def test_a_class_is_the_sum_of_its_centres() -> None:
    head = AdaCos(6, 3, 5).eval()
    embedding = points(4, 6)
    everything = torch.softmax((head.scale * head.all_cosines(embedding)).flatten(1), 1).unflatten(1, (3, 5))
    torch.testing.assert_close(torch.softmax(head.logits(embedding), 1), everything.sum(2))
