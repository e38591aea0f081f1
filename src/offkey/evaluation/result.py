"""What an evaluation found, and its JSON form: fractions, never percent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from offkey.evaluation.decisions import Decisions
from offkey.types import OffkeyError

__all__ = ["Interval", "MachineResult", "Result"]

Interval = tuple[float, float]

_OWN_KEYS = ("intervals", "sections", "counts", "decisions")


@dataclass(frozen=True, slots=True)
class MachineResult:
    """One machine: `values` by metric, each with its interval; the same a section; clips; alarms a domain.

    `counts` is clips by "domain_condition"; `decisions` has "source", "target" and "all", or is empty where
    not every clip has a decision (a machine's sections are pooled there).
    """

    values: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    sections: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    decisions: Mapping[str, Decisions] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of `evaluate`.

    `interval` is the 95 % bootstrap interval of `official_score`, None where none was asked for. The means
    run over every machine (and section) that has all values; `left_out` names the others with the reason.
    `decisions` pools the alarms of all machines, empty where a machine has none. `grouped` tells whether
    whole groups of clips were drawn in the bootstrap. `scorers` holds what each scorer of a blend reaches by itself.
    """

    protocol: str
    official_score: float
    interval: Interval | None
    machines: Mapping[str, MachineResult]
    arithmetic_mean: Mapping[str, float]
    harmonic_mean: Mapping[str, float]
    mean_intervals: Mapping[str, Interval] = field(default_factory=dict)
    decisions: Mapping[str, Decisions] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    bootstrap: int = 0
    seed: int = 0
    grouped: bool = False
    remarks: list[str] = field(default_factory=list)
    scorers: Mapping[str, Result] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the values, in the protocol's order."""
        return tuple(self.harmonic_mean)

    def to_dict(self) -> dict[str, Any]:
        """The object that `offkey evaluate --json` prints."""
        return {
            "protocol": self.protocol,
            "official_score": self.official_score,
            "interval": None if self.interval is None else list(self.interval),
            "machines": {
                name: {
                    **machine.values,
                    "intervals": {k: list(v) for k, v in machine.intervals.items()},
                    "sections": {k: dict(v) for k, v in machine.sections.items()},
                    "counts": dict(machine.counts),
                    "decisions": {k: d.to_dict() for k, d in machine.decisions.items()},
                }
                for name, machine in self.machines.items()
            },
            "arithmetic_mean": dict(self.arithmetic_mean),
            "harmonic_mean": dict(self.harmonic_mean),
            "mean_intervals": {k: list(v) for k, v in self.mean_intervals.items()},
            "decisions": {k: d.to_dict() for k, d in self.decisions.items()},
            "left_out": dict(self.left_out),
            "bootstrap": {"repetitions": self.bootstrap, "seed": self.seed, "grouped": self.grouped},
            "remarks": list(self.remarks),
            "scorers": {name: alone.to_dict() for name, alone in self.scorers.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """The reverse of `to_dict`; `OffkeyError` where the data is something else."""
        try:
            return cls(
                protocol=str(data["protocol"]),
                official_score=float(data["official_score"]),
                interval=None if data["interval"] is None else _pair(data["interval"]),
                machines={name: _machine(m) for name, m in data["machines"].items()},
                arithmetic_mean=dict(data["arithmetic_mean"]),
                harmonic_mean=dict(data["harmonic_mean"]),
                mean_intervals={k: _pair(v) for k, v in data["mean_intervals"].items()},
                decisions={k: Decisions.from_dict(d) for k, d in data["decisions"].items()},
                left_out=dict(data["left_out"]),
                bootstrap=int(data["bootstrap"]["repetitions"]),
                seed=int(data["bootstrap"]["seed"]),
                grouped=bool(data["bootstrap"]["grouped"]),
                remarks=list(data["remarks"]),
                scorers={name: cls.from_dict(alone) for name, alone in data.get("scorers", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OffkeyError(f"this is not the result of an evaluation ({error!r}); evaluate again") from None


def _pair(values: Any) -> Interval:
    low, high = values
    return float(low), float(high)


def _machine(data: Mapping[str, Any]) -> MachineResult:
    return MachineResult(
        values={k: float(v) for k, v in data.items() if k not in _OWN_KEYS},
        intervals={k: _pair(v) for k, v in data["intervals"].items()},
        sections={k: dict(v) for k, v in data["sections"].items()},
        counts=dict(data["counts"]),
        decisions={k: Decisions.from_dict(d) for k, d in data["decisions"].items()},
    )
