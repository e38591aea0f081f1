"""A detector on the test clips of a data set: scores, official metric, and the folder that keeps them.

`<model>/evaluation/` holds `scores.csv` (a row a test clip), `result.json` (the metric, absent where no condition is
known), `embeddings.safetensors` (what the report's map is drawn from) and `evaluation.json` (what was evaluated).
"""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offkey.data.loader import Failure
from offkey.data.sessions import with_sessions
from offkey.data.source import Source
from offkey.detector import Detector, FileVerdict, machine_key
from offkey.evaluation.protocol import Protocol, ScoredClip, choose_protocol, evaluate
from offkey.evaluation.result import Result
from offkey.files import sweep, write_whole
from offkey.types import ClipMeta, Condition, Content, Domain, OffkeyError, Split

__all__ = ["Assessment", "AssessmentError", "assess", "read_assessment"]

FOLDER = "evaluation"
COLUMNS = (
    "file", "path", "machine", "section", "domain", "condition", "score", "p_value", "threshold", "is_anomalous",
)  # fmt: skip


class AssessmentError(OffkeyError):
    """There is nothing to evaluate, or a kept evaluation cannot be read."""


@dataclass(frozen=True)
class Assessment:
    """Test clips with their verdicts; `result` is None where `no_result` says why; `embeddings` a row a clip.

    `embeddings` (M, D) float32 is the first view that the detector's scorers look at, rows in the order of `clips`.
    """

    clips: Sequence[ClipMeta]
    verdicts: Sequence[FileVerdict]
    machines: Sequence[str]
    result: Result | None
    no_result: str
    failures: Sequence[Failure]
    embeddings: Mapping[str, NDArray[np.float32]]
    source: Path

    def scored(self) -> list[ScoredClip]:
        """What the rules of the challenge look at, a row a clip that has a verdict."""
        return scored_clips(self.clips, self.verdicts)

    def save(self, folder: Path) -> Path:
        """Write the evaluation into `folder`, every file whole."""
        from safetensors.numpy import save as numpy_bytes

        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = _scorers(self.verdicts)
        writer.writerow((*COLUMNS, *names))
        for clip, row, machine in zip(self.clips, self.verdicts, self.machines, strict=True):
            v = row.verdict
            if v is not None:
                told = (repr(v.score), repr(v.p_value), repr(v.threshold), str(v.is_anomalous).lower())
                known = (machine, clip.section, clip.domain.value, clip.condition.value)
                alone = (repr(v.parts[name]) for name in names)
                writer.writerow((clip.path.name, str(clip.path.absolute()), *known, *told, *alone))
        sweep(folder)  # of an evaluation that was killed
        write_whole(folder / "scores.csv", text.getvalue())
        write_whole(folder / "embeddings.safetensors", numpy_bytes(dict(self.embeddings)))
        facts = {
            "source": str(self.source),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "failures": [[str(failure.path), failure.problem] for failure in self.failures],
            "no_result": self.no_result,
        }
        if self.result is None:
            (folder / "result.json").unlink(missing_ok=True)
        else:
            write_whole(folder / "result.json", json.dumps(self.result.to_dict(), indent=1))
        return write_whole(folder / "evaluation.json", json.dumps(facts, indent=1, ensure_ascii=False))


