"""Published numbers, and a comparison of them with ours, machine by machine and section by section.

Means are computed anew from the rows on both sides, over the same machines and by the year's rules, because the "All"
row of the report's Table 1 does not follow from its machine rows.
"""

from __future__ import annotations

import csv
import html
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from offkey.evaluation.metrics import harmonic_mean
from offkey.evaluation.protocol import PROTOCOLS, Protocol
from offkey.evaluation.result import Result
from offkey.evaluation.tables import TITLES, Run
from offkey.reproducing.plan import EXPERIMENTS, Plan, Unit

__all__ = ["PUBLISHED", "Column", "Comparison", "Published", "Triple", "compare", "remarks_of"]

METRICS = ("auc_source", "auc_target", "pauc")  # of everything that was published
OFFICIAL = "official_score"


class Triple(NamedTuple):
    """AUC source, AUC target and pAUC in percent."""

    auc_source: float
    auc_target: float
    pauc: float


@dataclass(frozen=True)
class Published:
    """Somebody's printed numbers: a row a machine, the means as printed (they need not follow), where they stand."""

    name: str
    source: str
    machines: Mapping[str, Triple] = field(default_factory=dict)
    printed: Triple | None = None
    official: float | None = None


_REPORT = "P. Zhao et al., technical report, DCASE 2025 Task 2, Table 1"
_BASELINE = "official baseline on the DCASE 2025 development set, mean of 5 runs"
_ROWS = {
    "ToyCar": ((63.84, 58.2, 52.28), (52.6, 68.88, 52.2), (72.48, 47.8, 48.84), (73.46, 41.84, 49.89)),
    "ToyTrain": ((73.28, 64.28, 51.98), (73.84, 60.96, 52.14), (46.78, 50.36, 48.74), (40.76, 49.08, 48.26)),
    "bearing": ((71.76, 71.12, 55.16), (68.88, 67.72, 55.16), (59.94, 62.58, 63.21), (59.28, 60.52, 61.84)),
    "fan": ((58.72, 50.6, 52.51), (55, 55.28, 52.63), (78.72, 32.98, 50.32), (59.1, 45.94, 51.84)),
    "gearbox": ((73.24, 82.64, 54.02), (72, 78.24, 53.88), (74.3, 49.62, 54.53), (70.92, 50.48, 52.68)),
    "slider": ((66.44, 59.04, 54.07), (68.84, 61.72, 53.5), (74.04, 49.82, 50.36), (70, 51.32, 53.53)),
    "valve": ((96.68, 79.04, 53.71), (94, 76.6, 54.49), (52.58, 55.98, 51.31), (53.1, 56, 51.68)),
}
_ALL = ((69.21, 56.65, 56.66), (68.18, 56.4, 59.56), (60.94, 50.74, 54.84), (61.33, 47.69, 51.19))
_AUTOENCODER = {
    "ToyCar": ((71.05, 53.32, 49.79), (73.17, 50.91, 49.05)),
    "ToyTrain": ((61.76, 56.46, 50.19), (50.87, 46.15, 48.32)),
    "bearing": ((66.53, 53.15, 61.12), (63.63, 59.03, 61.86)),
    "fan": ((70.96, 38.75, 49.46), (77.99, 38.56, 50.82)),
    "gearbox": ((64.80, 50.49, 52.49), (73.26, 51.61, 55.07)),
    "slider": ((70.10, 48.77, 52.32), (73.79, 50.27, 53.61)),
    "valve": ((63.53, 67.18, 57.35), (56.22, 61.00, 52.53)),
}


def _rows(table: Mapping[str, Sequence[tuple[float, float, float]]], column: int) -> dict[str, Triple]:
    return {machine: Triple(*map(float, cells[column])) for machine, cells in table.items()}


