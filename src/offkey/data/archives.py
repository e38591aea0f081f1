"""Zip archives from strangers, unpacked safely.

Everything is looked at before, limits hold while writing, and the folder appears whole or not at all.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from offkey.downloading import megabytes
from offkey.files import same_name
from offkey.progress import Progress, Quiet
from offkey.types import OffkeyError

__all__ = ["ArchiveError", "Limits", "Member", "survey", "unpack"]

_BLOCK = 1 << 20
_LOCAL_HEADER = 30  # bytes before a member's name and content, at the least
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_LITTER = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|Thumbs\.db$|desktop\.ini$)")


class ArchiveError(OffkeyError):
    """An archive is damaged or not to be trusted, or there is no room for it; nothing of it was left behind."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may hold at the most; recordings shrink by less than half, so honest ones stay far below.

    `total` and `member` in bytes; `ratio` of unpacked to packed size, over the whole archive and (from 1 MB on) a
    member; `members` counts entries.
    """

    total: int = 200_000_000_000
    member: int = 4_000_000_000
    ratio: float = 100.0
    members: int = 500_000


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive: where it goes (relative, forward slashes), its unpacked size and CRC-32."""

    name: str
    place: str
    size: int
    crc: int


LIMITS = Limits()


def survey(
    archive: Path, place: Callable[[str], str | None] | None = None, limits: Limits = LIMITS
) -> tuple[Member, ...]:
    """The files that `unpack` would write, in the archive's order.

    `place` says where a member goes by its name, None for one to leave out. Litter of desktop systems and folders are
    left out. Raises ArchiveError for a file that is no whole zip archive, and for any member that is encrypted, a link
    or a special file, leads out of the folder, is there twice (also where only case or accents' spelling differ), or
    passes a limit.
    """
    with _opened(archive) as zipped:
        return _survey(archive, zipped, place or (lambda name: name), limits)


def unpack(
    archive: Path,
    folder: Path,
    place: Callable[[str], str | None] | None = None,
    limits: Limits = LIMITS,
    progress: Progress | None = None,
) -> tuple[Member, ...]:
    """Unpack `archive` to `folder`, which must not exist; returns the files that are in it.

    Work is done in a hidden folder beside (`.NAME.part`), renamed when everything is there and every CRC-32 agrees. A
    call after a kill goes on where that one stopped: what is there is checked, not trusted.

    Raises ArchiveError as `survey` does, and where there is no room or the content is damaged; the hidden folder is
    then removed.
    """
    told = progress or Quiet()
    if folder.exists():
        raise ArchiveError(f"{folder} is there already; {archive.name} was not unpacked over it")
    work = folder.with_name(f".{folder.name}.part")
    with _opened(archive) as zipped:
        members = _survey(archive, zipped, place or (lambda name: name), limits)
        try:
            work.mkdir(parents=True, exist_ok=True)
            left = _what_is_left(work, members)
            _room(archive, folder, sum(member.size for member in left))
            _extract(archive, zipped, work, members, left, told)
            work.replace(folder)
        except ArchiveError:
            shutil.rmtree(work, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise ArchiveError(f"{archive.name} cannot be unpacked to {folder}: {_said(error, folder)}") from error
    return members


def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except FileNotFoundError:
        raise ArchiveError(f"{archive} is not there") from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ArchiveError(
            f"{archive} is no whole zip archive ({error}): it may be cut short. Remove it and fetch it again"
        ) from error


def _survey(
    archive: Path, zipped: zipfile.ZipFile, place: Callable[[str], str | None], limits: Limits
) -> tuple[Member, ...]:
    entries = zipped.infolist()
    if len(entries) > limits.members:
        raise _refused(archive, f"it has {len(entries)} entries, more than {limits.members}")
    _no_overlap(archive, entries)
    members: list[Member] = []
    for entry in entries:
        _check_entry(archive, entry, limits)
        if entry.is_dir() or _LITTER.search(entry.filename):
            continue
        goes = place(str(PurePosixPath(entry.filename)))
        if goes is not None:
            _check_name(archive, goes)
            members.append(Member(entry.filename, str(PurePosixPath(goes)), entry.file_size, entry.CRC))
    total, packed = sum(entry.file_size for entry in entries), archive.stat().st_size
    if total > limits.total:
        raise _refused(archive, f"it would unpack to {megabytes(total)}, more than {megabytes(limits.total)}")
    if total > limits.ratio * max(packed, 100_000):
        raise _refused(
            archive, f"{megabytes(packed)} would unpack to {megabytes(total)}: no recordings shrink so, a zip bomb does"
        )
    _no_clash(archive, members)
    return tuple(members)


def _check_entry(archive: Path, entry: zipfile.ZipInfo, limits: Limits) -> None:
    name = entry.orig_filename  # `filename` ends at the first NUL
    _check_name(archive, name)
    if entry.flag_bits & _ENCRYPTED:
        raise _refused(archive, f"{name!r} is encrypted")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(archive, f"{name!r} is {'a link' if kind == stat.S_IFLNK else 'a special file'}, no recording")
    if entry.file_size > limits.member:
        raise _refused(archive, f"{name!r} would unpack to {megabytes(entry.file_size)}")
    if entry.file_size > 1_000_000 and entry.file_size > limits.ratio * max(entry.compress_size, 1):
        raise _refused(
            archive,
            f"{name!r} would unpack from {megabytes(entry.compress_size)} to {megabytes(entry.file_size)}: "
            "no recording shrinks so, a zip bomb does",
        )


def _check_name(archive: Path, name: str) -> None:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise _refused(archive, f"{name!r} leads out of the folder")
    if not name.strip("/. ") or "\\" in name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise _refused(archive, f"{name!r} is no name for a file")
    if any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts):
        raise _refused(archive, f"a name is longer than 255 bytes: {name[:60]!r}…")


