"""The wanted rate of false alarms, put into the calibrations of a detector, and said in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from offkey.scoring.calibrate import Calibration, clips_needed
from offkey.scoring.rate import FalseAlarms, spoken_frequency, spoken_seconds
from offkey.types import OffkeyError

if TYPE_CHECKING:
    from offkey.detector import MachineDetector

__all__ = ["clip_seconds", "shortfall", "with_rate"]


def clip_seconds(known: MachineDetector) -> float | None:
    """Median length in seconds of the reference clips; None where none was kept."""
    spectra = known.profile.spectra
    if not len(spectra):
        return None
    import numpy as np

    return float(np.median(spectra.seconds))


def with_rate(
    machines: Mapping[str, MachineDetector], wanted: FalseAlarms, clip_every: float | None = None
) -> tuple[dict[str, MachineDetector], list[str]]:
    """The machines with calibrations for `wanted`, which holds for each of them; and what people should know of it.

    `clip_every`: seconds from one clip to the next; by default clips as long as the reference's follow each other
    without a gap. Raises OffkeyError where a frequency is asked for and nobody knows how often clips come.
    """
    made, told = {}, []
    for name, known in machines.items():
        every = clip_every or clip_seconds(known)
        if every is None and wanted.share is None:
            raise OffkeyError(
                f"{name}: how often do clips come? Say it (--clip-every 10s), for the detector does not know"
            )
        alpha = wanted.share_of(every or 1.0)
        made[name] = replace(known, calibration=replace(known.calibration, alpha=alpha))
        if wanted.per_second is not None:
            told.append(
                f"{name}: {spoken_frequency(wanted.per_second)}, with a clip every {spoken_seconds(every or 1.0)}, is "
                f"a false-alarm rate of {alpha:.3g}"
            )
        missing = shortfall(made[name].calibration, every)
        told += [f"{name}: {missing}"] if missing else []
    return made, told


def shortfall(calibration: Calibration, every: float | None = None) -> str | None:
    """What is missing where too few normal clips stand behind the rate, and what is reachable; None where all is well.

    `every`: seconds from one clip to the next.
    """
    if calibration.method == "gamma" or math.isfinite(calibration.threshold()):
        return None
    smallest = min(calibration.counts())
    needed, best = clips_needed(calibration.alpha), 1 / (smallest + 1)
    where = "" if calibration.domain is None else " in the smallest domain"
    # how long a recording is, nobody knows here
    time = f" ({spoken_seconds(needed * every)} of normal recordings)" if every and calibration.session is None else ""
    often = f", {spoken_frequency(best / every)}" if every else ""
    return (
        f"no clip will raise an alarm: this rate takes {needed} {calibration.unit}{where}{time}, and there are "
        f"{smallest}. The lowest rate within reach is {best:.3g}{often}. Record more, ask for that, or let "
        "`offkey watch --confirm 3/5` ask for several alarms in a row"
    )