_REPORTED = {
    f"system{number + 1}": Published(f"System {number + 1}", _REPORT, _rows(_ROWS, number), Triple(*_ALL[number]))
    for number in range(4)
}
_BASELINES = {
    "baseline": Published("AE, MSE", _BASELINE, _rows(_AUTOENCODER, 0), official=56.25),
    "baseline · residual:value": Published("AE, Mahalanobis", _BASELINE, _rows(_AUTOENCODER, 1), official=55.34),
}
_EVALUATION = "official baseline on the DCASE 2025 evaluation set"
PUBLISHED: dict[str, dict[str, Published]] = {
    "table1": _REPORTED | _BASELINES,
    "dcase2025": _BASELINES,
    "evaluation2025": {
        "baseline": Published("AE, MSE", _EVALUATION, official=54.43),
        "baseline · residual:value": Published("AE, Mahalanobis", _EVALUATION, official=56.51),
    },
}
"""What was published, by experiment and by the name of our row that stands beside it; percent."""


class Value(NamedTuple):
    """Percent; `deviation` over `seeds` runs, None for one run and for printed numbers."""

    mean: float
    deviation: float | None = None
    seeds: int = 0

    def text(self) -> str:
        """One decimal, as the spread over seeds allows no more.

        >>> Value(61.34, 1.24, 3).text()
        '61.3 ± 1.2'
        """
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


@dataclass(frozen=True)
class Column:
    """A system of ours, or the published one beside it.

    `values` by (row, metric): a row is a machine, or a section of it such as fan/03; "" is the mean over all.
    """

    title: str
    origin: str
    values: Mapping[tuple[str, str], Value]


