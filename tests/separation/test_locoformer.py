"""TF-Locoformer beside slow oracles, beside golden numbers, and beside the authors' code where that is at hand."""

import importlib.util
import json
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open

from offkey.separation import locoformer
from offkey.separation.config import LocoformerConfig, SeparatorConfig
from offkey.separation.locoformer import LocoformerError, RMSGroupNorm, TFLocoformer, entry_planes


def golden_script():
    place = Path(__file__).parent / "locoformer_golden" / "make.py"
    spec = importlib.util.spec_from_file_location("locoformer_golden_make", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = golden_script()
TINY = SCRIPT.TINY


def golden():
    """The golden arguments, weights and output."""
    with safe_open(SCRIPT.PLACE, "pt") as file:
        config = json.loads(file.metadata()["separator_conf"])
        weights = {name[6:]: file.get_tensor(name) for name in file.keys() if name.startswith("model.")}  # noqa: SIM118
        return config, weights, torch.view_as_complex(file.get_tensor("output"))


def small(**changes):
    """A network in float64 whose weights all matter, in eval mode."""
    settings = {
        "blocks": 1, "width": 8, "groups": 2, "heads": 2, "attention_width": 12, "hidden": (10, 6), "kernel": 3,
    }  # fmt: skip
    torch.manual_seed(1)
    network = TFLocoformer(LocoformerConfig(**(settings | changes))).double().eval().requires_grad_(False)
    for name, weight in network.named_parameters():
        weight.uniform_(0.5, 1.5) if name.endswith("gain") or "norm.weight" in name else weight.normal_(0, 0.3)
    return network


def numbers(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def close(result, expected, bound=1e-5):
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= bound * expected.abs().max()


# ---- slow oracles, in plain loops


def norm_oracle(norm, x):
    """Each group of features of each point, one by one."""
    x, gain = x.numpy(), norm.gain.numpy()
    size = x.shape[-1] // norm.groups
    out = np.empty_like(x)
    for point in np.ndindex(x.shape[:-1]):
        for group in range(norm.groups):
            part = slice(group * size, (group + 1) * size)
            root = math.sqrt(sum(value**2 for value in x[point][part]) / size)
            out[point][part] = x[point][part] / (root + norm.eps) * gain[part]
    return torch.from_numpy(out)


def silu(x):
    return x / (1 + np.exp(-x))


def feed_oracle(feed, x):
    """The gated layer: windows see every point from every place of the kernel, and give to the points that they saw."""
    enter, bias = feed.enter.weight.numpy(), feed.enter.bias.numpy()
    leave, bias_out = feed.leave.weight.numpy(), feed.leave.bias.numpy()
    kernel, stride, hidden = feed.kernel, feed.stride, leave.shape[0]
    out = np.tile(bias_out, (*x.shape[:2], 1))
    for row, points in enumerate(x.numpy()):
        start = stride - kernel
        while start < len(points):
            inner = bias.copy()
            for place in range(kernel):
                if 0 <= start + place < len(points):
                    inner += enter[:, :, place] @ points[start + place]
            inner = inner[:hidden] * silu(inner[hidden:])
            for place in range(kernel):
                if 0 <= start + place < len(points):
                    out[row, start + place] += inner @ leave[:, :, place]
            start += stride
    return torch.from_numpy(out)


def attention_oracle(attention, x, angles, reach=None):
    """Query by query, pair by pair."""
    project, gather = attention.project.weight.numpy(), attention.gather.weight.numpy()
    width = project.shape[0] // 3
    size = width // attention.heads
    out = np.zeros(x.shape)
    for row, points in enumerate(x.numpy()):
        q, k, v = (points @ project[n * width : (n + 1) * width].T for n in range(3))
        heard = np.zeros((len(points), width))
        for head in range(attention.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(points)):
                near = [j for j in range(len(points)) if reach is None or abs(i - j) <= reach]
                scores = []
                for j in near:
                    score = 0.0
                    for pair in range(size // 2):
                        a = complex(*q[i, part][2 * pair : 2 * pair + 2])
                        b = complex(*k[j, part][2 * pair : 2 * pair + 2])
                        turned = a * np.exp(1j * i * angles[pair]) * np.conj(b * np.exp(1j * j * angles[pair]))
                        score += turned.real
                    scores.append(score / math.sqrt(size))
                shares = np.exp(scores) / np.sum(np.exp(scores))
                heard[i, part] = sum(share * v[j, part] for share, j in zip(shares, near, strict=True))
        out[row] = heard @ gather.T
    return torch.from_numpy(out)


def path_oracle(path, x, angles, reach=None):
    if len(path.feeds) == 2:
        x = x + feed_oracle(path.feeds[0], norm_oracle(path.feed_norms[0], x))
    x = x + attention_oracle(path.attention, norm_oracle(path.attention_norm, x), angles, reach)
    return x + feed_oracle(path.feeds[-1], norm_oracle(path.feed_norms[-1], x))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_norm(groups):
    norm = RMSGroupNorm(groups, 8, 1e-2).double().requires_grad_(False)
    norm.gain.uniform_(0.5, 1.5)
    x = numbers(2, 3, 8)
    x[0, 1] = 0
    close(norm(x), norm_oracle(norm, x), 1e-12)


def test_norm_of_silence_has_a_gradient():
    x = torch.zeros(1, 4, requires_grad=True)
    RMSGroupNorm(2, 4)(x).sum().backward()
    assert torch.isfinite(x.grad).all()


SHAPES = [(1, 1), (3, 1), (4, 2), (4, 3), (3, 3)]


@pytest.mark.parametrize("points", [1, 2, 5, 9])
@pytest.mark.parametrize(("kernel", "stride"), SHAPES)
def test_gated_layer(kernel, stride, points):
    feed = small(feed_forward=("swiglu",), hidden=(5,), kernel=kernel, stride=stride).blocks[0].time.feeds[0]
    x = numbers(2, points, 8)
    close(feed(x), feed_oracle(feed, x), 1e-12)


@pytest.mark.parametrize("points", [1, 2, 5, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(k, s) for k, s in SHAPES if k - s <= 1])  # as far as published
def test_layer_without_gates(kernel, stride, points):
    feed = small(feed_forward=("silu",), hidden=(5,), kernel=kernel, stride=stride).blocks[0].time.feeds[0]
    x = numbers(2, points, 8)
    steps = -(-max(0, points - kernel) // stride) + 1
    behind = torch.zeros(2, (steps - 1) * stride + kernel - points, 8)
    close(feed(x), windows_inside(feed, torch.cat([x, behind], 1))[:, :points], 1e-12)


def windows_inside(feed, x):
    """The ungated layer, whose windows all lie inside the row."""
    enter, leave = feed.enter.weight.numpy(), feed.leave.weight.numpy()
    out = np.tile(feed.leave.bias.numpy(), (*x.shape[:2], 1))
    for row, points in enumerate(x.numpy()):
        for start in range(0, len(points) - feed.kernel + 1, feed.stride):
            seen = points[start : start + feed.kernel]
            inner = silu(feed.enter.bias.numpy() + np.einsum("ocp,pc->o", enter, seen))
            out[row, start : start + feed.kernel] += np.einsum("h,hcp->pc", inner, leave)
    return torch.from_numpy(out)


@pytest.mark.parametrize("reach", [None, 1, 3, 40])
def test_attention(reach):
    network = small(attention_frames=reach)
    attention = network.blocks[0].time.attention
    angles = network.time_angles.numpy()
    assert angles.tolist() == pytest.approx([10000 ** (-2 * pair / 6) for pair in range(3)])
    for points in (1, 2, 23):
        x = numbers(2, points, 8)
        turns = locoformer._turns(points, network.time_angles)
        close(attention(x, turns), attention_oracle(attention, x, angles, reach), 1e-6)


@pytest.mark.parametrize("order", ["frequency-time", "time-frequency"])
@pytest.mark.parametrize("kinds", [("swiglu",), ("swiglu", "swiglu")])
def test_block(order, kinds):
    network = small(order=order, feed_forward=kinds, hidden=(10, 6)[: len(kinds)], attention_frames=2)
    block = network.blocks[0]
    x = numbers(2, 6, 5, 8)
    frequency, time = network.frequency_angles.double(), network.time_angles.double()
    result = block(x, locoformer._turns(5, frequency), locoformer._turns(6, time))
    for clip in range(2):
        y = x[clip]
        for along_time in (False, True) if order == "frequency-time" else (True, False):
            if along_time:
                y = path_oracle(block.time, y.transpose(0, 1), time.numpy(), 2).transpose(0, 1)
            else:
                y = path_oracle(block.frequency, y, frequency.numpy())
        close(result[clip], y, 1e-6)


@pytest.mark.parametrize("stride", [1, 3])
def test_both_ends(stride):
    """Without blocks' help: first convolution, its normalisation, last convolution."""
    network = small(frequency_stride=stride, sources=2)
    network.blocks = torch.nn.ModuleList()
    mixture = torch.complex(numbers(1, 4, 7), numbers(1, 4, 7, seed=1))
    planes = torch.stack([mixture[0].real, mixture[0].imag]).numpy()
    points = (7 - 1) // stride + 1
    inner = np.zeros((8, 4, points))
    for frame in range(4):
        for point in range(points):
            inner[:, frame, point] = network.entry.bias
            for df in (-1, 0, 1):
                for dn in range(-stride, stride + 1):
                    if 0 <= frame + df < 4 and 0 <= point * stride + dn < 7:
                        kernel = network.entry.weight[:, :, df + 1, dn + stride].numpy()
                        inner[:, frame, point] += kernel @ planes[:, frame + df, point * stride + dn]
    inner = (inner - inner.mean()) / np.sqrt(inner.var() + 1e-5)
    inner = inner * network.entry_norm.weight.numpy()[:, None, None] + network.entry_norm.bias.numpy()[:, None, None]
    out = np.tile(network.exit.bias.numpy()[:, None, None], (1, 4, 7))
    for frame in range(4):
        for point in range(points):
            for df in (-1, 0, 1):
                for dn in range(-stride, stride + 1):
                    if 0 <= frame + df < 4 and 0 <= point * stride + dn < 7:
                        kernel = network.exit.weight[:, :, df + 1, dn + stride].numpy()
                        out[:, frame + df, point * stride + dn] += inner[:, frame, point] @ kernel
    expected = torch.complex(*(torch.from_numpy(out[part::2]) for part in (0, 1)))
    close(network.spectra(mixture)[0], expected, 1e-9)


@pytest.mark.parametrize("frames", [1, 4, 12])
def test_entry_planes(frames):
    real, imaginary = numbers(3, frames, 5), numbers(3, frames, 5, seed=1)
    counts = [frames, max(1, frames - 3), 1]
    sound = torch.arange(frames) < torch.tensor(counts)[:, None]
    assert torch.equal(entry_planes(real, imaginary, None), torch.stack([real, imaginary], 1))
    expected = np.zeros((3, 4, frames, 5))
    for clip, count in enumerate(counts):
        expected[clip, :2] = real[clip], imaginary[clip]
        magnitude = np.hypot(real[clip].numpy(), imaginary[clip].numpy())[:count]
        expected[clip, 2, :count] = magnitude
        for frame in range(count):
            around = magnitude[max(0, frame - 2) : frame + 3]
            expected[clip, 3, frame] = magnitude[frame] - around.mean(0)
    close(entry_planes(real, imaginary, 2, sound), torch.from_numpy(expected), 1e-9)
    alone = entry_planes(real[:1], imaginary[:1], 2)
    close(alone, torch.from_numpy(expected[:1]), 1e-9)
    assert alone[0, 2:].isfinite().all()


# ---- laws


def test_rows_sent_in_slices_are_the_same(monkeypatch):
    network = small(attention_frames=4, blocks=2).float()
    mixture = SCRIPT.spectrum(3, 2, 30, 9)
    expected = network.spectra(mixture)
    for size in (1, 2000):
        monkeypatch.setattr(locoformer, "_SLICE", size)
        with torch.no_grad():
            close(network.spectra(mixture), expected)
        network.requires_grad_(True)
        close(network.spectra(mixture), expected)
        network.requires_grad_(False)


@pytest.mark.parametrize("contrast", [None, 5])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (4, 2)])
def test_a_frame_hears_as_far_as_reach_says_and_no_farther(kernel, stride, contrast):
    network = small(blocks=2, attention_frames=3, contrast_frames=contrast, kernel=kernel, stride=stride)
    moments = locoformer.Moments(torch.zeros(1), torch.ones(1))
    mixture = SCRIPT.spectrum(3, 1, 60, 5).to(torch.complex128)
    before = network.spectra(mixture, moments)
    mixture[:, 30] += 1
    changed = (network.spectra(mixture, moments) - before).abs().amax((0, 1, 3)).nonzero()[:, 0]
    reach = network.reach
    assert 30 - reach <= changed.min() <= 30 - reach + 2 * (stride - 1) * 2
    assert changed.max() <= 30 + reach
    assert small().reach is None


@pytest.mark.parametrize("contrast", [None, 3])
def test_moments_of_parts_are_those_of_the_whole(contrast):
    network = small(contrast_frames=contrast).float()
    around = network.entry_reach
    assert around == (1 if contrast is None else 4)
    mixture = SCRIPT.spectrum(3, 2, 20, 9)
    # frames 0 to 8 and 8 to 20, with those beside them that the first convolution hears
    parts = ((0, 8 + around, 0, 8), (8 - around, 20, around, around + 12))
    sums = sum(network.moment_sums(mixture[:, low:high], start, end) for low, high, start, end in parts)
    close(network.spectra(mixture, network.moments(sums)), network.spectra(mixture))


def test_every_weight_learns():
    network = small(blocks=2, frequency_stride=2).float().requires_grad_(True)
    network.spectra(SCRIPT.spectrum(3, 1, 8, 9)).abs().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_dropout_is_for_training_alone():
    network = small(dropout=0.5).float()
    mixture = SCRIPT.spectrum(3, 1, 8, 9)
    assert torch.equal(network.spectra(mixture), network.spectra(mixture))
    network.train()
    assert not torch.equal(network.spectra(mixture), network.spectra(mixture))


def test_half_precision_stays_near():
    network = small().float()
    mixture = SCRIPT.spectrum(3, 1, 8, 9)
    with torch.autocast("cpu", torch.bfloat16):
        close(network.spectra(mixture), network.spectra(mixture), 1e-6)
        result = network.spectra(mixture)
    assert result.dtype == torch.complex64
    close(result, network.spectra(mixture), 0.1)


def test_attention_computes_in_float32_on_a_cpu(monkeypatch):
    """In bfloat16 a training step took longer than in float32: its attention's way back is slow there."""
    heard = []
    plain = locoformer.F.scaled_dot_product_attention

    def listening(query, *rest):
        heard.append(query.dtype)
        return plain(query, *rest)

    monkeypatch.setattr(locoformer.F, "scaled_dot_product_attention", lambda *given, **named: listening(*given))
    network = small().float().train().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        network.spectra(SCRIPT.spectrum(3, 1, 8, 9)).abs().sum().backward()
    assert heard
    assert set(heard) == {torch.float32}
    assert all(torch.isfinite(own.grad).all() for own in network.parameters() if own.grad is not None)


# ---- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": (4,)},
        {"stride": 5},
        {"attention_width": 12, "heads": 4},
        {"width": 10},
        {"sources": 0},
        {"layers": 3},
    ],
)
def test_settings_that_do_not_fit(wrong):
    with pytest.raises(ValidationError):
        LocoformerConfig(**wrong)


