"""Was anything chosen by the test clips? The same systems on a twin set, or on halves of the recordings.

    python benchmarks/twin.py RUNS --twin TWIN_RUNS                  two folders of `offkey benchmark`, one a set
    python benchmarks/twin.py RUNS --groups uav/truth.csv:flight     one folder: halves of its flights

With a twin (the same machine and counts, other flights), the same `offkey benchmark` is run on both; a system that
was fitted to the test clips of the first falls on the second by more than others do. The interval is that of the
difference of two independent sets.

Without one, whole groups of test clips are dealt into two halves, many times. That cannot find a choice that all of the
test clips had a part in; it tells how far two halves of the same recordings disagree on a system, and what choosing by
test clips is worth: how much the best system of one half loses in the other. Folders of `benchmarks/peers.py` will
do as well. Only the kept scores are read.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from offkey.benchmarking import BenchmarkRun
    from offkey.evaluation.protocol import ScoredClip


class Half(NamedTuple):
    """Official scores (fractions) of the systems in both halves of one deal."""

    first: Mapping[str, float]
    second: Mapping[str, float]


def deal(groups: Sequence[str], strata: Sequence[str], seed: int) -> list[bool]:
    """Whether each clip is in the first half: whole groups, evenly from those that reach into the same strata."""
    reach: dict[str, set[str]] = {}
    for group, stratum in zip(groups, strata, strict=True):
        reach.setdefault(group, set()).add(stratum)
    pools: dict[tuple[str, ...], list[str]] = {}
    for group, reached in reach.items():
        pools.setdefault(tuple(sorted(reached)), []).append(group)
    generator = np.random.default_rng(seed)
    first: set[str] = set()
    for pool in pools.values():
        mixed = generator.permutation(sorted(pool)).tolist()
        extra = int(generator.integers(2)) if len(mixed) % 2 else 0  # the odd one goes either way
        first.update(mixed[: len(mixed) // 2 + extra])
    return [group in first for group in groups]


def clips_of(folder: Path) -> list[ScoredClip]:
    """The scored test clips of a run."""
    from offkey.evaluation.protocol import ScoredClip
    from offkey.types import Condition, Domain

    with (folder / "evaluation" / "scores.csv").open(encoding="utf-8", newline="") as file:
        return [
            ScoredClip(
                row["file"], row["machine"], row["section"], Domain(row["domain"]), Condition(row["condition"]),
                float(row["score"]),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


def halves(runs: Sequence[BenchmarkRun], groups: Mapping[str, str], splits: int) -> list[Half]:
    """Every deal's scores: means over the seeds of a system."""
    from offkey.evaluation.protocol import PROTOCOLS, evaluate

    read = [(run.system, PROTOCOLS[run.result.protocol], clips_of(run.folder)) for run in runs]
    missing = {clip.file for _, _, clips in read for clip in clips} - set(groups)
    if missing:
        raise SystemExit(f"no group is told for {min(missing)} and {len(missing) - 1} more test clips")
    found = []
    for split in range(splits):
        parts: list[dict[str, list[float]]] = [{}, {}]
        for system, protocol, clips in read:
            strata = [f"{clip.machine}\0{clip.section}\0{clip.domain}\0{clip.condition}" for clip in clips]
            mine = deal([groups[clip.file] for clip in clips], strata, split)
            for part, side in zip(parts, (True, False), strict=True):
                chosen = [clip for clip, here in zip(clips, mine, strict=True) if here is side]
                part.setdefault(system, []).append(evaluate(chosen, protocol, bootstrap=0).official_score)
        first, second = ({name: math.fsum(v) / len(v) for name, v in part.items()} for part in parts)
        found.append(Half(first, second))
    return found


def loss_of_choosing(found: Sequence[Half]) -> tuple[float, float, int]:
    """What the best system of a half reaches there and in the other half, and how often it is best in both.

    The first two are means over deals. Each deal counts twice, once a direction.
    """
    here, there, same = [], [], 0
    for half in found:
        for one, other in ((half.first, half.second), (half.second, half.first)):
            best = max(one, key=lambda name: one[name])
            here.append(one[best])
            there.append(other[best])
            same += best == max(other, key=lambda name: other[name])
    return statistics.fmean(here), statistics.fmean(there), same