@dataclass(frozen=True)
class Comparison:
    """Columns over machines and, where these have several, their sections (fan, fan/03, fan/04, …).

    Text forms are in percent, the year's `metrics` with strokes between; CSV has a row a value, in percent. `average`
    is the year's kind of mean.
    """

    title: str
    machines: tuple[str, ...]
    columns: tuple[Column, ...]
    remarks: tuple[str, ...]
    metrics: tuple[str, ...] = METRICS
    average: str = "harmonic"

    def pairs(self) -> list[Comparison]:
        """One comparison a system, with what was published for it: narrow enough for a terminal."""
        found: list[list[Column]] = []
        for column in self.columns:
            if found and found[-1][-1].origin == "published":
                found[-1].append(column)
            else:
                found.append([column])
        return [replace(self, title=columns[-1].title, columns=tuple(columns), remarks=()) for columns in found]

    def header(self) -> list[str]:
        """Titles of the columns, the machine's first."""
        return ["machine", *(f"{column.title}, {column.origin}" for column in self.columns)]

    def rows(self) -> list[list[str]]:
        """A row a machine or section, then the means, the official score, and means as printed where there are any."""
        rows = [[name, *self._cells(name)] for name in self.machines]
        rows.append([f"{self.average} mean, recomputed", *self._cells("")])
        rows.append(["official score, recomputed", *(_single(column, "", OFFICIAL) for column in self.columns)])
        printed = ["as printed", *self._cells("printed")]
        scores = [_single(column, "printed", OFFICIAL) for column in self.columns]
        printed[1:] = [cell if cell != "–" else score for cell, score in zip(printed[1:], scores, strict=True)]
        return [*rows, printed] if any(cell != "–" for cell in printed[1:]) else rows

    def _cells(self, name: str) -> list[str]:
        """All values of a row in each column; a stroke alone where there is none."""
        cells = [[_single(column, name, metric) for metric in self.metrics] for column in self.columns]
        return ["–" if set(values) == {"–"} else " / ".join(values) for values in cells]

    def legend(self) -> str:
        """What the numbers are."""
        return (
            f"Percent: {' / '.join(TITLES.get(name, name) for name in self.metrics)}. Ours: mean over seeds ± sample "
            "standard deviation. Means are computed anew from the rows, over the machines shown."
        )

    def to_markdown(self) -> str:
        """A table with its title and remarks."""
        lines = [self.header(), ["---", *["---:"] * len(self.columns)], *self.rows()]
        table = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
        return f"# {self.title}\n\n{self.legend()}\n\n{table}\n" + "".join(f"- {text}\n" for text in self.remarks)

    def to_csv(self) -> str:
        """Columns: system, origin, machine, metric, percent, deviation, seeds."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["system", "origin", "machine", "metric", "percent", "deviation", "seeds"])
        for column in self.columns:
            for (machine, metric), value in column.values.items():
                spread = "" if value.deviation is None else repr(value.deviation)
                writer.writerow([column.title, column.origin, machine, metric, repr(value.mean), spread, value.seeds])
        return stream.getvalue()

    def to_html(self) -> str:
        """One page that needs nothing else, in light and dark."""
        return "\n".join(self._page()) + "\n"

    def _page(self) -> Iterator[str]:
        title = html.escape(self.title)
        yield f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>'
        yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
        yield f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n<p>{html.escape(self.legend())}</p>"
        yield '<div class="wide"><table>\n<thead><tr>'
        yield "".join(f'<th scope="col">{html.escape(text)}</th>' for text in self.header())
        yield "</tr></thead>\n<tbody>"
        for name, *cells in self.rows():
            row = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            yield f'<tr><th scope="row">{html.escape(name)}</th>{row}</tr>'
        yield "</tbody></table></div>\n<ul>"
        yield from (f"<li>{html.escape(text)}</li>" for text in self.remarks)
        yield "</ul>\n</html>"


_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:90rem;"
    "padding:0 1rem}.wide{overflow-x:auto}table{border-collapse:collapse}th,td{padding:.3rem .7rem;text-align:right;"
    "white-space:nowrap;border-bottom:1px solid #8886}th:first-child{text-align:left}tbody tr:nth-child(even)"
    "{background:#8881}"
)


def compare(
    experiment: str, title: str, machines: Sequence[str], runs: Sequence[Run], remarks: Sequence[str] = ()
) -> Comparison:
    """Put runs (of whole systems, and of scorers alone named `system · scorer`) beside what was published.

    A scorer alone has a column only where something was published for it. `machines` are the rows, each followed by
    its sections where a run has several; published means are over these machines too. Metrics and means are those of
    the rules that the runs were judged by.
    """
    beside = PUBLISHED.get(experiment, {})
    whole = experiment in EXPERIMENTS and set(machines) == set(EXPERIMENTS[experiment].machines)
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.system, []).append(run)
    rules = PROTOCOLS[runs[0].result.protocol]
    columns = []
    notes = []
    for name, own in grouped.items():
        if "·" in name and name not in beside:
            continue
        if name in beside:
            columns.append(_published(beside[name], machines, whole))
            notes += _doubts(beside[name], machines)
        columns.append(Column(name, "ours", dict(_ours(own, machines, rules))))
    sources = dict.fromkeys(f"{beside[n].name}: {beside[n].source}." for n in grouped if n in beside)
    known = sorted({name for column in columns for name, _ in column.values})
    rows = [name for own in machines for name in (own, *(one for one in known if one.startswith(f"{own}/")))]
    remarks = (*remarks, *notes, *sources)
    return Comparison(title, tuple(rows), tuple(columns), remarks, rules.metrics, rules.average)


def remarks_of(plan: Plan, result: Result, bare: Sequence[str], failures: Sequence[str]) -> list[str]:
    """What a reader must know before comparing: parts left out, settings that are not the preset's, failures.

    `result` is a run's; `bare` machines or sections without a table of attributes.
    """
    remarks = []
    whole, machines = plan.experiment.machines, plan.judged
    if set(machines) != set(whole):
        remarks.append(f"{len(machines)} of {len(whole)} machines: the means are not those of the whole set.")
    found = {Unit(name, section) for name, machine in result.machines.items() for section in machine.sections}
    absent = [plan.experiment.called(unit) for unit in sorted(plan.units - found)]
    if absent:
        remarks.append(f"Not in the data, nor in the means: {', '.join(absent)}.")
    if bare:
        remarks.append(f"Without a table of attributes, so that file names alone tell settings: {', '.join(bare)}.")
    settings = plan.common()
    if settings:
        remarks.append(f"Settings that differ from the presets: {', '.join(settings)}.")
    remarks += [
        f"{entry.name} is {' '.join((entry.system, *entry.overrides))}."
        for entry in plan.contestants
        if entry.overrides or entry.name != entry.system
    ]
    remarks += [f"Failed: {text.splitlines()[0]}" for text in failures]
    return remarks


def _published(entry: Published, machines: Sequence[str], whole: bool) -> Column:
    values: dict[tuple[str, str], Value] = {}
    rows = {name: entry.machines[name] for name in machines if name in entry.machines}
    for name, row in rows.items():
        values |= {(name, metric): Value(getattr(row, metric)) for metric in METRICS}
    if len(rows) == len(machines):
        values |= {key: Value(mean) for key, mean in _means(list(rows.values())).items()}
    if entry.printed is not None and whole:
        values |= {("printed", metric): Value(getattr(entry.printed, metric)) for metric in METRICS}
    if entry.official is not None and whole:
        values["printed", OFFICIAL] = Value(entry.official)
    return Column(entry.name, "published", values)


def _means(rows: Sequence[Triple]) -> dict[tuple[str, str], float]:
    """Harmonic means a metric and over everything, as the challenge's rules since 2021 have them."""
    found = {("", metric): harmonic_mean(getattr(row, metric) for row in rows) for metric in METRICS}
    return found | {("", OFFICIAL): harmonic_mean(value for row in rows for value in row)}


