"""What a detector keeps of normal clips: the promise on false alarms holds for blends, and for new recordings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import betabinom

from offkey.blending import Part, join
from offkey.detector import Detector, MachineDetector
from offkey.explaining import Profile, Spectra
from offkey.references import fit_reference
from offkey.scoring import NormalQuantile, rate_law
from offkey.systems.config import SystemConfig, load_preset

REPETITIONS = 200


def nothing(clips: int) -> Profile:
    """A profile of silence."""
    spectra = Spectra(np.zeros((clips, 1, 16), np.float16), np.zeros(clips, np.float32), np.zeros((1, 13), np.float32))
    return Profile(np.zeros(1, np.float32), np.ones(1, np.float32), spectra)


def columns(*numbers: int) -> SystemConfig:
    """Settings of a blend that takes columns of what it sees for its scores."""
    plain = load_preset("logmel-knn")
    scorers = [
        {"view": "logmel", "name": f"column{number}", "scorer": {"name": "value", "column": number}}
        for number in numbers
    ]
    scoring = plain.scoring.model_validate({"scorers": scorers})
    folds = plain.calibration.model_copy(update={"folds": 2})  # these scorers learn nothing
    return plain.model_copy(update={"scoring": scoring, "calibration": folds})


def known(config: SystemConfig, seen: NDArray[Any], fresh: Any = None, **keywords: Any) -> MachineDetector:
    """A machine's detector of normal clips given as what is seen of them, (N, columns)."""
    count = len(seen)
    told = np.ones(count, dtype=bool) if fresh is None else fresh
    names = [f"{number}.wav" for number in range(count)]
    views = {"logmel": seen.astype(np.float32)}
    return fit_reference(
        "m", names, ["source"] * count, [0] * count, views, nothing(count), config, told, 0.1, **keywords
    )


def judged(machine: MachineDetector, config: SystemConfig, seen: NDArray[Any]) -> NDArray[np.float64]:
    return machine.judge(config.scoring.scorers, {"logmel": seen.astype(np.float32)})[0]


def in_the_band(counts: NDArray[np.int64], fresh: int, n: int, alpha: float) -> None:
    """Alarms a repetition: no more than the law of conformal thresholds allows, and not needlessly few."""
    law = betabinom(fresh, *rate_law(n, alpha))
    spread = 3.3 * law.std() / math.sqrt(len(counts))
    assert counts.mean() <= law.mean() + spread
    assert counts.mean() >= 0.7 * law.mean() - spread


# ---- several scores as one


@pytest.mark.parametrize(("n", "alpha"), [(29, 0.1), (39, 0.05), (99, 0.01)])
def test_a_blend_of_skewed_scores_keeps_to_the_rate(n: int, alpha: float) -> None:
    """200 repetitions of not many more clips than the rate takes: the tails of the maps weigh most there."""
    rng, config, fresh = np.random.default_rng(20), columns(0, 1, 2), 60
    counts = []
    for _ in range(REPETITIONS):
        machine = known(config, rng.lognormal(size=(n, 3)))
        new = judged(machine, config, rng.lognormal(size=(fresh, 3)))
        counts.append(int((new > machine.calibration.threshold(alpha)).sum()))
    in_the_band(np.array(counts), fresh, n, alpha)


def test_clips_that_the_network_knows_take_no_part() -> None:
    """The maps, and the scores behind the threshold, are those of the fresh clips alone."""
    rng, config = np.random.default_rng(21), columns(0, 1)
    seen, fresh = rng.lognormal(size=(40, 2)), np.arange(40) % 2 == 0
    some, alone = known(config, seen, fresh), known(config, seen[fresh])
    assert some.calibration.scores.tolist() == alone.calibration.scores.tolist()
    parts = seen[fresh].astype(np.float32).astype(float)
    for number, to in enumerate(some.quantiles):
        assert to.knots.tolist() == NormalQuantile.of(parts[:, number]).knots.tolist()


def ensemble(tables: NDArray[Any]) -> tuple[Any, list[Any]]:
    """Detectors joined by `offkey.blending`, the last of them a blend of two columns itself."""
    configs = [columns(0), columns(1, 2)]
    parts = [Part(f"p{number}", Detector.__new__(Detector), 1.0, str(number)) for number in range(len(configs))]
    for part, config in zip(parts, configs, strict=True):
        part.detector.config, part.detector.machines = config, {"m": known(config, tables)}
    return join(parts, "equal", None, None).machines["m"], parts


