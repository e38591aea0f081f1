"""The challenge's result files: written, read back, and joined with the truth.

A folder holds, for each machine and section, `anomaly_score_<machine>_section_00_test.csv` with rows
`file,score` and `decision_result_<machine>_section_00_test.csv` with rows `file,0|1`; no header. Written and read are
also the names of 2020 (`…_id_01.csv`, scores alone) and 2021 (`…_section_00_source_test.csv`).

A submission is a folder `task2/<label>/` with these files and `<label>.meta.yaml`, up to four of them a team.
"""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from offkey.evaluation.protocol import PROTOCOLS, Protocol, ScoredClip
from offkey.files import read_pairs, write_whole
from offkey.types import ClipMeta, Condition, Domain, OffkeyError

__all__ = [
    "SubmissionError",
    "Truth",
    "check_label",
    "check_scored",
    "read_submission",
    "read_truth",
    "truth_of_name",
    "write_package",
    "write_submission",
]

Truth = Mapping[tuple[str, str], tuple[Domain, Condition]]
"""(machine, file name) → domain and condition; file names repeat from machine to machine."""

_FILE = re.compile(
    r"(?P<kind>anomaly_score|decision_result)_(?P<machine>.+?)_"
    r"(?:section_(?P<section>\d{2})|id_(?P<id>\d{2}))(?:_(?P<domain>source|target))?(?:_test)?\.csv"
)
_CLIP = re.compile(r"section_\d{2}_(source|target)_test_(normal|anomaly)_.*")
_CLIP_2020 = re.compile(r"(normal|anomaly)_id_\d{2}_.*")
_CLIP_2021 = re.compile(r"section_\d{2}_(source|target)_test_\d+\..*")
_LABEL = re.compile(r"[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*_task2_[1-4]")
_SHOWN = 3


class SubmissionError(OffkeyError):
    """A result file cannot be used; the message names the file, the line and what to do."""


def write_submission(
    folder: Path, scored: Sequence[ScoredClip], decisions: bool = True, protocol: Protocol | None = None
) -> list[Path]:
    """Write both files of every machine and section into `folder`, rows ordered by file name; their paths.

    `protocol` names the files as its year does (2020 a machine ID and no decisions, 2021 a section and domain); left
    out, as since 2022. Scores are written so that they read back exactly. Each file appears whole or not at all. Raises
    `SubmissionError` on a score that is not finite, on a clip that is there twice, and, unless `decisions` is
    False, on a clip without a decision; then nothing is written.
    """
    rules = protocol or PROTOCOLS["dcase2025"]
    decisions = decisions and rules.decisions
    tables: dict[str, dict[str, ScoredClip]] = {}
    for clip in scored:
        rows = tables.setdefault(_ending(clip, rules), {})
        where = f"{clip.machine}/{clip.file}"
        if clip.file in rows:
            raise SubmissionError(f"{where} is there twice; keep one score a clip")
        if not math.isfinite(clip.score):
            raise SubmissionError(f"the score of {where} is {clip.score}; score the clip again")
        if decisions and clip.is_anomalous is None:
            raise SubmissionError(f"{where} has no decision; the challenge asks for one for every clip")
        rows[clip.file] = clip
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for ending, rows in sorted(tables.items()):
        ordered = [rows[file] for file in sorted(rows)]
        scores = [(clip.file, repr(float(clip.score))) for clip in ordered]
        written.append(_write(folder / f"anomaly_score_{ending}.csv", scores))
        if decisions:
            alarms = [(clip.file, str(int(bool(clip.is_anomalous)))) for clip in ordered]
            written.append(_write(folder / f"decision_result_{ending}.csv", alarms))
    return written


def _ending(clip: ScoredClip, rules: Protocol) -> str:
    """What stands behind `anomaly_score_` in the name of the file that holds a clip."""
    if rules.files == "id":
        return f"{clip.machine}_id_{clip.section}"
    if rules.files == "section":
        return f"{clip.machine}_section_{clip.section}_test"
    if clip.domain is Domain.UNKNOWN:
        raise SubmissionError(
            f"the domain of {clip.machine}/{clip.file} is not known, and {rules.name} has a file for each domain; keep "
            "the clips in source_test/ and target_test/, or under their own names"
        )
    return f"{clip.machine}_section_{clip.section}_{clip.domain}_test"


