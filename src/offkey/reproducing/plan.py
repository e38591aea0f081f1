"""What is to be reproduced, and what that will cost.

An `Experiment` is a year's part with its machines and their sections; a `Plan` is one with systems, seeds and places.
The estimate counts clips and multiplies them with the constants of `COSTS`, each of which tells where it comes from.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from offkey.benchmarking import Contestant
from offkey.data.catalog import CATALOG, PARTS
from offkey.evaluation.protocol import PROTOCOLS, Protocol
from offkey.separation.config import Size
from offkey.systems.config import SystemConfig, load_preset
from offkey.systems.members import member_systems
from offkey.types import ClipMeta, OffkeyError, Split

__all__ = [
    "COSTS",
    "EXPERIMENTS",
    "Cost",
    "Counts",
    "USUAL",
    "Estimate",
    "Experiment",
    "Plan",
    "ReproduceError",
    "Unit",
    "Usual",
    "count",
    "estimate",
    "experiment",
    "unit_of",
]


class ReproduceError(OffkeyError):
    """Something cannot be reproduced as asked; the message says what is missing and how to get it."""


# ---- what


class Unit(NamedTuple):
    """A machine and one of its sections (2020: machine IDs): what is told apart from all else, and judged by itself.

    The two parts of a year have no unit in common: from 2023 on their machines differ, before that the sections do.
    """

    machine: str
    section: str


def unit_of(clip: ClipMeta) -> Unit:
    """The machine and section that a clip is of."""
    return Unit(clip.machine, clip.section)


@dataclass(frozen=True, slots=True)
class Experiment:
    """One part of one year: networks learn from the training clips of `units`, whose test clips are judged.

    `others` are those of the year's other part, whose training clips may join.
    """

    name: str
    title: str
    year: int
    part: Literal["dev", "eval"]
    units: tuple[Unit, ...]
    others: tuple[Unit, ...]

    @property
    def machines(self) -> tuple[str, ...]:
        """The machines that are judged, each once."""
        return tuple(dict.fromkeys(unit.machine for unit in self.units))

    def called(self, unit: Unit) -> str:
        """What people read for a unit: the machine, and its section where that has several: `fan/03`."""
        return "/".join(unit) if sum(other.machine == unit.machine for other in self.units) > 1 else unit.machine

    @property
    def protocol(self) -> Protocol:
        """The year's rules."""
        return PROTOCOLS[f"dcase{self.year}"]


def _experiments() -> dict[str, Experiment]:
    found = {}
    for data in CATALOG.values():
        year = data.year
        dev, hidden = (
            tuple(Unit(name, section) for name in sorted(data.machines(part)) for section in data.sections(name, part))
            for part in PARTS[::2]
        )
        title = f"DCASE {year} Task 2"
        name = f"evaluation{year}"
        found[f"dcase{year}"] = Experiment(f"dcase{year}", f"{title}, development set", year, "dev", dev, hidden)
        found[name] = Experiment(name, f"{title}, evaluation set", year, "eval", hidden, dev)
    first = found["dcase2025"]
    return {"table1": replace(first, name="table1", title=f"Table 1 of the report: {first.title}"), **found}


EXPERIMENTS = _experiments()
"""Experiments by name; `table1` is `dcase2025` beside the report's numbers."""


def experiment(name: str) -> Experiment:
    """The experiment of this name; `ReproduceError` that names the nearest ones.

    >>> experiment("evaluation2025").machines[0]
    'AutoTrash'
    """
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, n=2, cutoff=0.6) or list(EXPERIMENTS)
        raise ReproduceError(f"there is nothing called {name!r} to reproduce; did you mean {' or '.join(near)}?")
    return EXPERIMENTS[name]


