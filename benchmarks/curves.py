"""Time and memory against the number of clips, of references, the length of clips and the number of threads.

python benchmarks/curves.py --out curves.json [--figure docs/pictures/cost-curves.svg] [--only clips,length] [--quick]
python benchmarks/curves.py --draw curves.json --figure docs/pictures/cost-curves.svg

Every curve runs in a process of its own, its smallest size first, so that memory is the process's peak so far. An
exponent is fitted to the processor seconds of the larger half of the sizes; exit 1 where it exceeds what the curve
promises by more than 0.35. Weights are random: they cost what trained ones cost.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from speed import machine, peak_mib

SLACK = 0.35
_BLOCKS = 200.0  # MiB; distances are found in blocks of 64, and batches held, which small sizes do not fill


class Curve(NamedTuple):
    """Sizes along the axis, quick ones, the highest exponent that is no surprise (None: told, not judged), and why."""

    axis: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    promised: float | None
    memory: float | None
    why: str


CURVES = {
    "clips": Curve("clips", (1000, 4000, 16000), (250, 1000, 4000), 1.0, 0.0, "each clip is heard once, none is kept"),
    "length": Curve("seconds of a clip", (10, 30, 90, 270), (5, 15, 45), 1.0, 1.0, "convolutions, discriminative"),
    "length-beats": Curve("seconds of a clip", (5, 10, 20, 40), (5, 10), 2.0, 2.0, "attention between all patches"),
    "references-score": Curve(
        "references", (1000, 4000, 16000, 64000), (1000, 4000, 16000), 1.0, 1.0, "every reference is looked at"
    ),
    "references-fit": Curve(
        "references", (500, 1000, 2000, 4000), (500, 1000, 2000), 2.0, 1.0, "density: all pairs, in blocks"
    ),
    "references-mahalanobis": Curve(
        "references", (1000, 4000, 16000, 64000), (1000, 4000, 16000), 1.0, 1.0, "a covariance"
    ),
    "failures": Curve("files that fail", (1000, 4000, 16000), (500, 2000, 8000), 1.0, None, "a row each"),
    "workers": Curve("threads that decode", (0, 1, 2, 4), (0, 1, 2), None, None, "as many seconds, shared"),
}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of log cost over log size, fitted to the larger half of the sizes (at least two).

    >>> round(exponent([1, 2, 4, 8], [5.0, 5.0, 7.0, 28.0]), 2)
    2.0
    """
    count = max(2, math.ceil(len(sizes) / 2))
    x = [math.log(size) for size in sizes[-count:]]
    y = [math.log(max(cost, 1e-9)) for cost in costs[-count:]]
    x_mean, y_mean = sum(x) / count, sum(y) / count
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / sum((a - x_mean) ** 2 for a in x)


def surprises(name: str, found: dict[str, Any]) -> list[str]:
    """What grows faster than the curve promises; memory counts from what the first size held."""
    curve, told = CURVES[name], []
    if curve.promised is not None and found["exponent"] > curve.promised + SLACK:
        told.append(f"{name}: time grows with power {found['exponent']:.2f} of {curve.axis}, not {curve.promised:g}")
    if curve.memory is not None and len(found["mib"]) > 2:
        grown = [value - found["mib"][0] for value in found["mib"][1:]]
        rise = exponent(found["sizes"][1:], [max(value, 1.0) for value in grown])
        if grown[-1] > _BLOCKS and rise > curve.memory + SLACK:
            told.append(f"{name}: memory grows by {grown[-1]:.0f} MiB, with the power {rise:.2f} of {curve.axis}")
    return told


def _ways(name: str) -> Callable[[int], Callable[[], Any]]:
    """Size -> what is timed."""
    import numpy as np
    import torch

    from offkey.audio.io import AudioError
    from offkey.data.loader import ClipReader
    from offkey.scoring import DensityOptions, MahalanobisOptions, NeighboursOptions, Query, Reference, build_scorer
    from offkey.types import Batch, ClipMeta
    from speed_parts import detector, noise, wav_files

    rng = np.random.default_rng(0)
    if name.startswith("references"):
        asked = Query(rng.standard_normal((16, 64)))

        def references(size: int) -> Callable[[], Any]:
            reference = Reference(rng.standard_normal((size, 64)))
            if name == "references-score":
                scorer = build_scorer(NeighboursOptions()).fit(reference)
                return lambda: [scorer.score(asked) for _ in range(10)]
            options = DensityOptions() if name == "references-fit" else MahalanobisOptions()
            return lambda: build_scorer(options).fit(reference)

        return references
    normal = wav_files(Path("normal"), 6, 2.0)
    if name.startswith("length"):
        from offkey.encoders import build_encoder

        made = detector("discriminative", normal, [], random_encoder=True) if name == "length" else None
        encoder = None if made is not None else build_encoder("beats", {}).eval()

        def length(seconds: int) -> Callable[[], Any]:
            clip = torch.from_numpy(noise(seconds))[None]
            if made is None:
                return lambda: _without_gradients(encoder, clip)
            batch = Batch(clip, torch.tensor([clip.shape[1]]), None, torch.zeros(1, dtype=torch.int64))
            return lambda: made.represent(batch, ["machine"])

        return length

    made = detector("loudness", normal, [], random_encoder=True)
    if name == "workers":
        files = wav_files(Path("new"), 64, 10.0)
        return lambda workers: lambda: list(made.score_files(files, workers=workers))
    wave = noise(0.5)

    class Ready(ClipReader):
        """Sound from memory: what is measured is what comes after decoding."""

        def read(self, path: Path) -> Any:
            if name == "failures":
                raise AudioError(path, "broken")
            return wave.copy()

    made._reader = lambda: Ready(made.config.audio)

    def clips(count: int) -> Callable[[], Any]:
        metas = [ClipMeta(Path(f"{number}.wav"), "machine") for number in range(count)]
        return lambda: sum(row.verdict is not None for row in made.score_files(metas))

    return clips


