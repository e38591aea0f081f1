"""DCASE data brought to this disk: resumed, verified by the records' checksums, unpacked as the organisers lay it out.

Below the user's root stands `dcase2025t2/{dev_data,eval_data}/raw/<machine>/{train,test,supplemental}/` with the tables
of attributes; both halves of an evaluation machine (training clips, test clips) share one folder. Beside it,
`dcase2025t2.lock.json` keeps what each record said of its files when first asked: later runs accept nothing else.
"""

from __future__ import annotations

import filecmp
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from offkey.data.archives import LIMITS, ArchiveError, Limits, survey, unpack
from offkey.data.catalog import PARTS, Archive, Dataset, chosen, dataset
from offkey.data.records import (
    PATIENT,
    FetchError,
    Pin,
    Record,
    agreed,
    ask_record,
    bases,
    lock_file,
    pin_of,
    read_lock,
    write_lock,
)
from offkey.downloading import DownloadError, Patience, download, megabytes, mismatch, one_at_a_time
from offkey.files import write_whole
from offkey.progress import Progress, Quiet

__all__ = ["FetchError", "Outcome", "Plan", "data_folder", "fetch", "prepare"]

_SPLITS = {"train", "test", "source_test", "target_test", "supplemental", "supplementary"}
_GROWS = 1.4  # unpacked to packed size of 16-bit machine noise, at the most; for the estimate before a download
_STATE = ".fetched.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fetch will do: `pending` archives with their pins; `present` ones are unpacked already.

    `found` are archives that the user has (`--from`), `absent` those that were looked for there in vain.
    """

    dataset: Dataset
    folder: Path
    pending: tuple[tuple[Archive, Pin], ...]
    present: tuple[Archive, ...]
    records: tuple[Record, ...]
    mirror: str | None = None
    found: dict[str, Path] = field(default_factory=dict)
    absent: tuple[Archive, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def to_download(self) -> int:
        """Bytes still to come over the net, as far as sizes are known; what an earlier run began is taken off."""
        return sum(
            max(0, (pin.size or 0) - _begun(self.folder, archive))
            for archive, pin in self.pending
            if archive.file not in self.found
        )

    def needed(self, keep: bool) -> int:
        """Bytes of disk at the most, as far as sizes are known."""
        sizes = [pin.size or 0 for _, pin in self.pending]
        zips = sum(sizes) if keep else max(sizes, default=0)
        return round(_GROWS * sum(sizes)) + (0 if self.found and not keep else zips)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fetch did: archives `done` now, `present` before, and `failed` with the reason."""

    folder: Path
    done: tuple[Archive, ...] = ()
    present: tuple[Archive, ...] = ()
    failed: tuple[tuple[Archive, str], ...] = ()


def data_folder(root: Path, name: str | Dataset) -> Path:
    """The folder of a data set below the user's root: `DIR/dcase2025t2`."""
    return Path(root) / dataset(name).folder


def prepare(
    name: str | Dataset,
    root: Path,
    machines: Iterable[str] = (),
    parts: Iterable[str] = PARTS,
    mirror: str | None = None,
    source: Path | None = None,
    progress: Progress | None = None,
    patience: Patience = PATIENT,
) -> Plan:
    """Find out what is to be fetched: what is here, what the records say (licence, sizes, checksums), what is pinned.

    `mirror` is an address that is asked before Zenodo, with Zenodo's paths (`/api/records/N`, `/records/N/files/NAME`)
    or the bare file names below it. `source` is a folder of zips that the user has: then nothing is downloaded.
    `name` may be a Dataset of `offkey.data.catalog.read_catalog`.

    Nothing of the data comes over the net here. Raises CatalogError for an unknown name, machine or part; FetchError
    where a record has changed since it was pinned, lacks a file, or cannot be asked while something is not pinned.
    """
    told = progress or Quiet()
    which = dataset(name)
    archives = chosen(which, machines, parts)
    folder = Path(root) / which.folder
    if source is not None and not source.is_dir():
        raise FetchError(f"{source} is no folder; give the one that holds the zips")
    lock = lock_file(folder)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(lock, told, patience.sleep):
        _sweep(lock.parent, f".{lock.name}.*.part")
        known = read_lock(lock, which.private)
        pins = {archive.file: pin_of(archive, known) for archive in archives}
        present = tuple(archive for archive in archives if _is_whole(folder, archive, pins[archive.file]))
        wanted = [archive for archive in archives if archive not in present]
        found = _look_for(wanted, source) if source is not None else {}
        absent = tuple(archive for archive in wanted if archive.file not in found) if source is not None else ()
        wanted = [archive for archive in wanted if archive not in absent]
        remarks: list[str] = []
        for number in dict.fromkeys(archive.record for archive in wanted):
            mine = [archive for archive in wanted if archive.record == number]
            try:
                asked = ask_record(number, folder, mirror, told, patience)
            except DownloadError as error:
                if source is None and any(pins[archive.file].md5 is None for archive in mine):
                    raise
                remarks.append(
                    f"record {number} could not be asked ({str(error).splitlines()[0]}); what is pinned holds"
                )
                continue
            known[number] = agreed(asked, known.get(number), mine)
        if known or which.private:
            write_lock(lock, which.name, known, which.private)
    pending = tuple((archive, pin_of(archive, known)) for archive in wanted)
    records = tuple(known[number] for number in dict.fromkeys(a.record for a in wanted) if number in known)
    return Plan(which, folder, pending, present, records, mirror, found, absent, tuple(remarks))


