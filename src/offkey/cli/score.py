"""`offkey score`: judge new recordings."""

from __future__ import annotations

import csv
import io
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from offkey.cli.explain import pictures
from offkey.cli.output import Bars, complain, print_json
from offkey.cli.rates import ClipEveryOption, FalseAlarmsOption, asked_rate
from offkey.cli.recordings import folder_or_file
from offkey.types import OffkeyError

if TYPE_CHECKING:
    from offkey.detector import Detector
    from offkey.runtime import Exported
    from offkey.scoring import FalseAlarms

HEADER = ("file", "score", "p_value", "threshold", "is_anomalous", "error")


class Engine(StrEnum):
    """What computes."""

    AUTO = "auto"
    TORCH = "torch"
    ONNX = "onnx"


def score(
    model: Annotated[Path, typer.Argument(help="Folder of a detector, or of an exported one.")],
    paths: Annotated[list[Path], typer.Argument(help="Audio files, or folders of them.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write a CSV: " + ",".join(HEADER) + ".")] = None,
    machine: Annotated[str | None, typer.Option(help="Which machine the files are of.")] = None,
    explain: Annotated[
        Path | None,
        typer.Option("--explain", help="Folder for a picture a file: where it departs from normal."),
    ] = None,
    false_alarms: FalseAlarmsOption = None,
    clip_every: ClipEveryOption = None,
    workers: Annotated[int, typer.Option(help="Threads that decode.", min=0)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    engine: Annotated[
        Engine, typer.Option(help="What computes: onnx for a folder of `offkey export`; auto looks at the folder.")
    ] = Engine.AUTO,
) -> int:
    """Judge recordings: score, p-value, alarm. One row a file in the order given; unusable files are named (exit 1)."""
    from offkey.data.machines import known_machine
    from offkey.files import check_file, check_folder, write_whole

    wanted, every = asked_rate(false_alarms, clip_every)
    if out is not None:
        check_file(out)
    if explain is not None:
        check_folder(explain)
    detector = _load(model, engine, explain is not None)
    if machine is not None:
        known_machine(machine, detector.machines)
    if wanted is not None:
        detector = _with_rate(detector, wanted, every)
    files = [file for path in paths for file in folder_or_file(path)]
    if not files:
        complain(f"no audio files in {', '.join(map(str, paths))}")
        return 2
    with Bars() as bars:
        bars.start("scoring", len(files))
        rows = list(
            detector.score_files(files, machine=machine, workers=workers, progress=lambda done, _: bars.step(done))
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for row in rows:
        v = row.verdict
        told = (
            ("", "", "", "")
            if v is None
            else (f"{v.score:.9g}", f"{v.p_value:.6g}", f"{v.threshold:.9g}", str(v.is_anomalous).lower())
        )
        writer.writerow((str(row.path), *told, row.error or ""))
    if out is not None:
        write_whole(out, text.getvalue())
    failed = [row for row in rows if row.verdict is None]
    for row in failed:
        complain(f"{row.path}: {row.error}")
    if as_json:
        print_json(
            {
                "files": [
                    {"file": str(row.path), "error": row.error}
                    | (
                        {}
                        if row.verdict is None
                        else {
                            "score": row.verdict.score,
                            "p_value": row.verdict.p_value,
                            "threshold": row.verdict.threshold,
                            "is_anomalous": row.verdict.is_anomalous,
                            "machine": row.verdict.machine,
                        }
                    )
                    for row in rows
                ]
            }
        )
    elif out is None:
        typer.echo(text.getvalue(), nl=False)
    else:
        alarms = sum(row.verdict.is_anomalous for row in rows if row.verdict is not None)
        typer.echo(f"{len(rows) - len(failed)} files scored, {alarms} alarms, {len(failed)} unusable: {out}")
    unexplained = 0
    if explain is not None:  # last, and the verdicts are told already
        for row, explanation, picture, error in pictures(cast("Detector", detector), rows, explain):
            if explanation is None:
                complain(f"{row.path}: {error}")
                unexplained += 1
            else:
                typer.echo(f"{row.path.name}: {explanation.text} ({picture})", err=True)
    return 1 if failed or unexplained else 0


def _with_rate(detector: Detector | Exported, wanted: FalseAlarms, every: float | None) -> Detector:
    """The detector with thresholds for another rate; complains where too few normal clips stand behind it."""
    from offkey.runtime import Exported

    if isinstance(detector, Exported):
        raise OffkeyError(
            "an exported detector keeps the thresholds that it was exported with; use --false-alarms with the detector "
            "it was made from, or with the `offkey fit` before the export"
        )
    from offkey.alarms import clip_seconds, shortfall

    changed = detector.with_false_alarms(wanted, every)
    for name, known in changed.machines.items():
        missing = shortfall(known.calibration, every or clip_seconds(known))
        if missing:
            complain(f"{name}: {missing}")
    return changed


def _load(model: Path, engine: Engine, explained: bool) -> Detector | Exported:
    """The detector, or its exported form where the folder holds that."""
    from offkey.runtime import Exported, is_exported

    if engine is Engine.ONNX or (engine is Engine.AUTO and is_exported(model)):
        if explained:
            raise OffkeyError("an exported detector cannot explain; use --explain with the detector it was made from")
        return Exported.load(model)
    if is_exported(model):
        raise OffkeyError(f"{model} is an exported detector, which torch does not run; leave out --engine torch")
    try:
        from offkey.detector import Detector
    except ImportError as error:
        raise OffkeyError(
            f"{error.name} is not installed, so that only exported detectors can be scored (`offkey export`, on a "
            "machine that has it)"
        ) from None
    return Detector.load(model)
