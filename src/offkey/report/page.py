"""The report as one HTML page that needs nothing else: no network, no fonts, no scripts from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offkey.files import write_whole
from offkey.report.contents import ClipReport, EmbeddingMap, MachineReport, Reason, ReportData
from offkey.report.examples import AudioReader, Examples, Explainer, afford, gather
from offkey.report.figures import (
    Figure,
    map_figure,
    overview_figure,
    roc_figure,
    score_figure,
    score_step,
    trend_figure,
)
from offkey.report.frame import render_page
from offkey.report.projection import project
from offkey.report.summary import probability, sentence, table, tidy, tiles
from offkey.report.svg import number
from offkey.types import Condition, Domain

__all__ = ["ClipReport", "EmbeddingMap", "MachineReport", "Reason", "ReportData", "project", "render", "write_report"]

MAX_BYTES = 8_000_000
MAX_ROWS = 4000
_MARGIN = 200_000  # what the examples' own captions may add to the page that was measured without them


class Row(NamedTuple):
    """One line of a table of clips, as text; `order` is the raw score to sort by."""

    rank: int
    file: str
    score: str
    order: float
    p_value: str
    alarm: bool
    truth: str
    domain: str


class View(NamedTuple):
    """One machine as the page shows it."""

    key: str
    name: str
    sentence: str
    figures: list[Figure]
    examples: Examples
    step: float
    rows: list[Row]
    left_out: int
    labelled: bool
    domains: bool


def _rows(machine: MachineReport, most: int, step: float) -> list[Row]:
    ordered = sorted(machine.clips, key=lambda c: (-c.score if np.isfinite(c.score) else np.inf, c.file))
    return [
        Row(
            rank + 1,
            clip.file,
            number(clip.score, step) if np.isfinite(clip.score) else "none",
            clip.score if np.isfinite(clip.score) else -1e300,
            probability(clip.p_value),
            clip.is_anomalous,
            "" if clip.condition == Condition.UNKNOWN else clip.condition.value,
            "" if clip.domain == Domain.UNKNOWN else clip.domain.value,
        )
        for rank, clip in enumerate(ordered[:most])
    ]


def _figures(machine: MachineReport, key: str) -> list[Figure]:
    labelled = roc_figure(machine, f"{key}-roc")
    drawn = [
        labelled,
        score_figure(machine, f"{key}-scores"),
        map_figure(machine, f"{key}-map"),
        None if labelled else trend_figure(machine, f"{key}-trend"),
    ]
    return [figure for figure in drawn if figure is not None]


def _view(machine: MachineReport, key: str, examples: Examples, most_rows: int) -> View:
    step = score_step(machine)
    return View(
        key,
        machine.name,
        sentence(machine),
        _figures(machine, key),
        examples,
        step,
        _rows(machine, most_rows, step),
        max(0, len(machine.clips) - most_rows),
        any(c.condition != Condition.UNKNOWN for c in machine.clips),
        any(c.domain != Domain.UNKNOWN for c in machine.clips),
    )


def _in_order(data: ReportData) -> dict[str, Any]:
    """What was measured, machines in the order of the page and others after them."""
    measured = tidy(data.result)["machines"]
    first = [machine.name for machine in data.machines if machine.name in measured]
    return {name: measured[name] for name in dict.fromkeys([*first, *measured])}


def _remarks(data: ReportData) -> list[str]:
    """What the run and its evaluation want to be known."""
    result = data.result or {}
    left_out = [f"{name} is not in the means: {why}" for name, why in (result.get("left_out") or {}).items()]
    return [*map(str, data.notes), *map(str, result.get("remarks") or []), *left_out]


def _plain(value: object) -> object:
    """Numbers as JSON knows them: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def render(data: ReportData, views: Sequence[View], media: Sequence[str]) -> str:
    """The page's text. `media` says what was done or left out to keep it small."""
    return render_page(
        "template.html",
        data.title,
        data.version,
        {"score": number, "probability": probability},
        data=data,
        views=views,
        tiles=tiles(data),
        table=table(data),
        overview=overview_figure(_in_order(data), "overview"),
        media=media,
        numbers=json.dumps(_plain(data.result), indent=2, ensure_ascii=False) if data.result else "",
        protocol=re.sub(r"^dcase(?=\d)", "DCASE ", str((data.result or {}).get("protocol") or "")),
        remarks=_remarks(data),
    )


def write_report(
    data: ReportData,
    out: Path,
    audio: AudioReader | None = None,
    examples: int = 4,
    max_bytes: int = MAX_BYTES,
    explain: Explainer | None = None,
) -> Path:
    """Write the report to `out` as one self-contained HTML file and return its path.

    `audio` reads a clip: path -> (mono samples float32, rate in hertz); what it raises is told in the page in
    place of the player. `examples` is how many of the strangest and of the most ordinary clips of each
    machine are shown; `explain` says why one of the strangest is strange. Pictures and sounds get the room that
    the rest leaves of `max_bytes`; what does not fit is left out, and the page says so. The file appears whole or
    not at all. Same data, same bytes.
    """
    out = Path(out)
    most_rows = max(20, min(500, MAX_ROWS // max(1, len(data.machines))))
    keys = [f"m{index + 1}" for index in range(len(data.machines))]
    bare = [_view(machine, key, Examples([], []), most_rows) for machine, key in zip(data.machines, keys, strict=True)]
    room = max_bytes - len(_encoded(render(data, bare, []))) - _MARGIN
    chosen = [gather(machine, audio, examples, key, explain) for machine, key in zip(data.machines, keys, strict=True)]
    media = afford(chosen, max(0, room))
    views = [view._replace(examples=shown) for view, shown in zip(bare, chosen, strict=True)]
    content = _encoded(render(data, views, media))
    return write_whole(out, content)


def _encoded(page: str) -> bytes:
    """UTF-8; bytes of file names that are not text (lone surrogates) are spelt out."""
    return page.encode("utf-8", "backslashreplace")
