"""The page of separated clips is complete in itself, tells levels right, and takes anything."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tests.report.outline import Outline

from offkey.report.separation import SeparatedClip, write_separation_report
from offkey.types import OffkeyError

RATE = 16000
NASTY = "<script>alert('x')</script>&\"__"


def make_clip(file: str = "fan/a.wav", front: float = 0.02, back: float = 0.04, seconds: float = 1.0) -> SeparatedClip:
    """A tone of RMS `front` over noise of RMS `back`."""
    time = np.arange(round(seconds * RATE)) / RATE
    foreground = (front * np.sqrt(2) * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(len(time))
    background = (back * noise / np.sqrt(np.mean(noise**2))).astype(np.float32)
    return SeparatedClip(file, foreground + background, foreground, background, RATE)


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., str]:
    def write(*clips: SeparatedClip, **changes: object) -> str:
        known = {"title": "Separated", "version": "0.1.0"} | changes
        return write_separation_report(clips, tmp_path / "page.html", **known).read_text(encoding="utf-8")

    return write


def test_the_page_needs_nothing_else(page) -> None:
    text = page(make_clip(), make_clip("fan/b.wav"))
    outline = Outline(text)
    policy = next(tag["content"] for tag in outline.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 1
    assert f"'sha256-{base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert any(tag.get("name") == "viewport" for tag in outline.all("meta"))
    for tag, attributes in outline.tags:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    identifiers = [attributes["id"] for _, attributes in outline.tags if attributes.get("id")]
    assert len(identifiers) == len(set(identifiers))
    assert all((tag["href"] or "#content")[1:] in identifiers for tag in outline.all("a"))


def test_each_part_is_drawn_and_heard_at_one_loudness(page) -> None:
    clip = make_clip()
    outline = Outline(page(clip))
    assert len(outline.all("image")) == 3
    heard = []
    for player in outline.all("audio"):
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode((player["src"] or "").split(",", 1)[1])))
        assert rate == RATE
        heard.append(samples)
    whole = np.stack([clip.mixture, clip.foreground, clip.background])
    gain = 2.0 ** np.floor(-np.log2(np.abs(whole).max()))
    np.testing.assert_allclose(np.stack(heard), whole * gain, atol=1 / 32768)
    assert f"{round(6 * np.log2(gain))} dB louder than recorded" in outline.text
    assert [player["aria-label"] for player in outline.all("audio")] == [
        f"{name} of fan/a.wav" for name in ("Recording", "Foreground", "Background")
    ]


@pytest.mark.parametrize(
    ("front", "back", "told"),
    [
        (0.1, 0.1, "The machine is 0.0 dB above what sounds around it"),
        (0.01, 0.1, "The machine is 20.0 dB below what sounds around it"),
        (0.1, 0.0, "All of the sound was taken for the machine"),
        (0.0, 0.1, "All of the sound was taken for the surroundings"),
        (0.0, 0.0, "There is no sound in either part"),
    ],
)
def test_levels_are_told(page, front: float, back: float, told: str) -> None:
    text = Outline(page(make_clip(front=front, back=back))).text
    assert told in text
    for value in (front, back):
        assert (f"{20 * np.log10(value):.1f} dB".replace("-", "−") if value else "–") in text


def test_long_clips_are_shown_in_part(page) -> None:
    outline = Outline(page(make_clip(seconds=12.0)))
    assert "Shown are the first 10 s of 12 s." in outline.text
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode((outline.all("audio")[0]["src"] or "").split(",", 1)[1])))
    assert len(samples) == 10 * RATE


def test_facts_become_columns_and_problems_a_table(page) -> None:
    measured = dataclasses.replace(make_clip(), facts={"SI-SNR gain": "7.1 dB"})
    outline = Outline(page(measured, make_clip("b.wav"), problems=[("c.wav", "0 samples")], facts=[("Model", "tiny")]))
    for words in ("SI-SNR gain", "7.1 dB", "c.wav", "0 samples", "tiny"):
        assert words in outline.text
    assert "could not be used" not in Outline(page(make_clip())).text


def test_names_from_outside_stay_text(page) -> None:
    clip = dataclasses.replace(make_clip(NASTY), facts={NASTY: NASTY})
    text = page(clip, title=NASTY, facts=[(NASTY, NASTY)], problems=[(NASTY, NASTY)])
    assert "<script>alert" not in text
    assert len(Outline(text).all("script")) == 1
    odd = page(make_clip("line\nbreak\x00\x1b.wav"), make_clip("byte\udcff.wav"))
    assert "\x00" not in odd
    assert "\\udcff" in odd


@pytest.mark.parametrize("most", [100_000, 300_000, 900_000])
def test_the_page_stays_small_and_says_what_was_left_out(page, most: int) -> None:
    text = page(*(make_clip(f"{number}.wav", seconds=5.0) for number in range(8)), max_bytes=most)
    assert len(text.encode()) <= most
    outline = Outline(text)
    assert "To keep this page small" in outline.text
    silent = 8 - len(outline.all("audio")) // 3
    assert outline.text.count("The sound was left out to keep this page small.") == 3 * silent
    if silent:
        assert f"the sounds of {silent} clip" in outline.text


def test_no_clip_is_a_page_too(page) -> None:
    assert "No clip was separated." in Outline(page()).text


def test_parts_that_do_not_fit_are_refused(page) -> None:
    clip = make_clip()
    with pytest.raises(OffkeyError, match=r"fan/a\.wav: recording and parts have"):
        page(dataclasses.replace(clip, background=clip.background[:-1]))
    with pytest.raises(OffkeyError, match="not finite"):
        page(dataclasses.replace(clip, foreground=clip.foreground * np.float32("nan")))


def test_same_clips_same_bytes(page) -> None:
    assert page(make_clip()) == page(make_clip())


@pytest.mark.parametrize("seconds", [1.0, 12.0])
def test_an_excerpt_makes_the_same_page_and_holds_no_more_than_that(page, seconds: float) -> None:
    whole = make_clip(seconds=seconds)
    short = whole.excerpt()
    assert page(short) == page(whole)
    assert page(short.excerpt()) == page(whole)
    for part in (short.mixture, short.foreground, short.background):
        assert part.base is None
        assert len(part) == min(seconds, 10.0) * RATE
    with pytest.raises(OffkeyError, match="not finite"):
        dataclasses.replace(whole, background=whole.background * np.float32("nan")).excerpt()
