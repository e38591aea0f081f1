"""Pretrained encoders without decisions that depend on the data: one way of computing for any batch.

The originals skip work where no clip is padded, or compute clips of equal length together; that is quick in torch and
cannot be written down as one graph. Here every clip is as long as the longest, and masks keep padding out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offkey.audio import fbank
from offkey.encoders.base import Encoder
from offkey.encoders.beats import _DEVIATION, _MEAN, Beats, _buckets
from offkey.encoders.efficientat import EfficientAT
from offkey.exporting.front import EncoderMel, FilterBank, own, parted
from offkey.exporting.problem import ExportError

__all__ = ["BeatsGraph", "EfficientATGraph", "encoder_graph"]


def encoder_graph(encoder: Encoder) -> nn.Module:
    """A module with an encoder's face (`patches`, `patch_counts`, `shortest` …) that can be traced; a copy.

    It must be traced with clips of unequal lengths. Raises ExportError for an encoder that has no such form yet.
    """
    match encoder:
        case EfficientAT():
            return EfficientATGraph(encoder)
        case Beats():
            return BeatsGraph(encoder)
    raise ExportError(f"the encoder {encoder.name} cannot be exported yet; choose beats or efficientat")


class EfficientATGraph(nn.Module):
    """EfficientAT with a front end in plain operations; everything behind it is its own."""

    def __init__(self, encoder: EfficientAT) -> None:
        super().__init__()
        self.inner = copy.deepcopy(encoder).eval()
        self.inner.classifier = None
        self.inner.add_module("front", EncoderMel(encoder))
        self.rate, self.dimension, self.bands, self.depth = (
            encoder.rate, encoder.dimension, encoder.bands, encoder.depth
        )  # fmt: skip
        self.patch_seconds, self.patch_offset = encoder.patch_seconds, encoder.patch_offset
        self.shortest = encoder.shortest
        # samples that a patch stands for in each layer
        self.samples = [encoder.settings.hop * encoder._shrink(layer) for layer in range(1, self.depth + 1)]

    def patch_counts(self, lengths: Tensor, layer: int | None = None) -> Tensor:
        """Patches along time of clips of `lengths` samples; ONNX divides towards zero, so nothing is negative here."""
        samples = self.samples[-1 if layer is None else layer - 1]
        return torch.div(lengths + samples - 1, samples, rounding_mode="floor")

    def patches(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, Pt, Pf, D), zero past a clip's own."""
        return self.layers(waveform, lengths, [self.depth])[0]

    def layers(self, waveform: Tensor, lengths: Tensor, which: Sequence[int]) -> list[Tensor]:
        """Patches of several layers, numbered from 1, as `Encoder.layers`."""
        return self.inner.layers(waveform, lengths, which)


