"""Many systems and seeds on one data set, a process each, in one table; what is finished is never done again.

`<out>/<name>-seed<n>/` is a run folder: the detector, its evaluation, and `run.json` (times, memory). A run that was
killed goes on; `table.md`, `table.csv`, `table.html` and `runs.csv` are written anew after every run. Runs of another
folder, of this program or of another that keeps the same files, may stand beside (`finished_runs`).

Systems that have a separator fitted first share the one of their seed, in `<out>/separators/`: it takes far longer than
most of them. Each one's time of fitting holds the separator's, as if it had been fitted for it alone.
"""

from __future__ import annotations

import csv
import ctypes
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import offkey
from offkey.assessment import FOLDER
from offkey.evaluation.result import Result
from offkey.evaluation.tables import Run, Table, summarise
from offkey.files import write_whole
from offkey.manifest import MANIFEST
from offkey.progress import Progress
from offkey.types import OffkeyError

__all__ = ["BenchmarkError", "BenchmarkRun", "Contestant", "benchmark", "finished_runs", "write_tables"]

RECORD = "run.json"
"""File of a run folder that says it is finished, what was asked for, and what it took."""


SEPARATORS = "separators"
"""Folder, beside the runs, of separators that were fitted for them."""


class BenchmarkError(OffkeyError):
    """A run of the benchmark failed; the message holds the end of what it said."""


class Contestant(NamedTuple):
    """A row of the table: a system (name or TOML file) under its own name, with settings of its own."""

    name: str
    system: str
    overrides: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Contestant:
        """`NAME=SYSTEM KEY=VALUE …`, or a system alone, which is then its own name.

        >>> Contestant.read("small=system1 encoder.name=efficientat model.width=0.5").overrides
        ('encoder.name=efficientat', 'model.width=0.5')
        """
        first, *overrides = text.split()
        name, sign, system = first.partition("=")
        if not sign:
            name, system = Path(first).stem, first
        if not re.fullmatch(r"[\w.+-]+", name) or not system or any("=" not in part for part in overrides):
            raise BenchmarkError(f"{text!r} is not of the form NAME=SYSTEM KEY=VALUE …")
        return cls(name, system, tuple(overrides))


@dataclass(frozen=True)
class BenchmarkRun:
    """One finished run: its result, seconds of fitting and of scoring, and peak memory in MiB.

    `fit_seconds` is None where a run was killed and went on: nobody timed all of it.
    """

    system: str
    seed: int
    folder: Path
    result: Result
    fit_seconds: float | None
    score_seconds: float
    peak_mib: float


