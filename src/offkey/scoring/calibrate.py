"""From scores to p-values and alarm thresholds, with normal clips alone.

A scorer finds the clips that it was fitted on too ordinary. Calibration therefore rests on cross-fitted
scores: every normal clip is judged by a scorer that has not seen it, nor, where sessions are told, any clip that
was cut from the same recording.

Conformal p-values: V. Vovk, A. Gammerman, G. Shafer, Algorithmic Learning in a Random World, 2005. Their
promise is exact for clips exchangeable with the calibration clips under one fixed scorer. Here the deployed
scorer is fitted on all clips, the fold scorers on a share of them; the promise then holds approximately, and
errs towards fewer alarms, because more reference clips make normal clips look more ordinary.

Clips of one recording session are not exchangeable with those of a new one; sessions are. With sessions told, each
counts as one, its clips for their share of it, and a new session as one that scores higher than all: Y. Lee,
R. F. Barber, R. Willett, Distribution-free inference with hierarchical data, 2023 (also R. Dunn, L. Wasserman,
A. Ramdas, Distribution-free prediction sets for two-layer hierarchical models, JASA 118, 2023).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offkey.scoring.base import Reference, Scorer, ScoringError

__all__ = ["Calibration", "clips_needed", "cross_fit", "folds_of", "independent", "rate_law", "sessions_apart"]

_LEAVE_ONE_OUT = 20  # with so few clips a fold of several would cost the reference too much


def sessions_apart(sessions: Sequence[str] | None) -> list[str] | None:
    """(N,) a name each for what is independent: the session of a clip, or the clip where its session is "".

    None where no session is told at all.

    >>> sessions_apart(["monday", "", "monday", ""])
    ['monday', '/1', 'monday', '/3']
    """
    if sessions is None or not any(sessions):
        return None
    return [session.replace("/", "//") or f"/{place}" for place, session in enumerate(sessions)]


def independent(chosen: NDArray[np.bool_], apart: Sequence[str] | None) -> int:
    """How many of the `chosen` (N,) clips are independent: all, or one for each name in `apart` (N,)."""
    return int(chosen.sum()) if apart is None else len(set(np.asarray(apart)[chosen].tolist()))


def folds_of(
    reference: Reference, folds: int = 5, groups: Sequence[Any] | None = None, seed: int = 0
) -> NDArray[np.int64]:
    """(N,) the fold of each clip, 0 … folds − 1; every fold gets its share of each domain and identity.

    Clips of one group stay together. With at most 20 clips (or groups) each is a fold of its own. Raises
    `ScoringError` where there are fewer than two clips or groups.
    """
    if folds < 2:
        raise ScoringError(f"cross-fitting needs at least 2 folds, not {folds}")
    keys = np.arange(len(reference)) if groups is None else np.asarray(list(groups), dtype=np.str_)
    if keys.shape != (len(reference),):
        raise ScoringError(f"groups must name one group a clip: {len(reference)} clips, {keys.size} groups")
    _, unit = np.unique(keys, return_inverse=True)
    count = int(unit.max()) + 1 if len(unit) else 0
    if count < 2:
        what = "clip" if groups is None else "recording session"
        raise ScoringError(
            f"calibration needs at least 2 normal {what}s, there {'is' if count == 1 else 'are'} {count}; "
            "record more, or score without a threshold"
        )
    if count <= max(folds, _LEAVE_ONE_OUT):
        return unit.astype(np.int64)
    names = [f"{d}/{i}" for d, i in zip(reference.domain.tolist(), reference.identity.tolist(), strict=True)]
    _, stratum = np.unique(names, return_inverse=True)
    table = np.zeros((count, int(stratum.max()) + 1))
    np.add.at(table, (unit, stratum), 1.0)
    # deal groups out, largest first, stratum by stratum, else at random, to the fold that is shortest of it
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    order = order[np.lexsort((table[order].argmax(axis=1), -table[order].sum(axis=1)))]
    rarity = 1.0 / table.sum(axis=0)
    loads = np.zeros((folds, table.shape[1]))
    fold = np.zeros(count, dtype=np.int64)
    for place in order:
        wanted = (loads * (table[place] * rarity)).sum(axis=1)
        shortest = np.lexsort((np.arange(folds), loads.sum(axis=1), wanted))[0]
        fold[place] = shortest
        loads[shortest] += table[place]
    return fold[unit]


def cross_fit(
    build: Callable[[], Scorer],
    reference: Reference,
    folds: int = 5,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """(N,) scores of the normal clips, none judged by a scorer that was fitted on it or on its group.

    `build` makes a fresh, unfitted scorer. Folds are drawn from `seed` and the order of the clips.
    """
    fold = folds_of(reference, folds, groups, seed)
    scores = np.empty(len(reference))
    for number in np.unique(fold):
        held_out = fold == number
        scorer = build().fit(reference.take(~held_out))
        scores[held_out] = scorer.score(reference.take(held_out).query())
    return scores


def clips_needed(alpha: float) -> int:
    """The fewest normal clips that allow a false-alarm rate of `alpha` to be promised.

    >>> clips_needed(0.05)
    19
    """
    return math.ceil(1.0 / _rate(alpha) - 1e-9) - 1


def rate_law(n: int, alpha: float) -> tuple[int, int]:
    """(a, b): with n normal clips the true false-alarm rate of a conformal threshold for `alpha` is Beta(a, b).

    a = n + 1 - ⌈(n+1)(1-α)⌉ is the rank of the threshold from above, b = n + 1 - a. The law is that of one
    draw of calibration clips under a fixed scorer with continuous scores (the rank of an order statistic); where
    scores are tied, the rate is stochastically smaller. Its mean a/(n+1) is at most α. Of M fresh normal clips
    the alarms are then beta-binomial(M, a, b). a = 0: no alarm is ever raised.

    Source: V. Vovk, Conditional validity of inductive conformal predictors, Machine Learning 92, 2013.

    >>> rate_law(60, 0.1)
    (6, 55)
    """
    allowed = n + 1 - math.ceil((n + 1) * (1 - _rate(alpha)) - 1e-9)
    return min(allowed, n), n + 1 - min(allowed, n)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Cross-fitted scores of normal clips, and what follows from them.

    `scores` (n,) are kept sorted and read-only. `alpha` is the wanted share of false alarms; `method` says
    which rule `threshold` applies: "conformal" (a promise at any n) or "gamma" (the challenge's rule).

    The promise holds for clips that come from the domains in the calibration clips' proportions. With `domain`
    (n,) given, it holds within each domain instead: a clip's p-value is the largest that any domain gives it,
    the threshold the highest that any domain asks for, since a new clip's domain is not known. A domain of ten
    clips then allows no rate below 1/11.

    With `session` (n,) given, the name of each clip's recording session, the promise holds for clips of a new session:
    G sessions allow no rate below 1/(G+1), however many clips they have. (The gamma rule knows neither.)

    >>> calibration = Calibration([0.1, 0.4, 0.2, 0.3], alpha=0.2)
    >>> calibration.threshold()
    0.4
    >>> calibration.p_value(0.25)
    0.6
    """

    scores: Any
    method: Literal["conformal", "gamma"] = "conformal"
    alpha: float = 0.1
    domain: Any = None
    session: Any = None

    def __post_init__(self) -> None:
        """Sort and freeze; `ScoringError` on no scores, NaN, or a rate outside (0, 1)."""
        scores = np.array(self.scores, dtype=np.float64).ravel()
        if scores.size == 0 or not np.isfinite(scores).all():
            raise ScoringError(
                "calibration needs the finite scores of at least one normal clip; "
                f"{scores.size} given, {int((~np.isfinite(scores)).sum())} of them not finite"
            )
        if self.method not in ("conformal", "gamma"):
            raise ScoringError(f'calibration method must be "conformal" or "gamma", not {self.method!r}')
        _rate(self.alpha)
        order = np.argsort(scores, kind="stable")
        if self.domain is not None:
            domain = np.asarray(self.domain, dtype=np.str_)
            if domain.shape != scores.shape:
                raise ScoringError(f"calibration needs one domain a score: {scores.shape}, {domain.shape}")
            object.__setattr__(self, "domain", domain[order])
        if self.session is not None:
            session = np.asarray(self.session, dtype=np.str_)
            if session.shape != scores.shape:
                raise ScoringError(f"calibration needs one session a score: {scores.shape}, {session.shape}")
            object.__setattr__(self, "session", session[order])
        scores = scores[order]
        scores.setflags(write=False)
        object.__setattr__(self, "scores", scores)

    def pools(self) -> list[NDArray[np.float64]]:
        """The sorted scores among which a clip is ranked, an array a pool: all, or each domain's."""
        return [self.scores[members] for members in self._members()]

    def weights(self) -> list[NDArray[np.float64]]:
        """What each score of `pools` counts: 1, or the share that a clip is of its session in that pool."""
        if self.session is None:
            return [np.ones(len(pool)) for pool in self.pools()]
        found = []
        for members in self._members():
            _, place, clips = np.unique(self.session[members], return_inverse=True, return_counts=True)
            found.append(1.0 / clips[place])
        return found

    def counts(self) -> list[int]:
        """How many clips a pool has that are independent of each other, or how many sessions."""
        if self.session is None:
            return [len(pool) for pool in self.pools()]
        return [len(set(self.session[members].tolist())) for members in self._members()]

    @property
    def unit(self) -> str:
        """What `counts` counts, in words."""
        return "normal clips" if self.session is None else "recordings of normal clips"

    def _members(self) -> list[NDArray[np.bool_]]:
        if self.domain is None:
            return [np.ones(len(self.scores), dtype=bool)]
        return [self.domain == name for name in sorted(set(self.domain.tolist()))]

    def p_value(self, score: float) -> float:
        """(1 + normal clips that score at least as high) / (n + 1), in (0, 1]; the largest of any domain."""
        return float(self.p_values([score])[0])

    def p_values(self, scores: Any) -> NDArray[np.float64]:
        """(M,) p-values of (M,) scores. `ScoringError` on NaN."""
        asked = np.asarray(scores, dtype=np.float64)
        if np.isnan(asked).any():
            raise ScoringError("a score to calibrate is NaN; leave that clip out")
        found = np.zeros(asked.shape)
        for pool, weights, count in zip(self.pools(), self.weights(), self.counts(), strict=True):
            above = _tails(weights)[np.searchsorted(pool, asked, side="left")]
            found = np.maximum(found, (1.0 + above) / (count + 1.0))
        return found

    def threshold(self, alpha: float | None = None) -> float:
        """The alarm is raised on scores ABOVE this; by `method`, for `alpha` or else the one of the start."""
        rate = _rate(self.alpha if alpha is None else alpha)
        if self.method == "conformal":
            return self.conformal_threshold(rate)
        return self.gamma_threshold(1.0 - rate)

    def conformal_threshold(self, alpha: float) -> float:
        """The ⌈(n+1)(1−α)⌉-th smallest score: clips exchangeable with these pass it with probability ≤ α.

        With sessions, the smallest score above which lie clips worth (G+1)α − 1 sessions at most. Infinity where
        α < 1/(n+1), or 1/(G+1): nothing can be promised then, and no alarm is ever raised (see `warning`).
        """
        highest = -math.inf
        for pool, weights, count in zip(self.pools(), self.weights(), self.counts(), strict=True):
            above = _tails(weights)[np.searchsorted(pool, pool, side="right")]
            fit = np.flatnonzero(above <= (count + 1) * _rate(alpha) - 1 + 1e-9)
            highest = max(highest, float(pool[fit[0]]) if len(fit) else math.inf)
        return highest

    def gamma_threshold(self, q: float = 0.9) -> float:
        """The q-quantile of a gamma distribution fitted to the scores: the challenge's rule with q = 0.9.

        The challenge fits shape, location and scale by maximum likelihood (scipy's `gamma.fit`) to the scores
        of the training clips; here it is fitted to cross-fitted ones. The likelihood has no maximum for some
        samples; then, or where the search ends in a worse place, the location is held at 0, or, where a score
        is ≤ 0 or all are alike within 0.1 %, at 1 % of the range below the smallest one. Equal scores are
        their own threshold.
        """
        from scipy.stats import gamma

        if not 0 < q < 1:
            raise ScoringError(f"the quantile of the gamma rule must lie between 0 and 1, not {q}")
        values = self.scores
        spread = float(values[-1] - values[0])
        if spread <= 1e-12 * max(abs(float(values[0])), abs(float(values[-1]))):
            return float(values[-1])
        unit = (values - values[0]) / spread  # the fit does not depend on the score's unit
        start = float(values[0] / spread)
        held = start if 0 < start < 1e3 else 0.01
        shape, _, scale = gamma.fit(unit + held, floc=0)
        fits = [(float(shape), -held, float(scale))]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            with contextlib.suppress(ValueError, RuntimeError):  # how scipy says that a search failed
                free = gamma.fit(unit)
                fits.append((float(free[0]), float(free[1]), float(free[2])))
            chance = [float(np.sum(gamma.logpdf(unit, a, loc=loc, scale=s))) for a, loc, s in fits]
            found = [float(gamma.ppf(q, a, loc=loc, scale=s)) for a, loc, s in fits]
        best = 1 if len(fits) == 2 and math.isfinite(chance[1]) and chance[1] >= chance[0] else 0
        if not (math.isfinite(found[best]) and 0 < fits[best][2] < math.inf):
            best = 0
        return float(values[0] + spread * found[best])

    def true_rate(self, alpha: float | None = None, share: float = 0.95) -> tuple[float, float]:
        """The range in which the true false-alarm rate lies for a share of detectors calibrated on so many clips.

        Equal tails of `rate_law`; with sessions as of one clip each, which is wider than it need be where clips of one
        session differ among themselves. With `domain` it is a bound for each domain: (0, the highest upper end). The
        gamma rule promises nothing; the range is (0, 1).
        """
        from scipy.special import betaincinv

        rate = _rate(self.alpha if alpha is None else alpha)
        if self.method == "gamma":
            return 0.0, 1.0
        ends = []
        for count in self.counts():
            a, b = rate_law(count, rate)
            tails = ((1 - share) / 2, (1 + share) / 2)
            ends.append(
                (0.0, 0.0) if a == 0 else (float(betaincinv(a, b, tails[0])), float(betaincinv(a, b, tails[1])))
            )
        if math.isinf(self.threshold(rate)):
            return 0.0, 0.0
        return ends[0] if len(ends) == 1 else (0.0, max(high for _, high in ends))

    def warning(self, alpha: float | None = None) -> str | None:
        """What to tell people where too few clips stand behind the wanted rate; None where all is well."""
        rate = _rate(self.alpha if alpha is None else alpha)
        n, needed = min(self.counts()), clips_needed(rate)
        where = "" if self.domain is None else " in the smallest domain"
        if n >= needed or self.method == "gamma":
            return None
        return (
            f"{n} {self.unit}{where} cannot promise a false-alarm rate of {rate:g}: at least {needed} are "
            f"needed, so no clip will raise an alarm. Record more, or ask for a rate of {1 / (n + 1):.3g} or more."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; floats survive exactly."""
        told = {
            "format": 1,
            "method": self.method,
            "alpha": self.alpha,
            "scores": self.scores.tolist(),
            "domain": None if self.domain is None else self.domain.tolist(),
        }
        # an offkey that knows no sessions would find another threshold: it shall refuse the file
        return told if self.session is None else told | {"format": 2, "session": self.session.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """The reverse of `to_dict`; `ScoringError` where the data is not a calibration."""
        try:
            if data["format"] not in (1, 2):
                raise ScoringError(f"calibration of format {data['format']}, this offkey reads 1 and 2; update it")
            return cls(data["scores"], data["method"], float(data["alpha"]), data["domain"], data.get("session"))
        except (KeyError, TypeError, ValueError) as error:
            raise ScoringError(f"this is not a calibration ({error!r}); fit again") from None


def _tails(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n + 1,) how much all from each place on weigh together."""
    return np.append(np.cumsum(weights[::-1])[::-1], 0.0)


def _rate(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ScoringError(f"a false-alarm rate lies between 0 and 1 (0.05 is one clip in twenty), not {alpha}")
    return float(alpha)
