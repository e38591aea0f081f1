"""`offkey data`: what a data set holds, and simulated machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from offkey.cli.output import Bars, print_json, print_table

app = typer.Typer(help="Look at data sets, or simulate machines.", no_args_is_help=True)


@app.command("check")
def check(
    root: Annotated[Path, typer.Argument(help="A folder of recordings, or a DCASE root.")],
    subfolders: Annotated[
        Literal["machines", "settings"], typer.Option(help="Sub-folders of a plain folder: machines or settings.")
    ] = "machines",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Say what a data set holds and what is wrong with it (exit 1 if something is)."""
    from offkey.data.check import check as look

    with Bars() as bars:
        begun = False

        def progress(done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                bars.start("decoding", total)
                begun = True
            bars.step(done)

        report = look(root, subfolders=subfolders, progress=progress)
    if as_json:
        print_json(report.to_dict())
        return 1 if report.errors else 0
    year = f" of {report.year}" if report.year else ""
    typer.echo(f"{report.root}: {'DCASE data set' + year if report.kind == 'dcase' else 'plain folder'}")
    rows = []
    for machine in report.machines:
        total, shortest, _, longest = machine.seconds
        length = f"{shortest:.1f}" if shortest == longest else f"{shortest:.1f}–{longest:.1f}"
        settings = ", ".join(f"{name} ({len(values)})" for name, values in machine.attributes.items()) or "hidden"
        for number, ((split, domain, content), count) in enumerate(sorted(machine.clips.items())):
            first = number == 0
            rows.append(
                [
                    machine.machine if first else "", split, domain, content, str(count),
                    f"{total / 3600:.2f} h, {length} s" if first else "",
                    "/".join(map(str, machine.rates)) + " Hz, " + "/".join(map(str, machine.channels)) + " ch"
                    if first else "",
                    settings if first else "",
                ]
            )  # fmt: skip
    print_table(["machine", "part", "domain", "kind", "clips", "sound", "format", "settings (values)"], rows)
    for remark in report.remarks:
        typer.echo(f"note: {remark}")
    for problem in report.problems:
        machine_name = f"{problem.machine}: " if problem.machine else ""
        typer.echo(f"{problem.severity}: {machine_name}{problem.message}")
        for path in problem.files[:5]:
            typer.echo(f"    {path}")
        if len(problem.files) > 5:
            typer.echo(f"    … and {len(problem.files) - 5} more (--json names ten)")
    typer.echo(f"{len(report.errors)} errors, {len(report.warnings)} warnings")
    return 1 if report.errors else 0


@app.command("synth")
def synth(
    root: Annotated[Path, typer.Argument(help="Folder to write (new, or an unfinished earlier one).")],
    machine: Annotated[list[str] | None, typer.Option("--machine", help="Machine to simulate (several times).")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. train_source=100."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Write simulated machines in DCASE 2025 layout: normal and faulty clips, clean and noise-only ones, and truth."""
    from offkey.data.synthetic import SynthConfig, synthesize
    from offkey.systems.settings import apply_overrides, validate

    tree = apply_overrides({"seed": seed} | ({"machines": machine} if machine else {}), settings or [])
    config = validate(SynthConfig, tree, "offkey data synth")
    with Bars() as bars:
        begun = False

        def progress(done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                bars.start("simulating", total)
                begun = True
            bars.step(done)

        summary = synthesize(root, config, progress)
    if as_json:
        print_json(
            {
                "root": str(summary.root),
                "machines": list(summary.machines),
                "written": summary.written,
                "kept": summary.kept,
                "seconds": summary.clip_seconds,
            }
        )
    else:
        kept = f" ({summary.kept} kept from an earlier run)" if summary.kept else ""
        typer.echo(
            f"{summary.files} clips{kept} of {', '.join(summary.machines)}, "
            f"{summary.clip_seconds / 3600:.2f} h of sound: {root}"
        )
        typer.echo(f"next: offkey fit {root} --out MODEL")
    return 0
