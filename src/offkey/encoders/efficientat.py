"""EfficientAT's `mn` networks: MobileNetV3 on log-mel spectrograms at 32 kHz, the encoder for machines without a GPU.

Source: Schmid, Koutini, Widmer, "Efficient large-scale audio tagging via transformer-to-CNN knowledge distillation"
(ICASSP 2023), and its published code and weights; the layout is that of MobileNetV3-Large (Howard et al., 2019).
What the published code changes at random in training (edges of the mel band, masked bands and frames) is not here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from offkey.encoders.base import Encoder, EncoderError
from offkey.encoders.checkpoint import Checkpoint
from offkey.types import Float, Int

__all__ = ["EfficientAT", "EfficientATArchitecture"]

# kernel, expanded channels, output channels, squeeze-excitation, hard swish (else ReLU), stride; at width 1
_BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
_STEM, _HIDDEN = 16, 1280
_SHRINK = 32  # the stem and four blocks halve both axes
_PRE_EMPHASIS, _FLOOR, _SHIFT, _SCALE = 0.97, 1e-5, 4.5, 5.0


class EfficientATArchitecture(BaseModel):
    """What makes one `mn` network differ from another; what is left out is as in the published ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width_mult: float = Field(default=0.4, ge=0.05, le=8.0, description="channels over those of MobileNetV3-Large")
    classes: int = Field(default=0, ge=0, le=100_000, description="outputs of the classifier; 0: there is none")
    rate: int = Field(default=32000, ge=1000, le=384_000, description="sampling rate, Hz")
    n_fft: int = Field(default=1024, ge=32, le=65536, multiple_of=2, description="points of the Fourier transform")
    window: int = Field(default=800, ge=16, description="samples of a frame")
    hop: int = Field(default=320, ge=1, le=65536, description="samples from one frame to the next")
    n_mels: int = Field(default=128, ge=8, le=1024, description="mel bands")
    f_min: float = Field(default=0.0, ge=0.0, description="lowest frequency, Hz")
    f_max: float = Field(default=15000.0, gt=0.0, description="highest frequency, Hz")

    @model_validator(mode="after")
    def _fits(self) -> EfficientATArchitecture:
        if self.window > self.n_fft:
            raise ValueError(f"a window of {self.window} samples does not fit into {self.n_fft} points")
        if not self.f_min < self.f_max <= self.rate / 2:
            raise ValueError(f"mel band {self.f_min:g} to {self.f_max:g} Hz does not fit below {self.rate / 2:g} Hz")
        return self


