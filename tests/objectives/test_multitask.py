"""The multi-task loss is the weighted sum of its parts, and every part can be left out."""

import math

import pytest
import torch
from torch import nn

from offkey.objectives.mmd import multi_kernel_mmd
from offkey.objectives.multitask import Mix, MultiTask, MultiTaskConfig
from offkey.types import Labels, OffkeyError, Representation


def example() -> tuple[Representation, Labels]:
    embedding = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = Labels(
        identity=torch.tensor([0, 1, 2, 0, 1, 2, -1, 0]),
        attributes=torch.tensor([[0, -1], [1, -1], [2, -1], [0, -1], [1, -1], [-1, -1], [0, -1], [2, -1]]),
        domain=torch.tensor([0, 0, 0, 0, 1, 1, 1, -1]),
    )
    return Representation(embedding), labels


def build(**weights: float) -> MultiTask:
    torch.manual_seed(0)
    return MultiTask(6, 3, (3, 4), MultiTaskConfig(**weights))


def test_total_is_the_weighted_sum_of_textbook_terms() -> None:
    representation, labels = example()
    task = build(attribute_weight=0.5, domain_weight=0.3, mmd_weight=2.0)
    losses = task(representation, labels)
    embedding = representation.embedding
    first = nn.functional.cross_entropy(task.attributes[0](embedding), labels.attributes[:, 0], ignore_index=-1)
    domain = nn.functional.cross_entropy(task.domain(embedding), labels.domain, ignore_index=-1)
    torch.testing.assert_close(losses["attribute"], first / 2)  # the second head knows no label and costs 0
    torch.testing.assert_close(losses["domain"], domain)
    torch.testing.assert_close(losses["mmd"], multi_kernel_mmd(embedding[:4], embedding[4:7]))
    total = losses["identity"] + 0.5 * losses["attribute"] + 0.3 * losses["domain"] + 2.0 * losses["mmd"]
    torch.testing.assert_close(losses["total"], total)


@pytest.mark.parametrize("term", ["identity", "attribute", "domain", "mmd"])
def test_weight_zero_leaves_a_term_and_its_parameters_out(term: str) -> None:
    representation, labels = example()
    full, without = build(), build(**{f"{term}_weight": 0.0})
    assert term in full(representation, labels)
    losses = without(representation, labels)
    assert term not in losses
    if term != "mmd":
        assert sum(p.numel() for p in without.parameters()) < sum(p.numel() for p in full.parameters())
    losses["total"].backward()
    assert all(parameter.grad is not None for parameter in without.parameters())


def test_with_every_term_off_the_graph_is_still_whole() -> None:
    representation, labels = example()
    off = {f"{term}_weight": 0.0 for term in ("identity", "attribute", "domain", "mmd", "modality_mmd")}
    losses = build(**off)(representation, labels)
    losses["total"].backward()
    assert losses["total"].item() == 0


def test_a_mixture_with_itself_changes_nothing() -> None:
    representation, labels = example()
    task = build()
    mix = Mix(torch.arange(8), torch.full((8,), 0.3))
    plain, mixed = task(representation, labels), task(representation, labels, mix)
    for name, value in plain.items():
        torch.testing.assert_close(mixed[name], value)


def test_weight_zero_mixes_all_labels_over_to_the_partner() -> None:
    representation, labels = example()
    task = build(mmd_weight=0.0)
    partner = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    swapped = Labels(*(tensor[partner] for tensor in labels))
    mixed = task(representation, labels, Mix(partner, torch.zeros(8)))
    for name, value in task(representation, swapped).items():
        torch.testing.assert_close(mixed[name], value)


def test_clips_mixed_across_domains_stay_out_of_the_discrepancy() -> None:
    representation, labels = example()
    task = build()
    partner = torch.tensor([1, 0, 4, 3, 2, 6, 5, 7])  # 2 and 4 cross the domains
    mixed = task(representation, labels, Mix(partner, torch.full((8,), 0.6)))
    embedding = representation.embedding
    torch.testing.assert_close(mixed["mmd"], multi_kernel_mmd(embedding[[0, 1, 3]], embedding[[5, 6]]))


def test_accuracy_counts_known_clips_at_their_own_centre() -> None:
    task = build()
    embedding = task.identity.weight[:, 0].detach()[torch.tensor([0, 1, 2, 2])]
    unknown = torch.full((4,), -1)
    labels = Labels(torch.tensor([0, 1, 0, -1]), unknown[:, None].expand(4, 2), unknown)
    assert float(task(Representation(embedding), labels)["accuracy"]) == pytest.approx(2 / 3)


