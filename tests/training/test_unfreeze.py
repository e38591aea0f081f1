"""Exactly what a mode names learns: every tensor of an encoder is compared before and after training steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offkey.encoders import EncoderConfig, build_encoder
from offkey.encoders.base import Encoder
from offkey.encoders.checkpoint import Checkpoint
from offkey.training.config import TrainingConfig
from offkey.training.optimiser import make_optimiser
from offkey.training.unfreeze import merge, unfreeze
from offkey.types import OffkeyError


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(size, size) for _ in range(3))
        self.norm = nn.BatchNorm1d(size)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return x + self.dropout(self.norm(y.transpose(1, 2)).transpose(1, 2))


class Toy(Encoder):
    """Every kind of part that matters here; 100 samples a patch."""

    name, usual_weights = "toy", "toy"
    rate, dimension, bands, depth, shortest = 1000, 8, 1, 4, 100
    patch_seconds, patch_offset = 0.1, 0.05

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(100, 8)
        self.position = nn.Conv1d(8, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Block(8) for _ in range(4))
        self.last_norm = nn.LayerNorm(8)
        self.classifier = nn.Linear(8, 3)

    @classmethod
    def build(cls, architecture: Mapping[str, Any]) -> Toy:
        return cls()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, classifier: bool = True) -> Toy:
        raise NotImplementedError

    @property
    def architecture(self) -> dict[str, Any]:
        return {}

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        blocks = [(f"block.{number}", [block]) for number, block in enumerate(self.blocks)]
        return [("patch_embedding", [self.embedding]), ("pos_conv", [self.position]), *blocks,
                ("norm", [self.last_norm])]  # fmt: skip

    def patch_counts(self, lengths: Tensor, layer: int | None = None) -> Tensor:
        return lengths // 100

    def attention_projections(self) -> list[nn.Linear]:
        return [layer for block in self.blocks for layer in (block.q, block.v)]

    def _layers(self, waveform: Tensor, lengths: Tensor | None, which: Sequence[int]) -> list[Tensor]:
        x = self.embedding(waveform.unflatten(1, (-1, 100)))
        x = x + self.position(x.transpose(1, 2)).transpose(1, 2)
        found = {}
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            found[number] = x[:, :, None]
        found[self.depth] = self.last_norm(x)[:, :, None]
        return [found[number] for number in which]


SMALL_BEATS = {
    "encoder_layers": 4,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "embed_dim": 32,
    "conv_pos": 16,
    "conv_pos_groups": 4,
}


def make(name: str) -> Encoder:
    torch.manual_seed(0)
    if name == "toy":
        return Toy().eval()
    pytest.importorskip(f"offkey.encoders.{name}")
    return build_encoder(name, SMALL_BEATS if name == "beats" else {"width_mult": 0.1, "classes": 5}).eval()


def noise(encoder: Encoder, seconds: float = 1.0) -> Tensor:
    return 0.1 * torch.randn(3, int(encoder.rate * seconds), generator=torch.Generator().manual_seed(5))


def train(encoder: Encoder, steps: int = 2) -> None:
    """Steps of AdamW as `train` makes them, on a loss that every patch changes."""
    owner = nn.Module()
    owner.encoder = encoder
    owner.encoder_rates = encoder.rates  # type: ignore[assignment]
    optimiser = make_optimiser(owner, TrainingConfig(encoder_learning_rate=1e-3))
    encoder.train()
    waveform = noise(encoder)
    for _ in range(steps):
        grid = encoder.patches(waveform)
        wanted = torch.randn(grid.shape, generator=torch.Generator().manual_seed(9))
        (grid - wanted).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def moved(encoder: Encoder, work: Callable[[], None]) -> set[str]:
    """Names of the tensors, buffers included, that `work` changes."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    work()
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def parts(encoder: Encoder, *stages: str) -> set[str]:
    """Names of the stages' parameters; `build` has put no buffer among them."""
    chosen = [modules for name, modules in encoder.stages() if name in stages]
    assert len(chosen) == len(stages)
    own = {id(weight) for modules in chosen for module in modules for weight in module.parameters()}
    return {name for name, weight in encoder.named_parameters() if id(weight) in own}


