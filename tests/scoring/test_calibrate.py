"""Calibration keeps its promise on false alarms, and judges no clip by a scorer that knows it."""

import json
import math

import numpy as np
import pytest
from scipy.stats import beta, betabinom, binom, gamma, kstest

from offkey.scoring import (
    Calibration,
    Level,
    Neighbours,
    NeighboursOptions,
    Reference,
    ScoringError,
    clips_needed,
    rate_law,
)
from offkey.scoring import cross_fit as fit_across
from offkey.scoring.base import Scorer, ScorerOptions
from offkey.scoring.calibrate import folds_of


class Witness(Scorer):
    """Scores 1 for clips that it was fitted on and 0 for others."""

    class Options(ScorerOptions):
        name: str = "witness"

    def _fit(self, reference):
        self.seen = set(reference.embedding[:, 0].tolist())

    def _score(self, query):
        return np.array([float(x in self.seen) for x in query.embedding[:, 0].tolist()])

    def _arrays(self):
        return {}

    def _restore(self, arrays):
        pass


def numbered(clips, target=0):
    domain = ["source"] * (clips - target) + ["target"] * target
    return Reference(np.arange(clips, dtype=float)[:, None], domain, np.arange(clips) % 3)


@pytest.mark.parametrize("clips", [2, 3, 20, 21, 97])
def test_no_clip_is_judged_by_a_scorer_that_knows_it(clips):
    scores = fit_across(Witness, numbered(clips))
    np.testing.assert_array_equal(scores, np.zeros(clips))


@pytest.mark.parametrize("sessions", [2, 7, 40])
def test_a_recording_session_stays_together(sessions):
    reference = numbered(120, target=20)
    groups = [f"flight {i % sessions}" for i in range(120)]
    fold = folds_of(reference, 5, groups, seed=1)
    for session in set(groups):
        assert len({f for f, g in zip(fold, groups, strict=True) if g == session}) == 1
    assert len(set(fold.tolist())) == (sessions if sessions <= 20 else 5)


@pytest.mark.parametrize("seed", range(5))
def test_every_fold_has_its_share_of_each_stratum(seed):
    reference = numbered(200, target=15)
    fold = folds_of(reference, 5, seed=seed)
    assert np.bincount(fold).tolist() == [40] * 5
    for domain in ("source", "target"):
        for identity in range(3):
            here = fold[(reference.domain == domain) & (reference.identity == identity)]
            counts = np.bincount(here, minlength=5)
            assert counts.max() - counts.min() <= 1


def test_few_clips_are_left_out_one_by_one():
    assert len(set(folds_of(numbered(20)).tolist())) == 20
    assert len(set(folds_of(numbered(21)).tolist())) == 5


def test_folds_follow_the_seed():
    reference = numbered(100)
    np.testing.assert_array_equal(folds_of(reference, seed=4), folds_of(reference, seed=4))
    assert not np.array_equal(folds_of(reference, seed=4), folds_of(reference, seed=5))


def test_leave_one_out_is_what_it_says():
    reference = Reference(np.random.default_rng(0).normal(size=(12, 3)))

    def build():
        return Neighbours(NeighboursOptions(metric="euclidean"))

    expected = []
    for i in range(12):
        others = [j for j in range(12) if j != i]
        expected.append(build().fit(reference.take(others)).score(reference.take([i]).query())[0])
    np.testing.assert_array_equal(fit_across(build, reference), expected)


@pytest.mark.parametrize(
    ("reference", "groups", "message"),
    [
        (numbered(1), None, "at least 2 normal clips, there is 1"),
        (numbered(0), None, "at least 2 normal clips, there are 0"),
        (numbered(9), ["one"] * 9, "at least 2 normal recording sessions, there is 1"),
        (numbered(9), ["one", "two"], "one group a clip"),
    ],
)
def test_too_little_to_cross_fit(reference, groups, message):
    with pytest.raises(ScoringError, match=message):
        fit_across(Level, reference, groups=groups)


