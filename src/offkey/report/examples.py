"""Which clips a report shows and lets be heard, and how many of them a page of bounded size can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from offkey.report.contents import ClipReport, MachineReport, Reason
from offkey.report.sound import (
    Spectrum,
    data_uri,
    encode_audio,
    picture,
    spectrogram,
    spectrogram_figure,
    spectrum_of,
)
from offkey.types import OffkeyError

__all__ = ["AudioReader", "Example", "Examples", "Explainer", "afford", "choose", "gather"]

AudioReader = Callable[[Path], tuple[NDArray[np.float32], int]]
Explainer = Callable[[str, ClipReport], Reason | None]
"""A machine's name and one of its clips -> why the clip is strange, None where that cannot be told."""

EXCERPT_SECONDS = 10.0
_LOUDEST_DOUBLINGS = 6  # 36 dB: beyond that one would listen to the recorder's own noise


@dataclass
class Example:
    """A clip that is shown: its picture and its sound as far as they could be had and afforded."""

    clip: ClipReport
    samples: NDArray[np.float32] | None = None
    rate: int = 0
    spectrum: Spectrum | None = None
    drawing: Markup | None = None
    reason: Reason | None = None
    audio: str | None = None
    remarks: list[str] = field(default_factory=list)


@dataclass
class Examples:
    """The most and the least anomalous clips of one machine, strangest and most ordinary first.

    `doublings`: how often all samples of this machine are doubled for listening (each is 6 dB).
    """

    most: list[Example]
    least: list[Example]
    doublings: int = 0
    levels: tuple[float, float] = (-100.0, -40.0)
    key: str = ""