def test_an_ensemble_of_skewed_scores_keeps_to_the_rate() -> None:
    """Its threshold is that of a blend of members' scores, one of which is a blend."""
    rng, fresh, n, alpha = np.random.default_rng(22), 60, 29, 0.1
    counts = []
    for _ in range(REPETITIONS // 2):
        whole, parts = ensemble(rng.lognormal(size=(n, 3)))
        new = rng.lognormal(size=(fresh, 3))
        members = [
            to(judged(part.detector.machines["m"], part.detector.config, new))
            for part, to in zip(parts, whole.quantiles, strict=True)
        ]
        counts.append(int((np.mean(members, axis=0) > whole.calibration.threshold(alpha)).sum()))
    in_the_band(np.array(counts), fresh, n, alpha)


# ---- clips cut from one recording


def recordings(rng: np.random.Generator, count: int, clips: int = 8) -> NDArray[np.float64]:
    """Clips (count * clips, 3) that lie close to where their recording does."""
    where = 2.0 * rng.normal(size=(count, 1, 3))
    return np.asarray((where + 0.5 * rng.normal(size=(count, clips, 3))).reshape(-1, 3))


@pytest.mark.parametrize(("system", "blended"), [("logmel-knn", False), ("logmel-knn", True)])
def test_the_rate_holds_for_new_recordings_where_groups_are_told(system: str, blended: bool) -> None:
    """20 recordings of 8 clips: without groups each clip has seven neighbours of its own in the reference."""
    rng, config, told = np.random.default_rng(23), load_preset(system), [str(place // 8) for place in range(160)]
    if blended:
        entry = config.scoring.scorers[0]
        scorers = [entry.model_copy(update={"name": name}) for name in ("once", "twice")]
        config = config.model_copy(update={"scoring": config.scoring.model_copy(update={"scorers": tuple(scorers)})})
    rates: dict[str, list[float]] = {"told": [], "untold": []}
    for _ in range(30):
        seen, new = recordings(rng, 20), recordings(rng, 20)
        for name, sessions in (("told", told), ("untold", None)):
            machine = known(config, seen, sessions=sessions)
            rates[name].append(float((judged(machine, config, new) > machine.calibration.threshold()).mean()))
    spread = float(np.std(rates["told"])) / math.sqrt(30)
    assert np.mean(rates["untold"]) > 0.3
    assert 0.02 < np.mean(rates["told"]) <= 0.1 + 3.3 * spread


def test_recordings_are_what_is_counted() -> None:
    """A recording is fresh where all of its clips are; too few fresh ones are none at all."""
    rng, config = np.random.default_rng(24), columns(0, 1)
    seen, told = recordings(rng, 24, 5), [str(place // 5) for place in range(120)]
    fresh = np.repeat(np.arange(24) < 12, 5)
    fresh[0] = False
    machine = known(config, seen, fresh, sessions=told)
    assert machine.fresh is not None
    assert machine.fresh.tolist() == [5 <= place < 60 for place in range(120)]
    assert machine.calibration.counts() == [11]
    assert machine.recordings == 24
    assert known(config, seen, np.arange(120) < 40, sessions=told).calibration.counts() == [24]  # 8 are too few for 0.1
    alone = known(config, seen, sessions=[""] * 120)
    assert alone.sessions is None
    assert alone.calibration.scores.tolist() == known(config, seen).calibration.scores.tolist()


def test_an_ensemble_knows_the_recordings_of_its_members() -> None:
    rng, configs = np.random.default_rng(25), [columns(0), columns(1, 2)]
    seen, told = recordings(rng, 20), [str(place // 8) for place in range(160)]
    parts = [Part(f"p{number}", Detector.__new__(Detector), 1.0, str(number)) for number in range(2)]
    for part, config in zip(parts, configs, strict=True):
        part.detector.config, part.detector.machines = config, {"m": known(config, seen, sessions=told)}
    whole = join(parts, "equal", None, None)
    assert whole.machines["m"].sessions == tuple(told)
    assert whole.machines["m"].calibration.counts() == [20]
    assert not whole.reasons
    parts[1].detector.machines = {"m": known(configs[1], seen)}
    assert "p1 and the other members were not told the same recordings" in join(parts, "equal", None, None).reasons[0]
