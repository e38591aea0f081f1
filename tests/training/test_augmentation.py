"""Augmentation keeps its promises: what it changes, by how much, and that the same moment draws the same."""

import numpy as np
import pytest
import torch

from offkey.training.augmentation import SpecAugment, StreamExchange, WaveformAugmentation, coloured_noise
from offkey.training.config import (
    AugmentationConfig,
    FeatExConfig,
    GainConfig,
    MixupConfig,
    NoiseConfig,
    PolarityConfig,
    ShiftConfig,
    SpecAugmentConfig,
)
from offkey.training.randomness import Moment
from offkey.types import Batch, OffkeyError

RATE = 1000
LENGTHS = (900, 400, 650, 1, 900, 333)


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    waveform = torch.zeros(len(LENGTHS), max(LENGTHS))
    for row, length in enumerate(LENGTHS):
        waveform[row, :length] = torch.randn(length, generator=generator) * 0.1 + 0.01
    return Batch(waveform, torch.tensor(LENGTHS), None, torch.arange(len(LENGTHS)))


def augmentation(moment: Moment | None = None, **parts: object) -> WaveformAugmentation:
    made = WaveformAugmentation(AugmentationConfig(**parts), RATE)
    made.seek(moment or Moment(0, 1, 2))
    return made


EVERYTHING = {
    "gain": GainConfig(enabled=True, probability=0.7),
    "noise": NoiseConfig(enabled=True, probability=0.7),
    "shift": ShiftConfig(enabled=True, probability=0.7),
    "polarity": PolarityConfig(enabled=True),
    "mixup": MixupConfig(enabled=True, probability=1.0),
}


def test_nothing_is_changed_until_it_is_enabled() -> None:
    batch = make_batch()
    changed, mix = augmentation()(batch)
    assert changed.waveform is batch.waveform
    assert mix is None


@pytest.mark.parametrize("part", list(EVERYTHING))
def test_each_part_changes_clips_and_never_their_padding_or_the_input(part: str) -> None:
    batch = make_batch()
    before = batch.waveform.clone()
    changed, _ = augmentation(**{part: EVERYTHING[part]})(batch)
    assert torch.equal(batch.waveform, before)
    assert not torch.equal(changed.waveform, before)
    for row, length in enumerate(LENGTHS):
        assert (changed.waveform[row, length:] == 0).all()


def test_a_moment_draws_the_same_whatever_the_global_state() -> None:
    results = []
    for seed, moment in ((1, Moment(0, 1, 2)), (2, Moment(0, 1, 2)), (1, Moment(0, 1, 3)), (1, Moment(0, 1, 2, 1))):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(augmentation(moment, **EVERYTHING)(make_batch())[0].waveform)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[3])


def test_switching_one_part_off_leaves_the_draws_of_others_alone() -> None:
    gain = {"gain": EVERYTHING["gain"]}
    alone = augmentation(**gain)(make_batch())[0].waveform
    with_sign = augmentation(**gain, polarity=PolarityConfig(enabled=True))(make_batch())[0].waveform
    torch.testing.assert_close(alone.abs(), with_sign.abs())


def test_gain_stays_within_its_range() -> None:
    config = GainConfig(enabled=True, min_db=-3.0, max_db=5.0, probability=1.0)
    ratios = []
    for step in range(20):
        changed, _ = augmentation(Moment(0, 0, step), gain=config)(make_batch())
        ratios.append((changed.waveform.norm(dim=1) / make_batch().waveform.norm(dim=1)).numpy())
    decibels = 20 * np.log10(np.concatenate(ratios))
    assert decibels.min() >= -3.001
    assert decibels.max() <= 5.001
    assert np.ptp(decibels) > 6


