"""What a data set holds and what is wrong with it, by decoding every file once.

An `error` keeps clips or a machine from being used or makes numbers untrue (the same sound in training and
test); a `warning` is worth knowing before trusting a result.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from offkey.audio.io import AudioConfig, FileFacts, inspect
from offkey.data.dcase import FIRST_TABLES, survey_dcase
from offkey.data.folder import Subfolders
from offkey.data.source import NoRecordings, Source, open_source
from offkey.types import ClipMeta, Condition, Content, Domain, OffkeyError, Split

__all__ = ["DataReport", "MachineReport", "Problem", "check"]

_SHORT = 0.5  # of the median length of its machine
_NAMED = 10  # files that a problem lists in `to_dict`; the count is always whole


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `kind` is a fixed word, `message` a sentence, `files` all concerned."""

    severity: Literal["error", "warning"]
    kind: str
    message: str
    machine: str | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class MachineReport:
    """What there is of one machine.

    `clips` counts by (split, domain, condition or content); `attributes` counts the values of every known
    setting; `with_attributes` and `without_attributes` count clips (noise left out); `seconds` are total,
    shortest, median and longest; `rates` (Hz), `channels` and `formats` count files that could be decoded.
    """

    machine: str
    sections: tuple[str, ...]
    clips: dict[tuple[str, str, str], int]
    attributes: dict[str, dict[str, int]]
    with_attributes: int
    without_attributes: int
    seconds: tuple[float, float, float, float]
    rates: dict[int, int]
    channels: dict[int, int]
    formats: dict[str, int]
    unusable: int


@dataclass(frozen=True)
class DataReport:
    """The answer of `check`: machines in order of name, problems with errors first, remarks for people."""

    root: Path
    kind: str
    year: int | None
    machines: tuple[MachineReport, ...] = ()
    problems: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = field(default_factory=tuple)

    @property
    def errors(self) -> list[Problem]:
        """Problems that keep something from being used."""
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """Problems that are worth knowing."""
        return [problem for problem in self.problems if problem.severity == "warning"]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON; of a problem's files the first ten are named."""
        machines = []
        for report in self.machines:
            plain = asdict(report)
            plain["clips"] = [
                {"split": split, "domain": domain, "content": content, "count": count}
                for (split, domain, content), count in report.clips.items()
            ]
            plain["seconds"] = dict(zip(("total", "min", "median", "max"), report.seconds, strict=True))
            plain["sections"] = list(report.sections)
            for key in ("rates", "channels"):
                plain[key] = {str(value): count for value, count in plain[key].items()}
            machines.append(plain)
        return {
            "root": str(self.root),
            "kind": self.kind,
            "year": self.year,
            "machines": machines,
            "problems": [
                {
                    "severity": problem.severity,
                    "kind": problem.kind,
                    "machine": problem.machine,
                    "message": problem.message,
                    "count": len(problem.files),
                    "files": [str(path) for path in problem.files[:_NAMED]],
                }
                for problem in self.problems
            ],
            "remarks": list(self.remarks),
        }


