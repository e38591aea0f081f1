"""The laws that every encoder in the table obeys, built small and with random weights."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offkey.encoders import ENCODERS, build_encoder, encoder_class
from offkey.encoders.base import Encoder, EncoderError
from offkey.types import OffkeyError

SMALL = {
    "beats": {
        "encoder_layers": 2,
        "encoder_embed_dim": 48,
        "encoder_ffn_embed_dim": 96,
        "encoder_attention_heads": 4,
        "embed_dim": 32,
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "num_buckets": 32,
        "max_distance": 64,
        "finetuned_model": True,
        "predictor_class": 5,
    },
    "efficientat": {
        "width_mult": 0.1,
        "rate": 8000,
        "n_fft": 256,
        "window": 200,
        "hop": 64,
        "n_mels": 64,
        "f_max": 3900.0,
        "classes": 5,
    },
}


def randomise(encoder: Encoder, seed: int = 0) -> Encoder:
    """Weights that do something everywhere, norms and their running statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in [*encoder.named_parameters(), *encoder.named_buffers()]:
        if name not in encoder.state_dict() or not weight.is_floating_point():
            continue
        if weight.ndim > 1:
            scale = (weight.numel() / weight.shape[0]) ** -0.5
            weight.data.copy_(scale * torch.randn(weight.shape, generator=generator))
        elif name.endswith("bias") or name.endswith("running_mean"):
            weight.data.copy_(0.2 * torch.randn(weight.shape, generator=generator))
        else:
            weight.data.copy_(0.5 + torch.rand(weight.shape, generator=generator))
    return encoder


def small(name: str) -> Encoder:
    return randomise(build_encoder(name, SMALL[name])).eval()


@pytest.fixture(params=sorted(ENCODERS), scope="module")
def encoder(request):
    """Shared: nobody changes its weights."""
    return small(request.param)


@pytest.fixture
def fresh(encoder):
    """An encoder of one's own."""
    return small(encoder.name)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def edges(encoder: Encoder, most: int = 3) -> list[int]:
    """The lengths at which clips gain a patch, the shortest first."""
    lengths = torch.arange(encoder.shortest, encoder.shortest + 4 * round(encoder.patch_seconds * encoder.rate))
    counts = encoder.patch_counts(lengths)
    return lengths[1:][counts.diff() > 0][:most].tolist()


def is_classifier(name: str) -> bool:
    return name.startswith("classifier.")


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, relative: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert torch.isfinite(ours).all()
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


def test_the_laws_cover_the_whole_table():
    assert set(SMALL) == set(ENCODERS)


