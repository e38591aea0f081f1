"""Do explanations point at the fault? Overlap of their time and band with the true ones, on simulated short events.

    python benchmarks/explanations.py --folder /tmp/events --pictures /tmp/events/pictures

Machines are simulated whose fault is a passing event (a rub, a scrape, a foreign object …) in clips that are otherwise
normal. Every system explains every faulty clip. What is printed is the intersection over union of its stretch of time
with the event's, of its band with the band that the fault was made in (in mel bands), and of both together (the
rectangle); mean, median, and the share of clips above 0.3. Beside the systems stand three peers that know less:

    loudest      the loudest place of the clip's own spectrogram and what around it is at most 6 dB below
    half peak    the place farthest from the mean of normal clips, and what around it reaches half of that (offkey 0.1)
    everything   the whole clip: what a wild guess is worth
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from offkey.audio.io import prepare
from offkey.audio.mel import LogMel, mel_centres
from offkey.benchmarking import Contestant
from offkey.data.synthetic import SynthConfig, synthesize
from offkey.data.synthetic.dataset import render_clip
from offkey.data.synthetic.plan import ClipPlan, plan_clips
from offkey.detector import Detector
from offkey.explaining import draw
from offkey.fitting import fit
from offkey.types import Condition

MACHINES = ("fan", "gearbox", "bearing", "slider", "pump")
SYSTEMS = (
    "logmel-mahalanobis", "logmel-knn", "baseline",
    "discriminative=discriminative training.epochs=3 model.width=0.25",
)  # fmt: skip
WORTH = 0.3


class Place(NamedTuple):
    """Seconds and hertz."""

    start: float
    end: float
    low: float
    high: float


def overlap(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """Length of what two intervals share, and of what they cover together if they touch."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared, (a[1] - a[0]) + (b[1] - b[0]) - shared


def score(found: Place, truth: Place, mel: LogMel) -> dict[str, float]:
    centres = mel_centres(mel.rate, mel.config)

    def bands(place: Place) -> tuple[float, float]:
        numbers = np.arange(len(centres), dtype=float)
        low, high = np.interp([place.low, place.high], centres, numbers)
        return float(low) - 0.5, float(high) + 0.5

    times = overlap((found.start, found.end), (truth.start, truth.end))
    rows = overlap(bands(found), bands(truth))
    size = (found.end - found.start) * (bands(found)[1] - bands(found)[0])
    true = (truth.end - truth.start) * (bands(truth)[1] - bands(truth)[0])
    both = times[0] * rows[0]
    return {"time": times[0] / times[1], "band": rows[0] / rows[1], "both": both / (size + true - both)}


def grown(strength: np.ndarray, least: float, mel: LogMel, seconds: float) -> Place:
    """The connected region around the highest place of a map (M, F) that stays above `least`."""
    peak = np.unravel_index(int(strength.argmax()), strength.shape)
    regions, _ = ndimage.label(strength >= least)
    inside = regions == regions[peak]
    rows, frames = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    centres, frame = mel_centres(mel.rate, mel.config), mel.config.hop / mel.rate
    end = min((frames[-1] + 1) * frame, seconds)
    return Place(float(frames[0] * frame), float(end), float(centres[rows[0]]), float(centres[rows[-1]]))