def check(
    root: Path,
    config: AudioConfig | None = None,
    subfolders: Subfolders = "machines",
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Decode everything at or below `root` and say what is there and what is wrong.

    `progress` is called with (files done, files in all). Raises `NoRecordings` only where nothing is found at
    all; a data set whose order is wrong (such as anomalies among the training clips) gives a report with
    that error.
    """
    config = config or AudioConfig()
    root = Path(root)
    try:
        source = open_source(root, subfolders)
    except NoRecordings:
        raise
    except OffkeyError as error:
        return DataReport(root, "unknown", None, (), (Problem("error", "order", str(error)),))
    facts, digests = _look(source.clips, config, workers, progress)
    machines: list[MachineReport] = []
    problems: list[Problem] = []
    for machine in source.machines():
        places = [place for place, clip in enumerate(source.clips) if clip.machine == machine]
        clips = [source.clips[place] for place in places]
        mine = [facts[place] for place in places]
        machines.append(_describe(machine, clips, mine))
        problems += _file_problems(machine, mine)
        problems += _set_problems(machine, clips, mine, source.kind)
    problems += _duplicates(source.clips, digests)
    if source.kind == "dcase":
        problems += _table_problems(source)
    problems.sort(key=lambda problem: problem.severity)  # "error" before "warning"; stable otherwise
    return DataReport(root, source.kind, source.year, tuple(machines), tuple(problems), tuple(source.remarks))


def _look(
    clips: Sequence[ClipMeta],
    config: AudioConfig,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[FileFacts], list[bytes]]:
    """Facts and a digest of the content of every clip; decoding releases Python's lock, so threads do."""

    def look(clip: ClipMeta) -> tuple[FileFacts, bytes]:
        try:
            with clip.path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        except OSError:
            digest = b""
        return inspect(clip.path, config), digest

    facts, digests = [], []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for done, (fact, digest) in enumerate(pool.map(look, clips), start=1):
            facts.append(fact)
            digests.append(digest)
            if progress is not None:
                progress(done, len(clips))
    return facts, digests


def _describe(machine: str, clips: Sequence[ClipMeta], facts: Sequence[FileFacts]) -> MachineReport:
    counts: Counter[tuple[str, str, str]] = Counter()
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        what = clip.content.value if clip.split is Split.SUPPLEMENTAL else clip.condition.value
        counts[clip.split.value, clip.domain.value, what] += 1
        for name, value in clip.attributes:
            values[name][value] += 1
    seconds = sorted(fact.seconds for fact in facts if fact.seconds > 0.0) or [0.0]
    decoded = [fact for fact in facts if fact.rate]
    known = sum(bool(clip.attributes) for clip in clips)
    noise = sum(clip.content is Content.NOISE and not clip.attributes for clip in clips)
    return MachineReport(
        machine=machine,
        sections=tuple(sorted({clip.section for clip in clips})),
        clips=dict(sorted(counts.items())),
        attributes={name: dict(sorted(seen.items())) for name, seen in sorted(values.items())},
        with_attributes=known,
        without_attributes=len(clips) - known - noise,
        seconds=(sum(seconds), seconds[0], statistics.median(seconds), seconds[-1]),
        rates=dict(sorted(Counter(fact.rate for fact in decoded).items())),
        channels=dict(sorted(Counter(fact.channels for fact in decoded).items())),
        formats=dict(sorted(Counter(f"{fact.format} {fact.subtype}" for fact in decoded).items())),
        unusable=sum(bool(fact.problems) for fact in facts),
    )


def _file_problems(machine: str, facts: Sequence[FileFacts]) -> Iterator[Problem]:
    """Files that cannot be used, one problem each; what is odd about the others, one problem a kind."""
    for fact in facts:
        for problem in fact.problems:
            kind = "silent" if "silence" in problem or "constant value" in problem else "unreadable"
            yield Problem("error", kind, f"{fact.path.name}: {problem}", machine, (fact.path,))
    odd: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for fact in facts:
        for remark in fact.remarks:
            odd[_kind(remark)].append((fact.path, remark))
    for kind, noted in odd.items():
        count = f"{len(noted)} file{'s' * (len(noted) > 1)}"
        yield Problem(
            "warning",
            kind,
            f"{count}: {noted[0][1]} ({noted[0][0].name})",
            machine,
            tuple(p for p, _ in noted),
        )
    usable = [fact for fact in facts if not fact.problems]
    if usable:
        median = statistics.median(fact.seconds for fact in usable)
        short = tuple(fact.path for fact in usable if fact.seconds < _SHORT * median)
        if short:
            text = f"{len(short)} clips are shorter than half the usual {median:.1f} s, such as {short[0].name}"
            yield Problem("warning", "short", text, machine, short)


def _kind(remark: str) -> str:
    for start, kind in (
        ("clipping", "clipping"),
        ("peak", "over-full-scale"),
        ("DC offset", "dc-offset"),
        ("very low", "low-level"),
        ("channel", "silent-channel"),
        ("recorded at", "low-rate"),
        ("the ending", "wrong-ending"),
    ):
        if remark.startswith(start):
            return kind
    return "odd"


def _set_problems(
    machine: str, clips: Sequence[ClipMeta], facts: Sequence[FileFacts], source_kind: str
) -> Iterator[Problem]:
    """What is wrong with the clips of a machine taken together."""
    for name, numbers in (
        ("rate", [fact.rate for fact in facts]),
        ("channels", [fact.channels for fact in facts]),
    ):
        counts = Counter(number for number in numbers if number)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            other = tuple(fact.path for fact, n in zip(facts, numbers, strict=True) if n and n != usual)
            unit = " Hz" if name == "rate" else " channels"
            text = ", ".join(f"{count} files with {number}{unit}" for number, count in counts.most_common())
            yield Problem("warning", f"mixed-{name}", text, machine, other)
    for section in sorted({clip.section for clip in clips}):
        here = [clip for clip in clips if clip.section == section]
        yield from _section_problems(machine, section, here, source_kind)
    names: dict[str, list[Path]] = defaultdict(list)
    for clip in clips:
        names[clip.path.name].append(clip.path)
    for name, paths in names.items():
        # 2020 numbers its training and its test clips from 0 each; elsewhere one name is one clip.
        if len(paths) > 1 and not (source_kind == "dcase" and "id_" in name):
            yield Problem("warning", "same-name", f"{name} is there {len(paths)} times", machine, tuple(paths))


def _section_problems(machine: str, section: str, clips: Sequence[ClipMeta], source_kind: str) -> Iterator[Problem]:
    where = f"section {section}"
    train = [clip for clip in clips if clip.split is Split.TRAIN]
    test = [clip for clip in clips if clip.split is Split.TEST]
    if test and not train:
        text = f"{where} has {len(test)} test clips but no training clips"
        yield Problem("error", "no-training", text, machine)
    conditions = {clip.condition for clip in test} - {Condition.UNKNOWN}
    if len(conditions) == 1:
        only = conditions.pop().value
        yield Problem("warning", "one-condition", f"all labelled test clips of {where} are {only}: no AUC", machine)
    unknown = sum(clip.condition is Condition.UNKNOWN for clip in test)
    if unknown:
        text = f"{unknown} test clips of {where} have no label: scores yes, AUC only with a table of the truth"
        yield Problem("warning", "unlabelled", text, machine)
    if source_kind == "dcase" and train and {clip.domain for clip in train} == {Domain.SOURCE}:
        yield Problem("warning", "no-target", f"{where} has no target clips for training", machine)
    hidden = [clip for clip in train if not clip.attributes]
    if source_kind == "dcase" and hidden:
        many = "all" if len(hidden) == len(train) else str(len(hidden))
        text = f"{many} training clips of {where} have hidden attributes: their classes are the domains"
        yield Problem("warning", "hidden-attributes", text, machine, tuple(clip.path for clip in hidden))


def _duplicates(clips: Sequence[ClipMeta], digests: Sequence[bytes]) -> Iterator[Problem]:
    """Files of the same content; across training and test they make every number untrue."""
    groups: dict[bytes, list[ClipMeta]] = defaultdict(list)
    for clip, digest in zip(clips, digests, strict=True):
        if digest:
            groups[digest].append(clip)
    for same in groups.values():
        if len(same) < 2:
            continue
        leak = {Split.TRAIN, Split.TEST} <= {clip.split for clip in same}
        names = " = ".join(f"{clip.path.parent.name}/{clip.path.name}" for clip in same[:3])
        text = f"the same content {len(same)} times{', in training and in test' if leak else ''}: {names}"
        yield Problem(
            "error" if leak else "warning",
            "duplicate",
            text,
            same[0].machine,
            tuple(clip.path for clip in same),
        )


def _table_problems(source: Source) -> Iterator[Problem]:
    """Tables of attributes that do not fit the files."""
    scan = survey_dcase(source.root)
    rows: dict[Path, list[str]] = defaultdict(list)
    for table, name in scan.rows_without_file:
        rows[table].append(name)
    for table, names in rows.items():
        text = f"{table.name} has {len(names)} rows without a file, such as {names[0]}"
        yield Problem("warning", "row-without-file", text, table.parent.name, (table,))
    if source.year is not None and source.year >= FIRST_TABLES:
        wanted = {(c.machine, c.path.parent.parent, c.section) for c in source.clips if c.split is Split.TRAIN}
        for machine, home, section in sorted(wanted):
            if not any(table.parent == home and f"_{section}" in table.name for table in scan.tables):
                text = f"there is no attributes_{section}.csv in {home}, so settings are read from file names alone"
                yield Problem("warning", "no-table", text, machine)
    by_machine: dict[str, list[Path]] = defaultdict(list)
    paths = {clip.path: clip.machine for clip in source.clips}
    for path in scan.without_row:
        by_machine[paths[path]].append(path)
    for machine, missing in by_machine.items():
        text = f"{len(missing)} training clips have no row in the table of attributes, such as {missing[0].name}"
        yield Problem("warning", "file-without-row", text, machine, tuple(missing))
