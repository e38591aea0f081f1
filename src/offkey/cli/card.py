"""`offkey card`: what a person should know of a detector before trusting it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(model: Annotated[Path, typer.Argument(help="Folder of a detector.")]) -> None:
    """Print a detector's card: data, settings, alarms, limits, and what `offkey evaluate` has measured since."""
    from offkey.assessment import FOLDER, read_assessment
    from offkey.card import write_card
    from offkey.detector import Detector

    detector = Detector.load(model)
    result = None
    if (model / FOLDER / "evaluation.json").is_file():
        kept = read_assessment(model / FOLDER)
        result = kept.result
    typer.echo(write_card(detector, result, str(model)), nl=False)