def check_label(label: str) -> str:
    """`label` itself, if it has the challenge's form; raises `SubmissionError` otherwise.

    >>> check_label("Doe_UNI_task2_1")
    'Doe_UNI_task2_1'
    """
    if not _LABEL.fullmatch(label):
        raise SubmissionError(
            f"{label!r} is no label of a submission: it is <last name>_<institute>_task2_<1 to 4>, letters and digits"
        )
    return label


def check_scored(scored: Sequence[ScoredClip], clips: Sequence[ClipMeta], protocol: Protocol) -> list[str]:
    """Whether `scored` holds the test `clips` of a data set, each once; sentences on what is unusual for the year.

    Raises `SubmissionError` that names machines and clips that are missing, foreign or doubled.
    """

    def domain(clip: ClipMeta | ScoredClip) -> str:
        return (
            str(clip.domain) if protocol.files == "domain" else ""
        )  # names repeat from domain to domain in 2021 alone

    wanted = Counter((clip.machine, clip.section, domain(clip), clip.path.name) for clip in clips)
    doubled = [key for key, count in wanted.items() if count > 1]
    if doubled:
        raise SubmissionError(f"the data set has {doubled[0][0]}/{doubled[0][3]} twice; keep one of the two")
    found = Counter((clip.machine, clip.section, domain(clip), clip.file) for clip in scored)
    for what, keys, remedy in (
        ("are there twice", [key for key, count in found.items() if count > 1], "keep one score a clip"),
        ("of the data set have no score", list(wanted - found), "score them too"),
        ("with a score are not in the data set", list(found - wanted), "score the data set again"),
    ):
        if keys:
            named = ", ".join(f"{machine}/{file}" for machine, _, _, file in sorted(keys)[:_SHOWN])
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            raise SubmissionError(f"{len(keys)} test clips {what} ({named}{more}); {remedy}")
    if protocol.clips_a_section is None:
        return []
    sizes = Counter((clip.machine, clip.section) for clip in scored)
    return [
        f"{machine}, section {section}: {count} test clips, and {protocol.name} has {protocol.clips_a_section}"
        for (machine, section), count in sorted(sizes.items())
        if count != protocol.clips_a_section
    ]


