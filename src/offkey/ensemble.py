"""Several detectors that judge together: each score becomes a normal quantile, then a weighted mean is taken.

To everybody else an ensemble is a `Detector`. What its scorers look at, its only view, are its members' scores: one
column a member. So p-values, thresholds, tables, reports and the folder are those of every detector.

    members of equal audio settings  ->  read once  ->  each member's score
    the score's place among that member's own fresh normal scores  ->  a normal quantile (offkey.scoring.blend)
    weighted mean  ->  the ensemble's score; its threshold from normal clips that are fresh for all members
"""

from __future__ import annotations

import datetime
import hashlib
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import offkey
from offkey.data.loader import load_by_length
from offkey.detector import Detector, DetectorError, MachineDetector
from offkey.explaining import Explanation, Profile
from offkey.manifest import MANIFEST
from offkey.scoring import Calibration, NormalQuantile, Reference, blend, build_scorer
from offkey.scoring.agreement import agreement, agreement_weights
from offkey.scoring.calibrate import clips_needed
from offkey.systems.config import CalibrationConfig, SeparationConfig, SystemConfig, load_preset
from offkey.types import Batch, Clip, ClipMeta, Domain, Verdict

__all__ = ["MEMBERS", "Ensemble", "EnsembleError"]

MEMBERS = "members"
"""The view that an ensemble's scorers look at, and the folder that its members lie in."""

Sound = str | Path | ClipMeta | Clip | NDArray[Any]
_FEWEST = 2  # normal clips in common without which there is nothing to blend by


class EnsembleError(DetectorError):
    """Detectors that cannot judge together."""


@dataclass
class Ensemble(Detector):
    """A detector made of fitted detectors, its `members` by name. Made by `of`, or by `offkey.fit(system="ensemble")`.

    `config.scoring.scorers` has an entry a member, with its name and weight; `machines` are calibrated on the blend.
    `front_end` is a member's, for reports; each member hears through its own.
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
        rule, numbers = _asked_weights(weights, config, [name for name, _ in named])
        parts, reasons = _distinct(_taken_apart(named, numbers))
        parts = _named(parts)
        _same_machines(parts)
        if not any(part.weight > 0 for part in parts):
            raise EnsembleError("every member has weight 0: one at least must count")
        pools = {machine: _pool(machine, parts) for machine in sorted(parts[0].detector.machines)}
        shares = np.array([part.weight for part in parts])
        if rule == "agreement":
            shares, reason = _by_agreement(shares, parts, pools)
            reasons.append(reason)
        settings = _settings(parts, shares, rule, config)
        if calibration is not None:
            settings = settings.model_copy(update={"calibration": calibration})
        machines = {}
        for name, pool in pools.items():
            machines[name], remark = _machine(name, pool, parts, settings)
            reasons += remark
        facts = {
            "offkey": offkey.__version__,
            "python": platform.python_version(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hours": max(float(part.detector.facts.get("hours", 0.0)) for part in parts),
            "clips": {name: len(known.clips) for name, known in machines.items()},
        }
        first = parts[0].detector.facts
        facts |= {key: first[key] for key in ("recordings", "source", "kind") if key in first}
        members = {part.name: part.detector for part in parts}
        return cls(settings, machines, {}, None, tuple(reasons), facts, None, members)

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
                rows = batch.place.tolist()
                scores = self._ask(groups[number], batch, [machines[row] for row in rows])
                columns = np.stack([scores[name] for name in groups[number]], axis=1)
                told[number].update(zip(rows, columns, strict=True))
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
        facts = self.facts | {"clips": made.facts["clips"], "hours": made.facts["hours"]}
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


class _Part(NamedTuple):
    """A detector on its way into an ensemble; `key` stands for what it is, whatever it is called."""

    name: str
    detector: Detector
    weight: float
    key: str


class _Pool(NamedTuple):
    """The reference clips of one machine that all parts know, in one order: `rows` of each part's own."""

    clips: tuple[str, ...]
    rows: list[NDArray[np.int64]]
    scores: NDArray[np.float64]
    fresh: NDArray[np.bool_]


def _asked_weights(
    weights: str | Sequence[float] | None, config: SystemConfig | None, names: Sequence[str]
) -> tuple[str, list[float]]:
    """The rule, and the number that each detector brings along."""
    own = dict(zip(config.ensemble.names, config.ensemble.members, strict=True)) if config is not None else {}
    numbers = [own[name].weight if name in own else 1.0 for name in names]
    if weights is None:
        return config.ensemble.weights if config is not None else "equal", numbers
    if isinstance(weights, str):
        if weights not in ("equal", "agreement"):
            raise EnsembleError(f'weights must be "equal", "agreement" or a number a detector, not {weights!r}')
        return weights, numbers
    numbers = [float(weight) for weight in weights]
    if len(numbers) != len(names):
        raise EnsembleError(
            f"{len(numbers)} weights for {len(names)} detectors: one a detector is needed, in their order"
        )
    if not all(0 <= weight < float("inf") for weight in numbers):
        raise EnsembleError("a weight is a number from 0 (told without a say) upwards")
    return "equal", numbers


