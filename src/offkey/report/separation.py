"""Separated clips as one HTML page: recording, foreground and background to look at and to listen to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from offkey.files import write_whole
from offkey.report.frame import render_page
from offkey.report.sound import data_uri, encode_audio, picture, spectrogram, spectrogram_figure
from offkey.types import OffkeyError

__all__ = ["SeparatedClip", "write_separation_report"]

MAX_BYTES = 8_000_000
EXCERPT_SECONDS = 10.0
_LOUDEST_DOUBLINGS = 6  # 36 dB: beyond that one would listen to the recorder's own noise
_PARTS = ("Recording", "Foreground", "Background")


class WholeClip(NamedTuple):
    """`samples` of a clip, and the level in dBFS of the recording and of its parts; −inf for silence."""

    samples: int
    mixture: float
    foreground: float
    background: float


@dataclass(frozen=True, slots=True)
class SeparatedClip:
    """One clip and its parts, (T,) float32 each at `rate` hertz; `file` is the name that is shown.

    `facts` are measures by name, as text, such as the SI-SNR gain where the true parts are known; they become columns
    of the table. Where the parts are an excerpt's, `whole` tells of all of the clip.
    """

    file: str
    mixture: NDArray[np.float32]
    foreground: NDArray[np.float32]
    background: NDArray[np.float32]
    rate: int
    facts: Mapping[str, str] = field(default_factory=dict)
    whole: WholeClip | None = None

    def excerpt(self) -> SeparatedClip:
        """The clip with no more sound than the page shows, in memory of its own: the page comes out the same.

        Raises OffkeyError as `write_separation_report` does.
        """
        whole = _measured(self)
        size = int(EXCERPT_SECONDS * self.rate)
        parts = (self.mixture[:size].copy(), self.foreground[:size].copy(), self.background[:size].copy())
        return SeparatedClip(self.file, *parts, self.rate, self.facts, whole)


class _Level(NamedTuple):
    order: float
    text: str


@dataclass
class _Part:
    name: str
    samples: NDArray[np.float32]
    drawing: Markup | None = None
    audio: str | None = None
    remark: str = ""


class _View(NamedTuple):
    key: str
    file: str
    seconds: float
    levels: list[_Level]
    sentence: str
    facts: Mapping[str, str]
    rate: int
    doublings: int
    parts: list[_Part]


def write_separation_report(
    clips: Sequence[SeparatedClip],
    out: Path,
    *,
    title: str,
    version: str,
    facts: Sequence[tuple[str, str]] = (),
    problems: Sequence[tuple[str, str]] = (),
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write one self-contained page to `out` and return its path.

    The three parts of a clip share one colour scale and one loudness, so that they compare; of long clips the first
    10 s are shown. Pictures and sounds get what the rest leaves of `max_bytes`: sounds are FLAC where that fits, else
    MP3, and clips further down go without; the page says so. The file appears whole or not at all. Same clips, same
    bytes. `facts` are (label, value) pairs on how it was made, `problems` (file, reason) pairs.

    Raises OffkeyError for parts of unequal length, and for samples that are not finite.
    """
    views = [_view(clip, f"c{number + 1}") for number, clip in enumerate(clips)]
    columns = list(dict.fromkeys(name for clip in clips for name in clip.facts))
    told = {"title": title, "version": version, "facts": facts, "problems": problems, "columns": columns}
    room = max_bytes - len(_render(views, [], told)) - 2000  # for the remarks on what was left out
    media = _afford(views, room)
    return write_whole(Path(out), _render(views, media, told))


def _view(clip: SeparatedClip, key: str) -> _View:
    whole = _measured(clip)
    levels = [whole.mixture, whole.foreground, whole.background]
    levels.append(levels[1] - levels[2] if np.isfinite(levels[1]) or np.isfinite(levels[2]) else float("nan"))
    shown = [part[: int(EXCERPT_SECONDS * clip.rate)] for part in (clip.mixture, clip.foreground, clip.background)]
    peak = max(float(np.abs(part).max()) for part in shown)
    doublings = int(np.clip(np.floor(-np.log2(peak)), 0, _LOUDEST_DOUBLINGS)) if peak > 0 else 0
    return _View(
        key=key,
        file=clip.file,
        seconds=whole.samples / clip.rate,
        levels=[_Level(round(value, 2) if np.isfinite(value) else -1e300, _decibels(value)) for value in levels],
        sentence=_sentence(whole.samples / clip.rate, levels[3], doublings),
        facts=clip.facts,
        rate=clip.rate,
        doublings=doublings,
        parts=[_Part(name, part) for name, part in zip(_PARTS, shown, strict=True)],
    )


