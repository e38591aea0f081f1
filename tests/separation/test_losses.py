"""Losses and measures against slow, independent computations, and at the edges where logarithms explode."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offkey.separation.losses import compressed_distance, separation_loss, si_snr, snr_loss
from offkey.separation.recipe import LossConfig


def slow_si_snr(estimate: list[float], reference: list[float]) -> float:
    """By the definition, number by number."""
    count = len(reference)
    e = [value - sum(estimate) / count for value in estimate]
    r = [value - sum(reference) / count for value in reference]
    scale = sum(a * b for a, b in zip(e, r, strict=True)) / sum(b * b for b in r)
    signal = sum((scale * b) ** 2 for b in r)
    error = sum((a - scale * b) ** 2 for a, b in zip(e, r, strict=True))
    return 10.0 * math.log10(signal / error)


@pytest.fixture
def waves() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).standard_normal((2, 2, 4000)).astype(np.float32))


def test_si_snr_equals_its_definition(waves: torch.Tensor) -> None:
    reference = waves[0] + 0.3
    estimate = 0.7 * reference + 0.4 * waves[1]
    for row, value in enumerate(si_snr(estimate.double(), reference.double())):
        assert float(value) == pytest.approx(slow_si_snr(estimate[row].tolist(), reference[row].tolist()), abs=1e-4)


def test_si_snr_knows_no_scale_and_tells_the_ratio_of_unrelated_sounds() -> None:
    time = torch.arange(16000) / 16000
    tone, other = torch.sin(2 * torch.pi * 440 * time), torch.sin(2 * torch.pi * 1000 * time)
    for decibels in (-15.0, 0.0, 20.0):
        noisy = tone + other * 10 ** (-decibels / 20)
        assert float(si_snr(noisy, tone)) == pytest.approx(decibels, abs=0.01)
        assert float(si_snr(-300 * noisy, tone)) == pytest.approx(decibels, abs=0.01)


def test_silence_gives_numbers() -> None:
    sound, silence = torch.randn(1, 800, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 800)
    assert -1000 < float(si_snr(sound, silence)) < -100
    assert -1000 < float(si_snr(silence, sound)) < -100
    assert float(si_snr(sound, sound)) > 80


def test_snr_loss_has_a_floor_and_measures_silence_against_the_mixture(waves: torch.Tensor) -> None:
    clip = waves[0]
    assert torch.allclose(snr_loss(clip, clip, clip, -30.0), torch.tensor(-30.0), atol=1e-3)
    assert torch.allclose(snr_loss(0.9 * clip, clip, clip, -30.0), torch.tensor(-19.6), atol=0.05)
    silent = torch.zeros_like(clip)
    assert torch.allclose(snr_loss(0.1 * clip, silent, clip, -30.0), torch.tensor(-19.6), atol=0.05)


@pytest.mark.parametrize("kind", ["si_snr", "spectrum"])
@pytest.mark.parametrize("silent", [None, 0, 1, (0, 1)])
def test_the_loss_and_its_gradient_stay_finite_and_bounded(
    waves: torch.Tensor, kind: str, silent: int | tuple[int, int] | None
) -> None:
    target = waves.clone()
    if silent is not None:
        target[:, silent if isinstance(silent, int) else list(silent)] = 0
    config = LossConfig.model_validate({"kind": kind, "background_weight": 1.0})
    for start in (target, 0 * target, 1e-6 * waves, target.flip(1)):
        estimate = start.clone().requires_grad_()
        loss = separation_loss(estimate, target, config)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert estimate.grad is not None
        assert torch.isfinite(estimate.grad).all()
        assert float(loss.detach().min()) > -70


@pytest.mark.parametrize("kind", ["si_snr", "spectrum"])
def test_roles_are_fixed_and_the_truth_is_best(waves: torch.Tensor, kind: str) -> None:
    config = LossConfig.model_validate({"kind": kind})
    mixture = waves.sum(1, keepdim=True).expand_as(waves)
    right, nothing_done, swapped = (
        float(separation_loss(estimate, waves, config).mean()) for estimate in (waves, 0.5 * mixture, waves.flip(1))
    )
    assert right < nothing_done < swapped


def test_si_snr_loss_still_learns_the_level(waves: torch.Tensor) -> None:
    config = LossConfig()
    right = separation_loss(waves, waves, config)
    assert bool((separation_loss(0.5 * waves, waves, config) > right + 0.5).all())


def test_compressed_distance_by_hand() -> None:
    # one frame's worth of a constant phase: |X|^c is compared, with the mixture's level taken out
    rng = np.random.default_rng(0)
    estimate, reference, mixture = (torch.from_numpy(rng.standard_normal((1, 2048))) for _ in range(3))
    level = float(mixture.square().mean().sqrt()) + 1e-8
    window = np.hanning(513)[:512]
    spectra = []
    for wave in (estimate, reference):
        padded = np.pad(wave[0].numpy() / level, 256)
        frames = [padded[at : at + 512] * window for at in range(0, len(padded) - 511, 256)]
        spectrum = np.fft.rfft(frames, axis=1) / np.sqrt(512)
        spectra.append(np.abs(spectrum) ** 0.3 * np.exp(1j * np.angle(spectrum)))
    left, right = spectra
    wanted = 0.5 * np.mean(np.abs(left - right) ** 2 + (np.abs(left) - np.abs(right)) ** 2)
    assert float(compressed_distance(estimate, reference, mixture, 0.3)) == pytest.approx(wanted, rel=1e-3)
