"""The contract of an identity head: class centres on the sphere, and a loss that draws embeddings to them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from offkey.types import Float, Int, OffkeyError

__all__ = ["IdentityHead", "weighted_cross_entropy"]


def weighted_cross_entropy(
    logits: Float[Tensor, "B K"],
    target: Int[Tensor, " B"],
    share: Float[Tensor, " B"] | None = None,
    class_weights: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the rows whose target is known (≥ 0); 0 with an intact graph where none is.

    Row b counts `share[b]`, times the weight of its class. `share` turns two calls into a mixup loss.
    """
    total, mass = _cross_entropy_sums(logits, target, share, class_weights)
    return total / mass.clamp_min(torch.finfo(mass.dtype).tiny)


def _cross_entropy_sums(
    logits: Tensor, target: Tensor, share: Tensor | None, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    known = target >= 0
    safe = target.clamp_min(0)
    each = nn.functional.cross_entropy(logits.float(), safe, reduction="none")
    mass = known.to(each.dtype)
    if share is not None:
        mass = mass * share
    if class_weights is not None:
        mass = mass * class_weights[safe]
    return (each * mass).sum(), mass.sum()


class IdentityHead(nn.Module, ABC):
    """What every head has: centres `weight` (classes, sub_centres, embedding) of any length, and a weight a class.

    With one class there is nothing to tell apart and the loss is 0. Raises OffkeyError without any class.
    """

    weight: Tensor
    class_weights: Tensor | None

    def __init__(
        self, embedding: int, classes: int, sub_centres: int, class_weights: Tensor | None, learn: bool
    ) -> None:
        super().__init__()
        if classes < 1:
            raise OffkeyError(
                f"{type(self).__name__} has no class to learn: the training clips have no identity labels"
            )
        if sub_centres < 1:
            raise ValueError(f"expected sub_centres >= 1; got {sub_centres}")
        centres = torch.empty(classes, sub_centres, embedding)
        nn.init.xavier_uniform_(centres.view(classes * sub_centres, embedding))
        self.weight = nn.Parameter(centres, requires_grad=learn)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def all_cosines(self, embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B K S"]:
        """Cosine of every embedding to every sub-centre of every class, in float32 even under autocast."""
        with torch.autocast(embedding.device.type, enabled=False):
            unit = nn.functional.normalize(embedding.float(), dim=1)
            centres = nn.functional.normalize(self.weight.float(), dim=2)
            return torch.einsum("bd,ksd->bks", unit, centres)

    def cosines(self, embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Cosine of every embedding to the nearest centre of every class, in float32 even under autocast."""
        return self.all_cosines(embedding).amax(dim=2)

    @abstractmethod
    def logits(self, embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """What a softmax makes probabilities of, without a margin: for accuracy, and for scores."""

    @abstractmethod
    def shared_loss(
        self, embedding: Float[Tensor, "B D"], targets: Int[Tensor, "B N"], shares: Float[Tensor, "B N"]
    ) -> Float[Tensor, ""]:
        """Mean loss of clips that belong to N classes in parts, `shares` ≥ 0; −1 is a class that is not known.

        It is the mean of each class's loss over all places whose class is known, each counting its share times the
        weight of its class.
        """

    def loss(
        self,
        embedding: Float[Tensor, "B D"],
        target: Int[Tensor, " B"],
        other: Int[Tensor, " B"] | None = None,
        weight: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean loss over clips whose class is known (target ≥ 0).

        For a mixup of two clips, `other` is the second clip's class and `weight` in [0, 1] the first one's
        share: the loss is weight·L(target) + (1 − weight)·L(other).
        """
        if other is None or weight is None:
            return self.shared_loss(embedding, target[:, None], torch.ones_like(target, dtype=torch.float32)[:, None])
        shares = torch.stack([weight, 1 - weight], 1)
        return self.shared_loss(embedding, torch.stack([target, other], 1), shares)

    forward = loss

    def _mean(self, logits: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
        """Mean cross-entropy of logits (B, K) a place, or (B, N, K) with logits of their own for each."""
        total, mass = shares.new_zeros(()), shares.new_zeros(())
        for place in range(targets.shape[1]):
            own = logits if logits.ndim == 2 else logits[:, place]
            sums = _cross_entropy_sums(own, targets[:, place], shares[:, place], self.class_weights)
            total, mass = total + sums[0], mass + sums[1]
        return total / mass.clamp_min(torch.finfo(mass.dtype).tiny)
