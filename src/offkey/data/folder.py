"""Plain folders of recordings -> `ClipMeta`, without any table: the folders' names say what is what.

Words for a part of the data (train, test, supplemental), a condition (normal, anomaly, abnormal, …) and a
domain (source, target) are understood wherever they stand in a path; `id_00` and `section_00` are sections;
the first other sub-folder is the machine, or with `subfolders="settings"` a setting of the one machine that
the root names. Recordings of which nothing else is said are normal and for training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from offkey.audio.io import AUDIO_SUFFIXES, UNREADABLE_SUFFIXES
from offkey.types import ClipMeta, Condition, Content, Domain, OffkeyError, Split

__all__ = ["FolderScan", "Subfolders", "scan_folder", "survey_folder", "walk"]

Subfolders = Literal["machines", "settings"]

_SPLITS = {
    **dict.fromkeys(("train", "training"), Split.TRAIN),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), Split.TEST),
    **dict.fromkeys(("supplemental", "supplementary"), Split.SUPPLEMENTAL),
}
_CONDITIONS = {
    **dict.fromkeys(("normal", "healthy", "good", "ok"), Condition.NORMAL),
    **dict.fromkeys(
        (
            "anomaly",
            "anomalies",
            "anomalous",
            "abnormal",
            "faulty",
            "fault",
            "broken",
            "defective",
            "ng",
            "bad",
        ),
        Condition.ANOMALY,
    ),
}
_DOMAINS = {"source": Domain.SOURCE, "target": Domain.TARGET}
_CONTENTS = {"noise": Content.NOISE, "machine": Content.MACHINE, "clean": Content.MACHINE}
_SECTION = re.compile(r"(?:id|section)[_-]?(\d{1,3})")
# In the name of a file only words that leave no doubt count: "ok_button.wav" is no verdict.
_NAMED = {
    "normal": Condition.NORMAL,
    "anomaly": Condition.ANOMALY,
    "anomalous": Condition.ANOMALY,
    "abnormal": Condition.ANOMALY,
}


@dataclass
class FolderScan:
    """`clips` in order, sentences for people in `remarks`, and counts of other endings that were `seen`."""

    clips: list[ClipMeta] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)


def scan_folder(root: Path, subfolders: Subfolders = "machines") -> list[ClipMeta]:
    """All recordings at or below `root`, sorted by path; hidden files and folders are passed by.

    Where normal and faulty recordings lie side by side without train and test folders, the last of the normal
    ones by name (as many as there are faulty ones, at most half) are kept for testing.
    Raises `OffkeyError` for faulty recordings in a training folder.
    """
    return survey_folder(root, subfolders).clips


def survey_folder(root: Path, subfolders: Subfolders = "machines") -> FolderScan:
    """`scan_folder` with what else was noticed on the way."""
    root, scan = Path(root), FolderScan()
    unsaid: list[ClipMeta] = []  # clips of no named part
    unreadable: list[Path] = []
    base, above = _name_and_words(root)
    for path in walk(root):
        suffix = path.suffix.lower()
        if suffix in AUDIO_SUFFIXES:
            words = (*above, *path.relative_to(root).parts[:-1])
            clip, split = _describe(path, words, base, subfolders)
            if split is Split.TRAIN and clip.condition is Condition.ANOMALY:
                raise OffkeyError(
                    f"{path} is a faulty recording in a training folder. Only normal recordings are learned "
                    "from: move it to a test folder or leave it out"
                )
            scan.clips.append(clip)
            if split is None:
                unsaid.append(clip)
        else:
            scan.seen[suffix] = scan.seen.get(suffix, 0) + 1
            if suffix in UNREADABLE_SUFFIXES:
                unreadable.append(path)
    if unreadable:
        scan.remarks.append(
            f"{len(unreadable)} recordings in formats that cannot be read are left out, such as "
            f"{unreadable[0]}; convert them to WAV or FLAC"
        )
    _hold_out(unsaid, scan)
    return scan


def walk(root: Path) -> Iterator[Path]:
    """Every file at or below `root` in the order of its path, hidden ones and loops of links left out.

    A folder that several links lead to is entered once; links to single files count as files.
    """
    visited: set[Path] = set()

    def descend(folder: Path) -> Iterator[Path]:
        real = folder.resolve()
        if real in visited:
            return
        visited.add(real)
        try:
            with os.scandir(folder) as entries:
                listed = sorted((e.name, e.is_dir(), e.is_file()) for e in entries)
        except OSError as error:
            raise OffkeyError(f"the folder {folder} cannot be listed: {error.strerror}") from None
        for name, is_folder, is_file in listed:
            if name.startswith(".") or name == "__MACOSX":
                continue
            if is_folder:
                yield from descend(folder / name)
            elif is_file:
                yield folder / name

    yield from descend(Path(root))


def _name_and_words(root: Path) -> tuple[str, tuple[str, ...]]:
    """The machine that `root` names, and the telling words at the end of its path (`pump/train/normal`)."""
    parts = list(root.resolve().parts[1:])
    words: list[str] = []
    while parts and (parts[-1].lower() in _SPLITS or parts[-1].lower() in _CONDITIONS):
        words.insert(0, parts.pop())
    return (parts[-1] if parts else "machine"), tuple(words)


def _describe(path: Path, folders: tuple[str, ...], base: str, subfolders: Subfolders) -> tuple[ClipMeta, Split | None]:
    """What the path says of a clip, and the part of the data where the folders name one."""
    split: Split | None = None
    condition, domain, section, content = Condition.UNKNOWN, Domain.UNKNOWN, "00", Content.MIXTURE
    others: list[str] = []
    for folder in folders:
        word = folder.lower()
        number = _SECTION.fullmatch(word)
        if word in _SPLITS:
            split = _SPLITS[word]
        elif split is Split.SUPPLEMENTAL and word in _CONTENTS:
            content = _CONTENTS[word]
        elif word in _CONDITIONS:
            condition = _CONDITIONS[word]
        elif word in _DOMAINS:
            domain = _DOMAINS[word]
        elif number:
            section = number[1].zfill(2)
        else:
            others.append(folder)
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    if condition is Condition.UNKNOWN:
        named = {_NAMED[word] for word in words & _NAMED.keys()}
        condition = named.pop() if len(named) == 1 else condition
    if split is Split.SUPPLEMENTAL:
        told = [_CONTENTS[word] for word in ("noise", "machine", "clean") if word in words]
        content = told[0] if told and content is Content.MIXTURE else content
        condition = Condition.NORMAL
    if split is Split.TRAIN and condition is Condition.UNKNOWN:
        condition = Condition.NORMAL
    part = split
    if part is None:
        part = Split.TEST if condition is Condition.ANOMALY else Split.TRAIN
        condition = Condition.NORMAL if condition is Condition.UNKNOWN else condition
    if subfolders == "settings":
        machine, attributes = base, ((("setting", "/".join(others)),) if others else ())
    else:
        machine, attributes = (others[0] if others else base), ()
    return ClipMeta(path, machine, section, domain, condition, part, attributes, content), split


def _hold_out(unsaid: list[ClipMeta], scan: FolderScan) -> None:
    """Keep normal clips for testing where faulty ones lie beside them and no folder says what is for what."""
    tested = {
        (clip.machine, clip.section)
        for clip in scan.clips
        if clip.split is Split.TEST and clip.condition is not Condition.ANOMALY
    }
    kept: set[Path] = set()
    for unit in sorted({(clip.machine, clip.section) for clip in unsaid} - tested):
        mine = [clip for clip in unsaid if (clip.machine, clip.section) == unit]
        normal = [clip for clip in mine if clip.condition is Condition.NORMAL]
        count = min(len(mine) - len(normal), len(normal) // 2)
        if count == 0:
            continue
        # The last ones in a row: scattered ones would have neighbours in time among the training clips.
        kept.update(clip.path for clip in normal[-count:])
        scan.remarks.append(
            f"{unit[0]} (section {unit[1]}) has normal and faulty recordings but no train and "
            f"test folders: the last {count} of {len(normal)} normal ones by name are kept for testing"
        )
    if kept:
        scan.clips = [replace(clip, split=Split.TEST) if clip.path in kept else clip for clip in scan.clips]
