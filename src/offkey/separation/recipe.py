"""Settings of a separator's training; loading this module loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from offkey.separation.config import SeparatorConfig, Size
from offkey.training.config import Decibels, Share, TrainingConfig

__all__ = ["LossConfig", "MixingConfig", "Mode", "PriorConfig", "SeparationRecipe"]

Mode = Literal["auto", "supervised", "mixtures"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MixingConfig(_Settings):
    """How two clips become a lesson."""

    min_snr_db: Decibels = Field(default=-15.0, description="softest foreground against its background, dB")
    max_snr_db: Decibels = Field(default=10.0, description="loudest foreground against its background, dB")
    sum_ratio_db: float = Field(
        default=6.0,
        ge=0,
        le=200,
        description="by how much one of two summed normal clips may be louder than the other, dB",
    )
    crop_seconds: float = Field(default=2.0, gt=0, description="length of a random crop, seconds")
    min_gain_db: Decibels = Field(default=-6.0, description="lowest gain of a finished mixture, dB")
    max_gain_db: Decibels = Field(default=6.0, description="highest gain of a finished mixture, dB")
    batches: int = Field(default=100, ge=1, description="batches an epoch")
    held_out: int = Field(default=48, ge=0, description="fixed mixtures of held-out clips for validation; 0: none")

    @model_validator(mode="after")
    def _ordered(self) -> MixingConfig:
        for low, high in (("min_snr_db", "max_snr_db"), ("min_gain_db", "max_gain_db")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} {getattr(self, low):g} lies above {high} {getattr(self, high):g}")
        return self


class LossConfig(_Settings):
    """What a separated foreground and background are judged by."""

    kind: Literal["si_snr", "spectrum"] = Field(
        default="si_snr", description="scale-invariant SNR of the waveforms, or distance of compressed spectra"
    )
    background_weight: float = Field(default=0.1, ge=0, description="the background's part, foreground 1")
    level_weight: float = Field(
        default=0.1, ge=0, description="part of the plain SNR, which si_snr needs to learn how loud a stem is"
    )
    floor_db: float = Field(
        default=-30.0,
        ge=-200,
        lt=0,
        description="error below which a stem is good enough, dB against the stem or the mixture",
    )
    exponent: float = Field(default=0.3, gt=0, le=1, description="compression of magnitudes in the spectrum loss")


class PriorConfig(_Settings):
    """What is taken for background where nobody recorded it alone: what stays the same through a clip."""

    n_fft: int = Field(default=1024, ge=64, description="samples of a frame of the stationary spectrum")
    smooth_hz: float = Field(default=140.0, gt=0, description="width of the median over frequency, Hz")
    swell_db: float = Field(
        default=2.0, ge=0, le=200, description="slow rise and fall of three bands, standard deviation, dB"
    )
    coloured_share: Share = Field(
        default=0.8, description="share of backgrounds of a random smooth colour instead of a clip's own"
    )
    same_machine_share: Share = Field(
        default=0.5, description="share of backgrounds of the machine's own clips; others come from any machine"
    )
    clearest_share: Share = Field(
        default=0.33,
        description="share of a machine's normal clips, those with the deepest valleys between tones and strokes, that "
        "stand for foreground when noise is added; 1: all",
    )
    alone_share: Share = Field(
        default=0.7, description="share of all epochs before the net's own separations become lessons"
    )
    sum_share: Share = Field(
        default=0.0,
        description="share of lessons after that, from normal clips alone, which are sums of two of them; 0: none, and "
        "such a separator never learns from itself",
    )


class SeparationRecipe(_Settings):
    """Everything that a separator's training follows from, beside the clips.

    >>> SeparationRecipe.of("tiny").separator.rate
    16000
    """

    separator: SeparatorConfig = SeparatorConfig()
    mixing: MixingConfig = MixingConfig()
    loss: LossConfig = LossConfig()
    prior: PriorConfig = PriorConfig()
    training: TrainingConfig = TrainingConfig(epochs=20, batch_size=4, learning_rate=2e-3)
    teacher_momentum: float = Field(
        default=0.99, ge=0, lt=1, description="how much of the teacher, a running mean of the net, a step keeps"
    )
    seed: int = Field(default=0, ge=0, description="everything random follows from it")

    @model_validator(mode="after")
    def _a_frame_at_least(self) -> SeparationRecipe:
        rate, frame = self.separator.rate, self.separator.n_fft
        if round(self.mixing.crop_seconds * rate) < frame:
            raise ValueError(
                f"mixing.crop_seconds {self.mixing.crop_seconds:g} is shorter than one frame of the separator "
                f"({frame} samples at {rate} Hz, {frame / rate:g} s): nothing could be learnt from such a crop"
            )
        return self

    @classmethod
    def of(cls, size: Size) -> SeparationRecipe:
        """The recipe for a network of this size."""
        plain = cls(separator=SeparatorConfig.of(size))
        if size == "tiny":
            return plain
        # a GPU has time for longer lessons, and a larger network wants smaller steps
        return plain.model_copy(
            update={
                "mixing": plain.mixing.model_copy(update={"crop_seconds": 4.0}),
                "training": plain.training.model_copy(update={"learning_rate": 1e-3}),
            }
        )
