"""Write golden.npz: what the published EfficientAT code computes. README.md beside this file tells how to call it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from torch import nn

CLIPS = ("mimii_fan_normal_ch0", "mimii_valve_abnormal_ch0")
LENGTHS = (514, 22400, 30721)
WIDTHS = (0.1, 0.5)


def weights_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Random weights that depend on nothing but their names and shapes; norms that do something."""
    found = {}
    for name, shape in shapes.items():
        numbers = np.random.RandomState(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(1000)
        elif name.endswith("running_var") or (name.endswith(".weight") and len(shape) == 1):
            found[name] = torch.from_numpy(numbers.uniform(0.6, 1.4, shape)).float()
        elif len(shape) == 1:
            found[name] = torch.from_numpy(0.2 * numbers.standard_normal(shape)).float()
        else:
            scale = np.sqrt(2.0 / np.prod(shape[1:]))
            found[name] = torch.from_numpy(scale * numbers.standard_normal(shape)).float()
    return found


def waveform_of(samples: int) -> torch.Tensor:
    """Noise with a tone that grows louder, at 32 kHz."""
    time = np.arange(samples)
    noise = np.random.RandomState(samples).standard_normal(samples)
    return torch.from_numpy(0.05 * noise + 0.2 * np.sin(0.3 * time) * time / samples).float()


def clip_of(folder: Path, name: str) -> torch.Tensor:
    """A real recording, brought from 16 to 32 kHz."""
    samples, _ = soundfile.read(folder / f"{name}.flac", dtype="float32")
    return torch.from_numpy(resample_poly(samples, 2, 1).astype(np.float32))


def thinned(values: torch.Tensor, most: int = 100) -> np.ndarray:
    """Every n-th value of a tensor, so that a few hundred are left."""
    flat = values.flatten()
    return flat[:: -(-len(flat) // most)].numpy()


class _ConvNormActivation(nn.Sequential):
    """What the published code takes from torchvision, which does not load beside a CPU-only torch."""

    def __init__(self, inputs, outputs, kernel_size, stride=1, groups=1, dilation=1, *, norm_layer, activation_layer):
        padding = (kernel_size - 1) // 2 * dilation
        layers = [nn.Conv2d(inputs, outputs, kernel_size, stride, padding, dilation, groups, bias=False)]
        layers.append(norm_layer(outputs))
        if activation_layer is not None:
            layers.append(activation_layer(inplace=True))
        super().__init__(*layers)


def load_published(root: Path, kaldi_file: Path):
    """`get_model` and `AugmentMelSTFT` of the published code, with stand-ins for what does not load here."""
    for name in ("torchaudio", "torchvision", "torchvision.ops", "torchvision.ops.misc"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    sys.modules["torchvision.ops.misc"].ConvNormActivation = _ConvNormActivation
    spec = importlib.util.spec_from_file_location("torchaudio.compliance.kaldi", kaldi_file)
    kaldi = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kaldi)
    sys.modules["torchaudio"].compliance = types.SimpleNamespace(kaldi=kaldi)
    identity = types.SimpleNamespace(
        FrequencyMasking=lambda *_, **__: nn.Identity(), TimeMasking=lambda *_, **__: nn.Identity()
    )
    sys.modules["torchaudio"].transforms = identity
    sys.path.insert(0, str(root))
    os.chdir(root)  # it reads class names from the working folder
    from models.mn.model import get_model
    from models.preprocess import AugmentMelSTFT

    return get_model, AugmentMelSTFT


def main() -> None:
    out = Path(__file__).resolve().with_name("golden.npz")
    root, kaldi_file, weights_file, clips = (Path(argument).resolve() for argument in sys.argv[1:5])
    get_model, front_kind = load_published(root, kaldi_file)
    golden: dict[str, np.ndarray] = {}
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        front = front_kind(n_mels=128, sr=32000, win_length=800, hopsize=320).eval()
        for width in WIDTHS:
            model = get_model(num_classes=7, width_mult=width).eval()
            model.load_state_dict(weights_of({name: tuple(value.shape) for name, value in model.state_dict().items()}))
            for samples in LENGTHS:
                spectrogram = front(waveform_of(samples)[None])
                golden[f"mel/{samples}"] = thinned(spectrogram, 300)
                logits, maps = model._forward_impl(spectrogram[:, None], return_fmaps=True)
                for number, layer in enumerate(maps):
                    golden[f"{width}/{samples}/layer/{number}"] = thinned(layer)
                golden[f"{width}/{samples}/embedding"] = model(spectrogram[:, None])[1].flatten().numpy()
                golden[f"{width}/{samples}/classes"] = logits.flatten().sigmoid().numpy()
        model = get_model(width_mult=0.4).eval()
        model.load_state_dict(torch.load(weights_file, weights_only=True))
        for name in CLIPS:
            logits, embedding = model(front(clip_of(clips, name)[None])[:, None])
            golden[f"{name}/embedding"] = embedding.flatten().numpy()
            golden[f"{name}/classes"] = logits.flatten().sigmoid().numpy()
    np.savez_compressed(out, **golden)


if __name__ == "__main__":
    main()