def test_p_value_counts():
    calibration = Calibration([3.0, 1.0, 2.0, 2.0])
    np.testing.assert_allclose(
        calibration.p_values([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 9.0]), np.array([5, 5, 4, 4, 2, 2, 1]) / 5
    )
    assert calibration.p_value(9.0) == 0.2


@pytest.mark.parametrize("n", [1, 4, 9, 10, 19, 39, 99, 100])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.2, 0.5])
def test_alarm_and_p_value_agree(n, alpha):
    """score > threshold(α) exactly where p ≤ α, and n+1 clips drawn alike give at most α·(n+1) alarms."""
    values = np.random.default_rng(n).permutation(n).astype(float)
    calibration = Calibration(values, alpha=alpha)
    asked = np.arange(-1, n + 1) + 0.5
    np.testing.assert_array_equal(asked > calibration.threshold(), calibration.p_values(asked) <= alpha + 1e-12)
    if n >= clips_needed(alpha):
        assert math.isfinite(calibration.threshold())
        assert calibration.warning() is None
    else:
        assert calibration.threshold() == math.inf
        assert f"at least {clips_needed(alpha)} are needed" in calibration.warning()


@pytest.mark.parametrize("alpha", [0.1, 0.05])
def test_false_alarms_keep_to_the_rate(alpha):
    """200 machines, 60 calibration clips and 50 new ones each, under a scorer fitted on clips of its own.

    For a fixed scorer the promise is exact: alarms are at most α on average; and not needlessly few either.
    """
    rng = np.random.default_rng(0)
    alarms = 0
    repetitions, new = 200, 50
    for _ in range(repetitions):
        scorer = Level().fit(Reference(rng.normal(size=(40, 2))))
        calibration = Calibration(scorer.score(Reference(rng.normal(size=(60, 2))).query()), alpha=alpha)
        alarms += int((scorer.score(Reference(rng.normal(size=(new, 2))).query()) > calibration.threshold()).sum())
    rate = math.floor(61 * alpha + 1e-9) / 61  # what the ranks allow
    # clips of one repetition share their threshold: Beta spread of a rank in 60, beside the binomial one
    spread = math.sqrt(rate * (1 - rate) * (1 / 62 + 1 / new) / repetitions)
    assert alarms / (repetitions * new) <= alpha + 3 * spread
    assert abs(alarms / (repetitions * new) - rate) < 3.5 * spread


@pytest.mark.parametrize("alpha", [0.1, 0.05])
def test_one_new_clip_a_machine_stays_in_the_binomial_band(alpha):
    """Cross-fitted scores, the deployed scorer fitted on all clips: the whole way that a detector goes."""
    rng = np.random.default_rng(1)
    repetitions, alarms = 200, 0
    for _ in range(repetitions):
        reference = Reference(rng.normal(size=(59, 2)))
        calibration = Calibration(fit_across(Level, reference), alpha=alpha)
        alarms += Level().fit(reference).score(Reference(rng.normal(size=(1, 2))).query())[0] > calibration.threshold()
    low, high = binom.ppf([0.001, 0.999], repetitions, alpha)
    assert low <= alarms <= high


@pytest.mark.parametrize("domain", [None, "source", "target"])
def test_with_domains_the_promise_holds_in_each(domain):
    """Target clips score higher and are few. Without domains most of them alarm; with them 10 % at most."""
    rng = np.random.default_rng(2)
    names = np.array(["source"] * 180 + ["target"] * 19)
    repetitions, new, alarms = 200, 20, 0
    for _ in range(repetitions):
        scores = rng.normal(size=199) + 2.0 * (names == "target")
        calibration = Calibration(scores, alpha=0.1, domain=None if domain is None else names)
        asked = rng.normal(size=new) + 2.0 * (domain != "source")
        raised = asked > calibration.threshold()
        np.testing.assert_array_equal(raised, calibration.p_values(asked) <= 0.1 + 1e-12)
        alarms += int(raised.sum())
    rate = alarms / (repetitions * new)
    if domain is None:
        assert rate > 0.5
    else:
        assert rate <= 0.1 + 3 * math.sqrt(0.09 * (1 / 20 + 1 / new) / repetitions)