def smooth(values: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(values, size=(3, 3), mode="nearest")


def peers(samples: np.ndarray, detector: Detector, machine: str) -> dict[str, Place]:
    mel = LogMel(detector.config.audio.rate, detector.config.mel)
    own = prepare(samples, detector.config.audio.rate, detector.config.audio)
    level = mel(torch.from_numpy(np.array(own))[None])[0].double().numpy()
    seconds = len(own) / mel.rate
    profile = detector.machines[machine].profile
    loud = smooth(level)
    difference = level - profile.mean[:, None]
    if detector.config.audio.level_dbfs is not None:
        difference -= np.median(difference)
    strange = smooth(difference / profile.spread[:, None])
    peak = strange.flat[int(np.abs(strange).argmax())]
    return {
        "loudest": grown(loud, float(loud.max()) - 6.0, mel, seconds),
        "half peak": grown(strange * np.sign(peak), abs(float(peak)) / 2, mel, seconds),
        "everything": Place(0.0, seconds, 0.0, mel.rate / 2),
    }


def events(given: argparse.Namespace) -> list[ClipPlan]:
    """Faulty clips whose fault passes."""
    config = settings(given, given.events)
    faulty = [plan for plan in plan_clips(config) if plan.condition is Condition.ANOMALY and plan.fault is not None]
    return [plan for plan in faulty if plan.fault is not None and plan.fault.end_s - plan.fault.start_s < plan.seconds]


def settings(given: argparse.Namespace, tests: int) -> SynthConfig:
    return SynthConfig(
        machines=tuple(given.machines.split(",")), seconds=given.seconds, train_source=given.train,
        train_target=max(2, given.train // 10), test_per_group=tests, supplemental=0, seed=given.seed, workers=1,
        severity=(given.severity, 1.0),
    )  # fmt: skip


def explained(detector: Detector, pictures: Path | None, name: str) -> Callable[[ClipPlan, np.ndarray], Place]:
    mel = LogMel(detector.config.audio.rate, detector.config.mel)

    def explain(plan: ClipPlan, samples: np.ndarray) -> Place:
        found = detector.explain(samples, machine=plan.machine)
        if pictures is not None and plan.fault is not None:
            fault = plan.fault
            truth = f"{fault.start_s:.1f}–{fault.end_s:.1f} s, {fault.low_hz:.0f}–{fault.high_hz:.0f} Hz"
            title = f"{plan.machine} {plan.domain.value} {fault.name}, truth {truth}, severity {fault.severity:.2f}"
            draw(found, mel, title, pictures / f"{plan.machine}-{plan.domain.value}-{plan.number}-{name}.png")
        return Place(found.start, found.end, found.low, found.high)

    return explain


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    root = given.folder / "set"
    synthesize(root, settings(given, 0))
    waiting = events(given)
    clips = [render_clip(plan, 16000, 1).mixture[:, 0] for plan in waiting]
    found: dict[str, list[dict[str, float]]] = {}
    taken: dict[str, float] = {}
    for contestant in map(Contestant.read, given.system or SYSTEMS):
        name = contestant.name
        detector = fit(
            root, contestant.system, out=given.folder / name, overrides=contestant.overrides, seed=given.seed, workers=0
        )
        mel = LogMel(detector.config.audio.rate, detector.config.mel)
        explain = explained(detector, given.pictures, name)
        begun = time.perf_counter()
        for plan, samples in zip(waiting, clips, strict=True):
            fault = plan.fault
            if fault is None:
                raise ValueError("an event without a fault")
            truth = Place(fault.start_s, fault.end_s, fault.low_hz, fault.high_hz)
            found.setdefault(name, []).append(score(explain(plan, samples), truth, mel))
        taken[name] = (time.perf_counter() - begun) / max(1, len(waiting))
        if "loudest" not in found:
            for plan, samples in zip(waiting, clips, strict=True):
                fault = plan.fault
                if fault is not None:
                    truth = Place(fault.start_s, fault.end_s, fault.low_hz, fault.high_hz)
                    for peer, place in peers(samples, detector, plan.machine).items():
                        found.setdefault(peer, []).append(score(place, truth, mel))
    rows = []
    for name, scores in found.items():
        row: dict[str, Any] = {"name": name, "clips": len(scores), "seconds": taken.get(name)}
        for what in ("time", "band", "both"):
            values = [one[what] for one in scores]
            row[what] = {
                "mean": statistics.fmean(values),
                "median": statistics.median(values),
                "share": sum(value > WORTH for value in values) / len(values),
            }
        rows.append(row)
    if given.each:
        for plan, *scores in zip(waiting, *found.values(), strict=True):
            print(plan.machine, plan.domain.value, plan.number, plan.fault and plan.fault.name,
                  *(f"{name} {one['both']:.2f}" for name, one in zip(found, scores, strict=True)))  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the simulated set and the detectors go")
    parser.add_argument(
        "--system", action="append", metavar="'NAME=SYSTEM KEY=VALUE …'", help=f"a row; default: {', '.join(SYSTEMS)}"
    )
    parser.add_argument("--machines", default=",".join(MACHINES))
    parser.add_argument("--train", type=int, default=40, help="normal clips of the source domain, a machine")
    parser.add_argument("--events", type=int, default=24, help="faulty clips of which the passing ones are explained")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a clip")
    parser.add_argument("--severity", type=float, default=0.3, help="mildest fault, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="folder for a picture a clip and system")
    parser.add_argument("--each", action="store_true", help="also a line a clip")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(given)
    if given.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "rows": rows}, indent=1))
        return
    print(f"{rows[0]['clips']} events; intersection over union: mean, median, share above {WORTH}")
    print(f"{'':20s} {'time':>18s} {'band':>18s} {'both':>18s}  s a clip")
    for row in rows:
        told = [
            f"{row[w]['mean']:5.2f} {row[w]['median']:5.2f} {row[w]['share']:5.0%}" for w in ("time", "band", "both")
        ]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        print(f"{row['name']:20s}", *(f"{text:>18s}" for text in told), f" {seconds}")


if __name__ == "__main__":
    main()