def fetch(
    plan: Plan,
    keep: bool = False,
    progress: Progress | None = None,
    patience: Patience = PATIENT,
    limits: Limits = LIMITS,
) -> Outcome:
    """Do what `plan` says, archive by archive; one that fails does not keep the others.

    An archive is downloaded (or taken from the user's folder, where it stays), verified, unpacked beside its place,
    moved there when whole, and noted in the machine's folder; then the zip is removed, unless `keep`. A call after a
    kill goes on at the very step.

    Raises FetchError before the first byte where the disk is too small for all of it.
    """
    told = progress or Quiet()
    plan.folder.mkdir(parents=True, exist_ok=True)
    needed, free = plan.needed(keep) - _already(plan), shutil.disk_usage(plan.folder).free
    if needed > free:
        raise FetchError(
            f"{plan.dataset.name} needs about {megabytes(needed)} on the disk of {plan.folder}, where "
            f"{megabytes(free)} are free; make room, choose another --root, or fetch fewer --machines or --parts"
        )
    done: list[Archive] = []
    failed: list[tuple[Archive, str]] = [(archive, "it is not in the folder given") for archive in plan.absent]
    begun, total = time.monotonic(), sum(pin.size or 0 for _, pin in plan.pending)
    come = 0
    with one_at_a_time(plan.folder / ".fetch", told, patience.sleep):
        for archive, pin in plan.pending:
            try:
                zipped = _bring(plan, archive, pin, keep, told, patience)
                _install(plan, archive, pin, zipped, keep, limits, told)
            except (ArchiveError, DownloadError, FetchError) as error:
                failed.append((archive, str(error)))
                told.say(f"{archive.file}: failed; going on with the others")
                continue
            if not keep and archive.file not in plan.found:
                zipped.unlink(missing_ok=True)
            done.append(archive)
            come += pin.size or 0
            left = (total - come) * (time.monotonic() - begun) / come if come else 0.0
            told.say(
                f"{archive.file}: done, {len(done)} of {len(plan.pending)}"
                + (f", about {_minutes(left)} left" if left > 1.0 else "")
            )
        _tidy(plan)
    return Outcome(plan.folder, tuple(done), plan.present, tuple(failed))


def _look_for(wanted: Sequence[Archive], source: Path) -> dict[str, Path]:
    """The user's zips by name, wherever they lie below the folder."""
    names = {archive.file for archive in wanted}
    found: dict[str, Path] = {}
    for path in sorted(source.rglob("*.zip")):
        if path.name in names and path.is_file():
            found.setdefault(path.name, path)
    return found


def _begun(folder: Path, archive: Archive) -> int:
    for name in (archive.file, f"{archive.file}.part"):
        path = folder / ".zips" / name
        if path.is_file():
            return path.stat().st_size
    return 0


def _already(plan: Plan) -> int:
    """Bytes that an earlier run left on the disk already."""
    there = sum(_begun(plan.folder, archive) for archive, _ in plan.pending)
    for archive, _ in plan.pending:
        for place in (
            _ready(plan.folder, archive),
            _ready(plan.folder, archive).with_name(f".{archive.file}.ready.part"),
        ):
            there += sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return there


def _bring(plan: Plan, archive: Archive, pin: Pin, keep: bool, progress: Progress, patience: Patience) -> Path:
    """The verified zip: the user's own, or downloaded."""
    place = plan.folder / ".zips" / archive.file
    own = plan.found.get(archive.file)
    if own is None:
        path = f"/records/{archive.record}/files/{archive.file}"
        urls = [base + path for base in bases(plan.mirror)]
        urls[-1] += "?download=1"
        if plan.mirror:
            urls.insert(1, f"{plan.mirror.rstrip('/')}/{archive.file}")
        return download(urls, place, size=pin.size, digest=pin.digest, progress=progress, patience=patience)
    problem = mismatch(own, pin.size, pin.digest)
    if problem is not None:
        raise FetchError(
            f"{own} is not {archive.file} of record {archive.record}: {problem}. It was left as it is; fetch it again"
        )
    if pin.md5 is None:
        progress.say(f"{own}: nobody vouches for it here (no checksum is known); it is taken as it is")
    if keep and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.hardlink_to(own)
        except OSError:  # another disk, or no links there
            temporary = place.with_name(f"{place.name}.copy")
            try:
                shutil.copyfile(own, temporary)
                temporary.replace(place)
            except OSError as error:
                raise FetchError(f"{own} cannot be copied to {place}: {error.strerror or error}") from error
            finally:
                temporary.unlink(missing_ok=True)
    return own


