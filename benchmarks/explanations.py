"""Do explanations point at the fault? Overlap of their time and band with the true ones, on simulated short events.

    python benchmarks/explanations.py --folder /tmp/events --pictures /tmp/events/pictures

Machines are simulated whose fault is a passing event (a rub, a scrape, a foreign object …) in clips that are otherwise
normal. Every system explains every faulty clip. What is printed are means of intersections over unions:

    time, band, both   of the framed stretch of time with the event's, of the framed band with the band that the fault
                       was made in (in mel bands), and of both together (the rectangle)
    heard              of the framed rectangle with the places that the fault changes by 3 dB or more: every clip is
                       rendered again without its fault. Wide frames pay in "band" and "both", and not here
    map, agreement     of the system's own map, and of the places where it agrees with the departure from normal, with
                       the places that the fault changes; of a map as many places are taken as the fault changes

A row "NAME, departure alone" stands below each system: the same without the system's map. Beside the systems stand
four peers that know less:

    loudness     the map of levels; framed are its loudest place and what around it is at most 6 dB below
    half peak    the place farthest from the mean of normal clips, and what around it reaches half of that
    whole band   the time that a system frames, in all bands
    everything   the whole clip: what a wild guess is worth
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
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
from offkey.explaining import Asked, Explanation, draw
from offkey.fitting import fit
from offkey.systems.config import preset_names
from offkey.types import Condition

MACHINES = ("fan", "gearbox", "bearing", "slider", "pump")
SYSTEMS = (
    "logmel-mahalanobis",
    "logmel-knn",
    "discriminative=discriminative training.epochs=3 model.width=0.25",
    "auto=auto training.epochs=3 model.width=0.25",
    "baseline=baseline training.epochs=20",
)
WITH_ENCODER = {
    "system1": "encoder.unfreeze=none training.epochs=1 model.width=0.25",
    "system3": "training.epochs=10",
    "retrieval": "",
}
AUDIBLE_DB = 3.0
COLUMNS = ("time", "band", "both", "heard", "map", "agreement")


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
        "loudness": grown(loud, float(loud.max()) - 6.0, mel, seconds),
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


def audible(plan: ClipPlan, samples: np.ndarray, mel: LogMel) -> np.ndarray:
    """Places (M, F) that the fault of a clip changes by 3 dB or more, for a tenth of a second."""
    without = render_clip(replace(plan, fault=None), 16000, 1).mixture[:, 0]
    levels = [mel(torch.from_numpy(np.array(one, np.float32))[None])[0].double().numpy() for one in (samples, without)]
    difference = levels[0] - levels[1]
    difference -= np.median(difference)  # clips are written at a set level, which a fault moves
    return np.abs(ndimage.uniform_filter1d(difference, 3, mode="nearest")) >= AUDIBLE_DB


def shared(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` highest places of a map."""
    chosen = np.zeros(values.size, dtype=bool)
    chosen[np.argsort(-values, axis=None, kind="stable")[:count]] = True
    return chosen.reshape(values.shape)


def framed(place: Place, mel: LogMel, shape: tuple[int, int]) -> np.ndarray:
    centres = mel_centres(mel.rate, mel.config)
    times = np.arange(shape[1]) * mel.config.hop / mel.rate
    rows = (centres >= place.low - 1e-6) & (centres <= place.high + 1e-6)
    return rows[:, None] & ((times >= place.start) & (times <= place.end))[None]


