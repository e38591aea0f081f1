"""TF-Locoformer: attention and convolution by turns along frequency and along time.

Source: Saijo, Wichern, Germain, Pan, Le Roux, "TF-Locoformer: Transformer with Local Modeling by Convolution for Speech
Separation and Enhancement" (IWAENC 2024, arXiv 2408.03440). Like the published code, and unlike the paper's text, the
layers before and after attention are added whole, not by half. Positions are rotary (Su et al. 2021, arXiv 2104.09864).

Axes here: F frames and N frequency bins of a spectrum, K points along frequency inside the net (K = N where the
frequency stride is 1), C features of a point, R rows that a path goes through independently, L points of a row. Inside
the net features come last, so that a path's rows are slices of memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offkey.separation.config import LocoformerConfig
from offkey.types import Bool, Float, OffkeyError

__all__ = ["LocoformerError", "Moments", "RMSGroupNorm", "TFLocoformer", "entry_planes"]

_SLICE = 2**18  # numbers of a path's input that go through it at a time: what becomes of them stays in a core's cache
_SLICE_ACCELERATOR = 2**26
_NO_POWER = 1e-12  # keeps the root's slope finite where nothing sounds


class LocoformerError(OffkeyError):
    """Published weights or settings that do not make a TF-Locoformer."""


class Moments(NamedTuple):
    """Mean and variance of all numbers that the entry convolution makes of a clip, (B,) each."""

    mean: Tensor
    variance: Tensor


class RMSGroupNorm(nn.Module):
    """Divide each group of a point's features by their root mean square; one gain a feature (paper, eq. 4).

    `eps` is added to the root, not to the mean square.
    """

    def __init__(self, groups: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*points C"]) -> Float[Tensor, "*points C"]:
        """Normalise the last axis, in float32 at least."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            grouped = wide.unflatten(-1, (self.groups, -1))
            # a vector's norm has a gradient at zero, the root of a mean square has none
            root = torch.linalg.vector_norm(grouped, dim=-1, keepdim=True) / math.sqrt(grouped.shape[-1])
            return (grouped * (root + self.eps).reciprocal()).flatten(-2) * self.gain


