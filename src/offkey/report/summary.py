"""The report's summary: what to say of a run in a few numbers, a table and a sentence a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from offkey.report.contents import ClipReport, MachineReport, ReportData
from offkey.report.figures import percent, significant
from offkey.report.svg import number
from offkey.types import Condition

__all__ = ["Table", "Tile", "probability", "sentence", "table", "tidy", "tiles"]

METRICS = {
    "auc": "AUC",
    "auc_source": "AUC source",
    "auc_target": "AUC target",
    "pauc": "pAUC",
    "pauc_source": "pAUC source",
    "pauc_target": "pAUC target",
}


class Tile(NamedTuple):
    """One figure of the summary: what it is, the number, and a line beneath."""

    label: str
    value: str
    detail: str
    tone: str = ""


def _share(clips: Sequence[ClipReport], condition: Condition) -> tuple[int, int]:
    group = [c for c in clips if c.condition == condition]
    return sum(c.is_anomalous for c in group), len(group)


def probability(p_value: float | None) -> str:
    """A p-value with three decimals, a dash where there is none.

    >>> probability(0.0421), probability(0.0002), probability(None)
    ('0.042', '< 0.001', '–')
    """
    if p_value is None or not np.isfinite(p_value):
        return "–"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _finite(value: Any) -> bool:
    return isinstance(value, float | int) and bool(np.isfinite(value))


def _interval(pair: object) -> tuple[float, float] | None:
    """The two ends where both are numbers."""
    if isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_finite, pair)):
        return float(pair[0]), float(pair[1])
    return None


def tidy(result: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of an evaluation can be shown: finite numbers and whole intervals; everything else is dropped."""
    kept: dict[str, Any] = {"machines": {}, "interval": None, "means": {}, "mean_intervals": {}}
    if result is None:
        return kept
    if _finite(result.get("official_score")):
        kept["official_score"] = float(result["official_score"])
    kept["interval"] = _interval(result.get("interval"))
    for name, row in (result.get("machines") or {}).items():
        values: dict[str, Any] = {m: float(row[m]) for m in METRICS if _finite(row.get(m))}
        intervals = {m: _interval((row.get("intervals") or {}).get(m)) for m in values}
        values["intervals"] = {m: pair for m, pair in intervals.items() if pair}
        decided = (row.get("decisions") or {}).get("all") or {}
        if _finite(decided.get("f1")):
            values["f1"] = float(decided["f1"])
        kept["machines"][str(name)] = values
    # The mean that the year's rules take for the official score.
    kind = "arithmetic" if result.get("protocol") == "dcase2020" else "harmonic"
    means, spread = result.get(f"{kind}_mean") or {}, result.get("mean_intervals") or {}
    kept["mean_name"] = f"{kind} mean".capitalize()
    kept["means"] = {m: float(means[m]) for m in METRICS if _finite(means.get(m))}
    intervals = {m: _interval(spread.get(f"{kind}.{m}")) for m in METRICS}
    kept["mean_intervals"] = {m: pair for m, pair in intervals.items() if pair}
    return kept


def _count(amount: int, one: str, many: str | None = None) -> str:
    """A number with its noun.

    >>> _count(1, "clip"), _count(3, "clip")
    ('1 clip', '3 clips')
    """
    return f"{number(amount, 1)} {one if amount == 1 else many or one + 's'}"


def sentence(machine: MachineReport) -> str:
    """What the detector did with this machine's clips, in words."""
    caught, anomalies = _share(machine.clips, Condition.ANOMALY)
    false, normals = _share(machine.clips, Condition.NORMAL)
    limited = bool(np.isfinite(machine.threshold))
    said = []
    if anomalies:
        said.append(f"{caught} of {_count(anomalies, 'anomaly', 'anomalies')} raised an alarm")
    if normals:
        said.append(f"{false} of {_count(normals, 'normal clip')} raised a false one")
    unknown = [c for c in machine.clips if c.condition == Condition.UNKNOWN]
    if unknown:
        alarms = sum(c.is_anomalous for c in unknown)
        chance = machine.false_alarm_rate * len(unknown)
        about = f"{chance:.0f}" if chance >= 9.5 else f"{chance:.1f}"
        expected = f"; about {about} would if all were normal" if limited else ""
        said.append(f"{alarms} of {_count(len(unknown), 'clip')} raised an alarm{expected}")
    if not said:
        return "No clips of this machine were scored."
    rate = machine.false_alarm_rate
    if not limited:
        return (
            f"{', and '.join(said)}. There is no threshold: too few normal clips stand behind {percent(rate)} false "
            "alarms, so none of this machine's clips can raise one. Record more, or ask for another rate."
        )
    told = f"{', and '.join(said)}. The threshold was set on normal clips alone, "
    told += f"for {percent(rate)} false alarms"
    if false > rate * normals + 3 * float(np.sqrt(rate * (1 - rate) * normals)) + 1:
        return told + "; these normal clips raise more, so they differ from those it learnt from."
    return told + "."