@pytest.mark.parametrize("kind", ["white", "pink", "brown", "pool"])
def test_noise_comes_at_the_ratio_that_was_asked_for_and_keeps_the_level(kind: str) -> None:
    config = NoiseConfig(enabled=True, min_snr_db=10.0, max_snr_db=10.0, kinds=(kind,), probability=1.0)
    pool = [np.random.default_rng(0).standard_normal(30011).astype(np.float32)]
    made = WaveformAugmentation(AugmentationConfig(noise=config), RATE, pool)
    clip = torch.randn(4, 32000, generator=torch.Generator().manual_seed(1))
    batch = Batch(clip, torch.full((4,), 32000), None, torch.arange(4))
    changed = made(batch)[0].waveform
    torch.testing.assert_close(changed.square().sum(1), clip.square().sum(1))
    # the clip and the noise are close to orthogonal: the clip's share is what the mixture projects onto it
    share = (changed * clip).sum(1, keepdim=True) / clip.square().sum(1, keepdim=True)
    noise = changed - share * clip
    ratio = 10 * torch.log10((share * clip).square().sum(1) / noise.square().sum(1))
    torch.testing.assert_close(ratio, torch.full((4,), 10.0), atol=0.4, rtol=0)


def test_a_silent_clip_stays_silent() -> None:
    batch = make_batch()
    silent = batch._replace(waveform=torch.zeros_like(batch.waveform))
    config = NoiseConfig(enabled=True, probability=1.0)
    assert (augmentation(noise=config)(silent)[0].waveform == 0).all()


def test_noise_from_an_empty_pool_is_refused() -> None:
    with pytest.raises(OffkeyError, match="no noise recording"):
        augmentation(noise=NoiseConfig(enabled=True, kinds=("pool",)))


def test_coloured_noise_falls_as_its_name_says() -> None:
    noise = coloured_noise(3, 2**16, [0.0, 1.0, 2.0], torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise.square().mean(1), torch.ones(3))
    power = torch.fft.rfft(noise).abs().square()
    octaves = torch.stack([power[:, 2**k : 2 ** (k + 1)].mean(1) for k in range(6, 14)])
    slope = 10 * torch.log10(octaves[-1] / octaves[0]) / 7
    torch.testing.assert_close(slope, torch.tensor([0.0, -3.01, -6.02]), atol=0.25, rtol=0)


def test_shift_rolls_each_clip_within_itself() -> None:
    batch = make_batch()
    changed, _ = augmentation(shift=ShiftConfig(enabled=True, probability=1.0))(batch)
    rolled = []
    for row, length in enumerate(LENGTHS):
        own, now = batch.waveform[row, :length].numpy(), changed.waveform[row, :length].numpy()
        places = [shift for shift in range(length) if np.array_equal(np.roll(own, shift), now)]
        assert places
        rolled.append(places[0])
    assert sum(place > 0 for place in rolled) >= 4


def test_shift_has_a_limit() -> None:
    config = ShiftConfig(enabled=True, probability=1.0, max_seconds=0.005)
    batch = make_batch()
    changed, _ = augmentation(shift=config)(batch)
    for row in (0, 1, 2):
        own, now = batch.waveform[row, : LENGTHS[row]].numpy(), changed.waveform[row, : LENGTHS[row]].numpy()
        assert any(np.array_equal(np.roll(own, shift), now) for shift in range(-5, 6))


def test_mixup_is_the_sum_that_it_says_it_is() -> None:
    batch = make_batch()
    changed, mix = augmentation(mixup=MixupConfig(enabled=True, alpha=1.0, probability=1.0))(batch)
    assert mix is not None
    assert sorted(mix.partner.tolist()) == list(range(len(LENGTHS)))
    assert ((mix.weight >= 0) & (mix.weight <= 1)).all()
    for row, length in enumerate(LENGTHS):
        weight, other = mix.weight[row], batch.waveform[mix.partner[row]]
        expected = weight * batch.waveform[row, :length] + (1 - weight) * other[:length]
        torch.testing.assert_close(changed.waveform[row, :length], expected)


