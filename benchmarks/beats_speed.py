"""Time offkey's BEATs beside its authors' code: same process, same clips, same random weights of the official form.

python benchmarks/beats_speed.py --reference FOLDER_OF_BEATS --kaldi KALDI_PY [--repeats 9] [--threads 2] [--json]

FOLDER_OF_BEATS holds BEATs.py, backbone.py and modules.py (microsoft/unilm, folder beats); KALDI_PY is torchaudio's
compliance/kaldi.py. Neither is in this repository. Repetitions take turns, so that what else the machine does falls on
both; ratios are taken within a turn, and their median and middle half are told.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from offkey.audio.fbank import kaldi_fbank
from offkey.encoders.beats import Beats
from offkey.encoders.checkpoint import Checkpoint
from offkey.objectives.multitask import MultiTask
from offkey.systems.config import load_preset
from offkey.systems.network import build_network
from offkey.training.optimiser import make_optimiser
from offkey.training.task import TrainingTask
from offkey.training.unfreeze import unfreeze
from offkey.types import Batch, Labels
from turns import load_file, middle, take_turns

SECONDS, CLIPS, RATE = 10, 8, 16000


def load_released(folder: Path, kaldi: Path) -> Any:
    """The authors' module; of torchaudio it needs only kaldi.py."""
    package, room = types.ModuleType("torchaudio"), types.ModuleType("torchaudio.compliance")
    sys.modules |= {"torchaudio": package, "torchaudio.compliance": room}
    module = load_file(kaldi, "torchaudio.compliance.kaldi")
    package.compliance, room.kaldi = room, module  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))
    return importlib.import_module("BEATs")


def random_released(module: Any) -> tuple[Any, dict[str, Any]]:
    """The authors' network at full size, with weights as it starts from and a bias by distance that counts."""
    cfg = Beats.build({"encoder_layers": 1}).architecture | {"encoder_layers": 12}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = module.BEATs(module.BEATsConfig(cfg)).eval()
    torch.nn.init.normal_(model.encoder.layers[0].self_attn.relative_attention_bias.weight)
    return model, cfg


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> dict[str, Any]:
    times = take_turns({"ours": ours, "released": theirs}, repeats)
    ratios = [released / own for own, released in zip(times["ours"], times["released"], strict=True)]
    ratio = middle(ratios)
    ratio["best"] = min(times["released"]) / min(times["ours"])  # of the quietest moments of both
    return {"ours_s": middle(times["ours"]), "released_s": middle(times["released"]), "times_as_fast": ratio}


def training_step(threads: int, checkpointing: bool, answer: Any) -> None:
    """Two whole steps of System 2: BEATs, Tgram and log-mel into MobileFaceNet, its losses, AdamW on every weight."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = load_preset("system2", [f"encoder.checkpointing={str(checkpointing).lower()}"])
    encoder = Beats.build({})
    encoder.checkpointing = checkpointing
    unfreeze(encoder, config.encoder)
    network = build_network(config, encoder)
    task = TrainingTask(network, MultiTask(config.model.embedding, 6, [3], config.objective)).train()
    optimiser = make_optimiser(task, config.training)
    numbers = torch.arange(CLIPS)
    labels = Labels(numbers % 6, (numbers % 3)[:, None], numbers % 2)
    length = SECONDS * RATE
    batch = Batch(torch.randn(CLIPS, length) * 0.1, torch.full((CLIPS,), length), labels, numbers)
    seconds = 0.0
    for _ in range(2):  # the second one finds the optimiser's own memory taken
        start = time.perf_counter()
        optimiser.zero_grad()
        task(batch)["total"].backward()
        optimiser.step()
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    answer.put({"peak_gib": peak / 2**30, "step_s": seconds})


def train_apart(threads: int, checkpointing: bool) -> dict[str, float]:
    """Peak memory of a step is measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=training_step, args=(threads, checkpointing, answer))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise SystemExit(f"the training step ended with {child.exitcode}")
    found: dict[str, float] = answer.get()
    return found


def processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--kaldi", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    module = load_released(given.reference, given.kaldi)
    model, cfg = random_released(module)
    encoder = Beats.from_checkpoint(Checkpoint(Path("random.pt"), cfg, model.state_dict()))
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(CLIPS, SECONDS * RATE, generator=generator) * 0.1
    lengths = torch.linspace(2 * RATE, SECONDS * RATE, CLIPS).long()
    behind = torch.arange(clips.shape[1]) >= lengths[:, None]
    mixed = clips.masked_fill(behind, 0.0)
    scaled = clips * 2**15

    def their_banks() -> torch.Tensor:
        settings = {"num_mel_bins": 128, "sample_frequency": 16000, "frame_length": 25, "frame_shift": 10}
        return torch.stack([module.ta_kaldi.fbank(clip[None], **settings) for clip in scaled])

    with torch.inference_mode():
        ours, theirs = encoder.patches(clips).flatten(1, 2), model.extract_features(clips)[0]
        result: dict[str, Any] = {
            "machine": {
                "processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
                "torch": torch.__version__, "load": os.getloadavg()[0],
            },
            "largest_relative_difference": float((ours - theirs).abs().max() / theirs.abs().max()),
            "filter_bank_bits_equal": torch.equal(kaldi_fbank(scaled), their_banks()),
            f"filter bank, {CLIPS} clips of {SECONDS} s": compare(
                lambda: kaldi_fbank(scaled), their_banks, 5 * given.repeats
            ),
            f"encoding, {CLIPS} clips of {SECONDS} s": compare(
                lambda: encoder.patches(clips), lambda: model.extract_features(clips), given.repeats
            ),
            f"encoding, {CLIPS} clips of 2 to {SECONDS} s": compare(
                lambda: encoder.patches(mixed, lengths),
                lambda: model.extract_features(mixed, padding_mask=behind),
                given.repeats,
            ),
        }  # fmt: skip
    del model, encoder
    if not given.no_training:
        result[f"System 2 step, {CLIPS} clips of {SECONDS} s, float32"] = {
            "checkpointing": train_apart(given.threads, checkpointing=True),
            "without": train_apart(given.threads, checkpointing=False),
        }
    if given.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        if isinstance(value, dict) and "times_as_fast" in value:
            ratio = value["times_as_fast"]
            print(
                f"{name}: ours {value['ours_s']['median']:.4g} s, released {value['released_s']['median']:.4g} s, "
                f"{ratio['median']:.2f}x (middle half {ratio['low']:.2f} to {ratio['high']:.2f}; "
                f"quietest {ratio['best']:.2f})"
            )
        else:
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
