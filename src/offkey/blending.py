"""How fitted detectors become one: clips in common, weights, and what the blend knows of each machine.

A score's place among a member's own fresh normal scores becomes a normal quantile (`offkey.scoring.blend`); the
weighted mean of those is calibrated on normal clips that are fresh for all members.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offkey.detector import Detector, DetectorError, MachineDetector
from offkey.scoring import (
    Calibration,
    NormalQuantile,
    Reference,
    blend,
    blend_normal,
    build_scorer,
    left_out_quantiles,
    sessions_apart,
    weighted_mean,
)
from offkey.scoring.agreement import agreement, agreement_weights
from offkey.scoring.calibrate import clips_needed, independent
from offkey.systems.config import CalibrationConfig, SeparationConfig, SystemConfig, load_preset
from offkey.types import Domain

__all__ = ["MEMBERS", "EnsembleError", "Joined", "Part", "asked_weights", "join", "key_of"]

MEMBERS = "members"
"""The view that an ensemble's scorers look at, and the folder that its members lie in."""

_FEWEST = 2  # normal clips in common without which there is nothing to blend by


class EnsembleError(DetectorError):
    """Detectors that cannot judge together."""


class Part(NamedTuple):
    """A detector on its way into an ensemble; `key` stands for what it is, whatever it is called."""

    name: str
    detector: Detector
    weight: float
    key: str


class Joined(NamedTuple):
    """What an ensemble is made of: settings, what it knows of each machine, its members by name, and remarks."""

    config: SystemConfig
    machines: dict[str, MachineDetector]
    members: dict[str, Detector]
    reasons: list[str]


class _Pool(NamedTuple):
    """The reference clips of one machine that all parts know, in one order: `rows` of each part's own."""

    clips: tuple[str, ...]
    rows: list[NDArray[np.int64]]
    scores: NDArray[np.float64]
    fresh: NDArray[np.bool_]


def join(
    parts: Sequence[Part], rule: str, config: SystemConfig | None, calibration: CalibrationConfig | None
) -> Joined:
    """Make one of several; `rule` is "equal" or "agreement", the settings are as for `Ensemble.of`.

    Raises EnsembleError where machines differ, nobody has a say, or normal clips in common are missing.
    """
    parts, reasons = _distinct(parts)
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
    return Joined(settings, machines, {part.name: part.detector for part in parts}, reasons)


