"""The truth of evaluation sets: from where the user has it, or fetched from the organisers; kept on the user's disk.

It lands in `<root>/dcase2025t2/truth/` in the organisers' own form (`ground_truth_data/`, `ground_truth_domain/`), or
as one table `truth.csv` where the organisers have it in one list. `offkey evaluate --truth` reads both. The organisers'
licences forbid passing it on, so none of it is in this project.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from offkey.data.archives import ArchiveError, Limits, unpack
from offkey.data.catalog import Dataset, dataset
from offkey.data.fetch import data_folder
from offkey.data.records import PATIENT, ZENODO, lock_file, read_lock
from offkey.downloading import Patience, download, one_at_a_time
from offkey.files import read_pairs, sha256, sweep, write_whole
from offkey.progress import Progress, Quiet
from offkey.types import Condition, OffkeyError

__all__ = ["GITHUB", "TruthError", "TruthSet", "find_truth", "take_truth", "truth_folder"]

GITHUB = "https://github.com"
_LIMITS = Limits(total=500_000_000, member=50_000_000, members=20_000)
_TABLE = re.compile(r"ground_truth_(?P<machine>.+?)_section_\d{2}(?:_(?:source|target))?_test\.csv")
_KINDS = ("ground_truth_data", "ground_truth_domain")
_SOURCE = "SOURCE.json"


class TruthError(OffkeyError):
    """No truth of an evaluation set can be had, or what was given is none; the message says what to do."""


@dataclass(frozen=True, slots=True)
class TruthSet:
    """Truth on disk: where it lies, whose it is, and how many clips of which machines it knows."""

    folder: Path
    origin: str
    commit: str | None
    clips: dict[str, int]


def truth_folder(root: Path, name: str | Dataset) -> Path:
    """Where the truth of a data set lies below the user's root."""
    return data_folder(root, name) / "truth"


