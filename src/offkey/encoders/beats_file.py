"""What an official BEATs file holds: settings under the authors' names, and weights under theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from offkey.audio import fbank
from offkey.encoders.base import EncoderError

__all__ = ["SILENT", "BeatsArchitecture", "check_weights", "official_names", "own_names"]

_MAX_WEIGHTS = 1_000_000_000


class BeatsArchitecture(BaseModel):
    """Sizes and variants of a BEATs network, under the names of the official `cfg`.

    The defaults are those of the released base model. Keys of a `cfg` that are not here steer its authors'
    training, or nothing, and are passed over (`layer_wise_gradient_decay_ratio` scales gradients only: offkey has
    its own layer-wise learning rates).

    >>> BeatsArchitecture().encoder_layers
    12
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    input_patch_size: int = Field(default=16, ge=1, le=fbank.BANDS, description="frames and mel bands of a patch")
    embed_dim: int = Field(default=512, ge=1, le=8192, description="dimensions of an embedded patch")
    conv_bias: bool = Field(default=False, description="the patch embedding adds a bias")
    encoder_layers: int = Field(default=12, ge=1, le=128, description="blocks")
    encoder_embed_dim: int = Field(default=768, ge=1, le=8192, description="dimensions of a token in the blocks")
    encoder_ffn_embed_dim: int = Field(default=3072, ge=1, le=65536, description="dimensions of the wide layer")
    encoder_attention_heads: int = Field(default=12, ge=1, le=256, description="attention heads")
    activation_fn: Literal["gelu", "relu", "gelu_accurate", "gelu_fast", "tanh", "linear", "glu"] = Field(
        default="gelu", description="activation of the wide layer"
    )
    layer_norm_first: bool = Field(default=False, description="normalise before attention and wide layer, not after")
    deep_norm: bool = Field(default=True, description="weigh what goes past a layer by (2 · layers)^¼")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of what attention and wide layer add")
    attention_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of attention weights")
    activation_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in the wide layer")
    encoder_layerdrop: float = Field(default=0.0, ge=0, lt=1, description="chance that a block is left out in training")
    dropout_input: float = Field(default=0.0, ge=0, lt=1, description="dropout of the embedded patches")
    conv_pos: int = Field(default=128, ge=1, le=4096, description="tokens under the positional convolution")
    conv_pos_groups: int = Field(default=16, ge=1, description="groups of the positional convolution")
    relative_position_embedding: bool = Field(default=True, description="attention learns a bias by distance")
    num_buckets: int = Field(default=320, ge=4, le=65536, description="distances told apart, both directions together")
    max_distance: int = Field(default=800, ge=2, le=2**24, description="tokens beyond which distances count the same")
    gru_rel_pos: bool = Field(default=True, description="the query gates the bias by distance")
    finetuned_model: bool = Field(default=False, description="there is a classifier")
    predictor_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the classifier")
    predictor_class: int = Field(default=527, ge=1, le=1_000_000, description="classes")

    @model_validator(mode="after")
    def _fits(self) -> BeatsArchitecture:
        width = self.encoder_embed_dim
        if width % self.encoder_attention_heads:
            raise ValueError(
                f"encoder_embed_dim {width} does not split into encoder_attention_heads {self.encoder_attention_heads}"
            )
        if width % self.conv_pos_groups:
            raise ValueError(f"encoder_embed_dim {width} does not split into conv_pos_groups {self.conv_pos_groups}")
        if self.deep_norm and self.layer_norm_first:
            raise ValueError("deep_norm and layer_norm_first exclude each other")
        if self.relative_position_embedding and self.max_distance <= self.num_buckets // 4:
            raise ValueError(f"max_distance {self.max_distance} must lie above a quarter of num_buckets")
        wide = self.encoder_ffn_embed_dim * (3 if self.activation_fn == "glu" else 2)
        weights = (
            self.encoder_layers * width * (4 * width + wide)
            + width * width // self.conv_pos_groups * self.conv_pos
            + self.embed_dim * (self.input_patch_size**2 + width)
            + self.num_buckets * self.encoder_attention_heads
            + self.finetuned_model * width * self.predictor_class
        )
        if weights > _MAX_WEIGHTS:
            raise ValueError(f"{weights:,} weights are more than the {_MAX_WEIGHTS:,} that offkey takes")
        return self

    @classmethod
    def read(cls, settings: Mapping[str, Any], where: str) -> BeatsArchitecture:
        """Check `settings`; `where` is told to the reader of the EncoderError that a wrong value raises."""
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'sizes'}: {item['msg'].removeprefix('Value error, ')}"
                + (f" (is {_short(item['input'])})" if item["loc"] else "")
                for item in error.errors()
            )
            raise EncoderError(f"{where}: not a BEATs architecture that offkey can build: {wrong}") from error