class BeatsGraph(nn.Module):
    """BEATs over padded batches; the same numbers as `Beats` up to rounding."""

    bias: Tensor
    positional: Tensor

    def __init__(self, encoder: Beats) -> None:
        super().__init__()
        inner = copy.deepcopy(encoder).eval()
        self.settings = settings = encoder._settings
        self.rate, self.dimension, self.bands, self.depth = (
            encoder.rate, encoder.dimension, encoder.bands, encoder.depth
        )  # fmt: skip
        self.patch_seconds, self.patch_offset = encoder.patch_seconds, encoder.patch_offset
        self.shortest = encoder.shortest
        self.front = FilterBank()
        self.embedding = nn.Linear(settings.input_patch_size**2, settings.embed_dim, bias=settings.conv_bias)
        self.embedding.weight = nn.Parameter(inner.patch_embedding.weight.detach().flatten(1))
        if inner.patch_embedding.bias is not None:
            self.embedding.bias = nn.Parameter(inner.patch_embedding.bias.detach())
        self.patch_norm, self.projection, self.norm = inner.patch_norm, inner.projection, inner.norm
        self.convolution = nn.Conv1d(
            self.dimension, self.dimension, settings.conv_pos, padding=settings.conv_pos // 2,
            groups=settings.conv_pos_groups,
        )  # fmt: skip
        self.convolution.weight = nn.Parameter(inner.pos_conv.weight.detach().clone())
        if inner.pos_conv.bias is not None:
            self.convolution.bias = nn.Parameter(inner.pos_conv.bias.detach())
        self.blocks = inner.blocks
        self.farthest = settings.max_distance
        self.relative = inner.relative_positions is not None
        if inner.relative_positions is not None:
            # from `max_distance` on every distance lies in the same bucket: one row a distance, (2·max + 1, H)
            distance = torch.arange(-self.farthest, self.farthest + 1)
            rows = _buckets(distance, settings.num_buckets, settings.max_distance)
            self.register_buffer("bias", inner.relative_positions.weight.detach()[rows].clone())

    def patch_counts(self, lengths: Tensor, layer: int | None = None) -> Tensor:  # noqa: ARG002 - all are alike
        """Patches along time of clips of `lengths` samples; ONNX divides towards zero, so nothing is negative here."""
        frames = torch.div((lengths - fbank.FRAME + fbank.HOP).clamp_min(0), fbank.HOP, rounding_mode="floor")
        return torch.div(frames, self.settings.input_patch_size, rounding_mode="floor")

    def patches(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, Pt, Pf, D), zero past a clip's own."""
        return self.layers(waveform, lengths, [self.depth])[0]

    def layers(self, waveform: Tensor, lengths: Tensor, which: Sequence[int]) -> list[Tensor]:
        """Patches of several layers, numbered from 1, as `Encoder.layers`."""
        size, bands = self.settings.input_patch_size, self.bands
        bank = (self.front(waveform * 2.0**15) - _MEAN) / (2 * _DEVIATION)
        times = bank.shape[1] // size
        cut = bank[:, : times * size, : bands * size].reshape(-1, times, size, bands, size).transpose(2, 3)
        x = self.patch_norm(self.embedding(cut.reshape(-1, times * bands, size * size)))
        if self.projection is not None:
            x = self.projection(x)
        tokens = times * bands
        inside = own(self.patch_counts(lengths) * bands, tokens)
        mask = inside[..., None].float()
        heard = self.convolution((x * mask).transpose(1, 2))[..., :tokens].transpose(1, 2)
        x = x + F.gelu(heard)
        if not self.settings.layer_norm_first:
            x = self.norm(x)
        # a large negative number instead of infinity: rows of padding must stay finite
        padding = (1.0 - inside[:, None, None, :].float()) * -1e9
        bias = None
        if self.relative:
            at = torch.arange(tokens, device=x.device)
            places = (at[None, :] - at[:, None]).clamp(-self.farthest, self.farthest) + self.farthest
            bias = self.bias[places].permute(2, 0, 1)
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, 1):
            x = self._block(block, x, bias, padding)
            if number in which:
                found[number] = x
            if number == max(which):
                break
        if self.settings.layer_norm_first and self.depth in found:
            found[self.depth] = self.norm(found[self.depth])
        return [parted(found[number] * mask, 1, times, bands) for number in which]

    def _block(self, block: Any, x: Tensor, bias: Tensor | None, padding: Tensor) -> Tensor:
        if block.before:
            x = x + self._attention(block.attention, block.attention_norm(x), bias, padding)
            return x + block.fc2(block.activation(block.fc1(block.norm(x))))
        x = block.attention_norm(self._attention(block.attention, x, bias, padding) + block.past * x)
        return block.norm(block.fc2(block.activation(block.fc1(x))) + block.past * x)

    @staticmethod
    def _attention(layer: Any, x: Tensor, bias: Tensor | None, padding: Tensor) -> Tensor:
        split = (layer.heads, x.shape[-1] // layer.heads)
        q, k, v = (parted(part(x), 2, *split).transpose(1, 2) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
        scores = (q * (split[1] ** -0.5)) @ k.transpose(2, 3) + padding
        if bias is not None:
            if layer.gated:
                # eight numbers a head, which the released code then adds up by four
                weight = layer.gate.weight.unflatten(0, (2, 4)).sum(1)
                gates = torch.sigmoid(F.linear(q, weight, layer.gate.bias.view(2, 4).sum(1)))
                update, reset = gates[..., :1], gates[..., 1:]
                bias = (update * (reset * layer.gate_scale - 1.0) + 2.0) * bias
            scores = scores + bias
        return layer.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
