"""How many false alarms people want: a share of clips ("5%"), or a frequency ("1/week") and how often clips come."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from offkey.scoring.base import ScoringError

__all__ = ["FalseAlarms", "seconds_of", "spoken_frequency", "spoken_seconds"]

_YEAR = 365.25 * 86400.0
_UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400.0),
    **dict.fromkeys(("month", "months"), _YEAR / 12),
    **dict.fromkeys(("y", "year", "years"), _YEAR),
}
_NUMBER = r"(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)"
_SPOKEN = (("hour", 3600.0), ("day", 86400.0), ("week", 604800.0), ("month", _YEAR / 12), ("year", _YEAR))


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """Wanted false alarms: `share` of clips in (0, 1), or `per_second`; the other one is None.

    >>> FalseAlarms.parse("5%").share
    0.05
    >>> round(FalseAlarms.parse("1/day").share_of(60.0), 6)
    0.000694
    """

    share: float | None = None
    per_second: float | None = None

    def __post_init__(self) -> None:
        """`ScoringError` unless one of the two is given, and is a rate."""
        if (self.share is None) == (self.per_second is None):
            raise ScoringError("false alarms are told as a share of clips or as a frequency, one of the two")
        if self.share is not None and not 0 < self.share < 1:
            raise ScoringError(
                f"a share of false alarms lies between 0 and 1 (0.05 or 5% is one clip in twenty), not {self.share:g}"
            )
        if self.per_second is not None and not 0 < self.per_second < math.inf:
            raise ScoringError(f"a frequency of false alarms is more than 0, not {self.per_second:g} a second")

    @classmethod
    def parse(cls, text: str) -> FalseAlarms:
        """Read "0.05", "5%", "1/week", "2/day", "3 per month"; `ScoringError` for anything else."""
        asked = text.strip().lower()
        if found := re.fullmatch(rf"{_NUMBER}\s*(%?)", asked):
            return cls(share=float(found[1]) / (100.0 if found[2] else 1.0))
        found = re.fullmatch(rf"{_NUMBER}\s*(?:/|per|a)\s*({'|'.join(_UNITS)})", asked)
        if found is None:
            raise ScoringError(
                f"{text!r} is no rate of false alarms: give a share (0.05 or 5%) or a frequency (1/week, 2/day)"
            )
        return cls(per_second=float(found[1]) / _UNITS[found[2]])

    def share_of(self, every: float) -> float:
        """The share of clips that may alarm where a clip comes every `every` seconds.

        `ScoringError` where the frequency lets every clip alarm.
        """
        if self.per_second is None:
            return float(self.share or 0.0)
        share = self.per_second * every
        if not 0 < share < 1:
            raise ScoringError(
                f"{spoken_frequency(self.per_second)} is no fewer than there are clips (one every "
                f"{spoken_seconds(every)}); ask for fewer false alarms"
            )
        return share


def seconds_of(text: str) -> float:
    """Seconds of "10s", "5min", "0.5 h" or a plain number of seconds; `ScoringError` for anything else.

    >>> seconds_of("5min")
    300.0
    """
    found = re.fullmatch(rf"{_NUMBER}\s*([a-z]*)", text.strip().lower())
    if found is None or (found[2] and found[2] not in _UNITS) or not 0 < float(found[1]) < math.inf:
        raise ScoringError(f"{text!r} is no length of time: give seconds (10) or a number and a unit (10s, 5min, 1h)")
    return float(found[1]) * _UNITS[found[2] or "s"]


def spoken_frequency(per_second: float) -> str:
    """A frequency in the shortest unit, from an hour on, in which it is at least 1.

    >>> spoken_frequency(3 / 86400)
    '3 a day'
    >>> spoken_frequency(1 / (10 * 365.25 * 86400))
    'one in 10 years'
    """
    if per_second <= 0:
        return "none"
    if per_second * _YEAR < 0.995:
        return f"one in {1 / (per_second * _YEAR):.3g} years"
    name, seconds = next(unit for unit in _SPOKEN if per_second * unit[1] >= 0.995)
    return f"{per_second * seconds:.3g} {'an' if name == 'hour' else 'a'} {name}"


def spoken_seconds(seconds: float) -> str:
    """A length of time for people: seconds, minutes, hours or days.

    >>> spoken_seconds(7200.0)
    '2 hours'
    """
    for name, length in (("days", 2 * 86400.0), ("hours", 7200.0), ("minutes", 120.0)):
        if seconds >= length:
            return f"{seconds / _UNITS[name]:.3g} {name}"
    return f"{seconds:.3g} s"
