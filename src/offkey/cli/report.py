"""`offkey report`: one self-contained HTML page of an evaluated detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a detector that was evaluated.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page (default: RUN/report.html).")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    examples: Annotated[int, typer.Option(help="Clips shown at each end, a machine.", min=0)] = 3,
) -> int:
    """Draw tables, curves, histograms, a map of the clips and the strangest ones, with sound, into one HTML file."""
    from offkey.report.assemble import write_run_report

    page = write_run_report(run, out or run / "report.html", title=title, examples=examples)
    typer.echo(f"report: {page}")
    return 0
