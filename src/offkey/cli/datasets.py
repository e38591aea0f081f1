"""`offkey data list | fetch | truth | miniature`: the challenge's data, from the organisers to this disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offkey.cli.output import Bars, complain, print_json, print_table

if TYPE_CHECKING:
    from offkey.data.catalog import Dataset
    from offkey.data.fetch import Outcome, Plan

ROOT = Annotated[Path, typer.Option("--root", metavar="DIR", help="Folder that the data set's own folder goes into.")]
MIRROR = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Ask this address first, with Zenodo's (GitHub's) paths below it."),
]
CATALOG = Annotated[
    Path | None,
    typer.Option(
        "--catalog", metavar="FILE", help="Go by this catalogue (of `offkey data miniature --site`), not by offkey's."
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def add_to(group: typer.Typer) -> None:
    """Put these commands into the group `offkey data`."""
    group.command("list")(list_sets)
    group.command("fetch")(fetch)
    group.command("truth")(truth)
    group.command("miniature")(miniature)


def _known(catalog: Path | None) -> Mapping[str, Dataset]:
    """The data sets of a catalogue of one's own, else offkey's."""
    from offkey.data.catalog import CATALOG, read_catalog

    return CATALOG if catalog is None else read_catalog(catalog)


def list_sets(
    names: Annotated[list[str] | None, typer.Argument(help="Data sets; left out: all.")] = None,
    catalog: CATALOG = None,
    as_json: JSON = False,
) -> None:
    """Say which data sets can be fetched, and what they hold."""
    from offkey.data.catalog import PARTS, dataset

    known = _known(catalog)
    sets = [dataset(name, known) for name in names] if names else list(known.values())
    if as_json:
        print_json(
            {
                "datasets": [
                    {
                        "name": one.name, "year": one.year, "truth": one.truth.page,
                        "archives": [
                            {"part": a.part, "machine": a.machine, "record": a.record, "file": a.file, "md5": a.md5}
                            for a in one.archives
                        ],
                    }
                    for one in sets
                ]
            }
        )  # fmt: skip
        return
    rows = []
    for one in sets:
        for part in PARTS:
            mine = [archive for archive in one.archives if archive.part == part]
            records = ", ".join(dict.fromkeys(archive.record for archive in mine))
            first = one.name if part == PARTS[0] else ""
            rows.append([first, part, str(len(mine)), records, " ".join(one.machines(part))])
    print_table(["data set", "part", "archives", "Zenodo record", "machines"], rows)
    typer.echo("next: offkey data fetch NAME --root DIR")


def fetch(
    name: Annotated[str, typer.Argument(help="A data set of `offkey data list`, e.g. dcase2025.")],
    root: ROOT,
    machines: Annotated[str, typer.Option(metavar="A,B,…", help="These machines only, with commas between them.")] = "",
    parts: Annotated[
        str, typer.Option(metavar="dev,additional,eval", help="These parts only.")
    ] = "dev,additional,eval",
    mirror: MIRROR = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="Take the zips from this folder; nothing is downloaded."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep-zips", help="Keep the zips after unpacking.")] = False,
    catalog: CATALOG = None,
    as_json: JSON = False,
) -> int:
    """Download, verify and unpack a data set; the same command goes on after a stop (exit 1: some could not be had)."""
    from offkey.data.catalog import dataset
    from offkey.data.fetch import fetch as get
    from offkey.data.fetch import prepare

    with Bars() as bars:
        plan = prepare(dataset(name, _known(catalog)), root, _words(machines), _words(parts), mirror, source, bars)
    if catalog is not None:
        typer.echo(f"catalogue: {catalog}, not offkey's own", err=True)
    _tell_plan(plan, keep)
    with Bars() as bars:
        outcome = get(plan, keep, bars)
    for archive, problem in outcome.failed:
        complain(f"{archive.file}: {problem}")
    if as_json:
        print_json(_told(outcome))
    else:
        typer.echo(
            f"{len(outcome.done)} archives unpacked, {len(outcome.present)} were here, {len(outcome.failed)} could not "
            f"be had: {outcome.folder}"
        )
        typer.echo(f"next: offkey data check {outcome.folder}")
    return 1 if outcome.failed else 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _tell_plan(plan: Plan, keep: bool) -> None:
    """What comes, under which licence, and how much of it: to people, before the first byte."""
    from offkey.downloading import megabytes

    for record in plan.records:
        typer.echo(f"record {record.number}: {record.title}", err=True)
        typer.echo(f"    licence: {record.licence} ({record.page})", err=True)
    told = {record.number for record in plan.records}
    for number in dict.fromkeys(archive.record for archive, _ in plan.pending):
        if number not in told:
            typer.echo(f"record {number}: see its licence at https://zenodo.org/records/{number}", err=True)
    for remark in plan.remarks:
        typer.echo(f"note: {remark}", err=True)
    if plan.pending:
        typer.echo(
            f"{len(plan.pending)} archives to {plan.folder}: {megabytes(plan.to_download)} to download, about "
            f"{megabytes(plan.needed(keep))} of disk",
            err=True,
        )


def _told(outcome: Outcome) -> dict[str, object]:
    return {
        "folder": str(outcome.folder),
        "done": [archive.file for archive in outcome.done],
        "present": [archive.file for archive in outcome.present],
        "failed": [{"file": archive.file, "problem": problem} for archive, problem in outcome.failed],
    }


def truth(
    name: Annotated[str, typer.Argument(help="A data set of `offkey data list`.")],
    root: ROOT,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="A clone or zip of the organisers' evaluator or baseline, or a list; nothing is downloaded.",
        ),
    ] = None,
    mirror: MIRROR = None,
    catalog: CATALOG = None,
    as_json: JSON = False,
) -> int:
    """Put the truth of an evaluation set beside it, for `offkey evaluate --truth`; it stays on your disk."""
    from offkey.data.catalog import dataset
    from offkey.data.truth import take_truth

    which = dataset(name, _known(catalog))
    page = which.truth.page
    typer.echo(f"truth of {which.name}: the organisers', {page}; their licence forbids passing it on", err=True)
    if source is None and which.truth.repository is not None and which.truth.commit is None:
        typer.echo(
            "note: which commit is right is not known; the newest one is taken, and named in SOURCE.json", err=True
        )
    with Bars() as bars:
        found = take_truth(which, root, source, mirror, bars)
    if as_json:
        print_json(
            {"folder": str(found.folder), "origin": found.origin, "commit": found.commit, "clips": dict(found.clips)}
        )
        return 0
    at = f" at {found.commit}" if found.commit else ""
    typer.echo(f"{sum(found.clips.values())} clips of {', '.join(found.clips)} (from {found.origin}{at})")
    typer.echo(f"next: offkey evaluate --scores DIR --truth {found.folder}")
    return 0


def miniature(
    name: Annotated[str, typer.Argument(help="The year to imitate: dcase2020 to dcase2026.")],
    root: Annotated[Path, typer.Argument(help="Folder to write.")],
    machines: Annotated[str, typer.Option(metavar="A,B,…", help="These machines only.")] = "",
    site: Annotated[
        Path | None,
        typer.Option(help="Also pack it here as the organisers publish it: serve this folder as a --mirror."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.", min=0)] = 0,
) -> int:
    """Write a year's layout in miniature with simulated sound, truth included, to try everything without the net."""
    from offkey.data.catalog import chosen, dataset
    from offkey.data.synthetic.years import CATALOG_FILE, YearConfig, pack_year, write_year

    which = dataset(name)
    names = tuple(_words(machines))
    chosen(which, names)  # a wrong name is told before anything is written
    made = write_year(root, which.year, YearConfig(machines=names, seed=seed))
    typer.echo(f"{made.clips} clips of {', '.join(made.machines)}: {made.folder}; truth: {made.truth}")
    if site is not None:
        pack_year(made, site)
        typer.echo(f"archives: {site}; serve them: python -m http.server --directory {site}")
        typer.echo(
            f"next: offkey data fetch {which.name} --root DIR --mirror http://127.0.0.1:8000 "
            f"--catalog {site / CATALOG_FILE}"
        )
    return 0
