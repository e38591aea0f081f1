"""The loss of Approach 2 is the error a frame plus α times the textbook's cross-entropy."""

import pytest
import torch
from torch import nn

from offkey.objectives.multitask import Mix
from offkey.objectives.reconstruction import Reconstruction, ReconstructionConfig
from offkey.types import Labels, OffkeyError, Representation


def example() -> tuple[Representation, Labels]:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(4, 6, generator=generator).requires_grad_()
    error = torch.rand(4, 5, generator=generator) + 0.1
    error[1, 2:] = 0.0  # a clip of two frames
    unknown = torch.full((4,), -1)
    return Representation(embedding, error.requires_grad_()), Labels(
        torch.tensor([0, 2, -1, 1]), unknown[:, None].expand(4, 0), unknown
    )


def build(**settings: float) -> Reconstruction:
    torch.manual_seed(0)
    return Reconstruction(6, 3, ReconstructionConfig(**settings), identity_counts=[100, 4, 25])


def test_total_is_the_error_of_own_frames_plus_weighted_cross_entropy() -> None:
    representation, labels = example()
    task = build(identity_weight=0.4)
    losses = task(representation, labels)
    logits = task.identity(representation.embedding)
    identity = nn.functional.cross_entropy(logits, labels.identity, ignore_index=-1)
    error = representation.frame_error
    own = torch.cat([error[0], error[1, :2], error[2], error[3]])
    torch.testing.assert_close(losses["identity"], identity)
    torch.testing.assert_close(losses["reconstruction"], own.mean())
    torch.testing.assert_close(losses["total"], own.mean() + 0.4 * identity)
    known = labels.identity >= 0
    hits = (logits.argmax(1) == labels.identity)[known]
    assert losses["accuracy"].item() == pytest.approx(hits.float().mean().item())
    assert not losses["accuracy"].requires_grad
    losses["total"].backward()
    torch.testing.assert_close(error.grad[0], torch.full((5,), 1 / 17))
    assert representation.embedding.grad[2].abs().sum() == 0  # its identity is not known
    assert representation.embedding.grad[0].abs().sum() > 0


@pytest.mark.parametrize("task", [build(identity_weight=0.0), Reconstruction(6, 1)], ids=["weight 0", "one class"])
def test_with_nothing_to_tell_apart_the_error_is_all(task: Reconstruction) -> None:
    losses = task(*example())
    assert list(task.parameters()) == []
    assert losses.keys() == {"total", "reconstruction"}
    assert torch.equal(losses["total"], losses["reconstruction"])


def test_mixing_is_between_both_classes() -> None:
    representation, labels = example()
    labels = labels._replace(identity=torch.tensor([0, 2, 0, 1]))
    task = build()
    partner = torch.tensor([1, 0, 3, 2])
    plain = task(representation, labels)
    swapped = task(representation, Labels(*(column[partner] for column in labels)))
    mixed = task(representation, labels, Mix(partner, torch.full((4,), 0.3)))
    torch.testing.assert_close(mixed["identity"], 0.3 * plain["identity"] + 0.7 * swapped["identity"])
    assert mixed["accuracy"] == swapped["accuracy"]
    alone = task(representation, labels, Mix(partner, torch.ones(4)))
    torch.testing.assert_close(alone["total"], plain["total"])


def test_balanced_classes_weigh_rare_ones_more() -> None:
    representation, labels = example()
    task = build(balance_classes=True)
    weights = torch.tensor([1.0, 5.0, 2.0])
    logits = task.identity(representation.embedding)
    expected = nn.functional.cross_entropy(logits, labels.identity, weights, ignore_index=-1)
    torch.testing.assert_close(task(representation, labels)["identity"], expected)


def test_a_model_that_rebuilds_nothing_is_refused() -> None:
    representation, labels = example()
    with pytest.raises(OffkeyError, match="tells of none"):
        build()(Representation(representation.embedding), labels)


def test_an_error_of_zero_everywhere_costs_nothing() -> None:
    representation, labels = example()
    losses = build()(representation._replace(frame_error=torch.zeros(4, 5)), labels)
    assert losses["reconstruction"].item() == 0