FIRST, LAST = ("patch_embedding", "pos_conv"), ("block.2", "block.3")
TOY = {
    "all": ("embedding.", "position.", "blocks.", "last_norm."),
    "pos_conv": ("position.",),
    "last:1": ("blocks.3.", "last_norm."),
    "last:4": ("blocks.", "last_norm."),
    "last:2+pos_conv": ("position.", "blocks.2.", "blocks.3.", "last_norm."),
}


@pytest.mark.parametrize(("mode", "prefixes"), TOY.items(), ids=TOY.keys())
def test_what_a_mode_names_moves_and_nothing_else(mode: str, prefixes: tuple[str, ...]) -> None:
    encoder = make("toy")
    unfreeze(encoder, EncoderConfig(unfreeze=mode))
    expected = {name for name, _ in encoder.named_parameters() if name.startswith(prefixes)}
    # a key's offset adds the same to every logit of a query: its gradient is rounding noise, or nothing
    assert moved(encoder, lambda: train(encoder)) | {f"blocks.{n}.k.bias" for n in range(4)} & expected == expected


@pytest.mark.parametrize(
    ("name", "mode", "prefixes"),
    [
        ("efficientat", "all", ("stem.", "blocks.", "head.")),
        ("efficientat", "last:2", ("blocks.13.", "blocks.14.", "head.")),
        ("efficientat", "last:4+pos_conv", ("blocks.11.", "blocks.12.", "blocks.13.", "blocks.14.", "head.")),
    ],
)
def test_what_a_mode_names_of_efficientat_moves_and_nothing_else(
    name: str, mode: str, prefixes: tuple[str, ...]
) -> None:
    encoder = make(name)
    unfreeze(encoder, EncoderConfig(unfreeze=mode))
    expected = {key for key, _ in encoder.named_parameters() if key.startswith(prefixes)}
    assert expected
    assert moved(encoder, lambda: train(encoder)) == expected


@pytest.mark.parametrize("mode", ["all", "pos_conv", "last:2", "last:2+pos_conv"])
def test_what_a_mode_names_of_beats_moves_and_nothing_else(mode: str) -> None:
    encoder = make("beats")
    names = [name for name, _ in encoder.stages()]
    told = unfreeze(encoder, EncoderConfig(unfreeze=mode))
    first = names.index("block.2")
    wanted = {
        "all": names, "pos_conv": ["pos_conv"], "last:2": names[first:], "last:2+pos_conv": ["pos_conv", *names[first:]]
    }[mode]  # fmt: skip
    assert told.stages == tuple(wanted)
    assert not told.remarks
    expected = parts(encoder, *wanted)
    changed = moved(encoder, lambda: train(encoder))
    assert changed <= expected
    assert all("k_proj" in name for name in expected - changed)


@pytest.mark.parametrize("name", ["toy", "efficientat", "beats"])
def test_a_frozen_encoder_costs_no_graph_and_stays_in_eval_mode(name: str) -> None:
    encoder = make(name)
    assert unfreeze(encoder, EncoderConfig()) == ((), ())
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert encoder.patches(noise(encoder)).grad_fn is None
    assert list(encoder.rates()) == []


@pytest.mark.parametrize("name", ["toy", "efficientat", "beats"])
def test_below_the_first_stage_that_learns_there_is_no_graph(name: str) -> None:
    encoder = make(name)
    unfreeze(encoder, EncoderConfig(unfreeze="last:1"))
    encoder.train()
    blocks = [modules[0] for stage, modules in encoder.stages() if stage.startswith("block.")]
    seen = {}
    for place, block in enumerate(blocks[-2:]):
        block.register_forward_hook(lambda _, given, made, place=place: seen.update({place: (given[0], made)}))
    encoder.patches(noise(encoder))
    needed = {place: [_any_gradient(value) for value in pair] for place, pair in seen.items()}
    assert needed == {0: [False, False], 1: [False, True]}


