"""ArcFace: softmax over cosines with an angular margin on the target class alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offkey.objectives.head import IdentityHead
from offkey.types import Bool, Float, Int

__all__ = ["ArcFace", "add_margin"]

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


class ArcFace(IdentityHead):
    """Class centres on the sphere and the loss that draws embeddings to them.

    `weight` (classes, sub_centres, embedding) are the centres, of any length (they are normalised). Defaults:
    s = 30, m = 0.5. With sub-centres (Deng et al., ECCV 2020) the nearest centre of a class stands for it.
    With one class there is nothing to tell apart and the loss is 0. Raises OffkeyError without any class.
    """

    def __init__(
        self,
        embedding: int,
        classes: int,
        scale: float = 30.0,
        margin: float = 0.5,
        sub_centres: int = 1,
        class_weights: Tensor | None = None,
        learn_centres: bool = True,
    ) -> None:
        super().__init__(embedding, classes, sub_centres, class_weights, learn_centres)
        if not 0 <= margin < math.pi or scale <= 0:
            raise ValueError(f"expected 0 <= margin < pi and scale > 0; got {margin=}, {scale=}")
        self.scale = scale
        self.margin = margin

    def logits(self, embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Scaled cosines without a margin: for accuracy, and for scores."""
        return self.scale * self.cosines(embedding)

    def margin_logits(self, cosines: Float[Tensor, "B K"], target: Int[Tensor, " B"]) -> Float[Tensor, "B K"]:
        """Scaled cosines with the margin on the target class alone; a row with target −1 gets none."""
        hot: Bool[Tensor, "B K"] = target[:, None] == torch.arange(cosines.shape[1], device=target.device)
        return self.scale * torch.where(hot, add_margin(cosines, self.margin), cosines)

    def shared_loss(
        self, embedding: Float[Tensor, "B D"], targets: Int[Tensor, "B N"], shares: Float[Tensor, "B N"]
    ) -> Float[Tensor, ""]:
        """Mean loss of clips that belong to several classes in parts; for each, the margin is on that class alone."""
        cosines = self.cosines(embedding)
        logits = torch.stack([self.margin_logits(cosines, target) for target in targets.unbind(1)], 1)
        return self._mean(logits, targets, shares)
