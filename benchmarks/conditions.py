"""Which system to trust when: every system on simulated machines under several conditions, in one table.

    python benchmarks/conditions.py --out FOLDER [--weights mn04_as_mAP_432.pt] [--jobs 2]

Conditions change one thing each. In the middle stands `noise`: three machines, their settings told, machine over
surroundings at −4 to 6 dB, a few dozen normal clips each.

    quiet       the machine 8 to 18 dB above its surroundings
    noise       −4 to 6 dB
    loud noise  −14 to −4 dB
    one         one machine alone in the training set (with seed after seed: fan, valve, gearbox)
    many        all six machines together
    hidden      no settings told
    20 clips    18 normal clips of the source domain and 2 of the target domain a machine, and nothing else

A seed stands for other simulated machines and another training. What stands in a cell is the mean over seeds of the
official score, with the 95 % interval that other test clips of these machines would leave it: bootstrap intervals a
seed, joined as those of independent sets. Bold is the best of a column, italic what does not lie below the interval of
the best. So that the table takes an hour on two cores, clips last 4 s and systems that train do so for fewer
epochs than their presets say; the settings stand below the table.

Every finished run is kept, a killed script goes on, and a run that fails is named and leaves its cell empty. Sets
that served to choose settings were made with seeds 77, 11, 78 and 21; take others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from offkey.files import write_whole

THREE = ("fan", "valve", "gearbox")
SIX = ("fan", "valve", "gearbox", "bearing", "slider", "pump")
SECONDS = 4.0
CLIPS = {"train_source": 36, "train_target": 4, "test_per_group": 15, "supplemental": 12}
SEEN = {77, 11, 78, 21}
"""Seeds of the sets on which settings of offkey were chosen, or that were looked at while they were."""

# Quick: about half a minute a run on one core for the three machines.
EPOCHS = {"discriminative": 6, "auto": 6}
ENCODED = 4
"""Epochs with an encoder in front that learns as well."""
DENSE = ("training.epochs=20",)
CONVOLUTIONAL = ("training.epochs=15", "training.batch_size=256")


class Condition(NamedTuple):
    """A column of the table: what differs from the others, by settings of `offkey data synth`."""

    name: str
    snr_db: tuple[float, float] = (-4.0, 6.0)
    machines: tuple[str, ...] = THREE
    hidden: bool = False
    clips: Mapping[str, int] = CLIPS
    turns: bool = False
    """One of the machines only, another with every seed."""

    def machines_of(self, place: int) -> tuple[str, ...]:
        """Machines of the set that the seed at this place of the list makes."""
        return (self.machines[place % len(self.machines)],) if self.turns else self.machines

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "-")


CONDITIONS = (
    Condition("quiet", snr_db=(8.0, 18.0)),
    Condition("noise"),
    Condition("loud noise", snr_db=(-14.0, -4.0)),
    Condition("one", turns=True),
    Condition("many", machines=SIX),
    Condition("hidden", hidden=True),
    Condition("20 clips", clips={**CLIPS, "train_source": 18, "train_target": 2, "supplemental": 0}),
)


class Score(NamedTuple):
    """One run, as fractions."""

    seed: int
    value: float
    low: float
    high: float
    seconds: float | None


class Cell(NamedTuple):
    """A system under a condition over its seeds, as fractions; `deviation` None for one seed."""

    mean: float
    low: float
    high: float
    deviation: float | None
    seeds: int


def joined(scores: Sequence[Score]) -> Cell | None:
    """Mean over seeds; the sides of the interval are those of a mean of independent sets."""
    if not scores:
        return None
    count = len(scores)
    mean = math.fsum(score.value for score in scores) / count
    below = math.sqrt(math.fsum((score.value - score.low) ** 2 for score in scores)) / count
    above = math.sqrt(math.fsum((score.high - score.value) ** 2 for score in scores)) / count
    deviation = statistics.stdev(score.value for score in scores) if count > 1 else None
    return Cell(mean, mean - below, mean + above, deviation, count)


def table_of(cells: Mapping[str, Mapping[str, Cell | None]], conditions: Sequence[str], seeds: int) -> str:
    """Markdown: a row a system, a column a condition, percent; best bold, what is within its interval italic.

    A cell that lacks seeds says how many it has, and cannot be the best.
    """
    whole = {
        name: [cell for row in cells.values() if (cell := row.get(name)) is not None and cell.seeds == seeds]
        for name in conditions
    }
    best = {name: max(found, key=lambda cell: cell.mean) for name, found in whole.items() if found}
    lines = [["system", *conditions], ["---", *["---:"] * len(conditions)]]
    for system, row in cells.items():
        texts = []
        for name in conditions:
            cell = row.get(name)
            if cell is None:
                texts.append("–")
                continue
            text = f"{100 * cell.mean:.1f}"
            if cell.seeds < seeds:
                text += f" ({cell.seeds} of {seeds} seeds)"
            elif cell is best[name]:
                text = f"**{text}**"
            elif cell.mean >= best[name].low:
                text = f"*{text}*"
            texts.append(f"{text} [{100 * cell.low:.0f}, {100 * cell.high:.0f}]")
        lines.append([system, *texts])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def default_systems(weights: Path | None) -> list[str]:
    """A row a preset, with the settings that make it quick; those that need an encoder only with weights."""
    from offkey.systems.config import load_preset, preset_names

    rows = []
    for name in preset_names():
        config = load_preset(name)
        settings: list[str] = []
        encoded = config.encoder.name != "none"
        if config.separation.fit != "never":  # twenty minutes a run; what separators bring has a table of its own
            settings.append("separation.fit=never")
        if encoded:
            if weights is None:
                continue
            settings += ["encoder.name=efficientat", f"encoder.weights={weights.absolute()}"]
            if config.encoder.checkpointing:
                settings.append("encoder.checkpointing=false")
        if config.kind == "reconstructive":
            settings += CONVOLUTIONAL if encoded else DENSE
        elif config.kind != "training-free":
            settings.append(f"training.epochs={ENCODED if encoded else EPOCHS.get(name, 6)}")
        if config.kind != "auto":
            rows.append(" ".join([f"{name}={name}", *settings]))
            continue
        rows.append(" ".join([f"{name}={name}", *settings, "auto.retrieval=false"]))  # whatever weights are at hand
        if weights is not None:
            listening = ["encoder.name=efficientat", f"encoder.weights={weights.absolute()}"]
            rows.append(" ".join([f"{name}-efficientat={name}", *settings, *listening]))
    return rows


def synthetic(condition: Condition, seed: int, place: int, given: argparse.Namespace) -> Any:
    """Settings of the set of a condition and a seed."""
    from offkey.data.synthetic import SynthConfig

    machines = condition.machines_of(place)
    clips = {name: max(1, round(count * given.scale)) if count else 0 for name, count in condition.clips.items()}
    return SynthConfig(
        machines=machines,
        seconds=given.seconds,
        snr_db=condition.snr_db,
        hidden_attributes=machines if condition.hidden else (),
        seed=seed,
        workers=1,
        **clips,
    )


def run_set(condition: Condition, seed: int, place: int, given: argparse.Namespace, problems: list[str]) -> None:
    """Make the set of one condition and seed, and run every system on it."""
    from offkey.benchmarking import Contestant, benchmark
    from offkey.data.synthetic import synthesize
    from offkey.progress import Quiet

    folder = given.out / condition.folder / f"set-{seed}"
    synthesize(folder / "data", synthetic(condition, seed, place, given))
    for text in given.system:  # one at a time, so that an error of any kind ends one run alone
        name = f"{condition.name}, seed {seed}, {text.split('=')[0]}"
        begun = time.perf_counter()
        failures: list[str] = []
        try:
            runs = benchmark(
                folder / "data", [Contestant.read(text)], [seed], folder / "runs", workers=1,
                progress=Quiet(), failures=failures,
            )  # fmt: skip
            said = f"{100 * runs[0].result.official_score:.1f} %" if runs else "failed"
        except Exception as error:  # whatever it was: the table goes on, and the reason stands below it
            failures, said = [repr(error)], "failed"
        problems += [f"{name}: {failure}" for failure in failures]
        print(f"{name}: {said}, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)


def collect(given: argparse.Namespace) -> dict[str, dict[str, list[Score]]]:
    """What is finished: system, condition -> runs."""
    from offkey.benchmarking import Contestant, finished_runs
    from offkey.types import OffkeyError

    names = [Contestant.read(text).name for text in given.system]
    found: dict[str, dict[str, list[Score]]] = {name: {} for name in names}
    for condition in given.conditions:
        for seed in given.seeds:
            try:
                runs = finished_runs(given.out / condition.folder / f"set-{seed}" / "runs")
            except OffkeyError:
                continue  # nothing is finished there
            for run in runs:
                if run.system in found and run.result.interval is not None:
                    seconds = None if run.fit_seconds is None else run.fit_seconds + run.score_seconds
                    score = Score(seed, run.result.official_score, *run.result.interval, seconds)
                    found[run.system].setdefault(condition.name, []).append(score)
    return found


def write(given: argparse.Namespace, problems: Sequence[str]) -> str:
    """Write `conditions.md` and `conditions.json` of all that is finished; the Markdown."""
    found = collect(given)
    cells = {system: {name: joined(scores) for name, scores in row.items()} for system, row in found.items()}
    titles = [condition.name for condition in given.conditions]
    seeds = ", ".join(map(str, given.seeds))
    table = table_of({name: row for name, row in cells.items() if row}, titles, len(given.seeds))
    shortened = [text for text in given.system if " " in text]
    sizes = synthetic(CONDITIONS[1], given.seeds[0], 0, given)
    told = [
        f"Official score in percent, mean over simulated sets of seeds {seeds} [95 % interval for other test clips]. "
        "**Bold**: best of the column; *italic*: not below the best one's interval.",
        f"Clips of {given.seconds:g} s; a machine has {sizes.train_source} source and {sizes.train_target} target "
        f"clips for training and {4 * sizes.test_per_group} test clips.",
    ]
    if shortened:
        told.append("Settings other than the presets': " + "; ".join(f"`{text}`" for text in shortened) + ".")
    text = table + "\n" + "\n\n".join(told) + "\n"
    if problems:
        text += "\nFailed: " + "; ".join(" ".join(problem.split()) for problem in problems) + "\n"
    write_whole(given.out / "conditions.md", text)
    record = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {given.jobs} jobs",
        "seeds": given.seeds,
        "systems": given.system,
        "conditions": {
            condition.name: synthetic(condition, given.seeds[0], 0, given).model_dump(mode="json")
            for condition in given.conditions
        },
        "scores": {
            system: {name: [score._asdict() for score in scores] for name, scores in row.items()}
            for system, row in found.items()
        },
        "cells": {
            system: {name: cell._asdict() for name, cell in row.items() if cell} for system, row in cells.items()
        },
        "failed": list(problems),
    }
    write_whole(given.out / "conditions.json", json.dumps(record, indent=1) + "\n")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the sets, runs and tables")
    parser.add_argument(
        "--system", action="append", metavar="'NAME=SYSTEM KEY=VALUE …'",
        help="a row; default: every preset that needs no weights, and with --weights the others with EfficientAT",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, help="EfficientAT's weights")
    parser.add_argument("--free", action="store_true", help="of the default rows those alone that train nothing")
    parser.add_argument("--seeds", default="101,102,103", help="whole numbers with commas between")
    parser.add_argument("--conditions", default="", help="these columns only, with commas between")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of a clip")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the clips, to try whether all works")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    given = parser.parse_args(arguments)
    given.seeds = [int(seed) for seed in given.seeds.split(",")]
    if SEEN & set(given.seeds):
        parser.error(f"settings were chosen on the sets of seeds {sorted(SEEN)}: take others")
    asked = [name.strip() for name in given.conditions.split(",") if name.strip()]
    unknown = set(asked) - {condition.name for condition in CONDITIONS}
    if unknown:
        parser.error(f"no condition {sorted(unknown)[0]!r}; known: {', '.join(c.name for c in CONDITIONS)}")
    given.conditions = [condition for condition in CONDITIONS if not asked or condition.name in asked]
    if not given.system:
        given.system = default_systems(given.weights)
        if given.free:
            from offkey.systems.config import load_preset

            given.system = [text for text in given.system if load_preset(text.split("=")[0]).kind == "training-free"]
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that fit and evaluate
    problems: list[str] = []

    def one(task: tuple[Condition, int, int]) -> None:
        condition, seed, place = task
        try:
            run_set(condition, seed, place, given, problems)
        except Exception as error:  # a set that cannot be made: the others go on
            problems.append(f"{condition.name}, seed {seed}: {error!r}")
        write(given, problems)

    # seed by seed, so that a run that is stopped early leaves whole columns for the seeds that it had time for
    tasks = [(c, seed, place) for place, seed in enumerate(given.seeds) for c in given.conditions]
    with ThreadPoolExecutor(max(1, given.jobs)) as pool:
        list(pool.map(one, tasks))
    print(write(given, problems))
    print(f"tables: {given.out / 'conditions.md'}, {given.out / 'conditions.json'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