def find_truth(root: Path, name: str | Dataset) -> TruthSet | None:
    """The truth that `take_truth` put there, None where there is none.

    Raises TruthError where a file of it has changed since.
    """
    folder = truth_folder(root, name)
    try:
        told = json.loads((folder / _SOURCE).read_text(encoding="utf-8"))
        files, clips = dict(told["files"]), dict(told["clips"])
        origin, commit = str(told["origin"]), told["commit"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for file, digest in files.items():
        path = folder / file
        if not path.is_file() or sha256(path) != digest:
            raise TruthError(f"{path} is not what was put there; remove {folder} and take the truth again")
    return TruthSet(folder, origin, commit, clips)


def take_truth(
    name: str | Dataset,
    root: Path,
    source: Path | None = None,
    mirror: str | None = None,
    progress: Progress | None = None,
    patience: Patience = PATIENT,
) -> TruthSet:
    """Put the truth of a data set below `root`; what is there already is kept.

    `source`: a clone or zip of the organisers' evaluator, a folder with `ground_truth_data/`, a clone of their baseline
    (`datasets/eval_data_list_YEAR.csv`), or such a list. Without it the evaluator is fetched from GitHub (2020: the
    list from Zenodo) at the catalogue's commit, `mirror` being asked first; where the catalogue knows no commit, the
    newest one is taken and named in `SOURCE.json`.

    Raises TruthError where the source holds no truth, or one of other machines; DownloadError where nothing can be had;
    FetchError where the data there were fetched by another catalogue than `name` is of.
    """
    told = progress or Quiet()
    which = dataset(name)
    folder = truth_folder(root, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    read_lock(lock_file(folder.parent), which.private)  # another catalogue's data are none of this truth's
    with one_at_a_time(folder, told, patience.sleep):
        work = folder.with_name(".truth.part")
        shutil.rmtree(work, ignore_errors=True)
        try:
            known = find_truth(root, name)
            if known is not None:
                _come(which, folder.parent).unlink(missing_ok=True)  # of a kill at the very end
                return known
            fetched: Path | None = None
            commit, origin, place = None, str(source), source
            if place is None:
                place, commit = _fetched(which, folder.parent, mirror, told, patience)
                origin, fetched = which.truth.page, place
            found = _gather(which, place, work)
            files = {str(path.relative_to(work).as_posix()): sha256(path) for path in sorted(work.rglob("*.csv"))}
            note = {"origin": origin, "commit": commit, "files": files, "clips": found}
            write_whole(work / _SOURCE, json.dumps(note, indent=1) + "\n")
            if folder.exists():
                raise TruthError(f"{folder} holds something else; move it away")
            work.replace(folder)
            if fetched is not None:
                fetched.unlink(missing_ok=True)
        except OSError as error:
            raise TruthError(f"{error.filename or folder} cannot be used: {error.strerror or error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(folder.with_name(".evaluator"), ignore_errors=True)
            sweep(folder.with_name(".zips"))
    return TruthSet(folder, origin, commit, found)


def _come(which: Dataset, folder: Path) -> Path:
    """Where the organisers' zip or list lies until its truth is taken from it."""
    truth = which.truth
    return folder / ".zips" / str(truth.file if truth.repository is None else f"evaluator-{truth.commit or 'HEAD'}.zip")


def _fetched(
    which: Dataset, folder: Path, mirror: str | None, progress: Progress, patience: Patience
) -> tuple[Path, str | None]:
    """The organisers' zip or list on this disk, and the commit that it is of."""
    truth, near, place = which.truth, mirror.rstrip("/") if mirror else None, _come(which, folder)
    if truth.repository is None:
        tail = f"/records/{truth.record}/files/{truth.file}"
        urls = [*([near + tail] if near else []), f"{ZENODO}{tail}?download=1"]
        return download(urls, place, progress=progress, patience=patience), None
    tail = f"/{truth.repository}/archive/{truth.commit or 'HEAD'}.zip"
    urls = [*([near + tail] if near else []), GITHUB + tail]
    if truth.commit is None:
        place.unlink(missing_ok=True)
    try:
        download(urls, place, progress=progress, patience=patience)
        with zipfile.ZipFile(place) as zipped:
            said = zipped.comment.decode("ascii", "replace")  # GitHub writes the commit there
    except zipfile.BadZipFile as error:
        place.unlink(missing_ok=True)
        raise TruthError(
            f"{urls[0]} gave no zip archive ({error}); clone {truth.page} and give it with --from"
        ) from error
    commit = said if re.fullmatch(r"[0-9a-f]{40}", said) else None
    if truth.commit is not None and commit not in (None, truth.commit):
        place.unlink(missing_ok=True)
        raise TruthError(f"{urls[0]} gave commit {commit}, not {truth.commit}; nothing was taken")
    return place, commit or truth.commit


def _gather(which: Dataset, source: Path, work: Path) -> dict[str, int]:
    """Lay the truth that `source` holds into `work`; clips a machine."""
    if source.suffix.lower() == ".zip":
        unzipped = work.with_name(".evaluator")
        shutil.rmtree(unzipped, ignore_errors=True)
        try:
            unpack(source, unzipped, _of_use, _LIMITS)
        except ArchiveError as error:
            raise TruthError(str(error)) from error
        source = unzipped
    if source.is_file():
        found = _from_list(source, work)
    elif source.is_dir():
        found = _from_tables(source, work) or _from_lists(which, source, work)
    else:
        raise TruthError(f"{source} is not there; give a clone or zip of {which.truth.page}, or a list")
    if not found:
        raise TruthError(
            f"{source} holds no truth of {which.name}: neither ground_truth_data/ground_truth_<machine>_….csv of its "
            f"machines nor eval_data_list_{which.year}.csv. Give a clone or zip of {which.truth.page}"
        )
    missing = [machine for machine in which.machines("eval") if machine not in found]
    strange = sorted(set(found) - set(which.machines("eval")))
    if strange or (missing and len(missing) == len(which.machines("eval"))):
        raise TruthError(
            f"{source} has the truth of {', '.join(strange or found)}, but the test machines of {which.name} are "
            f"{', '.join(which.machines('eval'))}: is it another year's?"
        )
    return found


def _of_use(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.suffix != ".csv":
        return None
    if path.parent.name in _KINDS:
        return f"{path.parent.name}/{path.name}"
    return path.name if path.name.startswith("eval_data_list") else None


def _from_tables(source: Path, work: Path) -> dict[str, int]:
    """Copy the organisers' tables byte for byte, once they are read."""
    labels = next(iter(sorted(source.rglob("ground_truth_data"))), None) if source.name != _KINDS[0] else source
    if labels is None or not labels.is_dir():
        return {}
    found: dict[str, int] = {}
    for kind in _KINDS:
        for path in sorted((labels.parent / kind).glob("ground_truth_*.csv")):
            match = _TABLE.fullmatch(path.name)
            if match is None:
                raise TruthError(f"{path}: expected ground_truth_<machine>_section_00_test.csv")
            rows = _rows(path)
            if kind == _KINDS[0]:
                found[match["machine"]] = found.get(match["machine"], 0) + len(rows)
                if set(rows.values()) != {"0", "1"}:
                    raise TruthError(f"{path} has clips of one condition only; that cannot be the whole truth")
            elif set(rows) != set(_rows(labels / path.name)):
                raise TruthError(f"{path} and {labels / path.name} do not name the same clips")
            write_whole(work / kind / path.name, path.read_bytes())
    return found


def _rows(path: Path) -> dict[str, str]:
    """Clip -> "0" or "1" of a headerless table."""
    return read_pairs(path, TruthError, "file,0 or file,1", lambda value: value in ("0", "1"))


def _from_lists(which: Dataset, source: Path, work: Path) -> dict[str, int]:
    names = (f"eval_data_list_{which.year}.csv", *(["eval_data_list.csv"] if which.year == 2020 else []))
    for name in names:
        for path in sorted(source.rglob(name)):
            return _from_list(path, work)
    return {}


def _from_list(source: Path, work: Path) -> dict[str, int]:
    """One list of all machines: a line with the machine's name, then `clip,its name with the truth[,0|1]`."""
    from offkey.data.dcase import parse_name

    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TruthError(f"{source} cannot be read ({error})") from None
    table: list[tuple[str, str, str, str]] = [("machine", "file", "domain", "label")]
    found: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    machine = ""
    for line, cells in enumerate(csv.reader(io.StringIO(text)), start=1):
        cells = [cell.strip() for cell in cells if cell.strip()]
        if len(cells) == 1:
            machine = cells[0]
        elif cells:
            told = parse_name(cells[1])
            if not machine or told is None or told.condition is Condition.UNKNOWN:
                raise TruthError(f"{source}, line {line}: {','.join(cells)!r} tells no machine or no condition")
            if (machine, cells[0]) in seen:
                raise TruthError(f"{source}, line {line}: {machine}/{cells[0]} is there twice")
            seen.add((machine, cells[0]))
            table.append((machine, cells[0], told.domain.value, told.condition.value))
            found[machine] = found.get(machine, 0) + 1
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(table)
    write_whole(work / "truth.csv", out.getvalue())
    return found
