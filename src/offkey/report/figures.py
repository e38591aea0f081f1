"""The report's charts, drawn as SVG that takes its colours from the page.

Every chart returns a `Figure`: the drawing, its heading, and one plain sentence on how to read it. Nothing is
told by colour alone: normal clips are circles, anomalies triangles, the target domain is hollow or dashed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from offkey.evaluation.metrics import roc_curve
from offkey.report.contents import ClipReport, MachineReport
from offkey.report.svg import Plot, draw, mark, nice_ticks, number, polyline, robust_range, short
from offkey.types import Condition, Domain

__all__ = [
    "Figure",
    "map_figure",
    "overview_figure",
    "percent",
    "roc_figure",
    "score_figure",
    "score_step",
    "significant",
    "trend_figure",
]

WIDTH, HEIGHT = 372.0, 344.0
MOST_POINTS = 400
_THIN = "\u202f"
_NO_ALARM = "there is no threshold, since too few normal clips stand behind the rate, and no clip raises an alarm"


class Figure(NamedTuple):
    """A chart with its heading and one plain sentence on how to read it."""

    title: str
    reading: str
    drawing: Markup


class Curve(NamedTuple):
    """One ROC curve: shares of false alarms and of anomalies caught, its area, and the threshold's place."""

    domain: Domain
    false_alarms: NDArray[np.float64]
    caught: NDArray[np.float64]
    area: float
    stands: tuple[float, float]


def percent(share: float) -> str:
    """A share as percent with one decimal.

    >>> percent(0.583).replace(chr(0x202f), " ")
    '58.3 %'
    """
    return f"{100 * share:.1f}{_THIN}%"


def significant(value: float) -> str:
    """A number with three significant digits.

    >>> significant(6.5612), significant(0.012345), significant(-1234.5)
    ('6.56', '0.0123', '−1\\u202f234')
    """
    if value == 0 or not np.isfinite(value):
        return "0" if value == 0 else "none"
    return number(value, 10.0 ** (np.floor(np.log10(abs(value))) - 2))


def _scores(clips: Sequence[ClipReport]) -> NDArray[np.float64]:
    return np.array([clip.score for clip in clips], dtype=np.float64)


def _of(clips: Sequence[ClipReport], condition: Condition, domain: Domain | None = None) -> list[ClipReport]:
    return [c for c in clips if c.condition == condition and domain in (None, c.domain) and np.isfinite(c.score)]


