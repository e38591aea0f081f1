"""`offkey ensemble`: fitted detectors that judge together from now on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offkey.cli.output import complain, print_json
from offkey.types import OffkeyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offkey.systems.config import CalibrationConfig


def ensemble(
    models: Annotated[list[Path], typer.Argument(help="Folders of detectors of the same machines.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the ensemble; the detectors are copied into it.")],
    weights: Annotated[
        str,
        typer.Option(help="equal, agreement (on normal clips), or a number a model with commas between; 0: no say."),
    ] = "equal",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change the alarm rule, e.g. calibration.false_alarm_rate=0.05."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the detector in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Let fitted detectors judge together: ranks among normal clips are blended, nothing is learnt anew."""
    from offkey.detector import Detector
    from offkey.ensemble import Ensemble
    from offkey.manifest import MANIFEST

    if (out / MANIFEST).is_file() and not overwrite:
        raise OffkeyError(f"{out} holds a detector; choose another --out, or --overwrite it")
    if any(out.resolve() in (model.resolve(), *model.resolve().parents) for model in models):
        raise OffkeyError(f"{out} is one of the detectors, or holds one; choose another --out")
    detectors = [Detector.load(model) for model in models]
    calibration = _calibration(detectors[0].config.calibration, settings) if settings else None
    made = Ensemble.of(detectors, weights=_weights(weights), calibration=calibration)
    made.save(out)
    for reason in made.reasons:
        complain(reason)
    for name, known in made.machines.items():
        warning = known.calibration.warning()
        if warning:
            complain(f"{name}: {warning}")
    entries = made.config.scoring.scorers
    total = sum(entry.weight for entry in entries)
    shares = {entry.name: entry.weight / total for entry in entries}
    if as_json:
        print_json({"model": str(out), "members": shares, "reasons": list(made.reasons)})
        return 0
    told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    typer.echo(f"ensemble for {', '.join(made.machines)} of {told}: {out}")
    typer.echo(f"next: offkey score {out} NEW.wav …")
    return 0


def _calibration(usual: CalibrationConfig, settings: Sequence[str]) -> CalibrationConfig:
    """The alarm rule of the ensemble; nothing else of it can be changed, for its members are fitted already."""
    from offkey.systems.config import CalibrationConfig
    from offkey.systems.settings import apply_overrides, validate

    tree = apply_overrides({"calibration": usual.model_dump(mode="json")}, settings)
    other = [key for key in tree if key != "calibration"]
    if other:
        raise OffkeyError(f"--set {other[0]}: the detectors are fitted already; only calibration.… can be set here")
    return validate(CalibrationConfig, tree["calibration"], "--set calibration")


def _weights(text: str) -> str | Sequence[float]:
    if text in ("equal", "agreement"):
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise OffkeyError(
            f"--weights {text!r}: expected equal, agreement, or numbers with commas between, such as 2,1,0"
        ) from None