@dataclass(frozen=True, slots=True)
class Plan:
    """An experiment with everything that its numbers depend on.

    `root` holds the data; `out` is the run folder; `machines` are judged; `settings` are for every system;
    `additional` names the systems whose networks also learn from the training clips of the year's other part;
    `truth` tells the conditions of an evaluation set. With `remix`, the size of a separator ("" for none), one is
    learnt first, and the training clips of every system are recombined with it.
    """

    experiment: Experiment
    root: Path
    out: Path
    contestants: tuple[Contestant, ...]
    seeds: tuple[int, ...] = (0,)
    machines: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    additional: frozenset[str] = frozenset()
    truth: Path | None = None
    bootstrap: int = 1000
    workers: int = 2
    remix: Size | Literal[""] = ""

    def __post_init__(self) -> None:
        """Refuse machines, systems and seeds that cannot be meant."""
        known = self.experiment.machines
        wrong = [name for name in self.machines if name not in known]
        if wrong:
            raise ReproduceError(f"{self.experiment.name} has no machine {wrong[0]!r}; it has {', '.join(known)}")
        names = [entry.name for entry in self.contestants]
        if not names or not self.seeds:
            raise ReproduceError("nothing to run: name at least one system and one seed")
        for what, given in (("system", names), ("seed", list(map(str, self.seeds)))):
            twice = [name for name, times in Counter(given).items() if times > 1]
            if twice:
                raise ReproduceError(f"{what} {twice[0]} is named twice")
        strangers = sorted(self.additional - set(names))
        if strangers:
            raise ReproduceError(f"--additional names {strangers[0]}, which is none of {', '.join(names)}")

    @property
    def judged(self) -> tuple[str, ...]:
        """The machines whose test clips are judged."""
        return self.machines or self.experiment.machines

    @property
    def units(self) -> frozenset[Unit]:
        """The machines and sections whose test clips are judged."""
        return frozenset(unit for unit in self.experiment.units if unit.machine in self.judged)

    @property
    def joining(self) -> frozenset[Unit]:
        """Those of the year's other part whose training clips are wanted."""
        return frozenset(self.experiment.others) if self.additional else frozenset()

    def joins(self, name: str) -> bool:
        """Whether a system learns from the year's other part too."""
        return name in self.additional

    def configs(self) -> dict[str, SystemConfig]:
        """The settings of each contestant as they will be used; SettingsError for those that do not exist."""
        return {c.name: load_preset(c.system, [*self.common(), *c.overrides]) for c in self.contestants}

    @property
    def separator(self) -> Path:
        """Where the separator lies that the training clips are recombined with."""
        return self.out / "separator"

    def common(self) -> list[str]:
        """Settings of every system: those that recombining asks for, then a person's own, which win."""
        if not self.remix:
            return list(self.settings)
        place = json.dumps(str(self.separator.absolute()))
        return ["augmentation.remix.enabled=true", f"separation.model={place}", *self.settings]

    def asked(self) -> dict[str, Any]:
        """What a run folder stands for: a resumed run must agree with it, systems and seeds may be added."""
        return {
            "experiment": self.experiment.name,
            "root": str(self.root.absolute()),
            "machines": list(self.judged),
            "settings": list(self.settings),
            "remix": self.remix,
            "bootstrap": self.bootstrap,
        }

    def folder(self) -> Path:
        """Where the data lies: the year's own folder below the root (`dcase2025t2/`), else the root itself."""
        year = self.experiment.year
        return next((f for f in (self.root / f"dcase{year}t2", self.root / f"dcase{year}") if f.is_dir()), self.root)

    def fetch_parts(self) -> tuple[str, ...]:
        """The parts that `offkey data fetch` has to bring."""
        own = ("dev",) if self.experiment.part == "dev" else ("additional", "eval")
        more = ("additional",) if self.experiment.part == "dev" else ("dev",)
        return (*own, *more) if self.additional else own

    def fetch_command(self) -> str:
        """What a person has to type to get the data."""
        machines = f" --machines {','.join(self.machines)}" if self.machines and not self.additional else ""
        return (
            f"offkey data fetch dcase{self.experiment.year} --root {self.root}{machines} "
            f"--parts {','.join(self.fetch_parts())}"
        )