def _any_gradient(value: Tensor | tuple[Tensor | None, ...]) -> bool:
    values = (value,) if isinstance(value, Tensor) else value
    return any(item is not None and item.requires_grad for item in values)


def test_only_what_learns_is_in_training_mode_and_batch_norms_never_are() -> None:
    encoder = make("toy")
    unfreeze(encoder, EncoderConfig(unfreeze="last:1"))
    encoder.train()
    active = {name for name, module in encoder.named_modules() if module.training}
    assert active == {"", "last_norm", *("blocks.3" + part for part in ("", ".q", ".k", ".v", ".dropout"))}
    encoder.eval()
    assert not any(module.training for module in encoder.modules())


def test_frozen_stages_drop_nothing_out_while_others_do() -> None:
    encoder = make("toy")
    waveform = noise(encoder)
    plain = encoder.layers(waveform, None, [3, 4])
    unfreeze(encoder, EncoderConfig(unfreeze="last:1"))
    encoder.train()
    third, fourth = encoder.layers(waveform, None, [3, 4])
    assert torch.equal(third, plain[0])
    assert not torch.equal(fourth, plain[1])


def test_frozen_stages_of_beats_drop_nothing_out() -> None:
    torch.manual_seed(0)
    drops = ("dropout", "attention_dropout", "activation_dropout", "dropout_input", "encoder_layerdrop")
    encoder = build_encoder("beats", SMALL_BEATS | dict.fromkeys(drops, 0.5)).eval()
    waveform = noise(encoder)
    unfreeze(encoder, EncoderConfig())
    plain = encoder.layers(waveform, None, [1, 2, 3, 4])
    unfreeze(encoder, EncoderConfig(unfreeze="last:1"))
    encoder.train()
    for before, now in zip(plain[:3], encoder.layers(waveform, None, [1, 2, 3, 4]), strict=False):
        torch.testing.assert_close(now, before)


def test_an_owner_hands_its_mode_on() -> None:
    encoder = make("toy")
    unfreeze(encoder, EncoderConfig(unfreeze="pos_conv"))
    whole = nn.Sequential(encoder, nn.Dropout()).train()
    assert whole[1].training
    assert encoder.training
    assert encoder.position.training
    assert not encoder.blocks[0].training
    whole.eval()
    assert not any(module.training for module in whole.modules())


def test_a_second_call_forgets_the_first() -> None:
    encoder = make("toy")
    unfreeze(encoder, EncoderConfig(unfreeze="all"))
    unfreeze(encoder, EncoderConfig(unfreeze="pos_conv"))
    assert {name for name, weight in encoder.named_parameters() if weight.requires_grad} == {
        "position.weight", "position.bias"
    }  # fmt: skip


def test_more_blocks_than_there_are_is_an_error_that_counts_them() -> None:
    encoder = make("toy")
    before = [weight.requires_grad for weight in encoder.parameters()]
    with pytest.raises(OffkeyError, match=r"last:5.*toy has 4 blocks"):
        unfreeze(encoder, EncoderConfig(unfreeze="last:5+pos_conv"))
    assert [weight.requires_grad for weight in encoder.parameters()] == before


@pytest.mark.parametrize(("mode", "word"), [("last:4+pos_conv", "the other layers"), ("pos_conv", "no layer")])
def test_a_missing_positional_convolution_is_remarked(mode: str, word: str) -> None:
    told = unfreeze(make("efficientat"), EncoderConfig(unfreeze=mode))
    assert len(told.remarks) == 1
    assert "efficientat has no positional convolution" in told.remarks[0]
    assert word in told.remarks[0]
    assert len(told.stages) == (5 if "last" in mode else 0)


