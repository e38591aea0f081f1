"""Simulated machines written as a data set in DCASE 2025 Task 2 layout."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offkey.data.synthetic.config import SynthConfig, SynthError, SynthSummary
from offkey.data.synthetic.machines import SIMULATORS
from offkey.data.synthetic.plan import ClipPlan, plan_clips
from offkey.data.synthetic.scene import WARM_UP, Scene
from offkey.data.synthetic.signals import Array, db, rms
from offkey.data.synthetic.surroundings import factory_noise, through_room
from offkey.types import Content, Split

__all__ = ["RECORD", "Rendered", "render_clip", "synthesize"]

RECORD = "synthetic.json"
"""File below the root that says which config the data set was made with."""

_FORMAT = 1
_TRUTH = (
    *("file", "machine", "split", "domain", "condition", "attributes", "fault", "severity"),
    *("fault_start_s", "fault_end_s", "fault_low_hz", "fault_high_hz", "snr_db", "seed"),
)
_LOUDEST = 0.99


@dataclass(frozen=True, slots=True)
class Rendered:
    """One clip in memory, (T, channels) float32 each; `mixture` is `foreground + background` exactly."""

    mixture: Array
    foreground: Array
    background: Array


def render_clip(plan: ClipPlan, rate: int, channels: int) -> Rendered:
    """Sound of a planned clip: the machine in its room and the noise around it, at the planned SNR and level.

    SNR is that of the near microphone over the whole clip. A clip whose peaks would pass full scale is made
    quieter as a whole.
    """
    from scipy import fft

    length = round(plan.seconds * rate)
    warm = round(WARM_UP * rate)
    # Whole seconds, so that responses of a place serve all clips; a length that the FFT likes.
    n = int(fft.next_fast_len(-(-length // rate) * rate + warm, real=True))
    first = n - length
    machine_rng, fault_rng, noise_rng = plan.generators()
    foreground = np.zeros((channels, n), dtype=np.float32)
    background = np.zeros((channels, n), dtype=np.float32)
    if plan.content is not Content.NOISE:
        scene = Scene(
            n=n,
            rate=rate,
            lead=first,
            settings=dict(plan.attributes),
            fault=plan.fault,
            unit=np.random.default_rng(plan.unit),
            rng=machine_rng,
            fault_rng=fault_rng,
        )
        dry = SIMULATORS[plan.machine].render(scene)
        foreground = through_room(dry, plan.place, channels, rate)
    if plan.content is not Content.MACHINE:
        background, _ = factory_noise(plan.place, channels, n, rate, noise_rng)
    front = np.ascontiguousarray(foreground[:, first:].T)
    back = np.ascontiguousarray(background[:, first:].T)
    if plan.content is Content.MIXTURE:
        front *= np.float32(rms(back[:, 0]) / rms(front[:, 0]) * db(plan.snr_db))
    mixture = front + back
    gain = db(plan.level_dbfs) / rms(mixture[:, 0])
    peak = float(np.abs(mixture).max())
    scale = np.float32(min(gain, _LOUDEST / peak))
    front *= scale
    back *= scale
    return Rendered(mixture=front + back, foreground=front, background=back)


def synthesize(root: Path, config: SynthConfig, progress: Callable[[int, int], None] | None = None) -> SynthSummary:
    """Write simulated machines below `root` as `<machine>/{train,test,supplemental}/…wav` with their truth.

    Beside the clips: `<machine>/attributes_00.csv`, `truth.csv` (what is wrong in which clip, when and at
    which frequencies; -1 where nothing is), `synthetic.json` (the config), and with `config.stems` the folder
    `<machine>/stems/` with `<clip>_foreground.wav` and `<clip>_background.wav` of each test clip (float).

    The same config gives the same bytes, whatever `workers` is. A run that was broken off goes on where it
    stopped. `progress` is called with (clips done, clips in all).

    Raises SynthError where `root` holds anything but an earlier run with this config.
    """
    root = Path(root)
    _claim(root, config)
    clips = plan_clips(config)
    for folder in {(root / clip.path).parent for clip in clips}:
        folder.mkdir(parents=True, exist_ok=True)
    if config.stems:
        for machine in config.machines:
            (root / machine / "stems").mkdir(parents=True, exist_ok=True)
    for machine in config.machines:
        told = [clip for clip in clips if clip.machine == machine]
        _write_text(root / machine / "attributes_00.csv", _attributes_csv(told))
    _write_text(root / "truth.csv", _truth_csv(clips))

    pending = [clip for clip in clips if not _finished(root, clip, config)]
    kept = len(clips) - len(pending)
    done = kept
    if progress is not None:
        progress(done, len(clips))
    workers = config.workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers, thread_name_prefix="synth") as pool:
        queue = iter(pending)
        running: set[Future[None]] = {
            pool.submit(_write_clip, root, clip, config) for clip in islice(queue, 2 * workers)
        }
        try:
            while running:
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    future.result()
                    done += 1
                    if progress is not None:
                        progress(done, len(clips))
                running |= {pool.submit(_write_clip, root, clip, config) for clip in islice(queue, len(ready))}
        except BaseException:
            for future in running:
                future.cancel()
            raise
    return SynthSummary(
        root=root,
        machines=config.machines,
        written=len(pending),
        kept=kept,
        clip_seconds=float(sum(clip.seconds for clip in clips)),
    )


def _claim(root: Path, config: SynthConfig) -> None:
    """Make `root` ours, or refuse."""
    record = json.dumps({"format": _FORMAT, "config": config.model_dump(mode="json", exclude={"workers"})}, indent=2)
    record += "\n"
    if root.exists() and not root.is_dir():
        raise SynthError(f"{root} is a file; give a folder for the simulated machines")
    if root.is_dir() and any(root.iterdir()):
        path = root / RECORD
        if not path.is_file():
            raise SynthError(
                f"{root} is not empty and holds no {RECORD}: give an empty or new folder; nothing here was overwritten"
            )
        if path.read_text(encoding="utf-8") != record:
            raise SynthError(
                f"{root} was made with other settings (see {path}): give another folder, or remove this one"
            )
        return
    root.mkdir(parents=True, exist_ok=True)
    _write_text(root / RECORD, record)


def _stem_paths(root: Path, clip: ClipPlan) -> tuple[Path, Path]:
    """Where foreground and background of a test clip go: where a DCASE reader does not take them for clips."""
    folder, name = root / clip.machine / "stems", clip.name.removesuffix(".wav")
    return folder / f"{name}_foreground.wav", folder / f"{name}_background.wav"


def _finished(root: Path, clip: ClipPlan, config: SynthConfig) -> bool:
    """Whether every file of a clip is there (files appear whole or not at all)."""
    paths = [root / clip.path]
    if config.stems and clip.split is Split.TEST:
        paths += _stem_paths(root, clip)
    return all(path.is_file() for path in paths)


def _write_clip(root: Path, clip: ClipPlan, config: SynthConfig) -> None:
    """Render one clip and write its files; the clip itself comes last."""
    sound = render_clip(clip, config.rate, config.channels)
    if config.stems and clip.split is Split.TEST:
        for path, stem in zip(_stem_paths(root, clip), (sound.foreground, sound.background), strict=True):
            _write_wav(path, stem, config.rate)
    coarse = np.rint(sound.mixture * np.float32(32768.0)).astype(np.int16)
    _write_wav(root / clip.path, coarse, config.rate)


def _write_wav(path: Path, samples: NDArray[np.float32] | NDArray[np.int16], rate: int) -> None:
    """Write (T, channels) as a WAV file, 16-bit or float as the samples are, there whole or not at all.

    Not by libsndfile: it writes the time of day into the header of float files, and bytes would differ.
    """
    from scipy.io import wavfile

    memory = io.BytesIO()
    wavfile.write(memory, rate, samples)
    _write_bytes(path, memory.getvalue())


def _write_text(path: Path, text: str) -> None:
    _write_bytes(path, text.encode("utf-8"))


def _write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder, then rename."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SynthError(f"{path} cannot be written: {error.strerror or error}") from error


def _table(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _attributes_csv(clips: Sequence[ClipPlan]) -> str:
    """DCASE's `attributes_00.csv`: one row a clip with a machine; names alone where attributes are hidden."""
    shown = [clip for clip in clips if clip.content is not Content.NOISE]
    count = 0 if not shown or shown[0].hidden else len(shown[0].attributes)
    rows: list[list[object]] = [["file_name", *(f"d{k}{x}" for k in range(1, count + 1) for x in "pv")]]
    rows += [[clip.path, *(word for pair in clip.attributes[:count] for word in pair)] for clip in shown]
    return _table(rows)


def _truth_csv(clips: Sequence[ClipPlan]) -> str:
    """What the clips hold, attributes that the data set hides included."""
    rows: list[list[object]] = [list(_TRUTH)]
    for clip in clips:
        fault = clip.fault
        what: list[object] = ["", 0.0, -1, -1, -1, -1]
        if fault is not None:
            numbers = (fault.start_s, fault.end_s, fault.low_hz, fault.high_hz)
            what = [fault.name, round(fault.severity, 6), *(round(number, 4) for number in numbers)]
        attributes = ";".join(f"{name}={value}" for name, value in clip.attributes)
        snr = f"{clip.snr_db:.4f}" if clip.content is Content.MIXTURE else ""
        head = [
            clip.path,
            clip.machine,
            clip.split.value,
            clip.domain.value,
            clip.condition.value,
            attributes,
        ]
        if clip.content is Content.NOISE:
            head[-1] = ""
        rows.append([*head, *what, snr, clip.seed])
    return _table(rows)
