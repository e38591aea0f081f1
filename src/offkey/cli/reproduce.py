"""`offkey reproduce`: from a DCASE data set to the published table, unattended and resumable."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from offkey.cli.fit import SetOption
from offkey.cli.output import Bars, complain, print_json, print_table
from offkey.types import OffkeyError

if TYPE_CHECKING:
    from offkey.reproducing import Plan

_GIB = 2**30


def reproduce(
    experiment: Annotated[
        str, typer.Argument(help="table1; dcase2020 to dcase2026 (development sets); evaluation2020 to evaluation2026.")
    ],
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the data (of `offkey data fetch`).")],
    systems: Annotated[
        str, typer.Option(help="Names with commas between.")
    ] = "system1,system2,system3,system4,baseline",
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'NAME=SYSTEM KEY=VALUE …'",
            help="A system with settings of its own; with the name of one of --systems it takes its place.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between.")] = "0",
    machines: Annotated[str, typer.Option(help="Only these, with commas between (default: all of the set).")] = "",
    settings: SetOption = None,
    additional: Annotated[
        str,
        typer.Option(
            help="Systems (or `all`) that also learn from the training clips of the year's other part: of its machines "
            "(2020 to 2022: its sections)."
        ),
    ] = "",
    remix: Annotated[
        str,
        typer.Option(
            help="Learn a separator of this size (tiny, small, medium) first, and recombine training clips with it, "
            "as the report does."
        ),
    ] = "",
    truth: Annotated[
        Path | None, typer.Option(help="Truth of an evaluation set: the organisers' folder or list, or a CSV.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder (default: runs/EXPERIMENT).")] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download data and weights that are not there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and estimate what it takes.")
    ] = False,
    bootstrap: Annotated[int, typer.Option(help="Repetitions behind the intervals; 0 leaves them out.", min=0)] = 1000,
    workers: Annotated[int, typer.Option(help="Threads that decode.", min=0)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Train and score every system with every seed, and put the table beside the published one.

    Killed and started again, it goes on. The run folder holds everything that a number can be audited with.
    """
    from offkey.benchmarking import Contestant
    from offkey.reproducing import Plan
    from offkey.reproducing import experiment as known

    entries = {name: Contestant(name, name) for name in _names(systems)}
    for text in variant or []:
        own = Contestant.read(text)
        entries[own.name] = own
    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise OffkeyError(f"--seeds {seeds!r}: expected whole numbers with commas between, such as 0,1,2") from None
    if remix not in ("", "tiny", "small", "medium"):
        raise OffkeyError(f"--remix {remix}: a separator is tiny, small or medium")
    joined = list(entries) if additional.strip() == "all" else _names(additional)
    plan = Plan(
        experiment=known(experiment),
        root=root,
        out=out if out is not None else Path("runs") / experiment,
        contestants=tuple(entries.values()),
        seeds=numbers,
        machines=tuple(_names(machines)),
        settings=tuple(settings or ()),
        additional=frozenset(joined),
        truth=truth,
        bootstrap=bootstrap,
        workers=workers,
        remix=cast(Literal["", "tiny", "small", "medium"], remix),
    )
    return _tell(plan, as_json) if dry_run else _do(plan, fetch, as_json)


def _names(text: str) -> list[str]:
    return [name for name in map(str.strip, text.split(",")) if name]


def _do(plan: Plan, fetch: bool, as_json: bool) -> int:
    from offkey.reproducing import PLAN, Work, finished_runs
    from offkey.reproducing import reproduce as go

    with Bars() as bars:
        work = Work(plan, bars, _fetch if fetch else None)
        comparison = go(work)
    for failure in work.failures:
        complain(failure)
    if as_json:
        print_json(
            {
                "experiment": plan.experiment.name,
                "out": str(plan.out),
                "runs": [run.title for run in finished_runs(plan.out)],
                "failures": work.failures,
                "table": None if comparison is None else [
                    {"system": column.title, "origin": column.origin, "machine": machine, "metric": metric,
                     "percent": value.mean, "deviation": value.deviation, "seeds": value.seeds}
                    for column in comparison.columns for (machine, metric), value in column.values.items()
                ],
            }
        )  # fmt: skip
        return 1 if work.failures else 0
    if comparison is None:
        typer.echo(f"scores without a metric: {', '.join(run.title for run in finished_runs(plan.out))}")
    else:
        typer.echo(comparison.title)
        for pair in comparison.pairs():
            print_table(pair.header(), pair.rows())
        typer.echo(comparison.legend())
        for remark in comparison.remarks:
            typer.echo(remark)
        typer.echo(f"tables: {', '.join(str(plan.out / f'table.{end}') for end in ('md', 'csv', 'html'))}")
    typer.echo(f"audit: {plan.out / 'audit.json'} ({PLAN} says what was asked)")
    typer.echo(f"next: offkey submit {plan.out} --out PACKAGE")
    return 1 if work.failures else 0


