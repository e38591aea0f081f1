"""`offkey update`: normal clips that come later, or were called false alarms, join a detector."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offkey.cli.fit import GroupsOption
from offkey.cli.output import Bars, complain, print_json, report_failures
from offkey.cli.recordings import folder_or_file
from offkey.types import OffkeyError

if TYPE_CHECKING:
    from offkey.data.loader import Failure


def update(
    model: Annotated[Path, typer.Argument(help="Folder of a detector.")],
    clips: Annotated[list[Path], typer.Argument(help="Normal recordings, or folders of them.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the new detector (default: the old one is replaced).")
    ] = None,
    machine: Annotated[str | None, typer.Option(help="Which machine the clips are of.")] = None,
    reason: Annotated[
        Literal["normal", "false-alarm"], typer.Option("--as", help="What the clips are; the card tells it.")
    ] = "normal",
    domain: Annotated[
        Literal["source", "target"] | None,
        typer.Option(help="Domain of clips whose name does not tell it (default: that of most normal clips)."),
    ] = None,
    groups: GroupsOption = None,
    workers: Annotated[int, typer.Option(help="Threads that decode.", min=0)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Add normal clips, or false alarms, to a detector without training. Unusable files are named (exit 1)."""
    from offkey.data.sessions import read_groups
    from offkey.detector import Detector
    from offkey.manifest import MANIFEST
    from offkey.types import Domain
    from offkey.updating import replace_folder
    from offkey.updating import update as extended

    in_place = out is None or out.resolve() == model.resolve()
    if not in_place and out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds another detector" if (out / MANIFEST).is_file() else "is not empty"
        raise OffkeyError(f"--out: {out} {what}; choose another folder")
    detector = Detector.load(model)
    files = [file for path in clips for file in folder_or_file(path)]
    if not files:
        complain(f"no audio files in {', '.join(map(str, clips))}")
        return 2
    failures: list[Failure] = []
    with Bars() as bars:
        grown = extended(
            detector,
            files,
            machine=machine,
            domain=None if domain is None else Domain(domain),
            reason=reason,
            workers=workers,
            progress=bars,
            failures=failures,
            groups=None if groups is None else read_groups(groups),
        )
    place = model if out is None else out
    if in_place:
        replace_folder(grown, model)
    else:
        grown.save(place)
    code = report_failures(failures)
    before = {name: (len(known.clips), detector.threshold(name)) for name, known in detector.machines.items()}
    changed = [name for name in grown.machines if len(grown.machines[name].clips) != before[name][0]]
    rows = [
        {
            "machine": name,
            "added": len(grown.machines[name].clips) - before[name][0],
            "clips": len(grown.machines[name].clips),
            "threshold_before": before[name][1],
            "threshold": grown.threshold(name),
        }
        for name in changed
    ]
    if as_json:
        print_json({"model": str(place), "machines": rows})
    else:
        for row in rows:
            typer.echo(
                f"{row['machine']}: {row['added']} clips added, {row['clips']} in all; threshold "
                f"{_spoken(row['threshold_before'])} -> {_spoken(row['threshold'])}: {place}"
            )
    return code


def _spoken(threshold: Any) -> str:
    return f"{threshold:.4g}" if math.isfinite(threshold) else "none (too few clips)"
