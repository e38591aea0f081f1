"""Alarms that are confirmed: what begins and ends them, and that the told rates hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from offkey.scoring import Calibration, FalseAlarms, ScoringError
from offkey.scoring.rate import seconds_of, spoken_frequency
from offkey.watching import Confirmation, Hysteresis, WatchError, agree

PAIRS = [(1, 1), (1, 3), (2, 2), (2, 3), (3, 5)]


@pytest.mark.parametrize(("k", "n"), PAIRS)
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_the_formula_is_the_chance_of_a_climb(k: int, n: int, rate: float) -> None:
    """Counted over all patterns of n + 1 clips: fewer than k alarms among the first n, k among the last n."""
    chance = sum(
        rate ** sum(bits) * (1 - rate) ** (n + 1 - sum(bits))
        for bits in itertools.product((0, 1), repeat=n + 1)
        if sum(bits[:n]) < k <= sum(bits[1:])
    )
    assert Confirmation(k, n).begins(rate) == pytest.approx(chance, rel=1e-12)


@pytest.mark.parametrize(("k", "n"), PAIRS)
def test_expected_is_the_mean_over_detectors(k: int, n: int) -> None:
    confirm, rates = Confirmation(k, n), np.random.default_rng(0).beta(3, 58, size=50_000)
    assert confirm.expected(3, 58) == pytest.approx(np.mean([confirm.begins(r) for r in rates]), rel=0.06)
    assert confirm.expected(3, 58) >= confirm.begins(3 / 61) * (1 if k > 1 else 0.9)
    assert confirm.expected(0, 61) == 0.0


@pytest.mark.parametrize(("k", "n"), PAIRS)
def test_no_more_alarms_begin_than_told(k: int, n: int) -> None:
    """Independent clips keep to the first number, any clips (here: in runs) to the second."""
    rng, clips = np.random.default_rng(1), 12_000
    for rate in (0.02, 0.1):
        scores = rng.random(clips)
        runs = np.repeat(rng.random(clips // 8), 8)
        begun = []
        for values in (scores, runs):
            watch = Hysteresis(Confirmation(k, n), 1 - rate, 1 - 2 * rate)
            begun.append(sum(watch.step(float(value)) == "begin" for value in values))
        told = Confirmation(k, n).begins(rate) * clips
        assert begun[0] <= told + 4 * np.sqrt(told) + 1
        assert begun[1] <= rate * clips / k + 4 * np.sqrt(rate * clips)
        if k > 1 and rate < 0.05:  # runs are why the second number is told at all
            assert begun[1] > 2 * told


def test_an_alarm_ends_only_after_quiet_clips_in_a_row() -> None:
    watch = Hysteresis(Confirmation(2, 3), threshold=2.0, release=1.0)
    scores = [3, 0, 3, 1.5, 0, 0, 1.01, 0, 1.0, 0.5, 0, 0]
    told = [watch.step(float(score)) for score in scores]
    assert told == [None, None, "begin", *[None] * 6, "end", None, None]


def test_after_an_alarm_old_alarms_do_not_count() -> None:
    watch = Hysteresis(Confirmation(2, 3), 2.0, 1.0)
    for score in (3, 3, 0, 0, 0):
        watch.step(float(score))
    assert not watch.on
    assert [watch.step(float(score)) for score in (3, 0, 0, 3, 0, 3)] == [None] * 5 + ["begin"]


def test_a_state_goes_on() -> None:
    scores = np.random.default_rng(2).random(300)
    whole, first, second = (Hysteresis(Confirmation(2, 4), 0.8, 0.6) for _ in range(3))
    told = [whole.step(float(score)) for score in scores]
    parts = [first.step(float(score)) for score in scores[:150]]
    second.restore(first.state())
    assert parts + [second.step(float(score)) for score in scores[150:]] == told
    assert told.count("begin") > 3


@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("confirm", [Confirmation(), Confirmation(3, 5)])
def test_a_wanted_frequency_is_kept_with_the_lowest_threshold_that_does(confirm: Confirmation, worst: bool) -> None:
    calibration = Calibration(np.arange(2000.0))
    wanted, every = FalseAlarms.parse("4/day"), 60.0
    terms = agree(calibration, confirm, every, wanted, worst)
    kept = terms.worst if worst else terms.independent
    assert kept is not None
    assert wanted.per_second is not None
    assert 0 < kept <= wanted.per_second
    more = agree(calibration, confirm, every, FalseAlarms(share=terms.alpha + 1 / 2001))
    assert (more.worst if worst else more.independent) > wanted.per_second
    assert terms.release < terms.threshold
    assert more.threshold < terms.threshold


def test_told_frequency_holds_on_average_over_detectors() -> None:
    """200 detectors with 60 normal clips each: alarms in 2-of-3 come as often as is told, no more."""
    rng, confirm, clips = np.random.default_rng(3), Confirmation(2, 3), 150
    begun, told = 0, 0.0
    for _ in range(200):
        terms = agree(Calibration(rng.normal(size=60), alpha=0.1), confirm, 1.0)
        told += (terms.independent or 0) * clips
        watch = Hysteresis(confirm, terms.threshold, terms.threshold)  # ends at once: no climb is merged
        begun += sum(watch.step(float(score)) == "begin" for score in rng.normal(size=clips))
    assert 0.6 * told < begun < 1.15 * told


def test_what_is_out_of_reach_is_said_with_what_it_takes() -> None:
    week = FalseAlarms.parse("1/week")
    told = r"1 a week.*takes 60477 normal clips \(7 days\), and there are 60.*reach is 5\.71 an hour"
    with pytest.raises(WatchError, match=told):
        agree(Calibration(np.arange(60.0)), Confirmation(), 10.0, week)
    with pytest.raises(WatchError, match=r"rate of 0\.01 takes 99 normal clips"):
        agree(Calibration(np.arange(60.0)), Confirmation(), 10.0, FalseAlarms.parse("1%"))
    assert agree(Calibration(np.arange(140.0)), Confirmation(3, 5), 10.0, week).alpha > 0


@pytest.mark.parametrize("text", ["5/3", "0/3", "3", "a/b", "1/100000", ""])
def test_refuses_what_is_no_confirmation(text: str) -> None:
    with pytest.raises(WatchError):
        Confirmation.parse(text)


@pytest.mark.parametrize(
    ("text", "every", "share"),
    [
        ("0.05", 1, 0.05),
        ("5%", 1, 0.05),
        ("1/week", 10, 10 / 604800),
        ("2/day", 60, 120 / 86400),
        ("1 per hour", 36, 0.01),
        ("1/month", 60, 60 * 12 / (365.25 * 86400)),
        ("3 a day", 60, 180 / 86400),
    ],
)
def test_rates_are_read(text: str, every: float, share: float) -> None:
    assert FalseAlarms.parse(text).share_of(float(every)) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("text", ["", "5", "0", "150%", "-1/week", "1/fortnight", "week", "nan", "0/day", "inf/day"])
def test_refuses_what_is_no_rate(text: str) -> None:
    with pytest.raises(ScoringError):
        FalseAlarms.parse(text)


def test_more_false_alarms_than_clips_are_no_rate() -> None:
    with pytest.raises(ScoringError, match="ask for fewer"):
        FalseAlarms.parse("10/hour").share_of(600.0)


@pytest.mark.parametrize("text", ["", "ten", "0s", "-1s", "5 parsecs"])
def test_refuses_what_is_no_time(text: str) -> None:
    with pytest.raises(ScoringError):
        seconds_of(text)


def test_frequencies_are_spoken_so_that_they_read_back() -> None:
    for text in ("1 a week", "4 a day", "2.5 an hour", "1 a month", "3 a week"):
        assert (
            spoken_frequency(FalseAlarms.parse(text.replace(" an ", "/").replace(" a ", "/")).per_second or 0) == text
        )