def _ready(folder: Path, archive: Archive) -> Path:
    """Where an archive lies unpacked and whole until it is moved into the machine's folder; readers skip it."""
    return folder / archive.folder / f".{archive.file}.ready"


def _install(
    plan: Plan, archive: Archive, pin: Pin, zipped: Path, keep: bool, limits: Limits, progress: Progress
) -> None:
    """Unpack a zip and move it into the machine's folder."""
    ready = _ready(plan.folder, archive)
    home = plan.folder / archive.folder / archive.machine

    def place(name: str) -> str | None:
        return _place(zipped, archive, name)

    members = survey(zipped, place, limits)
    splits = {PurePosixPath(member.place).parts[0] for member in members} & _SPLITS
    if not splits:
        raise FetchError(
            f"{zipped} holds no train, test or supplemental folder of {archive.machine}; nothing was unpacked"
        )
    tables = [member for member in members if member.place.lower().startswith("attribute")]
    if plan.dataset.year >= 2022 and "train" in splits and not tables:
        progress.say(f"{archive.file} has no table of attributes; settings are read from the names of the clips")
    if not ready.is_dir():
        unpack(zipped, ready, place, limits, progress)
    try:
        _merge(ready, home, archive)
        counts = Counter(str(PurePosixPath(member.place).parent) for member in members)
        state = _read_state(home)
        state[archive.file] = {
            "md5": pin.md5,
            "bytes": sum(member.size for member in members),
            "files": dict(sorted(counts.items())),
            "zip_kept": keep,
        }
        write_whole(home / _STATE, json.dumps(state, indent=1, sort_keys=True) + "\n")
        shutil.rmtree(ready)
    except OSError as error:
        raise FetchError(
            f"{archive.file} cannot be moved to {home}: {error.filename or ''}: {error.strerror or error}; "
            "the same command goes on from there"
        ) from error


def _place(zipped: Path, archive: Archive, name: str) -> str | None:
    """Where a member goes below its machine's folder; archives begin at the machine's folder or right in it."""
    parts = PurePosixPath(name).parts
    if archive.machine in parts[:-1]:
        return "/".join(parts[parts.index(archive.machine) + 1 :])
    for at, part in enumerate(parts[:-1]):
        if part.lower() in _SPLITS:
            return "/".join(parts[at:])
    if len(parts) == 1:
        return name
    raise FetchError(
        f"{zipped} holds {name}, which is nothing of {archive.machine}: is it the right archive? Nothing was unpacked"
    )


def _merge(ready: Path, home: Path, archive: Archive) -> None:
    """Move everything into the machine's folder; refuses before the first move where a file there differs."""
    moves: list[tuple[Path, Path]] = []
    for path in sorted(path for path in ready.rglob("*") if path.is_file()):
        target = home / path.relative_to(ready)
        if target.exists() and not filecmp.cmp(path, target, shallow=False):
            if path.parent != ready:
                raise FetchError(
                    f"{target} is there already and differs from the one in {archive.file}; move {home} away, "
                    "or choose another --root"
                )
            # two tables of attributes of one machine: both are read
            target = target.with_name(f"{target.stem}_{archive.part}{target.suffix}")
        moves.append((path, target))
    for folder in dict.fromkeys(target.parent for _, target in moves):
        folder.mkdir(parents=True, exist_ok=True)  # all of them first: moving needs no room, these may
    for path, target in moves:
        path.replace(target)


def _read_state(home: Path) -> dict[str, Any]:
    try:
        told = json.loads((home / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _is_whole(folder: Path, archive: Archive, pin: Pin) -> bool:
    """Whether an archive was unpacked here and its files are still there (counted, not read)."""
    home = folder / archive.folder / archive.machine
    state = _read_state(home).get(archive.file)
    if not isinstance(state, dict) or (pin.md5 and state.get("md5") and state["md5"] != pin.md5):
        return False
    try:
        return all(
            sum(entry.is_file() for entry in (home / where).iterdir()) >= count
            for where, count in state["files"].items()
        )
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _tidy(plan: Plan) -> None:
    """Remove what a kill left of archives that are here, and empty folders of ours; kept zips stay."""
    zips = plan.folder / ".zips"
    for archive in (*(archive for archive, _ in plan.pending), *plan.present):
        _sweep(plan.folder / archive.folder / archive.machine, f".{_STATE}.*.part")
    _sweep(zips, ".*.part")
    _sweep(zips, "record-*")
    for archive in plan.present:
        shutil.rmtree(_ready(plan.folder, archive), ignore_errors=True)
        if _read_state(plan.folder / archive.folder / archive.machine)[archive.file].get("zip_kept") is False:
            (zips / archive.file).unlink(missing_ok=True)
    if zips.is_dir() and not any(zips.iterdir()):
        zips.rmdir()


def _sweep(folder: Path, pattern: str) -> None:
    """Remove files of ours that were being written when a process died."""
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