class _ConvFeedForward(nn.Module):
    """Convolution to hidden features, an activation, and a transposed convolution back (paper, §2.3).

    `swiglu`: of twice the hidden features, one half multiplies SiLU of the other half. A row is padded with zeros so
    that every point is seen by all `kernel` places of the convolution. `silu`: no gate, and no padding in front: the
    published code's other layer, which there runs only where kernel − stride ≤ 1; elsewhere it is padded behind.
    """

    def __init__(self, width: int, hidden: int, kernel: int, stride: int, dropout: float, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.kernel, self.stride = kernel, stride
        self.enter = nn.Conv1d(width, hidden * (2 if gated else 1), kernel, stride)
        self.leave = nn.ConvTranspose1d(hidden, width, kernel, stride)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "R L C"]) -> Float[Tensor, "R L C"]:
        size, spare = x.shape[1], self.kernel - self.stride
        front, skip = (spare, spare) if self.gated else (0, spare // 2)
        needed = size + 2 * spare if self.gated else size + skip
        steps = max(0, -(-(needed - self.kernel) // self.stride))
        behind = steps * self.stride + self.kernel - front - size
        # features lie last in memory: images of one line convolve in that order, lines would be turned round and back
        line = F.pad(x, (0, 0, front, behind)).transpose(1, 2).unsqueeze(2)
        inner = F.conv2d(line, self.enter.weight.unsqueeze(2), self.enter.bias, (1, self.stride))
        if self.gated:
            values, gate = inner.chunk(2, dim=1)
            inner = values * F.silu(gate)
        else:
            inner = F.silu(inner)
        outer = self._leave(self.dropout(inner), skip, size)
        return self.dropout(outer.transpose(1, 2))

    def _leave(self, inner: Float[Tensor, "R H 1 S"], skip: int, size: int) -> Float[Tensor, "R C L"]:
        """`size` points of the transposed convolution, from point `skip` on."""
        if self.stride > 1:
            return self.leave(inner.squeeze(2))[..., skip : skip + size]
        # with steps of one point it is a convolution with the kernel turned round, which is quicker
        around = self.kernel - 1
        wanted = F.pad(inner, (around - skip, skip + size - inner.shape[3]))
        kernel = self.leave.weight.transpose(0, 1).flip(2).unsqueeze(2)
        return F.conv2d(wanted, kernel, self.leave.bias).squeeze(2)


class _Attention(nn.Module):
    """Multi-head self-attention along a row with rotary positions; with `reach`, over near points only."""

    def __init__(self, width: int, attention_width: int, heads: int, dropout: float, reach: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.reach = reach
        self.dropout_share = dropout
        self.project = nn.Linear(width, attention_width * 3, bias=False)
        self.gather = nn.Linear(attention_width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "R L C"], turns: Tensor) -> Float[Tensor, "R L C"]:
        """`turns` are what every position multiplies a head's pairs of features with, taken as complex numbers."""
        projected = self.project(x).unflatten(-1, (3, self.heads, -1))
        both, value = projected.split((2, 1), dim=2)
        with torch.autocast(x.device.type, enabled=False):
            pairs = torch.view_as_complex(both.to(turns.real.dtype).unflatten(-1, (-1, 2)))
            turned = torch.view_as_real(pairs * turns[:, None, None]).flatten(-2).to(value.dtype)
        query, key, value = (part.transpose(1, 2) for part in (*turned.unbind(2), value[:, :, 0]))
        if x.device.type == "cpu" and value.dtype == torch.bfloat16:
            # on a CPU, torch's attention in bfloat16 takes ten times as long to go backward as in float32
            with torch.autocast("cpu", enabled=False):
                heard = self._attend(query.float(), key.float(), value.float())
        else:
            heard = self._attend(query, key, value)
        return self.dropout(self.gather(heard.transpose(1, 2).flatten(2)))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        size, reach = query.shape[2], self.reach
        share = self.dropout_share if self.training else 0.0
        if reach is None or size <= reach + 1:
            return F.scaled_dot_product_attention(query, key, value, dropout_p=share)
        # blocks of queries as long as the reach need three blocks of keys: work grows with the length, not its square
        block = size if size <= 6 * reach else max(reach, 16)
        parts = []
        for start in range(0, size, block):
            end = min(start + block, size)
            low, high = max(0, start - reach), min(size, end + reach)
            apart = torch.arange(start, end, device=query.device)[:, None] - torch.arange(low, high, device=key.device)
            near = torch.zeros(apart.shape, dtype=query.dtype, device=query.device)
            near.masked_fill_(apart.abs() > reach, -torch.inf)
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:end], key[:, :, low:high], value[:, :, low:high], near, share
                )
            )
        return torch.cat(parts, dim=2)


class _Path(nn.Module):
    """One way through the plane, along frequency or along time: (feed forward,) attention, feed forward."""

    def __init__(self, config: LocoformerConfig, reach: int | None) -> None:
        super().__init__()
        count = len(config.feed_forward)
        self.feeds = nn.ModuleList(
            _ConvFeedForward(config.width, hidden, config.kernel, config.stride, config.dropout, gated=kind == "swiglu")
            for kind, hidden in zip(config.feed_forward, config.hidden, strict=True)
        )
        self.feed_norms = nn.ModuleList(_norm(config) for _ in range(count))
        self.attention_norm = _norm(config)
        self.attention = _Attention(config.width, config.attention_width, config.heads, config.dropout, reach)

    def forward(self, x: Float[Tensor, "R L C"], turns: Tensor) -> Float[Tensor, "R L C"]:
        if len(self.feeds) == 2:
            x = x + self.feeds[0](self.feed_norms[0](x))
        x = x + self.attention(self.attention_norm(x), turns)
        return x + self.feeds[-1](self.feed_norms[-1](x))


class _Block(nn.Module):
    def __init__(self, config: LocoformerConfig) -> None:
        super().__init__()
        self.time_first = config.order == "time-frequency"
        self.frequency = _Path(config, None)
        self.time = _Path(config, config.attention_frames)

    def forward(
        self, x: Float[Tensor, "B F K C"], frequency_turns: Tensor, time_turns: Tensor
    ) -> Float[Tensor, "B F K C"]:
        for along_time in (True, False) if self.time_first else (False, True):
            if along_time:
                x = _through(self.time, x.transpose(1, 2), time_turns).transpose(1, 2)
            else:
                x = _through(self.frequency, x, frequency_turns)
        return x


