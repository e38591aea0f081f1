"""`offkey fit-separator` and `offkey separate`: a machine's sound and its surroundings, apart."""

from __future__ import annotations

import errno
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from offkey.cli.fit import MachineOption
from offkey.cli.output import Bars, complain, print_json, report_failures
from offkey.cli.recordings import folder_or_file, own_names
from offkey.files import same_name
from offkey.types import OffkeyError

SHOWN = 12
"""Recordings on the page that `offkey separate` writes."""
PAGE = "separation.html"
"""The page beside written stems; a folder with it holds no true ones."""
_PARTS = ("foreground", "background")
_RATES = (1000, 768_000)  # hertz, those that `AudioConfig` takes
_ENDS_ALL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""What the next file meets as well: a full disk, or a folder that nothing may be written into."""

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from offkey.audio.io import AudioConfig
    from offkey.data.loader import Failure

ChannelOption = Annotated[str, typer.Option(help='Channel of the recordings: "mean", or a number from 0.')]


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
    machine: MachineOption = None,
    channel: ChannelOption = "mean",
    workers: Annotated[int, typer.Option(help="Threads that decode.", min=0)] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the separator in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Learn to separate machines from surroundings. A run that was killed goes on when started again."""
    from offkey.audio.io import AudioConfig
    from offkey.separation.fitting import fit_separator as fit
    from offkey.separation.recipe import SeparationRecipe
    from offkey.systems.settings import apply_overrides, validate

    tree = SeparationRecipe.of(size).model_dump(mode="json") | {"seed": seed}
    recipe = validate(SeparationRecipe, apply_overrides(tree, settings or []), "--set")
    channel = validate(AudioConfig, {"channel": channel}, "offkey fit-separator --channel").channel
    failures: list[Failure] = []
    with Bars() as bars:
        fitted = fit(
            source,
            out,
            recipe,
            mode=mode,
            machines=machine or [],
            channel=channel,
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
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Folder for CLIP_foreground.wav and CLIP_background.wav; names that come twice get a number in front.",
        ),
    ],
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            help="Folder of the true stems, named like the written ones, or by the clip's own name where no other clip "
            "has it (default: stems/ beside the clip's folder, as simulated data sets have it).",
        ),
    ] = None,
    channel: ChannelOption = "mean",
    device: Annotated[
        str, typer.Option(help='Where it is computed: auto (a GPU where there is one), cpu, cuda or "cuda:1".')
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Split recordings into machine and surroundings; files that cannot be used are named (exit 1)."""
    import offkey
    from offkey.audio.io import AudioConfig, AudioError, read_header
    from offkey.report.separation import SeparatedClip, write_separation_report
    from offkey.separation.separator import Separator
    from offkey.separation.stems import Stems
    from offkey.systems.settings import validate
    from offkey.training.distributed import choose_device

    audio = validate(AudioConfig, {"channel": channel}, "offkey separate --channel")
    where = choose_device(device, setting="--device")
    if truth is not None and not truth.is_dir():
        raise OffkeyError(f"--truth: {truth} is no folder; name the folder of the true stems, or leave it out")
    files = _recordings(clips, out)
    if not files:
        complain(f"no audio files in {', '.join(map(str, clips))}")
        return 2
    tasks = _settle(files, out, truth)
    separator = Separator.load(model).to(where)
    out.mkdir(parents=True, exist_ok=True)
    shown: list[SeparatedClip] = []
    by_rate: dict[int, Stems] = {}
    rows: list[dict[str, Any]] = []
    with Bars() as bars:
        bars.start("separating", len(tasks))
        for number, task in enumerate(tasks):
            header = read_header(task.file)
            rate = header[0] if header is not None else separator.config.rate
            row: dict[str, Any] = {"file": str(task.file), "error": None}
            try:
                if not _RATES[0] <= rate <= _RATES[1]:
                    raise AudioError(
                        task.file, f"recorded at {rate} Hz; it can be separated from {_RATES[0]} to {_RATES[1]} Hz"
                    )
                stems = by_rate.get(rate) or by_rate.setdefault(
                    rate, Stems(separator, audio.model_copy(update={"rate": rate}))
                )
                front, back = stems.pair(task.file)
                made = _compare(task, front, front + back, stems.config)  # before a file is written
                for part, samples in zip(_PARTS, (front, back), strict=True):
                    made[part] = str(_write(task.target(out, part), samples, rate))
                row |= made
                if len(shown) < SHOWN and len(front):
                    told = {"SI-SNR gain": f"{row['gain_db']:+.1f} dB"} if "gain_db" in row else {}
                    clip = SeparatedClip(task.file.name, front + back, front, back, rate, told)
                    shown.append(clip.excerpt())
            except AudioError as error:
                row["error"] = f"{error.problem}" + ("" if error.path == task.file else f" ({error.path})")
            except OSError as error:
                if error.errno in _ENDS_ALL:
                    raise
                row["error"] = f"its stems cannot be written: {error.strerror or error}"
            except (OffkeyError, ValueError) as error:
                row["error"] = f"cannot be separated: {error}"
            rows.append(row)
            bars.step(number + 1)
    failed = [row for row in rows if row["error"]]
    untold = [row for row in rows if "truth_error" in row]
    page = None
    if shown:
        page = write_separation_report(
            shown,
            out / PAGE,
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
    for row in untold:
        complain(f"{row['file']}: not compared with the truth: {row['truth_error']}")
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
    return 1 if failed or untold else 0


class _Task(NamedTuple):
    """A recording, what its stems are called, and where its true foreground may lie: the first that is there counts.

    `doubtful` is a file that may be the truth of another recording of this name.
    """

    file: Path
    name: str
    truths: tuple[Path, ...]
    doubtful: Path | None

    def target(self, out: Path, part: str) -> Path:
        return out / f"{self.name}_{part}.wav"


def _recordings(clips: Sequence[Path], out: Path) -> list[Path]:
    """Files as they were named, and those in folders, less what lies below `out`: stems of an earlier run."""
    written = out.resolve()
    files: list[Path] = []
    for path in clips:
        if not path.is_dir():
            files.append(path)
        elif path.resolve() == written:
            raise OffkeyError(
                f"--out: {out} is the folder that recordings are read from, and the next run would take stems for "
                "recordings; choose another folder"
            )
        elif written.is_relative_to(path.resolve()):
            files += [file for file in folder_or_file(path) if not file.parent.resolve().is_relative_to(written)]
        else:
            files += folder_or_file(path)
    return files


def _settle(files: Sequence[Path], out: Path, truth: Path | None) -> list[_Task]:
    """Every name before anything is written. Raises OffkeyError where an input or true stems would be overwritten."""
    written = out.resolve()
    if truth is not None and truth.resolve() == written:
        raise OffkeyError(f"--out: {out} is the folder of --truth; choose another, or the truth is overwritten")
    beside = [file.absolute().parent.parent / "stems" for file in files]
    for folder in dict.fromkeys(beside):
        if folder.resolve() == written and any(folder.glob("*_foreground.wav")) and not (folder / PAGE).is_file():
            raise OffkeyError(
                f"--out: {out} lies beside the recordings and holds stems, which may be the true ones; "
                "choose another folder"
            )
    own = [(truth or folder, same_name(file.stem)) for file, folder in zip(files, beside, strict=True)]
    sharing = Counter(own)
    inputs = {mark: file for file in files for mark in _marks(file)}
    tasks = []
    for file, name, (folder, key) in zip(files, own_names(files), own, strict=True):
        bare = folder / f"{file.stem}_foreground.wav"
        truths = [folder / f"{name}_foreground.wav"] if truth is not None else []
        alone = sharing[folder, key] == 1
        if folder.resolve() == written or (folder != truth and (folder / PAGE).is_file()):
            alone, truths, bare = True, [], written  # never from what this run, or an earlier one, wrote
        elif alone:
            truths.append(bare)
        task = _Task(file, name, tuple(truths), None if alone else bare)
        for target in (task.target(out, part) for part in _PARTS):
            met = next((inputs[mark] for mark in _marks(target) if mark in inputs), None)
            if met is not None:
                raise OffkeyError(
                    f"--out: {target}, a stem of {file}, would overwrite the recording {met}; choose another folder"
                )
        tasks.append(task)
    return tasks


def _marks(path: Path) -> list[object]:
    """What two paths to one file have in common."""
    marks: list[object] = [os.path.realpath(path)]
    try:
        found = path.stat()
    except OSError:
        return marks  # not there yet, or not to be looked at
    return [*marks, (found.st_dev, found.st_ino)]


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or a folder that may not be read
        return False


def _write(path: Path, samples: NDArray[np.float32], rate: int) -> Path:
    """A 32-bit float WAV file: nothing is clipped, and the two stems add up to the recording."""
    from scipy.io import wavfile

    from offkey.files import write_whole

    memory = io.BytesIO()
    wavfile.write(memory, rate, samples)
    return write_whole(path, memory.getvalue())


def _compare(
    task: _Task, front: NDArray[np.float32], mixture: NDArray[np.float32], audio: AudioConfig
) -> dict[str, Any]:
    """SI-SNR of the foreground in dB before and after where the true one is at hand, or why it is of no use."""
    from offkey.audio.io import AudioError, read_clip, read_header

    true = next((path for path in task.truths if _is_there(path)), None)
    if true is None:
        if task.doubtful is None or not _is_there(task.doubtful):
            return {}
        return {
            "truth_error": f"{task.doubtful} may belong to another recording of this name; with --truth FOLDER the "
            f"one of this is found as {task.target(Path(), 'foreground')}"
        }
    import torch

    from offkey.separation.losses import si_snr

    header = read_header(true)
    mono = header is not None and header[1] == 1
    try:
        known = read_clip(true, audio.model_copy(update={"channel": "mean"}) if mono else audio)
    except AudioError as error:
        return {"truth_error": f"{true}: {error.problem}"}
    if len(known) != len(front):
        return {"truth_error": f"{true}: {len(known)} samples of truth for {len(front)} of the clip"}
    waves = torch.from_numpy(front), torch.from_numpy(mixture), torch.from_numpy(known)
    after, before = (float(si_snr(wave.double(), waves[2].double())) for wave in waves[:2])
    return {"si_snr_before_db": before, "si_snr_db": after, "gain_db": after - before}
