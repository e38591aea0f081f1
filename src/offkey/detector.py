"""The saved artefact: a model, the normal clips it was shown, scorers, and a calibration, a machine each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from offkey.alarms import with_rate
from offkey.audio.cache import ArrayCache, default_cache_dir
from offkey.audio.io import AudioConfig
from offkey.audio.mel import LogMel
from offkey.data.labels import LabelSpace
from offkey.data.loader import ClipReader, load_by_length
from offkey.data.machines import UnknownMachine, machine_key, which_machine
from offkey.data.machines import clip_meta as _meta
from offkey.explaining import (
    Asked,
    Evidence,
    Explanation,
    Ordinary,
    PatchGrid,
    Profile,
    contributions,
    explain_waveform,
    nearest_rows,
    ordinary,
    rows_of,
)
from offkey.scoring import Calibration, FalseAlarms, NormalQuantile, Query, Scorer, blend, sessions_apart
from offkey.separation.front_end import FrontEnd
from offkey.separation.stems import STEMS_BYTES
from offkey.systems.config import SystemConfig, ViewScorer
from offkey.types import Batch, Clip, ClipMeta, FileVerdict, OffkeyError, Verdict
from offkey.views import SHARED, Seen, ViewError, Views

if TYPE_CHECKING:
    from offkey.systems.network import Network

__all__ = ["Detector", "DetectorError", "FileVerdict", "MachineDetector", "machine_key"]

Told = TypeVar("Told")

EXPLAINED_BY = 5
"""How many normal clips, those nearest to it, a clip is compared with when it is explained."""


class DetectorError(OffkeyError):
    """A detector that cannot be read, or that was asked about something it does not know."""


@dataclass(frozen=True)
class MachineDetector:
    """What a detector knows of one machine.

    `clips` (N,) names of the reference clips, `domains` (N,) their domains, `embeddings` a view each (N, D) float32;
    `scorers` one an entry of `config.scoring.scorers`; `quantiles` one a scorer where several are blended, else none;
    `profile` is what is normal in each mel band, for explanations.

    `cross_fitted` (N, S) are the scores of the reference clips before blending, none by a scorer that was fitted on it;
    `fresh` (N,) says which of them the network does not know either: those behind the threshold. Both None in detectors
    of older versions. `sessions` (N,) names the recording that each clip was cut from, "" where it is one by itself;
    None where nobody told.
    """

    name: str
    clips: tuple[str, ...]
    domains: tuple[str, ...]
    identities: tuple[int, ...]
    embeddings: Mapping[str, NDArray[np.float32]]
    scorers: tuple[Scorer, ...]
    quantiles: tuple[NormalQuantile, ...]
    calibration: Calibration
    profile: Profile
    cross_fitted: NDArray[np.float64] | None = None
    fresh: NDArray[np.bool_] | None = None
    sessions: tuple[str, ...] | None = None

    @property
    def recordings(self) -> int | None:
        """How many recordings the reference clips were cut from; None where nobody told."""
        apart = sessions_apart(self.sessions)
        return None if apart is None else len(set(apart))

    def judge(
        self, entries: Sequence[ViewScorer], embeddings: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores (M,) and the scores before blending (M, S) of clips given as a view each (M, D)."""
        pairs = zip(entries, self.scorers, strict=True)
        parts = np.stack([scorer.score(Query(embeddings[entry.view])) for entry, scorer in pairs], axis=1)
        return blend(parts, self.quantiles, [entry.weight for entry in entries]), parts


