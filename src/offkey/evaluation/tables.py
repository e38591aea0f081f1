"""Results of many runs in one table: mean and spread over seeds, and the interval that the test set allows.

Two uncertainties stand side by side and must not be confused. The spread over seeds is what training anew
changes on the same test clips. The interval is what other test clips of the same kind would change; it is the
mean over seeds of the runs' bootstrap intervals.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from offkey.evaluation.result import Result
from offkey.types import OffkeyError

__all__ = ["COSTS", "TITLES", "Cell", "Run", "Table", "summarise"]

COSTS = ("fit_seconds", "score_seconds", "peak_mib")
"""What a run takes, beside what it reaches: seconds of fitting and of scoring, and peak memory in MiB."""

TITLES = {
    "official_score": "official score",
    "auc_source": "AUC source",
    "auc_target": "AUC target",
    "auc": "AUC",
    "pauc": "pAUC",
    "pauc_source": "pAUC source",
    "pauc_target": "pAUC target",
    "fit_seconds": "fit, s",
    "score_seconds": "score, s",
    "peak_mib": "memory, MiB",
}
"""What people read for a value's name; names that are not here are read as they are."""


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluated run: which system, which seed, what came out, and what it took (`COSTS`, where that is known)."""

    system: str
    seed: int
    result: Result
    costs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """One value over the seeds of a system, as fractions; what a run takes, in its own unit.

    `deviation` is the sample standard deviation, None for one seed; `interval` None where a run has none.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    seeds: int

    def text(self, interval: bool = True) -> str:
        """In percent with one decimal: mean ± deviation [low, high].

        >>> Cell(0.6134, 0.012, (0.55, 0.68), 3).text()
        '61.3 ± 1.2 [55.0, 68.0]'
        """
        parts = [f"{100 * self.mean:.1f}"]
        if self.deviation is not None:
            parts.append(f"± {100 * self.deviation:.1f}")
        if interval and self.interval is not None:
            parts.append(f"[{100 * self.interval[0]:.1f}, {100 * self.interval[1]:.1f}]")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Table:
    """Systems by columns. `columns` are (machine, metric); machine "" stands for all of them.

    `cells` has one row a system; None where a system has no such value. Text forms are in percent, CSV in
    fractions; seconds and MiB stand as they are, as means over seeds.
    """

    systems: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    cells: tuple[tuple[Cell | None, ...], ...]

    def header(self) -> list[str]:
        """A title a column, the system's first."""
        return ["system", *(f"{m} {TITLES.get(n, n)}".strip() for m, n in self.columns)]

    def rows(self) -> list[list[str]]:
        """What stands in the cells: the interval only with the official score, where it is read."""
        return [
            [
                name,
                *(_text(cell, metric) for cell, (_, metric) in zip(row, self.columns, strict=True)),
            ]
            for name, row in zip(self.systems, self.cells, strict=True)
        ]

    def to_markdown(self) -> str:
        """A Markdown table; ends with a newline."""
        lines = [self.header(), ["---", *["---:"] * len(self.columns)], *self.rows()]
        return "".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |\n" for line in lines)

    def to_csv(self) -> str:
        """One row a value, fractions: system, machine, metric, mean, deviation, low, high, seeds."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["system", "machine", "metric", "mean", "deviation", "low", "high", "seeds"])
        for name, row in zip(self.systems, self.cells, strict=True):
            for (machine, metric), cell in zip(self.columns, row, strict=True):
                if cell is not None:
                    low, high = cell.interval or ("", "")
                    spread = "" if cell.deviation is None else cell.deviation
                    writer.writerow([name, machine, metric, cell.mean, spread, low, high, cell.seeds])
        return stream.getvalue()


def _text(cell: Cell | None, metric: str) -> str:
    if cell is None:
        return "–"
    if metric in COSTS:
        return f"{cell.mean:.0f}" if cell.mean >= 10 else f"{cell.mean:.1f}"
    return cell.text(metric == "official_score")


def summarise(runs: Sequence[Run], machines: bool = False) -> Table:
    """One row a system, in the order of first appearance.

    Columns: the official score and the means of the protocol's values over machines (as the protocol
    averages); with `machines` also every machine's values; last what the runs take, where any run tells.
    Raises `OffkeyError` on no runs, on runs of different protocols, or where one system has a seed twice.
    """
    if not runs:
        raise OffkeyError("there are no runs to put into a table")
    protocols = {run.result.protocol for run in runs}
    if len(protocols) > 1:
        raise OffkeyError(f"runs of different protocols do not fit into one table: {', '.join(sorted(protocols))}")
    by_system: dict[str, list[Run]] = {}
    for run in runs:
        same = by_system.setdefault(run.system, [])
        if any(other.seed == run.seed for other in same):
            raise OffkeyError(f"{run.system} has seed {run.seed} twice; keep one run a seed")
        same.append(run)
    columns = [("", "official_score"), *(("", metric) for metric in runs[0].result.metrics)]
    if machines:
        names = dict.fromkeys(name for run in runs for name in run.result.machines)
        columns += [(name, metric) for name in names for metric in runs[0].result.metrics]
    columns += [("", name) for name in COSTS if any(name in run.costs for run in runs)]
    cells = [tuple(_cell(own, *column) for column in columns) for own in by_system.values()]
    return Table(tuple(by_system), tuple(columns), tuple(cells))


def _cell(runs: Sequence[Run], machine: str, metric: str) -> Cell | None:
    read = _reader(machine, metric)
    found: list[tuple[float, tuple[float, float] | None]]
    if metric in COSTS:
        found = [(run.costs[metric], None) for run in runs if metric in run.costs]
    else:
        found = [pair for pair in (read(run.result) for run in runs) if pair is not None]
    if not found:
        return None
    values = [value for value, _ in found]
    intervals = [interval for _, interval in found if interval is not None]
    interval = None
    if len(intervals) == len(found):
        interval = (
            math.fsum(low for low, _ in intervals) / len(found),
            math.fsum(high for _, high in intervals) / len(found),
        )
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Cell(math.fsum(values) / len(values), spread, interval, len(values))


def _reader(machine: str, metric: str) -> Callable[[Result], tuple[float, tuple[float, float] | None] | None]:
    def read(result: Result) -> tuple[float, tuple[float, float] | None] | None:
        if machine:
            if machine not in result.machines:
                return None
            own = result.machines[machine]
            return own.values[metric], own.intervals.get(metric)
        if metric == "official_score":
            return result.official_score, result.interval
        kind = "arithmetic" if result.protocol == "dcase2020" else "harmonic"
        means = result.arithmetic_mean if kind == "arithmetic" else result.harmonic_mean
        return means[metric], result.mean_intervals.get(f"{kind}.{metric}")

    return read
