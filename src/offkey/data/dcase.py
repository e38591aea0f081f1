"""DCASE Challenge Task 2, 2020 to 2026: names, folders and attribute tables -> `ClipMeta`.

A machine's folder holds `train/`, `test/` (2021: `source_test/`, `target_test/`) and, from 2025 on,
`supplemental/`, beside `attributes_NN.csv`. Such folders are found wherever they lie below the root, so that
the baseline's tree (`dcase2025t2/dev_data/raw/fan`), unpacked archives and one machine's folder all do.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from offkey.audio.io import AUDIO_SUFFIXES
from offkey.types import ClipMeta, Condition, Content, Domain, OffkeyError, Split

__all__ = [
    "FIRST_TABLES",
    "SPLITS",
    "ClipName",
    "DcaseScan",
    "format_name",
    "is_dcase",
    "parse_name",
    "scan_dcase",
    "survey_dcase",
]

SPLITS = {
    "train": Split.TRAIN,
    "test": Split.TEST,
    "source_test": Split.TEST,
    "target_test": Split.TEST,
    "test_rename": Split.TEST,
    "supplemental": Split.SUPPLEMENTAL,
    "supplementary": Split.SUPPLEMENTAL,
}
"""What the folders of a machine are called, in lower case, and whose clips lie in them."""
FIRST_TABLES = 2022
"""Year from which on the data sets have tables of attributes."""
_PREFERENCE = ("test", "source_test", "target_test", "test_rename")  # the same clips may lie in several
_DEPTH = 7
_NUMBER = re.compile(r"\d{3,}")
_DIGITS = re.compile(r"\d{1,3}")
_TABLE = re.compile(r"attributes?_(\d{2}).*\.csv", re.IGNORECASE)
_HIDDEN = "noattribute"
_CONTENTS = {"machine": Content.MACHINE, "clean": Content.MACHINE, "noise": Content.NOISE}


class ClipName(NamedTuple):
    """What the name of a DCASE file says; None and UNKNOWN where it says nothing.

    `style` is "id" for the names of 2020 and "section" for the later ones; `number` keeps its leading zeros;
    `split` is None where the folder has to say it. `content` is told apart in supplemental names only.
    """

    style: str
    section: str
    number: str
    domain: Domain = Domain.UNKNOWN
    split: Split | None = None
    condition: Condition = Condition.UNKNOWN
    attributes: tuple[tuple[str, str], ...] = ()
    content: Content = Content.MIXTURE


def parse_name(name: str) -> ClipName | None:
    """Read the name of a file (with or without ending or folders); None for a name that DCASE does not use.

    Known words may come in any order before the number, since supplemental names differ between archives.
    What follows the number are attributes, alternately key and value; a lone last word is the value of
    "note".

    >>> parse_name("section_00_source_train_normal_0000_car_A2_spd_28V.wav").attributes
    (('car', 'A2'), ('spd', '28V'))
    >>> parse_name("anomaly_id_02_00000123.wav").condition
    <Condition.ANOMALY: 'anomaly'>
    >>> parse_name("section_00_machine_source_0000_noAttribute.wav").content
    <Content.MACHINE: 'machine'>
    >>> parse_name("pump.wav") is None
    True
    """
    words = stem(name).split("_")
    condition = Condition.UNKNOWN
    if words and words[0].lower() in ("normal", "anomaly") and len(words) > 1:
        condition = Condition(words.pop(0).lower())
    if len(words) < 3 or not _DIGITS.fullmatch(words[1]):
        return None
    if words[0].lower() == "id" and _NUMBER.fullmatch(words[2]):
        return ClipName("id", words[1], words[2], condition=condition, attributes=_pairs(words[3:]))
    if words[0].lower() != "section" or condition is not Condition.UNKNOWN:
        return None
    domain, split, content = Domain.UNKNOWN, None, Content.MIXTURE
    for at, word in enumerate(words[2:], start=2):
        word = word.lower()
        if _NUMBER.fullmatch(word):
            if content is not Content.MIXTURE:
                split = Split.SUPPLEMENTAL
            return ClipName("section", words[1], words[at], domain, split, condition, _pairs(words[at + 1 :]), content)
        if word in ("source", "target"):
            domain = Domain(word)
        elif word in SPLITS:
            split = SPLITS[word]
        elif word in ("normal", "anomaly"):
            condition = Condition(word)
        elif word in _CONTENTS:
            content = _CONTENTS[word]
        else:
            return None
    return None


def format_name(name: ClipName, suffix: str = ".wav") -> str:
    """The file name that `parse_name` reads as `name`."""
    condition = [] if name.condition is Condition.UNKNOWN else [name.condition.value]
    if name.style == "id":
        words = [*condition, "id", name.section, name.number]
    else:
        words = ["section", name.section]
        words += [] if name.domain is Domain.UNKNOWN else [name.domain.value]
        words += [] if name.split is None else [name.split.value]
        words += [] if name.content is Content.MIXTURE else [name.content.value]
        words += [*condition, name.number]
    for key, value in name.attributes:
        words += [value] if key == "note" else [key, value]
    return "_".join(words) + suffix


def stem(name: str) -> str:
    """The last part of a path without an audio ending; other dots stay: `ac_0.03` is no `ac_0`."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1].strip()
    head, dot, ending = last.rpartition(".")
    return head if dot and f".{ending.lower()}" in AUDIO_SUFFIXES else last


