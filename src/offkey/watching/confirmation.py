"""When single alarms become one that people are called for: k alarms in n clips begin it, n quiet clips end it.

How often it begins by mistake, with R the rate at which single normal clips alarm:

- Independent clips: an alarm begins only where the count of alarms in the last n clips climbs from k-1 to k (after an
  alarm has ended, that count is 0, so hysteresis can only merge such climbs). A climb takes an alarm now, none n clips
  ago and k-1 in between: C(n-1, k-1) Rᵏ (1-R)ⁿ⁻ᵏ⁺¹ a clip. R itself is not known but Beta(a, N+1-a) distributed for
  a threshold below a of N normal clips (`offkey.scoring.rate_law`); the mean over that law is what is told here. It
  lies well above the value at the mean of R.
- Whatever the dependence: each alarm has k alarms of its own, so there are at most R/k a clip, a/(N+1)/k on average.
"""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from offkey.scoring import Calibration, FalseAlarms, clips_needed, rate_law
from offkey.scoring.rate import spoken_frequency, spoken_seconds
from offkey.types import OffkeyError

__all__ = ["Confirmation", "Hysteresis", "Terms", "WatchError", "agree"]

_LONGEST = 1000
_RELEASE = 2.0
_MOST_RELEASED = 0.5


class WatchError(OffkeyError):
    """A watch that cannot be kept: a rate that is out of reach, settings or a state that do not fit."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """`needed` alarms among the last `of` clips.

    >>> Confirmation.parse("3/5").begins(0.01)
    5.821...e-06
    """

    needed: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        """`WatchError` unless 1 ≤ needed ≤ of ≤ 1000."""
        if not 1 <= self.needed <= self.of <= _LONGEST:
            raise WatchError(f"{self.needed} alarms of {self.of} clips cannot be: say k/n with 1 ≤ k ≤ n ≤ {_LONGEST}")

    @classmethod
    def parse(cls, text: str) -> Confirmation:
        """Read "3/5"; `WatchError` for anything else."""
        found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
        if found is None:
            raise WatchError(f"{text!r} is no confirmation: say 3/5 for three alarms in the last five clips")
        return cls(int(found[1]), int(found[2]))

    def begins(self, rate: float) -> float:
        """False alarms a clip at most, where each of independent normal clips alarms with probability `rate`."""
        k, n = self.needed, self.of
        return math.comb(n - 1, k - 1) * rate**k * (1 - rate) ** (n - k + 1)

    def expected(self, a: int, b: int) -> float:
        """The mean of `begins` where the rate is Beta(a, b) distributed; 0 for a = 0."""
        from scipy.special import betaln

        if a == 0:
            return 0.0
        k, n = self.needed, self.of
        return float(math.comb(n - 1, k - 1) * math.exp(betaln(a + k, b + n - k + 1) - betaln(a, b)))


@dataclass(frozen=True, slots=True)
class Terms:
    """What a watch of one machine goes by.

    `alpha`: rate of single alarms that the `threshold` is for. `release`: scores at or below it are quiet. Alarms that
    people are called for by mistake, a second: `independent` (mean, if normal clips are independent), `worst` (a bound
    on the mean for any dependence between clips); None for the gamma rule, which promises nothing.
    """

    alpha: float
    threshold: float
    release: float
    independent: float | None
    worst: float | None


def agree(
    calibration: Calibration,
    confirmation: Confirmation,
    every: float,
    wanted: FalseAlarms | None = None,
    worst_case: bool = False,
) -> Terms:
    """Threshold and release for a machine where a clip comes every `every` seconds.

    `wanted`: a share is that of single clips, a frequency that of alarms that people are called for, held under
    independence, or with `worst_case` under any dependence; None keeps the calibration's own rate. The release is the
    threshold of twice the rate, at most of one half.

    Raises WatchError where no alarm could ever be raised: a watch that is deaf must not look like one that is not.
    """
    if wanted is None:
        alpha = calibration.alpha
    elif wanted.per_second is None:
        alpha = wanted.share_of(every)
    else:
        alpha = _solve(calibration, confirmation, every, wanted.per_second, worst_case)
    threshold = calibration.threshold(alpha)
    if not math.isfinite(threshold):
        smallest = min(calibration.counts())
        needed = clips_needed(alpha)
        raise WatchError(
            f"no alarm could ever be raised: a rate of {alpha:.3g} takes {needed} {calibration.unit}"
            f"{_lasting(needed * every, calibration)}, and there are {smallest}. Record more, or ask for "
            f"{1 / (smallest + 1):.3g} or more (--false-alarms)"
        )
    release = min(threshold, calibration.threshold(min(_RELEASE * alpha, _MOST_RELEASED)))
    if calibration.method == "gamma":
        return Terms(alpha, threshold, release, None, None)
    told = [_told(count, alpha, confirmation) for count in calibration.counts()]
    return Terms(alpha, threshold, release, max(i for i, _ in told) / every, max(w for _, w in told) / every)


def _told(n: int, alpha: float, confirmation: Confirmation) -> tuple[float, float]:
    """False alarms a clip: under independence, and at worst."""
    a, b = rate_law(n, alpha)
    return confirmation.expected(a, b), a / (a + b) / confirmation.needed


def _solve(
    calibration: Calibration, confirmation: Confirmation, every: float, per_second: float, worst_case: bool
) -> float:
    """The highest rate of single alarms that keeps alarms to `per_second`; WatchError where there is none."""
    wanted = per_second * every
    if calibration.method == "gamma":
        return _bisect(confirmation, wanted, worst_case)
    rates = []
    for n in calibration.counts():
        allowed = 0
        # up to one half: beyond, alarms are so dense that they merge, and their number falls again
        while allowed < (n + 1) // 2 and _kept(n, allowed + 1, confirmation, worst_case) <= wanted:
            allowed += 1
        if allowed == 0:
            raise WatchError(_unreachable(n, confirmation, every, per_second, worst_case, calibration))
        rates.append((allowed / (n + 1), n))
    return min(rates)[0]


def _kept(n: int, allowed: int, confirmation: Confirmation, worst_case: bool) -> float:
    """False alarms a clip with a threshold below `allowed` of n normal clips."""
    return allowed / (n + 1) / confirmation.needed if worst_case else confirmation.expected(allowed, n + 1 - allowed)


def _bisect(confirmation: Confirmation, wanted: float, worst_case: bool) -> float:
    low, high = 0.0, confirmation.needed / (confirmation.of + 1)
    for _ in range(200):
        middle = (low + high) / 2
        found = middle / confirmation.needed if worst_case else confirmation.begins(middle)
        low, high = (middle, high) if found <= wanted else (low, middle)
    if low <= 0:
        raise WatchError("this rate of false alarms is too low for any threshold")
    return low


def _unreachable(
    n: int, confirmation: Confirmation, every: float, per_second: float, worst_case: bool, calibration: Calibration
) -> str:
    needed = n
    while _kept(needed, 1, confirmation, worst_case) > per_second * every:
        needed *= 2
    low = max(needed // 2, 1)
    while needed - low > 1:
        middle = (low + needed) // 2
        low, needed = (
            (middle, needed) if _kept(middle, 1, confirmation, worst_case) > per_second * every else (low, middle)
        )
    best = _kept(n, 1, confirmation, worst_case) / every
    where = " in the smallest domain" if calibration.domain is not None else ""
    more = "" if confirmation.needed > 2 else " ask for several alarms in a row (--confirm 3/5),"
    return (
        f"no alarm could ever be raised: {spoken_frequency(per_second)} with a clip every {spoken_seconds(every)} and "
        f"{confirmation.needed} of {confirmation.of} clips takes {needed} {calibration.unit}{where}"
        f"{_lasting(needed * every, calibration)}, and there are {n}. Within reach is {spoken_frequency(best)}. "
        f"Record more,{more} or ask for that (--false-alarms)"
    )


def _lasting(seconds: float, calibration: Calibration) -> str:
    """How long so many clips last; of recordings nobody knows it."""
    return f" ({spoken_seconds(seconds)})" if calibration.session is None else ""


class Hysteresis:
    """Follows the scores of one machine: an alarm begins with k alarms in the last n clips, and ends with n quiet ones.

    >>> scores = [0.0, 3.0, 3.0, 1.5, 0.0, 0.0]
    >>> watch = Hysteresis(Confirmation(2, 2), threshold=2.0, release=1.0)
    >>> [watch.step(score) for score in scores]
    [None, None, 'begin', None, None, 'end']
    """

    def __init__(self, confirmation: Confirmation, threshold: float, release: float) -> None:
        if release > threshold:
            raise WatchError(f"an alarm ends below its threshold: release {release:g} is above {threshold:g}")
        self.confirmation, self.threshold, self.release = confirmation, threshold, release
        self.on = False
        self.quiet = 0
        self._last: deque[bool] = deque(maxlen=confirmation.of)

    def step(self, score: float) -> Literal["begin", "end"] | None:
        """Take the next clip's score; whether an alarm begins or ends with it."""
        self._last.append(score > self.threshold)
        self.quiet = self.quiet + 1 if score <= self.release else 0
        if not self.on and sum(self._last) >= self.confirmation.needed:
            self.on = True
            return "begin"
        if self.on and self.quiet >= self.confirmation.of:
            self.on = False
            return "end"
        return None

    def state(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"on": self.on, "quiet": self.quiet, "last": list(self._last)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.on, self.quiet = bool(state["on"]), int(state["quiet"])
        self._last = deque((bool(one) for one in state["last"]), maxlen=self.confirmation.of)
