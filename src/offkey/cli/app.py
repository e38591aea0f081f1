"""The `offkey` command: its groups, and how errors and exit codes leave it."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from offkey.cli import (
    benchmark,
    card,
    data,
    datasets,
    demo,
    ensemble,
    evaluate,
    explain,
    export,
    fit,
    remix,
    report,
    reproduce,
    score,
    separate,
    submit,
    update,
    watch,
    weights,
)
from offkey.cli.output import complain
from offkey.types import OffkeyError

__all__ = ["app", "run"]

app = typer.Typer(
    name="offkey",
    help="Hears when a machine goes wrong: learns from normal recordings, scores new ones, raises alarms, says why.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

STOPPED = 130


def _version(wanted: bool) -> bool:
    if wanted:
        from offkey import __version__

        typer.echo(f"offkey {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options that stand before a command."""


app.command("demo")(demo.demo)
datasets.add_to(data.app)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.command("fit")(fit.fit)
app.command("score")(score.score)
app.command("explain")(explain.explain)
app.command("watch")(watch.watch)
app.command("update")(update.update)
app.command("export")(export.export)
app.command("fit-separator")(separate.fit_separator)
app.command("separate")(separate.separate)
app.command("remix")(remix.remix)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("card")(card.card)
app.command("ensemble")(ensemble.ensemble)
app.command("benchmark")(benchmark.benchmark)
app.command("submit")(submit.submit)
app.command("reproduce")(reproduce.reproduce)


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 some inputs could not be used, 2 wrong use."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are no text, and old terminals
    try:
        code = app(args=arguments, prog_name="offkey", standalone_mode=False)
    except OffkeyError as error:
        complain(str(error))
        return 2
    except SystemExit:
        # how Typer ends where the reader of our output has left (`offkey … | head`): not an error of ours
        return 0
    except OSError as error:
        complain(f"{error.filename or 'a file'}: {error.strerror or error}")
        return 2
    except Exception as error:
        shown = getattr(error, "show", None)  # a wrong option: click knows how to say it
        if shown is None:
            raise
        shown()
        return int(getattr(error, "exit_code", 2))
    if code == STOPPED:  # Typer makes this of Ctrl-C
        complain("stopped; start the same command again to go on")
    return int(code or 0)
