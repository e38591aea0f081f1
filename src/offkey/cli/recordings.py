"""Recordings that a command is given: which files they are, and names for what is written of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from offkey.files import same_name

__all__ = ["folder_or_file", "own_names"]


def folder_or_file(path: Path) -> list[Path]:
    """A file is itself; a folder is the recordings in it and below, sorted, also those that nobody here can decode."""
    if not path.is_dir():
        return [path]
    from offkey.audio.io import AUDIO_SUFFIXES, UNREADABLE_SUFFIXES
    from offkey.data.folder import walk

    return sorted(file for file in walk(path) if file.suffix.lower() in AUDIO_SUFFIXES | UNREADABLE_SUFFIXES)


def own_names(files: Sequence[Path]) -> list[str]:
    """A name a file, its own where no other has it; no two differ in case alone, for disks that see no difference."""
    keys = [same_name(file.stem) for file in files]
    counts = Counter(keys)
    taken = {key for key in keys if counts[key] == 1}
    names = []
    for number, (file, key) in enumerate(zip(files, keys, strict=True)):
        name = file.stem
        if counts[key] > 1:
            name = f"{number:04d}_{name}"
            while same_name(name) in taken:
                name = f"{number:04d}_{name}"
            taken.add(same_name(name))
        names.append(name)
    return names