def choose(clips: Sequence[ClipReport], count: int) -> tuple[list[ClipReport], list[ClipReport]]:
    """The `count` highest and the `count` lowest scores, no clip in both; equal scores in order of name."""
    ordered = sorted((c for c in clips if np.isfinite(c.score)), key=lambda c: (-c.score, c.file))
    most = ordered[: min(count, (len(ordered) + 1) // 2)]
    least = ordered[len(most) :][::-1][:count]
    return most, least


def _read(clip: ClipReport, audio: AudioReader | None) -> Example:
    example = Example(clip)
    if clip.path is None or audio is None:
        example.remarks.append("The recording was not at hand when this report was made.")
        return example
    try:
        samples, rate = audio(clip.path)
    except (OffkeyError, OSError, ValueError, RuntimeError) as problem:
        example.remarks.append(f"The recording could not be read: {problem}")
        return example
    if samples.ndim != 1 or not len(samples) or rate <= 0 or not np.isfinite(samples).all():
        example.remarks.append("The recording holds no sound that could be shown.")
        return example
    longest = int(EXCERPT_SECONDS * rate)
    if len(samples) > longest:
        example.remarks.append(f"First {EXCERPT_SECONDS:g} s of {len(samples) / rate:.0f} s.")
    example.samples, example.rate = samples[:longest], rate
    example.spectrum = spectrogram(example.samples, rate)
    return example


def gather(
    machine: MachineReport, audio: AudioReader | None, count: int, key: str, explain: Explainer | None = None
) -> Examples:
    """Read the clips to show; one loudness and one colour scale for all of them, so that they compare.

    The most anomalous ones are explained.
    """
    most, least = choose(machine.clips, count)
    chosen = Examples([_read(c, audio) for c in most], [_read(c, audio) for c in least], key=key)
    if explain is not None:
        for example in chosen.most:
            example.reason = explain(machine.name, example.clip) if example.spectrum is not None else None
    heard = [e for e in (*chosen.most, *chosen.least) if e.samples is not None and e.spectrum is not None]
    if heard:
        peak = max(float(np.abs(e.samples).max()) for e in heard if e.samples is not None)
        if peak > 0:
            chosen.doublings = int(np.clip(np.floor(-np.log2(peak)), 0, _LOUDEST_DOUBLINGS))
        levels = np.concatenate([e.spectrum.level.ravel() for e in heard if e.spectrum is not None])
        low, high = (float(v) for v in np.quantile(levels, [0.03, 0.998]))
        chosen.levels = (low, max(high, low + 20.0))
    return chosen


def _in_turn(machines: Sequence[Examples]) -> list[tuple[Examples, Example, str]]:
    """First the strangest clip of every machine, then the most ordinary, then the second of each."""
    depth = max((max(len(m.most), len(m.least)) for m in machines), default=0)
    turns = []
    for rank in range(depth):
        for side in ("most", "least"):
            for machine in machines:
                row: list[Example] = getattr(machine, side)
                if rank < len(row):
                    turns.append((machine, row[rank], f"{machine.key}-{side}-{rank}"))
    return turns


def _draw(machine: Examples, example: Example, key: str) -> Markup | None:
    if example.spectrum is None:
        return None
    name = example.clip.file
    image = picture(example.spectrum, *machine.levels)
    seconds, score = example.spectrum.seconds, example.clip.score
    said = f"{seconds:.1f} s of sound, bright where it is loud; score {score:.4g}."
    reason = example.reason
    box = None if reason is None else reason.box
    drawn = spectrogram_figure(key, image, example.spectrum, f"Spectrogram of {name}", said, box)
    return drawn if reason is None else drawn + _because(reason, name, key)


def _because(reason: Reason, name: str, key: str) -> Markup:
    """The system's map of a clip, and the nearest normal clip."""
    strength = spectrum_of(reason.strength, reason.edges, reason.seconds, EXCERPT_SECONDS)
    normal = spectrum_of(reason.normal, reason.edges, reason.seconds, EXCERPT_SECONDS)
    low, high = (float(v) for v in np.quantile(normal.level, [0.03, 0.998]))
    objects = spectrogram_figure(
        f"{key}-why", picture(strength, 0.0, 1.0), strength, f"What the system objects to in {name}",
        f"Bright where the system objects: {reason.strength_name}. {reason.text}.", reason.box,
    )  # fmt: skip
    beside = spectrogram_figure(
        f"{key}-near", picture(normal, low, max(high, low + 20.0)), normal, f"Spectrogram of {reason.nearest}",
        f"The normal clip that the system finds nearest to {name}, as coarse as the detector keeps it.",
    )  # fmt: skip
    told = Markup('<p class="remark">{}</p>')
    whose = f", its {reason.part}, which is what the system hears" if reason.part else ""
    nearest = told.format(f"Nearest normal clip{whose}: {reason.nearest}")
    return objects + told.format(f"{reason.text}.") + beside + nearest


def afford(machines: Sequence[Examples], budget: int) -> list[str]:
    """Draw and encode what fits into `budget` bytes, machines taking turns; says in words what was left out.

    Pictures come first and may take half of the budget. All sounds are FLAC if that fits, else all are MP3
    (about a fifth of the size); where even that is too much, clips further down the ranks stay silent.
    """
    turns = _in_turn(machines)
    room = budget // 2
    shown: list[tuple[Examples, Example]] = []
    undrawn = 0
    for machine, example, key in turns:
        drawing = _draw(machine, example, key)
        if drawing is not None and len(drawing) > room:
            undrawn += 1
            row = machine.most if example in machine.most else machine.least
            row.remove(example)
            continue
        if drawing is not None:
            room -= len(drawing)
            budget -= len(drawing)
            example.drawing = drawing
        shown.append((machine, example))

    def encoded(machine: Examples, example: Example, small: bool) -> str:
        if example.samples is None:
            return ""
        return data_uri(*encode_audio(example.samples, example.rate, machine.doublings, small))

    sounds = [encoded(machine, example, small=False) for machine, example in shown]
    small = sum(map(len, sounds)) > budget
    if small:
        sounds = [encoded(machine, example, small=True) for machine, example in shown]
    silent = 0
    for (_, example), sound in zip(shown, sounds, strict=True):
        if sound and len(sound) <= budget:
            example.audio = sound
            budget -= len(sound)
        elif sound:
            silent += 1
            example.remarks.append("Its sound was left out to keep this page small: play the file itself.")
    said = []
    if small:
        said.append("sounds are stored as MP3, which may dull faint differences")
    if silent:
        said.append(f"{silent} clips are shown without their sound")
    if undrawn:
        said.append(f"{undrawn} further clips are not shown")
    return said
