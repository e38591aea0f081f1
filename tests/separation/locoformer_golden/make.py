"""Make `tiny.safetensors` with the authors' TF-Locoformer code; see README.md beside it.

python tests/separation/locoformer_golden/make.py FOLDER_OF_TF_LOCOFORMER
"""

import contextlib
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

PLACE = Path(__file__).parent / "tiny.safetensors"
SEPARATOR = Path("espnet2/enh/separator/tflocoformer_separator.py")

TINY = {
    "num_spk": 2, "n_layers": 2, "emb_dim": 8, "norm_type": "rmsgroupnorm", "num_groups": 2, "tf_order": "ft",
    "n_heads": 2, "flash_attention": False, "attention_dim": 12, "ffn_type": ["swiglu_conv1d", "swiglu_conv1d"],
    "ffn_hidden_dim": [10, 6], "conv1d_kernel": 4, "conv1d_shift": 1, "dropout": 0.0, "eps": 1e-5,
}  # fmt: skip
"""Published arguments of small size."""

SMALL = TINY | {
    "n_layers": 4, "emb_dim": 96, "num_groups": 4, "n_heads": 4, "attention_dim": 128, "ffn_hidden_dim": [128, 128],
    "conv1d_kernel": 8,
}  # fmt: skip
MEDIUM = SMALL | {"n_layers": 6, "emb_dim": 128, "ffn_hidden_dim": [384, 384], "conv1d_kernel": 4}


class StandInRotary(nn.Module):
    """What the network needs of rotary_embedding_torch, where that package is not installed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.freqs = nn.Parameter(1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim), requires_grad=False)

    def rotate_queries_or_keys(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * self.freqs
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()
        return torch.stack(turned, dim=-1).flatten(-2)


def stand_ins() -> dict[str, types.ModuleType]:
    """Modules that the separator imports and hardly uses."""
    found = {}
    for name in ("espnet2", "espnet2.enh", "espnet2.enh.layers", "espnet2.enh.separator"):
        found[name] = types.ModuleType(name)
    found["espnet2.enh.layers.complex_utils"] = types.ModuleType("complex_utils")
    found["espnet2.enh.layers.complex_utils"].new_complex_like = lambda _like, parts: torch.complex(*parts)
    found["espnet2.enh.separator.abs_separator"] = types.ModuleType("abs_separator")
    found["espnet2.enh.separator.abs_separator"].AbsSeparator = nn.Module
    if importlib.util.find_spec("rotary_embedding_torch") is None:
        found["rotary_embedding_torch"] = types.ModuleType("rotary_embedding_torch")
        found["rotary_embedding_torch"].RotaryEmbedding = StandInRotary
    return found


@contextlib.contextmanager
def released(folder: str | Path) -> Iterator[Any]:
    """The authors' module; `folder` is a copy of their repository. Deprecations in it are not ours."""
    before = dict(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.modules.update(stand_ins())
        try:
            spec = importlib.util.spec_from_file_location("tflocoformer_separator", Path(folder) / SEPARATOR)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            yield module
        finally:
            for name in set(sys.modules) - set(before):
                if name.startswith(("espnet2", "rotary_embedding_torch")):
                    del sys.modules[name]


def random_model(module: Any, config: Mapping[str, Any], seed: int) -> Any:
    """An authors' network in eval mode, every weight of which matters: none is left at 0 or 1."""
    torch.manual_seed(seed)
    model = module.TFLocoformerSeparator(input_dim=1, **config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("freqs"):
                continue
            if name.endswith(("gamma", "norm.weight")) or name == "conv.1.weight":
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1)
            else:
                weight.mul_(1.5)
    return model.requires_grad_(False)


def spectrum(seed: int, clips: int, frames: int, bins: int) -> Tensor:
    """Complex noise, the same bits everywhere."""
    raw = np.random.PCG64(seed).random_raw(clips * frames * bins * 2) >> np.uint64(40)
    parts = np.float32(raw.astype(np.float64) / 2.0**23 - 1.0).reshape(clips, frames, bins, 2)
    return torch.view_as_complex(torch.from_numpy(parts))


def warned_not(call: Callable[[], Tensor]) -> Tensor:
    """What `call` returns, without what torch says of deprecated names in the authors' code."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def run(model: Any, mixture: Tensor) -> Tensor:
    """(B, S, F, N) of an authors' network."""
    return warned_not(lambda: torch.stack(model(mixture, None)[0], dim=1))


def main() -> None:
    mixture = spectrum(7, 2, 21, 17)
    with released(sys.argv[1]) as module:
        model = random_model(module, TINY, seed=3)
        output = run(model, mixture)
    tensors = {f"model.separator.{name}": value.clone() for name, value in model.state_dict().items()}
    tensors["output"] = torch.view_as_real(output).contiguous()
    save_file(tensors, PLACE, {"separator_conf": json.dumps(TINY)})


if __name__ == "__main__":
    main()
