"""Miniatures of DCASE Task 2, 2020 to 2026: each year's own layout, names and tables, with simulated sound.

A miniature has what the real data of its year have: the machines' names, both halves of an evaluation machine, the
variants of the tables of attributes, hidden attributes, names of test clips that tell nothing, and the truth in the
organisers' form. It stands where `offkey data fetch` would put the real data, and can be packed into the archives and
record answers that a fetch asks for, so that everything from download to submission is tried without the net.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from offkey.data.catalog import Archive, Dataset, Part, catalog_text, dataset, read_catalog
from offkey.data.synthetic.config import MACHINES, SynthConfig
from offkey.data.synthetic.dataset import render_clip
from offkey.data.synthetic.plan import ClipPlan, plan_clips
from offkey.files import write_whole
from offkey.types import Condition, Content, Domain, Split

__all__ = ["CATALOG_FILE", "Miniature", "YearConfig", "pack_year", "write_year"]

CATALOG_FILE = "catalog.json"
"""Beside packed miniatures: what `offkey data fetch --catalog` goes by, for their checksums are not the real data's."""

# Machines whose attributes the organisers hide (2024: those that their later tables reveal; 2026 is not known).
_HIDDEN = {
    2024: {"ToyTrain", "gearbox", "slider", "AirCompressor", "BrushlessMotor", "HoveringDrone", "ToothBrush"},
    2025: {"bearing", "slider", "ToyTrain", "AutoTrash", "Polisher", "ScrewFeeder", "ToyPet"},
    2026: {"bearingEmu", "sliderEmu", "Sander"},
}
_VARIANTS = ("prefixed", "plain", "no-ending")
_SUPPLEMENTAL = ("source_supplemental_machine", "machine_source", "supplemental_clean")


@dataclass(frozen=True, slots=True)
class YearConfig:
    """How small a miniature is.

    `machines` of the year (none: all); clips a section: `train_source` and `train_target` normal ones, `test_per_group`
    in each of source/target × normal/anomaly, `supplemental` machine-alone and noise-alone ones together (2025);
    `sections` (2020: machine IDs) a half, where the year has several; `seconds` a clip; equal seeds give equal bytes.
    """

    machines: tuple[str, ...] = ()
    train_source: int = 8
    train_target: int = 2
    test_per_group: int = 2
    supplemental: int = 2
    sections: int = 2
    seconds: float = 2.0
    rate: int = 16000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Miniature:
    """What was written: the data set's folder, the organisers' truth, machines of both halves, and clips in all."""

    folder: Path
    truth: Path
    machines: tuple[str, ...]
    clips: int


@dataclass(frozen=True, slots=True)
class _Clip:
    """A clip with its name in the year's manner: `split` is the folder's name; `secret` the name that tells all."""

    plan: ClipPlan
    section: str
    split: str
    name: str
    secret: str
    listed: bool

    @property
    def label(self) -> str:
        return str(int(self.plan.condition is Condition.ANOMALY))

    @property
    def target(self) -> str:
        return str(int(self.plan.domain is Domain.TARGET))


def write_year(root: Path, year: int, config: YearConfig | None = None) -> Miniature:
    """Write a year's miniature: `root/dcase2025t2/{dev_data,eval_data}/raw/<machine>/…` and `root/evaluator/`.

    Files that are there already are kept, so that a call after a kill goes on. Raises CatalogError for an unknown year
    or machine.
    """
    config = config or YearConfig()
    which = dataset(str(year))
    folder, truth = Path(root) / which.folder, Path(root) / "evaluator"
    count, listed = 0, []
    halves: tuple[tuple[Part, str], ...] = (("dev", "dev_data"), ("additional", "eval_data"))
    wanted = {machine.lower() for machine in config.machines}
    for part, half in halves:
        for number, machine in enumerate(which.machines(part)):
            if wanted and machine.lower() not in wanted:
                continue
            home = folder / half / "raw" / machine
            clips = list(_clips(which, part, machine, number, config))
            for clip in clips:
                path = home / clip.split / clip.name
                if not path.is_file():
                    write_whole(path, _wav(clip.plan, config, 2 if year == 2026 else 1))
            if year >= 2022:
                for section in sorted({clip.section for clip in clips}):
                    told = [clip for clip in clips if clip.section == section and clip.listed]
                    table = _attributes(machine, told, _VARIANTS[number % 3], _is_hidden(year, machine))
                    write_whole(home / f"attributes_{section}.csv", table)
            if part != "dev":
                listed.append((machine, [clip for clip in clips if clip.name != clip.secret]))
            count += len(clips)
    _write_truth(truth, year, listed)
    return Miniature(folder, truth, tuple(dict.fromkeys(m for m in which.machines() if _has(folder, m))), count)