@dataclass
class Detector:
    """A fitted system: scores clips of the machines that it was fitted on.

    Made by `offkey.fit`, read by `offkey.load`. `networks` by machine, or one by the name "" that all machines share;
    empty where nothing is trained. `facts` tells what it was fitted on; `reasons` why `auto` chose.
    """

    config: SystemConfig
    machines: dict[str, MachineDetector]
    networks: dict[str, Network] = field(default_factory=dict)
    labels: LabelSpace | None = None
    reasons: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    front_end: FrontEnd | None = None

    def __post_init__(self) -> None:
        """Build the views that the scorers look at."""
        try:
            self._views = Views(self.config, self.networks)
        except ViewError as error:
            raise DetectorError(str(error)) from None
        self._ordinary: dict[tuple[str, int], Ordinary] = {}

    # ---- scoring

    def score(
        self,
        clip: str | Path | ClipMeta | Clip | NDArray[Any],
        *,
        machine: str | None = None,
        rate: int | None = None,
    ) -> Verdict:
        """Judge one clip: a file, or samples (T,) or (T, channels) at `rate` hertz (default: the model's rate).

        `machine` may be left out where the detector knows one machine, or where the file's name or folder tells it.
        Raises AudioError for a clip that cannot be used, DetectorError for an unknown machine.
        """
        waveform, key = self._waveform(clip, machine, rate)
        return self._verdicts([key], self.represent(_single(waveform), [key]))[0]

    def score_files(
        self,
        paths: Sequence[str | Path | ClipMeta],
        *,
        machine: str | None = None,
        workers: int = 2,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
        embeddings: list[tuple[int, dict[str, NDArray[np.float32]]]] | None = None,
    ) -> Iterator[FileVerdict]:
        """Judge many files; yields one row a file in the order given, with a reason where there is no verdict.

        Files are decoded by `workers` threads ahead of the model and go through it beside others of like length. Memory
        does not grow with their number. A clip that cannot be judged is one row with its reason, whatever stands in
        its way; those beside it are judged.
        `embeddings`, if given, receives (place in `paths`, view -> (D,)) of every clip that was scored.
        """
        metas = [_meta(path) for path in paths]
        keys: list[str | None] = []
        refused: dict[int, str] = {}
        for place, meta in enumerate(metas):
            try:
                keys.append(self._key(meta, machine))
            except DetectorError as error:
                keys.append(None)
                refused[place] = str(error)
        usable = [place for place, key in enumerate(keys) if key is not None]
        problems: dict[int, str] = {}  # by place in `usable`
        scored: dict[int, tuple[Verdict, dict[str, NDArray[np.float32]]]] = {}
        thresholds: dict[str, float] = {}
        done = 0

        def rows(last: bool) -> Iterator[FileVerdict]:
            """The rows that follow, as far as their fate is known."""
            nonlocal done
            while done < len(metas) and (last or done in scored or done in refused):
                verdict = None
                if done in scored:
                    verdict, seen = scored.pop(done)
                    if embeddings is not None:
                        embeddings.append((done, seen))
                yield FileVerdict(metas[done].path, verdict, None if verdict is not None else refused.get(done))
                done += 1
                if progress is not None:
                    progress(done, len(metas))

        own = [str(keys[place]) for place in usable]
        for heard, views in self._heard([metas[place] for place in usable], own, batch_size, workers, problems):
            for good, verdicts in asked_apart(heard, self._judge_rows(heard, own, views, thresholds), problems):
                for place, verdict in zip(good, verdicts, strict=True):
                    row = heard.index(place)
                    seen = {view: array[row].astype(np.float32, copy=False) for view, array in views.items()}
                    scored[usable[place]] = verdict, seen
            for place in list(problems):
                refused[usable[place]] = problems.pop(place)
            yield from rows(last=False)
        refused |= {usable[place]: problem for place, problem in problems.items()}
        yield from rows(last=True)

    def _heard(
        self,
        clips: Sequence[ClipMeta],
        machines: Sequence[str],
        batch_size: int,
        workers: int,
        problems: dict[int, str],
    ) -> Iterator[tuple[list[int], Mapping[str, NDArray[Any]]]]:
        """Places in `clips` and views of what could be read, a batch at a time; `problems` tells of the others."""
        for batch in load_by_length(clips, self._reader(), batch_size, workers, problems):

            def ask(places: Sequence[int], batch: Batch = batch) -> dict[str, NDArray[Any]]:
                return self.represent(part_of(batch, places), [machines[place] for place in places])

            yield from asked_apart(batch.place.tolist(), ask, problems)

    def _judge_rows(
        self,
        heard: Sequence[int],
        machines: Sequence[str],
        views: Mapping[str, NDArray[Any]],
        thresholds: dict[str, float],
    ) -> Callable[[Sequence[int]], list[Verdict]]:
        """What judges some of the places in `heard`, of which `views` has a row each."""

        def judge(places: Sequence[int]) -> list[Verdict]:
            rows = [heard.index(place) for place in places]
            chosen = {view: array[rows] for view, array in views.items()}
            return self._verdicts([machines[place] for place in places], chosen, thresholds)

        return judge

    def score_samples(self, clips: Iterable[str | Path | Clip | NDArray[Any]], **keywords: Any) -> NDArray[np.float64]:
        """(N,) float64 in scikit-learn's manner: the LOWER, the more anomalous; the negative of `Verdict.score`."""
        return -np.array([self.score(clip, **keywords).score for clip in clips], dtype=np.float64)

    def decision_function(
        self, clips: Iterable[str | Path | Clip | NDArray[Any]], **keywords: Any
    ) -> NDArray[np.float64]:
        """(N,) float64 in scikit-learn's manner: threshold minus score, negative for alarms."""
        verdicts = [self.score(clip, **keywords) for clip in clips]
        return np.array([verdict.threshold - verdict.score for verdict in verdicts], dtype=np.float64)

    def predict(self, clips: Iterable[str | Path | Clip | NDArray[Any]], **keywords: Any) -> NDArray[np.int64]:
        """(N,) int64 in scikit-learn's manner: 1 for normal, -1 for an alarm."""
        return np.array([-1 if self.score(clip, **keywords).is_anomalous else 1 for clip in clips], dtype=np.int64)

    def explain(
        self, clip: str | Path | ClipMeta | Clip | NDArray[Any], *, machine: str | None = None, rate: int | None = None
    ) -> Explanation:
        """Where and when a clip departs from what normal clips of its machine sound like; arguments as for `score`.

        Of several scorers the one is explained that finds the clip strangest. A clip that is one of the normal clips is
        compared with the others.
        """
        waveform, key = self._waveform(clip, machine, rate)
        mel = LogMel(self.config.audio.rate, self.config.mel)
        levelled = self.config.audio.level_dbfs is not None
        known = self.machines[key]
        batch = _single(waveform)
        seen = self._views(batch, [key], reasons=True)
        voters, entries = self.config.scoring.voters, self.config.scoring.scorers
        number = voters[0]
        if known.quantiles:
            parts = list(self._verdicts([key], seen.embeddings)[0].parts.values())
            heard = [entries[n].weight * float(known.quantiles[n](np.array([parts[n]]))[0]) for n in voters]
            number = voters[int(np.argmax(heard))]
        scorer, reference = known.scorers[number], known.embeddings[self.config.scoring.scorers[number].view]
        if (key, number) not in self._ordinary:
            near = nearest_rows(scorer, reference, reference, EXPLAINED_BY, leave_out=True)
            frame = mel.config.hop / mel.rate
            self._ordinary[key, number] = ordinary(known.profile, near, levelled, frame)
        level = mel(batch.waveform)[0].double().numpy()
        itself = rows_of(known.profile.spectra, level, len(waveform) / mel.rate)
        evidence = replace(self._evidence(known, number, seen, itself), asked=self._asked(key, seen), itself=itself)
        return explain_waveform(waveform, mel, known.profile, levelled, evidence, self._ordinary[key, number])

    def explainer(
        self,
        clip: str | Path | ClipMeta | Clip | NDArray[Any],  # noqa: ARG002 - an ensemble looks at it
        *,
        machine: str | None = None,  # noqa: ARG002
        rate: int | None = None,  # noqa: ARG002
    ) -> Detector:
        """Who explains this clip: the detector itself (an ensemble leaves it to one of its members)."""
        return self

    def _evidence(self, known: MachineDetector, number: int, seen: Seen, itself: NDArray[np.int64]) -> Evidence:
        """What scorer `number` says of one clip: the normal clips nearest to it, errors a frame, shares of bands.

        `itself`: rows of the normal clips that are this clip; it is not its own neighbour.
        """
        view, scorer = self.config.scoring.scorers[number].view, known.scorers[number]
        embedding = seen.embeddings[view]
        nearest = nearest_rows(scorer, embedding, known.embeddings[view], EXPLAINED_BY, without=itself)[0]
        if seen.errors is not None and view != "logmel":
            return Evidence("reconstruction", known.clips, nearest)
        if view == "logmel":
            features = contributions(scorer, embedding[0], known.embeddings[view][nearest[0]])
            # the statistics of a band stand side by side, a block of all bands each
            shares = features.reshape(-1, self.config.mel.n_mels).sum(axis=0)
            return Evidence("statistics", known.clips, nearest, shares=shares)
        return Evidence("nearest", known.clips, nearest)

    def _asked(self, key: str, seen: Seen) -> Asked:
        """What the map of a clip of the machine `key` can be made from."""
        network = self.networks.get(SHARED, self.networks.get(key))
        encoder: Any = getattr(network, "encoder", None)  # there is one where there are patches

        def score(waveforms: NDArray[np.float32]) -> NDArray[np.float64]:
            import torch

            samples = torch.from_numpy(waveforms)
            batch = Batch(samples, torch.full((len(samples),), samples.shape[1]), None, torch.arange(len(samples)))
            with _without_caches(network):  # a clip that was tampered with is not heard twice
                views = self.represent(batch, [key] * len(samples))
            return self.machines[key].judge(self.config.scoring.scorers, views)[0]

        return Asked(
            error_map=None if seen.error_maps is None else seen.error_maps[0].astype(np.float64),
            frame_error=None if seen.errors is None else seen.errors[0].astype(np.float64),
            patches=None if seen.patches is None else PatchGrid(seen.patches[0], encoder.span),
            score=score,
        )

    def represent(self, batch: Batch, machines: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The views of a batch that the scorers look at, (B, D) float32 each; its clips belong to `machines` (B)."""
        return self._views(batch, machines).embeddings

    @property
    def network(self) -> Network | None:
        """The network that all machines share, if there is one."""
        return self.networks.get(SHARED)

    def machine_of(self, clip: ClipMeta, machine: str | None = None) -> str:
        """The machine that a clip is judged as: `machine`, or what name and folders tell; DetectorError otherwise."""
        return self._key(clip, machine)

    def reader(self) -> ClipReader:
        """Reads clips as this detector hears them, its front end included."""
        return self._reader()

    def front_ends(self) -> list[tuple[tuple[str, ...], FrontEnd, AudioConfig]]:
        """The separators through which clips are heard and how they are decoded for each; the detector has one or none.

        Before each stand the names of those members of an ensemble that hear through it; () for a single detector.
        """
        return [] if self.front_end is None else [((), self.front_end, self.config.audio)]

    def threshold(self, machine: str) -> float:
        """The score above which `machine` raises an alarm; infinite where too few normal clips back the rate."""
        return self.machines[machine].calibration.threshold()

    def _waveform(
        self, clip: str | Path | ClipMeta | Clip | NDArray[Any], machine: str | None, rate: int | None
    ) -> tuple[NDArray[np.float32], str]:
        """A clip's samples at the model's rate, and the machine that it is judged as."""
        if isinstance(clip, str | Path | ClipMeta):
            meta = _meta(clip)
            # A copy: what comes from a cache is read-only, which torch does not take.
            return np.array(self._reader().read(meta.path)), self._key(meta, machine)
        samples, rate = (clip.samples, clip.rate) if isinstance(clip, Clip) else (np.asarray(clip), rate)
        known = clip.meta if isinstance(clip, Clip) and clip.meta is not None else ClipMeta(Path("array"), "")
        return self._reader().prepare(samples, rate or self.config.audio.rate), self._key(known, machine)

    def _reader(self) -> ClipReader:
        """Reads clips as the detector hears them; what a front end makes of a file is kept on disk."""
        if self.front_end is None:
            return ClipReader(self.config.audio)
        return ClipReader(self.config.audio, ArrayCache(default_cache_dir() / "stems", STEMS_BYTES), self.front_end)

    def _verdicts(
        self,
        keys: Sequence[str],
        views: Mapping[str, NDArray[Any]],
        thresholds: dict[str, float] | None = None,
    ) -> list[Verdict]:
        """Verdicts on clips of the machines `keys`; `thresholds` keeps what one call found for the next."""
        thresholds = {} if thresholds is None else thresholds
        entries = self.config.scoring.scorers
        labels = self.config.scoring.names
        verdicts: list[Verdict | None] = [None] * len(keys)
        for key in dict.fromkeys(keys):
            rows = [row for row, other in enumerate(keys) if other == key]
            known = self.machines[key]
            scores, parts = known.judge(entries, {view: array[rows] for view, array in views.items()})
            if key not in thresholds:  # the gamma rule searches for it
                thresholds[key] = self.threshold(key)
            threshold = thresholds[key]
            for row, score, part in zip(rows, scores, parts, strict=True):
                verdicts[row] = Verdict(
                    score=float(score),
                    p_value=known.calibration.p_value(float(score)),
                    threshold=threshold,
                    is_anomalous=bool(score > threshold),
                    machine=key,
                    parts=dict(zip(labels, map(float, part), strict=True)),
                )
        return [verdict for verdict in verdicts if verdict is not None]

    def _key(self, clip: ClipMeta, machine: str | None) -> str:
        try:
            return which_machine(clip, self.machines, machine)
        except UnknownMachine as error:
            raise DetectorError(str(error)) from None

    # ---- false alarms, and normal clips that come later

    def with_false_alarms(self, wanted: str | FalseAlarms, clip_every: float | None = None) -> Detector:
        """The same detector with thresholds for another rate: "5%" of clips, or "1/week" a machine.

        `clip_every`: seconds from one clip to the next; by default clips as long as the normal ones come back to back.
        Scores and p-values stay as they are. `offkey.alarms.shortfall` tells where too few clips stand behind the rate.
        """
        wanted = FalseAlarms.parse(wanted) if isinstance(wanted, str) else wanted
        return replace(self, machines=with_rate(self.machines, wanted, clip_every)[0])

    def update(self, clips: Sequence[str | Path | ClipMeta], **keywords: Any) -> Detector:
        """A new detector that also knows these normal clips; nothing is trained. See `offkey.updating.update`."""
        from offkey.updating import update

        return update(self, clips, **keywords)

    # ---- disk

    def save(self, folder: str | Path) -> Path:
        """Write the detector into `folder` (made if missing); the manifest comes last, so a kill leaves no half one."""
        from offkey.keeping import save_detector

        return save_detector(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Detector:
        """Read a detector that `save` wrote.

        Raises DetectorError where the folder holds none, a file is missing, was changed or is damaged, or the format is
        newer than this offkey reads.
        """
        from offkey.keeping import load_detector

        return load_detector(Path(folder))

    def card(self) -> str:
        """CARD.md: what a person should know before trusting this detector."""
        from offkey.card import write_card

        return write_card(self)


@contextmanager
def _without_caches(network: Network | None) -> Iterator[None]:
    """What a network hears meanwhile is not kept on disk."""
    held = [] if network is None else [one for one in network.modules() if getattr(one, "cache", None) is not None]
    caches = [one.cache for one in held]
    for one in held:
        one.cache = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for one, cache in zip(held, caches, strict=True):
            one.cache = cache


def asked_apart(
    places: Sequence[int], ask: Callable[[Sequence[int]], Told], problems: dict[int, str]
) -> list[tuple[list[int], Told]]:
    """What `ask` says of all `places`, or of the parts of them that it can answer, in their order.

    Where it raises OffkeyError it is asked about each half, so that one clip that nothing can be said of costs the
    others nothing: its reason goes to `problems`.
    """
    try:
        return [(list(places), ask(places))] if len(places) else []
    except OffkeyError as error:
        if len(places) == 1:
            problems[places[0]] = f"cannot be judged: {error}"
            return []
    half = len(places) // 2
    return [*asked_apart(places[:half], ask, problems), *asked_apart(places[half:], ask, problems)]


def part_of(batch: Batch, places: Sequence[int]) -> Batch:
    """The clips of a batch without labels that stand at `places`, no longer padded than they need."""
    known = batch.place.tolist()
    if list(places) == known:
        return batch
    rows = [known.index(place) for place in places]
    lengths = batch.lengths[rows]
    return Batch(batch.waveform[rows, : int(lengths.max())], lengths, None, batch.place[rows])


def _single(waveform: NDArray[np.float32]) -> Batch:
    import torch

    samples = torch.from_numpy(waveform)[None]
    return Batch(samples, torch.tensor([samples.shape[1]]), None, torch.zeros(1, dtype=torch.int64))
