"""Make `small.safetensors` with the authors' BEATs code and torchaudio's filter bank; see README.md beside it.

python tests/encoders/beats_golden/make.py FOLDER_OF_BEATS KALDI_PY
"""

import importlib
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

PLACE = Path(__file__).parent / "small.safetensors"

SMALL = {
    "input_patch_size": 16,
    "embed_dim": 24,
    "conv_bias": False,
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "layer_wise_gradient_decay_ratio": 0.6,
    "layer_norm_first": False,
    "deep_norm": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.05,
    "dropout_input": 0.0,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "relative_position_embedding": True,
    "num_buckets": 32,
    "max_distance": 80,
    "gru_rel_pos": True,
    "finetuned_model": True,
    "predictor_dropout": 0.0,
    "predictor_class": 7,
}
"""An official `cfg` of small size; distances reach into the coarse buckets and beyond the last one."""

FULL = SMALL | {
    "embed_dim": 512,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "num_buckets": 320,
    "max_distance": 800,
    "predictor_class": 527,
}


def waveform(seed: int, samples: int) -> Tensor:
    """Noise (samples,) in [-0.5, 0.5) with slowly changing loudness, the same bits everywhere."""
    raw = (np.random.PCG64(seed).random_raw(samples) >> np.uint64(40)).astype(np.float64) / 2.0**24 - 0.5
    loud = np.abs(np.arange(samples) % 6000 - 3000) / 3000.0
    return torch.from_numpy(np.float32(raw * loud))


@contextmanager
def kaldi(path: str | Path) -> Iterator[Any]:
    """torchaudio's kaldi.py on its own: what it imports of torchaudio is not needed for filter banks."""
    names = ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi")
    before = {name: sys.modules.pop(name, None) for name in names}
    try:
        package, room = types.ModuleType(names[0]), types.ModuleType(names[1])
        sys.modules[names[0]], sys.modules[names[1]] = package, room
        spec = importlib.util.spec_from_file_location(names[2], path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        package.compliance, room.kaldi, sys.modules[names[2]] = room, module, module
        yield module
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@contextmanager
def released(folder: str | Path, kaldi_path: str | Path) -> Iterator[Any]:
    """The authors' module BEATs."""
    with kaldi(kaldi_path):
        sys.path.insert(0, str(folder))
        try:
            yield importlib.import_module("BEATs")
        finally:
            sys.path.remove(str(folder))
            for name in ("BEATs", "backbone", "modules"):
                sys.modules.pop(name, None)


def random_model(module: Any, cfg: Mapping[str, Any], seed: int) -> Any:
    """An authors' network in eval mode, every weight of which matters: none is left at 0 or 1."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight norm is deprecated
        model = module.BEATs(module.BEATsConfig(dict(cfg))).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "relative" in name:
            weight.normal_(0.0, 1.0)
        elif "grep_a" in name:
            weight.normal_(1.0, 0.5)
        elif "grep" in name:
            weight.normal_(0.0, 0.3)
        elif "layer_norm" in name and name.endswith("weight"):
            weight.uniform_(0.5, 1.5)
        elif name.endswith("weight_g"):
            weight.mul_(torch.rand_like(weight) + 0.5)
        elif name.endswith("bias"):
            weight.normal_(0.0, 0.1)
        elif weight.dim() == 2:
            weight.mul_(1.5)
    return model


def parts(model: Any, clips: Tensor, tokens: Tensor | None = None) -> dict[str, Tensor]:
    """What each part of an authors' network gives for clips (B, T); `tokens` (B,) are those that are not padding.

    The authors' own way from padded samples to padded tokens is left out: it takes the tokens of one moment for
    moments that follow each other, and so lets through a part of what lies behind a clip.
    """
    found: dict[str, Tensor] = {}
    hooks = [
        model.layer_norm.register_forward_hook(lambda _m, _i, out: found.update(patch_norm=out)),
        *(
            layer.register_forward_hook(
                lambda _m, _i, out, number=number: found.update({f"block.{number}": out[0].transpose(0, 1)})
            )
            for number, layer in enumerate(model.encoder.layers)
        ),
        model.encoder.layers[0].register_forward_pre_hook(
            lambda _m, given: found.update(positions=given[0].transpose(0, 1))
        ),
    ]
    found["fbank"] = model.preprocess(clips)
    x = model.patch_embedding(found["fbank"].unsqueeze(1)).flatten(2).transpose(1, 2)
    x = model.layer_norm(x)
    if model.post_extract_proj is not None:
        x = model.post_extract_proj(x)
    found["patch_embedding"] = x.clone()
    mask = None if tokens is None else torch.arange(x.shape[1]) >= tokens[:, None]
    found["output"] = model.encoder(x, padding_mask=mask)[0]
    if model.predictor is not None:
        logits = model.predictor(found["output"])
        if mask is not None:
            logits = logits.masked_fill(mask[..., None], 0.0).sum(1) / tokens[:, None]
        else:
            logits = logits.mean(1)
        found["classes"] = torch.sigmoid(logits)
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    folder, kaldi_path = sys.argv[1:]
    clip = waveform(7, 16000)
    with released(folder, kaldi_path) as module:
        model = random_model(module, SMALL, seed=3)
        found = parts(model, clip[None])
        found["probabilities"] = model.extract_features(clip[None])[0]
        bank = module.ta_kaldi.fbank(clip[None] * 2**15, num_mel_bins=128, sample_frequency=16000)
    tensors = {f"model.{name}": weight.clone() for name, weight in model.state_dict().items()}
    tensors |= {f"out.{name}": value[0].clone().contiguous() for name, value in found.items() if name != "fbank"}
    tensors["out.kaldi"] = bank
    save_file(tensors, PLACE, {"cfg": json.dumps(SMALL)})


if __name__ == "__main__":
    main()