def test_sizes_are_those_of_the_paper():
    for size, published in (("small", SCRIPT.SMALL), ("medium", SCRIPT.MEDIUM)):
        assert locoformer._published_config(published) == LocoformerConfig.of(size)
        ours = SeparatorConfig.of(size).locoformer
        assert ours == LocoformerConfig.of(size, attention_frames=62)
    assert SeparatorConfig() == SeparatorConfig.of("tiny")


# ---- published weights


def test_golden_numbers():
    config, weights, expected = golden()
    with torch.no_grad():
        close(TFLocoformer.from_published(config, weights).spectra(SCRIPT.spectrum(7, 2, 21, 17)), expected)
        bare = {name.removeprefix("separator."): value for name, value in weights.items()}
        close(TFLocoformer.from_published(config, bare).spectra(SCRIPT.spectrum(7, 2, 21, 17)), expected)
        beside = weights | {"encoder.window": torch.ones(3)}
        close(TFLocoformer.from_published(config, beside).spectra(SCRIPT.spectrum(7, 2, 21, 17)), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("separator.conv.0.bias"), r"missing: conv\.0\.bias"),
        (lambda w: w.update({"separator.extra": torch.ones(1)}), "left over: extra"),
        (lambda w: w.update({"separator.conv.0.bias": torch.ones(3)}), r"another shape: conv\.0\.bias"),
        (lambda w: w.update({"separator.blocks.1.freq_path.attn.rope.freqs": torch.ones(3)}), "differs"),
    ],
)
def test_weights_that_do_not_fit(change, words):
    config, weights, _ = golden()
    change(weights)
    with pytest.raises(LocoformerError, match=words):
        TFLocoformer.from_published(config, weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_layer": 3}, "n_layer: no argument"),
        ({"norm_type": "batch"}, "norm_type is 'batch'"),
        ({"tf_order": "ff"}, "tf_order is 'ff'"),
        ({"ffn_type": ["linear", "linear"]}, "ffn_type is 'linear'"),
        ({"ffn_hidden_dim": [4]}, "hidden"),
    ],
)
def test_arguments_that_do_not_fit(change, words):
    config, weights, _ = golden()
    with pytest.raises(LocoformerError, match=words):
        TFLocoformer.from_published(config | change, weights)