def test_a_domain_of_few_clips_is_named_in_the_warning():
    calibration = Calibration(np.arange(100.0), alpha=0.05, domain=["source"] * 90 + ["target"] * 10)
    assert calibration.threshold() == math.inf
    assert "10 normal clips in the smallest domain" in calibration.warning()
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again.domain.tolist() == calibration.domain.tolist()
    with pytest.raises(ScoringError, match="one domain a score"):
        Calibration([1.0, 2.0], domain=["source"])


def test_gamma_rule_is_scipys_fit():
    scores = gamma.rvs(3.0, loc=0.5, scale=2.0, size=400, random_state=0)
    shape, loc, scale = gamma.fit(scores)
    expected = gamma.ppf(0.9, shape, loc=loc, scale=scale)
    assert Calibration(scores).gamma_threshold(0.9) == pytest.approx(expected, rel=1e-3)
    assert Calibration(scores, "gamma", 0.1).threshold() == Calibration(scores).gamma_threshold(0.9)
    assert expected == pytest.approx(gamma.ppf(0.9, 3.0, loc=0.5, scale=2.0), rel=0.1)


@pytest.mark.parametrize(
    "scores",
    [
        np.random.default_rng(0).normal(size=300),  # half of them negative
        -np.random.default_rng(0).gamma(2.0, size=200),  # skewed the other way
        np.random.default_rng(0).gamma(0.3, size=200),  # the likelihood has no maximum
        np.linspace(0.0, 1.0, 50),
        np.array([0.0] * 30 + [1.0]),
        1e9 + np.random.default_rng(0).random(100),
        1e-12 * np.random.default_rng(0).gamma(2.0, size=100),
    ],
)
def test_gamma_rule_lies_among_the_high_scores(scores):
    threshold = Calibration(scores).gamma_threshold(0.9)
    assert np.quantile(scores, 0.6) <= threshold <= scores.max() + np.ptp(scores)
    moved = Calibration(scores * 2.0).gamma_threshold(0.9)
    assert moved == pytest.approx(2.0 * threshold, rel=1e-6)


def test_gamma_rule_on_equal_scores():
    assert Calibration([2.0] * 5).gamma_threshold() == 2.0
    assert Calibration([2.0]).gamma_threshold() == 2.0


def test_survives_json():
    calibration = Calibration(np.random.default_rng(0).normal(size=30), "gamma", 0.07)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    np.testing.assert_array_equal(again.scores, calibration.scores)
    assert (again.method, again.alpha) == ("gamma", 0.07)
    assert again.threshold() == calibration.threshold()
    with pytest.raises(ScoringError, match="fit again"):
        Calibration.from_dict({"format": 1, "scores": [1.0]})
    with pytest.raises(ScoringError, match="format 3"):
        Calibration.from_dict({"format": 3})


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")]])
def test_refuses_what_is_no_score(scores):
    with pytest.raises(ScoringError, match="finite scores"):
        Calibration(scores)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_refuses_what_is_no_rate(alpha):
    with pytest.raises(ScoringError, match="between 0 and 1"):
        Calibration([1.0], alpha=alpha)


def test_a_score_that_is_nan_has_no_p_value():
    with pytest.raises(ScoringError, match="NaN"):
        Calibration([1.0]).p_value(float("nan"))


