"""A benchmark's table as one HTML page that needs nothing else: light and dark, sortable, readable on a phone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from offkey.evaluation.tables import COSTS, Cell, Table
from offkey.files import write_whole
from offkey.report.frame import render_page

__all__ = ["write_comparison"]


class Shown(NamedTuple):
    """A cell as text: what is read first, what stands small below it, what to sort by, and whether none is better."""

    main: str
    detail: str
    order: float | None
    best: bool


def write_comparison(table: Table, out: Path, *, protocol: str, seeds: Sequence[int], version: str) -> Path:
    """Write `table` to `out` and return its path; in percent, the best value of each column marked.

    Same table, same bytes. `protocol` names the rules of the official score, `seeds` are all that were run.
    """
    columns = list(zip(*table.cells, strict=True))
    shown = [_column(cells, metric) for cells, (_, metric) in zip(columns, table.columns, strict=True)]
    page = render_page(
        "comparison.html",
        "Systems compared",
        version,
        {},
        header=table.header()[1:],
        rows=[(name, [column[row] for column in shown]) for row, name in enumerate(table.systems)],
        protocol=re.sub(r"^dcase(?=\d)", "DCASE ", protocol),
        seeds=", ".join(map(str, seeds)),
    )
    return write_whole(out, page)


def _column(cells: Sequence[Cell | None], metric: str) -> list[Shown]:
    """One column: high values are good, but for what a run takes."""
    means = [cell.mean for cell in cells if cell is not None]
    best = (min if metric in COSTS else max)(means) if len(means) > 1 else None
    return [_shown(cell, metric, best) for cell in cells]


def _shown(cell: Cell | None, metric: str, best: float | None) -> Shown:
    if cell is None:
        return Shown("–", "", None, False)
    if metric in COSTS:
        text = f"{cell.mean:.0f}" if cell.mean >= 10 else f"{cell.mean:.1f}"
        return Shown(text, "", cell.mean, cell.mean == best)
    spread = "" if cell.deviation is None else f"± {100 * cell.deviation:.1f}"
    interval = ""
    if metric == "official_score" and cell.interval is not None:
        interval = f"{100 * cell.interval[0]:.1f} to {100 * cell.interval[1]:.1f}"
    return Shown(f"{100 * cell.mean:.1f}", " · ".join(filter(None, (spread, interval))), cell.mean, cell.mean == best)
