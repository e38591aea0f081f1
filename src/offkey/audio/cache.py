"""A bounded folder of arrays on disk, shared by threads and processes.

Each entry is one `.npy` file that is memory-mapped when read. Entries appear whole or not at all (written
under a temporary name, then renamed), and the least recently used ones go first.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

__all__ = ["ArrayCache", "content_key", "default_cache_dir"]

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{3,199}")
_ABANDONED_AFTER = 3600.0  # seconds; a temporary file older than this belongs to a process that died
_RESCAN_SHARE = 0.05  # how much of the bound one process writes before it looks at the folder again


def default_cache_dir() -> Path:
    """Where arrays are cached: `$OFFKEY_CACHE`, else `$XDG_CACHE_HOME/offkey`, else `~/.cache/offkey`."""
    own = os.environ.get("OFFKEY_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "offkey"


class ArrayCache:
    """Arrays by key in `folder`, at most about `max_bytes` of them.

    The bound is kept by each process on what it last saw and wrote, so that several processes together may
    pass it by about 5 % each for a short time. A cache is never needed for a right answer: where the
    folder cannot be written, one warning says so and everything goes on without it.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> cache = ArrayCache(Path(folder.name), max_bytes=10_000)
    >>> cache.get("abcd") is None
    True
    >>> cache.put("abcd", np.arange(3.0))
    True
    >>> cache.get("abcd")
    memmap([0., 1., 2.])
    >>> folder.cleanup()
    """

    def __init__(self, folder: Path, max_bytes: int = 4_000_000_000) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive, got {max_bytes}")
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._total: int | None = None  # bytes in the folder at the last look plus own writes since
        self._since_scan = 0
        self._warned = False

    def __repr__(self) -> str:
        return f"ArrayCache({str(self.folder)!r}, max_bytes={self.max_bytes})"

    def path(self, key: str) -> Path:
        """Where the entry of `key` lies; raises ValueError for a key that is no plain word."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"cache key {key!r} must be 4 to 200 letters, digits, '-' or '_'")
        return self.folder / key[:2] / f"{key}.npy"

    def get(self, key: str) -> NDArray[Any] | None:
        """The array of `key`, memory-mapped and read-only, or None; reading marks it as recently used.

        A damaged entry (cut short, grown, or no array at all) is removed and counts as absent. Each mapped
        array holds a file handle while it lives, so copy what is to be kept of many.
        """
        path = self.path(key)
        try:
            size = path.stat().st_size
            try:
                array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            except ValueError:
                # An array without elements cannot be mapped; anything else that fails here is damage.
                array = np.load(path, mmap_mode=None, allow_pickle=False)
                array.flags.writeable = False
            header = array.offset if isinstance(array, np.memmap) else size
            if isinstance(array, np.memmap) and header + array.nbytes != size:
                raise ValueError("the file is longer than its header says")
            os.utime(path)
        except OSError:  # absent, or out of file handles: no reason to remove anything
            return None
        except (ValueError, EOFError, SyntaxError):
            with suppress(OSError):
                path.unlink()
            return None
        return array

    def put(self, key: str, array: NDArray[Any]) -> bool:
        """Keep `array` under `key`; False where it was not kept (too large, or the folder cannot be written).

        Raises ValueError for an array of Python objects: those would need pickle.
        """
        path = self.path(key)
        array = np.asarray(array)
        if array.dtype.hasobject:
            raise ValueError("arrays of Python objects are not cached")
        if array.nbytes + 512 > self.max_bytes:
            return False
        temporary = path.with_name(f".{key}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
                size = file.tell()
            os.replace(temporary, path)  # noqa: PTH105 - the atomic step, named as such
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            if not self._warned:
                self._warned = True
                warnings.warn(f"nothing can be cached in {self.folder}: {error}", RuntimeWarning, stacklevel=2)
            return False
        with self._lock:
            self._since_scan += size
            if self._total is not None:
                self._total += size
            if self._total is None or self._total > self.max_bytes or self._since_scan > _RESCAN_SHARE * self.max_bytes:
                self._shrink()
        return True

    def fetch(self, key: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of `key`; made, and kept for the next time, where it is absent."""
        found = self.get(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found

    def _shrink(self) -> None:
        """Look at the folder; over the bound, remove the least recently used down to 90 % of it."""
        entries: list[tuple[float, int, Path]] = []
        now = time.time()
        for path in self.folder.glob("??/*"):
            try:
                facts = path.stat()
                if path.suffix == ".npy":
                    entries.append((facts.st_mtime, facts.st_size, path))
                elif path.suffix == ".tmp" and now - facts.st_mtime > _ABANDONED_AFTER:
                    path.unlink()
            except OSError:  # gone meanwhile: another process tidies up too
                continue
        total = sum(size for _, size, _ in entries)
        if total > self.max_bytes:
            for _, size, path in sorted(entries, key=lambda entry: (entry[0], str(entry[2]))):
                if total <= 0.9 * self.max_bytes:
                    break
                try:
                    path.unlink()
                except FileNotFoundError:
                    pass
                except OSError:
                    continue  # some systems refuse while the file is mapped
                total -= size
        self._total = total
        self._since_scan = 0


_hashes: dict[tuple[str, int, int], bytes] = {}


def content_key(path: Path, *parts: str | int | float | bool | BaseModel | None) -> str:
    """32 hex digits that stand for the content of a file together with the settings `parts`.

    Two files of the same content share a key whatever their names. The content is hashed once per path, size
    and modification time (a file rewritten within the clock's tick, with the same size, is not noticed).
    """
    facts = path.stat()
    identity = (str(path), facts.st_size, facts.st_mtime_ns)
    digest = _hashes.get(identity)
    if digest is None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        _hashes[identity] = digest
    mixed = hashlib.blake2b(digest, digest_size=16)
    for part in parts:
        text = part.model_dump_json() if isinstance(part, BaseModel) else repr(part)
        name = f"{type(part).__name__}:{text}".encode()
        mixed.update(len(name).to_bytes(8, "little") + name)  # lengths keep ("a", "b") apart from ("ab",)
    return mixed.hexdigest()
