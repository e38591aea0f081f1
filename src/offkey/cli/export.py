"""`offkey export`: a detector as ONNX files, for machines without torch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offkey.cli.output import complain, print_json
from offkey.types import OffkeyError

if TYPE_CHECKING:
    from offkey.detector import Detector
    from offkey.types import ClipMeta


class Format(StrEnum):
    """What a detector can be written as."""

    ONNX = "onnx"


def export(
    model: Annotated[Path, typer.Argument(help="Folder of a detector.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; an older export there is replaced.")],
    format: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.ONNX,
    int8: Annotated[
        bool, typer.Option("--int8", help="Keep the network's weights in 8 bits: smaller, and BEATs is faster.")
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            help="Recordings to check with besides made-up ones: a folder or a DCASE root; its test clips tell the "
            "change in AUC where their truth is known.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Write a detector as ONNX, from waveform to score, and check it: a form that gives other scores is deleted."""
    del format  # there is one so far
    try:
        from offkey.detector import Detector
    except ImportError as error:
        raise OffkeyError(f"exporting needs all of offkey, and {error.name} is missing: pip install offkey") from None
    from offkey.exporting import export_detector

    detector = Detector.load(model)
    clips = [] if check is None else _clips(detector, check)
    made = export_detector(detector, out, int8=int8, clips=clips, say=lambda text: typer.echo(f"{text} …", err=True))
    if as_json:
        print_json(
            {
                "folder": str(made.folder),
                "megabytes": made.megabytes,
                "weights": "int8" if int8 else "float32",
                "check": made.check.to_dict(),
                "float32": made.exact.to_dict(),
            }
        )
        return 0
    typer.echo(f"float32: {made.exact.told()}")
    if int8:
        typer.echo(f"int8: {made.check.told()}")
    typer.echo(f"{made.folder}: {made.megabytes:.2f} MB; score with it: offkey score {made.folder} FILES")
    return 0


def _clips(detector: Detector, source: Path) -> list[ClipMeta]:
    """Test clips of the detector's machines, or all that there are."""
    from offkey.data.machines import machine_key
    from offkey.data.source import open_source
    from offkey.types import Split

    found = open_source(source).clips
    test = [clip for clip in found if clip.split is Split.TEST] or list(found)
    known = [clip for clip in test if len(detector.machines) == 1 or machine_key(clip, detector.machines)]
    if not known:
        complain(f"{source} has no clip of a machine that the detector knows; checking with made-up clips alone")
    return known
