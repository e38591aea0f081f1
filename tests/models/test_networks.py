"""TgramNet, MobileFaceNet and their assembly: padding never speaks, and the maths is the textbook's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offkey.audio.mel import LogMel, MelConfig
from offkey.models.activation import PReLU
from offkey.models.discriminative import Discriminative, DiscriminativeConfig
from offkey.models.masking import ClipBatchNorm, FrameNorm
from offkey.models.mobilefacenet import MobileFaceNet, pooling_matrix
from offkey.models.tgram import TgramNet
from offkey.types import Batch, OffkeyError

TINY = ((2, 8, 1, 2), (2, 16, 2, 2), (2, 16, 1, 2))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Norms that do something, so that a masking mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.ndim == 1 and tensor.is_floating_point() and "mel" not in name:
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.ndim > 1 and "mel" not in name:
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * tensor.std())
    return module


def batch_of(*waves: torch.Tensor) -> Batch:
    lengths = torch.tensor([len(wave) for wave in waves])
    waveform = nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
    return Batch(waveform, lengths, None, torch.arange(len(waves)))


def noise(*lengths: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) * 0.1 for length in lengths]


def test_frame_norm_is_layer_norm_over_own_frames_with_a_gain_a_channel() -> None:
    norm = FrameNorm(3)
    norm.gain.data = torch.tensor([1.0, 2.0, 3.0])
    norm.offset.data = torch.tensor([0.5, 0.0, -1.0])
    x = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)) * 5 + 2
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    result = norm(x, mask)
    expected = nn.functional.layer_norm(x[1, :, :4], (4,)) * norm.gain[:, None] + norm.offset[:, None]
    torch.testing.assert_close(result[1, :, :4], expected)
    assert (result[1, :, 4:] == 0).all()
    torch.testing.assert_close(result[:1], norm(x[:1]))


def test_clip_batch_norm_without_padding_is_torchs() -> None:
    ours, theirs = ClipBatchNorm(4), nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) + 1
    full = torch.ones(3, 6, dtype=torch.bool)
    masked = ClipBatchNorm(4)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(masked(x, full), ours(x))
    torch.testing.assert_close(masked.running_var, theirs.running_var)
    torch.testing.assert_close(masked.running_mean, theirs.running_mean)


def test_clip_batch_norm_learns_nothing_from_padding() -> None:
    x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    wide = torch.cat([x, torch.full((2, 4, 5, 3), 1e3)], dim=-1)
    mask = torch.tensor([[True] * 6 + [False] * 3] * 2)
    alone, padded = ClipBatchNorm(4), ClipBatchNorm(4)
    torch.testing.assert_close(padded(wide, mask)[..., :6], alone(x))
    torch.testing.assert_close(padded.running_mean, alone.running_mean)
    torch.testing.assert_close(padded.running_var, alone.running_var)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prelu_and_its_gradients_are_torchs(dtype: torch.dtype) -> None:
    ours, theirs = PReLU(3), nn.PReLU(3)
    for module in (ours, theirs):
        module.weight.data = torch.tensor([0.25, -0.5, 1.5])
    x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0, 0] = 0.0
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [ours(inputs[0]), nn.functional.prelu(inputs[1], theirs.weight.to(dtype))]
    assert torch.equal(*outputs)
    for output in outputs:
        (output * torch.linspace(-1, 2, x.numel()).view(x.shape)).sum().backward()
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=10 * tolerance, rtol=tolerance)


def test_a_lone_value_does_not_stop_batch_norm() -> None:
    norm = ClipBatchNorm(4).train()
    torch.testing.assert_close(norm(torch.ones(1, 4)), torch.ones(1, 4) / (1 + 1e-5) ** 0.5)


@given(length=st.integers(1, 45), bins=st.integers(1, 21))
@settings(max_examples=40, deadline=None)
def test_pooling_is_torchs_adaptive_average_of_the_own_columns(length: int, bins: int) -> None:
    x = torch.randn(1, 2, 3, 50, generator=torch.Generator().manual_seed(length))
    matrix = pooling_matrix(torch.tensor([length]), 50, bins)
    expected = nn.functional.adaptive_avg_pool2d(x[..., :length], (3, bins))
    torch.testing.assert_close(torch.einsum("bchw,bwk->bchk", x, matrix), expected)


def test_pooling_is_the_identity_at_ten_seconds() -> None:
    assert torch.equal(pooling_matrix(torch.tensor([20]), 20, 20)[0], torch.eye(20))


@pytest.mark.parametrize("samples", [1, 511, 512, 16000, 160000])
def test_tgram_frames_are_those_of_the_log_mel(samples: int) -> None:
    mel = LogMel(16000)
    tgram = TgramNet(layers=1)
    wave = torch.zeros(1, samples)
    assert tgram(wave).shape[-1] == mel(wave).shape[-1] == samples // 512 + 1


def test_tgram_of_a_padded_clip_is_that_of_the_clip_alone() -> None:
    net = randomise(TgramNet(8, hop=64, kernel=128)).eval()
    long, short = noise(1000, 391)
    batch = batch_of(long, short)
    together = net(batch.waveform, batch.lengths // 64 + 1)
    alone = net(short[None])
    torch.testing.assert_close(together[1:, :, : alone.shape[-1]], alone, atol=1e-5, rtol=1e-5)
    assert (together[1, :, alone.shape[-1] :] == 0).all()


@given(frames=st.lists(st.integers(1, 90), min_size=2, max_size=3), bands=st.sampled_from([5, 32, 40]))
@settings(max_examples=12, deadline=None)
def test_mobilefacenet_of_a_padded_clip_is_that_of_the_clip_alone(frames: list[int], bands: int) -> None:
    net = randomise(MobileFaceNet(2, 16, width=0.25, settings=TINY)).eval()
    x = torch.randn(len(frames), 2, bands, max(frames), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together = net(x, torch.tensor(frames))
        for row, own in enumerate(frames):
            alone = net(x[row : row + 1, :, :, :own])
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_padding_speaks_neither_in_training_statistics_nor_gradients() -> None:
    x = torch.randn(5, 1, 32, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wide = torch.cat([x, torch.full((5, 1, 32, 23), 9.0, dtype=torch.float64)], dim=-1)
    torch.manual_seed(0)
    nets = [randomise(MobileFaceNet(1, 16, width=0.25, settings=TINY)).double().train() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    outputs = [nets[0](x), nets[1](wide, torch.full((5,), 40))]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-9, rtol=1e-9)
    for output in outputs:
        output.pow(3).sum().backward()
    one, other = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in nets)
    assert (one - other).norm() <= 1e-8 * one.norm()
    for name, tensor in nets[0].state_dict().items():  # running statistics as well
        torch.testing.assert_close(tensor, nets[1].state_dict()[name], atol=1e-9, rtol=1e-9)


def test_mobilefacenet_has_the_origins_map_and_size_at_ten_seconds() -> None:
    net = MobileFaceNet(2, embedding=128).eval()
    seen = {}
    net.head.register_forward_hook(lambda _m, _i, output: seen.update(shape=output.shape))
    with torch.no_grad():
        assert net(torch.zeros(1, 2, 128, 313)).shape == (1, 128)
    assert seen["shape"] == (1, 512, 8, 20)

    # counted by hand from the layer table: convolutions, two numbers a norm channel, one slope a PReLU channel
    def unit(weights: int, channels: int, slope: bool = True) -> int:
        return weights + channels * (3 if slope else 2)

    expected = unit(2 * 64 * 9, 64) + unit(64 * 9, 64)
    inputs = 64
    for expansion, channels, blocks in ((2, 128, 2), (4, 128, 2), (4, 128, 2)):
        for _ in range(blocks):
            middle = inputs * expansion
            expected += unit(inputs * middle, middle) + unit(middle * 9, middle)
            expected += unit(middle * channels, channels, slope=False)
            inputs = channels
    expected += unit(128 * 512, 512) + unit(512 * 160, 512, slope=False) + unit(512 * 128, 128, slope=False)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


@pytest.fixture(scope="module")
def small() -> Discriminative:
    mel = LogMel(4000, MelConfig(n_fft=256, hop=128, n_mels=24))
    torch.manual_seed(0)
    model = Discriminative(mel, DiscriminativeConfig(embedding=12, width=0.25, bottlenecks=TINY))
    model.fit_normalisation([batch_of(*noise(4000, 3000))])
    return randomise(model).eval()


@pytest.mark.parametrize("normalise", ["dataset", "instance", "none"])
def test_a_clip_has_the_same_embedding_in_any_company(small: Discriminative, normalise: str) -> None:
    model = Discriminative(small.mel, small.config.model_copy(update={"normalise": normalise})).eval()
    model.load_state_dict(small.state_dict())
    waves = noise(4000, 1, 777, 128 * 11, 2500)
    with torch.no_grad():
        together = model(batch_of(*waves)).embedding
        alone = torch.cat([model(batch_of(wave)).embedding for wave in waves])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert together.std(0).max() > 1e-3


def test_normalisation_is_that_of_all_real_frames(small: Discriminative) -> None:
    waves = noise(4000, 900, 2300, seed=5)
    model = Discriminative(small.mel, small.config)
    model.fit_normalisation([batch_of(*waves[:2]), batch_of(waves[2])])
    frames = torch.cat([small.mel(wave[None])[0] for wave in waves], dim=1)
    torch.testing.assert_close(model.mel_mean, frames.mean(1), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(model.mel_std, frames.std(1, correction=0), atol=1e-4, rtol=1e-5)
    normal = model.spectrogram(waves[0][None], torch.tensor([4000]))
    assert abs(float(normal.mean())) < 0.2
    other = Discriminative(small.mel, small.config)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.mel_std, model.mel_std)


def test_normalisation_without_clips_is_refused(small: Discriminative) -> None:
    with pytest.raises(OffkeyError, match="no training clip"):
        Discriminative(small.mel, small.config).fit_normalisation([])


def test_instance_normalisation_hears_no_level(small: Discriminative) -> None:
    config = small.config.model_copy(update={"normalise": "instance"})
    model = Discriminative(small.mel, config)
    wave = noise(3000)[0]
    lengths = torch.tensor([3000])
    soft, loud = (model.spectrogram(wave[None] * gain, lengths) for gain in (0.5, 1.0))
    torch.testing.assert_close(soft, loud, atol=1e-3, rtol=1e-3)


def test_extra_streams_are_heard_and_name_their_encoder_weights(small: Discriminative) -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))

        def forward(self, waveform: torch.Tensor, lengths: torch.Tensor, frames: int) -> torch.Tensor:
            return self.scale * torch.ones(len(waveform), 24, frames)

        def encoder_rates(self) -> list[tuple[nn.Parameter, float]]:
            return [(self.scale, 1.0)]

    model = Discriminative(small.mel, small.config, extra_streams=[Stream()]).eval()
    assert [(id(p), f) for p, f in model.encoder_rates()] == [(id(model.extra_streams[0].scale), 1.0)]
    waves = noise(4000, 1500)
    together = model(batch_of(*waves)).embedding
    torch.testing.assert_close(together[1:], model(batch_of(waves[1])).embedding, atol=1e-5, rtol=1e-5)
    together.square().sum().backward()
    assert model.extra_streams[0].scale.grad.abs() > 0


def test_spectrogram_augmentation_acts_in_training_only(small: Discriminative) -> None:
    class Erase(nn.Module):
        calls = 0

        def forward(self, spectrogram: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
            Erase.calls += 1
            return spectrogram * 0

    model = Discriminative(small.mel, small.config, spectrogram_augmentation=Erase())
    model.train()(batch_of(*noise(2000, 2000)))
    model.eval()(batch_of(*noise(2000, 2000)))
    assert Erase.calls == 1


class Swap(nn.Module):
    """Every clip takes all streams but the first from the one behind it."""

    def forward(self, streams: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        partner = torch.arange(len(streams)).roll(-1)
        return torch.cat([streams[:, :1], streams[partner, 1:]], 1), partner, torch.ones(len(streams), dtype=torch.bool)


def exchanging(swap: nn.Module | None) -> Discriminative:
    torch.manual_seed(0)
    config = DiscriminativeConfig(embedding=6, bottlenecks=TINY, width=0.5)
    return Discriminative(LogMel(8000, MelConfig(n_fft=256, hop=128, n_mels=16)), config, stream_exchange=swap)


def test_exchanged_streams_are_embedded_beside_the_clip_and_leave_its_statistics_alone() -> None:
    batch = batch_of(*noise(4000, 3000, 3500))
    plain, swapping = exchanging(None).train(), exchanging(Swap()).train()
    told, both = plain(batch), swapping(batch)
    assert told.exchanged is None
    assert torch.equal(told.embedding, both.embedding)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, swapping.state_dict()[name]), name
    assert both.exchanged.partner.tolist() == [1, 2, 0]
    assert both.exchanged.embedding.shape == (3, 6)
    assert not torch.allclose(both.exchanged.embedding, both.embedding)
    both.exchanged.embedding.sum().backward()
    assert all(weight.grad is not None for weight in swapping.parameters())
    assert swapping.eval()(batch).exchanged is None
    norm = next(module for module in swapping.modules() if isinstance(module, ClipBatchNorm))
    assert norm.momentum == 0.1


def test_a_model_with_one_stream_has_none_to_exchange() -> None:
    with pytest.raises(OffkeyError, match=r"augmentation\.featex.*model\.use_tgram"):
        Discriminative(LogMel(8000), DiscriminativeConfig(use_tgram=False), stream_exchange=Swap())


@pytest.mark.parametrize("padded", [False, True])
def test_norms_inside_convolutions_change_nothing(padded):
    torch.manual_seed(0)
    net = MobileFaceNet(2, width=0.25).eval()
    for part in net.modules():
        if isinstance(part, ClipBatchNorm):
            torch.nn.init.normal_(part.running_mean)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(part.weight, 0.5, 2.0)
            torch.nn.init.normal_(part.bias)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    x, frames = torch.randn(3, 2, 64, 80), torch.tensor([80, 33, 51]) if padded else None
    folded = net(x, frames)
    for part in net.modules():
        if hasattr(part, "_normal"):
            part._normal = lambda y, mask, part=part: part.norm(part.convolution(y), mask)
    expected = net(x, frames)
    assert (folded - expected).abs().max() < 1e-5 * expected.abs().max()
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
