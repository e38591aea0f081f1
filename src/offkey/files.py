"""Files are written whole or not at all: to a temporary name beside the place, then renamed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

__all__ = ["new_file_mode", "sha256", "write_whole"]


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write `content` (text as UTF-8) so that a reader sees the old file or the new one, never a part.

    Missing folders are made. Raises OSError (disk full, no permission); the old file is then untouched.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
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


def sha256(path: Path) -> str:
    """The hex SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def new_file_mode() -> int:
    """The permissions that a file newly made by this process usually has."""
    mask = os.umask(0o022)  # the process-wide mask can only be read by setting it
    os.umask(mask)
    return 0o666 & ~mask
