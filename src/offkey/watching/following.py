"""Recordings in the order of their time, and a folder into which a recorder writes new ones."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from offkey.audio.headers import read_promise
from offkey.audio.io import AUDIO_SUFFIXES
from offkey.data.folder import walk

__all__ = ["by_time", "follow", "recordings"]

_PATIENCE = 60.0


def by_time(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sorts names with numbers in them as people read them: clip_2 before clip_10, 2024-05-01 before 2024-05-02.

    >>> sorted([Path("c10.wav"), Path("c2.wav")], key=by_time)[0].name
    'c2.wav'
    """
    parts = re.split(r"(\d+)", str(path))
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part)


def recordings(folder: Path) -> list[Path]:
    """The recordings in a folder and below, in the order of their names; hidden ones are left out."""
    return sorted((file for file in walk(folder) if file.suffix.lower() in AUDIO_SUFFIXES), key=by_time)


def follow(
    folders: list[Path],
    done: Callable[[Path], bool],
    poll: float = 2.0,
    idle: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Path]:
    """Recordings in `folders` that are not `done`, and then new ones as they come, looked for every `poll` seconds.

    One that is still being written is left for later: a file is taken when its size has stayed the same since the last
    look and its header does not promise more sound than is there, or when nothing was added to it for a minute (it is
    then handed out as it is, and will be named as cut short). Ends when nothing new has come for `idle` seconds (None:
    never).
    """
    sizes: dict[Path, tuple[int, float]] = {}  # size, and since when it has been that
    clock = quiet_since = 0.0
    while True:
        found = []
        for path in sorted({file for folder in folders for file in recordings(folder)}, key=by_time):
            if done(path):
                continue
            try:
                size = path.stat().st_size
            except OSError:
                continue  # gone again
            before = sizes.get(path)
            if before is None or before[0] != size:
                sizes[path] = (size, clock)
                quiet_since = clock
            elif (size and _whole(path)) or clock - before[1] >= _PATIENCE:
                found.append(path)
        for path in found:
            sizes.pop(path, None)
            yield path
        if found:
            quiet_since = clock
            continue
        if idle is not None and clock - quiet_since >= idle:
            return
        sleep(poll)
        clock += poll


def _whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            promise = read_promise(file)
    except OSError:
        return False
    return promise.share >= 1.0 and promise.ended
