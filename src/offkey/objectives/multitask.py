"""The sum that Approach 1 minimises: identity + attributes + domain + alignment of domains and of input streams."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from offkey.objectives.adacos import AdaCos
from offkey.objectives.arcface import ArcFace
from offkey.objectives.config import MultiTaskConfig
from offkey.objectives.head import IdentityHead, weighted_cross_entropy
from offkey.objectives.mmd import multi_kernel_mmd
from offkey.types import Float, Int, Labels, OffkeyError, Representation

__all__ = ["Mix", "MultiTask", "MultiTaskConfig"]

SOURCE, TARGET = 0, 1


class Mix(NamedTuple):
    """How clips of a batch were mixed: clip b = weight[b]·b + (1 − weight[b])·partner[b].

    `partner` (B,) int64 places in the batch; `weight` (B,) float32 in [0, 1], 1 for a clip left alone.
    """

    partner: Tensor
    weight: Tensor


class MultiTask(nn.Module):
    """`forward(representation, labels, mix)` -> the losses by name, "total" their weighted sum.

    `identities` classes; `attribute_heads`, how many values each known setting has; `domains`, 2. A term of
    weight 0 is left out together with its weights. Labels of −1 are left out; a head whose labels are all −1
    in a batch gives 0. "accuracy" is the share of clips whose identity is found, no loss and without
    gradient. `identity_counts` are clips a class, for `balance_classes`.

    "modality_mmd" compares how two input streams' vectors are spread over the batch, not clip by clip, and takes them
    at their own scale: each pair of streams has bandwidths from its own distances, so a common
    factor is not seen, while a stream that is larger than the other, or lies elsewhere, differs from it. It needs
    `Representation.modalities` of two streams or more, otherwise `forward` raises OffkeyError.

    "featex" (with `featex`) is the loss of a head of its own on `Representation.exchanged`. As in its paper it tells
    three times as many classes apart: of N, a clip left alone is of class y; one that kept its first stream and took
    the others from a clip of class y' is half of class N + y and half of class 2N + y'. Its centres always learn. Where
    nothing was exchanged (in eval mode, say), all clips were left alone.
    """

    def __init__(
        self,
        embedding: int,
        identities: int,
        attribute_heads: Sequence[int] = (),
        config: MultiTaskConfig | None = None,
        domains: int = 2,
        identity_counts: Sequence[int] | None = None,
        featex: bool = False,
    ) -> None:
        super().__init__()
        self.config = config = config or MultiTaskConfig()
        weights = None
        if config.balance_classes and identity_counts is not None:
            counts = torch.tensor(identity_counts, dtype=torch.float32).clamp_min(1)
            weights = counts.rsqrt() / counts.rsqrt().mean()
        self.identity = (
            _head(config, embedding, identities, weights, config.learn_centres) if config.identity_weight else None
        )
        self.identities = identities
        tripled = None if weights is None else weights.repeat(3)
        self.featex = (
            _head(config, embedding, 3 * identities, tripled, learn=True) if featex and config.featex_weight else None
        )
        heads = attribute_heads if config.attribute_weight else ()
        self.attributes = nn.ModuleList(nn.Linear(embedding, values) for values in heads)
        self.domain = nn.Linear(embedding, domains) if config.domain_weight else None

    def forward(
        self, representation: Representation, labels: Labels, mix: Mix | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return every term before its weight, "total" after it, and "accuracy"."""
        embedding, config = representation.embedding, self.config
        terms: dict[str, Tensor] = {}
        total = embedding.float().sum() * 0.0  # the graph stays whole even with every term off
        measures: dict[str, Tensor] = {}
        if self.identity is not None:
            target = labels.identity
            other = target[mix.partner] if mix is not None else None
            weight = mix.weight if mix is not None else None
            terms["identity"] = self.identity.loss(embedding, target, other, weight)
            total = total + config.identity_weight * terms["identity"]
            measures["accuracy"] = self._accuracy(embedding.detach(), target, other, weight)
        if self.featex is not None:
            terms["featex"] = self._exchange_loss(self.featex, representation, labels.identity, mix)
            total = total + config.featex_weight * terms["featex"]
        if len(self.attributes):
            losses = [
                _mixed_cross_entropy(head(embedding), labels.attributes[:, index], mix)
                for index, head in enumerate(self.attributes)
            ]
            terms["attribute"] = torch.stack(losses).mean()
            total = total + config.attribute_weight * terms["attribute"]
        if self.domain is not None:
            terms["domain"] = _mixed_cross_entropy(self.domain(embedding), labels.domain, mix)
            total = total + config.domain_weight * terms["domain"]
        if config.mmd_weight:
            domain = labels.domain
            if mix is not None:  # a clip of both domains belongs to neither
                pure = (domain == domain[mix.partner]) | (mix.weight >= 1)
                domain = domain.masked_fill(~pure, -1)
            source, target_domain = embedding[domain == SOURCE], embedding[domain == TARGET]
            terms["mmd"] = multi_kernel_mmd(source, target_domain, config.mmd_kernels)
            total = total + config.mmd_weight * terms["mmd"]
        if config.modality_mmd_weight:
            terms["modality_mmd"] = _between_streams(representation.modalities, config.mmd_kernels)
            total = total + config.modality_mmd_weight * terms["modality_mmd"]
        return {"total": total, **terms, **measures}

    def _exchange_loss(
        self, head: IdentityHead, representation: Representation, identity: Tensor, mix: Mix | None
    ) -> Tensor:
        embedding, exchanged = representation.embedding, representation.exchanged
        targets, shares = _parts(identity, mix)
        if exchanged is None:
            return head.shared_loss(embedding, targets, shares)
        kept, lent = (
            torch.where(identities >= 0, identities + number * self.identities, -1)
            for number, identities in ((1, targets), (2, targets[exchanged.partner]))
        )
        # a clip left alone has its places once, and an exchanged one those of both clips, half each
        met = exchanged.met[:, None]
        places = torch.cat([torch.where(met, kept, targets), torch.where(met, lent, targets)], 1)
        halves = torch.cat([shares, torch.where(met, shares[exchanged.partner], shares)], 1) / 2
        return head.shared_loss(torch.where(met, exchanged.embedding.to(embedding.dtype), embedding), places, halves)

    @torch.no_grad()
    def _accuracy(self, embedding: Tensor, target: Tensor, other: Tensor | None, weight: Tensor | None) -> Tensor:
        """Share of known clips that the head finds the class of; of a mixture, the louder clip's class."""
        assert self.identity is not None  # noqa: S101
        if other is not None and weight is not None:
            target = torch.where(weight >= 0.5, target, other)
        hit = self.identity.logits(embedding).argmax(1) == target
        known = target >= 0
        return (hit & known).sum() / known.sum().clamp_min(1)