def _corners(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve without the points that lie on a straight line, and with a bounded number of the others."""
    if len(x) > 2:
        turn = np.diff(x[:-1]) * np.diff(y[1:]) - np.diff(x[1:]) * np.diff(y[:-1])
        keep = np.concatenate([[True], np.abs(turn) > 1e-12, [True]])
        x, y = x[keep], y[keep]
    if len(x) > MOST_POINTS:
        some = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int))
        x, y = x[some], y[some]
    return x, y


def roc_curves(machine: MachineReport) -> list[Curve]:
    """One curve a domain: its normal clips against all anomalies of both domains, as the challenge counts."""
    anomalies = _scores(_of(machine.clips, Condition.ANOMALY))
    alarms = [c.is_anomalous for c in _of(machine.clips, Condition.ANOMALY)]
    curves = []
    for domain in Domain:
        normals = _of(machine.clips, Condition.NORMAL, domain)
        if normals and len(anomalies):
            scores = np.concatenate([_scores(normals), anomalies])
            curve = roc_curve([0] * len(normals) + [1] * len(anomalies), scores)
            x, y = curve.false_alarm_rate, curve.hit_rate
            area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
            stands = float(np.mean([c.is_anomalous for c in normals])), float(np.mean(alarms))
            curves.append(Curve(domain, x, y, area, stands))
    return curves


def _spoken(domain: Domain) -> str:
    return "all clips" if domain == Domain.UNKNOWN else f"{domain.value} domain"


def roc_figure(machine: MachineReport, key: str) -> Figure | None:
    """Anomalies caught against false alarms, one curve a domain; None without labels of both kinds."""
    curves = roc_curves(machine)
    if not curves:
        return None
    legend = 18 * len(curves)
    plot = Plot(WIDTH, HEIGHT, left=52, top=10, right=12, bottom=50 + legend)
    plot.span((0.0, 1.0), (0.0, 1.0))
    strip = f"M{short(plot.left)} {short(plot.top)}H{short(plot.x(0.1))}V{short(plot.bottom)}H{short(plot.left)}Z"
    plot.path(strip, "zone")
    marks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    labels = ["0", "20", "40", "60", "80", "100"]
    plot.axis_x(marks, labels, "false alarms among normal clips, %")
    plot.axis_y(marks, labels, "anomalies caught, %")
    plot.path(polyline([plot.left, plot.right], [plot.bottom, plot.top]), "chance")
    plot.frame()
    plot.text(plot.x(0.94), plot.y(0.855), "guessing", "note halo", "end")
    said: list[str] = []
    limited = bool(np.isfinite(machine.threshold))
    meant = "The marker is the threshold in use" if limited else _NO_ALARM[0].upper() + _NO_ALARM[1:]
    for row, curve in enumerate(reversed(curves)):
        x, y = _corners(curve.false_alarms, curve.caught)
        plot.path(polyline(map(plot.x, x), map(plot.y, y)), f"curve {curve.domain.value}")
        shape = "square" if curve.domain == Domain.TARGET else "circle"
        if limited:
            stands = mark(shape, plot.x(curve.stands[0]), plot.y(curve.stands[1]), 5.5, f"stand {curve.domain.value}")
            plot.add(stands)
        line = plot.height - 6 - 18 * row
        plot.path(f"M{short(plot.left)} {short(line - 4)}h30", f"curve {curve.domain.value}")
        if limited:
            plot.add(mark(shape, plot.left + 15, line - 4, 4.5, f"stand {curve.domain.value}"))
        plot.text(plot.left + 40, line, _spoken(curve.domain), "label")
        plot.text(plot.right, line, f"AUC {percent(curve.area)}", "label strong", "end")
        said.insert(0, f"{_spoken(curve.domain)}: area under the curve {percent(curve.area)}")
    return Figure(
        "The trade-off (ROC curve)",
        "Each point of a curve is one possible alarm threshold: the nearer to the top left corner, the more "
        f"anomalies are caught for the same false alarms. {meant}; the shaded "
        "strip, up to 10\u202f% false alarms, is what pAUC looks at.",
        plot.finish(key, f"ROC curves of {machine.name}", "; ".join(said) + "."),
    )


def _bins(values: NDArray[np.float64], threshold: float, count: int = 36) -> NDArray[np.float64]:
    """Equal bins over the range that is shown, one of whose borders is the threshold where there is one."""
    low, high = robust_range(values)
    if not np.isfinite(threshold):
        threshold = low
    low, high = min(low, threshold), max(high, threshold)
    step = (high - low) / count if high > low else 1.0
    before, after = (
        int(np.ceil((threshold - low) / step - 1e-9)),
        int(np.ceil((high - threshold) / step - 1e-9)),
    )
    steps = np.arange(-max(1, before), max(1, after) + 1, dtype=np.float64)
    return threshold + step * steps


def score_figure(machine: MachineReport, key: str) -> Figure | None:
    """One row of bars a group of clips over a common score axis, with the threshold through all of them."""
    rows: list[tuple[str, str, NDArray[np.float64], float]] = []
    reference = machine.reference_scores[np.isfinite(machine.reference_scores)].astype(np.float64)
    if len(reference):
        share = float(np.mean(reference > machine.threshold))
        rows.append(("normal, set the line", "reference", reference, share))
    domains = {c.domain for c in machine.clips if c.condition == Condition.NORMAL}
    named = {Condition.NORMAL: "normal", Condition.ANOMALY: "anomaly", Condition.UNKNOWN: "scored clips"}
    for condition in Condition:
        split = condition == Condition.NORMAL and len(domains) > 1
        for domain in Domain if split else [None]:
            group = _of(machine.clips, condition, domain)
            if group:
                where = f", {domain.value}" if domain not in (None, Domain.UNKNOWN) else ""
                share = float(np.mean([c.is_anomalous for c in group]))
                style = f"{condition.value} {domain.value if domain else ''}".strip()
                tested = "" if condition == Condition.UNKNOWN else "test: "
                rows.append((f"{tested}{named[condition]}{where}", style, _scores(group), share))
    if not rows:
        return None
    values = np.concatenate([row[2] for row in rows])
    edges = _bins(values, machine.threshold)
    limited = bool(np.isfinite(machine.threshold))
    held = np.clip(values, edges[0], edges[-1])
    outside = int(np.sum(held != values))
    plot = Plot(WIDTH, HEIGHT, left=14, top=24, right=14, bottom=42)
    plot.span((float(edges[0]), float(edges[-1])), (0.0, 1.0))
    space = (plot.bottom - plot.top) / len(rows)
    middles = (edges[1:] + edges[:-1]) / 2
    said = []
    for index, (name, style, scores, share) in enumerate(rows):
        floor = plot.top + space * (index + 1)
        tall = space - 26
        counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), bins=edges)
        for side, beyond in (("below", False), ("beyond", True)):
            bars = []
            for place, count in enumerate(counts):
                if count and bool(middles[place] > machine.threshold) == beyond:
                    height = max(1.2, tall * count / counts.max())
                    left, right = plot.x(float(edges[place])), plot.x(float(edges[place + 1]))
                    start, tall_by = f"M{short(left + 0.4)} {short(floor)}", short(height)
                    bars.append(f"{start}v-{tall_by}H{short(right - 0.4)}v{tall_by}Z")
            if bars:
                plot.path("".join(bars), f"bar {style} {side}")
        plot.line(plot.left, floor, plot.right, floor, "edge")
        said.append(f"{name}: {percent(share)} of {len(scores)} raise an alarm")
    line = plot.x(machine.threshold) if limited else plot.right
    if limited:
        plot.line(line, plot.top - 6, line, plot.bottom, "threshold")
    for index, (name, _, scores, share) in enumerate(rows):
        head = plot.top + space * index + 18
        plot.text(plot.left, head, f"{name} ({len(scores)})", "label halo")
        plot.text(plot.right, head, f"{percent(share)} alarm", "label strong halo", "end")
    if limited:
        near_right = line > (plot.left + plot.right) / 2
        words = f"threshold {significant(machine.threshold)}"
        plot.text(line + (-5 if near_right else 5), 13, words, "note strong", "end" if near_right else "start")
        plot.path(f"M{short(line - 4)} 15h8L{short(line)} 21Z", "pointer")
    else:
        plot.text(plot.right, 13, "no threshold", "note strong", "end")
    ticks, step = nice_ticks(float(edges[0]), float(edges[-1]), 5)
    plot.axis_x(ticks, [number(t, step) for t in ticks], "anomaly score (no unit)", grid=False)
    meant = "all to the right of the line raise an alarm" if limited else _NO_ALARM
    lies = "score lies" if outside == 1 else "scores lie"
    note = f" {outside} {lies} beyond the edges, counted in the outermost bars." if outside else ""
    return Figure(
        "Scores and the alarm threshold",
        f"Each bar counts clips with that score; {meant}. A good detector "
        f"puts normal clips left{' of it' if limited else ''} and anomalies right." + note,
        plot.finish(key, f"Score histograms of {machine.name}", "; ".join(said) + "."),
    )


def _kind(clip: ClipReport) -> tuple[str, str]:
    """Style and shape of a clip's marker: its condition where known, else whether it raises an alarm."""
    anomalous = clip.condition == Condition.ANOMALY or (clip.condition == Condition.UNKNOWN and clip.is_anomalous)
    hollow = " hollow" if clip.domain == Domain.TARGET else ""
    return ("anomaly" if anomalous else "normal") + hollow, "triangle" if anomalous else "circle"


def _some(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of `count` places, evenly spread."""
    return np.arange(count) if count <= most else np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def map_figure(machine: MachineReport, key: str) -> Figure | None:
    """Where the clips lie among the reference clips, in two dimensions; None where no map was made."""
    layout = machine.embedding
    if layout is None or not (len(layout.reference) or len(layout.clips)):
        return None
    both = np.concatenate([layout.reference, layout.clips]).astype(np.float64)
    sides = []
    for axis in (0, 1):
        low, high = robust_range(both[:, axis])
        room = 0.05 * (high - low) or 1.0
        sides.append((low - room, high + room))
    outside = int(np.sum(np.any([(both[:, a] < sides[a][0]) | (both[:, a] > sides[a][1]) for a in (0, 1)], axis=0)))
    plot = Plot(WIDTH, HEIGHT, left=30, top=10, right=12, bottom=72)
    plot.span(sides[0], sides[1])
    box = f"M{short(plot.left)} {short(plot.top)}H{short(plot.right)}V{short(plot.bottom)}H{short(plot.left)}Z"
    plot.path(box, "box")
    hollow_seen = False
    shown = _some(len(layout.reference), MOST_POINTS)
    for index in shown:
        x, y = layout.reference[index]
        if np.isfinite(x) and np.isfinite(y):
            target = bool(layout.reference_domains) and layout.reference_domains[int(index)] == Domain.TARGET
            hollow_seen |= target
            plot.add(mark("circle", plot.x(x), plot.y(y), 2.6, "dot reference" + (" hollow" if target else "")))
    drawn = _some(len(machine.clips), MOST_POINTS)
    labelled = any(c.condition != Condition.UNKNOWN for c in machine.clips)
    step = score_step(machine)
    for wanted in ("normal", "anomaly"):
        for index in drawn:
            clip, (x, y) = machine.clips[int(index)], layout.clips[int(index)]
            style, shape = _kind(clip)
            if style.split()[0] == wanted and np.isfinite(x) and np.isfinite(y):
                hollow_seen |= clip.domain == Domain.TARGET
                tip = f"{clip.file}, score {number(clip.score, step)}"
                plot.add(mark(shape, plot.x(x), plot.y(y), 4.2, f"dot {style}", tip))
    parts = [f", {percent(share)} of variation" for share in layout.explained] if layout.explained else ["", ""]
    middle = (plot.left + plot.right) / 2
    plot.text(middle, plot.bottom + 17, f"first direction{parts[0]}", "axis", "middle")
    half = (plot.top + plot.bottom) / 2
    turn = f"rotate(-90 17 {short(half)})"
    second = f"second direction{parts[1]}"
    plot.add(draw("text", second, class_="axis", x=17, y=half, text_anchor="middle", transform=turn))
    quiet, loud = ("normal", "anomaly") if labelled else ("no alarm", "alarm")
    entries = [("circle", "dot reference", 2.6, "learnt from"), ("circle", "dot normal", 4.2, quiet)]
    entries.append(("triangle", "dot anomaly", 4.2, loud))
    across = plot.left
    for shape, style, size, words in entries:
        plot.add(mark(shape, across + 5, plot.bottom + 40, size, style))
        plot.text(across + 15, plot.bottom + 44, words, "label")
        across += 38 + 6.4 * len(words)
    if hollow_seen:
        for place, (shape, style, size, _) in enumerate(entries):
            plot.add(mark(shape, plot.left + 5 + 13 * place, plot.bottom + 60, size, style + " hollow"))
        plot.text(plot.left + 46, plot.bottom + 64, "hollow: target domain", "label")
    notes = []
    if len(shown) < len(layout.reference) or len(drawn) < len(machine.clips):
        known = f"{len(shown)} of {len(layout.reference)} reference"
        notes.append(f"Drawn: {known} and {len(drawn)} of {len(machine.clips)} scored clips.")
    if outside:
        notes.append(f"{outside} far-off points are held at the edge.")
    sentence = (
        "Clips that sound alike to the detector lie close together; one far from the small dots sounds like "
        f"nothing it learnt. It is a flat shadow of many dimensions ({layout.method})."
    )
    described = f"{len(layout.reference)} reference clips and {len(machine.clips)} scored clips, {layout.method}."
    return Figure(
        "Map of how the clips sound",
        " ".join([sentence, *notes]),
        plot.finish(key, f"Map of the embeddings of {machine.name}", described),
    )


def score_step(machine: MachineReport) -> float:
    """The step to which scores of this machine are worth writing: about a thousandth of their range."""
    values = _scores(machine.clips)
    low, high = robust_range(np.append(values, machine.threshold))  # which passes over an infinite one
    return (high - low) / 300 if high > low else 0.001


def trend_figure(machine: MachineReport, key: str) -> Figure | None:
    """Scores in the order of the clips with the threshold: what there is to see where no labels are known."""
    clips = [c for c in machine.clips if np.isfinite(c.score)]
    if not clips:
        return None
    group = -(-len(clips) // MOST_POINTS)
    peaks = [max(clips[i : i + group], key=lambda c: c.score) for i in range(0, len(clips), group)]
    values = np.append(_scores(peaks), machine.threshold)
    low, high = robust_range(values)
    limited = bool(np.isfinite(machine.threshold))
    if limited:
        low, high = min(low, machine.threshold), max(high, machine.threshold)
    room = 0.06 * (high - low)
    plot = Plot(WIDTH, HEIGHT, left=58, top=14, right=12, bottom=66)
    plot.span((1.0, float(len(clips))), (low - room, high + room))
    ticks, step = nice_ticks(low - room, high + room, 5)
    plot.axis_y(ticks, [number(t, step) for t in ticks], "anomaly score (no unit)")
    across, _ = nice_ticks(1.0, float(len(clips)), 5)
    across = sorted({1.0, *(t for t in across if t > 0.06 * len(clips) and t == int(t))})
    plot.axis_x(across, [number(t, 1.0) for t in across], "clip, in the order given", grid=False)
    plot.frame()
    if limited:
        line = plot.y(machine.threshold)
        plot.line(plot.left, line, plot.right, line, "threshold")
    for index, clip in enumerate(peaks):
        shape, style = ("triangle", "dot anomaly") if clip.is_anomalous else ("circle", "dot normal")
        tip = f"{clip.file}, score {number(clip.score, score_step(machine))}"
        plot.add(mark(shape, plot.x(index * group + 1), plot.y(clip.score), 3.6, style, tip))
    floor = plot.height - 8
    plot.add(mark("circle", plot.left + 5, floor - 4, 3.6, "dot normal"))
    plot.text(plot.left + 15, floor, "no alarm", "label")
    plot.add(mark("triangle", plot.left + 95, floor - 4, 3.6, "dot anomaly"))
    plot.text(plot.left + 105, floor, "alarm", "label")
    if limited:
        plot.line(plot.left + 165, floor - 4, plot.left + 190, floor - 4, "threshold")
        plot.text(plot.left + 196, floor, f"threshold {significant(machine.threshold)}", "label")
    else:
        plot.text(plot.left + 165, floor, "no threshold", "label")
    alarms = sum(c.is_anomalous for c in clips)
    meant = "those above the line raise an alarm. Watch for a slow climb below it too" if limited else _NO_ALARM
    note = f" Each point is the highest of {group} clips in a row." if group > 1 else ""
    return Figure(
        "Scores in order",
        f"Each point is one clip; {meant}." + note,
        plot.finish(key, f"Scores of {machine.name} in order", f"{alarms} of {len(clips)} clips raise an alarm."),
    )


_MARKS = {
    "auc": ("circle", "stand source", -6, "AUC"),
    "auc_source": ("circle", "stand source", -6, "AUC, source domain"),
    "auc_target": ("square", "stand target", 0, "AUC, target domain"),
    "pauc": ("diamond", "stand partial", 6, "pAUC"),
    "pauc_source": ("diamond", "stand source", 4, "pAUC, source"),
    "pauc_target": ("diamond", "stand target", 9, "pAUC, target"),
}


def overview_figure(machines: Mapping[str, Mapping[str, Any]], key: str) -> Figure | None:
    """AUC of both domains and pAUC of every machine on one scale, with intervals where there are any."""
    values = {name: {k: row[k] for k in _MARKS if k in row} for name, row in machines.items()}
    values = {name: row for name, row in values.items() if row}
    if len(values) < 2:
        return None
    gap = 30.0
    longest = max(len(name) for name in values)
    left = min(170.0, 22 + 6.6 * longest)
    plot = Plot(470, 76 + gap * len(values), left=left, top=8, right=14, bottom=68)
    every = [v for row in values.values() for v in row.values()]
    low = min(0.4, float(np.floor(min(every) * 10) / 10))
    plot.span((low, 1.0), (0.0, 1.0))
    ticks = [t for t in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0) if t >= low - 1e-9]
    plot.axis_x(ticks, [f"{100 * t:.0f}" for t in ticks], "% (50 is guessing, 100 is perfect)")
    plot.line(plot.x(0.5), plot.top, plot.x(0.5), plot.bottom, "chance")
    said = []
    for index, (name, row) in enumerate(values.items()):
        middle = plot.top + gap * (index + 0.5)
        shown = name if len(name) <= 24 else name[:23] + "…"
        plot.text(plot.left - 12, middle + 4, shown, "label", "end")
        if index:
            plot.line(0, middle - gap / 2, plot.right, middle - gap / 2, "grid")
        for metric, value in row.items():
            shape, style, off, _ = _MARKS[metric]
            interval = (machines[name].get("intervals") or {}).get(metric)
            if interval is not None:
                plot.line(
                    plot.x(interval[0]),
                    middle + off,
                    plot.x(interval[1]),
                    middle + off,
                    style.replace("stand", "range"),
                )
            tip = f"{name}: {metric.replace('_', ' ')} {percent(value)}"
            plot.add(mark(shape, plot.x(value), middle + off, 4.6, style, tip))
        said.append(f"{name} " + ", ".join(f"{k.replace('_', ' ')} {percent(v)}" for k, v in row.items()))
    plot.frame()
    across = 10.0
    for metric, (shape, style, _, name) in _MARKS.items():
        if any(metric in row for row in values.values()):
            plot.add(mark(shape, across + 6, plot.height - 10, 4.6, style))
            plot.text(across + 17, plot.height - 6, name, "label")
            across += 47 + 6.2 * len(name)
    intervals = any(row.get("intervals") for row in machines.values())
    return Figure(
        "Every machine at a glance",
        "The further right a marker, the better anomalies are told from normal clips; at the dotted line one "
        "could as well guess." + (" Bars are 95\u202f% intervals." if intervals else ""),
        plot.finish(key, "AUC and pAUC of every machine", "; ".join(said) + "."),
    )