# ---- how much


class Cost(NamedTuple):
    """Seconds a clip of 10 s on two processor cores and on a GPU, and where the two numbers come from."""

    cpu: float
    gpu: float
    origin: str


_COUNTED = "GPU: operations counted, at 20 TFLOP/s and 4 ms a clip for decoding; not measured"
COSTS: dict[str, Cost] = {
    "read": Cost(0.01, 0.004, "CPU: decoding and log-mel, rounded up; not measured alone"),
    "beats hears": Cost(0.56, 0.0045, f"CPU: docs/benchmarks.md, 8 clips in 4.47 s. {_COUNTED} (89 GFLOP)"),
    "beats learns, all": Cost(2.1, 0.018, f"CPU: docs/benchmarks.md, step of 8 clips in 17 s. {_COUNTED} (360 GFLOP)"),
    "beats learns, some": Cost(
        1.0, 0.0075, f"CPU: from the two above, 4 of 12 blocks going back. {_COUNTED} (150 GFLOP)"
    ),
    "efficientat hears": Cost(0.0094, 0.004, "CPU: docs/benchmarks.md, 8 clips in 75 ms. GPU: bound by decoding"),
    "efficientat learns": Cost(
        0.076, 0.006, "CPU: docs/benchmarks.md, 16 epochs of 295 clips in 4 to 8 minutes. GPU: guessed"
    ),
    "network": Cost(
        0.038, 0.004, "CPU: docs/benchmarks.md, 16 epochs of 295 clips in 3 minutes. GPU: bound by decoding"
    ),
    "conv-autoencoder": Cost(
        0.016, 0.001, "CPU: system3 with EfficientAT, 40 clips, 50 epochs: 37 s of one busy core. GPU: guessed"
    ),
    "dense-autoencoder": Cost(0.011, 0.003, "CPU: baseline, 40 clips, 100 epochs: 45 s of one busy core. GPU: guessed"),
}
"""What one clip takes once; a clip that is learnt from takes it every epoch."""

_CLIP_SECONDS = 10.0
_BYTES_A_SECOND = 32_000  # 16 kHz, 16 bits
_FRAMES_BYTES = 62 * 768 * 4  # what frozen BEATs heard of 10 s: the mean over frequency, float32
_BEATS_BYTES = 361_499_833
_GIB = 2**30


class Counts(NamedTuple):
    """Clips of a plan; `told` says whether they were counted on disk or are the year's usual numbers."""

    train: int
    additional: int
    supplemental: int
    additional_supplemental: int
    test: int
    bytes: int
    told: Literal["counted", "usual"]


class Usual(NamedTuple):
    """Clips that a section usually has, and who says so."""

    train: int
    test: int
    supplemental: int
    origin: str


_FIRST_SHOT = "990 + 10 for training and 200 for test, as the organisers describe 2025"
USUAL: dict[int, Usual] = {
    2020: Usual(1000, 400, 0, "organisers of 2020: around 1000 for training, around 400 for test"),
    2021: Usual(1003, 400, 0, "file names in the organisers' baseline of 2021: 1000 + 3 for training, 400 for test"),
    2022: Usual(1000, 200, 0, "file names in the organisers' baseline of 2022: 990 + 10 for training, 200 for test"),
    2023: Usual(1000, 200, 0, f"{_FIRST_SHOT}; taken to hold for this year"),
    2024: Usual(1000, 200, 0, f"{_FIRST_SHOT}; taken to hold for this year"),
    2025: Usual(1000, 200, 100, f"{_FIRST_SHOT}, and 100 supplemental ones"),
    2026: Usual(1000, 200, 100, f"{_FIRST_SHOT}, and 100 supplemental ones; taken to hold for this year"),
}
"""By year; those of the data at hand are counted instead."""