def assess(
    detector: Detector,
    source: Source,
    *,
    year: int | None = None,
    bootstrap: int = 1000,
    groups: Mapping[str, str] | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Assessment:
    """Score every test clip of the machines that the detector knows, and apply the rules of `year`.

    `year` defaults to the data set's, then to the latest rules, or to plain AUC where domains are not told. `groups`
    (file -> group, such as a flight) makes whole groups the unit of the bootstrap. Before anything is scored, raises
    AssessmentError where there is no test clip of a known machine, EvaluationError for a year without rules, and
    SessionError where the groups do not tell of a clip.
    """
    if year is not None:
        choose_protocol(year)
    tests = [clip for clip in source.clips if clip.split is Split.TEST and clip.content is Content.MIXTURE]
    clips = [clip for clip in tests if machine_key(clip, detector.machines) is not None]
    if not clips:
        found = ", ".join(sorted({clip.machine for clip in tests})) or "none"
        raise AssessmentError(
            f"{source.root} has no test clips of {', '.join(detector.machines)} (machines with test clips: {found}); "
            "recordings without labels are judged by `offkey score`"
        )
    if groups is not None:
        clips = with_sessions(clips, groups)
    keys = [str(machine_key(clip, detector.machines)) for clip in clips]
    kept: list[tuple[int, dict[str, NDArray[np.float32]]]] = []
    verdicts = list(detector.score_files(clips, workers=workers, progress=progress, embeddings=kept))
    failures = [Failure(row.path, row.error or "") for row in verdicts if row.verdict is None]
    used = [place for place, row in enumerate(verdicts) if row.verdict is not None]
    rows = dict(kept)
    views = rows[used[0]].keys() if used else ()
    embeddings = {view: np.stack([rows[place][view] for place in used]) for view in views}
    try:
        result, reason = judge([clips[p] for p in used], [verdicts[p] for p in used], source, year, bootstrap)
    except OffkeyError as error:
        if not failures:
            raise
        # what could be scored is kept
        result, reason = None, f"without the {len(failures)} clips that could not be used there is no metric: {error}"
    missing = sorted(set(source.machines()) - {clip.machine for clip in clips})
    if missing:
        reason = (reason + " " if reason else "") + f"not known to this detector: {', '.join(missing)}"
    return Assessment(clips, verdicts, keys, result, reason, failures, embeddings, source.root.absolute())


def scored_clips(clips: Sequence[ClipMeta], rows: Sequence[FileVerdict]) -> list[ScoredClip]:
    """Join clips with their verdicts; clips without one are left out."""
    names = Counter((clip.machine, clip.section, clip.domain, clip.path.name) for clip in clips)
    return [
        ScoredClip(
            # test/normal/1.wav and test/faulty/1.wav are two clips
            clip.path.name
            if names[clip.machine, clip.section, clip.domain, clip.path.name] == 1
            else str(Path(*clip.path.parts[-3:])),
            clip.machine, clip.section, clip.domain, clip.condition, row.verdict.score,
            row.verdict.is_anomalous,
        )
        for clip, row in zip(clips, rows, strict=True)
        if row.verdict is not None
    ]  # fmt: skip


def judge(
    clips: Sequence[ClipMeta],
    rows: Sequence[FileVerdict],
    source: Source,
    year: int | None,
    bootstrap: int,
) -> tuple[Result | None, str]:
    """The official metric of scored clips, as a whole and a scorer, or the reason why there is none.

    Where clips have a `session`, the bootstrap draws whole sessions.
    """
    scored = scored_clips(clips, rows)
    if not any(clip.condition is not Condition.UNKNOWN for clip in scored):
        return None, "the condition of no test clip is known, so there is no metric; the scores are kept"
    protocol = protocol_of(source, year, scored)
    sessions = [clip.session for clip, row in zip(clips, rows, strict=True) if row.verdict is not None]
    groups = sessions if any(sessions) else None
    whole = evaluate(scored, protocol, bootstrap=bootstrap, groups=groups)
    verdicts = [row.verdict for row in rows if row.verdict is not None]
    alone = {}
    for name in _scorers(rows):
        # alarms are raised on the blend: a scorer alone decides nothing
        parts = [
            replace(clip, score=verdict.parts[name], is_anomalous=None)
            for clip, verdict in zip(scored, verdicts, strict=True)
        ]
        alone[name] = evaluate(parts, protocol, bootstrap=bootstrap, groups=groups)
    return replace(whole, scorers=alone), ""


def _scorers(rows: Sequence[FileVerdict]) -> list[str]:
    """Names of the scorers that were blended; none where there is one only."""
    first = next((row.verdict for row in rows if row.verdict is not None), None)
    return list(first.parts) if first is not None and len(first.parts) > 1 else []


def protocol_of(source: Source, year: int | None, scored: Sequence[ScoredClip]) -> Protocol:
    """The rules asked for, else the data set's own year, else what the clips allow."""
    return choose_protocol(year if year is not None else source.year, scored)


@dataclass(frozen=True)
class KeptClip:
    """One row of `scores.csv`."""

    file: str
    path: Path
    machine: str
    section: str
    domain: Domain
    condition: Condition
    score: float
    p_value: float
    threshold: float
    is_anomalous: bool


@dataclass(frozen=True)
class KeptAssessment:
    """What `Assessment.save` wrote."""

    clips: Sequence[KeptClip]
    result: dict[str, Any] | None
    embeddings: Mapping[str, NDArray[np.float32]]
    facts: Mapping[str, Any]


def read_assessment(folder: Path) -> KeptAssessment:
    """Read an evaluation folder; AssessmentError where there is none, or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / "evaluation.json").is_file():
        raise AssessmentError(f"{folder} holds no evaluation; run `offkey evaluate MODEL SOURCE` first")
    try:
        with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
            clips = [_kept(row) for row in csv.DictReader(file)]
        result = folder / "result.json"
        return KeptAssessment(
            clips,
            json.loads(result.read_text(encoding="utf-8")) if result.is_file() else None,
            load_file(folder / "embeddings.safetensors"),
            json.loads((folder / "evaluation.json").read_text(encoding="utf-8")),
        )
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise AssessmentError(f"{folder}: the evaluation is damaged ({error}); run `offkey evaluate` again") from error


def _kept(row: Mapping[str, str]) -> KeptClip:
    return KeptClip(
        row["file"],
        Path(row["path"]),
        row["machine"],
        row["section"],
        Domain(row["domain"]),
        Condition(row["condition"]),
        float(row["score"]),
        float(row["p_value"]),
        float(row["threshold"]),
        row["is_anomalous"] == "true",
    )
