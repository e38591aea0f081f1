"""The official evaluation of each year's DCASE Challenge Task 2, with bootstrap intervals.

Which clips enter a value, and how values are averaged, changed over the years (the organisers' evaluators are
the source; `Protocol` says what each does):

========== ============================ ======================= =========================================
year       AUC                          pAUC (max. 10 % FPR)    one number
========== ============================ ======================= =========================================
2020       all clips of a machine ID    the same clips          arithmetic mean over machines of the mean
                                                                over IDs (teams were ranked by mean rank)
2021       a domain's own clips         a domain's own clips    harmonic mean of all AUC and pAUC
2022       a domain's normal clips      all clips of a section  harmonic mean of all AUC and pAUC
           against all anomalies
2023–2026  as 2022, one section only    as 2022                 as 2022
plain      all clips                    all clips               harmonic mean of AUC and pAUC
========== ============================ ======================= =========================================

2023 to 2026 are "first-shot": the machines of the evaluation set are others than those of the development set, one
section each. 2026 has two channels, near and far microphone. Result files had other names in 2020 and 2021, and 2020
asked for no decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offkey.evaluation.bootstrap import interval_of, resamples
from offkey.evaluation.decisions import RATES, Decisions, rates_of, tally
from offkey.evaluation.metrics import FLOOR, weighted_areas
from offkey.evaluation.result import MachineResult, Result
from offkey.types import Condition, Domain, OffkeyError

__all__ = ["PROTOCOLS", "EvaluationError", "Protocol", "ScoredClip", "choose_protocol", "evaluate", "lacks"]


class EvaluationError(OffkeyError):
    """Scores cannot be evaluated as asked; the message says which and why."""


@dataclass(frozen=True, slots=True)
class ScoredClip:
    """What is known of one test clip after scoring.

    `score` finite, higher is more anomalous; `is_anomalous` the alarm, None where no decision was made.
    """

    file: str
    machine: str
    section: str
    domain: Domain
    condition: Condition
    score: float
    is_anomalous: bool | None = None


@dataclass(frozen=True, slots=True)
class Protocol:
    """One year's rules.

    `clips` says which clips an AUC compares: "single" all of a section; "domain" those of one domain; "joint"
    a domain's normal clips with all anomalies, and one pAUC over all. `average` is how the values become one.
    `files` says how result files are named: a machine ID each, a section and domain, or a section; `decisions` whether
    the year asks for them; `channels` how many the recordings have; `clips_a_section` how many test clips a section
    of the evaluation set holds, None where that differs.
    """

    name: str
    clips: Literal["single", "domain", "joint"]
    average: Literal["harmonic", "arithmetic"] = "harmonic"
    max_fpr: float = 0.1
    files: Literal["id", "domain", "section"] = "section"
    decisions: bool = True
    channels: int = 1
    clips_a_section: int | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of a machine's values, as they stand in the JSON."""
        return {
            "single": ("auc", "pauc"),
            "domain": ("auc_source", "auc_target", "pauc_source", "pauc_target"),
            "joint": ("auc_source", "auc_target", "pauc"),
        }[self.clips]


PROTOCOLS: dict[str, Protocol] = {
    "dcase2020": Protocol("dcase2020", "single", "arithmetic", files="id", decisions=False),
    "dcase2021": Protocol("dcase2021", "domain", files="domain"),
    "dcase2022": Protocol("dcase2022", "joint"),
    **{f"dcase{year}": Protocol(f"dcase{year}", "joint", clips_a_section=200) for year in (2023, 2024, 2025)},
    "dcase2026": Protocol("dcase2026", "joint", channels=2, clips_a_section=200),
    "plain": Protocol("plain", "single"),
}


