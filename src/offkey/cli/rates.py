"""Options that set a rate of false alarms, alike in every command that has one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from offkey.types import OffkeyError

if TYPE_CHECKING:
    from offkey.scoring import FalseAlarms

__all__ = ["ClipEveryOption", "FalseAlarmsOption", "asked_rate", "clips_every", "false_alarms_of"]

FalseAlarmsOption = Annotated[
    str | None,
    typer.Option(
        "--false-alarms",
        metavar="RATE",
        help="False alarms that are allowed, a machine: a share of clips (0.05, 5%) or a frequency (1/week, 2/day).",
    ),
]
ClipEveryOption = Annotated[
    str | None,
    typer.Option(
        "--clip-every",
        metavar="TIME",
        help="How often clips come (10s, 5min), for a frequency; by default back to back, as long as the normal ones.",
    ),
]


def false_alarms_of(text: str | None) -> FalseAlarms | None:
    """The wanted rate; None where none was given."""
    if text is None:
        return None
    from offkey.scoring import FalseAlarms

    return FalseAlarms.parse(text)


def clips_every(text: str | None) -> float | None:
    """Seconds; None where none were given."""
    from offkey.scoring.rate import seconds_of

    return None if text is None else seconds_of(text)


def asked_rate(false_alarms: str | None, clip_every: str | None) -> tuple[FalseAlarms | None, float | None]:
    """Both options where the second one has no other use; raises OffkeyError where it stands alone."""
    if false_alarms is None and clip_every is not None:
        raise OffkeyError("--clip-every tells how often clips come, for a frequency; give --false-alarms with it")
    return false_alarms_of(false_alarms), clips_every(clip_every)