def _measured(clip: SeparatedClip) -> WholeClip:
    """Length and levels of all of a clip. Raises OffkeyError for parts that do not fit or are not finite."""
    parts = (clip.mixture, clip.foreground, clip.background)
    if len({len(part) for part in parts}) != 1 or not len(clip.mixture):
        raise OffkeyError(f"{clip.file}: recording and parts have {[len(part) for part in parts]} samples; give equals")
    if not all(np.isfinite(part).all() for part in parts):
        raise OffkeyError(f"{clip.file}: a part holds samples that are not finite; separate it again")
    return clip.whole or WholeClip(len(clip.mixture), *map(_dbfs, parts))


def _sentence(seconds: float, ratio: float, doublings: int) -> str:
    if np.isnan(ratio):
        said = "There is no sound in either part."
    elif np.isinf(ratio):
        said = f"All of the sound was taken for {'the machine' if ratio > 0 else 'the surroundings'}."
    else:
        said = f"The machine is {_decibels(abs(ratio))} {'above' if ratio >= 0 else 'below'} what sounds around it."
    if seconds > EXCERPT_SECONDS:
        said += f" Shown are the first {EXCERPT_SECONDS:g} s of {seconds:.0f} s."
    if doublings:
        said += f" All three are played {6 * doublings} dB louder than recorded."
    return said


def _dbfs(samples: NDArray[np.float32]) -> float:
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return 10.0 * float(np.log10(power)) if power > 0 else float("-inf")


def _decibels(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    text = f"{value:.1f}"
    return f"{'0.0' if text == '-0.0' else text} dB".replace("-", "−")


def _afford(views: Sequence[_View], budget: int) -> list[str]:
    """Draw and encode what fits into `budget` bytes, clip by clip; says in words what was left out."""
    room, undrawn = budget // 2, 0
    for view in views:
        spectra = [spectrogram(part.samples, view.rate) for part in view.parts]
        low, high = (float(v) for v in np.quantile(spectra[0].level, [0.03, 0.998]))
        high = max(high, low + 20.0)
        drawings = [
            spectrogram_figure(
                f"{view.key}-{part.name.lower()}",
                picture(spectrum, low, high),
                spectrum,
                f"Spectrogram of {view.file}: {part.name.lower()}",
                f"{spectrum.seconds:.1f} s of sound, bright where it is loud.",
            )
            for part, spectrum in zip(view.parts, spectra, strict=True)
        ]
        size = sum(map(_size, drawings))
        if size > room:
            undrawn += 1
            continue
        room -= size
        budget -= size
        for part, drawing in zip(view.parts, drawings, strict=True):
            part.drawing = drawing

    sounds = [_sounds(view, small=False) for view in views]
    small = sum(len(sound) for row in sounds for sound in row) > budget
    if small:
        sounds = [_sounds(view, small=True) for view in views]
    silent = 0
    for view, row in zip(views, sounds, strict=True):
        size = sum(map(len, row))
        fits = size <= budget
        budget -= size if fits else 0
        silent += not fits
        for part, sound in zip(view.parts, row, strict=True):
            part.audio = sound if fits else None
            part.remark = "" if fits else "The sound was left out to keep this page small."
    said = ["sounds are stored as MP3, which may dull faint differences"] if small and silent < len(views) else []
    if undrawn:
        said.append(f"the pictures of {undrawn} clip{'s' * (undrawn > 1)} were left out")
    if silent:
        said.append(f"the sounds of {silent} clip{'s' * (silent > 1)} were left out")
    return said


def _size(text: str) -> int:
    return len(text.encode("utf-8", "backslashreplace"))


def _sounds(view: _View, small: bool) -> list[str]:
    return [data_uri(*encode_audio(part.samples, view.rate, view.doublings, small)) for part in view.parts]


def _render(views: Sequence[_View], media: Sequence[str], told: Mapping[str, Any]) -> bytes:
    # file names may hold bytes that are no text
    page = render_page("separation.html", filters={}, views=views, media=media, **told)
    return page.encode("utf-8", "backslashreplace")