def test_balanced_classes_weigh_rare_ones_more() -> None:
    config = MultiTaskConfig(balance_classes=True)
    task = MultiTask(6, 3, (), config, identity_counts=[100, 4, 25])
    weights = task.identity.class_weights
    torch.testing.assert_close(weights / weights[0], torch.tensor([1.0, 5.0, 2.0]))
    assert MultiTask(6, 3, (), MultiTaskConfig(), identity_counts=[1, 2, 3]).identity.class_weights is None


def streams(count: int, clips: int = 8) -> torch.Tensor:
    """Vectors (B, S, 5) whose streams lie apart and differ in scale."""
    noise = torch.randn(clips, count, 5, generator=torch.Generator().manual_seed(1))
    place = torch.arange(float(count))[:, None]
    return (noise * (1 + place) + place).requires_grad_()


def slow_discrepancy(x: list[list[float]], y: list[list[float]], kernels: int) -> float:
    """MMD by its definition, a pair of points at a time: mean kernel within either set, less twice that between."""

    def square(a: list[float], b: list[float]) -> float:
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))

    everything = x + y
    apart = [square(a, b) for i, a in enumerate(everything) for b in everything[:i]]
    middle = sum(apart) / len(apart)

    def alike(one: list[list[float]], other: list[list[float]]) -> float:
        total = 0.0
        for a in one:
            for b in other:
                for k in range(kernels):
                    total += math.exp(-square(a, b) / (middle * 2.0 ** (k - kernels // 2))) / kernels
        return total / (len(one) * len(other))

    return alike(x, x) + alike(y, y) - 2 * alike(x, y)


@pytest.mark.parametrize(("count", "kernels"), [(2, 5), (3, 3), (4, 1)])
def test_streams_are_compared_pair_by_pair(count: int, kernels: int) -> None:
    representation, labels = example()
    modalities = streams(count)
    task = build(modality_mmd_weight=0.7, mmd_kernels=kernels)
    losses = task(representation._replace(modalities=modalities), labels)
    sets = modalities.detach().double().transpose(0, 1).tolist()
    pairs = [slow_discrepancy(sets[i], sets[j], kernels) for i in range(count) for j in range(i)]
    assert losses["modality_mmd"].item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    without = build(mmd_kernels=kernels)(representation, labels)
    torch.testing.assert_close(losses["total"], without["total"] + 0.7 * losses["modality_mmd"])


def test_bringing_streams_together_is_learnt_whatever_their_common_scale() -> None:
    representation, labels = example()
    task = build(modality_mmd_weight=1.0)
    apart = streams(2)
    loss = task(representation._replace(modalities=apart), labels)["modality_mmd"]
    loss.backward()
    assert (apart.grad.abs().sum((0, 2)) > 0).all()
    scaled = task(representation._replace(modalities=1000.0 * apart.detach()), labels)["modality_mmd"]
    torch.testing.assert_close(scaled, loss.detach(), rtol=1e-4, atol=1e-6)
    closer = apart.detach() - 5.0 * apart.grad
    assert task(representation._replace(modalities=closer), labels)["modality_mmd"] < loss
    shuffled = torch.stack([apart[:, 0], apart[torch.arange(8).flip(0), 0]], 1)  # the same vectors of other clips
    assert task(representation._replace(modalities=shuffled), labels)["modality_mmd"] < 1e-6


def test_without_its_weight_streams_change_nothing() -> None:
    representation, labels = example()
    plain = build()(representation, labels)
    told = build(modality_mmd_weight=0.0)(representation._replace(modalities=streams(2)), labels)
    assert plain.keys() == told.keys()
    assert all(torch.equal(plain[name], told[name]) for name in plain)


@pytest.mark.parametrize("modalities", [None, streams(1)], ids=["none", "one"])
def test_one_stream_or_none_cannot_be_compared(modalities: torch.Tensor | None) -> None:
    representation, labels = example()
    with pytest.raises(OffkeyError, match="modality_mmd_weight"):
        build(modality_mmd_weight=0.1)(representation._replace(modalities=modalities), labels)


def test_a_single_clip_says_nothing_of_how_streams_are_spread() -> None:
    representation, labels = example()
    one = Representation(representation.embedding[:1], modalities=streams(3, clips=1))
    losses = build(modality_mmd_weight=1.0)(one, Labels(*(tensor[:1] for tensor in labels)))
    assert losses["modality_mmd"].item() == 0
