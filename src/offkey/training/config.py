"""Settings of training and augmentation; loading this module loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "AugmentationConfig",
    "FeatExConfig",
    "GainConfig",
    "MixupConfig",
    "NoiseConfig",
    "PolarityConfig",
    "RemixConfig",
    "ShiftConfig",
    "SpecAugmentConfig",
    "TrainingConfig",
]

Share = Annotated[float, Field(ge=0, le=1)]
Decibels = Annotated[float, Field(ge=-200, le=200)]  # more than any sound; 10 ** (dB / 20) stays far from overflow


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingConfig(_Settings):
    """How a model learns.

    >>> TrainingConfig(epochs=3).schedule
    'cosine'
    """

    epochs: int = Field(default=20, ge=1, description="passes over the training clips")
    batch_size: int = Field(default=32, ge=1, description="clips a step and process")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak rate of new layers")
    encoder_learning_rate: float = Field(default=5e-5, ge=0, description="peak rate of pretrained weights")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's decay; norms and biases get none")
    warmup_share: Share = Field(default=0.05, description="share of all steps in which the rate climbs")
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="rate after the warm-up")
    final_share: Share = Field(default=0.01, description="where the cosine ends, as a share of the peak rate")
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 or fp16 as the GPU can, float32 on a CPU"
    )
    accumulate: int = Field(default=1, ge=1, description="batches whose gradients make one step")
    clip_norm: float = Field(default=5.0, ge=0, description="largest gradient norm; 0 leaves gradients alone")
    early_stop: int = Field(
        default=0, ge=0, description="epochs without a lower held-out loss before training ends; 0 never"
    )
    held_out_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of NORMAL clips kept for the held-out loss"
    )
    keep: Literal["best", "last"] = Field(
        default="last", description="weights that stay: lowest held-out loss, or those of the last epoch"
    )
    checkpoint_every_steps: int = Field(default=0, ge=0, description="0: by time and at each epoch's end only")
    checkpoint_every_seconds: float = Field(default=120.0, ge=0, description="0: not by time")
    devices: int = Field(
        default=0, ge=0, description="processes expected, one a device; 0 takes what torchrun started, or one"
    )
    device: str = Field(default="auto", description='auto, cpu, cuda or "cuda:1"')
    threads: int = Field(default=0, ge=0, description="threads of torch on a CPU; 0 leaves them as they are")
    target_share: Share = Field(default=0.25, description="target clips in a batch, where there are any")
    crop_seconds: float = Field(default=0.0, ge=0, description="length of random crops; 0 takes whole clips")
    log: Literal["none", "tensorboard"] = Field(default="none", description="record of losses beside weights")
    deterministic: bool = Field(
        default=False, description="refuse GPU operations that differ from run to run; a CPU repeats anyway"
    )
    keep_memory: bool = Field(
        default=True, description="on a CPU, keep freed memory while training (a third faster, GNU C library)"
    )


class GainConfig(_Settings):
    """Level of a clip, drawn evenly in dB."""

    enabled: bool = Field(default=False, description="switch")
    min_db: Decibels = Field(default=-6.0, description="lowest gain, dB")
    max_db: Decibels = Field(default=6.0, description="highest gain, dB")
    probability: Share = Field(default=0.5, description="share of clips that it meets")

    @model_validator(mode="after")
    def _ordered(self) -> GainConfig:
        if self.min_db > self.max_db:
            raise ValueError(f"min_db {self.min_db:g} lies above max_db {self.max_db:g}")
        return self


class NoiseConfig(_Settings):
    """Noise at a signal-to-noise ratio, drawn evenly in dB; the clip stays as loud as it was."""

    enabled: bool = Field(default=False, description="switch")
    min_snr_db: Decibels = Field(default=5.0, description="loudest noise: signal over noise, dB")
    max_snr_db: Decibels = Field(default=30.0, description="softest noise: signal over noise, dB")
    kinds: tuple[Literal["white", "pink", "brown", "pool"], ...] = Field(
        default=("pool", "white", "pink", "brown"),
        min_length=1,
        description="generated noise that falls by 0, 3 or 6 dB an octave; pool: noise recordings, which "
        "take the place of generated noise where there are any",
    )
    probability: Share = Field(default=0.5, description="share of clips that it meets")

    @model_validator(mode="after")
    def _ordered(self) -> NoiseConfig:
        if self.min_snr_db > self.max_snr_db:
            raise ValueError(f"min_snr_db {self.min_snr_db:g} lies above max_snr_db {self.max_snr_db:g}")
        return self


class ShiftConfig(_Settings):
    """Roll of a clip in time: what leaves at the end comes in at the beginning."""

    enabled: bool = Field(default=False, description="switch")
    max_seconds: float = Field(default=0.0, ge=0, description="largest roll either way; 0: any")
    probability: Share = Field(default=0.5, description="share of clips that it meets")


class PolarityConfig(_Settings):
    """Sign of the waveform, which no listener hears."""

    enabled: bool = Field(default=False, description="switch")
    probability: Share = Field(default=0.5, description="share of clips that it meets")


class MixupConfig(_Settings):
    """Weighted sum of two clips of a batch, with labels mixed alike."""

    enabled: bool = Field(default=False, description="switch")
    alpha: float = Field(default=0.2, gt=0, description="weights are drawn from Beta(alpha, alpha)")
    probability: Share = Field(default=0.5, description="share of batches that it meets")


class SpecAugmentConfig(_Settings):
    """Masks over stretches of time and bands of frequency of the spectrogram."""

    enabled: bool = Field(default=False, description="switch")
    time_masks: int = Field(default=2, ge=0, description="masked stretches of time a clip")
    time_share: Share = Field(default=0.1, description="longest stretch, as a share of the clip's frames")
    frequency_masks: int = Field(default=2, ge=0, description="masked bands a clip")
    frequency_share: Share = Field(default=0.1, description="widest band, as a share of the mel bands")
    probability: Share = Field(default=1.0, description="share of clips that it meets")


class FeatExConfig(_Settings):
    """Input streams exchanged between clips of a batch, and a loss of its own that tells whose they are (FeatEx).

    Its weight is `objective.featex_weight`. It takes a second stream beside the log-mel, and a second pass through the
    net behind the streams.
    """

    enabled: bool = Field(default=False, description="switch")
    probability: Share = Field(default=0.5, description="share of clips that it meets")


class RemixConfig(_Settings):
    """Foreground of a clip in the background of another; the clip stays as loud as it was.

    It takes a separator: `separation.model`.
    """

    enabled: bool = Field(default=False, description="switch")
    min_snr_db: Decibels = Field(default=-5.0, description="loudest background: foreground over background, dB")
    max_snr_db: Decibels = Field(default=15.0, description="softest background: foreground over background, dB")
    probability: Share = Field(default=0.5, description="share of clips that it meets")
    mixup: Share = Field(
        default=0.0,
        description="share of remixed clips whose foreground is mixed with one of the same machine in the other domain",
    )
    mixup_alpha: float = Field(
        default=0.2, gt=0, description="the other's share is drawn from Beta(alpha, alpha), folded to at most one half"
    )

    copies: int = Field(
        default=2, ge=1, description="remixed copies of every clip, for systems that learn from windows cut beforehand"
    )

    @model_validator(mode="after")
    def _ordered(self) -> RemixConfig:
        if self.min_snr_db > self.max_snr_db:
            raise ValueError(f"min_snr_db {self.min_snr_db:g} lies above max_snr_db {self.max_snr_db:g}")
        return self


class AugmentationConfig(_Settings):
    """Changes of training clips; each is off until it is enabled.

    >>> AugmentationConfig(mixup=MixupConfig(enabled=True)).mixup.alpha
    0.2
    """

    gain: GainConfig = GainConfig()
    noise: NoiseConfig = NoiseConfig()
    shift: ShiftConfig = ShiftConfig()
    polarity: PolarityConfig = PolarityConfig()
    mixup: MixupConfig = MixupConfig()
    featex: FeatExConfig = FeatExConfig()
    remix: RemixConfig = RemixConfig()
    spec_augment: SpecAugmentConfig = SpecAugmentConfig()
