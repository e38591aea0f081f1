"""What a slow shift does to a detector: false alarms over time, with and without updates, and when drift is noticed.

    python benchmarks/drift.py --json drift.json --picture docs/pictures/drift.svg

One simulated fan is recorded around the clock, all of it normal. For `--still` clips nothing changes; then a hum,
which was not there before, rises until it stands at `--shift` dB beside the machine. One detector stays as it was
fitted; the other one gets the last `--batch` clips whenever the drift warning comes (somebody listened, and all was
well), and its watch begins anew. Anomalies (simulated faults) come every fiftieth clip, and must not set the warning
off by themselves. The shift, the clips and the detector follow from the seed.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from offkey.data.synthetic import SynthConfig
from offkey.data.synthetic.dataset import render_clip
from offkey.data.synthetic.plan import plan_clips
from offkey.detector import Detector
from offkey.fitting import fit
from offkey.types import Condition, Domain, Split
from offkey.watching import DriftMonitor

RATE = 16000
HUM = (180.0, 360.0, 540.0)
FAULTY_EVERY = 50


class Heard(NamedTuple):
    """One clip of the stream: hum in dB beside the clip (-inf: none), whether it is faulty, and where it lies."""

    hum: float
    faulty: bool
    path: Path


def record(given: argparse.Namespace, folder: Path) -> tuple[Path, list[Heard]]:
    """Training clips in a folder, and the stream."""
    config = SynthConfig(
        machines=("fan",), seconds=given.seconds, train_source=given.train + given.clips, train_target=0,
        test_per_group=given.clips // FAULTY_EVERY + 1, supplemental=0, seed=given.seed,
    )  # fmt: skip
    plans = plan_clips(config)
    normal = [plan for plan in plans if plan.split is Split.TRAIN]
    faulty = [plan for plan in plans if plan.condition is Condition.ANOMALY and plan.domain is Domain.SOURCE]
    # in an order without rhythm: settings come in turn in the plan
    order = np.random.default_rng(given.seed).permutation(len(normal))
    train, stream = folder / "fan", folder / "stream" / "fan"
    train.mkdir(parents=True)
    stream.mkdir(parents=True)
    for number, place in enumerate(order[: given.train]):
        soundfile.write(train / f"{number:04d}.wav", render_clip(normal[place], RATE, 1).mixture, RATE)
    times = np.arange(round(given.seconds * RATE)) / RATE
    heard, faults = [], iter(faulty)
    for number, place in enumerate(order[given.train :]):
        broken = number % FAULTY_EVERY == FAULTY_EVERY - 1
        sound = render_clip(next(faults) if broken else normal[place], RATE, 1).mixture
        share = max(0.0, (number - given.still) / (given.clips - given.still))
        hum = -np.inf
        if share > 0:
            hum = given.shift + 30.0 * (share - 1.0)
            tone = sum(np.sin(2 * np.pi * f * times + k) for k, f in enumerate(HUM))
            level = np.sqrt(np.mean(np.square(sound))) * 10 ** (hum / 20)
            sound = sound + (level * tone / np.sqrt(np.mean(np.square(tone)))).astype(np.float32)[:, None]
        path = stream / f"{number:05d}.wav"
        soundfile.write(path, np.clip(sound, -0.99, 0.99), RATE)
        heard.append(Heard(hum, broken, path))
    return train, heard


def monitor_of(detector: Detector, given: argparse.Namespace) -> DriftMonitor:
    calibration = detector.machines["fan"].calibration
    return DriftMonitor(calibration.scores, calibration.threshold(), given.between, given.seed)


def follow(detector: Detector, heard: list[Heard], given: argparse.Namespace, updating: bool) -> dict[str, Any]:
    """Alarms a clip, places of the warnings and of the updates."""
    watch, alarms, warnings, updates = monitor_of(detector, given), [], [], []
    for number, clip in enumerate(heard):
        verdict = detector.score(clip.path, machine="fan")
        alarms.append(verdict.is_anomalous)
        if verdict.is_anomalous or not watch.step(verdict.score):
            continue
        warnings.append(number)
        if updating:
            # somebody listens to the last clips and leaves out the faulty ones
            well = [one.path for one in heard[max(0, number - given.batch + 1) : number + 1] if not one.faulty]
            detector = detector.update(well, machine="fan", workers=0)
            watch = monitor_of(detector, given)
            updates.append(number)
    return {"alarms": alarms, "warnings": warnings, "updates": updates}


def table(heard: list[Heard], runs: dict[str, dict[str, Any]], block: int) -> list[list[str]]:
    rows = []
    for begin in range(0, len(heard), block):
        inside = range(begin, min(begin + block, len(heard)))
        well = [place for place in inside if not heard[place].faulty]
        hum = heard[inside[-1]].hum
        row = [f"{begin}–{inside[-1]}", "none" if np.isinf(hum) else f"{hum:.0f} dB"]
        for run in runs.values():
            row.append(f"{100 * np.mean([run['alarms'][place] for place in well]):.0f} %")
            row.append(str(sum(place in inside for place in run["warnings"])))
        rows.append(row)
    return rows


def draw(heard: list[Heard], runs: dict[str, dict[str, Any]], given: argparse.Namespace, file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "offkey"
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    well = np.array([not clip.faulty for clip in heard])
    places = np.flatnonzero(well)
    for (name, run), colour in zip(runs.items(), ("#b3541e", "#2f5d73"), strict=True):
        alarms = np.array(run["alarms"], dtype=float)[well]
        width = min(given.block, len(alarms))
        rate = 100 * np.convolve(alarms, np.ones(width) / width, mode="valid")
        axis.plot(places[width - 1 :], rate, color=colour, label=name)
        for number, place in enumerate(run["warnings"]):
            label = f"drift warnings, {name}" if not number else None
            axis.axvline(place, color=colour, lw=0.8, ls=":", label=label)
    axis.axhline(100 * given.rate, color="#888", lw=0.8)
    axis.axvspan(0, given.still, color="#888", alpha=0.12, lw=0)
    axis.set(xlabel="clips heard (grey: nothing has changed yet)", ylim=0)
    axis.set(ylabel=f"false alarms, % of last {given.block}")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--system", default="logmel-knn")
    options.add_argument("--seconds", type=float, default=2.0, help="length of a clip")
    options.add_argument("--train", type=int, default=100, help="normal clips at the beginning")
    options.add_argument("--clips", type=int, default=800, help="clips of the stream")
    options.add_argument("--still", type=int, default=300, help="of them before anything changes")
    options.add_argument("--shift", type=float, default=0.0, help="the hum at the end, dB beside the clip")
    options.add_argument("--rate", type=float, default=0.05, help="false-alarm rate of the threshold")
    options.add_argument("--between", type=float, default=2000.0, help="clips from one false drift warning to the next")
    options.add_argument("--batch", type=int, default=60, help="clips of an update")
    options.add_argument("--block", type=int, default=100, help="clips of a row in the table")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path)
    options.add_argument("--picture", type=Path)
    given = options.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        train, heard = record(given, Path(scratch))
        detector = fit(train, given.system, false_alarms=str(given.rate), workers=0)
        runs = {
            "left alone": follow(detector, heard, given, updating=False),
            "updated": follow(detector, heard, given, updating=True),
        }
    print("| clips | hum | left alone: false alarms | drift warnings | updated: false alarms | drift warnings |")
    print("|---|---|---:|---:|---:|---:|")
    for row in table(heard, runs, given.block):
        print("| " + " | ".join(row) + " |")
    faulty = [place for place, clip in enumerate(heard) if clip.faulty]
    for name, run in runs.items():
        caught = [place for place in faulty if run["alarms"][place]]
        print(f"{name}: warnings at {run['warnings']}, {len(caught)} of {len(faulty)} faulty clips alarmed: {caught}")
    print(f"{time.perf_counter() - begun:.0f} s on {platform.machine()}, seed {given.seed}, {given.system}")
    if given.json:
        kept = {name: {**run, "alarms": [int(a) for a in run["alarms"]]} for name, run in runs.items()}
        given.json.write_text(json.dumps({"settings": {k: str(v) for k, v in vars(given).items()}, "runs": kept}))
    if given.picture:
        draw(heard, runs, given, given.picture)


if __name__ == "__main__":
    main()
