"""Approach 2's net: the same answer in any company and from either way of cutting, and no reward for collapsing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from offkey.audio.mel import LogMel, MelConfig
from offkey.encoders import build_encoder
from offkey.models.encoder_frames import EncoderFrames
from offkey.models.masking import frame_mask
from offkey.models.reconstructive import ConvAutoencoder, Reconstructive, ReconstructiveConfig, frozen_frames
from offkey.models.windows import cover, cut_frames, cut_samples, own_frames, window_samples
from offkey.types import Batch, OffkeyError

RATE, HOP, KERNEL, WINDOW = 4000, 100, 256, 8
SMALL = ReconstructiveConfig(window=WINDOW, latent=6, width=16, halvings=2, tgram_channels=10, tgram_layers=2)


class Levels(nn.Module):
    """Stands for a frozen encoder: five wide bands, far from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel(RATE, MelConfig(n_fft=KERNEL, hop=HOP, n_mels=5))
        self.calls = 0

    def forward(self, waveform: Tensor, lengths: Tensor, frames: int) -> Tensor:
        self.calls += 1
        return 100.0 + self.mel(waveform, lengths)


def make(config: ReconstructiveConfig = SMALL, streams: bool = True) -> Reconstructive:
    torch.manual_seed(0)
    mel = LogMel(RATE, MelConfig(n_fft=KERNEL, hop=HOP, n_mels=12))
    return Reconstructive(mel, config, [Levels()] if streams else [], [5] if streams else [])


def noise(*lengths: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) * 0.1 for length in lengths]


def batch_of(*waves: Tensor) -> Batch:
    lengths = torch.tensor([len(wave) for wave in waves])
    return Batch(nn.utils.rnn.pad_sequence(list(waves), batch_first=True), lengths, None, torch.arange(len(waves)))