def count(plan: Plan, clips: Sequence[ClipMeta]) -> Counts:
    """How many clips there are; without any, the year's usual ones."""
    own = plan.units
    if not clips:
        usual = USUAL[plan.experiment.year]
        train, test, extra = (number * len(own) for number in usual[:3])
        more, more_extra = (number * len(plan.joining) for number in (usual.train, usual.supplemental))
        seconds = (train + test + extra + more + more_extra) * _CLIP_SECONDS
        size = int(seconds * _BYTES_A_SECOND * plan.experiment.protocol.channels)
        return Counts(train, more, extra, more_extra, test, size, "usual")
    kinds = Counter((unit_of(clip) in own, clip.split) for clip in clips)
    return Counts(
        kinds[True, Split.TRAIN],
        kinds[False, Split.TRAIN],
        kinds[True, Split.SUPPLEMENTAL],
        kinds[False, Split.SUPPLEMENTAL],
        kinds[True, Split.TEST],
        sum(clip.path.stat().st_size for clip in clips),
        "counted",
    )


class Estimate(NamedTuple):
    """One run of a system: seconds on two cores and on a GPU, memory and lasting disk in bytes; `uses` names costs."""

    name: str
    cpu_seconds: float
    gpu_seconds: float
    memory: int
    disk: int
    uses: tuple[str, ...]


def estimate(name: str, config: SystemConfig, counts: Counts, additional: bool) -> Estimate:
    """What one seed of a system takes, from clip counts and `COSTS`; clips are taken to last 10 s."""
    if config.kind == "ensemble":
        each = [estimate(name, member, counts, additional) for member in member_systems(config).values()]
        return Estimate(
            name,
            sum(one.cpu_seconds for one in each),
            sum(one.gpu_seconds for one in each),
            max(one.memory for one in each),
            sum(one.disk for one in each),
            tuple(dict.fromkeys(use for one in each for use in one.uses)),
        )
    heard = counts.train + (counts.additional if additional else 0)
    if config.labels.supplemental:
        heard += counts.supplemental + (counts.additional_supplemental if additional else 0)
    embedded = heard + counts.test
    lessons = heard * config.training.epochs
    encoder = config.encoder.name
    parts: list[tuple[str, float]] = [("read", embedded)]
    memory, disk = int(1.2 * _GIB), 20_000 * embedded
    if config.kind == "reconstructive":
        parts.append((str(config.model.name), lessons))
        if encoder != "none":
            parts.append((f"{encoder} hears", embedded))
            disk += _FRAMES_BYTES * embedded
            memory += int(1.5 * _GIB)
    elif config.kind != "training-free":
        parts += [("network", lessons), ("network", embedded / 3)]
        memory += int(0.5 * _GIB)
        if encoder == "beats":
            every = config.encoder.unfreeze == "all"
            frozen = config.encoder.unfreeze == "none" and not config.encoder.lora_rank
            learns = "beats hears" if frozen else f"beats learns, {'all' if every else 'some'}"
            parts += [(learns, lessons), ("beats hears", embedded)]
            # 3.6 GiB with checkpointing and 6.1 without for 8 clips, all of it learning (docs/benchmarks.md)
            a_clip = (0.26 if config.encoder.checkpointing else 0.57) * (1.0 if every else 0.5)
            memory += int((1.0 + a_clip * config.training.batch_size) * _GIB)
            disk += _BEATS_BYTES
        elif encoder != "none":
            parts += [(f"{encoder} learns", lessons), (f"{encoder} hears", embedded)]
    elif encoder != "none":
        parts.append((f"{encoder} hears", embedded))
        memory += int(1.5 * _GIB)
        disk += 30_000 * embedded + (_BEATS_BYTES if encoder == "beats" else 0)
    times = [(COSTS[part], often) for part, often in parts]
    return Estimate(
        name,
        sum(cost.cpu * often for cost, often in times),
        sum(cost.gpu * often for cost, often in times),
        memory,
        disk,
        tuple(dict.fromkeys(part for part, _ in parts)),
    )
