"""BEATs: a transformer over patches of a Kaldi-style filter bank, as its authors released it.

Source: Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers" (ICML 2023, arXiv 2212.09058); relative
positions with gates from WavLM (Chen et al. 2022, arXiv 2110.13900), residuals from DeepNorm (Wang et al. 2022, arXiv
2203.00555). Takes the official `{"cfg", "model"}` files, pre-trained or fine-tuned.

Clips of a batch are laid behind each other, token by token, without padding: linear layers see real tokens only, and
attention and the positional convolution go from one group of equally long clips to the next.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

from offkey.audio import fbank
from offkey.encoders.base import Encoder, EncoderError
from offkey.encoders.beats_file import SILENT, BeatsArchitecture, check_weights, own_names
from offkey.encoders.checkpoint import Checkpoint
from offkey.encoders.long_convolution import LongConvolution
from offkey.types import Float, Int

__all__ = ["Beats", "BeatsArchitecture"]

_MEAN, _DEVIATION = 15.41663, 6.55582  # of AudioSet's filter bank, as the authors' code has them
_FULL_SCALE = 2.0**15
_MASK_ELEMENTS = 2**18  # of attention bias at a time, which then stays in a core's cache
_MASK_ELEMENTS_ACCELERATOR = 2**28
_SCORE_ELEMENTS = 2**17  # of the scores of one head at a time, which meet as much of the bias in a core's cache
_BY_WAVES = 3  # kernels' lengths of tokens from which on a convolution by waves is quicker
_TOKENS_AT_A_TIME = 1024  # of the wide layer: more do not fit into a cache, fewer make products slower


class _Group(NamedTuple):
    """Equally long clips, which lie behind each other from token `start` on."""

    start: int
    clips: list[int]
    tokens: int

    def of(self, x: Tensor) -> Tensor:
        """Its part (clips, tokens, …) of the tokens (N, …) of all clips."""
        count = len(self.clips)
        return x[self.start : self.start + count * self.tokens].unflatten(0, (count, self.tokens))


def _groups(tokens: Sequence[int]) -> list[_Group]:
    """Clips by their number of tokens, the longest first."""
    groups: list[_Group] = []
    start = 0
    for size in sorted(set(tokens), reverse=True):
        clips = [clip for clip, own in enumerate(tokens) if own == size]
        groups.append(_Group(start, clips, size))
        start += len(clips) * size
    return groups


def _buckets(distance: Tensor, buckets: int, farthest: int) -> Tensor:
    """Number of the bucket of each signed distance (key minus query, in tokens).

    Half of the buckets serve each direction; of those the lower half one distance each, the others distances
    that grow geometrically up to `farthest`. (T5, Raffel et al. 2020, arXiv 1910.10683.)
    """
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    # in float32, as the released code has it: rounding decides at the edges of buckets
    growth = torch.log(far.float() / exact) / math.log(farthest / exact) * (half - exact)
    coarse = (exact + growth.clamp(0, half).long()).clamp_max(half - 1)
    return (distance > 0) * half + torch.where(far < exact, far, coarse)


class _Attention(nn.Module):
    def __init__(self, a: BeatsArchitecture) -> None:
        super().__init__()
        width = a.encoder_embed_dim
        self.heads = a.encoder_attention_heads
        self.dropout = a.attention_dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.gated = a.gru_rel_pos and a.relative_position_embedding
        if self.gated:
            self.gate = nn.Linear(width // self.heads, 8)
            self.gate_scale = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def forward(self, x: Tensor, groups: Sequence[_Group], bias: Tensor | None, learns: bool) -> Tensor:
        """Tokens (N, C) to what attention adds to them; `bias` (H, L, L) for the longest clip."""
        split = (self.heads, x.shape[-1] // self.heads)
        q, k, v = (layer(x).unflatten(-1, split) for layer in (self.q_proj, self.k_proj, self.v_proj))
        gate = self._gates(q) if self.gated else None
        if learns:
            heard = [
                self._attend(group.of(q), group.of(k), group.of(v), bias, None if gate is None else group.of(gate))
                for group in groups
            ]
            return self.out_proj(torch.cat([part.flatten(0, 1) for part in heard]).flatten(1))
        most = _MASK_ELEMENTS if x.device.type == "cpu" else _MASK_ELEMENTS_ACCELERATOR
        by_products = x.device.type == "cpu" and q.dtype == torch.float32 and not (self.training and self.dropout)
        out = torch.empty_like(q)
        for group in groups:
            gq, gk, gv, go = (group.of(part) for part in (q, k, v, out))
            gg = None if gate is None else group.of(gate)
            at_once = most // group.tokens**2
            if by_products and at_once < self.heads:
                self._attend_in_blocks(gq, gk, gv, go, bias, gg)
                continue
            heads = min(max(1, at_once), self.heads)
            clips = max(1, at_once // heads)
            for h in range(0, self.heads, heads):  # the bias of these heads serves clip after clip from the cache
                for c in range(0, len(group.clips), clips):
                    part = (slice(c, c + clips), slice(None), slice(h, h + heads))
                    go[part] = self._attend(
                        gq[part], gk[part], gv[part],
                        None if bias is None else bias[h : h + heads],
                        None if gg is None else gg[part],
                    )  # fmt: skip
        return self.out_proj(out.flatten(1))

    def _gates(self, q: Tensor) -> Tensor:
        """Factor (N, H) of each query's bias, between 1 and 2 for a scale of 1; in float32."""
        with torch.autocast(q.device.type, enabled=False):
            # eight numbers a head, which the released code then adds up by four
            weight = self.gate.weight.unflatten(0, (2, 4)).sum(1)
            update, reset = torch.sigmoid(
                F.linear(q.to(weight.dtype), weight, self.gate.bias.view(2, 4).sum(1))
            ).unbind(-1)
            return update * (reset * self.gate_scale.view(-1) - 1.0) + 2.0

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, gate: Tensor | None) -> Tensor:
        """Attention of (B, L, H, D) with `bias` (H, ≥ L, ≥ L) times `gate` (B, L, H)."""
        size = q.shape[1]
        mask = None
        if bias is not None:
            mask = bias[None, :, :size, :size]
            if gate is not None:
                mask = gate.transpose(1, 2)[..., None] * mask
            mask = mask.to(q.dtype)
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, self.dropout if self.training else 0.0
        ).transpose(1, 2)

    def _attend_in_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, bias: Tensor | None, gate: Tensor | None
    ) -> None:
        """The same into `out` (B, L, H, D), some queries of a head at a time: plain products in one piece of cache."""
        clips, size, heads, width = q.shape
        rows = -(-size // -(-(size**2) // _SCORE_ELEMENTS))  # equal blocks
        scratch = q.new_empty(rows * size)
        for head in range(heads):
            for start in range(0, size, rows):
                part = slice(start, min(start + rows, size))
                scores = scratch[: (part.stop - start) * size].view(-1, size)
                for clip in range(clips):
                    keys = k[clip, :, head].T
                    if bias is None:
                        scores.zero_()
                    elif gate is None:
                        scores.copy_(bias[head, part, :size])
                    else:
                        torch.mul(bias[head, part, :size], gate[clip, part, head, None], out=scores)
                    torch.addmm(scores, q[clip, part, head], keys, alpha=width**-0.5, out=scores)
                    torch.softmax(scores, -1, out=scores)
                    torch.mm(scores, v[clip, :, head], out=out[clip, part, head])


class _Gated(nn.Module):
    """Gated linear unit with the activation x · sigmoid(x)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.linear(x).chunk(2, -1)
        return value * F.silu(gate)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _same(x: Tensor) -> Tensor:
    return x


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "tanh": torch.tanh,
    "linear": _same,
    "glu": _same,  # within the first layer
}


class _Block(nn.Module):
    def __init__(self, a: BeatsArchitecture) -> None:
        super().__init__()
        width, wide = a.encoder_embed_dim, a.encoder_ffn_embed_dim
        self.attention = _Attention(a)
        self.attention_norm = nn.LayerNorm(width)
        self.fc1 = _Gated(width, wide) if a.activation_fn == "glu" else nn.Linear(width, wide)
        self.fc2 = nn.Linear(wide, width)
        self.norm = nn.LayerNorm(width)
        self.activation = _ACTIVATIONS[a.activation_fn]
        self.before = a.layer_norm_first
        self.past = (2.0 * a.encoder_layers) ** 0.25 if a.deep_norm else 1.0
        self.dropout = a.dropout
        self.activation_dropout = a.activation_dropout

    def forward(self, x: Tensor, groups: Sequence[_Group], bias: Tensor | None) -> Tensor:
        """Tokens (N, C) of all clips to tokens (N, C)."""
        learns = torch.is_grad_enabled() and (
            x.requires_grad
            or (bias is not None and bias.requires_grad)
            or any(weight.requires_grad for weight in self.parameters())
        )
        if self.before:
            x = x + self._drop(self.attention(self.attention_norm(x), groups, bias, learns))
            return x + self._drop(self._widen(self.norm(x), learns))
        x = self.attention_norm(torch.add(self._drop(self.attention(x, groups, bias, learns)), x, alpha=self.past))
        return self.norm(torch.add(self._drop(self._widen(x, learns)), x, alpha=self.past))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _widen(self, x: Tensor, learns: bool) -> Tensor:
        if learns or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return self._feed(x)
        rows = -(-len(x) // -(-len(x) // _TOKENS_AT_A_TIME))  # equal parts
        return torch.cat([self._feed(part, in_place=True) for part in x.split(rows)])

    def _feed(self, x: Tensor, in_place: bool = False) -> Tensor:
        x = self.fc1(x)
        x = torch.ops.aten.gelu_(x) if in_place and self.activation is F.gelu else self.activation(x)
        return self.fc2(F.dropout(x, self.activation_dropout, self.training))


class Beats(Encoder):
    """BEATs as released; 16 kHz, 8 bands of patches of 160 ms, 768 dimensions in the released models.

    `stages()`: "patch_embedding" (convolution, layer norm and projection), "pos_conv" (positional convolution and,
    where the blocks normalise at their ends as in all released models, the layer norm that follows it),
    "relative_positions" (the bias by distance, which all blocks share), "block.0" …, and "norm" (the layer norm at
    the end of networks that normalise first). The classifier is no stage.

    >>> encoder = Beats.build({"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_attention_heads": 2})
    >>> encoder.eval().patches(torch.zeros(1, 16000)).shape
    torch.Size([1, 6, 8, 16])
    """

    name: ClassVar[str] = "beats"
    usual_weights: ClassVar[str] = "BEATs_iter3_plus_AS2M"
    classifier_settings: ClassVar[frozenset[str]] = frozenset(
        {"finetuned_model", "predictor_class", "predictor_dropout"}
    )

    def __init__(self, a: BeatsArchitecture) -> None:
        super().__init__()
        self._settings = a
        patch, width = a.input_patch_size, a.encoder_embed_dim
        self.rate = fbank.RATE
        self.dimension = width
        self.bands = fbank.BANDS // patch
        self.span = fbank.SPAN
        self.depth = a.encoder_layers
        self.patch_seconds = patch * fbank.HOP / fbank.RATE
        self.patch_offset = (fbank.FRAME + (patch - 1) * fbank.HOP) / 2 / fbank.RATE
        self.shortest = fbank.FRAME + (patch - 1) * fbank.HOP

        self.patch_embedding = nn.Conv2d(1, a.embed_dim, patch, stride=patch, bias=a.conv_bias)
        self.patch_norm = nn.LayerNorm(a.embed_dim)
        self.projection = nn.Linear(a.embed_dim, width) if a.embed_dim != width else None
        self.pos_conv = nn.utils.parametrizations.weight_norm(
            nn.Conv1d(width, width, a.conv_pos, padding=a.conv_pos // 2, groups=a.conv_pos_groups), dim=2
        )
        self.norm = nn.LayerNorm(width)
        self.relative_positions = (
            nn.Embedding(a.num_buckets, a.encoder_attention_heads) if a.relative_position_embedding else None
        )
        self.blocks = nn.ModuleList(_Block(a) for _ in range(a.encoder_layers))
        self.classifier = nn.Linear(width, a.predictor_class) if a.finetuned_model else None

    @classmethod
    def build(cls, architecture: Mapping[str, Any]) -> Beats:
        """A network with random weights; what `architecture` leaves out is as in the released base model."""
        encoder = cls(BeatsArchitecture.read(architecture, "architecture of beats"))
        encoder._initialise()
        return encoder

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, classifier: bool = True) -> Beats:
        """The network of an official file or of its conversion, in eval mode.

        `classifier=False` leaves out the classifier of a fine-tuned file. What a file's settings leave out is as in
        the released code; a file without settings is taken for the base model. Raises EncoderError where settings
        or weights do not fit.
        """
        where = str(checkpoint.path)
        settings = dict(checkpoint.architecture)
        if settings:
            settings = SILENT | settings
        else:
            settings["finetuned_model"] = "predictor.weight" in checkpoint.tensors
        settings["finetuned_model"] = bool(settings.get("finetuned_model", False)) and classifier
        a = BeatsArchitecture.read(settings, where)
        with torch.device("meta"):
            encoder = cls(a)
        weights = own_names(a, checkpoint.tensors, where, classifier=classifier)
        check_weights(encoder.state_dict(), weights, where)
        encoder.load_state_dict(
            {name: tensor.detach().to(torch.float32, copy=True).contiguous() for name, (_, tensor) in weights.items()},
            assign=True,
        )
        return encoder.requires_grad_(True).eval()

    @property
    def architecture(self) -> dict[str, Any]:
        """All that `build` needs to make the same network, under the names of the official `cfg`."""
        return self._settings.model_dump(mode="json")

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """Names and modules from input to output; see the class."""
        first = self._settings.layer_norm_first
        embedding: list[nn.Module] = [self.patch_embedding, self.patch_norm]
        if self.projection is not None:
            embedding.append(self.projection)
        stages: list[tuple[str, list[nn.Module]]] = [
            ("patch_embedding", embedding),
            ("pos_conv", [self.pos_conv] if first else [self.pos_conv, self.norm]),
        ]
        if self.relative_positions is not None:
            stages.append(("relative_positions", [self.relative_positions]))
        stages += [(f"block.{number}", [block]) for number, block in enumerate(self._blocks())]
        if first:
            stages.append(("norm", [self.norm]))
        return stages

    def attention_projections(self) -> list[nn.Linear]:
        """Query and value projection of every block, from input to output."""
        return [layer for block in self._blocks() for layer in (block.attention.q_proj, block.attention.v_proj)]

    def patch_counts(self, lengths: Int[Tensor, "*B"], layer: int | None = None) -> Int[Tensor, "*B"]:
        """Patches along time of clips of `lengths` samples; a patch whose frames are not all there does not count."""
        if layer is not None:  # all layers divide time alike
            self.check_layers([layer])
        return torch.div(fbank.frames(lengths), self._settings.input_patch_size, rounding_mode="floor")

    def classify(
        self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B K"]:
        """Probabilities (B, classes) in [0, 1] of each class on its own, from a fine-tuned file.

        Raises EncoderError where there is no classifier, or a clip is too short.
        """
        if self.classifier is None:
            raise EncoderError("these weights of beats have no classifier; only fine-tuned files have one")
        grid = self.patches(waveform, lengths)
        grid = F.dropout(grid, self._settings.predictor_dropout, self.training)
        with self._precision(waveform.device.type):
            logits = self.classifier(grid).float()
        own = self._counts(waveform, lengths)
        inside = torch.arange(grid.shape[1], device=grid.device) < own[:, None]
        logits = (logits * inside[:, :, None, None]).sum((1, 2)) / (own * self.bands)[:, None]
        return torch.sigmoid(logits)

    def _blocks(self) -> list[_Block]:
        return [block for block in self.blocks if isinstance(block, _Block)]

    def _counts(self, waveform: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            lengths = torch.full((waveform.shape[0],), waveform.shape[1], device=waveform.device)
        return self.patch_counts(lengths)

    def _layers(self, waveform: Tensor, lengths: Tensor | None, which: Sequence[int]) -> list[Tensor]:
        whole = int(self.patch_counts(torch.tensor(waveform.shape[1])))
        clips = waveform.shape[0]
        counts = [whole] * clips if lengths is None else self.patch_counts(lengths).tolist()
        groups = _groups([count * self.bands for count in counts])

        x = self._positions(self._embed_patches(waveform, groups), groups)
        bias = self._bias(groups[0].tokens)
        drop = self._settings.encoder_layerdrop
        results: dict[int, Tensor] = {}
        for number, block in enumerate(self._blocks(), 1):
            if not (block.training and drop > 0 and torch.rand(()) < drop):
                if self.checkpointing and self.training and torch.is_grad_enabled():
                    x = recompute(block, x, groups, bias, use_reentrant=False)
                else:
                    x = block(x, groups, bias)
            if number in which:
                results[number] = x
            if number == max(which):
                break
        if self._settings.layer_norm_first and self.depth in results:
            results[self.depth] = self.norm(results[self.depth])
        grids = {number: self._grid(tokens, groups, clips, whole) for number, tokens in results.items()}
        return [grids[number] for number in which]

    def _embed_patches(self, waveform: Tensor, groups: Sequence[_Group]) -> Tensor:
        """Waveforms (B, T) to tokens (N, C), the patches of a moment behind each other from low to high."""
        size = self._settings.input_patch_size
        with contextlib.nullcontext() if waveform.requires_grad else torch.no_grad():
            bank = (fbank.kaldi_fbank(waveform.float() * _FULL_SCALE) - _MEAN) / (2 * _DEVIATION)
        parts = []
        for group in groups:
            times = group.tokens // self.bands
            own = bank[group.clips, : times * size, : self.bands * size]
            cut = own.reshape(len(group.clips), times, size, self.bands, size).transpose(2, 3)
            parts.append(cut.reshape(-1, size * size))
        kernel = self.patch_embedding
        x = F.linear(torch.cat(parts), kernel.weight.flatten(1), kernel.bias)
        x = self.patch_norm(x)
        if self.projection is not None:
            x = self.projection(x)
        return F.dropout(x, self._settings.dropout_input, self.patch_embedding.training)  # frozen stages drop nothing

    def _positions(self, x: Tensor, groups: Sequence[_Group]) -> Tensor:
        """Add to tokens (N, C) what the convolution over their neighbours tells of their place."""
        layer = self.pos_conv
        weight = layer.weight  # put together from length and direction, once for all groups
        # oneDNN's grouped convolution in bfloat16 gives wrong numbers where groups are narrow (torch 2.13)
        on_cpu = x.device.type == "cpu"
        with torch.autocast("cpu", enabled=False) if on_cpu else contextlib.nullcontext():
            own = [group.of(x.float() if on_cpu else x) for group in groups]
            learns = torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad)
            if on_cpu and not learns and len(x) >= _BY_WAVES * layer.kernel_size[0]:
                heard = [sums + layer.bias for sums in LongConvolution(weight, layer.groups)(own)]
            else:
                heard = [self._plain_sums(signal, weight) for signal in own]
            heard = [sums.flatten(0, 1) for sums in heard]
        x = x + F.gelu(torch.cat(heard))
        if not self._settings.layer_norm_first:
            x = self.norm(x)
        return F.dropout(x, self._settings.dropout, self.pos_conv.training)

    def _plain_sums(self, signal: Tensor, weight: Tensor) -> Tensor:
        """What the positional convolution hears in (B, L, C), of the same shape."""
        layer = self.pos_conv
        out = F.conv1d(
            signal.transpose(1, 2), weight, layer.bias, padding=self._settings.conv_pos // 2, groups=layer.groups
        )
        return out[..., : signal.shape[1]].transpose(1, 2)  # an even kernel gives one output too many

    def _bias(self, tokens: int) -> Tensor | None:
        """What attention adds to the score of each pair of tokens, (H, L, L); shorter clips take its upper left."""
        if self.relative_positions is None:
            return None
        table = self.relative_positions.weight
        distance = torch.arange(1 - tokens, tokens)  # key minus query
        numbers = _buckets(distance, self._settings.num_buckets, self._settings.max_distance)
        by_distance = F.embedding(numbers.to(table.device), table).T
        # row r of the unfolded vector starts at distance r - (L - 1), which is that of query L - 1 - r to key 0
        # laid out anew: a mask in the order that `flip` chooses is read ten times slower
        return by_distance.unfold(-1, tokens, 1).flip(1).contiguous()

    def _grid(self, x: Tensor, groups: Sequence[_Group], clips: int, whole: int) -> Tensor:
        """Tokens (N, C) back to clips (B, Pt, Pf, C), zero past a clip's own."""
        if len(groups) == 1 and groups[0].tokens == whole * self.bands:
            return x.view(clips, whole, self.bands, -1)
        grid = x.new_zeros(clips, whole * self.bands, x.shape[-1])
        for group in groups:
            grid[group.clips, : group.tokens] = group.of(x)
        return grid.unflatten(1, (whole, self.bands))

    @torch.no_grad()
    def _initialise(self) -> None:
        """Random weights as the authors start from."""
        a = self._settings
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        deviation = math.sqrt(4.0 / (a.conv_pos * a.encoder_embed_dim))
        self.pos_conv.weight = torch.randn_like(self.pos_conv.weight) * deviation
        nn.init.zeros_(self.pos_conv.bias)
        if a.deep_norm:
            gain = (8.0 * a.encoder_layers) ** -0.25
            for block in self._blocks():
                for layer in (block.attention.q_proj, block.attention.k_proj):
                    nn.init.xavier_normal_(layer.weight)
                first = block.fc1.linear if isinstance(block.fc1, _Gated) else block.fc1
                for layer in (block.attention.v_proj, block.attention.out_proj, first, block.fc2):
                    nn.init.xavier_normal_(layer.weight, gain)
