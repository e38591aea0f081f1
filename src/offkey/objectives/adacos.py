"""Sub-cluster AdaCos: softmax over the cosines to several centres a class, with a scale that follows the training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offkey.objectives.head import IdentityHead
from offkey.types import Float, Int

__all__ = ["LARGEST_SCALE", "SMALLEST_SCALE", "AdaCos", "adapted_scale", "fixed_scale"]

SMALLEST_SCALE = math.log(99.0) / 2
"""2.3: with it two opposite centres can be told apart with a probability of 99 %."""

LARGEST_SCALE = 64.0
"""The largest that is in use with margins (ArcFace's authors); only a few clips of a batch can ask for more."""


def fixed_scale(classes: int, sub_centres: int = 1) -> float:
    """√2·log(classes·sub_centres − 1), the scale at which half the probability goes to a centre 45° away.

    With two centres in all that is 0, at which nothing can be learnt, and with few it is so small that a perfect
    embedding still has a loss: it is SMALLEST_SCALE at least (reached with 7 centres).

    >>> round(fixed_scale(10, 16), 3), fixed_scale(2) == SMALLEST_SCALE
    (7.169, True)
    """
    return min(max(math.sqrt(2) * math.log(max(classes * sub_centres - 1, 1)), SMALLEST_SCALE), LARGEST_SCALE)


def adapted_scale(
    cosines: Float[Tensor, "B K S"], targets: Int[Tensor, "B N"], shares: Float[Tensor, "B N"], scale: float
) -> float:
    """The scale after a batch: log B / cos(min(45°, θ)), between SMALLEST_SCALE and LARGEST_SCALE.

    B is the mean over clips of the sum of exp(scale·cosine) over all centres of classes in which the clip has no share;
    θ the median over clips of the angle to their class's nearest centre, or of a mixed clip the mean of its angles by
    share (Zhang et al., "AdaCos", CVPR 2019). Clips with a class that is not known are left out, and those
    that have a share in every class; where none is left, the scale stays.
    """
    member = torch.zeros(cosines.shape[:2], device=cosines.device).scatter_add_(1, targets.clamp_min(0), shares.float())
    usable = (targets >= 0).all(1) & (member <= 0).any(1)
    if not bool(usable.any()):
        return scale
    cosines, member = cosines[usable].float(), member[usable]
    foreign = (scale * cosines).masked_fill((member > 0)[:, :, None], -torch.inf).flatten(1)
    crowd = torch.logsumexp(foreign.flatten(), 0) - math.log(len(foreign))
    angles = (cosines.amax(2).clamp(-1.0, 1.0).acos() * member).sum(1) / member.sum(1)
    middle = angles.quantile(0.5).clamp_max(math.pi / 4)
    return min(max(float(crowd / middle.cos()), SMALLEST_SCALE), LARGEST_SCALE)


class AdaCos(IdentityHead):
    """Centres on the sphere, `sub_centres` a class, and a softmax over all of them; a class gets its centres' sum.

    No margin, and no scale to choose: it begins at `fixed_scale` and is adapted to every batch in training mode, before
    that batch's loss. It is kept in the buffer `scale`, so that a resumed run goes on with it, and stands still in eval
    mode. With `learn_centres` off the random centres stay where they are: at 256 numbers they are nearly orthogonal,
    and no class can collapse into another's. `adaptive` off keeps the first scale.

    K. Wilkinghoff, "Sub-cluster AdaCos: learning representations for anomalous sound detection", IJCNN 2021. It differs
    in the sum B of `adapted_scale`: there it runs over all centres, a clip's own among them, because mixed clips belong
    to several classes. Then each clip that finds its class raises the scale, which raises the sum: trained on points of
    4 easy classes, the scale passed 5000 within 200 steps. With the other classes alone, as in AdaCos itself, it falls
    as they are told apart.
    """

    scale: Tensor

    def __init__(
        self,
        embedding: int,
        classes: int,
        sub_centres: int = 16,
        class_weights: Tensor | None = None,
        learn_centres: bool = True,
        adaptive: bool = True,
    ) -> None:
        super().__init__(embedding, classes, sub_centres, class_weights, learn_centres)
        self.adaptive = adaptive
        self.register_buffer("scale", torch.tensor(fixed_scale(classes, sub_centres)))

    def logits(self, embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Logarithm of Σ exp(scale·cosine) over a class's centres: their softmax is a class's share of all centres'."""
        return self._logits(self.all_cosines(embedding))

    def _logits(self, cosines: Tensor) -> Tensor:
        with torch.autocast(cosines.device.type, enabled=False):
            return torch.logsumexp(self.scale.clone() * cosines, dim=2)  # the next batch changes it in place

    def shared_loss(
        self, embedding: Float[Tensor, "B D"], targets: Int[Tensor, "B N"], shares: Float[Tensor, "B N"]
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of clips that belong to several classes in parts; training adapts the scale first."""
        cosines = self.all_cosines(embedding)
        if self.training and self.adaptive:
            with torch.no_grad():
                self.scale.fill_(adapted_scale(cosines.detach(), targets, shares, float(self.scale)))
        return self._mean(self._logits(cosines), targets, shares)
