"""Settings of the pretrained encoder; loading this module loads no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["ENCODERS", "EncoderConfig"]

ENCODERS = {
    "beats": ("offkey.encoders.beats", "Beats"),
    "efficientat": ("offkey.encoders.efficientat", "EfficientAT"),
}
"""Where each encoder lives; a module is loaded when its encoder is asked for."""


def _known(name: str) -> str:
    if name not in ("none", *ENCODERS):
        raise ValueError(f"known encoders: none, {', '.join(ENCODERS)}")
    return name


class EncoderConfig(BaseModel):
    """Which pretrained encoder a system listens with, and which of its layers go on learning.

    >>> EncoderConfig(name="beats", unfreeze="last:4+pos_conv").layer_decay
    1.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Annotated[str, AfterValidator(_known)] = Field(
        default="none", description=f"{', '.join(ENCODERS)}, or none: no encoder"
    )
    weights: str | None = Field(
        default=None,
        description="a name of `offkey weights list`, or the path of a file; left out: the encoder's usual weights",
    )
    unfreeze: str = Field(
        default="none",
        pattern=r"^(none|all|pos_conv|last:[1-9][0-9]*(\+pos_conv)?)$",
        description="layers that learn: none, all, last:N (the last N blocks), pos_conv, or last:N+pos_conv",
    )
    lora_rank: int = Field(
        default=0, ge=0, description="low-rank changes to the query and value weights of attention; 0: none"
    )
    lora_alpha: float = Field(default=16.0, gt=0, description="low-rank changes count alpha / rank")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="learning rate of a layer over that of the next one towards the output"
    )
    checkpointing: bool = Field(
        default=False, description="forget activations in training and compute them again: less memory, more time"
    )
    cache: bool = Field(default=True, description="keep what a frozen encoder heard on disk, never to compute it twice")
