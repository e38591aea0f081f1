"""A watch over machines: clips in the order of time in, alarms that begin and end and drift warnings out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from offkey.alarms import clip_seconds
from offkey.audio.io import AudioError
from offkey.detector import Detector, DetectorError
from offkey.files import write_whole
from offkey.scoring import FalseAlarms
from offkey.scoring.rate import spoken_frequency
from offkey.types import Clip, ClipMeta, OffkeyError, Verdict
from offkey.watching.confirmation import Confirmation, Hysteresis, Terms, WatchError, agree
from offkey.watching.drift import DriftMonitor
from offkey.watching.windows import Pcm, Readable, Window, seconds_in, windows_of_file, windows_of_stream

__all__ = ["AlarmBegan", "AlarmEnded", "Drift", "Notice", "Place", "Unusable", "Watch", "WatchSettings", "plain"]

_FORMAT = 1
_WHOLE = 1.5
_CHECKPOINT_EVERY = 50
_AT_ONCE = Confirmation()
_MONTH = 365.25 * 86400.0 / 12


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How a watch is kept; times in seconds.

    `window` and `step`: how long recordings are cut (None: as long as the detector's normal clips, back to back, and
    recordings up to one and a half times as long are judged whole). `clip_every`: how often clips come, where that is
    not the step. `false_alarms` None keeps the detector's rate. `worst_case`: the rate holds for any dependence
    between clips. `drift_warnings`: false ones a second, at most.
    """

    window: float | None = None
    step: float | None = None
    clip_every: float | None = None
    confirm: Confirmation = _AT_ONCE
    false_alarms: FalseAlarms | None = None
    worst_case: bool = False
    drift_warnings: float = 1 / _MONTH
    machine: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """`WatchError` for lengths that are none."""
        for name in ("window", "step", "clip_every", "drift_warnings"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise WatchError(f"{name.replace('_', ' ')} is more than 0, not {value:g}")


@dataclass(frozen=True, slots=True)
class Place:
    """A clip's `file`, where in it the clip begins (`at`) and how long it is, in seconds."""

    file: str
    at: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.file} at {self.at:.1f} s" if self.at else self.file


@dataclass(frozen=True, slots=True)
class AlarmBegan:
    """`alarms` of the last `clips` alarmed. `start` is the first of them, `highest` the strangest, `why` the reason."""

    kind: ClassVar[str] = "alarm"
    machine: str
    start: Place
    score: float
    p_value: float
    threshold: float
    highest: Place
    alarms: int
    clips: int
    why: str

    def __str__(self) -> str:
        told = f", {self.alarms} of {self.clips} clips" if self.clips > 1 else ""
        return (
            f"ALARM {self.machine}: since {self.start}{told}; score {self.score:.4g} above {self.threshold:.4g} "
            f"(p = {self.p_value:.3g}); {self.why}"
        )


@dataclass(frozen=True, slots=True)
class AlarmEnded:
    """The scores stayed quiet. `end` is the last clip that was not; `ended` False: the recordings ended first."""

    kind: ClassVar[str] = "end"
    machine: str
    start: Place
    end: Place
    score: float
    highest: Place
    clips: int
    why: str
    ended: bool = True

    def __str__(self) -> str:
        what = "end of alarm" if self.ended else "alarm goes on"
        return (
            f"{what} {self.machine}: {self.start} to {self.end}, {self.clips} clips, highest score {self.score:.4g} in "
            f"{self.highest}; {self.why}"
        )


@dataclass(frozen=True, slots=True)
class Drift:
    """Normal scores have moved up: half of the last clips without alarm have a p-value below `median`, not 0.5."""

    kind: ClassVar[str] = "drift"
    machine: str
    at: Place
    median: float
    clips: int

    def __str__(self) -> str:
        return (
            f"DRIFT {self.machine}: clips that raise no alarm score higher than they did ({self.at}; median p-value "
            f"{self.median:.2g} instead of 0.5, {self.clips} clips heard). Listen, and if all is well: offkey update"
        )