def write_package(
    out: Path, label: str, scored: Sequence[ScoredClip], meta: str, protocol: Protocol | None = None
) -> list[Path]:
    """Write one submission of a package into `out/task2/<label>/`: result files and `<label>.meta.yaml`; their paths.

    The folder appears whole or not at all; one that holds this very submission already is left as it is, so that a call
    after a kill goes on. Raises as `check_label` and `write_submission` do, and where the folder holds something else
    (old files would be handed in, or a meta file that a person has filled in would be lost).
    """
    folder = out / "task2" / check_label(label)
    work = folder.with_name(f".{label}.part")
    shutil.rmtree(work, ignore_errors=True)
    try:
        written = [*write_submission(work, scored, protocol=protocol), write_whole(work / f"{label}.meta.yaml", meta)]
        names = [path.name for path in written]
        there = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
        if not there:
            work.replace(folder)  # over an empty folder, too
        elif there != {path.name: path.read_bytes() for path in written}:
            raise SubmissionError(
                f"{folder} is not empty, and holds another submission, or one that was edited; give another --out"
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [folder / name for name in names]


def read_submission(folder: Path, truth: Truth | None = None) -> list[ScoredClip]:
    """The clips of a folder of result files, whoever wrote them, with what the truth says of each.

    Without `truth`, domain and condition are read from the clips' names where they stand there (development
    sets), and are unknown elsewhere. With it, the folder must hold exactly the clips of every machine that it
    has files for. Raises `SubmissionError` on doubles, missing and foreign clips, rows that are not
    `file,number`, NaN, decisions other than 0 and 1, and decision files whose clips differ from the score
    file's.
    """
    if not folder.is_dir():
        raise SubmissionError(f"{folder} is not a folder; give the one with the anomaly_score_….csv files")
    scores: dict[tuple[str, str, str], Path] = {}
    alarms: dict[tuple[str, str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        if match:
            key = (match["machine"], match["section"] or match["id"], match["domain"] or "")
            (scores if match["kind"] == "anomaly_score" else alarms)[key] = path
    if not scores:
        raise SubmissionError(f"{folder} holds no anomaly_score_<machine>_section_00_test.csv")
    orphans = sorted(alarms.keys() - scores.keys())
    if orphans:
        raise SubmissionError(f"{alarms[orphans[0]]} has no anomaly_score file beside it; add that file")
    clips: list[ScoredClip] = []
    for (machine, section, domain), path in scores.items():
        values = _rows(path)
        decided = (
            _decisions(alarms[machine, section, domain], path, values) if ((machine, section, domain) in alarms) else {}
        )
        for file, value in values.items():
            if truth is None:
                known = truth_of_name(file)
            elif (machine, file) in truth:
                known = truth[machine, file]
            else:
                raise SubmissionError(f"{path}: the truth knows no clip {file} of {machine}; remove its row")
            place = Domain(domain) if domain and known[0] == Domain.UNKNOWN else known[0]
            clips.append(ScoredClip(file, machine, section, place, known[1], value, decided.get(file)))
    if truth is not None:
        _complete(folder, clips, truth)
    return clips


def truth_of_name(file: str) -> tuple[Domain, Condition]:
    """Domain and condition that a development clip's name tells; unknown where it tells nothing.

    >>> truth_of_name("section_00_target_test_anomaly_0003_vel_4.wav")
    (<Domain.TARGET: 'target'>, <Condition.ANOMALY: 'anomaly'>)
    """
    match = _CLIP.fullmatch(file)
    if match:
        return Domain(match[1]), Condition(match[2])
    hidden = _CLIP_2021.fullmatch(file)
    if hidden:
        return Domain(hidden[1]), Condition.UNKNOWN
    old = _CLIP_2020.fullmatch(file)
    return Domain.UNKNOWN, Condition(old[1]) if old else Condition.UNKNOWN


def read_truth(path: Path) -> dict[tuple[str, str], tuple[Domain, Condition]]:
    """The truth of an evaluation set.

    Either the organisers' folder, with `ground_truth_data/` and (since 2022) `ground_truth_domain/`, each
    holding headerless `ground_truth_<machine>_section_00_test.csv` with rows `file,0|1`; or the organisers' list
    `eval_data_list_<year>.csv`, with the machine alone on a line and rows `hidden name,telling name` below it; or one
    CSV with the columns `file,domain,label`, where `file` is `<machine>/…/name` or a column `machine` names the
    machine. Rows of training clips do no harm. Raises `SubmissionError` where none is found or a row cannot be read.
    """
    if path.is_file():
        return _renamed(path) if _is_list(path) else _truth_table(path)
    labels = path / "ground_truth_data"
    files = sorted((labels if labels.is_dir() else path).glob("ground_truth_*.csv"))
    if not files:
        tables = sorted(path.glob("truth.csv"))
        if tables:
            return _truth_table(tables[0])
        lists = sorted(path.glob("eval_data_list*.csv"))
        if len(lists) == 1:
            return _renamed(lists[0])
        if lists:
            raise SubmissionError(
                f"{path} holds {len(lists)} lists, such as {lists[0].name}; name the file of one year"
            )
        raise SubmissionError(
            f"{path} holds neither truth.csv nor eval_data_list_….csv nor ground_truth_data/ground_truth_….csv"
        )
    truth: dict[tuple[str, str], tuple[Domain, Condition]] = {}
    pattern = re.compile(r"ground_truth_(?P<machine>.+?)_section_\d{2}(?:_(?P<domain>source|target))?_test\.csv")
    for file in files:
        match = pattern.fullmatch(file.name)
        if match is None:
            raise SubmissionError(f"{file}: expected ground_truth_<machine>_section_00_test.csv")
        beside = path / "ground_truth_domain" / file.name
        domains = _binary(beside) if beside.is_file() else {}
        for clip, label in _binary(file).items():
            domain = Domain(match["domain"]) if match["domain"] else Domain.UNKNOWN
            if clip in domains:
                domain = Domain.TARGET if domains[clip] else Domain.SOURCE
            truth[match["machine"], clip] = (domain, Condition.ANOMALY if label else Condition.NORMAL)
    return truth


def _is_list(path: Path) -> bool:
    """Whether a file is the organisers' list: its first line is a machine alone."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        first = stream.readline().strip().rstrip(",")
    return bool(first) and "," not in first


def _renamed(path: Path) -> dict[tuple[str, str], tuple[Domain, Condition]]:
    """The truth told by the names that the organisers gave their hidden clips back."""
    truth: dict[tuple[str, str], tuple[Domain, Condition]] = {}
    machine = ""
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError) as error:
        raise SubmissionError(f"{path} cannot be read ({error})") from None
    for line, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row if cell.strip()]
        if len(cells) == 1:
            machine = cells[0]
        elif cells:
            known = truth_of_name(cells[1])
            if len(cells) != 2 or not machine or known[1] is Condition.UNKNOWN:
                raise SubmissionError(f"{path}, line {line}: expected hidden name,telling name below a machine")
            truth[machine, cells[0]] = known
    if not truth:
        raise SubmissionError(f"{path} names no clip; it needs rows hidden name,telling name below each machine")
    return truth


def _truth_table(path: Path) -> dict[tuple[str, str], tuple[Domain, Condition]]:
    truth: dict[tuple[str, str], tuple[Domain, Condition]] = {}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        for row in csv.DictReader(stream):
            try:
                file = Path(row["file"].replace("\\", "/"))
                machine = row.get("machine") or file.parts[0]
                said = row.get("label") or row["condition"]
                truth[machine, file.name] = (Domain(row.get("domain") or "unknown"), Condition(said))
            except (KeyError, ValueError, IndexError, AttributeError) as error:
                raise SubmissionError(
                    f"{path}: a row cannot be read ({error}); the columns are file,domain,label"
                ) from None
    if not truth:
        raise SubmissionError(f"{path} is empty; its columns are file,domain,label")
    return truth


def _rows(path: Path) -> dict[str, float]:
    """File name → number of a headerless two-column file."""
    rows = read_pairs(path, SubmissionError, "file,number and no header", _is_number)
    found = {file: float(value) for file, value in rows.items()}
    for line, (file, number) in enumerate(found.items(), start=1):
        if not math.isfinite(number):
            raise SubmissionError(f"{path}, row {line}: the value of {file} is {number}; give a finite one")
    if not found:
        raise SubmissionError(f"{path} is empty; it needs one row a test clip")
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _binary(path: Path) -> dict[str, bool]:
    rows = _rows(path)
    wrong = [file for file, value in rows.items() if value not in (0.0, 1.0)]
    if wrong:
        raise SubmissionError(f"{path}: {wrong[0]} has the value {rows[wrong[0]]:g}; only 0 and 1 are allowed")
    return {file: value == 1.0 for file, value in rows.items()}


def _decisions(path: Path, beside: Path, scores: Mapping[str, float]) -> dict[str, bool]:
    found = _binary(path)
    differ = sorted(found.keys() ^ scores.keys())
    if differ:
        holder = path if differ[0] in found else beside
        raise SubmissionError(
            f"{path} has {len(found)} clips and {beside.name} {len(scores)}; {differ[0]} stands only in {holder.name}"
        )
    return found


def _complete(folder: Path, clips: Sequence[ScoredClip], truth: Truth) -> None:
    here = {(clip.machine, clip.file) for clip in clips}
    machines = {clip.machine for clip in clips}
    tested = {key for key in truth if key[0] in machines and "_train_" not in key[1]}
    tested -= {key for key in tested if "supplemental" in key[1]}
    missing = sorted(tested - here)
    if missing:
        machine, file = missing[0]
        raise SubmissionError(
            f"{folder}: {len(missing)} of {len(tested)} test clips have no score, first {machine}/{file}; "
            "score them too"
        )


def _write(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return write_whole(path, text.getvalue())
