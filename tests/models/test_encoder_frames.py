"""A pretrained encoder as a channel: aligned in time, indifferent to company, cached where it never changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offkey.audio.cache import ArrayCache
from offkey.audio.mel import LogMel, MelConfig
from offkey.encoders import build_encoder
from offkey.encoders.base import Encoder
from offkey.encoders.cache import FeatureCache
from offkey.models.config import DiscriminativeConfig
from offkey.models.discriminative import Discriminative
from offkey.models.encoder_frames import EncoderFrames
from offkey.types import Batch

RATE, HOP = 16000, 512
SMALL = {
    "encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4,
    "embed_dim": 24, "conv_pos": 8, "conv_pos_groups": 4,
}  # fmt: skip


@pytest.fixture
def beats() -> Encoder:
    torch.manual_seed(0)
    return build_encoder("beats", SMALL).requires_grad_(False).eval()


def noise(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def batch_of(*waves: Tensor) -> Batch:
    lengths = torch.tensor([len(wave) for wave in waves])
    return Batch(nn.utils.rnn.pad_sequence(list(waves), batch_first=True), lengths, None, torch.arange(len(waves)))


def frames_of(length: int) -> int:
    return length // HOP + 1


@pytest.mark.parametrize("name", ["beats", "efficientat"])
def test_a_clip_has_the_same_frames_in_any_company(name: str) -> None:
    torch.manual_seed(0)
    architecture = SMALL if name == "beats" else {"width_mult": 0.1}
    stream = EncoderFrames(build_encoder(name, architecture).eval(), RATE, HOP, 24).eval()
    waves = noise(40000, 17000, 23456)
    batch = batch_of(*waves)
    together = stream(batch.waveform, batch.lengths, frames_of(40000))
    assert together.shape == (3, 24, frames_of(40000))
    for wave, found in zip(waves, together, strict=True):
        own = frames_of(len(wave))
        alone = stream(wave[None], torch.tensor([len(wave)]), own)
        torch.testing.assert_close(found[:, :own], alone[0], atol=1e-5, rtol=1e-4)


def test_frames_lie_where_their_patches_sound(beats: Encoder) -> None:
    stream = EncoderFrames(beats, RATE, HOP, 1)
    moments = torch.arange(10) * beats.patch_seconds + beats.patch_offset
    # a feature that tells the second at which its patch is centred must come out as the second of each frame
    found = stream._interpolate(moments.float()[None, None], torch.tensor([10]), 50)[0, 0]
    seconds = torch.arange(50) * HOP / RATE
    torch.testing.assert_close(found, seconds.clamp(moments[0], moments[-1]).float(), atol=1e-5, rtol=1e-5)
    short = stream._interpolate(moments.float()[None, None], torch.tensor([3]), 50)[0, 0]
    torch.testing.assert_close(short, seconds.clamp(moments[0], moments[2]).float(), atol=1e-5, rtol=1e-5)


def test_a_click_is_heard_at_its_time(beats: Encoder) -> None:
    stream = EncoderFrames(beats, RATE, HOP, 24).eval()
    wave = noise(48000)[0]
    clicked = wave.clone()
    clicked[32000:32400] += 0.8
    plain, other = (stream(x[None], torch.tensor([48000]), frames_of(48000))[0] for x in (wave, clicked))
    change = (other - plain).square().sum(0)
    assert abs(int(change.argmax()) * HOP / RATE - 2.0) < 0.17  # one patch


def test_a_clip_shorter_than_a_patch_is_heard_with_silence_behind(beats: Encoder) -> None:
    stream = EncoderFrames(beats, RATE, HOP, 24).eval()
    wave = noise(beats.shortest - 900)[0]
    alone = stream(wave[None], torch.tensor([len(wave)]), frames_of(len(wave)))
    padded = nn.functional.pad(wave, (0, 900))
    by_hand = stream(padded[None], torch.tensor([len(padded)]), frames_of(len(wave)))
    torch.testing.assert_close(alone, by_hand)
    batch = batch_of(wave, noise(20000)[0])
    together = stream(batch.waveform, batch.lengths, frames_of(20000))
    torch.testing.assert_close(together[:1, :, : alone.shape[-1]], alone, atol=1e-5, rtol=1e-4)


class Counted(FeatureCache):
    calls = 0

    def frames(self, *arguments: Any) -> Tensor:
        self.calls += 1
        return super().frames(*arguments)


def test_frames_of_a_frozen_encoder_come_from_the_cache_where_clips_repeat(beats: Encoder, tmp_path: Path) -> None:
    batch = batch_of(*noise(20000, 30000))
    cache = Counted(ArrayCache(tmp_path))
    stream = EncoderFrames(beats, RATE, HOP, 24, cache=cache)
    plain = EncoderFrames(beats, RATE, HOP, 24)
    plain.load_state_dict(stream.state_dict())
    stream.train()
    stream(batch.waveform, batch.lengths, 59)
    assert cache.calls == 0  # augmented clips never come again: they would fill the disk
    stream.cache_training = True
    kept = stream(batch.waveform, batch.lengths, 59)
    assert cache.calls == 1
    stream.eval(), plain.eval()
    torch.testing.assert_close(stream(batch.waveform, batch.lengths, 59), kept)
    torch.testing.assert_close(plain(batch.waveform, batch.lengths, 59), kept, atol=1e-5, rtol=1e-4)
    assert cache.calls == 2
    beats.blocks[1].requires_grad_(True)
    stream(batch.waveform, batch.lengths, 59)
    assert cache.calls == 2  # what learns is never looked up


def test_gradients_pass_into_the_encoder_and_its_rates_are_told(beats: Encoder) -> None:
    beats.blocks[1].requires_grad_(True)
    stream = EncoderFrames(beats, RATE, HOP, 24, layer_decay=0.5).train()
    model = Discriminative(
        LogMel(RATE, MelConfig(n_mels=24)),
        DiscriminativeConfig(embedding=8, width=0.125, bottlenecks=((2, 64, 1, 2), (2, 64, 1, 2))),
        extra_streams=[stream],
        tell_modalities=True,
    )
    assert model.encoder is beats
    batch = batch_of(*noise(20000, 30000))
    said = model(batch)
    assert said.modalities is not None
    assert said.modalities.shape == (2, 3, 24)
    said.embedding.square().sum().backward()
    learns = {id(weight) for weight in beats.blocks[1].parameters()}
    assert {id(weight) for weight, _ in model.encoder_rates()} == learns
    for weight in beats.parameters():
        assert (weight.grad is not None) == (id(weight) in learns)
    assert stream.projection.weight.grad is not None


def test_modalities_are_means_over_a_clips_own_frames() -> None:
    torch.manual_seed(0)
    model = Discriminative(
        LogMel(RATE, MelConfig(n_mels=24)),
        DiscriminativeConfig(embedding=8, width=0.125, bottlenecks=((2, 64, 1, 2), (2, 64, 1, 2))),
        tell_modalities=True,
    ).eval()
    waves = noise(20000, 9000)
    told = model(batch_of(*waves)).modalities
    for row, wave in zip(told, waves, strict=True):
        lengths = torch.tensor([len(wave)])
        by_hand = [model.spectrogram(wave[None], lengths).mean(-1)[0], model.tgram(wave[None]).mean(-1)[0]]
        torch.testing.assert_close(row, torch.stack(by_hand), atol=1e-4, rtol=1e-4)