def benchmark(
    source: Path,
    contestants: Sequence[Contestant],
    seeds: Sequence[int],
    out: Path,
    *,
    overrides: Sequence[str] = (),
    groups: str | None = None,
    fit_groups: str | None = None,
    workers: int = 2,
    progress: Progress,
    failures: list[str],
) -> list[BenchmarkRun]:
    """Fit and evaluate every contestant with every seed; write the tables; return the runs in order.

    Each run is a process of its own, so that peak memory is its own and one crash ends one run: it is noted in
    `failures`, and the others go on. `overrides` are settings for all, before each one's own. `groups` and `fit_groups`
    ("CSV:COLUMN") tell which clips were cut from one recording: test clips, for the bootstrap, and normal ones, for
    fitting. Raises BenchmarkError where two contestants have one name, or a seed is there twice.
    """
    names = [entry.name for entry in contestants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BenchmarkError(f"two rows of the table would be called {twice[0]!r}; give one another name")
    again = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if again:
        raise BenchmarkError(f"seed {again[0]} is told twice; keep one run a seed")
    plan = [(entry, seed) for entry in contestants for seed in seeds]
    runs: list[BenchmarkRun] = []
    progress.start("runs", len(plan))
    for number, (entry, seed) in enumerate(plan):
        folder = out / f"{entry.name}-seed{seed}"
        note = ""
        try:
            runs.append(_run(folder, entry, seed, source, overrides, groups, fit_groups, workers))
            note = f"{folder.name}: {100 * runs[-1].result.official_score:.1f} %"
        except BenchmarkError as error:
            failures.append(f"{folder.name}: {error}")
            note = f"{folder.name}: {'scored, no labels' if (folder / RECORD).is_file() else 'failed'}"
        if runs:
            write_tables(runs, out)
        progress.step(number + 1, note)
    return runs


def write_tables(runs: Sequence[BenchmarkRun], out: Path) -> Table:
    """Write `table.md`, `table.csv`, `table.html` (a row a system, and a scorer of a blend), `runs.csv` (a row a run).

    Returned is the table without the columns of single machines, which no terminal is wide enough for.
    """
    from offkey.report import write_comparison

    rows = [row for run in runs for row in _rows(run)]
    table = summarise(rows, machines=True)
    write_whole(out / "table.md", table.to_markdown())
    write_whole(out / "table.csv", table.to_csv())
    protocol = runs[0].result.protocol
    seeds = sorted({run.seed for run in runs})
    write_comparison(table, out / "table.html", protocol=protocol, seeds=seeds, version=offkey.__version__)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = runs[0].result.metrics
    writer.writerow(["system", "seed", "official_score", *metrics, "fit_seconds", "score_seconds", "peak_mib"])
    for run in runs:
        fit_seconds = "" if run.fit_seconds is None else round(run.fit_seconds, 2)
        cost = (fit_seconds, round(run.score_seconds, 2), round(run.peak_mib))
        for row in _rows(run):
            values = [row.result.official_score, *(row.result.harmonic_mean[name] for name in metrics)]
            writer.writerow([row.system, row.seed, *values, *cost])
    write_whole(out / "runs.csv", text.getvalue())
    return summarise(rows)


def _rows(run: BenchmarkRun) -> list[Run]:
    """The system as a whole, and each scorer of its blend alone."""
    alone = [Run(f"{run.system} · {name}", run.seed, result) for name, result in run.result.scorers.items()]
    costs = {"fit_seconds": run.fit_seconds, "score_seconds": run.score_seconds, "peak_mib": run.peak_mib}
    known = {name: cost for name, cost in costs.items() if cost is not None}
    return [Run(run.system, run.seed, run.result, known), *alone]


def _run(
    folder: Path,
    entry: Contestant,
    seed: int,
    source: Path,
    overrides: Sequence[str],
    groups: str | None,
    fit_groups: str | None,
    workers: int,
) -> BenchmarkRun:
    record = folder / RECORD
    settings = [*overrides, *entry.overrides]
    asked = {"source": str(source.absolute()), "system": entry.system, "overrides": settings, "groups": groups}
    if fit_groups:
        asked["fit_groups"] = fit_groups
    if record.is_file():
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept["asked"] != asked:
            raise BenchmarkError(f"{folder} was made from other data or settings; choose another --out")
    else:
        common = ["--workers", str(workers)]
        # before the settings that somebody gave, which overrule it
        shared = f"separation.folder={json.dumps(str((folder.parent / SEPARATORS).absolute()), ensure_ascii=False)}"
        before = _separators(folder.parent)
        goes_on = folder.is_dir() and any(folder.iterdir())
        fit_seconds, fit_mib = _command(
            [
                "fit",
                str(source),
                "--system",
                entry.system,
                "--seed",
                str(seed),
                "--out",
                str(folder),
                *(part for text in (shared, *settings) for part in ("--set", text)),
                *(["--groups", fit_groups] if fit_groups else []),
                *common,
            ]
        )
        grouped = ["--groups", groups] if groups else []
        score_seconds, score_mib = _command(["evaluate", str(folder), str(source), *grouped, *common])
        kept = {
            "asked": asked,
            "fit_seconds": None if goes_on else fit_seconds + _found_separator(folder, before),
            "score_seconds": score_seconds,
            "peak_mib": max(fit_mib, score_mib),
        }
        write_whole(record, json.dumps(kept, indent=1))
    if not (folder / FOLDER / "result.json").is_file():
        raise BenchmarkError(f"{source} has no labelled test clips, so there is nothing to compare")
    return _read(folder, entry.name, seed)


def _separators(out: Path) -> set[Path]:
    """The finished separators that runs share."""
    return {manifest.parent for manifest in (out / SEPARATORS).glob(f"*/{MANIFEST}")}


def _found_separator(folder: Path, before: set[Path]) -> float:
    """Seconds that training took of the separator that a detector hears through, if it was among those of `before`."""
    settings = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    place = settings.get("separation", {}).get("front_end", "")
    if not place or Path(place) not in before:
        return 0.0
    facts = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))["facts"]
    return float(facts.get("separator", {}).get("seconds", 0.0))


