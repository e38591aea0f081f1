"""Settings of the networks; loading this module loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "BaselineConfig",
    "DiscriminativeConfig",
    "Normalise",
    "PatchPooling",
    "Pooling",
    "ReconstructiveConfig",
    "RetrievalConfig",
]

Normalise = Literal["dataset", "instance", "none"]
Pooling = Literal["mean", "max", "top"]
PatchPooling = Literal["mean", "gem", "rdp", "rdp+gem"]


class DiscriminativeConfig(BaseModel):
    """The net of Approach 1: log-mel (+ Tgram) (+ other streams) -> MobileFaceNet -> embedding.

    >>> DiscriminativeConfig(width=0.5).embedding
    256
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["mobilefacenet"] = "mobilefacenet"
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


class _Autoencoder(BaseModel):
    """How an autoencoder's errors become one score a clip."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    pooling: Pooling = Field(
        default="mean", description="errors over a clip -> one score: the mean, the max, or the mean of the top ones"
    )
    top: int = Field(default=10, ge=1, description="frames that count where pooling is top")


class ReconstructiveConfig(_Autoencoder):
    """The net of Approach 2: encoder frames (+ Tgram) (+ log-mel) -> convolutional autoencoder over time.

    >>> ReconstructiveConfig(window=16).latent
    32
    """

    name: Literal["conv-autoencoder"] = "conv-autoencoder"
    window: int = Field(default=32, ge=1, description="mel frames that the autoencoder sees at once; 32 are about 1 s")
    latent: int = Field(default=32, ge=1, description="numbers in the vector that stands for a window")
    width: int = Field(default=160, ge=1, description="channels of the convolutions; half as many are twice as fast")
    halvings: int = Field(default=3, ge=0, description="convolutions on either side of the latent, each halving time")
    use_tgram: bool = Field(default=True, description="add the learnt time-domain channels beside the encoder's")
    tgram_channels: int = Field(default=128, ge=1, description="channels of Tgram")
    tgram_layers: int = Field(
        default=3, ge=0, description="norm + convolution layers after Tgram's framing convolution"
    )
    use_log_mel: bool = Field(default=False, description="add the log-mel bands to what is reconstructed")

    @model_validator(mode="after")
    def _halves_without_rest(self) -> ReconstructiveConfig:
        if self.window % 2**self.halvings:
            raise ValueError(
                f"window {self.window} is not a multiple of {2**self.halvings}, 2 to the power of halvings"
            )
        return self


class BaselineConfig(_Autoencoder):
    """The dense autoencoder of the DCASE baselines of 2023 to 2026, as published where nothing is changed.

    >>> BaselineConfig(width=64).latent
    8
    """

    name: Literal["dense-autoencoder"] = "dense-autoencoder"
    frames: int = Field(default=5, ge=1, description="log-mel frames side by side in one input vector")
    width: int = Field(default=128, ge=1, description="numbers in a hidden layer")
    layers: int = Field(default=4, ge=1, description="hidden layers before the latent one, and as many after it")
    latent: int = Field(default=8, ge=1, description="numbers in the narrowest layer")
    mahalanobis: Literal["residual", "distance"] = Field(
        default="residual",
        description="residual: distance of a clip's mean residual, which is what the official code computes; "
        "distance: mean of every frame's distance, which is what its paper describes",
    )
    validation_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of all vectors that is not learnt from, as in the official code; where no clips are held "
        "out, the held-out loss is theirs",
    )


class RetrievalConfig(BaseModel):
    """How a frozen encoder's patches become one vector a clip; nothing is trained.

    >>> RetrievalConfig(layers=(-1,), bands="averaged").gamma_for("efficientat")
    9.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["retrieval"] = "retrieval"
    layers: tuple[int, ...] = Field(
        default=(-1,),
        min_length=1,
        description="the encoder's layers whose patches are pooled, side by side: from 1 (next to the input), or "
        "from -1 (the last) backwards",
    )
    pooling: PatchPooling = Field(
        default="rdp+gem",
        description="patches over time -> one vector: mean; gem, the power mean, which heeds the largest; rdp, a "
        "mean that weighs moments by how far they are from the clip's mean; or a power mean with these weights",
    )
    power: float = Field(default=3.0, gt=0, le=100, description="exponent of the power mean (pooling with gem)")
    gamma: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="how much more far moments weigh (pooling with rdp); left out: as published, for rdp+gem 16 with "
        "beats and 9 with others, for rdp 19 and 10",
    )
    negatives: Literal["zero", "kept"] = Field(
        default="zero",
        description="numbers below zero in the power mean: zero, as published, or kept with their sign",
    )
    bands: Literal["kept", "averaged"] = Field(
        default="kept", description="frequency bands side by side, each pooled by itself, or averaged before pooling"
    )
    normalise: bool = Field(
        default=False, description="bring every band of every layer to length 1, so all count alike"
    )

    @model_validator(mode="after")
    def _layers_exist(self) -> RetrievalConfig:
        if 0 in self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError("layers are counted from 1, or from -1 backwards, and each is named once")
        return self

    def gamma_for(self, encoder: str) -> float:
        """`gamma`, or the published one for an encoder (arXiv 2603.04605, Table III, chosen on development sets)."""
        if self.gamma is not None:
            return self.gamma
        if self.pooling == "rdp":
            return 19.0 if encoder == "beats" else 10.0
        return 16.0 if encoder == "beats" else 9.0