def windows_of(model: Reconstructive, batch: Batch) -> Batch:
    """The windows that scoring looks at, cut beforehand."""
    windows = cover(model.mel.frames(batch.lengths), WINDOW)
    fixed = model.fixed_features(batch.waveform, batch.lengths)
    return Batch(
        cut_samples(batch.waveform, batch.lengths, windows, WINDOW, HOP, KERNEL),
        (windows.frames - 1) * HOP + KERNEL, None, windows.clip, cut_frames(fixed, windows, WINDOW),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Reconstructive:
    model = make(SMALL.model_copy(update={"use_log_mel": True}))
    model.fit_normalisation([batch_of(*noise(4000, 2000))])
    for name, tensor in model.named_buffers():  # norms that do something, so that a masking mistake shows
        if "running" in name:
            tensor.copy_(0.2 * torch.rand(tensor.shape) + (0.5 if "var" in name else -0.3))
    return model.eval()


def test_a_clip_has_the_same_answer_in_any_company(model: Reconstructive) -> None:
    waves = noise(4000, 1, 400, 99, WINDOW * HOP - 1, WINDOW * HOP, 2777)  # 400 samples are 0.1 s
    batch = batch_of(*waves)
    batch.waveform[2, 400:] = 7.0
    with torch.no_grad():
        together = model(batch)
        assert together.frame_error.shape == (7, 4000 // HOP + 1)
        for row, wave in enumerate(waves):
            alone = model(batch_of(wave))
            own = len(wave) // HOP + 1
            torch.testing.assert_close(together.embedding[row], alone.embedding[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(together.frame_error[row, :own], alone.frame_error[0], atol=1e-5, rtol=1e-4)
            assert (together.frame_error[row, own:] == 0).all()
            assert (alone.frame_error > 0).all()
    assert together.embedding.std(0).min() > 1e-4


def test_many_windows_are_taken_in_parts(model: Reconstructive, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(*noise(4000, 1300))
    with torch.no_grad():
        whole = model(batch)
        monkeypatch.setattr("offkey.models.reconstructive._AT_ONCE", 2)
        parts = model(batch)
    torch.testing.assert_close(parts.frame_error, whole.frame_error, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.embedding, whole.embedding, atol=1e-5, rtol=1e-5)


def test_windows_cut_beforehand_get_the_numbers_of_the_whole_clip(model: Reconstructive) -> None:
    batch = batch_of(*noise(WINDOW * HOP * 3 - 1, 350))  # whole windows: no frame is seen twice
    windows = windows_of(model, batch)
    stream = model.streams[0]
    before = stream.calls
    with torch.no_grad():
        cut = model(windows)
        assert stream.calls == before
        whole = model(batch)
    torch.testing.assert_close(cut.frame_error[:3].reshape(-1), whole.frame_error[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cut.frame_error[3], whole.frame_error[1, :WINDOW], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cut.embedding[:3].mean(0), whole.embedding[0], atol=1e-5, rtol=1e-5)


def test_error_is_the_mean_square_over_channels_of_a_standardised_map(model: Reconstructive) -> None:
    batch = windows_of(model, batch_of(*noise(1600)))
    mask = frame_mask(own_frames(batch.lengths, HOP, KERNEL), WINDOW)
    with torch.no_grad():
        target, missing = model.window_features(batch.waveform, batch.features, mask)
        rebuilt, latent = model.autoencoder(target)
        told = model(batch)
    fixed, learnt = target[:, :17], target[:, 17:]
    torch.testing.assert_close(fixed, (batch.features - model.fixed_mean[:, None]) / model.fixed_std[:, None])
    assert learnt.shape[1] == 10
    torch.testing.assert_close(learnt.mean(-1), torch.zeros(3, 10), atol=1e-5, rtol=0)
    torch.testing.assert_close(learnt.square().mean(-1), torch.ones(3, 10), atol=1e-3, rtol=0)
    assert (missing < 1e-3).all()
    slow = sum((rebuilt[:, channel] - target[:, channel]) ** 2 for channel in range(27)) / 27 + missing[:, None]
    torch.testing.assert_close(told.frame_error, slow)
    assert torch.equal(told.embedding, latent)


def test_errors_by_band_are_those_of_the_log_mel_channels() -> None:
    config = SMALL.model_copy(update={"use_log_mel": True, "use_tgram": False})
    model = make(config, streams=False).eval()
    batch = batch_of(*noise(9000, 21000))
    error, maps = model(batch).frame_error, model.error_map(batch)
    assert error is not None
    assert maps.shape == (2, model.mel.config.n_mels, error.shape[1])
    torch.testing.assert_close(maps.mean(1), error, atol=1e-5, rtol=1e-4)
    alone = model.error_map(batch_of(*noise(9000, 21000)[:1]))
    torch.testing.assert_close(maps[:1, :, : alone.shape[2]], alone, atol=1e-4, rtol=1e-3)
    assert make(SMALL.model_copy(update={"use_log_mel": True})).error_map(batch).shape == maps.shape
    with pytest.raises(OffkeyError, match="use_log_mel"):
        make(SMALL.model_copy(update={"use_log_mel": False})).error_map(batch)


def test_past_its_own_frames_a_short_window_shows_the_net_nothing(model: Reconstructive) -> None:
    batch = windows_of(model, batch_of(*noise(250)))  # 3 frames
    mask = frame_mask(own_frames(batch.lengths, HOP, KERNEL), WINDOW)
    with torch.no_grad():
        target, _ = model.window_features(batch.waveform, batch.features, mask)
    assert mask.sum() == 3
    assert (target[:, :, 3:] == 0).all()
    assert (target[:, :, :3] != 0).any(1).all()


def test_normalisation_is_that_of_all_own_frames_however_they_come() -> None:
    waves = noise(4000, 900, 2300, seed=5)
    one, other = make(), make()
    one.fit_normalisation([batch_of(*waves[:2]), batch_of(waves[2])])
    stream = one.streams[0]
    frames = torch.cat([stream(wave[None], torch.tensor([len(wave)]), 0)[0] for wave in waves], 1)
    torch.testing.assert_close(one.fixed_mean, frames.mean(1), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(one.fixed_std, frames.std(1, correction=0), atol=1e-3, rtol=1e-4)
    # whole windows hold every frame once
    whole = batch_of(*noise(WINDOW * HOP * 3 - 1, 350))
    one.fit_normalisation([whole])
    other.fit_normalisation([windows_of(other, whole)])
    torch.testing.assert_close(other.fixed_mean, one.fixed_mean)
    torch.testing.assert_close(other.fixed_std, one.fixed_std)
    with pytest.raises(OffkeyError, match="no training clip"):
        other.fit_normalisation([])


def test_a_channel_that_slept_in_training_does_not_drown_the_others() -> None:
    class Sleeper(nn.Module):
        def forward(self, waveform: Tensor, lengths: Tensor, frames: int) -> Tensor:
            live = torch.randn(len(waveform), 1, frames, generator=torch.Generator().manual_seed(0))
            return torch.cat([live, torch.zeros_like(live)], 1)

    mel = LogMel(RATE, MelConfig(n_fft=KERNEL, hop=HOP, n_mels=12))
    model = Reconstructive(mel, SMALL, [Sleeper(), Levels()], [2, 5])
    model.fit_normalisation([batch_of(*noise(4000))])
    assert float(model.fixed_std[1]) == pytest.approx(0.1 * float(model.fixed_std[0]) / math.sqrt(2), rel=1e-3)
    assert model.fixed_std[2:].min() > 1.0  # another stream's scale is its own


def loss_of(model: Reconstructive, batch: Batch) -> Tensor:
    return model(batch).frame_error.mean()


def naive_loss(model: Reconstructive, batch: Batch) -> Tensor:
    """What the trap looks like: Tgram's own output is the target, neither standardised nor detached."""
    assert model.tgram is not None
    x = model.tgram(batch.waveform)
    return (model.autoencoder(x)[0] - x).square().mean()


def learn(model: Reconstructive, batch: Batch, loss: Callable[[Reconstructive, Batch], Tensor], steps: int) -> None:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(weights, 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(model, batch).backward()
        optimiser.step()


def tones(count: int = 48) -> Batch:
    """Windows of tones whose level swings, so that there is something to foresee."""
    generator = torch.Generator().manual_seed(3)
    size = window_samples(WINDOW, HOP, KERNEL)
    time = torch.arange(size) / RATE
    pitch = 200 * torch.randint(1, 4, (count, 1), generator=generator)
    phase = 6.3 * torch.rand(count, 1, generator=generator)
    wave = torch.sin(6.2832 * pitch * time) * (1 + 0.9 * torch.sin(6.2832 * 5 * time + phase))
    return Batch(0.1 * wave, torch.full((count,), size), None, torch.arange(count), torch.zeros(count, 0, WINDOW))


def shrunk(model: Reconstructive, factor: float) -> Reconstructive:
    other = make(model.config, streams=False)
    other.load_state_dict(model.state_dict())
    assert other.tgram is not None
    other.tgram.convolutions[-1].weight.data *= factor
    return other


class Constant(nn.Module):
    """A front end that says the same at every moment, whatever it hears."""

    def forward(self, waveform: Tensor, frames: Tensor) -> Tensor:
        return torch.linspace(-3, 3, 10)[:, None].expand(len(waveform), 10, WINDOW)


@pytest.mark.parametrize("factor", [1e-3, 1e-5, 0.0, None], ids=["1e-3", "1e-5", "zero", "constant"])
def test_a_collapsed_front_end_is_penalised(factor: float | None) -> None:
    model, batch = make(streams=False), tones()
    learn(model, batch, loss_of, 40)
    live = float(loss_of(model, batch).detach())
    assert live < 0.5
    if factor is None:
        collapsed = make(streams=False)
        collapsed.tgram = Constant()
    else:
        collapsed = shrunk(model, factor)
    at_once = float(loss_of(collapsed, batch).detach())
    assert at_once > live - 1e-3  # shrinking gains nothing
    if factor != 1e-3:  # there, nothing has been lost yet: the scale does not count
        # nor does it once the autoencoder has come to know the collapsed features
        learn_only_autoencoder(collapsed, batch)
        assert float(loss_of(collapsed, batch).detach()) > 0.98 > 1.5 * live


def learn_only_autoencoder(model: Reconstructive, batch: Batch) -> None:
    if model.tgram is not None:
        model.tgram.requires_grad_(False)
    learn(model, batch, loss_of, 40)


def test_the_gradient_does_not_shrink_the_front_end_and_leads_out_of_collapse() -> None:
    model, batch = make(streams=False), tones()

    def pull(loss: Callable[[Reconstructive, Batch], Tensor], model: Reconstructive) -> float:
        """By how much the loss falls as Tgram's last layer shrinks, in units of the loss."""
        assert model.tgram is not None
        weight = model.tgram.convolutions[-1].weight
        value = loss(model, batch)
        (gradient,) = torch.autograd.grad(value, weight)
        return float(((gradient * weight).sum() / value).detach())

    with torch.no_grad():  # a decoder that knows the mean only: all that is left is the target's own size
        model.autoencoder.leave.weight.zero_()
        model.autoencoder.leave.bias.zero_()
    assert pull(naive_loss, model) == pytest.approx(2.0, rel=1e-3)
    assert abs(pull(loss_of, model)) < 1e-3
    assert pull(loss_of, shrunk(model, 1e-4)) < -0.1


def test_without_detaching_and_standardising_the_front_end_does_collapse() -> None:
    def size(model: Reconstructive) -> float:
        assert model.tgram is not None
        return float(model.tgram(batch.waveform).detach().std(-1).mean())

    batch = tones()
    trapped, safe = make(streams=False), make(streams=False)
    at_first = size(trapped)
    cost = float(naive_loss(trapped, batch).detach())
    learn(trapped, batch, naive_loss, 60)
    learn(safe, batch, loss_of, 60)
    assert size(trapped) < 0.3 * at_first
    assert float(naive_loss(trapped, batch).detach()) < 0.1 * cost
    assert size(safe) > 0.8 * at_first
    # the variant's loss falls with the scale alone
    small = make(streams=False)
    assert small.tgram is not None
    small.tgram.convolutions[-1].weight.data *= 1e-3
    small.autoencoder.leave.weight.data.zero_()
    small.autoencoder.leave.bias.data.zero_()
    assert float(naive_loss(small, batch).detach()) < 1e-5 * cost


def test_every_weight_learns_from_the_error_through_the_input() -> None:
    model = make()
    model.fit_normalisation([batch_of(*noise(4000))])
    model.train()(batch_of(*noise(4000, 2500))).frame_error.sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_a_whole_clip_and_its_windows_train_alike() -> None:
    gradients = []
    for cut in (False, True):
        model = make()
        batch = batch_of(*noise(WINDOW * HOP * 4 - 1))
        model.fit_normalisation([batch])
        model.train()(windows_of(model, batch) if cut else batch).frame_error.sum().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("samples", [0, 3000], ids=["digital zeros", "then sound"])
def test_silence_gives_numbers(model: Reconstructive, samples: int) -> None:
    wave = torch.zeros(4000)
    wave[1000 : 1000 + samples] = noise(3000)[0][:samples]
    told = model(batch_of(wave))
    told.frame_error.sum().backward()
    assert torch.isfinite(told.frame_error).all()
    assert torch.isfinite(told.embedding).all()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
    model.zero_grad()


def test_frozen_frames_are_the_encoders_own_drawn_to_the_mel_frames() -> None:
    encoder = build_encoder("efficientat", {"width_mult": 0.1})
    stream = frozen_frames(encoder, 16000, 512).eval()
    assert not any(weight.requires_grad for weight in stream.parameters())
    wave = noise(40000)[0][None]
    lengths = torch.tensor([40000])
    found = stream(wave, lengths, 79)
    assert found.shape == (1, encoder.dimension, 79)
    other = EncoderFrames(encoder, 16000, 512, encoder.dimension)
    other.norm.requires_grad_(False)
    columns = other._columns(wave, lengths).transpose(1, 2)
    torch.testing.assert_close(
        found, other._interpolate(columns, encoder.patch_counts(stream.resample.lengths(lengths)), 79)
    )
    mel = LogMel(16000)
    config = SMALL.model_copy(update={"window": 16})
    model = Reconstructive(mel, config, [stream], [encoder.dimension])
    assert model.encoder is encoder
    assert list(model.encoder_rates()) == []
    model.train()
    assert not encoder.training
    with torch.no_grad():
        assert model.eval()(batch_of(noise(1600)[0])).frame_error.shape == (1, 4)  # 0.1 s


def test_the_net_is_light_and_its_size_is_as_documented() -> None:
    weights = [
        sum(weight.numel() for weight in ConvAutoencoder(channels, 32, 32).parameters()) for channels in (896, 512)
    ]
    assert [round(count / 1e6, 2) for count in weights] == [0.95, 0.82]


def test_nothing_to_rebuild_and_odd_windows_are_refused() -> None:
    with pytest.raises(OffkeyError, match="nothing to reconstruct"):
        make(SMALL.model_copy(update={"use_tgram": False}), streams=False)
    with pytest.raises(ValueError, match="window 20 is not a multiple of 8"):
        ReconstructiveConfig(window=20)
    model = make(SMALL.model_copy(update={"use_tgram": False})).eval()
    with torch.no_grad():
        told = model(batch_of(*noise(900, 2000)))
    assert (told.frame_error[1] > 0).all()