def asked_weights(
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


def key_of(detector: Detector) -> str:
    """A hash of a detector's settings and of what they made of its normal clips."""
    told = hashlib.sha256(detector.config.model_dump_json(exclude={"system", "about"}).encode())
    for name in sorted(detector.machines):
        known = detector.machines[name]
        told.update("\n".join((name, *known.clips)).encode(errors="backslashreplace"))
        for array in (known.cross_fitted, known.calibration.scores, *known.embeddings.values()):
            if array is not None:
                told.update(np.ascontiguousarray(array).tobytes())
    return told.hexdigest()


def _distinct(parts: Sequence[Part]) -> tuple[list[Part], list[str]]:
    """Each detector once, in an order that does not depend on that of the call; remarks on those that came twice."""
    kept: dict[str, Part] = {}
    reasons = []
    for part in sorted(parts, key=lambda part: (part.detector.config.system, part.name, part.key)):
        if part.key in kept:
            reasons.append(f"{part.name or part.detector.config.system} comes twice and counts once")
            part = kept[part.key]._replace(weight=max(part.weight, kept[part.key].weight))
        kept[part.key] = part
    return list(kept.values()), list(dict.fromkeys(reasons))


def _named(parts: Sequence[Part]) -> list[Part]:
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


def _same_machines(parts: Sequence[Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if set(part.detector.machines) != set(first.detector.machines):
            told = " and ".join(f"{each.name} ({', '.join(sorted(each.detector.machines))})" for each in (first, part))
            raise EnsembleError(
                f"{told} do not know the same machines, so they cannot judge together: fit them on the same recordings "
                "(--machine chooses some of them)"
            )


def _pool(machine: str, parts: Sequence[Part]) -> _Pool:
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


def _blended(part: Part, known: MachineDetector) -> NDArray[np.float64]:
    """A detector's cross-fitted scores (N,) of all its reference clips, each as that of a clip it does not know."""
    weights = [entry.weight for entry in part.detector.config.scoring.scorers]
    scores = np.asarray(known.cross_fitted)
    apart = sessions_apart(known.sessions)
    return blend_normal(scores, weights, known.fresh, apart) if known.quantiles else blend(scores, (), weights)


def _by_agreement(
    shares: NDArray[np.float64], parts: Sequence[Part], pools: Mapping[str, _Pool]
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
    parts: Sequence[Part], shares: NDArray[np.float64], rule: str, config: SystemConfig | None
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


def _sessions(
    name: str, parts: Sequence[Part], known: Sequence[MachineDetector], pool: _Pool
) -> tuple[tuple[str, ...] | None, list[str]]:
    """The recordings that the pool's clips were cut from, as the first part tells that was told; and a remark."""
    told = [
        None if each.sessions is None else tuple(each.sessions[row] for row in rows)
        for each, rows in zip(known, pool.rows, strict=True)
    ]
    found = next((own for own in told if own is not None), None)
    others = [part.name for part, own in zip(parts, told, strict=True) if own != found]
    if not others:
        return found, []
    return found, [
        f"{name}: {', '.join(others)} and the other members were not told the same recordings of the normal clips; "
        "expect more false alarms than asked for, or fit them again with the same --groups"
    ]


def _machine(name: str, pool: _Pool, parts: Sequence[Part], config: SystemConfig) -> tuple[MachineDetector, list[str]]:
    """What the ensemble knows of one machine, and what is to be said of it."""
    entries = config.scoring.scorers
    known = [part.detector.machines[name] for part in parts]
    voters = config.scoring.voters
    quantiles: list[NormalQuantile] = []
    weights = [entry.weight for entry in entries]
    if len(voters) > 1:
        columns = []
        for part, each, rows in zip(parts, known, pool.rows, strict=True):
            # a member's own fresh clips, also those that another member does not know
            own, learnt = _blended(part, each), np.asarray(each.fresh)
            quantiles.append(NormalQuantile.of(own[learnt]))
            columns.append(left_out_quantiles(own, learnt, sessions_apart(each.sessions))[rows])
        scores = weighted_mean(np.stack(columns, axis=1), weights)
    else:
        scores = blend(pool.scores, (), weights)
    fresh = np.asarray(pool.fresh[:, voters].all(axis=1))
    sessions, told = _sessions(name, parts, known, pool)
    apart = sessions_apart(sessions)
    new = independent(fresh, apart)
    if new < clips_needed(config.calibration.false_alarm_rate) and not fresh.all():
        what = "normal clips" if apart is None else "recordings"
        told.append(
            f"{name}: {new} {what} are new to all members with a say, too few for a threshold; it rests on all "
            f"{len(pool.clips)} normal clips that they have in common, some of which a network knows: expect more "
            "false alarms than asked for"
        )
        fresh = np.full(len(pool.clips), True)
    settings, first = config.calibration, known[0]
    domains = tuple(first.domains[row] for row in pool.rows[0])
    identities = tuple(first.identities[row] for row in pool.rows[0])
    heard = np.array(domains)[fresh]
    each_domain = settings.each_domain and set(heard.tolist()) == {Domain.SOURCE.value, Domain.TARGET.value}
    reference = Reference(pool.scores, domain=list(domains), identity=list(identities))
    machine = MachineDetector(
        name=name,
        clips=pool.clips,
        domains=domains,
        identities=identities,
        embeddings={MEMBERS: pool.scores.astype(np.float32)},
        scorers=tuple(build_scorer(entry.scorer, config.seed).fit(reference) for entry in entries),
        quantiles=tuple(quantiles),
        calibration=Calibration(
            scores[fresh],
            settings.method,
            settings.false_alarm_rate,
            heard if each_domain else None,
            None if apart is None else np.array(apart)[fresh],
        ),
        profile=first.profile.of_clips(pool.rows[0]),
        cross_fitted=pool.scores,
        fresh=fresh,
        sessions=sessions,
    )
    return machine, told
