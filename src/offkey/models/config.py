"""Settings of the networks; loading this module loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DiscriminativeConfig", "Normalise"]

Normalise = Literal["dataset", "instance", "none"]


class DiscriminativeConfig(BaseModel):
    """The net of Approach 1: log-mel (+ Tgram) (+ other streams) -> MobileFaceNet -> embedding.

    >>> DiscriminativeConfig(width=0.5).embedding
    256
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedding: int = Field(default=256, ge=1, description="numbers in the vector that stands for a clip")
    use_tgram: bool = Field(default=True, description="add the learnt time-domain channel beside the log-mel")
    tgram_layers: int = Field(
        default=3, ge=0, description="norm + convolution layers after Tgram's framing convolution"
    )
    width: float = Field(
        default=1.0, gt=0, description="multiplies MobileFaceNet's channels; 0.5 is about 3 times faster"
    )
    bottlenecks: tuple[tuple[int, int, int, int], ...] = Field(
        default=((2, 128, 2, 2), (4, 128, 2, 2), (4, 128, 2, 2)),
        min_length=1,
        description="MobileFaceNet's stages: expansion, channels, blocks, stride of the first block",
    )
    normalise: Normalise = Field(
        default="dataset",
        description="log-mel scale: dataset = mean and deviation of each band over the training clips; "
        "instance = one mean and deviation a clip; none = dB as they are",
    )