def choose_protocol(year: int | None, clips: Sequence[ScoredClip] = ()) -> Protocol:
    """That year's rules; without a year the latest ones, or "plain" where the domain of a clip is not known.

    >>> choose_protocol(2021).metrics
    ('auc_source', 'auc_target', 'pauc_source', 'pauc_target')
    """
    if year is not None:
        if f"dcase{year}" not in PROTOCOLS:
            known = ", ".join(name.removeprefix("dcase") for name in PROTOCOLS if name != "plain")
            raise EvaluationError(f"there are no rules for {year}; choose one of {known}, or no year")
        return PROTOCOLS[f"dcase{year}"]
    known_domains = all(clip.domain != Domain.UNKNOWN for clip in clips)
    return PROTOCOLS["dcase2026" if known_domains else "plain"]


def evaluate(
    scored: Sequence[ScoredClip],
    protocol: Protocol,
    bootstrap: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Result:
    """Every value of the protocol, with 95 % bootstrap percentile intervals.

    Clips are drawn anew within machine × section × domain × condition. `groups` (one name a clip: a flight, a
    recording session) makes whole groups the drawn unit, for clips that are not independent. `bootstrap` 0
    leaves the intervals out. Machines that lack what a value needs are named in `Result.left_out` with the
    reason, and enter no mean. Raises `EvaluationError` on clips without a finite score, on doubles, and where
    nothing is left.
    """
    clips = _checked(scored, groups)
    known, anomalous, units, left_out = _units(clips, protocol)
    if not units:
        grouped: dict[str, list[str]] = {}
        for name, reason in left_out.items():
            grouped.setdefault(reason, []).append(name)
        reasons = "; ".join(
            f"{own[0]}{f' and {len(own) - 1} more' if own[1:] else ''}: {reason}" for reason, own in grouped.items()
        )
        raise EvaluationError(f"nothing can be evaluated by the rules of {protocol.name}. {reasons}")

    machines = sorted({machine for machine, _ in units})
    alarms = {machine: _alarms(clips, machine, known) for machine in machines}
    point = _measure(np.ones((1, len(clips))), protocol, units, alarms, anomalous)
    spread: dict[str, tuple[float, float]] = {}
    if bootstrap > 0:
        strata = [f"{c.machine}\0{c.section}\0{c.domain}\0{c.condition}" for c in clips]
        drawn: dict[str, list[NDArray[np.float64]]] = {}
        for counts in resamples(strata, groups, bootstrap, seed):
            for name, column in _measure(counts, protocol, units, alarms, anomalous).items():
                drawn.setdefault(name, []).append(column)
        spread = {name: interval_of(np.concatenate(columns)) for name, columns in drawn.items()}

    def value(name: str) -> float:
        return float(point[name][0])

    def decisions(prefix: str) -> Decisions:
        tp, fp, fn, tn = (round(value(f"{prefix}.{side}")) for side in ("tp", "fp", "fn", "tn"))
        precision, recall, f1 = (value(f"{prefix}.{rate}") for rate in RATES)
        found = {rate: spread[f"{prefix}.{rate}"] for rate in RATES if spread}
        return Decisions(tp, fp, fn, tn, precision, recall, f1, found)

    results = {}
    for machine in machines:
        own = [i for i, c in enumerate(clips) if c.machine == machine]
        results[machine] = MachineResult(
            values={m: value(f"{machine}.{m}") for m in protocol.metrics},
            intervals={m: spread[f"{machine}.{m}"] for m in protocol.metrics if spread},
            sections={s: {m: value(f"{k}/{s}.{m}") for m in protocol.metrics} for k, s in units if k == machine},
            counts=_counts([clips[i] for i in own]),
            decisions={d: decisions(f"{machine}.alarm.{d}") for d in alarms[machine]},
        )
    overall = ("source", "target", "all")
    silent = int((~known).sum())
    return Result(
        protocol=protocol.name,
        official_score=value("official"),
        interval=spread.get("official"),
        machines=results,
        arithmetic_mean={m: value(f"arithmetic.{m}") for m in protocol.metrics},
        harmonic_mean={m: value(f"harmonic.{m}") for m in protocol.metrics},
        mean_intervals={
            f"{kind}.{m}": spread[f"{kind}.{m}"]
            for kind in ("arithmetic", "harmonic")
            for m in protocol.metrics
            if spread
        },
        decisions={d: decisions(f"alarm.{d}") for d in overall if f"alarm.{d}.f1" in point},
        left_out=left_out,
        bootstrap=bootstrap,
        seed=seed,
        grouped=groups is not None,
        remarks=[f"{silent} clips whose condition is not known were not counted"] if silent else [],
    )


def lacks(clips: Sequence[ScoredClip], protocol: Protocol) -> dict[str, str]:
    """Machines (or their sections) that `evaluate` would leave out, with the reason; scores play no part in it."""
    return _units(clips, protocol)[3]


@dataclass(frozen=True, slots=True, eq=False)
class _Value:
    """One AUC or pAUC of a section: over which clips, and in which machine-level column it counts."""

    metric: str
    places: NDArray[Any]
    scores: NDArray[Any]
    positive: NDArray[Any]
    partial: bool


def _units(
    clips: Sequence[ScoredClip], protocol: Protocol
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], dict[tuple[str, str], list[_Value]], dict[str, str]]:
    """Which conditions are known, which clips are anomalous, values by machine and section, and what has none."""
    known = np.array([clip.condition != Condition.UNKNOWN for clip in clips], dtype=bool)
    anomalous = np.array([clip.condition == Condition.ANOMALY for clip in clips], dtype=bool)
    sections: dict[tuple[str, str], list[int]] = {}
    for place, clip in enumerate(clips):
        sections.setdefault((clip.machine, clip.section), []).append(place)
    many = {m for m in {k[0] for k in sections} if sum(k[0] == m for k in sections) > 1}
    left_out: dict[str, str] = {}
    units: dict[tuple[str, str], list[_Value]] = {}
    for (machine, section), places in sorted(sections.items()):
        values, reason = _values(clips, np.array(places), known, anomalous, protocol)
        if reason:
            left_out[f"{machine}/section_{section}" if machine in many else machine] = reason
        else:
            units[(machine, section)] = values
    return known, anomalous, units, left_out


