"""`offkey fit`: from normal recordings to a detector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from offkey.cli.output import Bars, complain, print_json, report_failures
from offkey.cli.rates import ClipEveryOption, FalseAlarmsOption, asked_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offkey.data.loader import Failure
    from offkey.data.source import Source

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.epochs=5."),
]
MachineOption = Annotated[
    list[str] | None,
    typer.Option("--machine", "--machines", help="Only this machine (may be given several times)."),
]


GroupsOption = Annotated[
    str | None,
    typer.Option(help="CSV:COLUMN naming the recording that a file was cut from (e.g. truth.csv:flight)."),
]


def fit(
    source: Annotated[Path, typer.Argument(help="A folder of normal recordings, or a DCASE root.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the detector.")],
    system: Annotated[str, typer.Option(help="Name of a system, or a TOML file.")] = "auto",
    settings: SetOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Everything random follows from it (default: the system's own).", min=0)
    ] = None,
    machine: MachineOption = None,
    subfolders: Annotated[
        Literal["machines", "settings"],
        typer.Option(help="What the sub-folders of a plain folder are: machines or settings."),
    ] = "machines",
    false_alarms: FalseAlarmsOption = None,
    clip_every: ClipEveryOption = None,
    groups: GroupsOption = None,
    workers: Annotated[int, typer.Option(help="Threads that decode.", min=0)] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the detector in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Learn a detector from normal recordings. A run that was killed goes on when started again."""
    from offkey.data.sessions import read_groups
    from offkey.data.source import open_source
    from offkey.fitting import fit as fit_detector

    failures: list[Failure] = []
    wanted, every = asked_rate(false_alarms, clip_every)
    opened = open_source(source, subfolders=subfolders)
    for remark in opened.remarks:
        complain(remark)
    told = None if groups is None else read_groups(groups)
    if told is None:
        _ask_for_recordings(opened, machine or [])
    with Bars() as bars:
        detector = fit_detector(
            opened,
            system,
            out=out,
            overrides=settings or [],
            seed=seed,
            machines=machine or [],
            workers=workers,
            overwrite=overwrite,
            progress=bars,
            failures=failures,
            false_alarms=wanted,
            clip_every=every,
            groups=told,
        )
    from offkey.training.distributed import leads

    if not leads():
        return 0
    code = report_failures(failures)
    if as_json:
        print_json({"model": str(out), "facts": detector.facts, "reasons": list(detector.reasons)})
    else:
        clips = sum(len(known.clips) for known in detector.machines.values())
        typer.echo(f"detector for {', '.join(detector.machines)} from {clips} normal clips: {out}")
        typer.echo(f"next: offkey score {out} NEW.wav …")
    return code


def _ask_for_recordings(source: Source, machines: Sequence[str]) -> None:
    """Where names look as if several clips were cut from one recording, say what to do about it."""
    from offkey.data.sessions import looks_cut
    from offkey.types import Content, Split

    names: dict[str, list[str]] = {}
    for clip in source.clips:
        if clip.split is Split.TRAIN and clip.content is Content.MIXTURE and (not machines or clip.machine in machines):
            names.setdefault(clip.machine, []).append(clip.path.name)
    for machine, own in names.items():
        found = looks_cut(own)
        if found:
            complain(
                f"{machine}: by their names, {len(own)} normal clips may be cut from {found} recordings. If they are, "
                "tell which (--groups CSV:COLUMN): else expect far more false alarms than asked for"
            )