class Judge:
    """Collects what explanations are worth, a row each."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, float]]] = {}

    def add(self, name: str, plan: ClipPlan, place: Place, heard: np.ndarray, mel: LogMel, **maps: np.ndarray) -> None:
        fault = plan.fault
        if fault is None:
            raise ValueError("an event without a fault")
        told = score(place, Place(fault.start_s, fault.end_s, fault.low_hz, fault.high_hz), mel)
        told["heard"] = shared(framed(place, mel, heard.shape), heard)
        told |= {what: shared(highest(values, int(heard.sum())), heard) for what, values in maps.items()}
        self.rows.setdefault(name, []).append(told)


def place_of(found: Explanation) -> Place:
    return Place(found.start, found.end, found.low, found.high)


def silent(detector: Detector) -> Detector:
    """The detector without a map of its own."""

    def nothing(*_: object) -> Asked:
        return Asked()

    detector._asked = nothing  # type: ignore[method-assign]
    return detector


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    root = given.folder / "set"
    if not root.is_dir():
        synthesize(root, settings(given, 0))
    waiting = events(given)
    clips = [render_clip(plan, 16000, 1).mixture[:, 0] for plan in waiting]
    judge = Judge()
    taken: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for contestant in map(Contestant.read, given.system or systems(given.weights)):
        name = contestant.name
        folder = given.folder / name
        if given.keep and (folder / "manifest.json").is_file():
            detector = Detector.load(folder)
        else:
            detector = fit(
                root, contestant.system, out=folder, overrides=contestant.overrides, seed=given.seed, workers=0
            )
        mel = LogMel(detector.config.audio.rate, detector.config.mel)
        alone = silent(Detector.load(folder))
        first = not judge.rows
        seconds = 0.0
        for plan, samples in zip(waiting, clips, strict=True):
            heard = audible(plan, samples, mel)
            begun = time.perf_counter()
            found = detector.explain(samples, machine=plan.machine)
            seconds += time.perf_counter() - begun
            kinds[name] = found.map_kind
            judge.add(name, plan, place_of(found), heard, mel, map=found.map, agreement=found.agreement)
            plain = alone.explain(samples, machine=plan.machine)
            judge.add(f"{name}, departure alone", plan, place_of(plain), heard, mel, agreement=plain.agreement)
            if first:
                for peer, place in peers(samples, detector, plan.machine).items():
                    maps = {"map": found.level} if peer == "loudness" else {}
                    judge.add(peer, plan, place, heard, mel, **maps)
                judge.add("whole band", plan, place_of(plain)._replace(low=0.0, high=mel.rate / 2), heard, mel)
            if given.pictures is not None and plan.fault is not None:
                fault = plan.fault
                told = f"{fault.start_s:.1f}–{fault.end_s:.1f} s, {fault.low_hz:.0f}–{fault.high_hz:.0f} Hz"
                title = f"{plan.machine} {plan.domain.value} {fault.name}, truth {told}"
                draw(found, mel, title, given.pictures / f"{plan.machine}-{plan.domain.value}-{plan.number}-{name}.png")
        taken[name] = seconds / max(1, len(waiting))
    return [
        {
            "name": name,
            "map_kind": kinds.get(name),
            "clips": len(scores),
            "seconds": taken.get(name),
            **{what: statistics.fmean(one[what] for one in scores) for what in COLUMNS if what in scores[0]},
        }
        for name, scores in judge.rows.items()
    ]


def systems(weights: Path | None) -> list[str]:
    """Every system, small; those with an encoder listen with EfficientAT, where its weights are given."""
    named = list(SYSTEMS)
    if weights is not None:
        told = f"encoder.name=efficientat encoder.weights={weights}"
        named += [f"{name}={name} {told} {more}" for name, more in WITH_ENCODER.items() if name in preset_names()]
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the simulated set and the detectors go")
    parser.add_argument(
        "--system", action="append", metavar="'NAME=SYSTEM KEY=VALUE …'", help="a row (default: every system)"
    )
    parser.add_argument("--machines", default=",".join(MACHINES))
    parser.add_argument("--train", type=int, default=40, help="normal clips of the source domain, a machine")
    parser.add_argument("--events", type=int, default=24, help="faulty clips of which the passing ones are explained")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a clip")
    parser.add_argument("--severity", type=float, default=0.3, help="mildest fault, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="folder for a picture a clip and system")
    parser.add_argument(
        "--weights", type=Path, help="EfficientAT's weights; without them systems with an encoder stay out"
    )
    parser.add_argument("--keep", action="store_true", help="take the detectors that --folder holds from last time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(given)
    if given.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "rows": rows}, indent=1))
        return
    print(f"{rows[0]['clips']} events; mean intersection over union")
    print(f"{'':40s}", *(f"{what:>9s}" for what in COLUMNS), " s a clip  map")
    for row in rows:
        values = [f"{row[what]:9.2f}" if what in row else " " * 9 for what in COLUMNS]
        seconds = f"{row['seconds']:9.2f}  {row['map_kind']}" if row["seconds"] is not None else ""
        print(f"{row['name']:40s}", *values, seconds)


if __name__ == "__main__":
    main()