def _head(
    config: MultiTaskConfig, embedding: int, classes: int, class_weights: Tensor | None, learn: bool
) -> IdentityHead:
    if config.head == "adacos":
        return AdaCos(embedding, classes, config.sub_centres or 16, class_weights, learn, config.adaptive_scale)
    return ArcFace(embedding, classes, config.scale, config.margin, config.sub_centres or 1, class_weights, learn)


def _parts(identity: Int[Tensor, " B"], mix: Mix | None) -> tuple[Int[Tensor, "B N"], Float[Tensor, "B N"]]:
    """Classes that clips belong to, and their shares: one, or two where clips were mixed."""
    if mix is None:
        return identity[:, None], torch.ones_like(identity, dtype=torch.float32)[:, None]
    return torch.stack([identity, identity[mix.partner]], 1), torch.stack([mix.weight, 1 - mix.weight], 1)


def _between_streams(modalities: Float[Tensor, "B S M"] | None, kernels: int) -> Float[Tensor, ""]:
    """Return the mean discrepancy over all pairs of streams."""
    count = 0 if modalities is None else modalities.shape[1]
    if modalities is None or count < 2:
        raise OffkeyError(
            f"objective.modality_mmd_weight compares input streams with each other, but the model tells of {count}: "
            "give the model a second stream (model.use_tgram, encoder.name), or set the weight to 0"
        )
    pairs = combinations(modalities.unbind(1), 2)
    return torch.stack([multi_kernel_mmd(one, other, kernels) for one, other in pairs]).mean()


def _mixed_cross_entropy(logits: Float[Tensor, "B K"], target: Tensor, mix: Mix | None) -> Float[Tensor, ""]:
    if mix is None:
        return weighted_cross_entropy(logits, target)
    both = torch.cat([logits, logits])
    targets = torch.cat([target, target[mix.partner]])
    return weighted_cross_entropy(both, targets, torch.cat([mix.weight, 1 - mix.weight]))