# ---- the guarantee: beta and beta-binomial laws


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.01])
def test_the_true_rate_has_the_beta_law(alpha):
    """200 detectors, 150 normal clips each; scores are uniform, so the true rate is 1 - threshold, without noise."""
    rng = np.random.default_rng(10)
    rates = [1 - Calibration(rng.random(150), alpha=alpha).threshold() for _ in range(200)]
    assert kstest(rates, beta(*rate_law(150, alpha)).cdf).pvalue > 0.001
    low, high = Calibration(rng.random(150), alpha=alpha).true_rate()
    assert 0.90 < np.mean([low <= rate <= high for rate in rates]) < 0.99


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.01])
def test_false_alarms_of_fresh_clips_lie_in_the_band(alpha):
    """200 repetitions of 150 normal clips and 100 fresh ones: alarms of all are beta-binomial, and so is each count."""
    rng, n, fresh = np.random.default_rng(11), 150, 100
    law = betabinom(fresh, *rate_law(n, alpha))
    counts = np.array(
        [(rng.gumbel(size=fresh) > Calibration(rng.gumbel(size=n), alpha=alpha).threshold()).sum() for _ in range(200)]
    )
    assert abs(counts.mean() - law.mean()) < 3.3 * law.std() / math.sqrt(200)
    inside = (counts >= law.ppf(0.025)) & (counts <= law.ppf(0.975))
    assert inside.mean() >= binom.ppf(0.001, 200, law.cdf(law.ppf(0.975)) - law.cdf(law.ppf(0.025) - 1)) / 200
    # one fresh clip a detector: exactly binomial
    single = sum(rng.gumbel() > Calibration(rng.gumbel(size=n), alpha=alpha).threshold() for _ in range(200))
    low, high = binom.ppf([0.001, 0.999], 200, rate_law(n, alpha)[0] / (n + 1))
    assert low <= single <= high


def test_a_real_scorer_with_cross_fitting_stays_in_the_band():
    """Nearest neighbours fitted on all 100 clips, calibrated on cross-fitted scores: no more than the band allows."""
    rng, fresh, n = np.random.default_rng(12), 30, 100
    alphas = (0.1, 0.05, 0.01)

    def build():
        return Neighbours(NeighboursOptions(metric="euclidean"))

    counts = []
    for _ in range(200):
        reference = Reference(rng.normal(size=(n, 3)))
        calibration = Calibration(fit_across(build, reference))
        new = build().fit(reference).score(Reference(rng.normal(size=(fresh, 3))).query())
        counts.append([int((new > calibration.threshold(alpha)).sum()) for alpha in alphas])
    for alpha, mean in zip(alphas, np.mean(counts, axis=0), strict=True):
        law = betabinom(fresh, *rate_law(n, alpha))
        spread = 3.3 * law.std() / math.sqrt(200)
        assert mean <= law.mean() + spread
        assert mean >= 0.7 * law.mean() - spread  # errs towards fewer alarms, but not far


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.01])
@pytest.mark.parametrize("values", [2, 5, 40])
def test_tied_scores_alarm_no_more_often(alpha, values):
    rng = np.random.default_rng(13)
    rates = []
    for _ in range(200):
        threshold = Calibration(rng.integers(values, size=150), alpha=alpha).threshold()
        rates.append((values - 1 - threshold) / values)  # the chance of a value above it
    a, b = rate_law(150, alpha)
    assert np.mean(rates) <= a / (a + b) + 3.3 * np.std(rates) / math.sqrt(200)
    assert np.mean(np.array(rates) > beta(a, b).ppf(0.975)) <= binom.ppf(0.999, 200, 0.025) / 200


def test_the_range_of_the_true_rate():
    low, high = Calibration(np.arange(60.0), alpha=0.1).true_rate()
    assert (round(low, 3), round(high, 3)) == (0.038, 0.184)
    assert Calibration(np.arange(60.0), alpha=0.01).true_rate() == (0.0, 0.0)
    assert Calibration(np.arange(60.0), "gamma").true_rate() == (0.0, 1.0)
    apart = Calibration(np.arange(60.0), alpha=0.1, domain=["source"] * 45 + ["target"] * 15)
    assert apart.true_rate()[0] == 0.0
    assert apart.true_rate()[1] == pytest.approx(beta.ppf(0.975, *rate_law(15, 0.1)))


