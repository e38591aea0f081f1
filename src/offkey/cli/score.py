"""`offkey score`: judge new recordings."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import typer

from offkey.cli.explain import pictures
from offkey.cli.output import Bars, complain, folder_or_file, print_json
from offkey.cli.rates import ClipEveryOption, FalseAlarmsOption, clips_every, false_alarms_of

HEADER = ("file", "score", "p_value", "threshold", "is_anomalous", "error")


def score(
    model: Annotated[Path, typer.Argument(help="Folder of a detector.")],
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
) -> int:
    """Judge recordings: score, p-value, alarm. One row a file in the order given; unusable files are named (exit 1)."""
    from offkey.alarms import clip_seconds, shortfall
    from offkey.detector import Detector
    from offkey.files import write_whole

    detector = Detector.load(model)
    wanted = false_alarms_of(false_alarms)
    if wanted is not None:
        detector = detector.with_false_alarms(wanted, clips_every(clip_every))
        for name, known in detector.machines.items():
            missing = shortfall(known.calibration, clips_every(clip_every) or clip_seconds(known))
            if missing:
                complain(f"{name}: {missing}")
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
    if explain is not None:
        for row, explanation, picture in pictures(detector, rows, explain):
            typer.echo(f"{row.path.name}: {explanation.text} ({picture})", err=True)
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
    return 1 if failed else 0
