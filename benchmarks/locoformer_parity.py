"""Compare offkey's TF-Locoformer with its authors' code: numbers, and speed in turns, same process, weights and clip.

python benchmarks/locoformer_parity.py --reference FOLDER [--seconds 4] [--repeats 5] [--threads 2] [--json]

FOLDER is a copy of merlresearch/tf-locoformer; nothing of it is in this repository. Of espnet2 and (where it is not
installed) rotary-embedding-torch, stand-ins made by tests/separation/locoformer_golden/make.py do what is needed.
Weights are random. Ratios are taken within a turn, so that what else the machine does falls on both.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from offkey.separation.locoformer import TFLocoformer
from turns import load_file, middle, take_turns

MAKE = Path(__file__).resolve().parents[1] / "tests" / "separation" / "locoformer_golden" / "make.py"
RATE, N_FFT, HOP = 8000, 128, 64  # of the paper's WSJ0-2mix


def compare(script: Any, released: Any, config: dict[str, Any], mixture: torch.Tensor, repeats: int) -> dict[str, Any]:
    theirs = script.random_model(released, config, seed=5)
    weights = {f"separator.{name}": value for name, value in theirs.state_dict().items()}
    ours = TFLocoformer.from_published(config, weights).requires_grad_(False)
    expected = script.run(theirs, mixture)
    with torch.inference_mode():
        found = ours.spectra(mixture)
    result: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in ours.parameters()),
        "largest_relative_difference": float((found - expected).abs().max() / expected.abs().max()),
    }
    if repeats:
        with torch.inference_mode():
            ways = {"ours": lambda: ours.spectra(mixture), "released": lambda: script.run(theirs, mixture)}
            times = take_turns(ways, repeats)
        ratios = [released / own for own, released in zip(times["ours"], times["released"], strict=True)]
        result |= {name: middle(values) for name, values in times.items()} | {"times_as_fast": middle(ratios)}
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the clip at 8 kHz")
    parser.add_argument("--repeats", type=int, default=5, help="0 compares numbers alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    script = load_file(MAKE, "locoformer_golden_make")
    clip = script.spectrum(7, 1, int(given.seconds * RATE / HOP) + 1, N_FFT // 2 + 1)
    short = clip[:, :40]
    one = {"ffn_type": ["swiglu_conv1d"], "ffn_hidden_dim": [384]}
    result: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
                    "load": os.getloadavg()[0]},
    }  # fmt: skip
    with script.released(given.reference) as released:
        for name, config in (("small", script.SMALL), ("medium", script.MEDIUM)):
            result[name] = compare(script, released, config, clip, given.repeats)
            result[f"{name}, time first"] = compare(script, released, config | {"tf_order": "tf"}, short, 0)
            result[f"{name}, one layer a path"] = compare(script, released, config | one, short, 0)
    if given.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        if "times_as_fast" not in value:
            print(f"{name}: {value}")
            continue
        ratio = value["times_as_fast"]
        print(
            f"{name}: differs by {value['largest_relative_difference']:.2g}; {given.seconds:g} s of sound: ours "
            f"{value['ours']['median']:.3g} s, released {value['released']['median']:.3g} s, {ratio['median']:.2f}x "
            f"(middle half {ratio['low']:.2f} to {ratio['high']:.2f})"
        )


if __name__ == "__main__":
    main()