def _pairs(words: list[str]) -> tuple[tuple[str, str], ...]:
    words = [word for word in words if word and word.lower() != _HIDDEN]
    pairs = list(zip(words[::2], words[1::2], strict=False))
    return (*pairs, ("note", words[-1])) if len(words) % 2 else tuple(pairs)


@dataclass
class DcaseScan:
    """What lies below a root: `clips` in order, and what `offkey data check` wants to know besides.

    `tables` are the attribute files; `rows_without_file` pairs of a table and a row's name; `without_row`
    training clips that their section's table leaves out; `remarks` sentences for people; `hints` what tells
    the year.
    """

    clips: list[ClipMeta] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    rows_without_file: list[tuple[Path, str]] = field(default_factory=list)
    without_row: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    hints: set[str] = field(default_factory=set)


def is_dcase(root: Path) -> bool:
    """Whether a machine's folder with DCASE names lies at or below `root`; reads names only, never a file."""
    return next(_machine_folders(root), None) is not None


def scan_dcase(root: Path) -> list[ClipMeta]:
    """All clips at or below `root`, sorted by machine, split and name.

    Raises `OffkeyError` for a clip named anomaly among the training clips, for a table that cannot be read,
    and where two data sets with the same machine and clip names lie below one root.
    """
    return survey_dcase(root).clips


def survey_dcase(root: Path) -> DcaseScan:
    """`scan_dcase` with everything else that was noticed on the way."""
    scan = DcaseScan()
    for folder, machine in _machine_folders(root):
        _scan_machine(folder, machine, scan)
    scan.clips.sort(key=lambda clip: (clip.machine, _order(clip.split), clip.path.name, str(clip.path)))
    seen: dict[tuple[str, Split, str], Path] = {}
    for clip in scan.clips:
        other = seen.setdefault((clip.machine, clip.split, clip.path.name), clip.path)
        if other != clip.path and other.parent != clip.path.parent:
            raise OffkeyError(
                f"{root} holds {clip.path.name} of {clip.machine} twice: in {other.parent} and "
                f"{clip.path.parent}. These look like two data sets; name the folder of one of them"
            )
    return scan


def _order(split: Split) -> int:
    return (Split.TRAIN, Split.TEST, Split.SUPPLEMENTAL).index(split)


def _machine_folders(root: Path) -> Iterator[tuple[Path, str]]:
    """(folder, machine) of every folder that has clips with DCASE names, itself or in a folder of a split."""
    root = Path(root)
    if not root.is_dir():
        return
    if root.resolve().name.lower() in SPLITS and _has_clips(root):
        yield root, root.resolve().parent.name or "machine"
        return
    pending, visited = [(root, 0)], set()
    while pending:
        folder, depth = pending.pop()
        real = folder.resolve()
        if real in visited:  # a link back into the tree
            continue
        visited.add(real)
        subfolders = _subfolders(folder)
        splits = [sub for sub in subfolders if sub.name.lower() in SPLITS]
        if any(_has_clips(sub) for sub in splits) or _has_clips(folder):
            yield folder, real.name or "machine"
        elif depth < _DEPTH:
            pending += [(sub, depth + 1) for sub in reversed(subfolders)]


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")))
    except OSError:
        return []
    return [folder / name for name in names]


def _audio_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                e.name
                for e in entries
                if not e.name.startswith(".")
                and os.path.splitext(e.name)[1].lower() in AUDIO_SUFFIXES  # noqa: PTH122 - no Path per file
                and e.is_file()
            )
    except OSError:
        return []


