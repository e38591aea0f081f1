"""Colours can be told from their ground in both modes, and both ways into dark mode are the same."""

from __future__ import annotations

import re
from importlib import resources

import pytest

STYLE = resources.files("offkey.report").joinpath("style.css").read_text(encoding="utf-8")
BLOCK = r"\{([^{}]*)\}"


def _variables(text: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]+):\s*([^;]+);", text))


LIGHT = _variables(re.search(r"^:root " + BLOCK, STYLE, re.M)[1])
SYSTEM_DARK = _variables(re.search(r':root:not\(\[data-theme="light"\]\) ' + BLOCK, STYLE)[1])
CHOSEN_DARK = _variables(re.search(r':root\[data-theme="dark"\] ' + BLOCK, STYLE)[1])


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio, 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)


def test_dark_mode_is_the_same_by_system_and_by_choice():
    assert SYSTEM_DARK == CHOSEN_DARK
    assert set(LIGHT) == set(SYSTEM_DARK)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(
    ("front", "ground", "least"),
    [
        *[(text, ground, 4.5) for text in ("ink", "muted", "accent") for ground in ("ground", "card", "zone")],
        ("normal", "normal-tint", 4.5),
        ("anomaly", "anomaly-tint", 4.5),
        *[(mark, "card", 3.0) for mark in ("normal", "anomaly", "source", "target", "partial", "reference", "rule")],
        ("source", "zone", 3.0),
        ("target", "zone", 3.0),
    ],
)
def test_contrast_reaches_wcag_aa(mode, front, ground, least):
    colours = LIGHT if mode == "light" else SYSTEM_DARK
    assert contrast(colours[front], colours[ground]) >= least


def test_dark_mode_is_for_screens_alone_so_that_paper_stays_white():
    for match in re.finditer(r'data-theme="dark"|prefers-color-scheme: dark', STYLE):
        before = STYLE[: match.start()]
        assert before.rfind("@media screen") > before.rfind("\n}\n")


def test_every_colour_of_a_drawing_is_a_variable():
    rules = STYLE.split("\n* {", 1)[1]
    used = set(re.findall(r"var\(--([a-z-]+)\)", rules))
    assert used <= set(LIGHT)
    outside_masks = re.sub(r"linear-gradient\([^;]*;", "", rules)
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b", outside_masks)
