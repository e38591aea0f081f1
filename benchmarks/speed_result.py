"""Results of `speed.py`: how a measurement becomes a ratio, a table of one or two runs, and the check for regressions.

Nothing here measures anything.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["TOLERANCE", "compare", "markdown", "ratio_of", "read", "write_between"]

FORMAT = 1
TOLERANCE = 0.25
"""A ratio may fall by this share, and peak memory grow by it, before `compare` calls it a regression."""

START, END = "<!-- speed: begin -->", "<!-- speed: end -->"


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times as fast as the peer: median and middle half of the ratios within a turn.

    >>> ratio_of([1.0, 2.0, 1.0], [2.0, 4.0, 2.2])
    {'ratio': 2.0, 'low': 2.0, 'high': 2.1}
    """
    ratios = [their / own for own, their in zip(ours, theirs, strict=True)]
    if len(ratios) == 1:
        return {"ratio": ratios[0], "low": ratios[0], "high": ratios[0]}
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"ratio": middle, "low": low, "high": high}


def read(path: Path) -> dict[str, Any]:
    """A stored result; ValueError where the file is something else."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of benchmarks/speed.py of format {FORMAT}")
    return found


def compare(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float = TOLERANCE) -> list[str]:
    """What got worse beyond `tolerance`, a line each; [] where nothing did.

    Ratios to peers and ceilings are compared, and peak memory: seconds of two days are not comparable. What one of the
    two did not measure is not looked at, but a part that failed in the new one only is told.
    """
    worse = []
    for name, before in old["parts"].items():
        after = new["parts"].get(name)
        if after is None:
            continue
        if "failed" in after and "failed" not in before:
            worse.append(f"{name}: failed ({after['failed']})")
            continue
        for row, was in before.get("rows", {}).items():
            now = after.get("rows", {}).get(row)
            if now is None or was.get("ratio") is None or now.get("ratio") is None or was["against"] != now["against"]:
                continue
            if now["ratio"] < was["ratio"] * (1 - tolerance):
                worse.append(f"{name}: {row}: {was['ratio']:.3g} → {now['ratio']:.3g} times {was['against']}")
        if "peak_mib" in before and after.get("peak_mib", 0) > before["peak_mib"] * (1 + tolerance):
            worse.append(f"{name}: peak memory {before['peak_mib']:.0f} → {after['peak_mib']:.0f} MiB")
    return worse


def markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """The table of one run, or of several with the spread of their ratios, as `docs/benchmarks.md` shows it."""
    lines = []
    for run in runs:
        machine = run["machine"]
        lines.append(
            f"- {run['date']}: {machine['processor']}, {machine['cores']} cores, {run['threads']} thread(s) of torch, "
            f"torch {machine['torch']}, Python {machine['python']}, load {machine['load']:.1f}" + _quick(run["parts"])
        )
    lines += [
        "",
        "| what | ms of processor | times real time, a core | against | times as fast |",
        "|---|---:|---:|---|---:|",
    ]
    memory = []
    for name in dict.fromkeys(name for run in runs for name in run["parts"]):
        parts = [run["parts"][name] for run in runs if name in run["parts"]]
        rows = dict.fromkeys(row for part in parts for row in part.get("rows", {}))
        peaks = [part["peak_mib"] for part in parts if "peak_mib" in part]
        if peaks:
            memory.append(f"{name} {_range(peaks, '.0f')}")
        for row in rows:
            lines.append(_line(f"{name}: {row}", [p["rows"][row] for p in parts if row in p.get("rows", {})]))
        lines += [f"| {name} | | | failed: {part['failed']} | |" for part in parts if "failed" in part]
    skipped = [text for run in runs for part in run["parts"].values() for text in part.get("skipped", [])]
    lines += ["", "Peak memory, MiB: " + ", ".join(memory) + "."]
    if skipped:
        lines += ["", "Not measured: " + "; ".join(dict.fromkeys(skipped)) + "."]
    return "\n".join(lines) + "\n"


def _quick(parts: Mapping[str, Any]) -> str:
    names = [name for name, part in parts.items() if part.get("quick")]
    return f"; few turns and small sizes (--quick) in {', '.join(names)}" if names else ""


def _line(name: str, found: Sequence[Mapping[str, Any]]) -> str:
    cost = _range([1000 * row["cpu"] for row in found], ".3g")
    real = [row["audio"] / row["cpu"] for row in found if row.get("audio") and row["cpu"] > 0]
    ratios = [row for row in found if row.get("ratio") is not None]
    against = ratios[0]["against"] if ratios else "–"
    told = "–"
    if ratios:
        low, high = min(row["low"] for row in ratios), max(row["high"] for row in ratios)
        told = f"{_range([row['ratio'] for row in ratios], '.2f')} ({low:.2f} to {high:.2f})"
    return f"| {name} | {cost} | {_range(real, '.0f') if real else '–'} | {against} | {told} |"


def _range(values: Sequence[float], how: str) -> str:
    """Both ends where they read differently."""
    low, high = format(min(values), how), format(max(values), how)
    return low if low == high else f"{low} – {high}"


def write_between(path: Path, table: str) -> None:
    """Put the table between the markers of a page; ValueError where the page has none."""
    text = path.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"{path} needs one line {START} and one {END} below it")
    head, tail = text.split(START)[0], text.split(END)[1]
    path.write_text(f"{head}{START}\n{table}{END}{tail}", encoding="utf-8")
