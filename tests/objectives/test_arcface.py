"""ArcFace against pytorch-metric-learning and against the definition written out slowly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import ArcFaceLoss, SubCenterArcFaceLoss

from offkey.objectives.arcface import ArcFace, add_margin
from offkey.objectives.head import weighted_cross_entropy
from offkey.types import OffkeyError


def points(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("sub_centres", "margin", "scale"), [(1, 0.5, 30.0), (1, 0.2, 64.0), (3, 0.7, 16.0)])
def test_loss_and_gradients_are_those_of_pytorch_metric_learning(sub_centres: int, margin: float, scale: float) -> None:
    classes, size = 5, 8
    embedding, target = points(12, size), torch.arange(12) % classes
    embedding[0] = -embedding[0]
    ours = ArcFace(size, classes, scale, margin, sub_centres)
    settings_ = {"margin": math.degrees(margin), "scale": scale}
    if sub_centres == 1:
        theirs = ArcFaceLoss(classes, size, **settings_)
    else:
        theirs = SubCenterArcFaceLoss(num_classes=classes, embedding_size=size, sub_centers=sub_centres, **settings_)
    theirs.W.data = ours.weight.data.reshape(classes * sub_centres, size).T.clone()
    first, second = embedding.clone().requires_grad_(), embedding.clone().requires_grad_()
    loss, expected = ours(first, target), theirs(second, target)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-4)
    grad = theirs.W.grad.T.reshape(classes, sub_centres, size)
    torch.testing.assert_close(ours.weight.grad, grad, rtol=1e-3, atol=1e-4)


def slow_loss(embedding: np.ndarray, centres: np.ndarray, target: list[int], s: float, m: float) -> list[float]:
    """-log softmax with the margin on the target's angle, clip by clip and class by class."""
    losses = []
    for vector, label in zip(embedding, target, strict=True):
        logits = []
        for k, subs in enumerate(centres):
            cosine = max(c @ vector / np.linalg.norm(c) / np.linalg.norm(vector) for c in subs)
            angle = math.acos(np.clip(cosine, -1, 1))
            if k == label:
                cosine = math.cos(angle + m) if angle + m <= math.pi else cosine - m * math.sin(m)
            logits.append(s * cosine)
        top = max(logits)
        losses.append(top + math.log(sum(math.exp(v - top) for v in logits)) - logits[label])
    return losses


def test_loss_is_the_definition_and_leaves_unknown_classes_out() -> None:
    model = ArcFace(6, 4, scale=30.0, margin=0.5, sub_centres=2)
    embedding = points(9, 6, seed=4)
    target = torch.tensor([0, 1, -1, 3, 2, -1, 0, 1, 3])
    known = target >= 0
    each = slow_loss(
        embedding[known].double().numpy(), model.weight.detach().double().numpy(), target[known].tolist(), 30, 0.5
    )
    assert model(embedding, target).item() == pytest.approx(np.mean(each), rel=1e-4)


def test_mixup_weighs_the_losses_of_both_clips() -> None:
    model = ArcFace(6, 4)
    embedding = points(5, 6, seed=4)
    first, second = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 1, 0, 2, 3])
    weight = torch.tensor([0.0, 0.3, 1.0, 0.5, 0.9])
    centres = model.weight.detach().double().numpy()
    one = np.array(slow_loss(embedding.double().numpy(), centres, first.tolist(), 30, 0.5))
    two = np.array(slow_loss(embedding.double().numpy(), centres, second.tolist(), 30, 0.5))
    share = weight.double().numpy()
    expected = (share * one + (1 - share) * two).mean()
    assert model.loss(embedding, first, second, weight).item() == pytest.approx(expected, rel=1e-4)


def test_the_margin_meets_the_target_class_alone() -> None:
    model = ArcFace(6, 4)
    embedding, target = points(3, 6), torch.tensor([2, 0, -1])
    difference = model.margin_logits(model.cosines(embedding), target) - model.logits(embedding)
    touched = difference.abs() > 1e-4
    assert touched.tolist() == [[False, False, True, False], [True, False, False, False], [False] * 4]
    assert (difference[touched] < 0).all()


@given(margin=st.floats(0.0, 1.5))
@settings(max_examples=30, deadline=None)
def test_a_larger_angle_never_costs_less(margin: float) -> None:
    angle = torch.linspace(0.01, math.pi - 0.01, 400, dtype=torch.float64)
    turned = add_margin(angle.cos(), margin)
    assert (turned.diff() < 1e-9).all()
    inside = angle < math.pi - margin
    torch.testing.assert_close(turned[inside], (angle[inside] + margin).cos())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_stay_finite_at_and_against_a_centre(sign: float) -> None:
    model = ArcFace(4, 3)
    embedding = (sign * model.weight[1].detach().clone()).requires_grad_()
    model(embedding, torch.tensor([1])).backward()
    assert torch.isfinite(embedding.grad).all()
    assert torch.isfinite(model.weight.grad).all()


def test_one_class_costs_nothing_and_none_is_refused() -> None:
    model = ArcFace(4, 1)
    embedding = points(3, 4).requires_grad_()
    loss = model(embedding, torch.tensor([0, 0, -1]))
    assert loss.item() == 0
    loss.backward()
    assert (embedding.grad == 0).all()
    with pytest.raises(OffkeyError, match="no identity labels"):
        ArcFace(4, 0)


def test_only_unknown_classes_cost_nothing() -> None:
    embedding = points(2, 4).requires_grad_()
    loss = ArcFace(4, 3)(embedding, torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0
    assert (embedding.grad == 0).all()


def test_class_weights_are_those_of_torch() -> None:
    logits, target = points(6, 3), torch.tensor([0, 1, 2, -1, 1, 0])
    weights = torch.tensor([1.0, 5.0, 0.5])
    expected = torch.nn.functional.cross_entropy(logits, target, weights, ignore_index=-1)
    torch.testing.assert_close(weighted_cross_entropy(logits, target, class_weights=weights), expected)
