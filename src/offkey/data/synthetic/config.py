"""What a simulated data set is made of, and what making it yields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from offkey.types import OffkeyError

__all__ = ["MACHINES", "Range", "SynthConfig", "SynthError", "SynthSummary"]

MACHINES: tuple[str, ...] = ("fan", "gearbox", "bearing", "valve", "slider", "pump")
"""Names of the machines that can be simulated."""

Range = tuple[float, float]


class SynthError(OffkeyError):
    """A data set that cannot be written: the message names the folder and what to do."""


class SynthConfig(BaseModel):
    """Settings of `offkey data synth`; two equal configs give equal bytes.

    Counts are clips a machine. Every range is drawn from uniformly, by the same law for normal and anomalous
    clips, so that nothing but the fault itself tells them apart.

    >>> SynthConfig(machines=("fan",), seconds=6).seconds
    6.0
    >>> SynthConfig(machines=("fann",))
    Traceback (most recent call last):
        ...
    pydantic_core._pydantic_core.ValidationError: ... 'fann' is not one of fan, gearbox, bearing, valve, ...
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    machines: tuple[str, ...] = Field(MACHINES, min_length=1, description="machines to simulate")
    seconds: float | Range = Field(10.0, description="length of a clip, or (shortest, longest)")
    rate: int = Field(16000, ge=8000, le=96000, description="samples a second")
    channels: int = Field(1, ge=1, le=2, description="1, or 2: near and far microphone as in DCASE 2026")
    train_source: int = Field(990, ge=0, description="normal training clips of the source domain")
    train_target: int = Field(10, ge=0, description="normal training clips of the target domain")
    test_per_group: int = Field(50, ge=0, description="test clips in each of source/target × normal/anomaly")
    supplemental: int = Field(100, ge=0, description="extra clips: half clean machine, half noise alone")
    snr_db: Range = Field((0.0, 12.0), description="machine against surroundings at the near microphone, dB")
    level_dbfs: Range = Field((-36.0, -28.0), description="level (RMS) of a finished clip, dBFS")
    severity: Range = Field((0.3, 1.0), description="how bad a fault is: 0 hardly audible, 1 plain")
    hidden_attributes: tuple[str, ...] = Field(
        ("bearing", "slider"), description="machines whose attributes the data set does not tell"
    )
    stems: bool = Field(False, description="also write foreground and background of every test clip")
    seed: int = Field(0, ge=0, lt=2**32, description="all randomness follows from it")
    workers: int = Field(0, ge=0, description="threads; 0 = one a core. Does not change a byte")

    @model_validator(mode="after")
    def _consistent(self) -> SynthConfig:
        for name in (*self.machines, *self.hidden_attributes):
            if name not in MACHINES:
                raise ValueError(f"{name!r} is not one of {', '.join(MACHINES)}")
        if len(set(self.machines)) != len(self.machines):
            raise ValueError("a machine is named twice")
        for name in ("snr_db", "level_dbfs", "severity"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name}: {low} is above {high}")
        if min(self.snr_db[0], self.level_dbfs[0]) < -200.0 or self.snr_db[1] > 200.0:
            raise ValueError("snr_db lies in -200 … 200 dB, level_dbfs above -200 dBFS")
        shortest, longest = self.length_range
        if not 2.0 <= shortest <= longest <= 600.0:
            raise ValueError("seconds: clips last 2 to 600 s, the shortest first")
        if not (self.severity[0] >= 0.0 and self.severity[1] <= 1.0):
            raise ValueError("severity lies in 0 … 1")
        if self.level_dbfs[1] > -15.0:
            raise ValueError("level_dbfs: above -15 dBFS the peaks of impulsive machines would be cut off")
        return self

    @property
    def length_range(self) -> Range:
        """Shortest and longest clip in seconds."""
        return self.seconds if isinstance(self.seconds, tuple) else (self.seconds, self.seconds)


@dataclass(frozen=True, slots=True)
class SynthSummary:
    """What a call of `synthesize` did: `written` new clips, `kept` ones of an earlier run, hours of sound."""

    root: Path
    machines: tuple[str, ...]
    written: int
    kept: int
    clip_seconds: float

    @property
    def files(self) -> int:
        """Clips that the data set holds."""
        return self.written + self.kept
