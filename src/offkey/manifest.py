"""What makes a folder whole: `manifest.json`, with its kind, a format number, size and SHA-256 of every other file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from offkey.files import sha256, sweep, write_whole
from offkey.types import OffkeyError

__all__ = ["MANIFEST", "Kind", "ManifestError", "read_manifest", "write_manifest"]

MANIFEST = "manifest.json"


class ManifestError(OffkeyError):
    """A folder that is not whole, was changed, or is newer than this offkey."""


class Kind(NamedTuple):
    """What a folder holds.

    `name` of it ("detector"), unlike that of any other kind, the newest `format` that is read, files that are `always`
    there, the command that `make`s one, and folders that it may hold (`inner`; `*` stands for any name).
    """

    name: str
    format: int
    always: tuple[str, ...]
    make: str
    inner: tuple[str, ...] = ()


def write_manifest(folder: Path, names: Iterable[str], kind: Kind) -> None:
    """Tell of the files `names`, paths below `folder` with "/" between, which are all there.

    What an earlier, killed process left half-written is removed.
    """
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}
    sweep(folder)
    write_whole(folder / MANIFEST, json.dumps({"kind": kind.name, "format": kind.format, "files": files}, indent=1))


def read_manifest(folder: Path, kind: Kind) -> Mapping[str, tuple[int, str]]:
    """Size and SHA-256 of every file that the manifest tells of, each of which was found to be so.

    Raises ManifestError where there is no manifest, it is another kind's, damaged, newer, or names a file outside the
    folder, or a file is missing or not the one that was saved.
    """
    path = folder / MANIFEST
    again = f"fit the {kind.name} again"
    if not path.is_file():
        what = "is not a folder" if not folder.is_dir() else f"holds no finished {kind.name} (no {MANIFEST})"
        raise ManifestError(f"{folder} {what}; make one with `{kind.make} --out {folder}`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, files = int(manifest["format"]), dict(manifest["files"])
        told = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{path} is damaged ({error}); {again}") from error
    silent = [name for name in kind.always if name not in told]
    holds = manifest.get("kind", kind.name if not silent else _guess(told))
    if holds not in (kind.name, None):
        raise ManifestError(
            f"{folder} holds {_a(str(holds))}, not {_a(kind.name)}: name another folder, or make one with "
            f"`{kind.make} --out FOLDER`"
        )
    if version > kind.format:
        raise ManifestError(
            f"{folder} was written by a newer offkey (format {version}, this one reads up to {kind.format}); "
            "update offkey"
        )
    if silent:
        raise ManifestError(f"{path} is damaged (it says nothing of {', '.join(silent)}); {again}")
    for name, (size, digest) in told.items():
        file = folder / name
        if not _inside(name, kind.inner):
            raise ManifestError(f"{path} names a file outside its folder ({name!r}); it is not to be trusted")
        if not file.is_file():
            raise ManifestError(f"{file} is missing; copy the whole folder, or {again}")
        if file.stat().st_size != size or sha256(file) != digest:
            raise ManifestError(
                f"{file} is not the file that was saved (its hash differs): changed, or damaged on the way; "
                f"copy it again, or {again}"
            )
    return told


def _guess(names: Iterable[str]) -> str | None:
    """The kind of a folder whose manifest, as the first ones, does not tell it: by a file that no other kind has."""
    known = {"CARD.md": "detector", "export.json": "exported detector", "config.json": "separator"}
    return next((kind for name, kind in known.items() if name in names), None)


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def _inside(name: str, inner: tuple[str, ...]) -> bool:
    """Whether a name is that of a plain file in the folder, or in one of its `inner` folders."""

    def held(below: tuple[str, ...]) -> bool:
        ways = (PurePosixPath(pattern).parts for pattern in inner)
        return any(
            len(way) == len(below) and all(w in ("*", b) for w, b in zip(way, below, strict=True)) for way in ways
        )

    parts = PurePosixPath(name).parts
    plain = bool(parts) and "\\" not in name and all(part not in ("..", "/") for part in parts)
    return plain and "/".join(parts) == name and (len(parts) == 1 or held(parts[:-1]))
