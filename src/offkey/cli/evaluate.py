"""`offkey evaluate`: the official metric of a detector, or of anybody's score files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offkey.cli.output import Bars, complain, print_json, print_table, report_failures

if TYPE_CHECKING:
    from offkey.evaluation.result import Result


def evaluate(
    model: Annotated[Path | None, typer.Argument(help="Folder of a detector.")] = None,
    source: Annotated[Path | None, typer.Argument(help="Data set with labelled test clips.")] = None,
    scores: Annotated[Path | None, typer.Option("--scores", help="Folder of submission files instead.")] = None,
    truth: Annotated[
        Path | None,
        typer.Option("--truth", help="Truth of an evaluation set for --scores: the organisers' folder, or a CSV."),
    ] = None,
    year: Annotated[int | None, typer.Option(help="Rules of this DCASE year (default: the data set's).")] = None,
    bootstrap: Annotated[int, typer.Option(help="Repetitions behind the intervals; 0 leaves them out.", min=0)] = 1000,
    groups: Annotated[
        str | None,
        typer.Option(help="CSV:COLUMN naming a group a file (e.g. truth.csv:flight): whole groups are resampled."),
    ] = None,
    submission: Annotated[Path | None, typer.Option(help="Also write the challenge's files here.")] = None,
    workers: Annotated[int, typer.Option(help="Threads that decode.", min=0)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object (fractions, not percent).")] = False,
) -> int:
    """Score the test clips and print the official metric with 95 % intervals; keep everything in MODEL/evaluation/."""
    if scores is not None:
        given = {"MODEL": model, "--groups": groups, "--submission": submission}
        beside = [name for name, value in given.items() if value is not None]
        if beside:
            complain(f"{' and '.join(beside)} cannot stand beside --scores, which judges files that are scored already")
            return 2
        return _judge_files(scores, truth, year, bootstrap, as_json)
    if truth is not None:
        complain("--truth goes with --scores: judge the files that `offkey evaluate … --submission DIR` writes")
        return 2
    if model is None or source is None:
        complain("evaluate needs MODEL SOURCE, or --scores DIR (and --truth FILE where the names hide it)")
        return 2
    from offkey.alarms import clip_seconds, shortfall
    from offkey.assessment import FOLDER, assess
    from offkey.data.sessions import read_groups
    from offkey.data.source import open_source
    from offkey.detector import Detector

    detector = Detector.load(model)
    with Bars() as bars:
        opened = open_source(source)
        bars.start("scoring test clips", len(opened.test()))
        assessment = assess(
            detector,
            opened,
            year=year,
            bootstrap=bootstrap,
            groups=read_groups(groups) if groups else None,
            workers=workers,
            progress=lambda done, _: bars.step(done),
        )
    assessment.save(model / FOLDER)
    if submission is not None:
        from offkey.evaluation.submission import write_submission

        for file in write_submission(submission, assessment.scored()):
            typer.echo(f"wrote {file}", err=True)
    if assessment.result is None:
        complain(assessment.no_result)
        if as_json:
            print_json({"protocol": None, "official_score": None, "reason": assessment.no_result})
    else:
        show_result(assessment.result, as_json)
        if assessment.no_result:
            complain(assessment.no_result)
    for name in sorted(set(assessment.machines)):
        known = detector.machines[name]
        missing = shortfall(known.calibration, clip_seconds(known))
        if missing:
            complain(f"{name}: {missing}")
    if not as_json:
        typer.echo(f"kept in {model / FOLDER}; next: offkey report {model}")
    return report_failures(assessment.failures)


def show_result(result: Result, as_json: bool) -> None:
    """Print a result as JSON or as a table in percent."""
    if as_json:
        print_json(result.to_dict())
        return
    from offkey.evaluation import PROTOCOLS

    metrics = result.metrics
    rows = [
        [name, *(_percent(m.values[key], m.intervals.get(key)) for key in metrics)]
        for name, m in result.machines.items()
    ]
    if len(rows) > 1:
        kind = PROTOCOLS[result.protocol].average  # that of the official score
        values = result.harmonic_mean if kind == "harmonic" else result.arithmetic_mean
        means = (_percent(values[key], result.mean_intervals.get(f"{kind}.{key}")) for key in metrics)
        rows.append([f"{kind} mean", *means])
    print_table(["machine (%)", *(key.replace("_", " ").replace("auc", "AUC") for key in metrics)], rows)
    typer.echo(f"official score ({result.protocol}): {_percent(result.official_score, result.interval)} %")
    for name, alone in result.scorers.items():
        typer.echo(f"  {name} alone: {_percent(alone.official_score, alone.interval)} %")
    everything = result.decisions.get("all")
    if everything is not None:
        typer.echo(
            f"alarms: precision {100 * everything.precision:.1f} %, recall {100 * everything.recall:.1f} %, "
            f"F1 {100 * everything.f1:.1f} %"
        )
    for name, reason in result.left_out.items():
        complain(f"{name} is not in the means: {reason}")
    for remark in result.remarks:
        complain(remark)


def _percent(value: float, interval: tuple[float, float] | None) -> str:
    text = f"{100 * value:.1f}"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}–{100 * interval[1]:.1f}]"


def _judge_files(folder: Path, truth: Path | None, year: int | None, bootstrap: int, as_json: bool) -> int:
    from offkey.evaluation.protocol import choose_protocol
    from offkey.evaluation.protocol import evaluate as judge
    from offkey.evaluation.submission import read_submission, read_truth

    scored = read_submission(folder, read_truth(truth) if truth is not None else None)
    show_result(judge(scored, choose_protocol(year, scored), bootstrap=bootstrap), as_json)
    return 0
