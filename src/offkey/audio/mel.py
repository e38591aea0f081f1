"""Log-mel spectrograms of whole batches, for clips of any length.

Sources: the mel scales and the area normalisation are those of Slaney's Auditory Toolbox (1998, linear below
1 kHz, logarithmic above) and of HTK (O'Shaughnessy: 2595 log10(1 + f/700)). The numbers agree with
`librosa.feature.melspectrogram(power=2, pad_mode="constant")` and 10 log10.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from offkey.types import Float, Int

__all__ = ["LogMel", "MelConfig", "mel_centres", "mel_filters"]


class MelConfig(BaseModel):
    """How a waveform becomes a log-mel spectrogram."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n_fft: int = Field(default=1024, ge=16, description="samples of a frame, and length of its Fourier transform")
    hop: int = Field(default=512, ge=1, description="samples from one frame to the next")
    n_mels: int = Field(default=128, ge=1, description="mel bands")
    f_min: float = Field(default=0.0, ge=0.0, description="lowest frequency, Hz")
    f_max: float | None = Field(default=None, gt=0.0, description="highest frequency, Hz; none: half the rate")
    scale: Literal["slaney", "htk"] = Field(default="slaney", description="formula of the mel scale")
    norm: Literal["slaney", "none"] = Field(
        default="slaney", description="slaney: every filter has the same area; none: every filter peaks at 1"
    )
    floor_db: float = Field(default=-100.0, ge=-300, le=200, description="lowest level told apart from silence, dB")


def _to_mel(hertz: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    # 3 mel a 200 Hz up to 1 kHz (15 mel), then 27 mel for every factor of 6.4
    linear = hertz * 3.0 / 200.0
    logarithmic = 15.0 + 27.0 * np.log(np.maximum(hertz, 1e-9) / 1000.0) / np.log(6.4)
    return np.where(hertz < 1000.0, linear, logarithmic)


def _to_hertz(mel: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp(np.log(6.4) * (mel - 15.0) / 27.0))


def mel_centres(rate: int, config: MelConfig) -> NDArray[np.float64]:
    """The frequency (n_mels,) at which each filter peaks, in hertz."""
    ends = _to_mel(np.array([config.f_min, rate / 2 if config.f_max is None else config.f_max]), config.scale)
    return _to_hertz(np.linspace(ends[0], ends[1], config.n_mels + 2), config.scale)[1:-1]


def mel_filters(rate: int, config: MelConfig) -> NDArray[np.float64]:
    """Triangular filters (n_mels, n_fft // 2 + 1) that sum power bins to mel bands, in float64.

    Raises ValueError where the band is empty or lies above half the rate.
    """
    f_max = rate / 2 if config.f_max is None else config.f_max
    if not config.f_min < f_max <= rate / 2:
        raise ValueError(
            f"mel band {config.f_min:g} to {f_max:g} Hz does not fit below half the rate ({rate / 2:g} Hz)"
        )
    ends = _to_mel(np.array([config.f_min, f_max]), config.scale)
    corners = _to_hertz(np.linspace(ends[0], ends[1], config.n_mels + 2), config.scale)
    bins = np.arange(config.n_fft // 2 + 1) * (rate / config.n_fft)
    width = np.diff(corners)[:, None]
    rising = (bins - corners[:-2, None]) / width[:-1]
    falling = (corners[2:, None] - bins) / width[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if config.norm == "slaney":
        filters *= 2.0 / (corners[2:, None] - corners[:-2, None])
    return filters


class LogMel(nn.Module):
    """Waveforms (B, T) to log-mel spectrograms (B, n_mels, F) in dB, F = T // hop + 1.

    Frame f is centred on sample f·hop and sees zeros beyond the ends of its clip, therefore a clip padded
    with zeros has in its own frames the same values as alone. Frames past a clip's own T_i // hop + 1 are
    set to `floor_db`. The work is done in float32 even inside autocast: powers overflow half precision.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, rate: int, config: MelConfig | None = None) -> None:
        super().__init__()
        self.rate = rate
        self.config = config or MelConfig()
        # Both follow from the settings, so they stay out of the saved weights.
        filters = torch.from_numpy(mel_filters(rate, self.config)).float()
        self.register_buffer("filters", filters, persistent=False)
        window = torch.hann_window(self.config.n_fft, periodic=True, dtype=torch.float64).float()
        self.register_buffer("window", window, persistent=False)

    def frames(self, lengths: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
        """How many frames clips of `lengths` samples have."""
        return torch.div(lengths, self.config.hop, rounding_mode="floor") + 1

    def forward(
        self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B M F"]:
        """Log-mel levels in dB, at least `floor_db`; `lengths` (B,) are the real samples a clip."""
        hop, floor = self.config.hop, self.config.floor_db
        with torch.autocast(waveform.device.type, enabled=False):
            x = waveform.to(self.window.dtype)
            if lengths is not None:
                # What an augmentation left in the padding must not leak into the last real frames.
                inside = torch.arange(x.shape[-1], device=x.device) < lengths[:, None]
                x = torch.where(inside, x, 0.0)
            spectrum = torch.stft(
                x, self.config.n_fft, hop, window=self.window, center=True, pad_mode="constant",
                return_complex=True,
            )  # fmt: skip
            power = spectrum.real.square() + spectrum.imag.square()
            level = 10.0 * torch.log10(torch.clamp(self.filters @ power, min=10.0 ** (floor / 10.0)))
            if lengths is not None:
                past = torch.arange(level.shape[-1], device=x.device) >= self.frames(lengths)[:, None]
                level = level.masked_fill(past[:, None, :], floor)
        return level