@torch.no_grad()
def test_a_batch_gives_what_its_clips_give_alone(encoder):
    waveform = noise(3, 2 * encoder.shortest + 3001)
    together = encoder.layers(waveform, None, range(1, encoder.depth + 1))
    told = encoder.layers(waveform, torch.full((3,), waveform.shape[1]), range(1, encoder.depth + 1))
    for number, clip in enumerate(waveform):
        alone = encoder.layers(clip[None], None, range(1, encoder.depth + 1))
        for ours, theirs, own in zip(together, told, alone, strict=True):
            assert_same(ours[number], own[0])
            assert_same(theirs[number], own[0])


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@torch.no_grad()
def test_what_lies_behind_a_clip_is_not_heard(encoder, data):
    second = encoder.rate
    ends = [encoder.shortest, *(edge + step for edge in edges(encoder) for step in (-1, 0, 1))]
    length = st.one_of(st.sampled_from(ends), st.integers(encoder.shortest, 3 * second // 2))
    lengths = data.draw(st.lists(length, min_size=1, max_size=4))
    total = max(lengths) + data.draw(st.sampled_from([0, 1, second // 3]))
    behind = data.draw(st.sampled_from([0.0, 100.0]))
    clips = [noise(n, seed=n) for n in lengths]
    waveform = torch.full((len(clips), total), behind)
    for row, clip in zip(waveform, clips, strict=True):
        row[: len(clip)] = clip
    before = waveform.clone()
    every = range(1, encoder.depth + 1)
    together = encoder.layers(waveform, torch.tensor(lengths), every)
    assert torch.equal(waveform, before)
    for number, clip in enumerate(clips):
        alone = encoder.layers(clip[None], None, every)
        for ours, own in zip(together, alone, strict=True):
            own_patches = own.shape[1]
            assert ours.shape[1] >= own_patches
            assert_same(ours[number, :own_patches], own[0])
            assert (ours[number, own_patches:] == 0).all()


@torch.no_grad()
def test_there_are_as_many_patches_as_promised(encoder):
    known = encoder.patch_counts(torch.tensor([[encoder.shortest, encoder.rate]]))
    assert known.shape == (1, 2)
    assert known.min() >= 1
    ends = edges(encoder)
    assert len(ends) == 3
    for edge in (encoder.shortest, *ends, 2 * encoder.rate):
        for length in {max(edge - 1, encoder.shortest), edge, edge + 1}:
            grid = encoder.patches(noise(1, length))
            assert grid.shape == (1, int(encoder.patch_counts(torch.tensor(length))), encoder.bands, encoder.dimension)
    step = torch.tensor(ends).diff().float() / encoder.rate
    torch.testing.assert_close(step, torch.full((2,), encoder.patch_seconds), atol=1e-6, rtol=0)


@torch.no_grad()
def test_every_layer_has_the_patches_and_the_shape_that_it_promises(encoder):
    every = range(1, encoder.depth + 1)
    for length in (encoder.shortest, edges(encoder)[0] - 1, edges(encoder)[0], encoder.rate + 77):
        for layer, grid in zip(every, encoder.layers(noise(1, length), None, every), strict=True):
            own = int(encoder.patch_counts(torch.tensor(length), layer))
            assert grid.shape == (1, own, *encoder.layer_shape(layer))
    lengths = torch.tensor([encoder.rate, encoder.rate // 2])
    assert torch.equal(encoder.patch_counts(lengths, encoder.depth), encoder.patch_counts(lengths))
    assert encoder.layer_shape(encoder.depth) == (encoder.bands, encoder.dimension)
    # what lies behind a clip's own patches is zero in every layer, and its last one is not
    for layer, grid in zip(every, encoder.layers(noise(2, encoder.rate), lengths, every), strict=True):
        own = int(encoder.patch_counts(lengths, layer)[1])
        assert grid[1, own - 1].any()
        assert not grid[1, own:].any()
    for layer in (0, encoder.depth + 1):
        for ask in (encoder.layer_shape, lambda which: encoder.patch_counts(lengths, which)):
            with pytest.raises(EncoderError, match=f"has layers 1 to {encoder.depth}"):
                ask(layer)


@torch.no_grad()
def test_a_sound_changes_most_the_patch_that_is_centred_on_it(encoder):
    quiet = noise(1, 3 * encoder.rate)
    grid = encoder.patches(quiet)
    for patch in (2, grid.shape[1] // 2):
        centre = round((encoder.patch_offset + patch * encoder.patch_seconds) * encoder.rate)
        half = round(encoder.patch_seconds * encoder.rate / 8)
        loud = quiet.clone()
        loud[:, centre - half : centre + half] *= 30
        assert (encoder.patches(loud) - grid).square().sum((0, 2, 3)).argmax() == patch


@torch.no_grad()
def test_the_embedding_is_the_mean_of_the_clips_own_patches(encoder):
    lengths = torch.tensor([encoder.rate, encoder.shortest, 2 * encoder.rate])
    waveform = noise(3, 2 * encoder.rate) * (torch.arange(2 * encoder.rate) < lengths[:, None])
    embedding = encoder.embed(waveform, lengths)
    for number, length in enumerate(lengths.tolist()):
        alone = encoder.patches(waveform[number : number + 1, :length])
        assert_same(embedding[number], alone.flatten(1, 2).mean(1)[0])
    assert_same(encoder.embed(waveform), encoder.patches(waveform).mean((1, 2)))


@torch.no_grad()
def test_layers_come_in_the_order_asked_for(encoder):
    waveform = noise(2, encoder.rate)
    last, first, again = encoder.layers(waveform, None, [encoder.depth, 1, encoder.depth])
    assert torch.equal(last, encoder.patches(waveform))
    assert torch.equal(last, encoder(waveform))
    assert torch.equal(last, again)
    assert torch.equal(first, encoder.layers(waveform, None, [1])[0])
    assert first.shape != last.shape or not torch.equal(first, last)


def test_what_is_not_there_is_refused(encoder):
    waveform = noise(2, encoder.rate)
    for which in ([], [0], [encoder.depth + 1], [1, -1]):
        with pytest.raises(EncoderError, match=f"has layers 1 to {encoder.depth}"):
            encoder.layers(waveform, None, which)
    short = encoder.shortest - 1
    with pytest.raises(EncoderError, match="too short"):
        encoder.patches(waveform[:, :short])
    with pytest.raises(EncoderError, match="too short"):
        encoder.patches(waveform, torch.tensor([encoder.rate, short]))
    with pytest.raises(OffkeyError, match="there is no encoder"):
        encoder_class("ears")


def test_stages_hold_every_weight_but_the_classifiers_once(encoder):
    stages = encoder.stages()
    names = [name for name, _ in stages]
    assert len(set(names)) == len(names)
    blocks = [name for name in names if name.startswith("block.")]
    assert blocks == [f"block.{number}" for number in range(len(blocks))]
    assert blocks
    held = Counter(id(weight) for _, modules in stages for module in modules for weight in module.parameters())
    expected = {id(weight): name for name, weight in encoder.named_parameters() if not is_classifier(name)}
    assert set(held.values()) == {1}
    assert set(held) == set(expected), sorted(expected[key] for key in set(expected) - set(held))
    saved = {value.data_ptr() for _, parts in stages for part in parts for value in part.state_dict().values()}
    missed = [
        name
        for name, value in encoder.state_dict().items()
        if not is_classifier(name) and value.data_ptr() not in saved
    ]
    assert not missed, "running statistics belong to a stage as well"


def test_attention_projections_are_linear_layers_of_the_stages(encoder):
    inside = {id(m) for _, modules in encoder.stages() for module in modules for m in module.modules()}
    for layer in encoder.attention_projections():
        assert isinstance(layer, nn.Linear)
        assert id(layer) in inside


@torch.no_grad()
def test_its_architecture_builds_the_same_network(encoder):
    again = build_encoder(encoder.name, json.loads(json.dumps(encoder.architecture)))
    assert again.architecture == encoder.architecture
    shapes = {name: value.shape for name, value in encoder.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes
    again.load_state_dict(encoder.state_dict())
    waveform = noise(2, encoder.rate)
    assert torch.equal(again.eval().patches(waveform), encoder.patches(waveform))
    assert again.fingerprint() == encoder.fingerprint()


def test_the_fingerprint_follows_every_weight_but_the_classifiers(fresh):
    first = fresh.fingerprint()
    assert len(first) == 32
    for name, value in fresh.state_dict().items():
        kept = value.clone()
        with torch.no_grad():
            value.view(-1)[-1] += 1
        assert (fresh.fingerprint() == first) == is_classifier(name), name
        with torch.no_grad():
            value.copy_(kept)
    assert fresh.fingerprint() == first
    fresh.bf16 = True
    assert fresh.fingerprint() != first


def test_with_and_without_its_classifier_an_encoder_is_the_same(encoder):
    bare = {name: told for name, told in encoder.architecture.items() if name not in encoder.classifier_settings}
    other = build_encoder(encoder.name, bare)
    found = other.load_state_dict({k: v for k, v in encoder.state_dict().items() if not is_classifier(k)}, strict=False)
    assert all(map(is_classifier, found.missing_keys))
    assert other.fingerprint() == encoder.fingerprint()


@torch.no_grad()
def test_the_same_clip_gives_the_same_bits(encoder):
    lengths = torch.tensor([encoder.rate, encoder.rate // 2])
    waveform = noise(2, encoder.rate)
    first = encoder.patches(waveform, lengths)
    encoder.patches(noise(1, 2 * encoder.rate, seed=5))  # nothing of another clip stays behind
    assert torch.equal(encoder.patches(waveform, lengths), first)
    assert not first.requires_grad


@torch.no_grad()
def test_the_callers_half_precision_does_not_reach_an_encoder_in_eval_mode(encoder):
    waveform = noise(2, encoder.rate)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder.patches(waveform)
    assert torch.equal(half, encoder.patches(waveform))


@torch.no_grad()
def test_bfloat16_comes_close_and_out_as_float32(encoder, fresh):
    fresh.bf16 = True
    waveform = noise(2, encoder.rate)
    lengths = torch.tensor([encoder.rate, encoder.rate // 2])
    for ours, exact in zip(
        fresh.layers(waveform, lengths, [1, encoder.depth]),
        encoder.layers(waveform, lengths, [1, encoder.depth]),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, exact)
        assert (ours - exact).norm() < 0.02 * exact.norm()


def test_training_moves_nothing_by_itself(encoder, fresh):
    fresh.train()
    assert fresh.training
    fresh.patches(noise(2, encoder.rate)).sum().backward()
    for (name, value), other in zip(encoder.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("lengths", [None, (1.0, 0.6)])
def test_gradients_reach_every_weight_and_checkpointing_changes_nothing(encoder, lengths):
    waveform = noise(2, encoder.rate)
    own = None if lengths is None else (torch.tensor(lengths) * encoder.rate).long()
    results = []
    for checkpointing in (False, True):
        net = small(encoder.name).train()
        net.checkpointing = checkpointing
        grid = net.patches(waveform, own)
        (grid * noise(*grid.shape, seed=9)).sum().backward()
        results.append((net, grid.detach()))
    (plain, grid), (again, grid_again) = results
    torch.testing.assert_close(grid_again, grid)
    torch.testing.assert_close(grid, encoder.patches(waveform, own).detach(), atol=1e-4, rtol=1e-4)
    for (name, weight), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        if is_classifier(name):
            assert weight.grad is None
            continue
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name
        torch.testing.assert_close(other.grad, weight.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_checkpointing_keeps_less(encoder):
    kept = []
    for checkpointing in (False, True):
        net = small(encoder.name).train()
        net.checkpointing = checkpointing
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            grid = net.patches(noise(2, 2 * encoder.rate))
        kept.append(sum(sizes.values()))
        assert grid.requires_grad
    assert kept[1] < 0.7 * kept[0]


@torch.no_grad()
def test_the_classifier_hears_the_clip_alone_and_answers_in_probabilities(encoder):
    waveform = noise(2, encoder.rate)
    lengths = torch.tensor([encoder.rate, encoder.rate * 2 // 3])
    answer = encoder.classify(waveform, lengths)
    assert answer.shape == (2, 5)
    assert answer.min() >= 0
    assert answer.max() <= 1
    assert_same(answer[1:], encoder.classify(waveform[1:, : int(lengths[1])]))