def _no_overlap(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Members that share bytes are how a small archive unpacks to petabytes without a single strange ratio."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise _refused(archive, f"{entry.orig_filename!r} shares its bytes with another member: a zip bomb does")
        end = entry.header_offset + _LOCAL_HEADER + entry.compress_size


def _no_clash(archive: Path, members: list[Member]) -> None:
    """One file a name on every file system: names are compared without case and in one spelling of accents."""
    seen: dict[str, str] = {}  # one spelling of a file or folder -> the first one that was met
    files: set[str] = set()
    for member in members:
        path = PurePosixPath(member.place)
        for name in map(str, (path, *path.parents[:-1])):
            key = same_name(name)
            if seen.setdefault(key, name) != name:
                raise _refused(archive, f"{name!r} differs from {seen[key]!r} in case or accents only")
        if member.place in files:
            raise _refused(archive, f"{member.place!r} is there twice")
        files.add(member.place)
    for member in members:
        above = {str(parent) for parent in PurePosixPath(member.place).parents} & files
        if above:
            raise _refused(archive, f"{above.pop()!r} is a file, and a folder for {member.place!r}")


def _refused(archive: Path, why: str) -> ArchiveError:
    return ArchiveError(f"{archive} is not unpacked: {why}. Fetch it again from the organisers' record")


def _what_is_left(work: Path, members: tuple[Member, ...]) -> list[Member]:
    """The members that an earlier call did not finish; what does not belong is removed."""
    expected = {work / member.place: member for member in members}
    whole: set[str] = set()
    for path in [path for path in work.rglob("*") if path.is_symlink() or not path.is_dir()]:
        member = expected.get(path)
        right_size = member is not None and not path.is_symlink() and path.stat().st_size == member.size
        if member is not None and right_size and _crc(path) == member.crc:
            whole.add(member.place)
        else:
            path.unlink()
    return [member for member in members if member.place not in whole]


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _room(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise ArchiveError(
            f"{archive.name} needs {megabytes(needed)} on the disk of {folder.parent}, where {megabytes(free)} are "
            "free; make room, or choose another folder"
        )


def _extract(
    archive: Path,
    zipped: zipfile.ZipFile,
    work: Path,
    members: tuple[Member, ...],
    left: list[Member],
    progress: Progress,
) -> None:
    total = sum(member.size for member in members)
    done = total - sum(member.size for member in left)
    progress.start(f"unpacking {archive.name}, MB", -(-total // 1_000_000), done // 1_000_000)
    begun, first, told = time.monotonic(), done, done
    temporary = work.with_name(f"{work.name}.file")  # beside: no member can have its name
    try:
        for member in left:
            _write_member(archive, zipped, member, temporary)
            target = work / member.place
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
            done += member.size
            if done - told >= 1_000_000 or done == total:
                told = done
                rate = (done - first) / 1e6 / max(time.monotonic() - begun, 1e-3)
                progress.step(-(-done // 1_000_000) if done == total else done // 1_000_000, f"{rate:.1f} MB/s")
    finally:
        temporary.unlink(missing_ok=True)


def _write_member(archive: Path, zipped: zipfile.ZipFile, member: Member, path: Path) -> None:
    written = 0
    try:
        # the entry of this very name and place: duplicates were refused
        with zipped.open(member.name) as packed, path.open("wb") as file:
            while block := packed.read(_BLOCK):
                written += len(block)
                if written > member.size:
                    raise _refused(archive, f"{member.name!r} unpacks to more than the {member.size} bytes it promises")
                file.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ArchiveError(
            f"{archive} is damaged: {member.name!r} cannot be unpacked ({error}). Remove it and fetch it again"
        ) from error
    if written != member.size:
        raise ArchiveError(
            f"{archive} is damaged: {member.name!r} has {written} bytes, not {member.size}. Remove it, fetch it again"
        )


def _said(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"the disk of {folder.parent} is full; make room, or choose another folder"
    return f"{error.filename or os.fspath(folder)}: {error.strerror or error}"
