"""Several detectors that judge together: each score becomes a normal quantile, then a weighted mean is taken.

To everybody else an ensemble is a `Detector`. What its scorers look at, its only view, are its members' scores: one
column a member. So p-values, thresholds, tables, reports and the folder are those of every detector.

    members of equal audio settings  ->  read once  ->  each member's score
    the score's place among that member's own fresh normal scores  ->  a normal quantile (offkey.scoring.blend)
    weighted mean  ->  the ensemble's score; its threshold from normal clips that are fresh for all members
"""

from __future__ import annotations

import datetime
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import offkey
from offkey.audio.io import AudioConfig
from offkey.blending import MEMBERS, EnsembleError, Part, asked_weights, join, key_of
from offkey.data.loader import load_by_length
from offkey.detector import Detector, asked_apart, part_of
from offkey.explaining import Explanation
from offkey.manifest import MANIFEST
from offkey.separation.front_end import FrontEnd
from offkey.systems.config import CalibrationConfig, SystemConfig
from offkey.types import Batch, Clip, ClipMeta, Verdict

__all__ = ["MEMBERS", "Ensemble", "EnsembleError"]

Sound = str | Path | ClipMeta | Clip | NDArray[Any]


@dataclass
class Ensemble(Detector):
    """A detector made of fitted detectors, its `members` by name. Made by `of`, or by `offkey.fit(system="ensemble")`.

    `config.scoring.scorers` has an entry a member, with its name and weight; `machines` are calibrated on the blend.
    Each member hears through its own front end: `front_ends` lists them, and `front_end` is the first.
    """

    members: dict[str, Detector] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the members are those that the settings tell of, and know the ensemble's machines."""
        self._ordinary = {}
        self.members = {name: self.members[name] for name in self.config.scoring.names if name in self.members}
        if len(self.members) != len(self.config.scoring.scorers):
            raise EnsembleError("an ensemble needs one member for each of its scorers, of the same name")
        for name, member in self.members.items():
            if isinstance(member, Ensemble) or set(member.machines) != set(self.machines):
                raise EnsembleError(f"{name} cannot be a member of this ensemble: build it anew with Ensemble.of")
        fronts = [member.front_end for member in self.members.values() if member.front_end is not None]
        self.front_end = fronts[0] if fronts else None

    @classmethod
    def of(
        cls,
        detectors: Sequence[Detector] | Mapping[str, Detector],
        *,
        weights: str | Sequence[float] | None = None,
        config: SystemConfig | None = None,
        calibration: CalibrationConfig | None = None,
    ) -> Ensemble:
        """Blend fitted detectors of the same machines, fitted on the same normal clips (or on some of the same).

        `weights`: "equal"; "agreement" (how well a member's ranking of normal clips agrees with the others', see
        `offkey.scoring.agreement`); or a number a detector, in their order, where 0 is told beside the others without a
        say. `config`: settings of kind "ensemble", of which the calibration is taken and, where `weights` is None, the
        weights; left out: the first detector's calibration, equal weights. `calibration`: instead of theirs.

        The order of the detectors makes no difference, and one that comes twice counts once. An ensemble among them is
        taken apart: its members join, and together weigh as much as it would. Threshold and p-values rest on normal
        clips that are fresh for all members with a say; where they are too few for the rate, on all clips in common,
        and `reasons` says so.

        Raises EnsembleError where there are none, where machines differ, or where normal clips in common are missing.
        """
        named = list(detectors.items() if isinstance(detectors, Mapping) else (("", each) for each in detectors))
        if not named:
            raise EnsembleError("an ensemble needs at least one detector")
        rule, numbers = asked_weights(weights, config, [name for name, _ in named])
        joined = join(_taken_apart(named, numbers), rule, config, calibration)
        each = [member.facts for member in joined.members.values()]
        facts = {
            "offkey": offkey.__version__,
            "python": platform.python_version(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hours": max(float(facts.get("hours", 0.0)) for facts in each),
            "clips": {name: len(known.clips) for name, known in joined.machines.items()},
        }
        facts |= {key: each[0][key] for key in ("recordings", "source", "kind") if key in each[0]}
        return cls(joined.config, joined.machines, {}, None, tuple(joined.reasons), facts, None, joined.members)

    # ---- scoring

    def score(self, clip: Sound, *, machine: str | None = None, rate: int | None = None) -> Verdict:
        """Judge one clip, as `Detector.score`; `parts` of the verdict are the members' own scores."""
        scores, key = self._listen(clip, machine, rate)
        return self._verdicts([key], {MEMBERS: scores})[0]

    def explain(
        self, clip: Sound, *, machine: str | None = None, rate: int | None = None, **keywords: Any
    ) -> Explanation:
        """Where and when a clip departs from normal, told by the member that finds it strangest.

        That is the member that adds most to the blend; `explainer` says which.
        """
        told = self.explainer(clip, machine=machine, rate=rate)
        return told.explain(clip, machine=machine, rate=rate or self.config.audio.rate, **keywords)

    def explainer(self, clip: Sound, *, machine: str | None = None, rate: int | None = None) -> Detector:
        """The member that finds a clip strangest: its settings are those of the explanation."""
        scores, key = self._listen(clip, machine, rate)
        known, scoring = self.machines[key], self.config.scoring
        voters = scoring.voters
        number = voters[0]
        if known.quantiles:
            heard = [scoring.scorers[n].weight * float(known.quantiles[n](scores[0, n : n + 1])[0]) for n in voters]
            number = voters[int(np.argmax(heard))]
        return self.members[scoring.names[number]]

    def represent(self, batch: Batch, machines: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The members' scores of a batch, (B, S) float64, its only view.

        Raises EnsembleError where the members want their sound in different ways: a batch has one rate and level.
        """
        groups = self._hearing()
        if len(groups) > 1:
            raise EnsembleError(
                "members of this ensemble hear at different rates or levels, so no one batch suits all of them; "
                "use score or score_files"
            )
        return {MEMBERS: self._in_order(self._ask(groups[0], batch, machines))}

    def front_ends(self) -> list[tuple[tuple[str, ...], FrontEnd, AudioConfig]]:
        """The members' separators that differ, as `Detector.front_ends`, each with the names of its members."""
        known: dict[tuple[str, int, str], tuple[list[str], FrontEnd, AudioConfig]] = {}
        for name, member in self.members.items():
            for _, front, audio in member.front_ends():
                key = (front.fingerprint, audio.rate, audio.channel)
                known.setdefault(key, ([], front, audio))[0].append(name)
        return [(tuple(names), front, audio) for names, front, audio in known.values()]

    def _hearing(self) -> list[list[str]]:
        """Names of members that hear the same sound: those share the reading of a clip."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, member in self.members.items():
            front = "" if member.front_end is None else member.front_end.fingerprint
            groups.setdefault((member.config.audio.model_dump_json(), front), []).append(name)
        return list(groups.values())

    def _listen(self, clip: Sound, machine: str | None, rate: int | None) -> tuple[NDArray[np.float64], str]:
        """The members' scores (1, S) of one clip, and the machine that it is judged as."""
        from offkey.detector import _single

        scores: dict[str, NDArray[np.float64]] = {}
        key = ""
        for group in self._hearing():
            hears = self.members[group[0]]
            waveform, key = hears._waveform(clip, machine, rate or self.config.audio.rate)
            scores |= self._ask(group, _single(waveform), [key])
        return self._in_order(scores), key

    def _ask(self, group: Sequence[str], batch: Batch, machines: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """A score (B,) of each member of a group."""
        asked = {}
        for name in group:
            member = self.members[name]
            verdicts = member._verdicts(machines, member.represent(batch, machines))
            asked[name] = np.array([verdict.score for verdict in verdicts])
        return asked

    def _in_order(self, scores: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.stack([scores[name] for name in self.config.scoring.names], axis=1)

    def _heard(
        self,
        clips: Sequence[ClipMeta],
        machines: Sequence[str],
        batch_size: int,
        workers: int,
        problems: dict[int, str],
    ) -> Iterator[tuple[list[int], Mapping[str, NDArray[Any]]]]:
        groups = self._hearing()
        names = [name for group in groups for name in group]
        order = [names.index(name) for name in self.config.scoring.names]
        streams = [
            load_by_length(clips, self.members[group[0]]._reader(), batch_size, workers, problems) for group in groups
        ]
        # the streams go through the clips side by side, but need not cut the same batches
        told: list[dict[int, NDArray[np.float64]]] = [{} for _ in groups]
        running = dict(enumerate(streams))
        while running:
            for number, stream in list(running.items()):
                batch = next(stream, None)
                if batch is None:
                    del running[number]
                    continue

                def ask(places: Sequence[int], number: int = number, batch: Batch = batch) -> NDArray[np.float64]:
                    """Scores (B, S) by the members of one group."""
                    part = part_of(batch, places)
                    scores = self._ask(groups[number], part, [machines[place] for place in places])
                    return np.stack([scores[name] for name in groups[number]], axis=1)

                for good, columns in asked_apart(batch.place.tolist(), ask, problems):
                    told[number].update(zip(good, columns, strict=True))
            good = sorted(set(told[0]).intersection(*told[1:]))
            if good:
                parts = [np.concatenate([scores.pop(place) for scores in told]) for place in good]
                yield good, {MEMBERS: np.stack(parts)[:, order]}

    def with_members(self, change: Callable[[Detector], Detector]) -> Ensemble:
        """A new ensemble of changed members, calibrated anew; names, own weights and rule stay."""
        changed = {name: change(member) for name, member in self.members.items()}
        made = Ensemble.of(changed, config=self.config)
        machines = {
            name: replace(known, calibration=replace(known.calibration, alpha=self.machines[name].calibration.alpha))
            for name, known in made.machines.items()
        }
        facts = self.facts | {key: made.facts[key] for key in ("clips", "hours", "recordings") if key in made.facts}
        return replace(made, machines=machines, facts=facts)

    # ---- disk

    def save(self, folder: str | Path, *, members: bool = True) -> Path:
        """Write the ensemble into `folder`, each member whole in `members/NAME`; the manifest comes last.

        `members=False` writes what is the ensemble's own: the members lie there already.
        """
        from offkey.keeping import save_detector

        folder = Path(folder)
        (folder / MANIFEST).unlink(missing_ok=True)
        place = folder / MEMBERS
        for name, member in self.members.items() if members else ():
            member.save(place / name)
        for old in place.iterdir():
            if old.name not in self.members and (old / MANIFEST).is_file():  # of an ensemble that was here before
                shutil.rmtree(old)
        return save_detector(self, folder)

    def manifests(self) -> list[str]:
        """The members' manifests, as paths below the folder: the ensemble's own manifest vouches for them."""
        return [f"{MEMBERS}/{name}/{MANIFEST}" for name in self.members]


def _taken_apart(named: Sequence[tuple[str, Detector]], weights: Sequence[float]) -> list[Part]:
    """Each detector, and in place of an ensemble its members, which share its weight."""
    parts: list[Part] = []
    for (name, detector), weight in zip(named, weights, strict=True):
        if not isinstance(detector, Ensemble):
            parts.append(Part(name, detector, weight, key_of(detector)))
            continue
        entries = detector.config.scoring.scorers
        total = sum(entry.weight for entry in entries)
        parts += [
            Part(own, detector.members[own], weight * entry.weight / total, key_of(detector.members[own]))
            for own, entry in zip(detector.config.scoring.names, entries, strict=True)
        ]
    return parts