def _without_gradients(encoder: Any, clip: Any) -> None:
    import torch

    with torch.inference_mode():
        encoder.patches(clip)


def here(name: str, quick: bool, out: Path) -> None:
    """Measure one curve in this process."""
    curve = CURVES[name]
    build = _ways(name)
    found: dict[str, Any] = {"sizes": list(curve.quick if quick else curve.sizes), "cpu": [], "wall": [], "mib": []}
    build(found["sizes"][0])()  # what is loaded or made once
    for size in found["sizes"]:
        run = build(size)
        cpu, wall = [], []
        for _ in range(2 if quick else 3):
            begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            run()
            after = resource.getrusage(resource.RUSAGE_SELF)
            cpu.append(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)
            wall.append(time.perf_counter() - begun)
        found["cpu"].append(min(cpu))
        found["wall"].append(min(wall))
        found["mib"].append(peak_mib())
    if all(found["sizes"]):
        found["exponent"] = exponent(found["sizes"], found["cpu"])
    out.write_text(json.dumps(found), encoding="utf-8")


def draw(result: dict[str, Any], path: Path) -> None:
    """Processor seconds of every curve, with its exponent."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "offkey"
    import matplotlib.pyplot as plt

    curves = {name: found for name, found in result["curves"].items() if "failed" not in found}
    rows = -(-len(curves) // 4)
    figure, grid = plt.subplots(rows, 4, figsize=(12, 2.7 * rows), squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, (name, found) in zip(grid.flat, curves.items(), strict=False):
        logarithmic = "exponent" in found
        (axes.loglog if logarithmic else axes.plot)(found["sizes"], found["cpu"], "o-", color="#1f5c8b")
        told = f"{name}: exponent {found['exponent']:.2f}" if logarithmic else name
        axes.set_title(told, fontsize=9)
        axes.set_xlabel(CURVES[name].axis, fontsize=8)
        axes.set_ylabel("processor seconds", fontsize=8)
        axes.set_ylim(*((None, None) if logarithmic else (0, None)))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Measure and judge, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help=f"comma-separated, of {','.join(CURVES)}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--draw", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        here(given.part, given.quick, given.out)
        return 0
    if given.draw:
        draw(json.loads(given.draw.read_text(encoding="utf-8")), given.figure)
        return 0
    names = given.only.split(",") if given.only else list(CURVES)
    result: dict[str, Any] = {"machine": machine(), "quick": given.quick, "curves": {}}
    if given.out and given.out.is_file():
        result["curves"] = json.loads(given.out.read_text(encoding="utf-8"))["curves"]
    told = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            answer = Path(scratch) / "answer.json"
            done = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), "--part", name, "--out", str(answer)]
                + ["--quick"] * given.quick,
                cwd=scratch, env=os.environ | {"OFFKEY_CACHE": f"{scratch}/cache"}, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            if done.returncode:
                result["curves"][name] = {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1]}
                told.append(f"{name}: {result['curves'][name]['failed']}")
            else:
                found = json.loads(answer.read_text(encoding="utf-8"))
                result["curves"][name] = found
                told += surprises(name, found) if "exponent" in found else []
                power = f"exponent {found['exponent']:.2f}, " if "exponent" in found else ""
                print(
                    f"{name}: {power}{[round(value, 4) for value in found['cpu']]} s, peak {found['mib'][-1]:.0f} MiB"
                )
        if given.out:
            given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if given.figure:
        draw(result, given.figure)
    print("\n".join(told) or "nothing grows faster than it should")
    return 1 if told else 0


if __name__ == "__main__":
    raise SystemExit(main())
