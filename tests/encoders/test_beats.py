import copy
import importlib.util
import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from offkey.encoders import beats
from offkey.encoders.base import EncoderError
from offkey.encoders.beats import Beats, BeatsArchitecture
from offkey.encoders.checkpoint import Checkpoint

GOLDEN = Path(__file__).parent / "beats_golden"


def golden_script():
    spec = importlib.util.spec_from_file_location("beats_golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = golden_script()


def golden():
    """The golden file's cfg, weights and results."""
    with safe_open(SCRIPT.PLACE, "pt") as file:
        cfg = json.loads(file.metadata()["cfg"])
        weights = {name[6:]: file.get_tensor(name) for name in file.keys() if name.startswith("model.")}  # noqa: SIM118
        results = {name[4:]: file.get_tensor(name) for name in file.keys() if name.startswith("out.")}  # noqa: SIM118
    return cfg, weights, results


def small(*, classifier=True, **changes):
    """The golden network, with changes that leave its shapes alone."""
    cfg, weights, _ = golden()
    return Beats.from_checkpoint(Checkpoint(Path("small.pt"), cfg | changes, weights), classifier=classifier)


def noise(clips, samples, seed=1):
    return torch.stack([SCRIPT.waveform(seed + clip, samples) for clip in range(clips)])


def close(result, expected, bound=1e-5):
    """Whether two tensors differ by at most `bound` of the largest number."""
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= bound * expected.abs().max()


def stages_of(encoder, waveform, lengths=None):
    """What enters the first block, as (B, tokens, C); all clips of the same length, or alone."""
    found = {}
    hooks = [
        encoder.blocks[0].register_forward_pre_hook(lambda _m, given: found.update(positions=given[0])),
        encoder.patch_norm.register_forward_hook(lambda _m, _i, out: found.update(patch_norm=out)),
        *(
            [encoder.projection.register_forward_hook(lambda _m, _i, out: found.update(patch_embedding=out))]
            if encoder.projection is not None
            else []
        ),
    ]
    layers = encoder.layers(waveform, lengths, range(1, encoder.depth + 1))
    for hook in hooks:
        hook.remove()
    found.setdefault("patch_embedding", found["patch_norm"])
    found |= {f"block.{number}": grid.flatten(1, 2) for number, grid in enumerate(layers)}
    return {name: x.unflatten(0, (len(waveform), -1)) if x.dim() == 2 else x for name, x in found.items()}


# ---- parity


def test_golden_numbers():
    _, _, expected = golden()
    encoder, clip = small(), SCRIPT.waveform(7, 16000)[None]
    with torch.inference_mode():
        found = stages_of(encoder, clip)
        for name in ("patch_norm", "patch_embedding", "positions", "block.0", "block.1"):
            close(found[name][0], expected[name])
        close(encoder.patches(clip)[0].flatten(0, 1), expected["output"])
        close(encoder.classify(clip)[0], expected["probabilities"])


VARIANTS = {
    "as released": {},
    "pre-trained": {"finetuned_model": False},
    "no gates": {"gru_rel_pos": False},
    "no distances": {"relative_position_embedding": False, "gru_rel_pos": False},
    "gates of nothing": {"relative_position_embedding": False},
    "plain residuals": {"deep_norm": False},
    "norm first": {"deep_norm": False, "layer_norm_first": True},
    "glu": {"deep_norm": False, "activation_fn": "glu"},
    "gelu_accurate": {"activation_fn": "gelu_accurate"},
    "relu": {"activation_fn": "relu"},
    "tanh": {"activation_fn": "tanh"},
    "linear": {"activation_fn": "linear"},
    "no projection": {"embed_dim": 32},
    "bias in patches": {"conv_bias": True},
    "odd kernel": {"conv_pos": 15},
    "half patches": {"input_patch_size": 8, "num_buckets": 17},
    "patches that leave bands over": {"input_patch_size": 12},
}


@pytest.fixture
def released():
    folder, path = os.environ.get("OFFKEY_BEATS_REFERENCE"), os.environ.get("OFFKEY_KALDI_REFERENCE")
    if not folder or not path:
        pytest.skip("OFFKEY_BEATS_REFERENCE and OFFKEY_KALDI_REFERENCE do not name the authors' code")
    with SCRIPT.released(folder, path) as module:
        yield module


def compare(released, cfg, samples, tokens=None):
    """Every part of the authors' network beside ours; returns both networks."""
    model = SCRIPT.random_model(released, cfg, seed=5)
    encoder = Beats.from_checkpoint(Checkpoint(Path("random.pt"), cfg, model.state_dict()))
    clips = noise(2, samples) * torch.tensor([[1.0], [0.01]])
    with torch.inference_mode():
        theirs, ours = SCRIPT.parts(model, clips), stages_of(encoder, clips)
        for name in ours:
            if not (cfg["layer_norm_first"] and name == f"block.{encoder.depth - 1}"):
                close(ours[name], theirs[name])
        close(encoder.patches(clips).flatten(1, 2), theirs["output"])
        if cfg["finetuned_model"]:
            close(encoder.classify(clips), model.extract_features(clips)[0])
        else:
            close(encoder.patches(clips).flatten(1, 2), model.extract_features(clips)[0])
    return model, encoder


@pytest.mark.parametrize("variant", VARIANTS)
def test_released_code_gives_the_same_numbers(released, variant):
    compare(released, SCRIPT.SMALL | VARIANTS[variant], 24000)


@pytest.mark.parametrize("variant", ["as released", "norm first", "no gates", "no distances"])
def test_released_code_gives_the_same_numbers_for_padded_clips(released, variant):
    cfg = SCRIPT.SMALL | VARIANTS[variant]
    model, encoder = compare(released, cfg, 16000)
    lengths = torch.tensor([32000, 2800, 16000, 20000, 25000])
    clips = noise(5, 32000)
    counts = encoder.patch_counts(lengths)
    with torch.inference_mode():
        theirs = SCRIPT.parts(model, clips, counts * encoder.bands)
        layers = encoder.layers(clips, lengths, [1, 2])
        for clip, count in enumerate(counts.tolist()):
            close(layers[0][clip, :count].flatten(0, 1), theirs["block.0"][clip, : count * encoder.bands])
            close(layers[1][clip, :count].flatten(0, 1), theirs["output"][clip, : count * encoder.bands])
        close(encoder.classify(clips, lengths), theirs["classes"])


def test_released_code_gives_the_same_numbers_at_full_size(released):
    compare(released, SCRIPT.FULL, 32000)


def test_bucket_numbers():
    def bucket(distance, buckets, farthest):
        half, own = buckets // 2, abs(distance)
        exact = half // 2
        if own >= exact:
            growth = torch.tensor(own / exact, dtype=torch.float32).log() / math.log(farthest / exact)
            own = min(exact + int(growth * (half - exact)), half - 1)
        return own + (half if distance > 0 else 0)

    for buckets, farthest in ((320, 800), (320, 1280), (32, 80), (17, 50), (4, 3)):
        distance = torch.arange(-1500, 1501)
        expected = [bucket(d, buckets, farthest) for d in distance.tolist()]
        assert beats._buckets(distance, buckets, farthest).tolist() == expected


def test_attention_beside_plain_loops():
    encoder = small()
    attention = encoder.blocks[1].attention.double()
    heads, size, width = attention.heads, 7, encoder.dimension
    x = torch.randn(size, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    bias = torch.randn(heads, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    depth = width // heads
    q, k, v = (
        (x @ layer.weight.T + layer.bias).view(size, heads, depth)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    heard = torch.zeros(size, heads, depth, dtype=torch.float64)
    for head in range(heads):
        for i in range(size):
            eight = attention.gate.weight @ q[i, head] + attention.gate.bias
            update, reset = torch.sigmoid(eight[:4].sum()), torch.sigmoid(eight[4:].sum())
            gate = update * (reset * attention.gate_scale[0, head, 0, 0] - 1) + 2
            scores = [q[i, head] @ k[j, head] / depth**0.5 + gate * bias[head, i, j] for j in range(size)]
            share = torch.softmax(torch.stack(scores), 0)
            heard[i, head] = sum(share[j] * v[j, head] for j in range(size))
    expected = heard.flatten(1) @ attention.out_proj.weight.T + attention.out_proj.bias
    for learns in (True, False):
        result = attention(x, beats._groups([size]), bias, learns)
        assert result.dtype == torch.float64
        close(result, expected, 1e-6)  # the gates are float32


def test_bias_is_read_by_key_minus_query():
    encoder = small()
    bias = encoder._bias(40)
    table = encoder.relative_positions.weight
    for query, key in ((0, 0), (0, 39), (39, 0), (3, 20), (20, 3)):
        number = beats._buckets(torch.tensor([key - query]), 32, 80)
        assert torch.equal(bias[:, query, key], table[number[0]])


# ---- laws


LENGTHS = torch.tensor([16000, 2800, 40000, 16000, 5000, 25000])


def test_a_clip_is_alone_in_its_batch():
    encoder, clips = small(), noise(6, 40000)
    clips[torch.arange(40000) >= LENGTHS[:, None]] = torch.nan  # what lies behind a clip is nobody's business
    with torch.inference_mode():
        grids = encoder.layers(clips, LENGTHS, [2, 1])
        classes = encoder.classify(clips, LENGTHS)
        means = encoder.embed(clips, LENGTHS)
        counts = encoder.patch_counts(LENGTHS)
        for clip, length in enumerate(LENGTHS):
            alone = clips[clip : clip + 1, :length]
            for grid, expected in zip(grids, encoder.layers(alone, None, [2, 1]), strict=True):
                close(grid[clip : clip + 1, : counts[clip]], expected)
                assert not grid[clip, counts[clip] :].any()
            close(classes[clip], encoder.classify(alone)[0])
            close(means[clip], encoder.embed(alone)[0])


def test_lengths_below_the_width_of_the_batch():
    encoder, clips = small(), noise(2, 40000)
    with torch.inference_mode():
        grid = encoder.patches(clips, torch.tensor([16000, 16000]))
        assert grid.shape == (2, 15, 8, 32)
        close(grid[:, :6], encoder.patches(clips[:, :16000]))
        assert not grid[:, 6:].any()


def test_shortest_clip_and_a_sample_less():
    encoder = small()
    assert encoder.patches(noise(1, encoder.shortest)).shape == (1, 1, 8, 32)
    with pytest.raises(EncoderError, match="too short"):
        encoder.patches(noise(1, encoder.shortest - 1))
    assert encoder.patch_counts(torch.tensor([0, 2799, 2800, 16000, 160000])).tolist() == [0, 0, 1, 6, 62]


def test_a_minute_in_one_piece():
    encoder = Beats.build(
        {"embed_dim": 8, "encoder_layers": 1, "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 8,
         "encoder_attention_heads": 1, "conv_pos_groups": 2}
    ).eval()  # fmt: skip
    clip = noise(1, 960000)
    with torch.inference_mode():
        grid = encoder.patches(clip)
        assert grid.shape == (1, 374, 8, 8)
        assert grid.isfinite().all()
        padded = torch.cat([clip, torch.zeros(1, 30000)], 1)
        close(encoder.patches(padded, torch.tensor([960000]))[:, :374], grid)


def test_patches_lie_where_their_times_say():
    encoder = small()
    found = {}
    encoder.patch_embedding.weight.data.abs_()
    encoder.patch_norm.register_forward_pre_hook(lambda _m, given: found.update(x=given[0]))
    clip = torch.zeros(1, 32000)
    centre = encoder.patch_offset + 5 * encoder.patch_seconds
    clip[0, round(centre * 16000)] = 1.0  # a click in the middle of patch 5
    encoder.patches(clip)
    assert int(found["x"].view(12, 8, -1).sum((1, 2)).argmax()) == 5


def test_pieces_that_fit_a_cache_change_nothing(monkeypatch):
    encoder, clips = small(), noise(6, 40000)
    with torch.inference_mode():
        whole = encoder.patches(clips, LENGTHS)
        monkeypatch.setattr(beats, "_MASK_ELEMENTS", 2 * 48**2)
        monkeypatch.setattr(beats, "_TOKENS_AT_A_TIME", 7)
        close(encoder.patches(clips, LENGTHS), whole)
    close(encoder.patches(clips, LENGTHS).detach(), whole)  # the way of training


def test_layers_come_in_the_order_asked_for():
    encoder, clips = small(), noise(1, 8000)
    with torch.inference_mode():
        last, first, again = encoder.layers(clips, None, [2, 1, 2])
        assert torch.equal(last, again)
        assert torch.equal(last, encoder.patches(clips))
        assert not torch.equal(first, last)
    for wrong in ([], [0], [3]):
        with pytest.raises(EncoderError, match="layers 1 to 2"):
            encoder.layers(clips, None, wrong)


def gradients(encoder, clips, lengths):
    encoder.zero_grad()
    grid = encoder.patches(clips, lengths)
    (grid * torch.randn(grid.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return {name: weight.grad for name, weight in encoder.named_parameters()}


@pytest.mark.parametrize("changes", [{}, {"deep_norm": False, "layer_norm_first": True}])
def test_every_weight_learns_and_recomputing_changes_no_gradient(changes):
    encoder, clips = small(classifier=False, encoder_layerdrop=0.0, **changes).train(), noise(6, 40000)
    plain = gradients(encoder, clips, LENGTHS)
    # a bias of the keys moves all scores of a query alike
    still = [name for name, grad in plain.items() if grad is None or grad.abs().max() < 1e-4]
    assert all(name.endswith("k_proj.bias") for name in still), still
    encoder.checkpointing = True
    for name, grad in gradients(encoder, clips, LENGTHS).items():
        torch.testing.assert_close(grad, plain[name], rtol=1e-4, atol=1e-4)


def test_recomputing_repeats_dropout():
    encoder, clips = small(classifier=False, dropout=0.2, attention_dropout=0.2, activation_dropout=0.2).train(), None
    clips = noise(2, 8000)
    torch.manual_seed(4)
    plain = gradients(encoder, clips, None)
    encoder.checkpointing = True
    torch.manual_seed(4)
    for name, grad in gradients(encoder, clips, None).items():
        torch.testing.assert_close(grad, plain[name], rtol=1e-4, atol=1e-4)


def test_a_frozen_encoder_leaves_no_trace():
    encoder = small().requires_grad_(False).train()
    assert encoder.patches(noise(2, 8000)).grad_fn is None
    encoder.blocks[1].fc2.weight.requires_grad_(True)
    grid = encoder.patches(noise(2, 8000))
    grid.sum().backward()
    assert [name for name, weight in encoder.named_parameters() if weight.grad is not None] == ["blocks.1.fc2.weight"]


def test_dropouts_and_left_out_blocks_are_for_training_only():
    changes = {"dropout": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5, "dropout_input": 0.5}
    encoder, clips = small(**changes, predictor_dropout=0.5), noise(1, 8000)
    with torch.no_grad():
        close(encoder.patches(clips), small().patches(clips))
        close(encoder.classify(clips), small().classify(clips))
        encoder.train()
        assert not torch.equal(encoder.patches(clips), encoder.patches(clips))
        encoder = small(encoder_layerdrop=0.999).train()
        blocks = [encoder.layers(clips, None, [1, 2]) for _ in range(3)]
        assert any(torch.equal(first, second) for first, second in blocks)


def test_half_precision_is_close_and_comes_out_as_float32():
    encoder, clips = small(), noise(3, 16000)
    with torch.inference_mode():
        exact = encoder.patches(clips)
        encoder.bf16 = True
        half = encoder.patches(clips)
        assert half.dtype == torch.float32
        assert not torch.equal(half, exact)
        close(half, exact, 0.05)
    encoder.train()
    assert all(grad.isfinite().all() for grad in gradients(encoder, clips, None).values() if grad is not None)


def test_a_caller_in_half_precision_gets_full_precision():
    encoder, clips = small(), noise(2, 16000)
    with torch.inference_mode():
        exact = encoder.patches(clips)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder.patches(clips), exact)
            classes = encoder.classify(clips)
        assert torch.equal(classes, encoder.classify(clips))


class _Shift(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.shift = nn.Parameter(torch.full_like(weight, 0.05))

    def forward(self, weight):
        return weight + self.shift


def test_low_rank_adaptation_reaches_query_and_value():
    encoder, clips = small(classifier=False).requires_grad_(False), noise(2, 8000)
    before = encoder.patches(clips)
    projections = encoder.attention_projections()
    assert [id(p) for p in projections] == [
        id(p) for block in encoder.blocks for p in (block.attention.q_proj, block.attention.v_proj)
    ]
    for layer in projections:
        nn.utils.parametrize.register_parametrization(layer, "weight", _Shift(layer.weight))
    after = encoder.patches(clips)
    assert (after - before).abs().max() > 1e-3
    after.square().sum().backward()
    assert all(layer.parametrizations.weight[0].shift.grad.abs().max() > 0 for layer in projections)


@pytest.mark.parametrize("changes", [{}, {"deep_norm": False, "layer_norm_first": True}, {"embed_dim": 32}])
def test_stages_hold_every_weight_once(changes):
    encoder = Beats.build(SCRIPT.SMALL | changes)
    names = [name for name, _ in encoder.stages()]
    assert names[:5] == ["patch_embedding", "pos_conv", "relative_positions", "block.0", "block.1"]
    held = [id(weight) for _, modules in encoder.stages() for module in modules for weight in module.parameters()]
    every = [id(weight) for name, weight in encoder.named_parameters() if not name.startswith("classifier.")]
    assert sorted(held) == sorted(every)
    assert len(set(held)) == len(held)


def test_fingerprint_follows_weights_and_leaves_the_classifier_out():
    encoder = small()
    print_ = encoder.fingerprint()
    assert print_ == small().fingerprint()
    encoder.classifier.weight.data.add_(1.0)
    assert encoder.fingerprint() == print_
    for change in (encoder.relative_positions.weight, encoder.blocks[1].attention.gate_scale, encoder.norm.bias):
        before = encoder.fingerprint()
        change.data.view(-1)[-1] += 1e-3
        assert encoder.fingerprint() != before


def test_architecture_builds_the_same_network():
    encoder = small()
    settings = json.loads(json.dumps(encoder.architecture))
    twin = Beats.build(settings).eval()
    twin.load_state_dict(encoder.state_dict())
    clips = noise(1, 8000)
    with torch.inference_mode():
        assert torch.equal(twin.patches(clips), encoder.patches(clips))
    assert twin.architecture == encoder.architecture


def test_defaults_are_those_of_the_released_models():
    with torch.device("meta"):
        encoder = Beats(BeatsArchitecture())
    weights = sum(weight.numel() for weight in encoder.parameters())
    # official pre-trained files have 361,499,833 bytes: four a weight, eleven copies of the distances, and names
    assert 0 <= 361_499_833 - 4 * (weights + 11 * 320 * 12) < 100_000
    assert (encoder.bands, encoder.dimension, encoder.depth, encoder.shortest) == (8, 768, 12, 2800)
    assert encoder.patch_seconds == pytest.approx(0.16)
    assert encoder.patch_offset == pytest.approx(0.0875)  # half of 400 + 15 · 160 samples


def test_a_copy_and_a_saved_network_hear_the_same():
    encoder, clips = small(), noise(1, 8000)
    with torch.inference_mode():
        expected = encoder.patches(clips)
        assert torch.equal(copy.deepcopy(encoder).patches(clips), expected)


# ---- checkpoints


def from_file(cfg=None, weights=None, **options):
    own_cfg, own_weights, _ = golden()
    return Beats.from_checkpoint(
        Checkpoint(Path("here/some.pt"), own_cfg if cfg is None else cfg, own_weights if weights is None else weights),
        **options,
    )


def test_classifier_is_left_out_where_it_is_not_wanted():
    cfg, weights, _ = golden()
    bare = from_file(classifier=False)
    assert bare.classifier is None
    clips = noise(1, 8000)
    with torch.inference_mode():
        assert torch.equal(bare.patches(clips), from_file().patches(clips))
    with pytest.raises(EncoderError, match="no classifier"):
        bare.classify(clips)
    without = {name: weight for name, weight in weights.items() if not name.startswith("predictor.")}
    assert from_file(cfg | {"finetuned_model": False}, without).classifier is None
    assert from_file(weights=without, classifier=False).classifier is None
    with pytest.raises(EncoderError, match=r"unexpected: predictor\.bias, predictor\.weight"):
        from_file(cfg | {"finetuned_model": False})


def test_newer_form_of_weight_norm_is_read_too():
    _, weights, _ = golden()
    place = "encoder.pos_conv.0."
    weights[place + "parametrizations.weight.original0"] = weights.pop(place + "weight_g")
    weights[place + "parametrizations.weight.original1"] = weights.pop(place + "weight_v")
    clips = noise(1, 8000)
    with torch.inference_mode():
        assert torch.equal(from_file(weights=weights).patches(clips), small().patches(clips))
    weights[place + "weight_g"] = weights[place + "parametrizations.weight.original0"]
    with pytest.raises(EncoderError, match="the same weight"):
        from_file(weights=weights)


def test_the_table_of_distances_may_be_told_once_or_by_every_block_alike():
    _, weights, _ = golden()
    copies = [name for name in weights if "relative_attention_bias" in name]
    assert len(copies) == 2
    second = weights[copies[1]] = weights[copies[1]].clone()
    from_file(weights=weights)
    second[0, 0] += 1
    with pytest.raises(EncoderError, match="one table for all blocks"):
        from_file(weights=weights)
    del weights[copies[1]]
    from_file(weights=weights)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("encoder.layers.1.fc1.weight"), "missing: encoder.layers.1.fc1.weight"),
        (lambda w: w.pop("encoder.pos_conv.0.weight_g"), "missing: encoder.pos_conv.0.weight_g"),
        (lambda w: w.update({"encoder.layers.2.fc1.bias": torch.ones(48)}), "unexpected: encoder.layers.2.fc1.bias"),
        (lambda w: w.update({"blocks.0.fc1.bias": torch.ones(48)}), "unexpected: blocks.0.fc1.bias"),
        (lambda w: w.update({"layer_norm.bias": torch.ones(23)}), r"layer_norm.bias is \[23\], not \[24\]"),
        (lambda w: w["layer_norm.bias"].fill_(torch.nan), "not finite numbers: layer_norm.bias"),
        (lambda w: w.update({"layer_norm.bias": torch.ones(24, dtype=torch.int64)}), "layer_norm.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, told):
    _, weights, _ = golden()
    change(weights)
    with pytest.raises(EncoderError, match=rf"here.some\.pt.*{told}"):
        from_file(weights=weights)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"activation_fn": "swish"}, "activation_fn.*'swish'"),
        ({"encoder_layers": 10**9}, "encoder_layers"),
        ({"encoder_embed_dim": 8192, "encoder_layers": 128}, "more than the 1,000,000,000"),
        ({"encoder_attention_heads": 5}, "does not split into encoder_attention_heads 5"),
        ({"conv_pos_groups": 5}, "does not split into conv_pos_groups 5"),
        ({"deep_norm": True, "layer_norm_first": True}, "exclude each other"),
        ({"input_patch_size": -1}, "input_patch_size"),
        ({"max_distance": 8}, "max_distance 8"),
        ({"num_buckets": "many"}, "num_buckets.*'many'"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_settings_that_cannot_be_built_are_named(changes, told):
    with pytest.raises(EncoderError, match=rf"(?s)here.some\.pt.*{told}"):
        from_file(SCRIPT.SMALL | changes)


def test_settings_that_steer_training_or_nothing_are_passed_over():
    clips = noise(1, 8000)
    with torch.inference_mode():
        expected = small().patches(clips)
        changed = from_file(SCRIPT.SMALL | {"layer_wise_gradient_decay_ratio": 0.1, "mask_prob": 0.8, "seed": None})
        assert torch.equal(changed.patches(clips), expected)


def test_a_silent_setting_is_what_the_released_code_takes():
    cfg, weights, _ = golden()
    del cfg["gru_rel_pos"]
    weights = {name: weight for name, weight in weights.items() if ".grep_" not in name}
    assert from_file(cfg, weights).architecture["gru_rel_pos"] is False


def test_a_file_without_settings_is_taken_for_the_base_model():
    with pytest.raises(EncoderError, match=r"missing: encoder\.layers\.2\..*layer_norm\.bias is \[32\], not \[768\]"):
        from_file({})


def test_weights_are_own_copies_and_learn():
    _, weights, _ = golden()
    encoder = from_file(weights=weights)
    assert not encoder.training
    assert all(weight.requires_grad for weight in encoder.parameters())
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(1.0)
    _, again, _ = golden()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_half_precision_files_become_float32():
    _, weights, _ = golden()
    encoder = from_file(weights={name: weight.half() for name, weight in weights.items()})
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}


# ---- the quick way of scoring beside that of training


@pytest.mark.parametrize(
    "changes", [{}, {"gru_rel_pos": False}, {"relative_position_embedding": False, "gru_rel_pos": False}]
)
@pytest.mark.parametrize("scores", [2**17, 700])
def test_scoring_and_training_ways_agree(monkeypatch, changes, scores):
    torch.manual_seed(0)
    sizes = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_attention_heads": 4, "conv_pos": 16}
    encoder = Beats.build(sizes | changes).eval()
    for weight in encoder.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    monkeypatch.setattr(beats, "_MASK_ELEMENTS", 1)  # every clip counts as long
    monkeypatch.setattr(beats, "_SCORE_ELEMENTS", scores)
    monkeypatch.setattr(beats, "_TOKENS_AT_A_TIME", 37)
    clips, lengths = noise(4, 24000), torch.tensor([24000, 9000, 24000, 4000])
    learnt = encoder.layers(clips, lengths, range(1, encoder.depth + 1))
    assert learnt[0].requires_grad
    with torch.inference_mode():
        for quick, slow in zip(encoder.layers(clips, lengths, range(1, encoder.depth + 1)), learnt, strict=True):
            close(quick, slow.detach(), 3e-6)


def test_long_clips_take_the_way_without_gradients(monkeypatch):
    encoder, met = small(), []
    monkeypatch.setattr(beats, "_MASK_ELEMENTS", 1)
    kept = beats.LongConvolution
    monkeypatch.setattr(beats, "LongConvolution", lambda *given: met.append(1) or kept(*given))
    encoder.patches(noise(1, 32000)).sum().backward()
    assert not met
    assert encoder.pos_conv.parametrizations.weight.original1.grad.abs().sum() > 0
    with torch.no_grad():
        encoder.patches(noise(1, 32000))
    assert met


def test_the_bias_of_pairs_lies_in_order():
    assert small()._bias(24).is_contiguous()  # otherwise reading it takes ten times as long
