"""A small pen for charts: scales, ticks, marks and escaped SVG. Colours live in the page's style sheet.

Coordinates are in the drawing's own units, about one CSS pixel each at the size at which figures are shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup, escape

__all__ = ["Plot", "draw", "mark", "nice_ticks", "number", "polyline", "robust_range", "short"]

Number = float | int


def short(value: Number) -> str:
    """A coordinate with at most one decimal, so that the page stays small.

    >>> short(12.04), short(3.26), short(-0.0)
    ('12', '3.3', '0')
    """
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def draw(name: str, *inside: str | Markup, **attributes: str | Number | None) -> Markup:
    """One element; text and attribute values are escaped, `class_` and `stroke_width` become SVG's own names.

    >>> draw("text", "a < b", class_="tick", x=1.25)
    Markup('<text class="tick" x="1.2">a &lt; b</text>')
    """
    written = []
    for key, value in attributes.items():
        if value is not None:
            plain = short(value) if isinstance(value, int | float) else value
            written.append(f' {key.rstrip("_").replace("_", "-")}="{escape(plain)}"')
    body = "".join(str(escape(part)) for part in inside)
    return Markup(f"<{name}{''.join(written)}>{body}</{name}>")  # noqa: S704 - every part was escaped above


def number(value: Number, step: Number) -> str:
    """A number written with as many decimals as a scale of this step needs; a true minus sign.

    >>> number(0.30000000000000004, 0.1), number(-20.0, 10.0), number(12345.6, 1000.0)
    ('0.3', '−20', '12\\u202f346')
    """
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    if decimals > 6 or abs(value) >= 1e7:
        return f"{value:.1e}".replace("-", "−")
    text = f"{value:,.{decimals}f}".replace(",", "\u202f").replace("-", "−")
    return text if text.strip("−0.") else text.lstrip("−")


def nice_ticks(low: Number, high: Number, count: int = 5) -> tuple[list[float], float]:
    """About `count` round numbers from `low` to `high`, and their step (1, 2 or 5 times a power of ten).

    >>> nice_ticks(0.0, 1.0)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], 0.2)
    """
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low], 1.0
    rough = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)], step


def polyline(x: Iterable[Number], y: Iterable[Number]) -> str:
    """Path data through the points."""
    return "M" + "L".join(f"{short(a)} {short(b)}" for a, b in zip(x, y, strict=True))


_SHAPES = {
    "circle": "M{r} 0A{r} {r} 0 1 1 -{r} 0A{r} {r} 0 1 1 {r} 0Z",
    "triangle": "M0 -{b}L{b} {s}L-{b} {s}Z",
    "diamond": "M0 -{b}L{b} 0L0 {b}L-{b} 0Z",
    "square": "M-{s} -{s}H{s}V{s}H-{s}Z",
}


def mark(shape: str, x: Number, y: Number, radius: Number, style: str, tip: str | None = None) -> Markup:
    """A marker, `shape` one of circle, triangle, diamond, square; `tip` is shown when it is pointed at."""
    outline = _SHAPES[shape].format(r=short(radius), b=short(radius * 1.3), s=short(radius * 0.9))
    inside = (draw("title", tip),) if tip else ()
    return draw("path", *inside, class_=style, d=outline, transform=f"translate({short(x)} {short(y)})")


class Plot:
    """One drawing with a plot area; everything is drawn in the order in which it is added."""

    def __init__(self, width: Number, height: Number, left: Number, top: Number, right: Number, bottom: Number) -> None:
        """A drawing of `width` × `height` whose plot area leaves the four margins free."""
        self.width, self.height = width, height
        self.left, self.top = left, top
        self.right, self.bottom = width - right, height - bottom
        self._x = self._y = (0.0, 1.0)
        self._parts: list[Markup] = []

    def span(self, x: tuple[Number, Number], y: tuple[Number, Number]) -> None:
        """Set what the edges of the plot area stand for; an empty range is widened."""
        self._x = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
        self._y = y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5)

    def x(self, value: Number) -> float:
        """Where a horizontal value lies, held inside the plot area."""
        low, high = self._x
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.left + share * (self.right - self.left)

    def y(self, value: Number) -> float:
        """Where a vertical value lies, held inside the plot area."""
        low, high = self._y
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.bottom - share * (self.bottom - self.top)

    def add(self, *parts: Markup) -> None:
        """Draw on top of what is there."""
        self._parts.extend(parts)

    def text(self, x: Number, y: Number, words: str, style: str = "label", anchor: str = "start") -> None:
        """Write words; `anchor` is start, middle or end."""
        self.add(draw("text", words, class_=style, x=x, y=y, text_anchor=anchor))

    def line(self, x1: Number, y1: Number, x2: Number, y2: Number, style: str) -> None:
        """A straight line."""
        self.add(draw("path", class_=style, d=f"M{short(x1)} {short(y1)}L{short(x2)} {short(y2)}"))

    def path(self, data: str, style: str) -> None:
        """A path from its data."""
        self.add(draw("path", class_=style, d=data))

    def axis_x(self, ticks: Sequence[Number], labels: Sequence[str], title: str, grid: bool = True) -> None:
        """Ticks with their labels below the plot area, light grid lines, and what the axis means."""
        for value, label in zip(ticks, labels, strict=True):
            place = self.x(value)
            if grid:
                self.line(place, self.top, place, self.bottom, "grid")
            self.text(place, self.bottom + 16, label, "tick", "middle")
        self.text((self.left + self.right) / 2, self.bottom + 34, title, "axis", "middle")

    def axis_y(self, ticks: Sequence[Number], labels: Sequence[str], title: str, grid: bool = True) -> None:
        """Ticks with their labels left of the plot area, and what the axis means along it."""
        for value, label in zip(ticks, labels, strict=True):
            place = self.y(value)
            if grid:
                self.line(self.left, place, self.right, place, "grid")
            self.text(self.left - 7, place + 4, label, "tick", "end")
        middle = (self.top + self.bottom) / 2
        turn = f"rotate(-90 12 {short(middle)})"
        self.add(draw("text", title, class_="axis", x=12, y=middle, text_anchor="middle", transform=turn))

    def frame(self) -> None:
        """The plot area's left and lower edge."""
        corner = f"M{short(self.left)} {short(self.top)}V{short(self.bottom)}H{short(self.right)}"
        self.path(corner, "edge")

    def finish(self, key: str, title: str, description: str) -> Markup:
        """The whole drawing; `key` is unique in the page, title and description are read aloud."""
        return draw(
            "svg",
            draw("title", title, id=f"{key}-t"),
            draw("desc", description, id=f"{key}-d"),
            *self._parts,
            class_="chart",
            viewBox=f"0 0 {short(self.width)} {short(self.height)}",
            role="img",
            aria_labelledby=f"{key}-t {key}-d",
        )


def robust_range(values: np.ndarray, keep: float = 0.005) -> tuple[float, float]:
    """The range that a chart shows: all values, unless a few outliers would squeeze the rest into a corner.

    The full range is kept while it is at most 1.6 times as wide as the middle `1 − 2·keep` of the values.

    >>> robust_range(np.array([0.0, 1.0, 2.0]))
    (0.0, 2.0)
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    inner_low, inner_high = (float(v) for v in np.quantile(finite, [keep, 1 - keep]))
    if inner_high > inner_low and high - low > 1.6 * (inner_high - inner_low):
        return inner_low, inner_high
    return low, high