def halves_text(runs: Sequence[BenchmarkRun], found: Sequence[Half]) -> str:
    """Markdown of the halves, percent."""
    lines = [["system", "all", "first deal: one half", "the other", "halves differ by"], ["---", *["---:"] * 4]]
    for system in dict.fromkeys(run.system for run in runs):
        whole = statistics.fmean(run.result.official_score for run in runs if run.system == system)
        gap = statistics.fmean(abs(half.first[system] - half.second[system]) for half in found)
        values = (whole, found[0].first[system], found[0].second[system], gap)
        lines.append([system, *(f"{100 * value:.1f}" for value in values)])
    here, there, same = loss_of_choosing(found)
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + (
        f"\nOver {len(found)} deals of whole groups into halves: the system that is best in one half scores "
        f"{100 * here:.1f} there and {100 * there:.1f} in the other half, and is the best of both in {same} of "
        f"{2 * len(found)} cases. The last column is the mean over deals of the distance between the halves.\n"
    )


def twin_text(runs: Sequence[BenchmarkRun], twins: Sequence[BenchmarkRun]) -> str:
    """Markdown of two sets side by side, percent; the interval is that of the difference."""
    lines = [["system", "here", "twin", "twin − here"], ["---", *["---:"] * 3]]
    here, there = [], []
    for system in dict.fromkeys(run.system for run in runs):
        one = side([run for run in runs if run.system == system])
        other = side([run for run in twins if run.system == system])
        if other is None or one is None:
            lines.append([system, f"{100 * one[0]:.1f}" if one else "–", "–", "–"])
            continue
        here.append(one[0])
        there.append(other[0])
        low = other[0] - one[0] - math.hypot(other[0] - other[1], one[2] - one[0])
        high = other[0] - one[0] + math.hypot(other[2] - other[0], one[0] - one[1])
        lines.append([
            system, *(f"{100 * a:.1f} [{100 * b:.1f}, {100 * c:.1f}]" for a, b, c in (one, other)),
            f"{100 * (other[0] - one[0]):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
        ])  # fmt: skip
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    if len(here) > 2:
        from scipy.stats import spearmanr

        order = float(spearmanr(here, there).statistic)
        change = [100 * (b - a) for a, b in zip(here, there, strict=True)]
        text += (
            f"\n{len(here)} systems: rank correlation {order:.2f}, twin − here {statistics.fmean(change):+.1f} in the "
            f"mean, {statistics.stdev(change):.1f} points deviation. One that falls by far more than the mean was "
            "favoured here.\n"
        )
    return text


def side(runs: Sequence[BenchmarkRun]) -> tuple[float, float, float] | None:
    """Mean over seeds of score, low and high; None without runs. Seeds share their clips: their intervals average."""
    if not runs:
        return None
    rows = [(run.result.official_score, *(run.result.interval or 2 * (run.result.official_score,))) for run in runs]
    score, low, high = (math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
    return score, low, high


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of `offkey benchmark` or benchmarks/peers.py")
    parser.add_argument("--twin", type=Path, nargs="+", help="the same of the twin set")
    parser.add_argument("--groups", help="CSV:COLUMN naming a group a file, for halves")
    parser.add_argument("--splits", type=int, default=20, help="deals into halves")
    parser.add_argument("--out", type=Path, help="also write the Markdown here")
    given = parser.parse_args(arguments)
    if (given.twin is None) == (given.groups is None):
        parser.error("give --twin, or --groups for halves")
    from offkey.benchmarking import finished_runs
    from offkey.files import write_whole

    def read(folders: Sequence[Path]) -> list[BenchmarkRun]:
        runs: list[BenchmarkRun] = []
        for folder in folders:
            runs += finished_runs(folder, runs)
        return runs

    runs = read(given.runs)
    if given.twin is not None:
        text = twin_text(runs, read(given.twin))
    else:
        path, _, column = given.groups.rpartition(":")
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            groups = {Path(row["file"]).name: row[column] for row in csv.DictReader(file)}
        text = halves_text(runs, halves(runs, groups, given.splits))
    print(text)
    if given.out is not None:
        write_whole(given.out, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