class TFLocoformer(nn.Module):
    """Spectra of a mixture (B, F, N) to spectra of its sources (B, S, F, N), complex; any number of frames or bins.

    All frames count as sound: clips of different lengths do not share a call.
    """

    frequency_angles: Tensor
    time_angles: Tensor

    def __init__(self, config: LocoformerConfig) -> None:
        super().__init__()
        self.config = config
        wide, pad = 2 * config.frequency_stride + 1, (1, config.frequency_stride)
        step = (1, config.frequency_stride)
        self.entry = nn.Conv2d(2 if config.contrast_frames is None else 4, config.width, (3, wide), step, pad)
        self.entry_norm = nn.GroupNorm(1, config.width, config.eps)
        # weights and buffers, for the published files hold these angles and may have learnt them
        for name in ("frequency_angles", "time_angles"):
            self.register_buffer(name, _rotary_angles(config.attention_width // config.heads))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.exit = nn.ConvTranspose2d(config.width, 2 * config.sources, (3, wide), step, pad)
        if config.frequency_stride > 1:
            self._share_exit()

    def _share_exit(self) -> None:
        """Start as if every bin were made by one point: the wide kernels of neighbours overlap."""
        with torch.no_grad():
            self.exit.weight.mul_(0.5)

    @property
    def reach(self) -> int | None:
        """Frames to each side on which a frame of the result depends; None: all of the clip.

        The mean and variance of `moments` come from the whole clip and are not meant by this.
        """
        config = self.config
        if config.attention_frames is None:
            return None
        # both convolutions of a layer share their windows, and a point hears those that it lies in
        feeds = len(config.feed_forward) * (config.kernel - 1)
        return self.entry_reach + config.blocks * (config.attention_frames + feeds) + 1

    @property
    def entry_reach(self) -> int:
        """Frames to each side that a frame of the entry convolution depends on."""
        return 1 + (self.config.contrast_frames or 0)

    def spectra(self, mixture: Tensor, moments: Moments | None = None) -> Tensor:
        """Separate complex spectra. The convolutions and norms at both ends run in float32 even inside autocast.

        `moments`, from those of the whole clip, make a part of a clip what it is in the whole.
        """
        with torch.autocast(mixture.device.type, enabled=False):
            x = self._enter(mixture)
            x = self.entry_norm(x) if moments is None else self._normalise(x, moments)
        x = x.movedim(1, -1)
        turns = [_turns(x.shape[2], self.frequency_angles), _turns(x.shape[1], self.time_angles)]
        for block in self.blocks:
            x = block(x, *turns)
        with torch.autocast(mixture.device.type, enabled=False):
            x = x.movedim(-1, 1).to(mixture.real.dtype)
            out = self.exit(x, output_size=list(mixture.shape[1:]))
            return torch.complex(*out.unflatten(1, (-1, 2)).unbind(2))

    def forward(self, mixture: Tensor) -> Tensor:
        """As `spectra`."""
        return self.spectra(mixture)

    def moment_sums(self, mixture: Tensor, start: int, end: int) -> Float[Tensor, "B 3"]:
        """Count, sum and sum of squares in float64 over frames `start` to `end` of the entry convolution."""
        with torch.autocast(mixture.device.type, enabled=False):
            x = self._enter(mixture)[:, :, start:end].flatten(1).double()
        return torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)], dim=1)

    @staticmethod
    def moments(sums: Float[Tensor, "B 3"]) -> Moments:
        """Mean and variance from `moment_sums` that were added up over a clip's parts."""
        count, total, squares = sums.unbind(1)
        mean = total / count
        return Moments(mean.float(), (squares / count - mean.square()).clamp_min(0).float())

    def _enter(self, mixture: Tensor) -> Tensor:
        return self.entry(entry_planes(mixture.real, mixture.imag, self.config.contrast_frames))

    def _normalise(self, x: Tensor, moments: Moments) -> Tensor:
        norm = self.entry_norm
        mean, variance = (part[:, None, None, None].to(x.dtype) for part in moments)
        scale = norm.weight[:, None, None] * torch.rsqrt(variance + norm.eps)
        return (x - mean) * scale + norm.bias[:, None, None]

    @classmethod
    def from_published(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> TFLocoformer:
        """The network of a published model, in eval mode.

        `config` holds arguments of the published separator by their names there (`separator_conf` of its
        config.yaml); those left out have the published defaults. `state_dict` has keys `separator.…` (others are left
        alone), or the separator's own keys without that word. Raises LocoformerError for an unknown or unfit argument
        and for weights that are missing, left over or of another shape.
        """
        network = cls(_published_config(config))
        network.load_state_dict(_published_weights(network, state_dict))
        return network.eval()


def entry_planes(
    real: Float[Tensor, "B F N"],
    imaginary: Float[Tensor, "B F N"],
    contrast_frames: int | None,
    sound: Bool[Tensor, "B F"] | None = None,
) -> Float[Tensor, "B P F N"]:
    """What the entry convolution hears of spectra: real and imaginary part, and with `contrast_frames` two planes more.

    These are the magnitude, and how far it lies above its bin's mean over so many frames to each side (fewer at the
    clip's ends): what is steady is near 0 there. Without them a small network spends many steps to find magnitudes and
    means from turning phases. `sound` marks frames of a clip, not those behind its end (None: all are).
    """
    if contrast_frames is None:
        return torch.stack([real, imaginary], dim=1)
    magnitude = (real.square() + imaginary.square() + _NO_POWER).sqrt()
    window = 2 * contrast_frames + 1, 1, contrast_frames
    if sound is None:
        mean = F.avg_pool1d(magnitude.transpose(1, 2), *window, count_include_pad=False).transpose(1, 2)
        return torch.stack([real, imaginary, magnitude, magnitude - mean], dim=1)
    there = sound[:, :, None].to(magnitude.dtype)
    magnitude = magnitude * there
    total, share = (F.avg_pool1d(part.transpose(1, 2), *window).transpose(1, 2) for part in (magnitude, there))
    contrast = (magnitude - total / share.clamp_min(_NO_POWER)) * there
    return torch.stack([real, imaginary, magnitude, contrast], dim=1)


def _norm(config: LocoformerConfig) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(config.width, config.eps)
    return RMSGroupNorm(config.groups, config.width, config.eps)


def _rotary_angles(size: int) -> Tensor:
    """Angle (size / 2,) by which each pair of a head's features turns from one position to the next, radians."""
    return 1.0 / 10000.0 ** (torch.arange(0, size, 2).float() / size)


def _turns(count: int, angles: Tensor) -> Tensor:
    """The factors (count, size / 2) on the unit circle by which positions 0, 1, … turn each pair."""
    place = torch.arange(count, dtype=angles.dtype, device=angles.device)[:, None] * angles
    return torch.polar(torch.ones_like(place), place)


def _through(path: nn.Module, x: Tensor, turns: Tensor) -> Tensor:
    """Send the rows of (B, S, L, C) through a path, a few at a time."""
    rows = x.flatten(0, 1)
    most = _SLICE if x.device.type == "cpu" else _SLICE_ACCELERATOR
    at_once = max(1, most // (rows.shape[1] * rows.shape[2]))
    if at_once >= len(rows):
        return path(rows, turns).unflatten(0, x.shape[:2])
    if torch.is_grad_enabled():
        return torch.cat([path(part, turns) for part in rows.split(at_once)]).unflatten(0, x.shape[:2])
    result: Tensor | None = None
    for start in range(0, len(rows), at_once):
        part = path(rows[start : start + at_once], turns)
        if result is None:
            result = part.new_empty(rows.shape)
        result[start : start + at_once] = part
    assert result is not None  # noqa: S101 - there is a row
    return result.unflatten(0, x.shape[:2])


# ---- published models

_DEFAULTS: dict[str, Any] = {
    "num_spk": 2, "n_layers": 6, "emb_dim": 128, "norm_type": "rmsgroupnorm", "num_groups": 4, "tf_order": "ft",
    "n_heads": 4, "flash_attention": False, "attention_dim": 128, "ffn_type": "swiglu_conv1d", "ffn_hidden_dim": 384,
    "conv1d_kernel": 4, "conv1d_shift": 1, "dropout": 0.0, "eps": 1e-5,
}  # fmt: skip
_IGNORED = ("input_dim", "flash_attention")
_WORDS: dict[str, dict[Any, str]] = {
    "norm_type": {"rmsgroupnorm": "rms_group", "layernorm": "layer"},
    "tf_order": {"ft": "frequency-time", "tf": "time-frequency"},
    "ffn_type": {"swiglu_conv1d": "swiglu", "conv1d": "silu"},
}


def _published_config(config: Mapping[str, Any]) -> LocoformerConfig:
    unknown = sorted(set(config) - set(_DEFAULTS) - set(_IGNORED))
    if unknown:
        raise LocoformerError(
            f"{', '.join(unknown)}: no argument of the published TF-Locoformer separator; it has {', '.join(_DEFAULTS)}"
        )
    given = _DEFAULTS | dict(config)

    def word(name: str, value: Any) -> str:
        if value not in _WORDS[name]:
            raise LocoformerError(f"{name} is {value!r}; it can be {' or '.join(map(repr, _WORDS[name]))}")
        return _WORDS[name][value]

    def listed(value: Any) -> tuple[Any, ...]:
        return tuple(value) if isinstance(value, list | tuple) else (value,)

    try:
        return LocoformerConfig(
            sources=given["num_spk"],
            blocks=given["n_layers"],
            width=given["emb_dim"],
            norm=word("norm_type", given["norm_type"]),
            groups=given["num_groups"],
            order=word("tf_order", given["tf_order"]),
            heads=given["n_heads"],
            attention_width=given["attention_dim"],
            feed_forward=tuple(word("ffn_type", kind) for kind in listed(given["ffn_type"])),
            hidden=listed(given["ffn_hidden_dim"]),
            kernel=given["conv1d_kernel"],
            stride=given["conv1d_shift"],
            dropout=given["dropout"],
            eps=given["eps"],
        )
    except ValueError as error:
        raise LocoformerError(f"these arguments make no TF-Locoformer: {error}") from error


def _published_names(network: TFLocoformer) -> Iterator[tuple[str, str]]:
    """(our name, published name) of every weight but the rotary angles."""
    count = len(network.config.feed_forward)

    def renamed(match: re.Match[str]) -> str:
        # the published lists of layers run from the last one back to the first one
        kind = {"feeds": "ffn", "feed_norms": "ffn_norm"}[match[1]]
        return f"{kind}.{count - 1 - int(match[2])}"

    inside = {"silu": ("net.0", "net.3"), "swiglu": ("conv1d", "deconv1d")}
    for own in network.state_dict():
        name = own
        for place, kind in enumerate(network.config.feed_forward):
            name = name.replace(f"feeds.{place}.enter", f"feeds.{place}.{inside[kind][0]}")
            name = name.replace(f"feeds.{place}.leave", f"feeds.{place}.{inside[kind][1]}")
        name = re.sub(r"(feeds|feed_norms)\.(\d)", renamed, name)
        for ours, theirs in (
            (".frequency.", ".freq_path."), (".time.", ".frame_path."), (".attention_norm.", ".attn_norm."),
            (".attention.project.", ".attn.qkv."), (".attention.gather.", ".attn.aggregate_heads.0."),
            (".gain", ".gamma"),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        name = re.sub(r"^entry\.", "conv.0.", name)
        name = re.sub(r"^entry_norm\.", "conv.1.", name)
        name = re.sub(r"^exit\.", "deconv.", name)
        if not own.endswith("_angles"):
            yield own, name


def _published_weights(network: TFLocoformer, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "separator."
    if any(name.startswith(prefix) for name in state_dict):
        given = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    else:
        given = dict(state_dict)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    names = dict(_published_names(network))
    angles = {
        f"blocks.{number}.{theirs}.attn.rope.freqs": ours
        for number in range(network.config.blocks)
        for ours, theirs in (("frequency_angles", "freq_path"), ("time_angles", "frame_path"))
    }
    wanted = {theirs: ours for ours, theirs in names.items()} | angles
    missing, left = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    wrong = sorted(name for name in set(given) & set(wanted) if given[name].shape != shapes[wanted[name]])
    if missing or left or wrong:
        told = [
            f"{what}: {', '.join(some[:3])}{f' and {len(some) - 3} more' if len(some) > 3 else ''}"
            for what, some in (("missing", missing), ("left over", left), ("of another shape", wrong))
            if some
        ]
        raise LocoformerError(
            f"these weights do not fit the arguments ({'; '.join(told)}): take the `separator_conf` of the config.yaml "
            "that lies beside the weights"
        )
    weights: dict[str, Tensor] = {}
    for theirs, ours in wanted.items():
        if ours in weights and not torch.equal(weights[ours], given[theirs]):
            raise LocoformerError(f"{theirs} differs from that of the first block; all blocks share their positions")
        weights[ours] = given[theirs]
    return weights