# ---- parity with the authors' code

VARIANTS = {
    "as released": {},
    "time first": {"tf_order": "tf"},
    "layer norm": {"norm_type": "layernorm"},
    "one layer": {"ffn_type": ["swiglu_conv1d"], "ffn_hidden_dim": [10]},
    "one layer, time first": {"ffn_type": ["swiglu_conv1d"], "ffn_hidden_dim": [10], "tf_order": "tf"},
    "stride 2": {"conv1d_shift": 2},
    "stride 3": {"conv1d_shift": 3},
    "no gates": {"ffn_type": ["conv1d", "conv1d"], "norm_type": "layernorm", "conv1d_kernel": 2},
    "one source": {"num_spk": 1},
    "three sources": {"num_spk": 3},
}


@pytest.fixture(scope="module")
def released():
    folder = os.environ.get("OFFKEY_LOCOFORMER_REFERENCE")
    if not folder:
        pytest.skip("OFFKEY_LOCOFORMER_REFERENCE does not name a copy of the authors' repository")
    with SCRIPT.released(folder) as module:
        yield module


def compare(released, config, frames, bins):
    """Whole nets, and the first block alone."""
    theirs = SCRIPT.random_model(released, config, seed=5)
    weights = {f"separator.{name}": value for name, value in theirs.state_dict().items()}
    ours = TFLocoformer.from_published(config, weights)
    # with one layer the authors' code takes one clip at a time
    for clip in SCRIPT.spectrum(7, 2, frames, bins)[:, None]:
        with torch.no_grad():
            close(ours.spectra(clip), SCRIPT.run(theirs, clip))
            x = ours.entry_norm(ours._enter(clip))
            turns = [locoformer._turns(size, ours.time_angles) for size in (bins, frames)]
            theirs_block = SCRIPT.warned_not(partial(theirs.blocks[0], x))
            close(ours.blocks[0](x.movedim(1, -1), *turns).movedim(-1, 1), theirs_block)


@pytest.mark.parametrize("variant", VARIANTS)
def test_released_code_gives_the_same_numbers(released, variant):
    compare(released, TINY | VARIANTS[variant], 21, 17)


@pytest.mark.parametrize("order", ["ft", "tf"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("size", ["SMALL", "MEDIUM"])
def test_released_code_gives_the_same_numbers_at_full_size(released, size, order, layers):
    config = getattr(SCRIPT, size) | {"tf_order": order}
    config |= {name: config[name][:layers] for name in ("ffn_type", "ffn_hidden_dim")}
    compare(released, config, 11, 33)
