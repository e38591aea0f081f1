"""The multi-task loss is the weighted sum of its parts, and every part can be left out."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from offkey.objectives.mmd import multi_kernel_mmd
from offkey.objectives.multitask import Mix, MultiTask, MultiTaskConfig
from offkey.types import Exchanged, Labels, OffkeyError, Representation


def example() -> tuple[Representation, Labels]:
    embedding = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = Labels(
        identity=torch.tensor([0, 1, 2, 0, 1, 2, -1, 0]),
        attributes=torch.tensor([[0, -1], [1, -1], [2, -1], [0, -1], [1, -1], [-1, -1], [0, -1], [2, -1]]),
        domain=torch.tensor([0, 0, 0, 0, 1, 1, 1, -1]),
    )
    return Representation(embedding), labels


def build(head: str = "arcface", **weights: float) -> MultiTask:
    torch.manual_seed(0)
    return MultiTask(6, 3, (3, 4), MultiTaskConfig(head=head, **weights))


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


@pytest.mark.parametrize("head", ["arcface", "adacos"])
def test_a_mixture_with_itself_changes_nothing(head: str) -> None:
    representation, labels = example()
    task = build(head).eval()
    mix = Mix(torch.arange(8), torch.full((8,), 0.3))
    plain, mixed = task(representation, labels), task(representation, labels, mix)
    for name, value in plain.items():
        torch.testing.assert_close(mixed[name], value)


@pytest.mark.parametrize("head", ["arcface", "adacos"])
def test_weight_zero_mixes_all_labels_over_to_the_partner(head: str) -> None:
    representation, labels = example()
    task = build(head, mmd_weight=0.0).eval()
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


def slow_arcface(embedding: np.ndarray, centres: np.ndarray, soft: np.ndarray, s: float, m: float) -> float:
    """ArcFace with soft labels: the mean over clips and classes by share, the margin on one class at a time."""
    total, mass = 0.0, 0.0
    for vector, shares in zip(embedding, soft, strict=True):
        cosines = [float(c[0] @ vector / np.linalg.norm(c) / np.linalg.norm(vector)) for c in centres]
        for k, share in enumerate(shares):
            logits = [s * (math.cos(math.acos(x) + m) if j == k else x) for j, x in enumerate(cosines)]
            total += share * (math.log(sum(math.exp(v - max(logits)) for v in logits)) + max(logits) - logits[k])
            mass += share
    return total / mass


@pytest.mark.parametrize("mixed", [False, True])
def test_exchanged_clips_are_half_of_two_further_classes(mixed: bool) -> None:
    representation, labels = example()
    task = MultiTask(6, 3, (), MultiTaskConfig(featex_weight=0.5, margin=0.1), featex=True)
    other = torch.randn(8, 6, generator=torch.Generator().manual_seed(9)).requires_grad_()
    partner = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0])
    met = torch.tensor([True, False, True, True, False, True, False, False])
    mix = Mix(partner.flip(0), torch.tensor([0.3, 1.0, 0.5, 0.9, 0.2, 0.7, 0.6, 0.1])) if mixed else None
    losses = task(representation._replace(exchanged=Exchanged(other, partner, met)), labels, mix)
    # the paper's label vectors, of three times as many classes
    hot = np.zeros((8, 3))
    known = labels.identity >= 0
    hot[np.flatnonzero(known), labels.identity[known]] = 1.0
    if mix is not None:
        share = mix.weight.double().numpy()[:, None]
        hot = share * hot + (1 - share) * hot[mix.partner]
    nothing = np.zeros((8, 3))
    alone = np.concatenate([hot, nothing, nothing], 1)
    both = np.concatenate([nothing, hot / 2, hot[partner] / 2], 1)
    soft = np.where(met[:, None], both, alone)
    vectors = torch.where(met[:, None], other, representation.embedding).detach().double().numpy()
    expected = slow_arcface(vectors, task.featex.weight.detach().double().numpy(), soft, 30.0, 0.1)
    assert losses["featex"].item() == pytest.approx(expected, rel=1e-4)
    plain = MultiTask(6, 3, (), MultiTaskConfig(margin=0.1))
    plain.load_state_dict({name: value for name, value in task.state_dict().items() if not name.startswith("featex")})
    torch.testing.assert_close(losses["total"], plain(representation, labels, mix)["total"] + 0.5 * losses["featex"])
    losses["total"].backward()
    assert (other.grad.abs().sum(1) > 0).tolist() == met.tolist()


@pytest.mark.parametrize("head", ["arcface", "adacos"])
def test_where_nothing_is_exchanged_all_clips_are_of_their_own_class(head: str) -> None:
    representation, labels = example()
    task = MultiTask(6, 3, (), MultiTaskConfig(head=head, learn_centres=False), featex=True).eval()
    nobody = Exchanged(torch.full((8, 6), torch.nan), torch.arange(8).roll(1), torch.zeros(8, dtype=torch.bool))
    told = task(representation, labels)["featex"]
    torch.testing.assert_close(task(representation._replace(exchanged=nobody), labels)["featex"], told)
    torch.testing.assert_close(task.featex.loss(representation.embedding, labels.identity), told)
    assert not task.identity.weight.requires_grad
    assert task.featex.weight.requires_grad
    assert task.featex.weight.shape[0] == 9


def test_a_head_has_its_own_number_of_centres_until_one_is_told() -> None:
    assert [
        MultiTask(6, 3, (), MultiTaskConfig(head=head)).identity.weight.shape[1] for head in ("arcface", "adacos")
    ] == [1, 16]
    assert MultiTask(6, 3, (), MultiTaskConfig(head="adacos", sub_centres=2)).identity.weight.shape[1] == 2