@pytest.mark.parametrize("n", [1, 9, 10, 99, 150])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.5])
def test_the_law_counts_the_clips_above_the_threshold(n, alpha):
    a, b = rate_law(n, alpha)
    assert a + b == n + 1
    assert a / (n + 1) <= alpha + 1e-12 < (a + 1) / (n + 1) + 1e-9
    threshold = Calibration(np.arange(float(n)), alpha=alpha).threshold()
    assert a == (0 if math.isinf(threshold) else int((np.arange(n) >= threshold).sum()))


# ---- recording sessions


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.35])
@pytest.mark.parametrize("ties", [False, True])
def test_clips_that_are_sessions_by_themselves_count_as_without(alpha, ties):
    rng = np.random.default_rng(30)
    scores = rng.integers(9, size=47).astype(float) if ties else rng.gumbel(size=47)
    plain = Calibration(scores, alpha=alpha)
    told = Calibration(scores, alpha=alpha, session=[str(number) for number in range(47)])
    asked = np.concatenate([scores, rng.gumbel(size=20)])
    np.testing.assert_array_equal(told.p_values(asked), plain.p_values(asked))
    assert told.threshold() == plain.threshold()
    assert told.true_rate() == plain.true_rate()


@pytest.mark.parametrize("alpha", [0.04, 0.06, 0.1, 0.5])
@pytest.mark.parametrize("domains", [False, True])
def test_alarm_and_p_value_agree_with_sessions_of_any_length(alpha, domains):
    rng = np.random.default_rng(31)
    session = np.repeat(np.arange(25), rng.integers(1, 12, size=25)).astype(str)
    scores = rng.integers(40, size=len(session)) + rng.random(len(session)).round(1)
    domain = np.where(rng.random(len(session)) < 0.5, "source", "target") if domains else None
    calibration = Calibration(scores, alpha=alpha, domain=domain, session=session)
    asked = np.concatenate([scores, scores + 0.05])
    np.testing.assert_array_equal(asked > calibration.threshold(), calibration.p_values(asked) <= alpha + 1e-9)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again.threshold() == calibration.threshold()
    assert again.counts() == calibration.counts()


@pytest.mark.parametrize(("sessions", "alpha"), [(9, 0.1), (19, 0.05), (30, 0.1)])
def test_the_promise_holds_for_clips_of_new_sessions(sessions, alpha):
    """400 repetitions of 6 clips each; what is said of them as if they were independent is not even near."""
    rng, raised = np.random.default_rng(32), []
    names = np.repeat(np.arange(sessions), 6).astype(str)
    for _ in range(400):
        scores = (rng.gumbel(size=(sessions + 5, 1)) + 0.3 * rng.gumbel(size=(sessions + 5, 6))).ravel()
        calibration = Calibration(scores[: 6 * sessions], alpha=alpha, session=names)
        raised.append(np.mean(scores[6 * sessions :] > calibration.threshold()))
    assert np.mean(raised) <= alpha + 3.3 * np.std(raised) / 20
    assert np.mean(raised) > 0.1 * alpha


def test_few_sessions_are_named_in_the_warning():
    names = np.repeat(np.arange(5), 40).astype(str)
    calibration = Calibration(np.arange(200.0), alpha=0.1, session=names)
    assert calibration.threshold() == math.inf
    assert "5 recordings of normal clips cannot promise" in calibration.warning()
    assert Calibration(np.arange(200.0), alpha=0.2, session=names).warning() is None
    with pytest.raises(ScoringError, match="one session a score"):
        Calibration([1.0, 2.0], session=["monday"])


def test_an_offkey_that_knows_no_sessions_refuses_them():
    assert Calibration([1.0, 2.0]).to_dict()["format"] == 1
    assert Calibration([1.0, 2.0], session=["a", "b"]).to_dict()["format"] == 2
