"""ArcFace: softmax over cosines with an angular margin on the target class alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from offkey.types import Bool, Float, Int, OffkeyError

__all__ = ["ArcFace", "add_margin", "weighted_cross_entropy"]

_SMALLEST_SINE = 1e-3  # keeps the slope of sin θ finite where the embedding meets its centre


def add_margin(cosine: Float[Tensor, "*N"], margin: float) -> Float[Tensor, "*N"]:
    """Turn cos θ into cos(θ + m), for 0 ≤ m < π.

    Beyond θ = π − m, where cos(θ + m) would rise again, it goes on as cos θ − m·sin m, so that a larger angle
    always costs more (Deng et al., "ArcFace", CVPR 2019, and its public code).

    >>> round(float(add_margin(torch.tensor(0.5), math.pi / 6)), 6)  # cos(60° + 30°)
    0.0
    """
    cosine = cosine.clamp(-1.0, 1.0)
    sine = (1.0 - cosine.square()).clamp_min(_SMALLEST_SINE**2).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))


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


class ArcFace(nn.Module):
    """Class centres on the sphere and the loss that draws embeddings to them.

    `weight` (classes, sub_centres, embedding) are the centres, of any length (they are normalised). Defaults:
    s = 30, m = 0.5. With sub-centres (Deng et al., ECCV 2020) the nearest centre of a class stands for it.
    With one class there is nothing to tell apart and the loss is 0. Raises OffkeyError without any class.
    """

    weight: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        embedding: int,
        classes: int,
        scale: float = 30.0,
        margin: float = 0.5,
        sub_centres: int = 1,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if classes < 1:
            raise OffkeyError("ArcFace has no class to learn: the training clips have no identity labels")
        if not 0 <= margin < math.pi or sub_centres < 1 or scale <= 0:
            raise ValueError(
                f"expected 0 <= margin < pi, sub_centres >= 1 and scale > 0; got {margin=}, {sub_centres=}, {scale=}"
            )
        self.scale = scale
        self.margin = margin
        self.weight = nn.Parameter(torch.empty(classes, sub_centres, embedding))
        nn.init.xavier_uniform_(self.weight.view(classes * sub_centres, embedding))
        self.register_buffer("class_weights", class_weights, persistent=False)

    def cosines(self, embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Cosine of every embedding to the nearest centre of every class, in float32 even under autocast."""
        with torch.autocast(embedding.device.type, enabled=False):
            unit = nn.functional.normalize(embedding.float(), dim=1)
            centres = nn.functional.normalize(self.weight.float(), dim=2)
            return torch.einsum("bd,ksd->bks", unit, centres).amax(dim=2)

    def logits(self, embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Scaled cosines without a margin: for accuracy, and for scores."""
        return self.scale * self.cosines(embedding)

    def margin_logits(self, cosines: Float[Tensor, "B K"], target: Int[Tensor, " B"]) -> Float[Tensor, "B K"]:
        """Scaled cosines with the margin on the target class alone; a row with target −1 gets none."""
        hot: Bool[Tensor, "B K"] = target[:, None] == torch.arange(cosines.shape[1], device=target.device)
        return self.scale * torch.where(hot, add_margin(cosines, self.margin), cosines)

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
        cosines = self.cosines(embedding)
        if other is None or weight is None:
            return weighted_cross_entropy(self.margin_logits(cosines, target), target, class_weights=self.class_weights)
        first = _cross_entropy_sums(self.margin_logits(cosines, target), target, weight, self.class_weights)
        second = _cross_entropy_sums(self.margin_logits(cosines, other), other, 1 - weight, self.class_weights)
        mass = first[1] + second[1]
        return (first[0] + second[0]) / mass.clamp_min(torch.finfo(mass.dtype).tiny)

    forward = loss
