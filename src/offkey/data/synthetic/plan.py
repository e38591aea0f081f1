"""The list of clips of a simulated data set: everything that is known of a clip before it sounds."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass

import numpy as np

from offkey.data.synthetic.config import SynthConfig
from offkey.data.synthetic.faults import Fault, draw_fault
from offkey.data.synthetic.machines import SIMULATORS
from offkey.data.synthetic.surroundings import Place
from offkey.types import Condition, Content, Domain, Split

__all__ = ["ClipPlan", "plan_clips"]

_SPLITS = tuple(Split)
_DOMAINS = tuple(Domain)
_CONDITIONS = tuple(Condition)
_CONTENTS = tuple(Content)


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """One clip to write. `entropy` seeds what is random in it; `place` and `unit` what it shares."""

    machine: str
    split: Split
    domain: Domain
    condition: Condition
    content: Content
    number: int
    attributes: tuple[tuple[str, str], ...]
    hidden: bool
    seconds: float
    fault: Fault | None
    snr_db: float
    level_dbfs: float
    entropy: tuple[int, ...]
    place: Place
    unit: tuple[int, ...]

    @property
    def name(self) -> str:
        """File name in the manner of DCASE 2025 Task 2."""
        if self.content is Content.NOISE:
            return f"section_00_noise_supplemental_normal_{self.number:04d}.wav"
        state = "machine" if self.content is Content.MACHINE else self.condition.value
        told = "noAttribute" if self.hidden else "_".join(f"{k}_{v}" for k, v in self.attributes)
        return f"section_00_{self.domain.value}_{self.split.value}_{state}_{self.number:04d}_{told}.wav"

    @property
    def path(self) -> str:
        """Path below the data set's root, with forward slashes."""
        return f"{self.machine}/{self.split.value}/{self.name}"

    @property
    def seed(self) -> int:
        """One number that stands for `entropy`, to tell people."""
        return int(np.random.SeedSequence(self.entropy).generate_state(1, np.uint64)[0])

    def generators(self) -> tuple[np.random.Generator, np.random.Generator, np.random.Generator]:
        """Fresh generators for the machine, the fault and the surroundings, independent of each other."""
        machine, fault, around = (np.random.default_rng([*self.entropy, k]) for k in (1, 2, 3))
        return machine, fault, around


def plan_clips(config: SynthConfig) -> list[ClipPlan]:
    """Every clip that `config` asks for, machine by machine.

    A clip depends on the seed, its machine, group and number alone: other counts do not change it.

    >>> plan = plan_clips(SynthConfig(machines=("fan",), train_source=1, train_target=0, test_per_group=0))
    >>> plan[0].path
    'fan/train/section_00_source_train_normal_0000_spd_1050_flow_open.wav'
    """
    clips: list[ClipPlan] = []
    for machine in config.machines:
        for domain, count in ((Domain.SOURCE, config.train_source), (Domain.TARGET, config.train_target)):
            clips += [
                _plan(config, machine, Split.TRAIN, domain, Condition.NORMAL, Content.MIXTURE, k) for k in range(count)
            ]
        for domain, condition in itertools.product(
            (Domain.SOURCE, Domain.TARGET), (Condition.NORMAL, Condition.ANOMALY)
        ):
            clips += [
                _plan(config, machine, Split.TEST, domain, condition, Content.MIXTURE, k)
                for k in range(config.test_per_group)
            ]
        noise = config.supplemental // 2
        for content, count in ((Content.MACHINE, config.supplemental - noise), (Content.NOISE, noise)):
            clips += [
                _plan(config, machine, Split.SUPPLEMENTAL, Domain.SOURCE, Condition.NORMAL, content, k)
                for k in range(count)
            ]
    return clips


def _plan(
    config: SynthConfig,
    machine: str,
    split: Split,
    domain: Domain,
    condition: Condition,
    content: Content,
    number: int,
) -> ClipPlan:
    """Draw what is drawn before rendering. Both conditions use the same laws in the same order."""
    simulator = SIMULATORS[machine]
    kind = zlib.crc32(machine.encode())
    entropy = (
        config.seed,
        kind,
        _SPLITS.index(split),
        _DOMAINS.index(domain),
        _CONDITIONS.index(condition),
        _CONTENTS.index(content),
        number,
    )
    rng = np.random.default_rng([*entropy, 0])
    seconds = round(float(rng.uniform(*config.length_range)) * config.rate) / config.rate
    snr, level = _spread(entropy[:-1], number)
    values = [s.source if domain is Domain.SOURCE else s.target for s in simulator.settings]
    choices = list(itertools.product(*values))
    chosen = choices[number % len(choices)]
    fault = None
    if condition is Condition.ANOMALY:
        # Turns of settings and of kinds must not lock step: every kind meets every setting.
        turn = number + number // int(np.lcm(len(choices), len(simulator.faults)))
        fault = draw_fault(simulator.faults, config.severity, seconds, config.rate, rng, turn)
    return ClipPlan(
        machine=machine,
        split=split,
        domain=domain,
        condition=condition,
        content=content,
        number=number,
        attributes=tuple(zip((s.name for s in simulator.settings), chosen, strict=True)),
        hidden=machine in config.hidden_attributes,
        seconds=seconds,
        fault=fault,
        snr_db=_between(config.snr_db, snr),
        level_dbfs=_between(config.level_dbfs, level),
        entropy=entropy,
        place=(config.seed, kind, _DOMAINS.index(domain)),
        unit=(config.seed, kind, 7),
    )


def _spread(group: tuple[int, ...], number: int) -> tuple[float, float]:
    """Two numbers in [0, 1): uniform for each clip by a random shift a group, and evenly spread over a group.

    Clips drawn one by one would leave loudness an AUC of 0.5 ± 0.05 in groups of 50, by luck alone. The steps are
    those of the plane's evenest additive sequence: powers of the inverse plastic number.
    """
    shift = np.random.default_rng([*group, 0, 5]).random(2)
    plastic = 1.324717957244746
    first, second = (shift + number * np.array([plastic**-1, plastic**-2])) % 1.0
    return float(first), float(second)


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + share * (limits[1] - limits[0])
