"""`offkey explain`: when, in which band and by how much a recording departs from normal, drawn and in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from offkey.cli.output import Bars, complain, print_json
from offkey.cli.recordings import folder_or_file, own_names
from offkey.types import FileVerdict, OffkeyError, Verdict

if TYPE_CHECKING:
    from offkey.detector import Detector
    from offkey.explaining import Explanation


def explain(
    model: Annotated[Path, typer.Argument(help="Folder of a detector.")],
    clips: Annotated[list[Path], typer.Argument(help="Audio files, or folders of them.")],
    machine: Annotated[str | None, typer.Option(help="Which machine the files are of.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for a picture a clip.")] = Path("explanations"),
    normal: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the normal recordings that the detector was fitted on; the nearest one is then shown "
            "beside the clip (default: looked for beside the clip, and in a train folder next to its own)."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Threads that decode.", min=0)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Say when and where recordings depart from normal, and draw it. Unusable files are named (exit 1)."""
    from offkey.data.machines import known_machine
    from offkey.detector import Detector
    from offkey.files import check_folder

    check_folder(out)
    if normal is not None and not normal.is_dir():
        raise OffkeyError(f"--normal: there is no folder {normal}")
    detector = Detector.load(model)
    if machine is not None:
        known_machine(machine, detector.machines)
    files = [file for path in clips for file in folder_or_file(path)]
    if not files:
        complain(f"no audio files in {', '.join(map(str, clips))}")
        return 2
    told: list[dict[str, Any]] = []
    with Bars() as bars:
        bars.start("scoring", len(files))
        rows = list(
            detector.score_files(files, machine=machine, workers=workers, progress=lambda done, _: bars.step(done))
        )
        bars.start("explaining", sum(row.verdict is not None for row in rows))
        drawn: dict[int, Pictured] = {}
        for number, one in enumerate(pictures(detector, rows, out, normal)):
            drawn[id(one.row)] = one
            bars.step(number + 1)
    failed: list[str] = []
    for row in rows:
        verdict = row.verdict
        if verdict is None:
            told.append({"file": str(row.path), "error": row.error})
            failed.append(f"{row.path}: {row.error}")
            continue
        _, explanation, picture, error = drawn[id(row)]
        judged = {
            "machine": verdict.machine,
            "score": verdict.score,
            "p_value": verdict.p_value,
            "is_anomalous": verdict.is_anomalous,
        }
        if explanation is None or picture is None:
            told.append({"file": str(row.path), "error": error} | judged)
            failed.append(f"{row.path}: {error}")
            continue
        told.append({"file": str(row.path), "error": None} | judged | _described(explanation, picture))
        if not as_json:
            typer.echo(f"{row.path.name}: {explanation.text} ({picture})")
    if as_json:
        print_json({"files": told})
    for text in failed:
        complain(text)
    return 1 if failed else 0


def _described(explanation: Explanation, picture: Path) -> dict[str, Any]:
    return {
        "kind": explanation.kind,
        "map": explanation.map_kind,
        "start": explanation.start,
        "end": explanation.end,
        "low": explanation.low,
        "high": explanation.high,
        "difference": explanation.difference,
        "strangeness": explanation.strangeness,
        "nearest": explanation.nearest,
        "like": explanation.like,
        "normal_clips": explanation.normal_clips,
        "text": explanation.text,
        "picture": str(picture),
    }


class Pictured(NamedTuple):
    """A file that has a verdict, with its explanation and picture, or the reason (`error`) why it has none."""

    row: FileVerdict
    explanation: Explanation | None
    picture: Path | None
    error: str | None


def pictures(
    detector: Detector, rows: Sequence[FileVerdict], folder: Path, normal: Path | None = None
) -> Iterator[Pictured]:
    """A picture in `folder` for each file that has a verdict, in their order; `normal` as for `offkey explain`.

    A file that cannot be explained is told so, and the others go on.
    """
    for row, stem in zip(rows, own_names([row.path for row in rows]), strict=True):
        if row.verdict is None:
            continue
        try:
            told = _explained(detector, row.path, row.verdict, folder / f"{stem}.png", normal)
        except OffkeyError as error:
            yield Pictured(row, None, None, f"cannot be explained: {error}")
        else:
            yield Pictured(row, *told, None)


def _explained(
    detector: Detector, clip: Path, verdict: Verdict, picture: Path, normal: Path | None
) -> tuple[Explanation, Path]:
    """What departs from normal in a clip, drawn to `picture`."""
    from offkey.audio.mel import LogMel
    from offkey.explaining import draw

    told = detector.explainer(clip, machine=verdict.machine)
    mel = LogMel(told.config.audio.rate, told.config.mel)
    explanation = told.explain(clip, machine=verdict.machine)
    found = _found(explanation.nearest, clip, verdict.machine, normal)
    beside = None
    if found is not None:
        try:
            beside = told.reader().read(found)
        except OffkeyError:
            beside = None  # what the detector keeps of it is shown instead
    state = "alarm" if verdict.is_anomalous else "no alarm"
    title = f"{clip.name}: {state}, p = {verdict.p_value:.3g}"
    part = "" if told.front_end is None else told.front_end.keep
    return explanation, draw(explanation, mel, title, picture, beside, part)


def _found(name: str, clip: Path, machine: str, normal: Path | None) -> Path | None:
    """The file of a normal clip, of which the detector knows the name; None unless there is one such file only."""
    here = clip.absolute().parent
    if normal is None:
        return _only(path for path in (here / name, here.parent / "train" / name) if path.is_file())
    below = [path for path in normal.rglob("*") if path.name == name and path.is_file()]
    own = [path for path in below if machine.partition("/")[0] in path.relative_to(normal).parts]
    return _only(own) or _only(below)


def _only(paths: Iterable[Path]) -> Path | None:
    found = list(dict.fromkeys(paths))
    return found[0] if len(found) == 1 else None