@pytest.mark.parametrize("name", ["toy", "beats"])
def test_low_rank_changes_start_at_nothing_and_alone_move(name: str) -> None:
    encoder = make(name)
    waveform = noise(encoder)
    layout = list(encoder.state_dict())
    with torch.no_grad():  # where something learns, an encoder may take another way to the same numbers
        plain = encoder.patches(waveform)
        told = unfreeze(encoder, EncoderConfig(lora_rank=3))
        assert torch.equal(encoder.patches(waveform), plain)
    assert told.stages == ()
    changes = {name for name, _ in encoder.named_parameters() if name.endswith(("weight.0.a", "weight.0.b"))}
    assert len(changes) == 4 * len(encoder.attention_projections()) / 2
    assert moved(encoder, lambda: train(encoder)) == changes
    encoder.eval()
    adapted = encoder.patches(waveform)
    assert not torch.allclose(adapted, plain)
    merge(encoder)
    torch.testing.assert_close(encoder.patches(waveform), adapted, rtol=1e-5, atol=1e-6)
    assert list(encoder.state_dict()) == layout
    fresh = make(name)
    fresh.load_state_dict(encoder.state_dict())
    unfreeze(fresh, EncoderConfig())
    unfreeze(encoder, EncoderConfig())
    torch.testing.assert_close(fresh.patches(waveform), encoder.patches(waveform), rtol=0, atol=0)
    merge(fresh)  # nothing to fold, nothing done


def test_a_low_rank_change_is_alpha_over_rank_times_the_product() -> None:
    encoder = make("toy")
    base = encoder.blocks[1].v.weight.detach().clone()
    unfreeze(encoder, EncoderConfig(lora_rank=2, lora_alpha=6.0))
    change = encoder.blocks[1].v.parametrizations["weight"][0]
    nn.init.normal_(change.b)
    left, right = change.b.tolist(), change.a.tolist()
    by_hand = base.clone()
    for row in range(8):
        for column in range(8):
            by_hand[row, column] += 3.0 * sum(left[row][r] * right[r][column] for r in range(2))
    torch.testing.assert_close(encoder.blocks[1].v.weight.detach(), by_hand)
    assert 0.5 < change.a.std().item() * 24**0.5 < 2


def test_low_rank_changes_go_with_stages_that_learn_themselves() -> None:
    encoder = make("toy")
    unfreeze(encoder, EncoderConfig(unfreeze="last:1", lora_rank=1))
    learning = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert "blocks.3.q.parametrizations.weight.original" in learning
    assert "blocks.2.q.parametrizations.weight.original" not in learning
    assert "blocks.0.q.parametrizations.weight.0.a" in learning
    with pytest.raises(OffkeyError, match="merge"):
        unfreeze(encoder, EncoderConfig())


def test_low_rank_changes_need_attention() -> None:
    with pytest.raises(OffkeyError, match=r"lora_rank is 4.*efficientat has no attention"):
        unfreeze(make("efficientat"), EncoderConfig(lora_rank=4))


def test_the_rate_decays_from_the_last_stage_to_the_first() -> None:
    encoder = make("toy")
    unfreeze(encoder, EncoderConfig(unfreeze="all", lora_rank=1))
    factors = {id(weight): factor for weight, factor in encoder.rates(0.5)}
    named = {name: factors.get(id(weight)) for name, weight in encoder.named_parameters()}
    assert named["last_norm.weight"] == 1.0
    assert named["blocks.3.norm.weight"] == named["blocks.3.v.parametrizations.weight.0.b"] == 0.5
    assert named["blocks.0.k.bias"] == 0.5**4
    assert named["position.weight"] == 0.5**5
    assert named["embedding.bias"] == 0.5**6
    assert named["classifier.weight"] is None
    assert [weight for weight, _ in encoder.rates(0.5)] == [weight for weight, _ in encoder.rates()]