@dataclass(frozen=True, slots=True)
class Unusable:
    """A recording, or a window of one, that could not be judged."""

    kind: ClassVar[str] = "unusable"
    file: str
    at: float | None
    problem: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.at is None else f' at {self.at:.1f} s'}: {self.problem}"


Notice = AlarmBegan | AlarmEnded | Drift | Unusable


def plain(notice: Notice) -> dict[str, Any]:
    """A notice for JSON."""
    return {"kind": notice.kind, **asdict(notice)}


class _Station:
    """What is known of one machine while it is watched."""

    def __init__(self, name: str, detector: Detector, settings: WatchSettings, every: float, overlap: int) -> None:
        calibration = detector.machines[name].calibration
        try:
            self.terms = agree(
                calibration, settings.confirm, every, settings.false_alarms, settings.worst_case or overlap > 1
            )
        except WatchError as error:
            told = " (windows overlap, so the rate has to hold for dependent clips)" if overlap > 1 else ""
            raise WatchError(f"{name}: {error}{told}") from None
        self.name, self.overlap, self.clips, self.every = name, overlap, 0, every
        self.alarm = Hysteresis(settings.confirm, self.terms.threshold, self.terms.release)
        between = 1 / (settings.drift_warnings * every * overlap)
        self.drift = DriftMonitor(calibration.scores, self.terms.threshold, max(between, 2.0), settings.seed)
        self.alarming: list[tuple[int, Place, float, float, str]] = []  # number, place, score, p-value, why; by number
        self.begun: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        return {
            "clips": self.clips,
            "alarm": self.alarm.state(),
            "drift": self.drift.state(),
            "alarming": [[n, asdict(place), score, p, why] for n, place, score, p, why in self.alarming],
            "begun": self.begun,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.clips = int(state["clips"])
        self.alarm.restore(state["alarm"])
        self.drift.restore(state["drift"])
        self.alarming = [
            (int(n), Place(**place), float(s), float(p), str(why)) for n, place, s, p, why in state["alarming"]
        ]
        self.begun = dict(state["begun"])


class Watch:
    """Follows machines through their clips. Feed it in the order of time; it tells what people should know.

    >>> watch = Watch(detector, WatchSettings(confirm=Confirmation(3, 5)))  # doctest: +SKIP
    >>> for notice in watch.file(Path("night.wav")):  # doctest: +SKIP
    ...     print(notice)
    """

    def __init__(self, detector: Detector, settings: WatchSettings | None = None) -> None:
        """Raises WatchError where the wanted rate is out of reach, or nobody knows how long clips are."""
        self.detector = detector
        self.settings = settings or WatchSettings()
        self.done: set[str] = set()
        self.within: dict[str, int] = {}
        self.judged = self.unusable = self.alarms = self.drifts = 0
        self.checkpoint: Callable[[], None] | None = None
        """Called now and then within long recordings, so that a killed watch need not begin them again."""
        self._stations: dict[str, _Station] = {}
        wanted = self.settings.machine
        if wanted is not None and wanted not in detector.machines:
            raise DetectorError(
                f"this detector does not know the machine {wanted!r}; it knows {', '.join(detector.machines)}"
            )
        for name in detector.machines if wanted is None else (wanted,):
            self._stations[name] = self._station(name)

    # ---- what it goes by

    def lengths(self, machine: str) -> tuple[float, float, float]:
        """(window, step, seconds between clips) of a machine."""
        given = self.settings
        usual = clip_seconds(self.detector.machines[machine])
        window = given.window or usual
        if window is None:
            raise WatchError(f"{machine}: how long are windows? Say it (--window 10s), for the detector does not know")
        step = given.step or window
        every = given.clip_every or step
        return window, step, every

    def terms(self) -> dict[str, Terms]:
        """What the watch goes by, a machine each."""
        return {name: station.terms for name, station in self._stations.items()}

    def told(self) -> list[str]:
        """What to expect, in words, a sentence a machine."""
        sentences = []
        for name, station in self._stations.items():
            terms, confirm = station.terms, self.settings.confirm
            if terms.independent is None or terms.worst is None:
                often = "the gamma rule promises no rate"
            else:
                often = (
                    f"false alarms on average: {spoken_frequency(terms.independent)} if normal clips are independent "
                    f"of each other, at most {spoken_frequency(terms.worst)} however they depend on each other"
                )
            sentences.append(
                f"{name}: an alarm begins with {confirm.needed} of {confirm.of} clips above {terms.threshold:.4g} "
                f"(rate of single clips {terms.alpha:.3g}) and ends with {confirm.of} in a row at {terms.release:.4g} "
                f"or below; {often}"
            )
            if not station.drift.works:
                sentences.append(f"{name}: too few normal clips to notice drift; no drift warning will come")
        return sentences

    def _station(self, name: str) -> _Station:
        window, step, every = self.lengths(name)
        return _Station(name, self.detector, self.settings, every, max(1, math.ceil(window / step - 1e-9)))

    # ---- clips in, notices out

    def file(self, path: Path) -> Iterator[Notice]:
        """Judge one recording, whole or in windows; it is then `done`. What cannot be used is told as `Unusable`."""
        name = str(path)
        named = (folder for folder in (parent.name for parent in path.absolute().parents) if folder in self._stations)
        window, step, _ = self.lengths(self.settings.machine or next(named, next(iter(self._stations))))
        seconds = seconds_in(path)
        limit = window if self.settings.window is not None else _WHOLE * window
        if seconds is None or seconds <= limit + 1e-6:
            yield from self._clip(path, Place(name, 0.0, seconds or window))
        else:
            yield from self._windows(windows_of_file(path, window, step, self.within.get(name, 0)), path)
        self.within.pop(name, None)
        self.done.add(name)

    def stream(self, stream: Readable, pcm: Pcm | None = None, name: str = "stdin") -> Iterator[Notice]:
        """Judge a stream of WAV, or of raw samples, until it ends."""
        if self.settings.machine is None and len(self._stations) > 1:
            raise WatchError(
                f"which machine does the stream come from? Name one of {', '.join(self._stations)} (--machine)"
            )
        window, step, _ = self.lengths(next(iter(self._stations)))
        yield from self._windows(windows_of_stream(stream, window, step, pcm, name), Path(name))

    def finish(self) -> Iterator[Notice]:
        """Alarms that go on where the recordings end."""
        for station in self._stations.values():
            if station.alarm.on:
                yield self._ended(station, ended=False)

    def _windows(self, windows: Iterator[Window], path: Path) -> Iterator[Notice]:
        name, count = str(path), self.within.get(str(path), 0)
        any_window = count > 0
        try:
            for window in windows:
                any_window = True
                clip = Clip(window.samples, window.rate, ClipMeta(path, path.absolute().parent.name))
                yield from self._clip(clip, Place(name, window.start, window.seconds))
                count += 1
                self.within[name] = count
                if self.checkpoint is not None and count % _CHECKPOINT_EVERY == 0:
                    self.checkpoint()
            if not any_window:
                raise AudioError(path, "no sound", "Copy or record it again")
        except AudioError as error:
            self.unusable += 1
            yield Unusable(name, None, error.problem)

    def _clip(self, clip: Path | Clip, place: Place) -> Iterator[Notice]:
        try:
            verdict = self.detector.score(clip, machine=self.settings.machine)
        except OffkeyError as error:  # whatever stands in the way of one clip, the watch goes on
            self.unusable += 1
            at = None if isinstance(clip, Path) else place.at
            known = isinstance(error, AudioError | DetectorError)
            problem = error.problem if isinstance(error, AudioError) else str(error)
            yield Unusable(place.file, at, problem if known else f"cannot be judged: {problem}")
            return
        yield from self._heard(self._stations[verdict.machine], verdict, clip, place)

    def _heard(self, station: _Station, verdict: Verdict, clip: Path | Clip, place: Place) -> Iterator[Notice]:
        station.clips += 1
        self.judged += 1
        was_on = station.alarm.on
        change = station.alarm.step(verdict.score)
        alarming = verdict.score > station.terms.threshold
        if alarming and not was_on:
            why = self._why(clip, verdict.machine)
            station.alarming.append((station.clips, place, verdict.score, verdict.p_value, why))
        station.alarming = [one for one in station.alarming if one[0] > station.clips - self.settings.confirm.of]
        if was_on:
            begun = station.begun
            if verdict.score > begun["score"]:
                begun |= {"score": verdict.score, "highest": asdict(place), "why": self._why(clip, verdict.machine)}
            if verdict.score > station.alarm.release:
                begun |= {"end": asdict(place), "last": station.clips}
        if change == "begin":
            yield self._began(station)
        elif change == "end":
            yield self._ended(station)
        if not was_on and not alarming and station.clips % station.overlap == 0 and station.drift.step(verdict.score):
            self.drifts += 1
            yield Drift(station.name, place, station.drift.median, station.clips)

    def _began(self, station: _Station) -> AlarmBegan:
        first, last = station.alarming[0], station.alarming[-1]
        _, highest, score, p_value, why = max(station.alarming, key=lambda one: one[2])
        self.alarms += 1
        station.begun = {
            "start": asdict(first[1]), "end": asdict(last[1]), "score": score, "highest": asdict(highest), "why": why,
            "first": first[0], "last": station.clips,
        }  # fmt: skip
        count, of = len(station.alarming), self.settings.confirm.of
        station.alarming = []
        return AlarmBegan(
            station.name,
            Place(**station.begun["start"]),
            score,
            p_value,
            station.terms.threshold,
            highest,
            count,
            of,
            why,
        )

    @staticmethod
    def _ended(station: _Station, ended: bool = True) -> AlarmEnded:
        begun = station.begun
        return AlarmEnded(
            station.name,
            Place(**begun["start"]),
            Place(**begun["end"]),
            begun["score"],
            Place(**begun["highest"]),
            begun["last"] - begun["first"] + 1,
            begun["why"],
            ended,
        )

    def _why(self, clip: Path | Clip, machine: str) -> str:
        try:
            return self.detector.explain(clip, machine=machine).text
        except OffkeyError as error:  # an alarm is not lost for want of a reason
            return f"no reason can be given ({error})"

    # ---- a watch that goes on later

    def save(self, file: Path, model: str) -> None:
        """Write all that a later `resume` needs, whole or not at all; `model` stands for the detector's content."""
        document = {
            "format": _FORMAT,
            "model": model,
            "terms": self._agreed(),
            "done": sorted(self.done),
            "within": self.within,
            "counts": [self.judged, self.unusable, self.alarms, self.drifts],
            "machines": {name: station.state() for name, station in self._stations.items()},
        }
        write_whole(file, json.dumps(document))

    def resume(self, file: Path, model: str) -> str | None:
        """Go on from a state that `save` wrote; a sentence where not all of it could be used.

        With another detector (after `offkey update`) or other settings the recordings that were judged stay judged, and
        alarms and drift begin anew. Raises WatchError for a file that is no state.
        """
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if document["format"] != _FORMAT:
                raise WatchError(
                    f"{file} was written by another offkey (format {document['format']}); name another --state"
                )
            self.done, self.within = set(document["done"]), {k: int(v) for k, v in document["within"].items()}
            same = document["model"] == model and document["terms"] == json.loads(json.dumps(self._agreed()))
            if not same:
                return (
                    f"{file} is of another detector or other settings: what was judged stays judged, alarms begin anew"
                )
            self.judged, self.unusable, self.alarms, self.drifts = map(int, document["counts"])
            for name, station in self._stations.items():
                station.restore(document["machines"][name])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WatchError(f"{file} holds no state of a watch ({error}); delete it or name another --state") from None
        return None

    def _agreed(self) -> dict[str, Any]:
        confirm = self.settings.confirm
        return {
            name: [station.terms.threshold, station.terms.release, confirm.needed, confirm.of, *self.lengths(name)]
            for name, station in self._stations.items()
        }