def _fetch(plan: Plan) -> None:
    """Get the data as a person would, by the command that is told where it is missing."""
    from offkey.cli.app import run

    code = run(
        [
            "data", "fetch", f"dcase{plan.experiment.year}", "--root", str(plan.root),
            "--parts", ",".join(plan.fetch_parts()),
            *(["--machines", ",".join(plan.machines)] if plan.machines and not plan.additional else []),
        ]
    )  # fmt: skip
    if code:
        raise OffkeyError(f"the data could not be fetched (said above); the command was\n    {plan.fetch_command()}")


def _tell(plan: Plan, as_json: bool) -> int:
    """The plan with its estimates; nothing is written."""
    from offkey.encoders import encoder_class
    from offkey.encoders.weights import WeightsError, find
    from offkey.reproducing.clips import find_clips, lacking
    from offkey.reproducing.plan import COSTS, USUAL, count, estimate
    from offkey.reproducing.stages import STAGES

    clips = find_clips(plan)
    missing = lacking(plan, clips)
    counts = count(plan, [] if missing else clips)
    configs = plan.configs()
    estimates = [estimate(name, config, counts, plan.joins(name)) for name, config in configs.items()]
    absent: list[str] = []
    for config in configs.values():
        if config.encoder.name != "none":
            asked = config.encoder.weights or encoder_class(config.encoder.name).usual_weights
            try:
                find(asked)
            except WeightsError:
                absent.append(str(asked))
    absent = list(dict.fromkeys(absent))
    often = len(plan.seeds)
    used = dict.fromkeys(part for entry in estimates for part in entry.uses)
    free = shutil.disk_usage(next(p for p in (plan.out.absolute(), *plan.out.absolute().parents) if p.is_dir())).free
    total: dict[str, Any] = {
        "cpu_hours": often * sum(entry.cpu_seconds for entry in estimates) / 3600,
        "gpu_hours": often * sum(entry.gpu_seconds for entry in estimates) / 3600,
        "memory_bytes": max(entry.memory for entry in estimates),
        "disk_bytes": often * sum(entry.disk for entry in estimates),
        "data_bytes": counts.bytes,
        "free_bytes": free,
    }
    if as_json:
        print_json(
            {
                "experiment": plan.experiment.name, "machines": list(plan.judged),
                "sections": sorted("/".join(unit) for unit in plan.units), "seeds": list(plan.seeds),
                "stages": [stage.name for stage in STAGES], "missing": missing,
                "fetch": plan.fetch_command() if missing else None, "weights_missing": absent,
                "counts": counts._asdict(), "systems": [entry._asdict() for entry in estimates], "total": total,
                "origins": {part: COSTS[part].origin for part in used},
            }
        )  # fmt: skip
        return 0
    typer.echo(f"{plan.experiment.title}: {', '.join(_judged(plan))}")
    typer.echo(f"stages: {', '.join(stage.name for stage in STAGES)}; run folder {plan.out}")
    if missing:
        typer.echo(f"data: not complete ({missing[0]}); {counts.bytes / _GIB:.1f} GiB are to be had with")
        typer.echo(f"    {plan.fetch_command()}")
    else:
        typer.echo(f"data: {len(clips)} clips, {counts.bytes / _GIB:.1f} GiB, in {plan.folder()}")
    for name in absent:
        typer.echo(f"weights: not here: offkey weights fetch {name}")
    rows = [
        [entry.name, str(often), _hours(entry.cpu_seconds * often), _hours(entry.gpu_seconds * often),
         f"{entry.memory / _GIB:.1f} GiB", f"{entry.disk * often / _GIB:.2f} GiB"]
        for entry in estimates
    ]  # fmt: skip
    rows.append(
        ["all", "", _hours(total["cpu_hours"] * 3600), _hours(total["gpu_hours"] * 3600),
         f"{total['memory_bytes'] / _GIB:.1f} GiB", f"{total['disk_bytes'] / _GIB:.2f} GiB"]
    )  # fmt: skip
    header = ["system", "seeds", "2 cores", "one GPU (estimate)", "memory", "disk"]
    print_table(header, rows, f"estimates, clips {counts.told}")
    if counts.told == "usual":
        typer.echo(f"clips a section: {USUAL[plan.experiment.year].origin}")
    typer.echo("All times are estimates; nothing was ever measured on a GPU. Where each number comes from:")
    for part in used:
        typer.echo(
            f"  {part}: {COSTS[part].cpu:g} s a clip on two cores, {COSTS[part].gpu:g} s on a GPU. {COSTS[part].origin}"
        )
    if total["disk_bytes"] > free:
        complain(f"{free / _GIB:.1f} GiB are free where {plan.out} lies, less than the runs take")
    typer.echo("Nothing was done. The same command without --dry-run starts; killed and started again, it goes on.")
    return 0


def _judged(plan: Plan) -> list[str]:
    """Machines, each with its sections where it has several."""
    sections = {name: [unit.section for unit in plan.experiment.units if unit.machine == name] for name in plan.judged}
    return [f"{name} ({' '.join(own)})" if len(own) > 1 else name for name, own in sections.items()]


def _hours(seconds: float) -> str:
    if seconds < 3600:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:.0f} h"