def _values(
    clips: Sequence[ScoredClip],
    places: NDArray[Any],
    known: NDArray[Any],
    anomalous: NDArray[Any],
    protocol: Protocol,
) -> tuple[list[_Value], str]:
    """The values of one section, or the reason why it has none."""
    places = places[known[places]]
    if not places.size:
        return [], "the condition of none of its test clips is known; give the truth"
    positive = anomalous[places]
    domain = np.array([str(clips[i].domain) for i in places])
    scores = np.array([clips[i].score for i in places], dtype=np.float64)
    if not positive.any():
        return [], "no anomalous test clip"
    if positive.all():
        return [], "no normal test clip"
    everything = np.ones(len(places), dtype=bool)
    masks = {"auc": everything, "pauc": everything}
    if protocol.clips != "single":
        unclear = everything if protocol.clips == "domain" else ~positive
        if (domain[unclear] == Domain.UNKNOWN).any():
            return [], 'the domain of some clips is not known; the protocol "plain" does without'
        for name in ("source", "target"):
            inside = domain == name
            mask = inside if protocol.clips == "domain" else inside | positive
            if not (inside & ~positive).any():
                return [], f"no normal test clip in the {name} domain"
            if not (mask & positive).any():
                return [], f"no anomalous test clip in the {name} domain"
            masks[f"auc_{name}"] = masks[f"pauc_{name}"] = mask
    return [
        _Value(m, places[masks[m]], scores[masks[m]], positive[masks[m]], m.startswith("pauc"))
        for m in protocol.metrics
    ], ""


