"""Settings of the separation network and of what stands around it; loading this module loads no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["LocoformerConfig", "SeparatorConfig", "Size"]

Size = Literal["tiny", "small", "medium"]
Positive = Annotated[int, Field(ge=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LocoformerConfig(_Settings):
    """The TF-Locoformer of Saijo et al. (IWAENC 2024); what is left out is the paper's medium size.

    Three settings are ours and off by default: `frequency_stride`, `attention_frames` and `contrast_frames`.

    >>> LocoformerConfig.of("small").blocks
    4
    """

    sources: int = Field(default=2, ge=1, description="spectra that come out")
    blocks: int = Field(default=6, ge=1, description="pairs of a frequency path and a time path")
    width: int = Field(default=128, ge=1, description="features of a time-frequency point")
    norm: Literal["rms_group", "layer"] = Field(
        default="rms_group", description="normalisation of a point's features: root mean square a group, or LayerNorm"
    )
    groups: int = Field(default=4, ge=1, description="groups of features that rms_group normalises each by itself")
    order: Literal["frequency-time", "time-frequency"] = Field(
        default="frequency-time", description="path that comes first in a block"
    )
    heads: int = Field(default=4, ge=1, description="heads of attention")
    attention_width: int = Field(default=128, ge=1, description="features of queries, keys and values, all heads")
    feed_forward: tuple[Literal["swiglu", "silu"], ...] = Field(
        default=("swiglu", "swiglu"),
        min_length=1,
        max_length=2,
        description="convolutional layers of a path: one after attention, or one before and one after (macaron)",
    )
    hidden: tuple[Positive, ...] = Field(
        default=(384, 384), min_length=1, max_length=2, description="inner features of each such layer"
    )
    kernel: int = Field(default=4, ge=1, description="points that its convolutions span")
    stride: int = Field(default=1, ge=1, description="points from one step of its convolutions to the next")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of features left out in training")
    eps: float = Field(default=1e-5, gt=0, description="keeps normalisations from dividing by zero")
    frequency_stride: int = Field(
        default=1, ge=1, description="frequency bins that share one point inside the net; 1: none do, as published"
    )
    attention_frames: int | None = Field(
        default=None,
        ge=1,
        description="frames to each side that attention along time reaches; null: the whole clip, as published",
    )
    contrast_frames: int | None = Field(
        default=None,
        ge=1,
        description="the net is also told each bin's magnitude, and how far it lies above the bin's mean over so many "
        "frames to each side; null: the spectrum alone, as published",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> LocoformerConfig:
        if len(self.feed_forward) != len(self.hidden):
            raise ValueError("hidden must name one width for each entry of feed_forward")
        if self.stride > self.kernel:
            raise ValueError("stride must not exceed kernel: points between two steps would go unheard")
        if self.attention_width % (2 * self.heads):
            raise ValueError("attention_width must be a multiple of 2 x heads: rotary positions turn pairs")
        if self.norm == "rms_group" and self.width % self.groups:
            raise ValueError("width must be a multiple of groups")
        return self

    @classmethod
    def of(cls, size: Size, **changes: Any) -> LocoformerConfig:
        """The settings of a size, with changes.

        `medium` and `small` are those of the paper's recipes for WSJ0-2mix and WHAMR!; `tiny` is ours and
        learns on a CPU.
        """
        return cls.model_validate(_SIZES[size] | changes)


_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "blocks": 2,
        "width": 48,
        "heads": 2,
        "attention_width": 32,
        "hidden": (64, 64),
        "frequency_stride": 8,
    },
    "small": {"blocks": 4, "width": 96, "hidden": (128, 128), "kernel": 8},
    "medium": {},
}


_AROUND_PUBLISHED: dict[str, Any] = {"n_fft": 512, "hop": 256, "compression": 1.0}


class SeparatorConfig(_Settings):
    """A separator: waveform -> spectrum -> TF-Locoformer -> two spectra -> two waveforms.

    >>> SeparatorConfig.of("small", hop=256).locoformer.blocks
    4
    """

    rate: int = Field(default=16000, ge=1000, le=768_000, description="sampling rate, Hz")
    locoformer: LocoformerConfig = LocoformerConfig.of("tiny", attention_frames=15, contrast_frames=15)
    n_fft: int = Field(default=2048, ge=8, description="samples of a frame, and length of its Fourier transform")
    hop: int = Field(default=1024, ge=1, description="samples from one frame to the next; n_fft is a multiple of it")
    compression: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="exponent on the magnitudes that the net hears: below 1 soft ones count for more; 1: as published",
    )
    output: Literal["mask", "mapping"] = Field(
        default="mask", description="mask: the net's output multiplies the spectrum; mapping: it is a spectrum"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> SeparatorConfig:
        if self.n_fft % 2:
            raise ValueError("n_fft must be even")
        if self.n_fft % self.hop or self.n_fft == self.hop:
            raise ValueError("n_fft must be a multiple of hop, at least twice as large")
        if self.output == "mapping" and self.compression != 1.0:
            raise ValueError("with output mapping the net gives the spectrum itself: compression must be 1 then")
        if self.locoformer.sources > 2:
            raise ValueError("a separator has a foreground and a background: locoformer.sources must be 1 or 2")
        return self

    @classmethod
    def of(cls, size: Size, **changes: Any) -> SeparatorConfig:
        """A separator around the network of a size, with changes.

        Attention reaches one second to each side in every size (the paper's reaches as far as the clip): then what a
        long recording becomes does not depend on where it is cut into chunks. `tiny` also hears what stands out of as
        long a stretch. With `locoformer` among the changes the network is that one as it stands.
        """
        plain = cls.model_validate(({} if size == "tiny" else _AROUND_PUBLISHED) | changes)
        if "locoformer" in changes:
            return plain
        reach = max(1, plain.rate // plain.hop)
        network = LocoformerConfig.of(size, attention_frames=reach, contrast_frames=reach if size == "tiny" else None)
        return plain.model_copy(update={"locoformer": network})
