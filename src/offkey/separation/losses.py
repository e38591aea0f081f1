"""How good a separation is: pure functions of waveforms, and the loss that training follows.

The two stems have fixed roles, so nothing is permuted. Every term is bounded below, so that no single clip, and no
silent stem, outweighs the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offkey.separation.recipe import LossConfig
from offkey.types import Float

__all__ = ["compressed_distance", "separation_loss", "si_snr", "snr_loss"]

_TINY = 1e-12
_INAUDIBLE = 1e-20  # power of a sample: below it nothing is told apart from digital silence
_SILENT = 1e-6  # of the mixture's power: a stem below -60 dB is silence


def si_snr(estimate: Float[Tensor, "*b T"], reference: Float[Tensor, "*b T"]) -> Float[Tensor, "*b"]:
    """Scale-invariant signal-to-noise ratio in dB, of signals without their mean.

    Le Roux et al., "SDR - half-baked or well done?" (ICASSP 2019), equation 3. At most about 120 dB; where the
    reference or the estimate is silent, -120 dB or less, but always a number.
    """
    return _scale_invariant(estimate, reference, 0.0)


def _scale_invariant(estimate: Tensor, reference: Tensor, share: float) -> Tensor:
    """`si_snr` that saturates where the error is `share` of the projected reference."""
    estimate = estimate - estimate.mean(-1, keepdim=True)
    reference = reference - reference.mean(-1, keepdim=True)
    energy = reference.square().sum(-1, keepdim=True)
    floor = _TINY * (energy + estimate.square().sum(-1, keepdim=True)) + _INAUDIBLE * estimate.shape[-1]
    projection = (estimate * reference).sum(-1, keepdim=True) / (energy + floor) * reference
    error = (estimate - projection).square().sum(-1)
    signal = projection.square().sum(-1)
    return 10.0 * (torch.log10(signal + _TINY * floor[..., 0]) - torch.log10(error + share * signal + floor[..., 0]))


def snr_loss(
    estimate: Float[Tensor, "*b T"], reference: Float[Tensor, "*b T"], mixture: Float[Tensor, "*b T"], floor_db: float
) -> Float[Tensor, "*b"]:
    """Power of the error against the reference's, dB, not below about `floor_db`.

    A silent reference is measured against the mixture instead, as Wisdom et al. do for sources that are not there
    ("What's all the fuss about free universal sound separation data?", ICASSP 2021, equation 2).
    """
    share = 10.0 ** (floor_db / 10.0)
    whole = mixture.square().sum(-1)
    own = reference.square().sum(-1)
    against = torch.where(own > _SILENT * whole, own, whole) + _INAUDIBLE * estimate.shape[-1]
    return 10.0 * torch.log10((estimate - reference).square().sum(-1) / against + share)


def compressed_distance(
    estimate: Float[Tensor, "*b T"],
    reference: Float[Tensor, "*b T"],
    mixture: Float[Tensor, "*b T"],
    exponent: float,
    n_fft: int = 512,
) -> Float[Tensor, "*b"]:
    """Mean squared distance of spectra whose magnitudes are raised to `exponent`, against the mixture's power.

    The mean of the distances with and without phase (Ephrat et al., "Looking to listen", 2018, and later speech
    enhancement). Levels are relative to the mixture's; 0 for equal waveforms, bounded for silent ones.
    """
    level = mixture.square().mean(-1, keepdim=True).sqrt() + 1e-8
    left, right = (_compressed(wave / level, exponent, n_fft) for wave in (estimate, reference))
    with_phase = (left[0] - right[0]).square() + (left[1] - right[1]).square()
    without = (left[2] - right[2]).square()
    return (0.5 * (with_phase + without)).mean((-2, -1))


def _compressed(waveform: Tensor, exponent: float, n_fft: int) -> tuple[Tensor, Tensor, Tensor]:
    """Real part, imaginary part and magnitude (*b, F, T') of a compressed spectrum."""
    flat = waveform.reshape(-1, waveform.shape[-1])
    window = torch.hann_window(n_fft, device=flat.device, dtype=flat.dtype)
    spectrum = torch.stft(
        flat, n_fft, n_fft // 2, window=window, pad_mode="constant", normalized=True, return_complex=True
    )
    spectrum = spectrum.reshape(*waveform.shape[:-1], *spectrum.shape[-2:])
    # the small power keeps the root's slope finite where nothing sounds
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-8).sqrt()
    squeezed = magnitude**exponent
    return spectrum.real / magnitude * squeezed, spectrum.imag / magnitude * squeezed, squeezed


def separation_loss(
    estimate: Float[Tensor, "B 2 T"], target: Float[Tensor, "B 2 T"], config: LossConfig
) -> Float[Tensor, " B"]:
    """Loss of each clip: foreground, plus `background_weight` times background.

    With `si_snr`, a silent stem has no direction to compare: it counts by its level alone.
    """
    mixture = target.sum(1, keepdim=True).expand_as(target)
    if config.kind == "spectrum":
        term = compressed_distance(estimate, target, mixture, config.exponent)
    else:
        share = 10.0 ** (config.floor_db / 10.0)
        sounds = target.square().sum(-1) > _SILENT * mixture.square().sum(-1)
        level = snr_loss(estimate, target, mixture, config.floor_db)
        direction = -_scale_invariant(estimate, target, share)
        term = torch.where(sounds, direction + config.level_weight * level, level)
    return term[:, 0] + config.background_weight * term[:, 1]
