"""`offkey benchmark`: many systems and seeds on one data set, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offkey.cli.fit import SetOption
from offkey.cli.output import Bars, complain, print_json, print_table
from offkey.types import OffkeyError


def benchmark(
    source: Annotated[Path, typer.Argument(help="Data set with labelled test clips.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs and tables.")],
    systems: Annotated[str, typer.Option(help="Names of systems, or TOML files, with commas between.")] = "",
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'NAME=SYSTEM KEY=VALUE …'",
            help="One more row, a system with settings of its own (may be given several times).",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between.")] = "0",
    settings: SetOption = None,
    groups: Annotated[
        str | None, typer.Option(help="CSV:COLUMN naming a group a file; whole groups are resampled.")
    ] = None,
    fit_groups: Annotated[
        str | None,
        typer.Option(help="CSV:COLUMN naming the recording that a normal clip was cut from; told to every fit."),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Also show the finished runs of this benchmark folder, of the same test clips (several times).",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Threads that decode.", min=0)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list, an object a run.")] = False,
) -> int:
    """Fit and evaluate every system with every seed, one process a run; killed and started again, it goes on."""
    from offkey.benchmarking import BenchmarkError, Contestant, finished_runs, write_tables
    from offkey.benchmarking import benchmark as run_all

    names = [Contestant(Path(name).stem, name) for name in map(str.strip, systems.split(",")) if name]
    names += [Contestant.read(text) for text in variant or []]
    if not names and not beside:
        raise OffkeyError("nothing to compare: name --systems, a --variant, or runs to show --beside")
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise OffkeyError(f"--seeds {seeds!r}: expected whole numbers with commas between, such as 0,1,2") from None
    failures: list[str] = []
    with Bars() as bars:
        runs = run_all(
            source, names, numbers, out, overrides=settings or [], groups=groups, fit_groups=fit_groups,
            workers=workers, progress=bars, failures=failures,
        )  # fmt: skip
    for folder in beside or []:
        try:
            runs += finished_runs(folder, runs)
        except BenchmarkError as error:
            failures.append(str(error))
    if runs:
        table = write_tables(runs, out)
        if as_json:
            print_json(
                [
                    {
                        "system": run.system,
                        "seed": run.seed,
                        "result": run.result.to_dict(),
                        "fit_seconds": run.fit_seconds,
                        "score_seconds": run.score_seconds,
                        "peak_mib": run.peak_mib,
                    }
                    for run in runs
                ]
            )
        else:
            print_table(table.header(), table.rows(), "percent: mean ± deviation over seeds [95 % interval]")
            files = ("table.md", "table.csv", "table.html", "runs.csv")
            typer.echo(f"tables: {', '.join(str(out / name) for name in files)}")
    for failure in failures:
        complain(failure)
    return 1 if failures else 0