def pack_year(miniature: Miniature, site: Path) -> Path:
    """Pack a miniature as the organisers publish the data; returns `site`.

    A server of plain files at `site` is a mirror for `offkey data fetch` and `offkey data truth`:
    `api/records/N` (what Zenodo's API says), `records/N/files/NAME.zip`, and the evaluator as
    `OWNER/REPOSITORY/archive/COMMIT.zip` (2020: the list of the truth in its record). `catalog.json` is the catalogue
    of all the years that were packed here. Equal miniatures give equal bytes.
    """
    which = dataset(miniature.folder.name)
    records: dict[str, list[dict[str, object]]] = {}
    packed: list[Archive] = []
    for archive in which.archives:
        home = miniature.folder / archive.folder / archive.machine
        if not home.is_dir():
            continue
        files = [path for path in sorted(home.rglob("*")) if path.is_file() and _belongs(archive, path, home)]
        content = _zip([(f"{archive.machine}/{path.relative_to(home).as_posix()}", path) for path in files])
        write_whole(site / "records" / archive.record / "files" / archive.file, content)
        records.setdefault(archive.record, []).append(_entry(archive.file, content))
        packed.append(replace(archive, md5=_md5(content)))
    source = which.truth
    if source.repository is None:
        content = (miniature.truth / str(source.file)).read_bytes()
        write_whole(site / "records" / str(source.record) / "files" / str(source.file), content)
        records[str(source.record)] = [_entry(str(source.file), content)]
    else:
        commit = source.commit or hashlib.sha1(which.name.encode(), usedforsecurity=False).hexdigest()
        top = f"{source.repository.rpartition('/')[2]}-{commit}"
        files = [path for path in sorted(miniature.truth.rglob("*")) if path.is_file()]
        tables = [(f"{top}/{path.relative_to(miniature.truth).as_posix()}", path) for path in files]
        name = f"{source.commit or 'HEAD'}.zip"
        write_whole(site / source.repository / "archive" / name, _zip(tables, commit.encode()))
    for number, entries in records.items():
        answer = {
            "id": int(number),
            "metadata": {"title": f"miniature of {which.name}", "license": {"id": "cc-by-4.0"}},
            "files": entries,
        }
        write_whole(site / "api" / "records" / number, json.dumps(answer, indent=1) + "\n")
    place = site / CATALOG_FILE
    known = read_catalog(place) if place.is_file() else {}
    known[which.name] = replace(which, archives=tuple(packed))
    write_whole(place, catalog_text(known[name] for name in sorted(known)))
    return site


def _has(folder: Path, machine: str) -> bool:
    return any((folder / half / "raw" / machine).is_dir() for half in ("dev_data", "eval_data"))


def _is_hidden(year: int, machine: str) -> bool:
    return machine in _HIDDEN.get(year, ())


def _clips(which: Dataset, part: Part, machine: str, number: int, config: YearConfig) -> Iterator[_Clip]:
    year, hidden = which.year, _is_hidden(which.year, machine)
    for section in which.sections(machine, part)[: max(1, config.sections)]:
        plans = _plans(machine, part, section, number, config)
        turn = np.random.default_rng(zlib.crc32(f"{year} {part} {machine} {section} {config.seed}".encode()))
        tests = [plan for plan in plans if plan.split is Split.TEST]
        place = {id(tests[k]): at for at, k in enumerate(turn.permutation(len(tests)))}
        counted: dict[tuple[str, ...], int] = {}
        for plan in plans:
            if plan.split is Split.SUPPLEMENTAL and year != 2025:
                continue
            if year == 2020:
                group = (plan.split.value, plan.condition.value)
                at = counted[group] = counted.get(group, -1) + 1  # source and target were not told apart
                secret = f"{plan.condition.value}_id_{section}_{at:08d}.wav"
                shown = f"id_{section}_{place.get(id(plan), at):08d}.wav"
            else:
                secret = _name(year, number, section, plan, hidden)
                domain = f"{plan.domain.value}_test_" if year == 2021 else "test_" if year == 2022 else ""
                shown = f"section_{section}_{domain}{place.get(id(plan), 0):04d}.wav"
            split = plan.split.value
            if year == 2021 and plan.split is Split.TEST:
                split = f"{plan.domain.value}_test"
            concealed = part != "dev" and plan.split is Split.TEST
            listed = not concealed and plan.content is not Content.NOISE
            yield _Clip(plan, section, split, shown if concealed else secret, secret, listed)


