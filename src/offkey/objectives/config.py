"""Settings of the objective; loading this module loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MultiTaskConfig", "ReconstructionConfig"]


class MultiTaskConfig(BaseModel):
    """Terms of the loss, each times its weight: identity, attributes, domain, the two MMDs; 0 turns one off.

    >>> MultiTaskConfig(mmd_weight=0.0).scale
    30.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["multitask"] = "multitask"
    head: Literal["arcface", "adacos"] = Field(
        default="arcface",
        description="identity loss: arcface has a margin and a fixed scale; adacos (sub-cluster AdaCos) has no "
        "margin, and its scale follows the training",
    )
    scale: float = Field(default=30.0, gt=0, description="ArcFace: factor s on the cosines")
    margin: float = Field(default=0.5, ge=0, le=1.5, description="ArcFace: angle m added to the target class, radians")
    sub_centres: int = Field(
        default=0,
        ge=0,
        description="centres a class; ArcFace takes the nearest, AdaCos adds them up; 0: 1 or, with AdaCos, 16",
    )
    learn_centres: bool = Field(default=True, description="false: class centres stay where chance put them")
    adaptive_scale: bool = Field(default=True, description="AdaCos: false keeps the first scale")
    identity_weight: float = Field(default=1.0, ge=0, description="factor on the identity loss")
    featex_weight: float = Field(
        default=1.0, ge=0, description="factor on the loss of exchanged streams, where augmentation.featex is on"
    )
    attribute_weight: float = Field(default=0.5, ge=0, description="factor on the mean of the attribute heads")
    domain_weight: float = Field(default=0.1, ge=0, description="factor on the domain head's loss")
    mmd_weight: float = Field(default=0.1, ge=0, description="factor on MMD of source and target embeddings")
    modality_mmd_weight: float = Field(default=0.0, ge=0, description="factor on MMD between input streams")
    mmd_kernels: int = Field(default=5, ge=1, description="bandwidths of the MMD, each twice the one before")
    balance_classes: bool = Field(
        default=False, description="weigh identities by the inverse square root of their number of clips"
    )


class ReconstructionConfig(BaseModel):
    """Terms of Approach 2's loss: the mean squared error, and α times the cross-entropy of the identity.

    >>> ReconstructionConfig(identity_weight=0.0).balance_classes
    False
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["reconstruction"] = "reconstruction"
    identity_weight: float = Field(default=0.1, ge=0, description="α, the factor on the identity's cross-entropy")
    balance_classes: bool = Field(
        default=False, description="weigh identities by the inverse square root of their number of clips"
    )