def _taken_apart(named: Sequence[tuple[str, Detector]], weights: Sequence[float]) -> list[_Part]:
    """Each detector, and in place of an ensemble its members, which share its weight."""
    parts: list[_Part] = []
    for (name, detector), weight in zip(named, weights, strict=True):
        if not isinstance(detector, Ensemble):
            parts.append(_Part(name, detector, weight, _key(detector)))
            continue
        entries = detector.config.scoring.scorers
        total = sum(entry.weight for entry in entries)
        parts += [
            _Part(own, detector.members[own], weight * entry.weight / total, _key(detector.members[own]))
            for own, entry in zip(detector.config.scoring.names, entries, strict=True)
        ]
    return parts


def _key(detector: Detector) -> str:
    """A hash of a detector's settings and of what they made of its normal clips."""
    told = hashlib.sha256(detector.config.model_dump_json(exclude={"system", "about"}).encode())
    for name in sorted(detector.machines):
        known = detector.machines[name]
        told.update("\n".join((name, *known.clips)).encode())
        for array in (known.cross_fitted, known.calibration.scores, *known.embeddings.values()):
            if array is not None:
                told.update(np.ascontiguousarray(array).tobytes())
    return told.hexdigest()


def _distinct(parts: Sequence[_Part]) -> tuple[list[_Part], list[str]]:
    """Each detector once, in an order that does not depend on that of the call; remarks on those that came twice."""
    kept: dict[str, _Part] = {}
    reasons = []
    for part in sorted(parts, key=lambda part: (part.detector.config.system, part.name, part.key)):
        if part.key in kept:
            reasons.append(f"{part.name or part.detector.config.system} comes twice and counts once")
            part = kept[part.key]._replace(weight=max(part.weight, kept[part.key].weight))
        kept[part.key] = part
    return list(kept.values()), list(dict.fromkeys(reasons))


def _named(parts: Sequence[_Part]) -> list[_Part]:
    """Every part with a name of its own that a folder may have."""
    seen: Counter[str] = Counter()
    named = []
    for part in parts:
        base = part.name or part.detector.config.system
        plain = (
            "".join(letter if letter.isalnum() or letter in "._+-" else "-" for letter in base).lstrip(".") or "member"
        )
        name = plain
        while name in seen:
            seen[plain] += 1
            name = f"{plain}-{seen[plain]}"
        seen[name] += 1
        named.append(part._replace(name=name))
    return named