def test_mixup_meets_the_share_of_batches_that_was_asked_for() -> None:
    config = MixupConfig(enabled=True, probability=0.3)
    met = [augmentation(Moment(0, 0, step), mixup=config)(make_batch())[1] is not None for step in range(200)]
    assert 0.2 < np.mean(met) < 0.4


def test_spec_augment_masks_whole_stretches_within_own_frames() -> None:
    config = SpecAugmentConfig(enabled=True, time_masks=1, frequency_masks=1, time_share=0.3, frequency_share=0.2)
    module = SpecAugment(config).train()
    frames = torch.tensor([100, 50, 7])
    widths = []
    for step in range(60):
        module.seek(Moment(0, 0, step))
        hidden = (module(torch.ones(3, 20, 100), frames) == 0).numpy()
        for row, own in enumerate(frames.tolist()):
            time, band = hidden[row].all(0), hidden[row].all(1)
            assert not time[own:].any()
            assert np.array_equal(hidden[row], time[None, :] | band[:, None])
            for marks, size, share in ((time, own, 0.3), (band, 20, 0.2)):
                places = np.flatnonzero(marks)
                assert len(places) <= share * size
                assert not len(places) or np.ptp(places) == len(places) - 1
            widths.append(time.sum())
    assert max(widths) == 30
    assert min(widths) == 0


def test_spec_augment_is_off_in_eval_mode_and_until_enabled() -> None:
    x, frames = torch.ones(2, 8, 30), torch.tensor([30, 30])
    assert SpecAugment(SpecAugmentConfig(enabled=True)).eval()(x, frames) is x
    assert SpecAugment(SpecAugmentConfig()).train()(x, frames) is x


def test_noise_recordings_take_the_place_of_generated_noise() -> None:
    config = NoiseConfig(enabled=True, probability=1.0, min_snr_db=0.0, max_snr_db=0.0)
    tone = np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE).astype(np.float32)
    made = WaveformAugmentation(AugmentationConfig(noise=config), RATE, [tone])
    batch = Batch(torch.randn(8, RATE) * 1e-3, torch.full((8,), RATE), None, torch.arange(8))
    spectrum = torch.fft.rfft(made(batch)[0].waveform).abs()
    assert (spectrum.argmax(1) == 100).all()


def test_streams_come_whole_from_another_clip_and_begin_anew_where_it_is_shorter() -> None:
    module = StreamExchange(FeatExConfig(enabled=True, probability=0.6)).train()
    frames = torch.tensor([9, 4, 7, 9, 1])
    streams = torch.randn(5, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    before, lenders, shares = streams.clone(), set(), []
    for step in range(40):
        module.seek(Moment(0, 0, step))
        drawn = module(streams, frames)
        assert torch.equal(streams, before)
        if drawn is None:
            continue
        exchanged, partner, met = drawn
        assert sorted(partner.tolist()) == list(range(5))
        assert (partner != torch.arange(5)).all()
        lenders |= set(enumerate(partner.tolist()))
        shares.append(met.float().mean().item())
        for row, own in enumerate(frames.tolist()):
            expected = streams[row].clone()
            other = int(partner[row])
            for frame in range(own if met[row] else 0):
                expected[1:, :, frame] = streams[other, 1:, :, frame % int(frames[other])]
            assert torch.equal(exchanged[row], expected)
    assert len(lenders) == 20  # anybody may lend to anybody else
    assert 0.5 < np.mean(shares) < 0.75


def test_streams_are_exchanged_in_training_alone_among_two_clips_or_more() -> None:
    module = StreamExchange(FeatExConfig(enabled=True, probability=1.0))
    streams, frames = torch.rand(2, 2, 3, 4), torch.tensor([4, 4])
    assert module.eval()(streams, frames) is None
    assert module.train()(streams[:1], frames[:1]) is None
    assert module(streams, frames) is not None
    assert StreamExchange(FeatExConfig()).train()(streams, frames) is None