def _alarms(
    clips: Sequence[ScoredClip], machine: str, known: NDArray[Any]
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Places and alarms of a machine's clips, by domain and for all; empty without decisions."""
    places = np.array([i for i, c in enumerate(clips) if c.machine == machine and known[i]])
    if any(clips[i].is_anomalous is None for i in places):
        return {}
    alarm = np.array([bool(clips[i].is_anomalous) for i in places])
    domain = np.array([str(clips[i].domain) for i in places])
    found = {n: (places[domain == n], alarm[domain == n]) for n in ("source", "target") if (domain == n).any()}
    return {**found, "all": (places, alarm)}


def _measure(
    weights: NDArray[Any],
    protocol: Protocol,
    units: dict[tuple[str, str], list[_Value]],
    alarms: dict[str, dict[str, tuple[NDArray[Any], NDArray[Any]]]],
    anomalous: NDArray[Any],
) -> dict[str, NDArray[np.float64]]:
    """Every number of the result, by name, under (R, N) weightings of the clips: (R,) each."""
    found: dict[str, NDArray[np.float64]] = {}
    rows: dict[str, list[NDArray[np.float64]]] = {m: [] for m in protocol.metrics}
    by_machine: dict[str, list[NDArray[np.float64]]] = {}
    mean = _harmonic if protocol.average == "harmonic" else _arithmetic
    for (machine, section), values in units.items():
        for v in values:
            limit = protocol.max_fpr if v.partial else None
            areas = weighted_areas(v.positive, v.scores, weights[:, v.places], limit)
            column = areas[1] if v.partial else areas[0]
            found[f"{machine}/{section}.{v.metric}"] = column
            rows[v.metric].append(column)
            by_machine.setdefault(f"{machine}.{v.metric}", []).append(column)
    for name, columns in by_machine.items():
        found[name] = mean(columns)
    if protocol.average == "arithmetic":  # 2020: a machine is the mean of its IDs, and counts once
        rows = {m: [c for n, c in found.items() if n in by_machine and n.endswith(f".{m}")] for m in rows}
    for metric, columns in rows.items():
        found[f"arithmetic.{metric}"] = _arithmetic(columns)
        found[f"harmonic.{metric}"] = _harmonic(columns)
    found["official"] = mean([column for columns in rows.values() for column in columns])
    pooled: dict[str, list[NDArray[np.float64]]] = {}
    for machine, domains in alarms.items():
        for name, (places, alarm) in domains.items():
            counts, rates = tally(alarm, anomalous[places], weights[:, places])
            found |= _named(f"{machine}.alarm.{name}", counts, rates)
            pooled.setdefault(name, []).append(counts)
    if all(alarms.values()):
        for name, parts in pooled.items():
            total = np.sum(parts, axis=0)
            found |= _named(f"alarm.{name}", total, rates_of(total))
    return found


def _named(prefix: str, counts: NDArray[Any], rates: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    named = {f"{prefix}.{side}": counts[:, i] for i, side in enumerate(("tp", "fp", "fn", "tn"))}
    return named | {f"{prefix}.{rate}": rates[:, i] for i, rate in enumerate(RATES)}


def _harmonic(columns: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.asarray(len(columns) / np.sum([1.0 / np.maximum(c, FLOOR) for c in columns], axis=0))


def _arithmetic(columns: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.asarray(np.mean(columns, axis=0))


def _counts(clips: Sequence[ScoredClip]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for clip in clips:
        name = f"{clip.domain}_{clip.condition}"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _checked(scored: Sequence[ScoredClip], groups: Sequence[str] | None) -> list[ScoredClip]:
    clips = list(scored)
    if not clips:
        raise EvaluationError("there are no scores to evaluate")
    if groups is not None and len(groups) != len(clips):
        raise EvaluationError(f"groups must name one group a clip: {len(clips)} clips, {len(groups)} groups")
    seen: set[tuple[str, str, str, str]] = set()
    for clip in clips:
        where = f"{clip.machine}/{clip.file}"
        if not np.isfinite(clip.score):
            raise EvaluationError(f"the score of {where} is {clip.score}; leave the clip out or score it again")
        # 2021 gave source and target test clips of a section the same file names
        key = (clip.machine, clip.section, str(clip.domain), clip.file)
        if key in seen:
            raise EvaluationError(f"{where} (section {clip.section}) is there twice; keep one score a clip")
        seen.add(key)
    return clips
