"""`offkey weights`: weights of pretrained encoders: which there are, fetching, checking, converting them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from offkey.cli.output import Bars, complain, print_json, print_table

app = typer.Typer(help="List, fetch, check or convert weights of pretrained encoders.", no_args_is_help=True)


@app.command("list")
def list_weights(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say which published weights there are, and which are at hand."""
    from offkey.downloading import megabytes
    from offkey.encoders.weights import CATALOG, at_hand, weights_dir

    found = {name: at_hand(entry) for name, entry in CATALOG.items()}
    if as_json:
        weights = [
            {
                "name": entry.name, "encoder": entry.encoder, "file": entry.file, "bytes": entry.size,
                "sha256": entry.sha256, "licence": entry.licence, "source": entry.source, "urls": entry.urls,
                "about": entry.about, "path": str(found[entry.name]) if found[entry.name] else None,
            }
            for entry in CATALOG.values()
        ]  # fmt: skip
        print_json({"folder": str(weights_dir()), "weights": weights})
        return
    rows = [
        [entry.name, entry.encoder, megabytes(entry.size), entry.licence, "yes" if found[entry.name] else "no",
         entry.about]
        for entry in CATALOG.values()
    ]  # fmt: skip
    print_table(["name", "encoder", "size", "licence", "here", "what it is"], rows)
    typer.echo(f"kept in {weights_dir()}")


@app.command("fetch")
def fetch(
    names: Annotated[list[str], typer.Argument(help="Names of `offkey weights list`.")],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="URL|PATH", help="Take it from this address, file or folder instead."),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this address first; the file's name is put behind it.")
    ] = None,
) -> int:
    """Download published weights, verify and convert them (exit 1 if one could not be had)."""
    from offkey.downloading import DownloadError, megabytes
    from offkey.encoders.weights import WeightsError, at_hand, published, take, weights_dir
    from offkey.encoders.weights import fetch as get

    entries = [published(name) for name in names]  # a wrong name is told before anything is fetched
    failed = 0
    for entry in entries:
        typer.echo(f"{entry.name}: {megabytes(entry.size)}, licence {entry.licence} ({entry.source})")
        try:
            if source is not None and "://" not in source:
                place = take(entry.name, Path(source).expanduser())
            else:
                urls = entry.urls if source is None else (_address(source, entry.file),)
                urls = (_address(mirror, entry.file), *urls) if mirror else urls
                if at_hand(entry) is None:
                    typer.echo(f"to {weights_dir()}")
                with Bars() as bars:
                    place = get(entry.name, urls=urls, progress=bars)
        except (DownloadError, WeightsError) as error:
            complain(str(error))
            failed += 1
        else:
            typer.echo(f"{entry.name} is at hand: {place}")
    return 1 if failed else 0


def _address(base: str, file: str) -> str:
    return base if base.partition("?")[0].endswith(file) else f"{base.rstrip('/')}/{file}"


@app.command("check")
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names or paths; left out: all published ones at hand.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Hash and load weights, and say what is in them (exit 1 if some are damaged)."""
    from offkey.encoders.weights import CATALOG, Finding, at_hand, weights_dir
    from offkey.encoders.weights import check as look

    asked = names or [entry.name for entry in CATALOG.values() if at_hand(entry) is not None]
    findings: list[Finding] = [look(name) for name in asked]
    code = 1 if any(finding.problem for finding in findings) else 0
    if as_json:
        print_json({"weights": [_told(finding) for finding in findings]})
        return code
    if not findings:
        typer.echo(f"no published weights are in {weights_dir()}; `offkey weights fetch NAME` gets some")
    for finding in findings:
        if finding.problem is not None:
            complain(f"{finding.name}: {finding.problem}")
            continue
        typer.echo(f"{finding.name}: good, {finding.path}")
        typer.echo(f"    {finding.parameters / 1e6:.2f} million parameters, {finding.tensors} tensors")
        plain = [f"{key} {value}" for key, value in finding.architecture.items() if not isinstance(value, bool)]
        typer.echo(f"    architecture: {', '.join(plain) if plain else 'not told by the file'}")
    return code


def _told(finding: Any) -> dict[str, Any]:
    return {
        "name": finding.name,
        "path": None if finding.path is None else str(finding.path),
        "problem": finding.problem,
        "parameters": finding.parameters,
        "tensors": finding.tensors,
        "architecture": finding.architecture,
    }


@app.command("convert")
def convert(
    path: Annotated[str, typer.Argument(help="A file of weights, or a published name.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; left out: beside the original, ending in .safetensors.")
    ] = None,
) -> None:
    """Write weights as safetensors, which holds no code and opens at once."""
    from offkey.encoders.checkpoint import WeightsError, read_checkpoint
    from offkey.encoders.checkpoint import convert as rewrite
    from offkey.encoders.weights import find

    original = find(path)
    place = out if out is not None else original.with_suffix(".safetensors")
    if place.exists():
        raise WeightsError(f"{place} is there already; choose another --out")
    rewrite(original, place)
    typer.echo(f"{len(read_checkpoint(place).tensors)} tensors: {place}")
    typer.echo(f"next: --set encoder.weights={place}")
