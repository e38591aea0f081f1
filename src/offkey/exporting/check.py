"""Whether an exported detector says what the detector says, on clips that sound like normal ones and on real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offkey.audio.io import AudioError, prepare, read_clip
from offkey.audio.mel import mel_centres
from offkey.detector import Detector
from offkey.ensemble import MEMBERS, Ensemble
from offkey.runtime.exported import Exported
from offkey.types import Batch, Clip, ClipMeta, Condition, Verdict

__all__ = ["LARGEST_DIFFERENCE", "LARGEST_SHIFT", "Check", "check_export", "reference_like"]

LARGEST_DIFFERENCE = 1e-4
"""Of a score, as a share of it or of the deviation of its machine's normal scores, whichever is larger."""
LARGEST_SHIFT = 0.5
"""With 8-bit weights: the median change of a normal score, in deviations of its machine's normal scores."""
_OWN_NOISE = 4.0
"""How many times further than the detector's own scores move when a clip is scored among longer ones."""
_SECONDS = (2.0, 1.1, 3.3)


@dataclass(frozen=True)
class Check:
    """What was found. `clips` compared, `real` of them recordings; `largest` and `median` difference of a score.

    `noise` is how far the detector's own score of a clip moves when longer clips are in its batch and its samples
    change in their last two bits: rounding in float32, which a network that learnt little can make large. Up to four
    times that is allowed where it passes `LARGEST_DIFFERENCE`. Differences are shares as `LARGEST_DIFFERENCE` says
    (with 8-bit weights: of the deviation of normal scores alone);
    `members` tells, with 8-bit weights, the median change of each member's score in an ensemble, in deviations of its
    own normal scores; `alarms_changed` is how many clips changed sides. `auc` and `auc_detector` are the mean over
    machines of the area under the ROC curve, as fractions, where the truth of test clips is at hand.
    """

    clips: int
    real: int
    largest: float
    median: float
    noise: float
    alarms_changed: int
    auc: float | None
    auc_detector: float | None
    int8: bool
    passed: bool
    members: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def told(self) -> str:
        """One sentence for people."""
        unit = "deviations of normal scores" if self.int8 else "of the score"
        text = (
            f"{self.clips} clips ({self.real} recordings): scores differ by at most {self.largest:.2g} {unit}, "
            f"median {self.median:.2g}; {self.alarms_changed} changed sides"
        )
        if self.auc is not None and self.auc_detector is not None:
            change = 100 * (self.auc - self.auc_detector)
            text += f"; AUC {100 * self.auc:.2f} % (detector {100 * self.auc_detector:.2f} %, {change:+.2f} points)"
        return text


def check_export(
    detector: Detector, exported: Exported, clips: Sequence[ClipMeta] = (), int8: bool = False, batch_size: int = 4
) -> Check:
    """Score made-up clips of every machine in batches of unequal lengths, and recordings, with both."""
    pairs: list[tuple[Verdict, Verdict, Condition | None]] = []
    spread = {name: _deviation(known.calibration.scores) for name, known in detector.machines.items()}
    noise = 0.0
    for machine in detector.machines:
        waves = reference_like(detector, machine)
        told = exported.judge(waves, [machine] * len(waves))
        expected = [detector.score(wave, machine=machine) for wave in waves]
        pairs += [(one, other, None) for one, other in zip(expected, told, strict=True)]
        for alone, among in zip(expected, _together(detector, machine, _nudged(waves)), strict=True):
            noise = max(noise, abs(alone.score - among) / max(spread[machine], abs(alone.score)))
        pairs += [(expected[0], exported.judge(waves[:1], [machine])[0], None)]
    made_up = len(pairs)
    for start in range(0, len(clips), batch_size):
        usable: list[tuple[ClipMeta, NDArray[np.float32]]] = []
        for meta in clips[start : start + batch_size]:
            try:
                usable.append((meta, read_clip(meta.path, exported.audio)))
            except AudioError:
                continue  # neither of the two can score it
        if exported.longest is not None:
            usable = [(meta, wave) for meta, wave in usable if len(wave) <= exported.longest]
        if not usable:
            continue
        keys = [exported.key_of(meta) for meta, _ in usable]
        answers = exported.judge([wave for _, wave in usable], keys)
        for (meta, wave), key, answer in zip(usable, keys, answers, strict=True):
            expected_one = detector.score(Clip(wave, exported.audio.rate), machine=key)
            pairs.append((expected_one, answer, meta.condition))
    shares = []
    for mine, theirs, _ in pairs:
        unit = spread[theirs.machine]
        shares.append(abs(theirs.score - mine.score) / (unit if int8 else max(unit, abs(mine.score))))
    largest, median = float(np.max(shares)), float(np.median(shares))
    return Check(
        clips=len(pairs),
        real=len(pairs) - made_up,
        largest=largest,
        median=median,
        noise=noise,
        alarms_changed=sum(expected.is_anomalous != told.is_anomalous for expected, told, _ in pairs),
        auc=_mean_auc([(told, condition) for _, told, condition in pairs]),
        auc_detector=_mean_auc([(expected, condition) for expected, _, condition in pairs]),
        int8=int8,
        passed=median <= LARGEST_SHIFT if int8 else largest <= max(LARGEST_DIFFERENCE, _OWN_NOISE * noise),
        members=_moved(detector, pairs) if int8 and isinstance(detector, Ensemble) else {},
    )


