"""A folder that `offkey export` wrote: read, and asked for verdicts as a detector is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offkey.audio.io import AudioConfig, AudioError, prepare, read_clip
from offkey.data.ahead import worked_ahead
from offkey.data.machines import UnknownMachine, clip_meta, which_machine
from offkey.manifest import MANIFEST, Kind, ManifestError, read_manifest
from offkey.types import Clip, ClipMeta, FileVerdict, OffkeyError, Verdict

__all__ = ["DESCRIPTION", "FORMAT", "KIND", "Exported", "Machine", "RuntimeProblem", "is_exported"]

FORMAT = 1
DESCRIPTION = "export.json"
KIND = Kind("exported detector", FORMAT, (DESCRIPTION,), "offkey export MODEL")
"""What an exported folder holds, for its manifest."""


class RuntimeProblem(OffkeyError):
    """An exported detector that cannot be read or run, or that was asked about something it does not know."""


class Machine(NamedTuple):
    """Where a machine is found: the ONNX `file`, and its number there (`number`); and its alarm `threshold`."""

    file: str
    number: int
    threshold: float


def is_exported(folder: Path) -> bool:
    """Whether a folder is what `offkey export` wrote."""
    return (folder / DESCRIPTION).is_file()


@dataclass
class Exported:
    """An exported detector: verdicts as the detector gives them, without torch.

    `audio` says how files are read (the level is brought to its value inside the graph); `scorers` are the names of
    the parts of a score; `description` is all of `export.json`. `longest` is the number of samples above which a clip
    is refused, None where there is no such bound; `one_by_one` says that clips are scored so, for the sake of memory.
    """

    folder: Path
    machines: Mapping[str, Machine]
    audio: AudioConfig
    scorers: Sequence[str]
    shortest: int
    description: Mapping[str, Any]
    threads: int = 0
    longest: int | None = None
    one_by_one: bool = False

    def __post_init__(self) -> None:
        """Nothing is loaded before it is needed."""
        self._sessions: dict[str, Any] = {}

    @classmethod
    def load(cls, folder: str | Path, threads: int = 0) -> Exported:
        """Read an exported folder; `threads` for the runtime, 0 lets it choose.

        Raises RuntimeProblem where the folder holds none, or a file is missing, damaged or changed.
        """
        folder = Path(folder)
        if not is_exported(folder):
            which = folder if (folder / MANIFEST).is_file() else "MODEL"
            raise RuntimeProblem(
                f"{folder} holds no exported detector (no {DESCRIPTION}); make one: `offkey export {which} --out DIR`"
            )
        try:
            files = read_manifest(folder, KIND)
            told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            machines = {
                str(name): Machine(
                    str(entry["file"]),
                    int(entry["index"]),
                    math.inf if entry["threshold"] is None else float(entry["threshold"]),
                )
                for name, entry in told["machines"].items()
            }
            audio = AudioConfig(
                rate=told["rate"], channel=told["channel"], level_dbfs=None, min_seconds=told["min_seconds"]
            )
            names, shortest = [str(name) for name in told["scorers"]], int(told["min_samples"])
            longest = None if told.get("max_samples") is None else int(told["max_samples"])
            one_by_one = bool(told.get("one_by_one", False))
        except ManifestError as error:
            raise RuntimeProblem(str(error)) from None
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise RuntimeProblem(f"{folder / DESCRIPTION} is damaged ({error!r}); export the detector again") from None
        lost = sorted({machine.file for machine in machines.values()} - set(files))
        if lost or not machines:
            raise RuntimeProblem(
                f"{folder}: {', '.join(lost) or 'every machine'} is missing; export the detector again"
            )
        return cls(folder, machines, audio, names, shortest, told, threads, longest, one_by_one)

    def threshold(self, machine: str) -> float:
        """The score above which `machine` raises an alarm; infinite where too few normal clips back the rate."""
        return self.machines[machine].threshold

    def score(
        self, clip: str | Path | ClipMeta | Clip | NDArray[Any], *, machine: str | None = None, rate: int | None = None
    ) -> Verdict:
        """Judge one clip, as `Detector.score`. Raises AudioError or RuntimeProblem."""
        if isinstance(clip, str | Path | ClipMeta):
            meta = clip_meta(clip)
            key = self.key_of(meta, machine)
            wave = read_clip(meta.path, self.audio)
        else:
            samples, rate = (clip.samples, clip.rate) if isinstance(clip, Clip) else (np.asarray(clip), rate)
            known = clip.meta if isinstance(clip, Clip) and clip.meta is not None else ClipMeta(Path("array"), "")
            key = self.key_of(known, machine)
            wave = prepare(samples, rate or self.audio.rate, self.audio)
        return self.judge([wave], [key])[0]

    def score_files(
        self,
        paths: Sequence[str | Path | ClipMeta],
        *,
        machine: str | None = None,
        workers: int = 2,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[FileVerdict]:
        """Judge many files, as `Detector.score_files`: one row a file in the order given."""
        metas = [clip_meta(path) for path in paths]

        def read(meta: ClipMeta) -> tuple[NDArray[np.float32], str] | str:
            try:
                key = self.key_of(meta, machine)
                return self._bounded(read_clip(meta.path, self.audio)), key
            except AudioError as error:
                return error.problem
            except RuntimeProblem as error:
                return str(error)

        done = 0
        parts = [metas[start : start + batch_size] for start in range(0, len(metas), batch_size)]
        for part, found in worked_ahead(parts, read, workers):
            good = [place for place, answer in enumerate(found) if not isinstance(answer, str)]
            usable = [answer for answer in found if not isinstance(answer, str)]
            judged = self._asked([wave for wave, _ in usable], [key for _, key in usable])
            told = dict(zip(good, judged, strict=True))
            for place, meta in enumerate(part):
                answer = told.get(place, found[place])
                verdict = answer if isinstance(answer, Verdict) else None
                yield FileVerdict(meta.path, verdict, answer if isinstance(answer, str) else None)
                done += 1
                if progress is not None:
                    progress(done, len(metas))

    def judge(self, waves: Sequence[NDArray[np.float32]], keys: Sequence[str]) -> list[Verdict]:
        """Verdicts of clips (T,) at the model's rate that are of the machines `keys`; any lengths together.

        Raises RuntimeProblem for a clip that is longer than `longest`, and for one that gets no finite score.
        """
        answers = self._asked(waves, keys)
        wrong = next((answer for answer in answers if isinstance(answer, str)), None)
        if wrong is not None:
            raise RuntimeProblem(wrong)
        return [answer for answer in answers if isinstance(answer, Verdict)]

    def _asked(self, waves: Sequence[NDArray[np.float32]], keys: Sequence[str]) -> list[Verdict | str]:
        """Verdicts of clips as for `judge`, or why there is none: what is no number raises no alarm."""
        verdicts: dict[int, Verdict | str] = {}
        for file, rows in self._calls(keys):
            lengths = np.array([len(waves[row]) for row in rows], dtype=np.int64)
            batch = np.zeros((len(rows), max(int(lengths.max()), self.shortest)), dtype=np.float32)
            for place, row in enumerate(rows):
                batch[place, : lengths[place]] = self._bounded(waves[row])
            machine = np.array([self.machines[keys[row]].number for row in rows], dtype=np.int64)
            given = {"waveform": batch, "lengths": lengths, "machine": machine}
            names = ["score", "p_value", "threshold", "is_anomalous", "parts"]
            answers = self._session(file).run(names, given)
            for row, score, p_value, threshold, alarm, parts in zip(rows, *answers, strict=True):
                if not math.isfinite(score):
                    verdicts[row] = f"cannot be judged: its score is {float(score)}; look at its audio"
                    continue
                told = dict(zip(self.scorers, map(float, parts), strict=True))
                verdicts[row] = Verdict(float(score), float(p_value), float(threshold), bool(alarm), keys[row], told)
        return [verdicts[row] for row in range(len(keys))]

    def _calls(self, keys: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
        """A file, and the rows that go through it at a time."""
        for file in dict.fromkeys(self.machines[key].file for key in keys):
            rows = [row for row, key in enumerate(keys) if self.machines[key].file == file]
            yield from ((file, [row]) for row in rows) if self.one_by_one else [(file, rows)]

    def _bounded(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.longest is not None and len(wave) > self.longest:
            rate = self.audio.rate
            raise RuntimeProblem(
                f"too long: {len(wave) / rate:.1f} s, and this exported detector hears at most "
                f"{self.longest / rate:.1f} s at a time; cut the recording, or score it with the detector itself"
            )
        return wave

    def key_of(self, meta: ClipMeta, machine: str | None = None) -> str:
        """The machine that a clip is judged as; raises RuntimeProblem where that is not known."""
        try:
            return which_machine(meta, self.machines, machine)
        except UnknownMachine as error:
            raise RuntimeProblem(str(error)) from None

    def _session(self, file: str) -> Any:
        if file not in self._sessions:
            try:
                import onnxruntime
            except ImportError:
                raise RuntimeProblem(
                    "running an exported detector needs ONNX Runtime: pip install 'offkey[runtime]' (or onnxruntime)"
                ) from None
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.log_severity_level = 3
            path = str(self.folder / file)
            try:
                self._sessions[file] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # its errors have no common class that it names
                raise RuntimeProblem(f"{path} cannot be run by this ONNX Runtime ({error})") from error
        return self._sessions[file]
