"""`offkey fit-separator` and `offkey separate`: a machine's sound and its surroundings, apart."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from offkey.cli.output import Bars, complain, folder_or_file, print_json, report_failures

SHOWN = 12
"""Recordings on the page that `offkey separate` writes."""

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from offkey.data.loader import Failure


def fit_separator(
    source: Annotated[Path, typer.Argument(help="A folder of normal recordings, or a DCASE root.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the separator.")],
    size: Annotated[Literal["tiny", "small", "medium"], typer.Option(help="Size of the network.")] = "tiny",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. mixing.min_snr_db=-5."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.", min=0)] = 0,
    mode: Annotated[
        Literal["auto", "supervised", "mixtures"],
        typer.Option(help="supervised: from clean-machine and noise-only clips; mixtures: from normal clips alone."),
    ] = "auto",
    machine: Annotated[
        list[str] | None,
        typer.Option("--machine", "--machines", help="Only this machine (may be given several times)."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Threads that decode.", min=0)] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the separator in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Learn to separate machines from surroundings. A run that was killed goes on when started again."""
    from offkey.separation.fitting import fit_separator as fit
    from offkey.separation.recipe import SeparationRecipe
    from offkey.systems.settings import apply_overrides, validate

    tree = SeparationRecipe.of(size).model_dump(mode="json") | {"seed": seed}
    recipe = validate(SeparationRecipe, apply_overrides(tree, settings or []), "--set")
    failures: list[Failure] = []
    with Bars() as bars:
        fitted = fit(
            source,
            out,
            recipe,
            mode=mode,
            machines=machine or [],
            workers=workers,
            overwrite=overwrite,
            progress=bars,
            failures=failures,
        )
    from offkey.training.distributed import leads

    if not leads():
        return 0
    code = report_failures(failures)
    measured = fitted.measured
    if as_json:
        print_json(
            {
                "model": str(out),
                "mode": fitted.mode,
                "reasons": list(fitted.reasons),
                "held_out": None
                if measured is None
                else {
                    "mixtures": measured.clips,
                    "si_snr_before_db": measured.before,
                    "si_snr_db": measured.after,
                    "gain_db": measured.gain,
                },
            }
        )
        return code
    typer.echo(f"separator ({fitted.mode}): {out}")
    if measured is not None:
        what = "mixtures" if fitted.mode == "supervised" else "normal clips with more noise (which had some already)"
        typer.echo(
            f"{measured.clips} held-out {what}: SI-SNR {measured.before:.1f} -> {measured.after:.1f} dB "
            f"({measured.gain:+.1f} dB)"
        )
    typer.echo(f"next: offkey separate CLIP.wav … --model {out} --out FOLDER")
    return code


def separate(
    clips: Annotated[list[Path], typer.Argument(help="Audio files, or folders of them.")],
    model: Annotated[Path, typer.Option("--model", help="Folder of a separator.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for CLIP_foreground.wav and CLIP_background.wav.")],
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            help="Folder of the true stems, named like the written ones (default: stems/ beside the clip's folder, "
            "as simulated data sets have it).",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Split recordings into machine and surroundings; files that cannot be used are named (exit 1)."""
    import offkey
    from offkey.audio.io import AudioConfig, AudioError, read_header
    from offkey.report.separation import SeparatedClip, write_separation_report
    from offkey.separation.separator import Separator
    from offkey.separation.stems import Stems

    files = [file for path in clips for file in folder_or_file(path)]
    if not files:
        complain(f"no audio files in {', '.join(map(str, clips))}")
        return 2
    separator = Separator.load(model)
    shown: list[SeparatedClip] = []
    by_rate: dict[int, Stems] = {}
    names = Counter(file.stem for file in files)
    rows: list[dict[str, Any]] = []
    with Bars() as bars:
        bars.start("separating", len(files))
        for number, file in enumerate(files):
            stem = file.stem if names[file.stem] == 1 else f"{number:04d}_{file.stem}"
            header = read_header(file)
            rate = header[0] if header is not None else separator.config.rate
            row: dict[str, Any] = {"file": str(file), "error": None}
            try:
                stems = by_rate.get(rate) or by_rate.setdefault(rate, Stems(separator, AudioConfig(rate=rate)))
                front, back = stems.pair(file)
                row["foreground"] = str(_write(out / f"{stem}_foreground.wav", front, rate))
                row["background"] = str(_write(out / f"{stem}_background.wav", back, rate))
                row |= _compare(file, front, front + back, rate, truth)
                if len(shown) < SHOWN and len(front):
                    told = {"SI-SNR gain": f"{row['gain_db']:+.1f} dB"} if "gain_db" in row else {}
                    shown.append(SeparatedClip(file.name, front + back, front, back, rate, told))
            except AudioError as error:
                row["error"] = f"{error.problem}" + ("" if error.path == file else f" ({error.path})")
            except ValueError as error:  # a rate that nothing can be done with
                row["error"] = f"cannot be separated: {error}"
            rows.append(row)
            bars.step(number + 1)
    failed = [row for row in rows if row["error"]]
    page = None
    if shown:
        page = write_separation_report(
            shown,
            out / "separation.html",
            title=f"{len(rows) - len(failed)} recordings taken apart",
            version=offkey.__version__,
            facts=[
                ("Separator", model.absolute().name),
                *([("Shown", f"the first {SHOWN}")] if len(rows) > SHOWN else []),
            ],
            problems=[(Path(row["file"]).name, row["error"]) for row in failed],
        )
    for row in failed:
        complain(f"{row['file']}: {row['error']}")
    if as_json:
        print_json({"files": rows, "page": None if page is None else str(page)})
    else:
        for row in rows:
            if "gain_db" in row:
                typer.echo(
                    f"{row['file']}: SI-SNR {row['si_snr_before_db']:.1f} -> {row['si_snr_db']:.1f} dB "
                    f"({row['gain_db']:+.1f} dB)"
                )
        typer.echo(f"{len(rows) - len(failed)} files separated, {len(failed)} unusable: {out}")
        if page is not None:
            typer.echo(f"to look at and listen to: {page}")
    return 1 if failed else 0


def _write(path: Path, samples: NDArray[np.float32], rate: int) -> Path:
    """A 32-bit float WAV file: nothing is clipped, and the two stems add up to the recording."""
    from scipy.io import wavfile

    from offkey.files import write_whole

    memory = io.BytesIO()
    wavfile.write(memory, rate, samples)
    return write_whole(path, memory.getvalue())


def _compare(
    file: Path, front: NDArray[np.float32], mixture: NDArray[np.float32], rate: int, folder: Path | None
) -> dict[str, float]:
    """SI-SNR of the foreground in dB before and after, where the true one lies in `folder` or is simulated."""
    from offkey.audio.io import AudioConfig, AudioError, read_clip

    true = (folder or file.absolute().parent.parent / "stems") / f"{file.stem}_foreground.wav"
    if not true.is_file():
        return {}
    import torch

    from offkey.separation.losses import si_snr

    known = read_clip(true, AudioConfig(rate=rate))
    if len(known) != len(front):
        raise AudioError(true, f"{len(known)} samples of truth for {len(front)} of the clip", "Name the right folder")
    waves = torch.from_numpy(front), torch.from_numpy(mixture), torch.from_numpy(known)
    after, before = (float(si_snr(wave.double(), waves[2].double())) for wave in waves[:2])
    return {"si_snr_before_db": before, "si_snr_db": after, "gain_db": after - before}