def tiles(data: ReportData) -> list[Tile]:
    """The run in three to five numbers: how good where labels are known, how many alarms where not."""
    clips = [c for machine in data.machines for c in machine.clips]
    tiles = []
    result = tidy(data.result)
    if "official_score" in result:
        detail = "50\u202f% is guessing, 100\u202f% perfect"
        if result["interval"]:
            low, high = result["interval"]
            detail = f"95\u202f% interval {100 * low:.1f} to {percent(high)}"
        tiles.append(Tile("Official score", percent(result["official_score"]), detail))
    caught, anomalies = _share(clips, Condition.ANOMALY)
    false, normals = _share(clips, Condition.NORMAL)
    if anomalies:
        tiles.append(Tile("Anomalies caught", percent(caught / anomalies), f"{caught} of {anomalies}", "anomaly"))
    if normals:
        rates = sorted({m.false_alarm_rate for m in data.machines if np.isfinite(m.threshold)})
        aim = f", set for {percent(rates[0])}" if len(rates) == 1 else ""
        tiles.append(Tile("False alarms", percent(false / normals), f"{false} of {normals}{aim}", "normal"))
    if not anomalies and not normals and clips:
        alarms = sum(c.is_anomalous for c in clips)
        chance = sum(m.false_alarm_rate * len(m.clips) for m in data.machines if np.isfinite(m.threshold))
        tiles.append(
            Tile(
                "Alarms",
                f"{alarms:,}".replace(",", "\u202f"),
                "clips above their threshold",
                "anomaly",
            )
        )
        about = f"{chance:.0f}" if chance >= 9.5 else f"{chance:.1f}"
        tiles.append(Tile("Expected by chance", f"about {about}", "false alarms if all were normal", "normal"))
    machines = _count(len(data.machines), "machine")
    tiles.append(Tile("Clips scored", number(len(clips), 1), machines))
    if data.problems:
        tiles.append(Tile("Files not used", str(len(data.problems)), "each is named below", "problem"))
    return tiles


class Table(NamedTuple):
    """Headings, a row a machine of (text, small print) cells, and the closing row (empty: none)."""

    headings: list[str]
    rows: list[list[tuple[str, str]]]
    closing: list[tuple[str, str]]


def _cell(value: float | None, interval: tuple[float, float] | None = None) -> tuple[str, str]:
    small = f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}" if interval else ""
    return ("–" if value is None else percent(value), small)


def _outcome(machine: MachineReport | None, condition: Condition) -> tuple[str, str]:
    alarms, total = _share(machine.clips, condition) if machine else (0, 0)
    return (percent(alarms / total), f"{alarms} of {total}") if total else ("–", "")


def table(data: ReportData) -> Table:
    """One row a machine that was scored or evaluated; a column without a single value is left out."""
    result = tidy(data.result)
    measured: Mapping[str, Any] = result["machines"]
    by_name = {machine.name: machine for machine in data.machines}
    names = [*by_name, *(name for name in measured if name not in by_name)]
    metrics = [m for m in METRICS if any(m in measured.get(n, {}) for n in names)]
    balanced = any("f1" in row for row in measured.values())
    known = [Condition.ANOMALY, Condition.NORMAL]
    labelled = any(c.condition in known for m in data.machines for c in m.clips)
    headings = ["Machine", "Clips", *(METRICS[m] for m in metrics)]
    headings += ["Caught", "False alarms"] if labelled else ["Alarms"]
    headings += ["F1"] if balanced else []
    headings += ["Threshold"]
    rows = []
    for name in names:
        values, machine = measured.get(name, {}), by_name.get(name)
        row = [(name, ""), (number(len(machine.clips), 1) if machine else "–", "")]
        row += [_cell(values.get(m), values.get("intervals", {}).get(m)) for m in metrics]
        row += [_outcome(machine, condition) for condition in (known if labelled else [Condition.UNKNOWN])]
        row += [_cell(values.get("f1"))] if balanced else []
        row.append((significant(machine.threshold) if machine else "–", ""))
        rows.append(row)
    closing: list[tuple[str, str]] = []
    if len(rows) > 1 and any(m in result["means"] for m in metrics):
        closing = [(result["mean_name"], ""), ("", "")]
        closing += [_cell(result["means"].get(m), result["mean_intervals"].get(m)) for m in metrics]
        closing += [("", "")] * (len(headings) - len(closing))
    return Table(headings, rows, closing)
