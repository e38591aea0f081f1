"""The drift warning keeps its promise where nothing moves, comes where something does, and no anomaly sets it off."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import kstest

from offkey.scoring import Calibration
from offkey.watching import DriftMonitor, WatchError


def monitor(rng: np.random.Generator, n: int = 100, between: float = 500.0, alpha: float = 0.1) -> DriftMonitor:
    scores = rng.normal(size=n)
    return DriftMonitor(scores, Calibration(scores, alpha=alpha).threshold(), between, int(rng.integers(1 << 30)))


def first_warning(watch: DriftMonitor, scores: np.ndarray) -> int | None:
    return next((place for place, score in enumerate(scores) if watch.step(float(score))), None)


def test_the_mean_time_to_a_false_warning_is_what_was_asked_for() -> None:
    """Ville-like law of Shiryaev-Roberts: P(warning within c/10 clips) ≤ 1/10, whatever the calibration clips were."""
    rng, between, runs = np.random.default_rng(0), 300.0, 150
    warned = sum(first_warning(monitor(rng, 60, between), rng.normal(size=30)) is not None for _ in range(runs))
    assert warned <= runs * 0.1 + 3 * np.sqrt(runs * 0.09)


def test_p_values_of_quiet_clips_are_uniform_and_independent() -> None:
    rng, told = np.random.default_rng(1), []
    for _ in range(60):
        watch = monitor(rng, 40)
        for score in rng.normal(size=40):
            watch.step(float(score))
        told.append(list(watch._recent)[:20])
    flat = np.concatenate(told)
    assert kstest(flat, "uniform").pvalue > 0.001
    first, second = np.concatenate([t[:-1] for t in told]), np.concatenate([t[1:] for t in told])
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(first))


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_a_jump_is_noticed(shift: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        watch = monitor(rng, 100, 1000.0)
        first_warning(watch, rng.normal(size=100))
        found = first_warning(watch, rng.normal(size=400) + shift)
        assert found is not None
        assert watch.median < 0.45


def test_a_slow_shift_is_noticed() -> None:
    rng = np.random.default_rng(3)
    found = [
        first_warning(monitor(rng, 100, 2000.0), rng.normal(size=1500) + np.linspace(0, 2, 1500)) for _ in range(10)
    ]
    assert all(place is not None for place in found)


def test_anomalies_alone_do_not_set_it_off() -> None:
    rng = np.random.default_rng(4)
    warned = 0
    for _ in range(40):
        scores = rng.normal(size=50)
        scores[::2] += 30.0
        warned += first_warning(monitor(rng), scores) is not None
    assert warned <= 40 * 0.1 + 3 * np.sqrt(40 * 0.09)


def test_sinking_scores_are_no_warning() -> None:
    rng = np.random.default_rng(5)
    assert first_warning(monitor(rng), rng.normal(size=500) - 2.0) is None


def test_tied_scores_are_no_warning() -> None:
    rng = np.random.default_rng(6)
    watch = DriftMonitor(np.repeat([1.0, 2.0, 3.0], 20), 3.0, 500.0)
    assert first_warning(watch, rng.choice([1.0, 2.0], size=50)) is None


def test_a_lasting_shift_does_not_warn_clip_after_clip() -> None:
    rng = np.random.default_rng(7)
    watch = DriftMonitor(rng.normal(size=100), 1.3, 3000.0)
    warned = [place for place, score in enumerate(rng.uniform(1.2, 1.3, size=600)) if watch.step(float(score))]
    assert warned
    assert np.diff(warned).min(initial=100) >= 100


def test_memory_is_bounded_and_the_sample_stays_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offkey.watching.drift._BAG", 200)
    rng = np.random.default_rng(8)
    watch = DriftMonitor(rng.normal(size=100), 10.0, 1e9)
    for score in rng.normal(size=3000):
        watch.step(float(score))
    bag = watch.state()["bag"]
    assert len(bag) == 200
    assert bag == sorted(bag)
    assert kstest(bag, "norm").pvalue > 0.001
    assert watch.evidence < 1e9 / 1e3


def test_a_state_goes_on_exactly() -> None:
    rng = np.random.default_rng(9)
    reference, scores = rng.normal(size=50), rng.normal(size=200)
    whole, first, second = (DriftMonitor(reference, 1.0, 100.0, seed=3) for _ in range(3))
    for score in scores:
        whole.step(float(score))
    for score in scores[:100]:
        first.step(float(score))
    second.restore(json.loads(json.dumps(first.state())))
    for score in scores[100:]:
        second.step(float(score))
    assert second.evidence == whole.evidence
    assert second.median == whole.median


def test_too_few_clips_and_too_many_warnings() -> None:
    few = DriftMonitor(np.arange(5.0), 4.0, 100.0)
    assert not few.works
    assert not few.step(3.9)
    with pytest.raises(WatchError, match="more than there are clips"):
        DriftMonitor(np.arange(50.0), 4.0, 0.5)
