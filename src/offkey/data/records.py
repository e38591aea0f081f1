"""What Zenodo's records say of their files, and the lock file that holds them to it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from offkey.data.catalog import Archive
from offkey.downloading import DownloadError, Patience, download
from offkey.files import write_whole
from offkey.progress import Progress, Quiet
from offkey.types import OffkeyError

__all__ = [
    "PATIENT",
    "ZENODO",
    "FetchError",
    "Pin",
    "Record",
    "agreed",
    "ask_record",
    "bases",
    "lock_file",
    "pin_of",
    "read_lock",
    "write_lock",
]

ZENODO = "https://zenodo.org"
PATIENT = Patience(tries=8, timeout=60.0, longest_wait=300.0)  # big files from a busy server


class FetchError(OffkeyError):
    """Data cannot be fetched or must not be taken; the message names the archive, the record and what to do."""


@dataclass(frozen=True, slots=True)
class Pin:
    """What tells the right file from any other: bytes and MD5, each None where nobody said."""

    size: int | None = None
    md5: str | None = None

    @property
    def digest(self) -> str | None:
        """As `offkey.downloading` wants it."""
        return f"md5:{self.md5}" if self.md5 else None


@dataclass(frozen=True, slots=True)
class Record:
    """A Zenodo record as its API tells it; `asked` is the address that answered."""

    number: str
    title: str
    licence: str
    page: str
    asked: str
    files: dict[str, Pin] = field(default_factory=dict)


def lock_file(folder: Path) -> Path:
    """The lock file of a data set's folder, beside it."""
    return folder.with_name(f"{folder.name}.lock.json")


def ask_record(
    number: str, folder: Path, mirror: str | None = None, progress: Progress | None = None, patience: Patience = PATIENT
) -> Record:
    """What the API says of a record's files, licence and title; `folder` is worked in.

    Raises DownloadError where nobody answers, FetchError where the answer is none.
    """
    place = folder / ".zips" / f"record-{number}.json"
    place.unlink(missing_ok=True)  # an earlier answer may be of an earlier day
    problems: list[str] = []
    for base in bases(mirror):
        url = f"{base}/api/records/{number}"
        try:
            download([url], place, progress=_NoBar(progress or Quiet()), patience=patience)
            return _read_answer(number, url, place.read_text(encoding="utf-8"))
        except DownloadError as error:
            problems += [line for line in str(error).splitlines() if url in line]
        finally:
            place.unlink(missing_ok=True)
    raise DownloadError(
        f"record {number} ({ZENODO}/records/{number}) could not be asked for its checksums and licence\n"
        + "\n".join(problems)
        + "\nzips that were fetched by hand are taken with --from FOLDER; --mirror URL asks another address first"
    )


def _read_answer(number: str, url: str, text: str) -> Record:
    try:
        answer = json.loads(text)
        files = answer["files"]
        entries = files["entries"].values() if isinstance(files, dict) else files
        pins = {entry["key"]: Pin(int(entry["size"]), _md5(entry["checksum"])) for entry in entries}
        about = answer.get("metadata", {})
        licence = about.get("license") or (about.get("rights") or [{}])[0]
        licence = licence.get("id") if isinstance(licence, dict) else str(licence)
        title = str(about.get("title", ""))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise FetchError(
            f"record {number}: the answer of {url} is not what Zenodo's API says of a record ({error!r}); "
            "is there a login page between you and the net?"
        ) from error
    return Record(number, title, licence or "not told", f"{ZENODO}/records/{number}", url, pins)


class _NoBar:
    """Passes on what is said, without a bar for a few kilobytes."""

    def __init__(self, told: Progress) -> None:
        self.told = told

    def start(self, what: str, total: int, done: int = 0) -> None:
        pass

    def step(self, done: int, note: str = "") -> None:
        pass

    def say(self, text: str) -> None:
        self.told.say(text)


def bases(mirror: str | None) -> list[str]:
    """Where Zenodo's paths are asked for: the mirror, then Zenodo."""
    return [*([mirror.rstrip("/")] if mirror else []), ZENODO]


def _md5(checksum: str) -> str:
    algorithm, _, digits = checksum.partition(":")
    if algorithm != "md5" or not re.fullmatch(r"[0-9a-f]{32}", digits):
        raise ValueError(f"no MD5: {checksum!r}")
    return digits


def pin_of(archive: Archive, known: dict[str, Record]) -> Pin:
    """What is known of an archive's bytes: by its record where that was asked, else by the catalogue."""
    record = known.get(archive.record)
    pin = record.files.get(archive.file, Pin()) if record is not None else Pin()
    return replace(pin, md5=archive.md5 or pin.md5)  # no lock file overrules the catalogue


def agreed(asked: Record, pinned: Record | None, wanted: Sequence[Archive]) -> Record:
    """The record to go by: raises FetchError where it differs from the lock or the catalogue."""
    before = pinned.files if pinned is not None else {}
    for archive in wanted:
        if archive.file not in asked.files:
            raise FetchError(
                f"record {asked.number} ({asked.page}) has no {archive.file}; it has {', '.join(sorted(asked.files))}"
            )
        now = asked.files[archive.file]
        for who, then in (("the lock file", before.get(archive.file)), ("offkey's catalogue", Pin(None, archive.md5))):
            if then is not None and then.md5 is not None and then.md5 != now.md5:
                raise FetchError(
                    f"{archive.file} of record {asked.number} has changed: md5 {now.md5} by {asked.asked}, {then.md5} "
                    f"by {who}. Nothing was fetched. If the organisers replaced it, look at {asked.page}, and remove "
                    "the lock file to take the new one"
                )
    return replace(asked, files={**asked.files, **before})


def read_lock(lock: Path, private: str | None = None) -> dict[str, Record]:
    """Records by number as the lock file has them; none where there is no such file.

    `private` is the hash of the catalogue of one's own that is gone by, None for offkey's. Raises FetchError where the
    lock file is damaged, or another catalogue made it.
    """
    if not lock.is_file():
        return {}
    try:
        told = json.loads(lock.read_text(encoding="utf-8"))
        if told.get("catalog") != private:
            made = "a catalogue of somebody's own" if told.get("catalog") else "offkey's own catalogue"
            raise FetchError(
                f"{lock}: what lies beside it was fetched by {made}, and another one is gone by now "
                f"({'with' if private else 'without'} --catalog). They must not mix: choose another --root, or "
                "remove both"
            )
        return {
            number: Record(**{**record, "files": {key: Pin(**pin) for key, pin in record["files"].items()}})
            for number, record in told["records"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FetchError(f"{lock} cannot be read ({error}); remove it to ask the records anew") from error


def write_lock(lock: Path, name: str, known: dict[str, Record], private: str | None = None) -> None:
    """Write the lock file of the data set `name`, ordered by record; `private` as in `read_lock`."""
    records = {number: asdict(known[number]) for number in sorted(known)}
    told: dict[str, Any] = {"format": 1, "dataset": name, "records": records}
    if private is not None:
        told["catalog"] = private
    write_whole(lock, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