def finished_runs(folder: Path, like: Sequence[BenchmarkRun] = ()) -> list[BenchmarkRun]:
    """The finished runs of an earlier benchmark in `folder`, by name and seed, to stand in a table beside `like`.

    Every file of a run but `run.json`, `evaluation/result.json` and `evaluation/scores.csv` may be missing, so a
    method that offkey does not know can stand there as well. Raises BenchmarkError where there is none, where
    one is damaged, where one judged other clips than the others, drew other groups in the bootstrap, or has the name
    and the seed of another.
    """
    found = []
    for record in sorted(folder.glob(f"*-seed*/{RECORD}")):
        name, _, number = record.parent.name.rpartition("-seed")
        if number.isdecimal() and (record.parent / FOLDER / "result.json").is_file():
            found.append(_read(record.parent, name, int(number)))
    if not found:
        raise BenchmarkError(f"{folder} holds no finished runs of a benchmark (NAME-seedN/{RECORD}); check the path")
    known = list(like)
    for run in found:
        if any((other.system, other.seed) == (run.system, run.seed) for other in known):
            raise BenchmarkError(f"{run.folder}: there is a run {run.system}, seed {run.seed} already; leave one out")
        if known and _clips(known[0].folder) != _clips(run.folder):
            raise BenchmarkError(f"{run.folder} judged other test clips than {known[0].folder}: no table for both")
        if known and known[0].result.grouped != run.result.grouped:
            raise BenchmarkError(
                f"the intervals of {run.folder} and {known[0].folder} do not compare: --groups was given for one alone"
            )
        known.append(run)
    return sorted(found, key=lambda run: (run.system, run.seed))


def _read(folder: Path, name: str, seed: int) -> BenchmarkRun:
    try:
        kept = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        result = Result.from_dict(json.loads((folder / FOLDER / "result.json").read_text(encoding="utf-8")))
        return BenchmarkRun(name, seed, folder, result, kept["fit_seconds"], kept["score_seconds"], kept["peak_mib"])
    except (OSError, ValueError, KeyError, TypeError, OffkeyError) as error:
        raise BenchmarkError(f"{folder}: the run is damaged ({error!r}); remove the folder and run again") from None


def _clips(folder: Path) -> set[tuple[str, ...]]:
    """The test clips that a run judged, with all that is known of them."""
    told = ("file", "machine", "section", "domain", "condition")
    try:
        with (folder / FOLDER / "scores.csv").open(encoding="utf-8", newline="") as file:
            return {tuple(row[name] for name in told) for row in csv.DictReader(file)}
    except (OSError, KeyError) as error:
        raise BenchmarkError(f"{folder}: the run is damaged ({error!r}); remove the folder and run again") from None


def _command(arguments: list[str]) -> tuple[float, float]:
    """Run `offkey` with these arguments; (seconds, peak MiB). Exit code 1 (some files unusable) is a success."""
    begun = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - our own program, arguments as a list
        [sys.executable, "-m", "offkey", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_end_with_us() if sys.platform == "linux" else None,
    )
    if process.stdout is None:
        raise RuntimeError("the process was started with a pipe")
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)  # this process's own peak memory, not that of all before it
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    seconds = time.perf_counter() - begun
    if process.returncode not in (0, 1):
        raise BenchmarkError(f"`offkey {arguments[0]}` ended with {process.returncode}: {said.strip()[-600:]}")
    return seconds, used.ru_maxrss / 1024


def _end_with_us() -> Callable[[], object]:
    """For a new process: it is killed when this one is, so that no orphan works on in a run's folder (Linux alone)."""
    system = ctypes.CDLL(None)
    return lambda: system.prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