def _doubts(entry: Published, machines: Sequence[str]) -> list[str]:
    """Printed means that do not follow from the printed rows, neither as harmonic nor as arithmetic means."""
    if entry.printed is None or set(machines) != set(entry.machines):
        return []
    rows = list(entry.machines.values())
    wrong = []
    for metric in METRICS:
        column = [getattr(row, metric) for row in rows]
        printed = getattr(entry.printed, metric)
        if all(abs(mean - printed) > 0.05 for mean in (harmonic_mean(column), statistics.fmean(column))):
            wrong.append(f"{metric.replace('_', ' ').replace('auc', 'AUC')} {printed:g} ({harmonic_mean(column):.2f})")
    if not wrong:
        return []
    return [f"{entry.name}: printed means that do not follow from the rows (recomputed): {', '.join(wrong)}."]


def _ours(runs: Sequence[Run], machines: Sequence[str], rules: Protocol) -> Iterator[tuple[tuple[str, str], Value]]:
    rows: dict[str, list[Mapping[str, float]]] = {}
    for name in machines:
        for own in (run.result.machines[name] for run in runs if name in run.result.machines):
            rows.setdefault(name, []).append(own.values)
            for section, values in own.sections.items() if len(own.sections) > 1 else ():
                rows.setdefault(f"{name}/{section}", []).append(values)
    for name, here in rows.items():
        for metric in rules.metrics:
            yield (name, metric), _over_seeds([100 * values[metric] for values in here])
    whole = [run.result for run in runs if set(machines) <= run.result.machines.keys()]
    if whole:
        means = [result.harmonic_mean if rules.average == "harmonic" else result.arithmetic_mean for result in whole]
        for metric in rules.metrics:
            yield ("", metric), _over_seeds([100 * mean[metric] for mean in means])
        yield ("", OFFICIAL), _over_seeds([100 * result.official_score for result in whole])


def _over_seeds(values: Sequence[float]) -> Value:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Value(math.fsum(values) / len(values), spread, len(values))


def _single(column: Column, machine: str, metric: str) -> str:
    value = column.values.get((machine, metric))
    if value is None:
        return "–"
    return f"{value.mean:.2f}" if column.origin == "published" else value.text()
