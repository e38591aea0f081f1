"""Do normal scores move? A conformal test martingale on the clips that raise no alarm.

Every clip that raises no alarm, outside alarms, gets a p-value among those before it and the calibration clips below
the threshold, ties broken at random. As long as they are exchangeable (nothing has moved) these p-values are
independent and uniform, exactly, although the threshold was read off the same calibration clips: below an order
statistic the others are a plain sample of what lies below it. Each p-value is bet against low ones, 1 + ε(½ - p), and
the bets are added up as in a Shiryaev-Roberts test: S ← (S + 1)·bet, averaged over four ε. S minus the number of clips
is then a martingale, so the mean number of clips until S reaches c is at least c: one false warning in c clips, on
average, at most.

Why this one: it needs no model of the scores and no window, its false warnings are a frequency that people can set as
they set alarms, slow shifts and jumps are both found, and single strange clips, of which none counts more than twice,
cannot set it off. Clips above the threshold are left out altogether. It looks upwards only: scores that sink cause no
false alarms, and the deployed scorer, fitted on a few more clips than the cross-fitted ones, finds all clips slightly
less strange.

Sources: V. Vovk, I. Nouretdinov, A. Gammerman, Testing exchangeability on-line, ICML 2003; V. Vovk et al., Retrain or
not retrain: conformal test martingales for change-point detection, COPA 2021; the Shiryaev-Roberts bound: M. Pollak,
Optimal detection of a change in distribution, Annals of Statistics 13, 1985.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from offkey.watching.confirmation import WatchError

__all__ = ["DriftMonitor"]

_BETS = (0.5, 1.0, 1.5, 1.9)
_BAG = 10_000
_RECENT = 20
_FEWEST = 10
_SILENT = 30


class DriftMonitor:
    """Warns where the scores of clips without an alarm move up; a false one in `clips_between` clips at most.

    `reference` (n,) are the scores behind the threshold; those below `threshold` are what is ordinary. At most 10,000
    scores are kept: beyond that, a random sample of all that came (p-values are then uniform but for 1 %). After a
    warning the next one comes after `clips_between`/30 clips at the earliest.
    """

    def __init__(self, reference: ArrayLike, threshold: float, clips_between: float, seed: int = 0) -> None:
        scores = np.asarray(reference, dtype=np.float64).ravel()
        if not clips_between > 1:
            raise WatchError(f"a drift warning in {clips_between:g} clips is more than there are clips; ask for fewer")
        self.threshold, self.clips_between = threshold, clips_between
        self._bag: list[float] = sorted(scores[scores < threshold].tolist())
        self._seen = len(self._bag)
        self._rng = np.random.default_rng(seed)
        self._sums = [0.0] * len(_BETS)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._silent = 0

    @property
    def works(self) -> bool:
        """Whether there are enough calibration clips below the threshold to compare with."""
        return self._seen >= _FEWEST

    @property
    def evidence(self) -> float:
        """S; a warning is given where it reaches `clips_between`."""
        return sum(self._sums) / len(self._sums)

    @property
    def median(self) -> float:
        """Median p-value of the last 20 clips that counted, about 0.5 where nothing moves; NaN before the first."""
        return float(np.median(self._recent)) if self._recent else float("nan")

    def step(self, score: float) -> bool:
        """Take the score of a clip outside alarms; True where a warning is due. Above the threshold none counts."""
        if score > self.threshold or not self.works:
            return False
        p = self._p_value(score)
        self._recent.append(p)
        self._sums = [(sum_ + 1.0) * (1.0 + bet * (0.5 - p)) for sum_, bet in zip(self._sums, _BETS, strict=True)]
        self._silent = max(0, self._silent - 1)
        if self.evidence < self.clips_between:
            return False
        self._sums = [0.0] * len(_BETS)
        if self._silent:
            return False
        self._silent = int(self.clips_between / _SILENT)
        return True

    def _p_value(self, score: float) -> float:
        low, high = bisect_left(self._bag, score), bisect_right(self._bag, score)
        u = float(self._rng.random())
        p = (len(self._bag) - high + u * (high - low + 1)) / (len(self._bag) + 1)
        self._seen += 1
        if len(self._bag) >= _BAG:
            place = int(
                self._rng.integers(self._seen)
            )  # reservoir sampling: each score stays with probability bag/seen
            if place >= _BAG:
                return p
            del self._bag[place]
        insort(self._bag, score)
        return p

    def state(self) -> dict[str, Any]:
        """Plain data for JSON; a monitor that goes on from it does what this one would have done."""
        return {
            "bag": self._bag,
            "seen": self._seen,
            "sums": self._sums,
            "recent": list(self._recent),
            "silent": self._silent,
            "random": self._rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._bag = [float(score) for score in state["bag"]]
        self._seen, self._silent = int(state["seen"]), int(state["silent"])
        self._sums = [float(one) for one in state["sums"]]
        self._recent = deque((float(p) for p in state["recent"]), maxlen=_RECENT)
        self._rng.bit_generator.state = state["random"]