# What the released code takes where a `cfg` is silent and differs from the released base model.
SILENT = {
    "deep_norm": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "relative_position_embedding": False,
    "max_distance": 1280,
    "gru_rel_pos": False,
    "predictor_dropout": 0.1,
}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_NAMES = (
    ("patch_embedding.", "patch_embedding."),
    ("layer_norm.", "patch_norm."),
    ("post_extract_proj.", "projection."),
    ("predictor.", "classifier."),
    ("encoder.pos_conv.0.weight_g", "pos_conv.parametrizations.weight.original0"),
    ("encoder.pos_conv.0.weight_v", "pos_conv.parametrizations.weight.original1"),
    ("encoder.pos_conv.0.", "pos_conv."),
    ("encoder.layer_norm.", "norm."),
    ("encoder.layers.0.self_attn.relative_attention_bias.", "relative_positions."),
)
_BLOCK_NAMES = (
    ("self_attn_layer_norm.", "attention_norm."),
    ("self_attn.grep_linear.", "attention.gate."),
    ("self_attn.grep_a", "attention.gate_scale"),
    ("self_attn.", "attention."),
    ("final_layer_norm.", "norm."),
    ("", ""),
)


def _own_name(official: str) -> str:
    """Our name of an official weight; "?" before a name that is not official."""
    for theirs, ours in _NAMES:
        if official.startswith(theirs):
            return ours + official[len(theirs) :]
    if found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", official):
        number, rest = found.groups()
        theirs, ours = next(pair for pair in _BLOCK_NAMES if rest.startswith(pair[0]))
        return f"blocks.{number}.{ours}{rest[len(theirs) :]}"
    return f"?{official}"


_COPY = re.compile(r"encoder\.layers\.(?!0\.)\d+\.self_attn\.relative_attention_bias\.weight")
_FIRST = "encoder.layers.0.self_attn.relative_attention_bias.weight"


def own_names(
    a: BeatsArchitecture, tensors: Mapping[str, Tensor], where: str, *, classifier: bool
) -> dict[str, tuple[str, Tensor]]:
    """Official name and weight by our name; without copies, weights that count nothing, and an unwanted classifier."""
    weights: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if _COPY.fullmatch(name) and a.relative_position_embedding:
            # All blocks share one table; official files name it once a block.
            if _FIRST in tensors and not torch.equal(tensor, tensors[_FIRST]):
                raise EncoderError(f"{where}: {name} differs from {_FIRST}; BEATs has one table for all blocks")
            continue
        if not classifier and name.startswith("predictor."):
            continue
        if not a.relative_position_embedding and ".self_attn.grep_" in name:
            continue  # the released code makes gates even where there is no bias to be gated
        own = _own_name(name)
        if own in weights:
            raise EncoderError(f"{where}: {name} and {weights[own][0]} are the same weight")
        weights[own] = (name, tensor)
    return weights


def check_weights(wanted: Mapping[str, Tensor], found: Mapping[str, tuple[str, Tensor]], where: str) -> None:
    """Raise EncoderError unless `found` holds every wanted weight, in its shape, and no other."""
    official = {_own_name(name): name for name in official_names(wanted)}
    missing = [official[name] for name in wanted if name not in found]
    unexpected = [theirs for ours, (theirs, _) in found.items() if ours not in wanted]
    shapes = [
        f"{theirs} is {list(tensor.shape)}, not {list(wanted[ours].shape)}"
        for ours, (theirs, tensor) in found.items()
        if ours in wanted and tensor.shape != wanted[ours].shape
    ]
    broken = [
        theirs
        for ours, (theirs, tensor) in found.items()
        if ours in wanted and not (tensor.is_floating_point() and bool(tensor.isfinite().all()))
    ]
    wrong = [
        f"{title} {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for title, names in (
            ("missing:", missing),
            ("unexpected:", unexpected),
            ("of another shape:", shapes),
            ("not finite numbers:", broken),
        )
        if names
    ]
    if wrong:
        raise EncoderError(f"{where}: not the weights of the BEATs network that its settings tell; " + "; ".join(wrong))


def official_names(ours: Mapping[str, Tensor]) -> list[str]:
    """The official names of our weights."""
    names = []
    for name in ours:
        if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            number, rest = found.groups()
            theirs, own = next(pair for pair in _BLOCK_NAMES if rest.startswith(pair[1]))
            names.append(f"encoder.layers.{number}.{theirs}{rest[len(own) :]}")
        else:
            theirs, own = next(pair for pair in _NAMES if name.startswith(pair[1]))
            names.append(theirs + name[len(own) :])
    return names
