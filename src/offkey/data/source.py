"""One door to every kind of data: a DCASE root, one machine of it, or a plain folder of recordings."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from offkey.audio.io import AUDIO_SUFFIXES, read_header
from offkey.data.dcase import DcaseScan, is_dcase, survey_dcase
from offkey.data.folder import Subfolders, survey_folder, walk
from offkey.types import ClipMeta, OffkeyError, Split

__all__ = ["NoRecordings", "Source", "open_source"]

_YEAR = re.compile(r"dcase[_-]?(20[23]\d)", re.IGNORECASE)
# Machines that only one year has.
_MACHINES = {
    2020: {"ToyConveyor"},
    2023: {"Vacuum", "ToyTank", "ToyNscale", "bandsaw", "grinder", "shaker"},
    2024: {"3DPrinter", "AirCompressor", "Scanner", "ToyCircuit", "HoveringDrone", "HairDryer", "RoboticArm",
    "BrushlessMotor"}, 2025: {"AutoTrash", "BandSealer", "CoffeeGrinder", "HomeCamera", "Polisher",
    "ScrewFeeder", "ToyPet", "ToyRCCar"}, 2026: {"SewingMachine", "BlowerDustCollector", "Sander"},
}  # fmt: skip


class NoRecordings(OffkeyError):
    """There is nothing to open: no folder, or no recording in it."""


@dataclass(frozen=True)
class Source:
    """The clips of a data set. `year` is the DCASE challenge whose rules it follows, None where unknown.

    `remarks` are sentences for people about what was left out or assumed.
    """

    root: Path
    kind: Literal["dcase", "folder"]
    year: int | None
    clips: list[ClipMeta]
    remarks: list[str] = field(default_factory=list)

    def train(self) -> list[ClipMeta]:
        """Normal clips to learn from."""
        return [clip for clip in self.clips if clip.split is Split.TRAIN]

    def test(self) -> list[ClipMeta]:
        """Clips to be scored; their condition is known in some data sets."""
        return [clip for clip in self.clips if clip.split is Split.TEST]

    def supplemental(self) -> list[ClipMeta]:
        """Clips of the machine alone or of noise alone."""
        return [clip for clip in self.clips if clip.split is Split.SUPPLEMENTAL]

    def machines(self) -> list[str]:
        """Names of the machines, sorted."""
        return sorted({clip.machine for clip in self.clips})


def open_source(path: Path, subfolders: Subfolders = "machines") -> Source:
    """Look at `path` and tell what it holds; opens no recording but one, for its header.

    `subfolders` says what the sub-folders of a plain folder are: `machines`, or `settings` of one machine.
    Raises `NoRecordings` where there is no folder or no recording, and `OffkeyError` for two data sets at
    once or faulty recordings among the training clips.
    """
    root = Path(path)
    if root.is_file():
        raise NoRecordings(f"{root} is a file. Name the folder that holds the recordings")
    if not root.is_dir():
        raise NoRecordings(f"there is no folder {root}. Check the path")
    if is_dcase(root):
        scan = survey_dcase(root)
        return Source(root, "dcase", _year(scan), scan.clips, scan.remarks)
    plain = survey_folder(root, subfolders)
    if not plain.clips:
        raise NoRecordings(f"no recordings in {root}: {_what_is_there(root)}")
    return Source(root, "folder", None, plain.clips, plain.remarks)


def _what_is_there(root: Path) -> str:
    """Words on what was looked for and what was seen instead."""
    endings = Counter(file.suffix.lower() or "(no ending)" for file in walk(root))
    seen = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(6)) or "no files at all"
    return (
        f"looked for files ending in {', '.join(sorted(AUDIO_SUFFIXES))} in it and its sub-folders, "
        f"found {seen}. Name a folder of recordings, or convert them to WAV or FLAC"
    )


def _year(scan: DcaseScan) -> int | None:
    """The challenge's year: by the folders' names, else by machines of one year only, else by the layout."""
    clips = scan.clips
    named = _YEAR.findall(str(clips[0].path.resolve()))
    if named:
        return int(named[-1])  # the folder nearest to the clips
    machines = {clip.machine for clip in clips}
    matching = [year for year, own in _MACHINES.items() if machines & own]
    if len(matching) == 1:
        return matching[0]
    if "id" in scan.hints:
        return 2020
    if "2021" in scan.hints:
        return 2021
    if any(clip.section != "00" for clip in clips):
        return 2022
    header = read_header(clips[0].path)
    if header is not None and header[1] == 2:
        return 2026
    if any(clip.split is Split.SUPPLEMENTAL for clip in clips):
        return 2025
    return 2024 if "hidden" in scan.hints else None