def _has_clips(folder: Path) -> bool:
    """Whether most recordings right in `folder` have DCASE names: one stray name does not make a data set."""
    names = _audio_names(folder)[:50]
    return bool(names) and 2 * sum(parse_name(name) is not None for name in names) > len(names)


def _scan_machine(folder: Path, machine: str, scan: DcaseScan) -> None:
    splits = {sub.name.lower(): sub for sub in _subfolders(folder) if sub.name.lower() in SPLITS}
    home = folder
    if folder.resolve().name.lower() in SPLITS and not splits:
        splits, home = {folder.resolve().name.lower(): folder}, folder.resolve().parent
    rows = _read_tables(home, scan)
    tested: set[str] = set()
    found: set[tuple[str, str]] = set()
    for word in [*[w for w in splits if w not in _PREFERENCE], *[w for w in _PREFERENCE if w in splits]]:
        if word == "test_rename" and tested:
            scan.remarks.append(f"{machine}: test_rename/ repeats the test clips and is left out")
            continue
        names = _audio_names(splits[word])
        fresh = [name for name in names if SPLITS[word] is not Split.TEST or name not in tested]
        if word in ("source_test", "target_test"):
            scan.hints.add("2021")
        if SPLITS[word] is Split.TEST:
            tested.update(fresh)
        _add_clips(splits[word], fresh, machine, SPLITS[word], rows, found, scan)
    if not splits:
        _add_clips(folder, _audio_names(folder), machine, None, rows, found, scan)
    for section, (table, listed) in sorted(rows.items()):
        here = {name for where, name in found if where == section}
        scan.rows_without_file += [(table, name) for name in sorted(set(listed) - here)]


def _add_clips(
    folder: Path,
    names: list[str],
    machine: str,
    split: Split | None,
    rows: dict[str, tuple[Path, dict[str, tuple[tuple[str, str], ...]]]],
    found: set[tuple[str, str]],
    scan: DcaseScan,
) -> None:
    strange: list[str] = []
    for file in names:
        name = parse_name(file)
        if name is None:
            strange.append(file)
            continue
        part = split or name.split or Split.TEST
        if part is Split.TRAIN and name.condition is Condition.ANOMALY:
            raise OffkeyError(
                f"{folder / file} lies among the training clips but is named anomaly. Only normal clips "
                "are learned from: move it to the test clips or leave it out"
            )
        key = stem(file)
        listed = rows.get(name.section, (folder, {}))[1]
        found.add((name.section, key))
        if name.section in rows and key not in listed and part is Split.TRAIN:
            scan.without_row.append(folder / file)
        domain = name.domain
        if domain is Domain.UNKNOWN and folder.name.lower() in ("source_test", "target_test"):
            domain = Domain(folder.name.lower().removesuffix("_test"))
        scan.hints.add(name.style)
        if "noattribute" in file.lower():
            scan.hints.add("hidden")
        scan.clips.append(
            ClipMeta(
                path=folder / file,
                machine=machine,
                section=name.section,
                domain=domain,
                condition=Condition.NORMAL if part is not Split.TEST else name.condition,
                split=part,
                attributes=listed.get(key) or name.attributes,
                content=name.content if part is Split.SUPPLEMENTAL else Content.MIXTURE,
            )
        )
    if strange:
        scan.remarks.append(
            f"{machine}: {len(strange)} recordings without a DCASE name are left out, such as {folder / strange[0]}"
        )


def _read_tables(folder: Path, scan: DcaseScan) -> dict[str, tuple[Path, dict[str, tuple[tuple[str, str], ...]]]]:
    """Section -> (table, attributes a clip by its name without folders and ending)."""
    tables: dict[str, tuple[Path, dict[str, tuple[tuple[str, str], ...]]]] = {}
    for path in sorted(folder.glob("*.csv")):
        match = _TABLE.fullmatch(path.name)
        if match is None:
            continue
        scan.tables.append(path)
        rows = tables.setdefault(match[1], (path, {}))[1]
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                lines = list(csv.reader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise OffkeyError(f"{path} cannot be read as a table of attributes: {error}") from None
        for cells in lines:
            cells = [cell.strip() for cell in cells]
            if not cells or not cells[0] or parse_name(cells[0]) is None:
                continue  # the header, and lines left empty
            pairs = zip(cells[1::2], cells[2::2], strict=False)
            rows[stem(cells[0])] = tuple((k, v) for k, v in pairs if k and v and v.lower() != _HIDDEN)
    return tables