class EfficientAT(Encoder):
    """An `mn` network at 32 kHz; the last map, 384 channels at width 0.4, is its grid of patches.

    Layers 1 to 15 are the outputs of the inverted residual blocks, whose sizes differ: (B, Pt, Pf, channels) with, on
    either axis, 16 patches (layer 1), 8 (2, 3), 4 (4–6) or 2 (7–12) where the last layers have one. Layer 16 is
    the last convolution, whose mean over all patches, `embed`, is the published code's embedding. `dimension`,
    `bands`, `patch_seconds` and `patch_offset` speak of layer 16; `layer_shape` and `patch_counts` of any.

    A clip needs 514 samples (16 ms), half a Fourier transform, which is mirrored at its ends; below 0.32 s its
    only patch is computed in part from the zeros around the map.

    Batch norms keep the statistics of pretraining, in training mode as well, where a batch's own would count its
    padding; their gains and offsets learn. They are folded into the convolutions.
    """

    name: ClassVar[str] = "efficientat"
    usual_weights: ClassVar[str] = "mn04_as"
    classifier_settings: ClassVar[frozenset[str]] = frozenset({"classes"})
    depth = len(_BLOCKS) + 1

    def __init__(self, architecture: EfficientATArchitecture | None = None) -> None:
        super().__init__()
        self.settings = settings = architecture or EfficientATArchitecture()
        self.rate = settings.rate
        self.patch_seconds = _SHRINK * settings.hop / settings.rate
        self.patch_offset = 0.0  # every stride starts from the first column, and frame 0 is centred on the first sample
        self.shortest = settings.n_fft // 2 + 2
        self.bands = -(-settings.n_mels // _SHRINK)
        self.span = settings.f_min, settings.f_max

        self.front = _LogMel(settings)
        channels = _scaled(_STEM, settings.width_mult)
        self.stem = _Unit(1, channels, 3, stride=2, activation=functional.hardswish)
        blocks = []
        for kernel, expanded, outputs, squeezed, hard, stride in _BLOCKS:
            middle, after = _scaled(expanded, settings.width_mult), _scaled(outputs, settings.width_mult)
            blocks.append(_Block(channels, middle, after, kernel, stride, squeezed, hard))
            channels = after
        self.blocks: Sequence[_Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.dimension = 6 * channels
        self.head = _Unit(channels, self.dimension, 1, activation=functional.hardswish)
        self.classifier: nn.Sequential | None = None
        if settings.classes:
            hidden = _scaled(_HIDDEN, settings.width_mult)
            self.classifier = nn.Sequential(
                _linear(self.dimension, hidden), nn.Hardswish(), _linear(hidden, settings.classes)
            )

    @classmethod
    def build(cls, architecture: Mapping[str, Any]) -> EfficientAT:
        """See `Encoder.build`; raises EncoderError where `architecture` is not an `EfficientATArchitecture`."""
        try:
            return cls(EfficientATArchitecture(**architecture))
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'together'}: {e['msg']}" for e in error.errors())
            raise EncoderError(f"this is not the architecture of an efficientat encoder: {told}") from None

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, classifier: bool = True) -> EfficientAT:
        """See `Encoder.from_checkpoint`. What the file does not tell is read from the shapes of its weights.

        Only the published default head (two linear layers) is known; files with another one load with
        `classifier=False`.
        """
        given = {k: v for k, v in checkpoint.tensors.items() if classifier or not k.startswith("classifier.")}
        told = dict(checkpoint.architecture)
        try:
            if "width_mult" not in told:
                told["width_mult"] = _width(given)
            head = given.get("classifier.5.bias")
            told["classes"] = 0 if head is None else len(head)
            encoder = cls.build(told)
        except EncoderError as error:
            raise EncoderError(f"{checkpoint.path}: {error}") from None
        wanted = encoder.state_dict()
        theirs = encoder._published_names()
        wrong = [f"{name} is missing" for name in theirs.values() if name not in given]
        wrong += [f"{name} is left over" for name in sorted(set(given) - set(theirs.values()))]
        wrong += [
            f"{name} has the shape {list(given[name].shape)}, not {list(wanted[key].shape)}"
            for key, name in theirs.items()
            if name in given and given[name].shape != wanted[key].shape
        ]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise EncoderError(
                f"{checkpoint.path}: not the weights of an efficientat encoder of width "
                f"{encoder.settings.width_mult:g}: {', '.join(wrong[:5])}{more}"
            )
        encoder.load_state_dict({key: given[name] for key, name in theirs.items()})
        return encoder.eval()

    @property
    def architecture(self) -> dict[str, Any]:
        """See `Encoder.architecture`."""
        return self.settings.model_dump()

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """See `Encoder.stages`: "stem", "block.0" … "block.14", "head"; the front end has no weights."""
        blocks = [(f"block.{number}", [block]) for number, block in enumerate(self.blocks)]
        return [("stem", [self.stem]), *blocks, ("head", [self.head])]  # type: ignore[list-item]

    def patch_counts(self, lengths: Int[Tensor, "*B"], layer: int | None = None) -> Int[Tensor, "*B"]:
        """See `Encoder.patch_counts`: one patch for every 10240 samples begun, in the first layer for every 640."""
        return -(-lengths // (self.settings.hop * (_SHRINK if layer is None else self._shrink(layer))))

    def layer_shape(self, layer: int) -> tuple[int, int]:
        """See `Encoder.layer_shape`: from many bands of few channels to few bands of many."""
        self.check_layers([layer])
        channels = self.dimension if layer == self.depth else self.blocks[layer - 1].project.convolution.out_channels
        return -(-self.settings.n_mels // self._shrink(layer)), channels

    def _shrink(self, layer: int) -> int:
        """How many frames, and how many mel bands, one patch of a layer stands for."""
        self.check_layers([layer])
        return 2 * math.prod(block.stride for block in self.blocks[:layer])

    def classify(
        self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B classes"]:
        """Probabilities (B, classes) in [0, 1] of the sounds that the classifier knows, each by itself.

        Raises EncoderError where a clip is too short or the encoder has no classifier.
        """
        if self.classifier is None:
            raise EncoderError("this efficientat encoder has no classifier: load its weights with classifier=True")
        embedding = self.embed(waveform, lengths)
        with self._precision(waveform.device.type):
            return torch.sigmoid(self.classifier(embedding).float())

    def _published_names(self) -> dict[str, str]:
        """Our name of every weight -> its name in the published files."""
        inner = {"convolution": "0", "norm": "1", "reduce": "conc_se_layers.0.fc1", "restore": "conc_se_layers.0.fc2"}
        places = {"stem": "features.0", "head": f"features.{len(self.blocks) + 1}", "classifier": "classifier"}
        for number, block in enumerate(self.blocks):
            for index, (piece, _) in enumerate(block.named_children()):
                places[f"blocks.{number}.{piece}"] = f"features.{number + 1}.block.{index}"
        names = {}
        for key in self.state_dict():
            place, layer, last = key.rsplit(".", 2)
            # the published classifier is a list of pooling, flattening, linear, hard swish, dropout, linear
            numbers = {"0": "2", "2": "5"} if place == "classifier" else inner
            names[key] = f"{places[place]}.{numbers[layer]}.{last}"
        return names

    def _layers(self, waveform: Tensor, lengths: Tensor | None, which: Sequence[int]) -> list[Tensor]:
        mask = None
        if lengths is not None and bool((lengths < waveform.shape[1]).any()):
            x = self.front(waveform, lengths)[:, None]
            # each halving keeps the columns that are centred on one of the clip's own
            mask = _own(self.front.frames(lengths), x.shape[-1])[:, ::2]
        else:
            x = self.front(waveform, None)[:, None]
        x = _keep(self.stem(x), mask).contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        found = {}
        again = self.checkpointing and torch.is_grad_enabled()
        for number, block in enumerate(self.blocks[: max(which)], 1):
            after = mask if mask is None or block.stride == 1 else mask[:, ::2]
            if again:
                x = checkpoint(block, x, mask, after, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, mask, after)
            mask = after
            if number in which:
                found[number] = x
        if self.depth in which:
            found[self.depth] = _keep(self.head(x), mask)
        return [found[number].permute(0, 3, 2, 1) for number in which]


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, 0.0, 0.01)
    nn.init.zeros_(layer.bias)
    return layer


def _own(counts: Tensor, width: int) -> Tensor:
    """Mark (B, width) each clip's own columns."""
    return torch.arange(width, device=counts.device) < counts[:, None]


def _keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the columns of a map (B, C, H, W) past each clip's own: the next convolution must see the map's edge."""
    return x if mask is None else x * mask[:, None, None, :]


def _scaled(channels: int, width: float) -> int:
    """The nearest multiple of 8, but at least 8 and 0.9 of what was asked for (the rule of the MobileNets)."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _width(tensors: Mapping[str, Tensor]) -> float:
    """The roundest width at which the network has the channels of these published weights."""
    ends = ("features.0.0.weight", f"features.{len(_BLOCKS)}.block.0.0.weight", f"features.{len(_BLOCKS) + 1}.0.weight")
    found = [len(tensors[name]) if name in tensors else 0 for name in ends]
    exact = found[1] / _BLOCKS[-1][1]
    for width in (round(exact, 1), round(exact, 2), exact):
        if found == [_scaled(_STEM, width), _scaled(_BLOCKS[-1][1], width), 6 * _scaled(_BLOCKS[-1][2], width)]:
            return width
    told = ", ".join(f"{name}: {count or 'missing'}" for name, count in zip(ends, found, strict=True))
    raise EncoderError(f"these are not the channels of an efficientat mn network of any width: {told}")


class _LogMel(nn.Module):
    """Waveforms (B, T) to log-mel spectrograms (B, n_mels, F), about −1 to 1, F = ceil(T / hop).

    Pre-emphasis leaves T − 1 samples; frame f is centred on sample f·hop of them and sees them mirrored at both
    ends. Frames past a clip's own are zero. The filters are triangles on Kaldi's mel scale, 1127 ln(1 + f/700).
    """

    filters: Tensor
    frame: Tensor

    def __init__(self, settings: EfficientATArchitecture) -> None:
        super().__init__()
        self.n_fft, self.hop = settings.n_fft, settings.hop
        low, high = (1127.0 * math.log1p(hertz / 700.0) for hertz in (settings.f_min, settings.f_max))
        corners = torch.linspace(low, high, settings.n_mels + 2, dtype=torch.float64)[:, None]
        bins = torch.arange(settings.n_fft // 2 + 1, dtype=torch.float64) * (settings.rate / settings.n_fft)
        bins = 1127.0 * torch.log1p(bins / 700.0)
        width = corners[1:] - corners[:-1]
        filters = torch.minimum((bins - corners[:-2]) / width[:-1], (corners[2:] - bins) / width[1:]).clamp_min(0.0)
        self.register_buffer("filters", filters.float(), persistent=False)
        frame = torch.zeros(settings.n_fft)
        start = (settings.n_fft - settings.window) // 2
        frame[start : start + settings.window] = torch.hann_window(settings.window, periodic=False)
        self.register_buffer("frame", frame, persistent=False)

    def frames(self, lengths: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
        return -(-lengths // self.hop)

    def forward(self, waveform: Tensor, lengths: Tensor | None) -> Tensor:
        half = self.n_fft // 2
        with torch.autocast(waveform.device.type, enabled=False):
            x = waveform.float()
            x = x[:, 1:] - _PRE_EMPHASIS * x[:, :-1]
            before = x[:, 1 : half + 1].flip(1)
            if lengths is None:
                x = torch.cat([before, x, x[:, -half - 1 : -1].flip(1)], 1)
            else:
                # each clip is mirrored at its own end
                away = torch.arange(half, device=x.device)
                last = (lengths - 2)[:, None]
                behind = x.gather(1, last - 1 - away)
                x = functional.pad(x, (0, half)).scatter(1, last + 1 + away, behind)
                x = torch.cat([before, x], 1)
            spectrum = torch.fft.rfft(x.unfold(1, self.n_fft, self.hop) * self.frame)
            squares = torch.view_as_real(spectrum).square()  # faster than parts of a complex number by themselves
            power = squares[..., 0] + squares[..., 1]
            mel = self.filters @ power.transpose(1, 2)
            level = (torch.log(mel + _FLOOR) + _SHIFT) / _SCALE
            if lengths is not None:
                level = level.masked_fill(~_own(self.frames(lengths), level.shape[-1])[:, None], 0.0)
        return level


class _Unit(nn.Module):
    """Convolution, batch norm with the statistics that it has, and an activation."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: Any = None
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out")
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        # kept statistics are a factor and an offset: inside the convolution they cost no pass over the map
        convolution, norm = self.convolution, self.norm
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        factor = norm.weight * torch.rsqrt(variance + norm.eps)
        weight = convolution.weight * factor[:, None, None, None]
        x = functional.conv2d(
            x, weight, norm.bias - mean * factor, convolution.stride, convolution.padding, groups=convolution.groups
        )
        return x if self.activation is None else self.activation(x, inplace=True)


class _Squeeze(nn.Module):
    """Squeeze-and-excitation: weigh the channels by what their means over a clip's own columns say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = _linear(channels, _scaled(channels // 4, 1.0))
        self.restore = _linear(_scaled(channels // 4, 1.0), channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            mean = x.mean((2, 3))
        else:
            own = mask[:, None, :]
            mean = x.mean(2).float().mul(own).sum(2) / own.sum(2)
        weight = torch.sigmoid(self.restore(torch.relu(self.reduce(mean))))
        return x * weight[:, :, None, None].to(x.dtype)


class _Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, squeeze-excitation, 1x1 projection."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, kernel: int, stride: int, squeezed: bool, hard: bool
    ) -> None:
        super().__init__()
        activation = functional.hardswish if hard else functional.relu
        self.stride = stride
        self.residual = stride == 1 and inputs == outputs
        self.expand = None if middle == inputs else _Unit(inputs, middle, 1, activation=activation)
        self.depthwise = _Unit(middle, middle, kernel, stride, groups=middle, activation=activation)
        self.squeeze = _Squeeze(middle) if squeezed else None
        self.project = _Unit(middle, outputs, 1)

    def forward(self, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        """Masks `before` and `after` mark the clips' own columns of input and output; the input is zero elsewhere."""
        y = x if self.expand is None else _keep(self.expand(x), before)
        y = self.depthwise(y)
        if self.squeeze is not None:
            y = self.squeeze(y, after)
        y = _keep(self.project(y), after)
        return x + y if self.residual else y
