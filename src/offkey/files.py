"""Files are written whole or not at all: to a temporary name beside the place, then renamed."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

from offkey.types import OffkeyError

__all__ = ["check_file", "check_folder", "new_file_mode", "read_pairs", "same_name", "sha256", "sweep", "write_whole"]

_LEFT = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # mkstemp's eight letters


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write `content` (text as UTF-8) so that a reader sees the old file or the new one, never a part.

    Missing folders are made. A byte that is no UTF-8, as names of files may hold, is written as `\\udcfc`: so JSON has
    it too. Raises OSError (disk full, no permission, a folder in its place); the old file is then untouched.
    """
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    _refuse_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(new_file_mode())  # mkstemp made it private to its owner
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def check_file(path: Path) -> None:
    """Find out before long work whether a file can be written at `path`; raises OSError that says why not."""
    _refuse_folder(path)
    check_folder(path.parent)


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file", str(path))


def check_folder(path: Path) -> None:
    """Find out before long work whether `path` is, or can be made, a folder to write into; raises OSError if not."""
    held = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not held.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, where a folder is needed", str(held))
    if not os.access(held, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "nothing may be written into this folder", str(held))


def same_name(name: str) -> str:
    """What two names have in common that are one on some disks: case, and how accents are spelled, do not count.

    >>> same_name("L\u00fcfter") == same_name("lu\u0308fter")
    True
    """
    return unicodedata.normalize("NFC", name).casefold()


def read_pairs(path: Path, wrong: type[OffkeyError], form: str, fits: Callable[[str], bool]) -> dict[str, str]:
    """Name -> value of a headerless CSV file with two columns, in its order; a name stands there once.

    Raises `wrong` that names file and line where the file cannot be read, a row is not of the `form` that is told, or
    its value does not fit, or a name is there twice.
    """
    rows: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(f"{path} cannot be read ({error})") from None
    for line, cells in enumerate(csv.reader(io.StringIO(text)), start=1):
        if not cells:
            continue
        name, value = (cells[0].strip(), cells[1].strip()) if len(cells) == 2 else ("", "")
        if not name or not fits(value):
            raise wrong(f"{path}, line {line}: expected {form}, found {','.join(cells)!r}")
        if name in rows:
            raise wrong(f"{path}, line {line}: {name} is there twice; keep one row a clip")
        rows[name] = value
    return rows


def sweep(folder: Path) -> None:
    """Remove what `write_whole` left in `folder` and below when its process died; nobody may be writing there."""
    for path in [path for path in folder.rglob(".*.part") if _LEFT.fullmatch(path.name) and path.is_file()]:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The hex SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def new_file_mode() -> int:
    """The permissions that a file newly made by this process usually has."""
    mask = os.umask(0o022)  # the process-wide mask can only be read by setting it
    os.umask(mask)
    return 0o666 & ~mask
