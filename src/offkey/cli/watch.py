"""`offkey watch`: follow a machine through long recordings, folders that grow, or a stream."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offkey.cli.output import complain
from offkey.cli.rates import ClipEveryOption, FalseAlarmsOption, clips_every, false_alarms_of
from offkey.types import OffkeyError

if TYPE_CHECKING:
    from offkey.watching import Notice, Pcm, Watch

STDIN = "-"


def watch(
    model: Annotated[Path, typer.Argument(help="Folder of a detector.")],
    paths: Annotated[
        list[Path], typer.Argument(help="Recordings of any length, folders of them, or - for a stream on stdin.")
    ],
    window: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Cut recordings into windows of this length (default: as the normal clips)."),
    ] = None,
    step: Annotated[
        str | None, typer.Option(metavar="TIME", help="From one window to the next (default: a window).")
    ] = None,
    confirm: Annotated[
        str,
        typer.Option(metavar="K/N", help="An alarm begins when K of the last N clips alarm, ends when N are quiet."),
    ] = "1/1",
    false_alarms: FalseAlarmsOption = None,
    clip_every: ClipEveryOption = None,
    worst_case: Annotated[
        bool, typer.Option("--worst-case", help="Keep a frequency however normal clips depend on each other.")
    ] = False,
    drift_warnings: Annotated[
        str, typer.Option(metavar="FREQUENCY", help="False drift warnings that are allowed, a machine.")
    ] = "1/month",
    machine: Annotated[str | None, typer.Option(help="Which machine the recordings are of.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for new files in the folders.")] = False,
    poll: Annotated[str, typer.Option(metavar="TIME", help="How often to look for new files.")] = "2s",
    idle: Annotated[
        str | None, typer.Option(metavar="TIME", help="End --follow when nothing new has come for so long.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="File that keeps where the watch stands; one that is there is gone on from.")
    ] = None,
    pcm: Annotated[
        str | None, typer.Option(metavar="KIND", help="The stream is raw samples: s16le, s24le, s32le, f32le, u8.")
    ] = None,
    rate: Annotated[int, typer.Option(help="Hertz of raw samples.", min=1)] = 16000,
    channels: Annotated[int, typer.Option(help="Channels of raw samples.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> int:
    """Follow machines through time: alarms that begin and end, and drift. Unusable recordings are named (exit 1)."""
    from offkey.detector import Detector
    from offkey.scoring.rate import FalseAlarms
    from offkey.watching import Confirmation, Pcm, Watch, WatchSettings

    streamed = [str(path) for path in paths] == [STDIN]
    _check(paths, streamed, follow, pcm, state)
    often = FalseAlarms.parse(drift_warnings)
    if often.per_second is None:
        raise OffkeyError(f"--drift-warnings: {drift_warnings!r} is no frequency, such as 1/month")
    settings = WatchSettings(
        window=clips_every(window),
        step=clips_every(step),
        clip_every=clips_every(clip_every),
        confirm=Confirmation.parse(confirm),
        false_alarms=false_alarms_of(false_alarms),
        worst_case=worst_case,
        drift_warnings=often.per_second,
        machine=machine,
    )
    kept = Watch(Detector.load(model), settings)
    digest = _digest(model)
    if state is not None and state.exists():
        remark = kept.resume(state, digest)
        if remark:
            complain(remark)
    for sentence in kept.told():
        sys.stderr.write(sentence + "\n")

    def save() -> None:
        if state is not None:
            kept.save(state, digest)

    kept.checkpoint = save
    raw = Pcm(rate, channels, pcm) if pcm else None
    live = streamed or follow
    with contextlib.suppress(BrokenPipeError):
        for notice in _notices(kept, paths, streamed, follow, (clips_every(poll) or 2.0, clips_every(idle)), raw, save):
            _tell(notice, as_json, live)
    save()
    sys.stderr.write(
        f"{kept.judged} clips judged, {kept.alarms} alarm{'s' * (kept.alarms != 1)}, {kept.drifts} drift "
        f"warning{'s' * (kept.drifts != 1)}, {kept.unusable} unusable\n"
    )
    if not kept.judged and not kept.unusable and not kept.done:
        complain(f"no audio files in {', '.join(map(str, paths))}")
        return 2
    return 1 if kept.unusable else 0


def _check(paths: list[Path], streamed: bool, follow: bool, pcm: str | None, state: Path | None) -> None:
    if not streamed and STDIN in map(str, paths):
        raise OffkeyError("- (a stream on stdin) cannot stand beside other recordings")
    if pcm and not streamed:
        raise OffkeyError("--pcm tells what a stream holds; name it as -")
    if streamed and (follow or state):
        raise OffkeyError(
            "a stream is followed until it ends, and cannot be gone on with: leave out --follow and --state"
        )
    wrong = [path for path in paths if follow and not path.is_dir()]
    if wrong:
        raise OffkeyError(f"--follow waits for files in a folder, and there is no folder {wrong[0]}")


def _notices(
    kept: Watch,
    paths: list[Path],
    streamed: bool,
    following: bool,
    waits: tuple[float, float | None],
    raw: Pcm | None,
    save: Any,
) -> Iterator[Notice]:
    from offkey.watching import follow, recordings

    if streamed:
        yield from kept.stream(sys.stdin.buffer, raw)
    else:
        files = (
            follow(paths, lambda path: str(path) in kept.done, *waits)
            if following
            else (file for path in paths for file in (recordings(path) if path.is_dir() else [path]))
        )
        for file in files:
            if str(file) in kept.done:
                continue
            yield from kept.file(file)
            save()
    yield from kept.finish()


def _tell(notice: Notice, as_json: bool, live: bool) -> None:
    from offkey.watching import Unusable, plain

    now = {"noticed": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")} if live else {}
    if as_json:
        sys.stdout.write(json.dumps(plain(notice) | now, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    elif isinstance(notice, Unusable):
        complain(str(notice))
    else:
        sys.stdout.write((f"{now['noticed']} " if live else "") + f"{notice}\n")
        sys.stdout.flush()


def _digest(model: Path) -> str:
    from offkey.files import sha256
    from offkey.manifest import MANIFEST

    return sha256(model / MANIFEST)
