"""The sum that Approach 2 minimises: the error of reconstruction, and the identity told from the latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from offkey.objectives.config import ReconstructionConfig
from offkey.objectives.head import weighted_cross_entropy
from offkey.objectives.multitask import Mix
from offkey.types import Float, Labels, OffkeyError, Representation

__all__ = ["Reconstruction", "ReconstructionConfig"]


class Reconstruction(nn.Module):
    """`forward(representation, labels, mix)` -> the losses by name, "total" their weighted sum.

    "reconstruction" is the mean of `Representation.frame_error`, which carries the gradient, over all own frames of the
    batch: those where it is not exactly zero. "identity" is the cross-entropy of a linear layer on the embedding (the
    latent); it is left out, with its weights, where its weight is 0 or there is one class only. Labels of −1 are left
    out. "accuracy" is the share of clips or windows whose identity is found, no loss and without gradient.
    `identity_counts` are clips a class, for `balance_classes`.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        embedding: int,
        identities: int,
        config: ReconstructionConfig | None = None,
        identity_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config or ReconstructionConfig()
        weights = None
        if config.balance_classes and identity_counts is not None:
            counts = torch.tensor(identity_counts, dtype=torch.float32).clamp_min(1)
            weights = counts.rsqrt() / counts.rsqrt().mean()
        self.register_buffer("class_weights", weights, persistent=False)
        self.identity = nn.Linear(embedding, identities) if config.identity_weight and identities > 1 else None

    def forward(
        self, representation: Representation, labels: Labels, mix: Mix | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return every term before its weight, "total" after it, and "accuracy".

        Raises OffkeyError for a model that reconstructs nothing.
        """
        error = representation.frame_error
        if error is None:
            raise OffkeyError("this objective minimises an error of reconstruction, but the model tells of none")
        reconstruction = error.sum() / (error > 0).sum().clamp_min(1)
        losses = {"total": reconstruction, "reconstruction": reconstruction}
        if self.identity is None:
            return losses
        logits, target = self.identity(representation.embedding), labels.identity
        if mix is None:
            losses["identity"] = weighted_cross_entropy(logits, target, None, self.class_weights)
        else:
            losses["identity"] = weighted_cross_entropy(
                torch.cat([logits, logits]),
                torch.cat([target, target[mix.partner]]),
                torch.cat([mix.weight, 1 - mix.weight]),
                self.class_weights,
            )
            target = torch.where(mix.weight >= 0.5, target, target[mix.partner])
        losses["total"] = reconstruction + self.config.identity_weight * losses["identity"]
        with torch.no_grad():
            known = target >= 0
            losses["accuracy"] = ((logits.argmax(1) == target) & known).sum() / known.sum().clamp_min(1)
        return losses