def _same_machines(parts: Sequence[_Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if set(part.detector.machines) != set(first.detector.machines):
            told = " and ".join(f"{each.name} ({', '.join(sorted(each.detector.machines))})" for each in (first, part))
            raise EnsembleError(
                f"{told} do not know the same machines, so they cannot judge together: fit them on the same recordings "
                "(--machine chooses some of them)"
            )


def _pool(machine: str, parts: Sequence[_Part]) -> _Pool:
    """What the parts said, cross-fitted, of the normal clips that all of them know."""
    known = [part.detector.machines[machine] for part in parts]
    for part, each in zip(parts, known, strict=True):
        if each.cross_fitted is None or each.fresh is None or len(each.fresh) != len(each.clips):
            raise EnsembleError(
                f"{part.name} does not tell the score of each of its normal clips (an older offkey made it), and an "
                "ensemble needs them pair by pair: fit it again"
            )
    clips = known[0].clips
    if all(each.clips == clips for each in known):
        rows = [np.arange(len(clips)) for _ in known]
    else:
        places = []
        for each in known:
            counts = Counter(each.clips)  # two folders may hold a clip of one name: nobody can tell which is which
            places.append({clip: place for place, clip in enumerate(each.clips) if counts[clip] == 1})
        clips = tuple(clip for clip in clips if all(clip in own for own in places))
        rows = [np.array([own[clip] for clip in clips], dtype=np.int64) for own in places]
    if len(clips) < _FEWEST:
        raise EnsembleError(
            f"{machine}: {', '.join(part.name for part in parts)} learnt from different recordings ({len(clips)} "
            "normal clips in common), so their scores cannot be compared: fit them on the same ones"
        )
    scores, fresh = [], []
    for part, each, mine in zip(parts, known, rows, strict=True):
        scores.append(_blended(part, each)[mine])
        fresh.append(np.asarray(each.fresh)[mine])
    return _Pool(clips, rows, np.stack(scores, axis=1), np.stack(fresh, axis=1))


def _blended(part: _Part, known: MachineDetector) -> NDArray[np.float64]:
    """A detector's cross-fitted scores (N,) of all its reference clips."""
    weights = [entry.weight for entry in part.detector.config.scoring.scorers]
    return blend(np.asarray(known.cross_fitted), known.quantiles, weights)


def _by_agreement(
    shares: NDArray[np.float64], parts: Sequence[_Part], pools: Mapping[str, _Pool]
) -> tuple[NDArray[np.float64], str]:
    """Weights times agreement among those that have a say, and a sentence on them."""
    voters = np.flatnonzero(shares > 0)
    tables = [agreement(pool.scores[:, voters], pool.fresh[:, voters]) for pool in pools.values()]
    found = agreement_weights(tables)
    if found is None:
        return shares, (
            "members count by their own weights: agreement needs three members and normal clips that are fresh for two "
            "of them at a time"
        )
    changed = shares.copy()
    changed[voters] *= found
    told = ", ".join(f"{parts[place].name} {value:.2f}" for place, value in zip(voters.tolist(), found, strict=True))
    return changed, f"agreement with the other members on normal clips (mean rank correlation, 0.1 at least): {told}"


def _settings(
    parts: Sequence[_Part], shares: NDArray[np.float64], rule: str, config: SystemConfig | None
) -> SystemConfig:
    """The settings that the ensemble is saved with."""
    own = {} if config is None else dict(zip(config.ensemble.names, config.ensemble.members, strict=True))
    members = [
        own[part.name].model_dump()
        if part.name in own
        else {"system": part.detector.config.system, "name": part.name, "weight": float(part.weight)}
        for part in parts
    ]
    for entry, part in zip(members, parts, strict=True):
        entry |= {"name": part.name, "weight": float(part.weight)}
    scorers = [
        {"view": MEMBERS, "name": part.name, "weight": float(share), "scorer": {"name": "value", "column": place}}
        for place, (part, share) in enumerate(zip(parts, shares, strict=True))
    ]
    hears = max((part.detector.config for part in parts), key=lambda each: each.audio.rate)
    if config is None:
        calibration = parts[0].detector.config.calibration
        seed = parts[0].detector.config.seed
        about = f"rank-preserving blend of {', '.join(part.name for part in parts)}"
        plain = load_preset("ensemble", extra={"ensemble": {"members": members, "weights": rule}, "about": about})
        config = plain.model_copy(update={"calibration": calibration, "seed": seed})
    told = {"members": members, "weights": rule}
    tree = {
        "system": config.system, "about": config.about, "kind": "ensemble", "seed": config.seed, "ensemble": told,
        "scoring": {"scorers": scorers}, "calibration": config.calibration, "audio": hears.audio, "mel": hears.mel,
        "separation": SeparationConfig(), "auto": config.auto,
    }  # fmt: skip
    return SystemConfig.model_validate(tree)


def _rows_of(profile: Profile, rows: NDArray[np.int64]) -> Profile:
    """What is normal in each band, with the spectra of some clips alone."""
    spectra = profile.spectra
    if len(rows) == len(spectra):
        return profile
    return replace(profile, spectra=replace(spectra, levels=spectra.levels[rows], seconds=spectra.seconds[rows]))


def _machine(name: str, pool: _Pool, parts: Sequence[_Part], config: SystemConfig) -> tuple[MachineDetector, list[str]]:
    """What the ensemble knows of one machine, and what is to be said of it."""
    entries = config.scoring.scorers
    known = [part.detector.machines[name] for part in parts]
    voters = config.scoring.voters
    quantiles: tuple[NormalQuantile, ...] = ()
    if len(voters) > 1:
        # a member's own fresh clips, also those that another member does not know
        quantiles = tuple(
            NormalQuantile.of(_blended(part, each)[np.asarray(each.fresh)])
            for part, each in zip(parts, known, strict=True)
        )
    scores = blend(pool.scores, quantiles, [entry.weight for entry in entries])
    fresh = np.asarray(pool.fresh[:, voters].all(axis=1))
    told = []
    if fresh.sum() < clips_needed(config.calibration.false_alarm_rate) and not fresh.all():
        told.append(
            f"{name}: {int(fresh.sum())} normal clips are new to all members with a say, too few for a threshold; it "
            f"rests on all {len(pool.clips)} that they have in common, some of which a network knows: expect more "
            "false alarms than asked for"
        )
        fresh = np.full(len(pool.clips), True)
    settings, first = config.calibration, known[0]
    domains = tuple(first.domains[row] for row in pool.rows[0])
    identities = tuple(first.identities[row] for row in pool.rows[0])
    heard = np.array(domains)[fresh]
    apart = settings.each_domain and set(heard.tolist()) == {Domain.SOURCE.value, Domain.TARGET.value}
    reference = Reference(pool.scores, domain=list(domains), identity=list(identities))
    machine = MachineDetector(
        name=name,
        clips=pool.clips,
        domains=domains,
        identities=identities,
        embeddings={MEMBERS: pool.scores.astype(np.float32)},
        scorers=tuple(build_scorer(entry.scorer, config.seed).fit(reference) for entry in entries),
        quantiles=quantiles,
        calibration=Calibration(scores[fresh], settings.method, settings.false_alarm_rate, heard if apart else None),
        profile=_rows_of(first.profile, pool.rows[0]),
        cross_fitted=pool.scores,
        fresh=fresh,
    )
    return machine, told