def _moved(detector: Ensemble, pairs: Sequence[tuple[Verdict, Verdict, Condition | None]]) -> dict[str, float]:
    """The median change of each member's score."""
    told = {}
    for name, member in detector.members.items():
        spread = {machine: _deviation(known.calibration.scores) for machine, known in member.machines.items()}
        changes = [abs(theirs.parts[name] - mine.parts[name]) / spread[mine.machine] for mine, theirs, _ in pairs]
        told[name] = float(np.median(changes))
    return told


def _nudged(waves: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The same clips with the last two bits of their samples drawn anew."""
    generator = np.random.default_rng(0)
    return [(wave * (1 + generator.uniform(-(2.0**-22), 2.0**-22, wave.shape))).astype(np.float32) for wave in waves]


def _together(detector: Detector, machine: str, waves: Sequence[NDArray[np.float32]]) -> list[float]:
    """The detector's scores of clips that are scored in one batch; of an ensemble, in one a member."""
    import torch

    if isinstance(detector, Ensemble):  # its members may want their sound at different levels
        parts = [_together(member, machine, waves) for member in detector.members.values()]
        seen = {MEMBERS: np.array(parts).T}
        return detector.machines[machine].judge(detector.config.scoring.scorers, seen)[0].tolist()
    prepared = [detector.reader().prepare(wave, detector.config.audio.rate) for wave in waves]
    lengths = torch.tensor([len(wave) for wave in prepared])
    waveform = torch.zeros(len(prepared), int(lengths.max()))
    for row, wave in zip(waveform, prepared, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    batch = Batch(waveform, lengths, None, torch.zeros_like(lengths))
    views = detector.represent(batch, [machine] * len(prepared))
    return detector.machines[machine].judge(detector.config.scoring.scorers, views)[0].tolist()


def reference_like(detector: Detector, machine: str, seed: int = 0) -> list[NDArray[np.float32]]:
    """Noise with the usual spectrum of a machine's normal clips, three clips (T,) of unequal length."""
    config = detector.config
    generator = np.random.default_rng(seed)
    usual = np.asarray(detector.machines[machine].profile.mean, dtype=np.float64).ravel()[: config.mel.n_mels]
    centres = mel_centres(config.audio.rate, config.mel)
    waves = []
    for seconds in _SECONDS:
        count = int(seconds * config.audio.rate)
        spectrum = np.fft.rfft(generator.standard_normal(count))
        level = np.interp(np.fft.rfftfreq(count, 1 / config.audio.rate), centres, usual)
        wave = np.fft.irfft(spectrum * 10.0 ** (level / 20.0), count)
        wave *= 0.05 / np.sqrt(np.mean(np.square(wave)))
        waves.append(prepare(wave, config.audio.rate, config.audio.model_copy(update={"level_dbfs": None})))
    return waves


def _deviation(scores: NDArray[np.float64]) -> float:
    return float(np.std(scores)) or 1.0


def _mean_auc(told: Sequence[tuple[Verdict, Condition | None]]) -> float | None:
    """Mean over machines of the share of (normal, anomalous) pairs that are in order; None without truth."""
    areas = []
    for machine in dict.fromkeys(verdict.machine for verdict, _ in told):
        normal, odd = (
            np.array([v.score for v, known in told if v.machine == machine and known == condition])
            for condition in (Condition.NORMAL, Condition.ANOMALY)
        )
        if len(normal) and len(odd):
            order = np.sign(odd[:, None] - normal[None, :])
            areas.append(float((order + 1).mean() / 2))
    return float(np.mean(areas)) if areas else None