def _plans(machine: str, part: Part, section: str, number: int, config: YearConfig) -> list[ClipPlan]:
    """Clips of a machine's section from the simulator: the machine of the same name, else one after the other."""
    near = [name for name in MACHINES if machine.lower().startswith(name)]
    simulated = near[0] if near else MACHINES[number % len(MACHINES)]
    seed = zlib.crc32(f"{machine} {part} {section}".encode()) ^ config.seed
    return plan_clips(
        SynthConfig(
            machines=(simulated,), seconds=config.seconds, rate=config.rate, train_source=config.train_source,
            train_target=config.train_target, test_per_group=config.test_per_group, supplemental=config.supplemental,
            hidden_attributes=(), seed=seed,
        )
    )  # fmt: skip


def _name(year: int, number: int, section: str, plan: ClipPlan, hidden: bool) -> str:
    """The name that tells all, in the year's manner."""
    told = "noAttribute" if hidden else "_".join(f"{key}_{value}" for key, value in plan.attributes)
    if year == 2021:
        told = plan.attributes[0][1].replace("_", "") if plan.split is Split.TRAIN else ""
    start, end = f"section_{section}", f"{plan.number:04d}{'_' * bool(told)}{told}.wav"
    if plan.content is Content.NOISE:
        return f"{start}_noise_supplemental_normal_{plan.number:04d}.wav"
    if plan.content is Content.MACHINE:
        return f"{start}_{_SUPPLEMENTAL[number % 3]}_{end}"
    return f"{start}_{plan.domain.value}_{plan.split.value}_{plan.condition.value}_{end}"


def _wav(plan: ClipPlan, config: YearConfig, channels: int) -> bytes:
    from scipy.io import wavfile

    sound = render_clip(plan, config.rate, channels).mixture
    memory = io.BytesIO()
    wavfile.write(memory, config.rate, np.rint(sound * np.float32(32768.0)).astype(np.int16))
    return memory.getvalue()


def _attributes(machine: str, clips: Sequence[_Clip], variant: str, hidden: bool) -> str:
    """`attributes_00.csv`: names with the path, alone, or without ending; no columns but the name where hidden."""
    count = 0 if hidden else max((len(clip.plan.attributes) for clip in clips), default=0)
    rows: list[list[str]] = [["file_name", *(f"d{k}{x}" for k in range(1, count + 1) for x in "pv")]]
    for clip in clips:
        name = f"{machine}/{clip.split}/{clip.name}" if variant == "prefixed" else clip.name
        name = name.removesuffix(".wav") if variant == "no-ending" else name
        rows.append([name, *(word for pair in clip.plan.attributes[:count] for word in pair)])
    return _table(rows)


def _write_truth(folder: Path, year: int, listed: Sequence[tuple[str, Sequence[_Clip]]]) -> None:
    """The truth as the organisers publish it: one list (2020), a table a machine, section and, in 2021, domain."""
    if year == 2020:
        rows: list[list[str]] = []
        for machine, clips in listed:
            rows.append([machine])
            rows += [[clip.name, clip.secret, clip.label] for clip in sorted(clips, key=lambda clip: clip.name)]
        write_whole(folder / "eval_data_list.csv", _table(rows))
        return
    for machine, clips in listed:
        tables: dict[str, list[_Clip]] = {}
        for clip in sorted(clips, key=lambda clip: clip.name):
            where = f"{clip.section}_{clip.plan.domain.value}" if year == 2021 else clip.section
            tables.setdefault(f"ground_truth_{machine}_section_{where}_test.csv", []).append(clip)
        for name, told in tables.items():
            write_whole(folder / "ground_truth_data" / name, _table([[clip.name, clip.label] for clip in told]))
            if year > 2021:
                write_whole(folder / "ground_truth_domain" / name, _table([[clip.name, clip.target] for clip in told]))


def _belongs(archive: Archive, path: Path, home: Path) -> bool:
    """Which half of an evaluation machine's folder an archive holds; the tables come with the training clips."""
    if path.name.startswith("."):
        return False
    if archive.part == "dev":
        return True
    top = path.relative_to(home).parts[0]
    return ("test" in top) == (archive.part == "eval")


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"key": name, "size": len(content), "checksum": f"md5:{_md5(content)}"}


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _zip(files: Sequence[tuple[str, Path]], comment: bytes = b"") -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.comment = comment
        for name, path in files:
            entry = zipfile.ZipInfo(name)  # of 1980: equal files give equal archives
            entry.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(entry, path.read_bytes())
    return memory.getvalue()


def _table(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
