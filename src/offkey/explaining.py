"""Where a clip departs from normal: its log-mel spectrogram against that of the machine's normal clips.

The first kind of explanation, the same for every system: it looks at the sound, not at the scorer. A band and a moment
count as strange when their level lies far from what normal clips have in that band, in units of its usual spread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offkey.audio.mel import LogMel, mel_centres
from offkey.types import Batch

__all__ = ["Explanation", "Profile", "ProfileBuilder", "draw", "explain_waveform", "profile_of"]

_SMOOTH_SECONDS = 0.1
_REGION_SHARE = 0.5  # a region is what reaches half of its strangest place
_SMALLEST_SPREAD_DB = 1.0


@dataclass(frozen=True, eq=False)
class Profile:
    """What is normal in each mel band: `mean` and `spread` (M,) in dB over the frames of all normal clips."""

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Explanation:
    """`deviation` (M, F) in units of each band's spread, `decibels` (M, F) above normal; the strangest region.

    `start`, `end` in seconds, `low`, `high` in hertz; `difference` is the region's mean in dB above normal (negative:
    something is missing); `text` says it in words.
    """

    deviation: NDArray[np.float32]
    decibels: NDArray[np.float32]
    start: float
    end: float
    low: float
    high: float
    difference: float
    text: str


class ProfileBuilder:
    """Adds up normal clips, a batch at a time, to a `Profile` a machine."""

    def __init__(self, mel: LogMel) -> None:
        self.mel = mel
        self._sums: dict[str, list[NDArray[np.float64]]] = {}

    def add(self, machines: Iterable[str], batch: Batch) -> None:
        """Count a batch whose clips belong to `machines` (B names)."""
        levels = self.mel(batch.waveform, batch.lengths).double().numpy()
        for name, level, frames in zip(machines, levels, self.mel.frames(batch.lengths).tolist(), strict=True):
            own = level[:, :frames]
            sums = self._sums.setdefault(name, [np.zeros(len(own)), np.zeros(len(own)), np.zeros(1)])
            sums[0] += own.sum(axis=1)
            sums[1] += np.square(own).sum(axis=1)
            sums[2] += frames

    def profiles(self) -> dict[str, Profile]:
        """The profile of every machine that was counted."""
        return {name: profile_of(*sums) for name, sums in self._sums.items()}


def profile_of(total: NDArray[np.float64], squares: NDArray[np.float64], count: NDArray[np.float64]) -> Profile:
    """A profile from sums (M,) and sums of squares (M,) over `count` (1,) frames."""
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return Profile(mean.astype(np.float32), np.maximum(spread, _SMALLEST_SPREAD_DB).astype(np.float32))


def explain_waveform(
    waveform: NDArray[np.float32], mel: LogMel, profile: Profile, levelled: bool = False
) -> Explanation:
    """Find the strangest region of a mono clip (T,) at the model's rate.

    `levelled`: clips are brought to one level before they are judged. A loud fault then pushes everything else down,
    so the median difference, over all bands and frames, is taken off first.
    """
    import torch
    from scipy import ndimage

    level = mel(torch.from_numpy(np.array(waveform, dtype=np.float32))[None])[0].numpy()
    decibels = level - profile.mean[:, None]
    if levelled:
        decibels -= np.median(decibels)
    frame = mel.config.hop / mel.rate
    # single frames of noise fluctuate by several dB: look at what lasts
    width = max(1, round(_SMOOTH_SECONDS / frame))
    deviation = ndimage.uniform_filter(decibels / profile.spread[:, None], size=(3, width), mode="nearest")
    strength = np.abs(deviation)
    peak = np.unravel_index(int(strength.argmax()), strength.shape)
    same_sign = np.sign(deviation) == np.sign(deviation[peak])
    regions, _ = ndimage.label((strength >= _REGION_SHARE * strength[peak]) & same_sign)
    inside = regions == regions[peak]
    bands, frames = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    centres = mel_centres(mel.rate, mel.config)
    start, end = frames[0] * frame, min((frames[-1] + 1) * frame, len(waveform) / mel.rate)
    low, high = float(centres[bands[0]]), float(centres[bands[-1]])
    difference = float(decibels[inside].mean())
    return Explanation(
        deviation.astype(np.float32), decibels.astype(np.float32), float(start), float(end), low, high, difference,
        _sentence(float(start), float(end), low, high, difference, len(waveform) / mel.rate),
    )  # fmt: skip


def _sentence(start: float, end: float, low: float, high: float, difference: float, length: float) -> str:
    when = "all the time" if end - start > 0.8 * length else f"{start:.1f}–{end:.1f} s"
    side = "above" if difference >= 0 else "below"
    return f"{when}, {_hertz(low)}–{_hertz(high)}: {abs(difference):.0f} dB {side} normal"


def _hertz(value: float) -> str:
    return f"{value / 1000:.1f} kHz" if value >= 1000 else f"{value:.0f} Hz"


def draw(explanation: Explanation, mel: LogMel, title: str, out: Path) -> Path:
    """A PNG: dB above normal over time and frequency, the strangest region framed."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from offkey.files import write_whole

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    frames = explanation.decibels.shape[1]
    centres = mel_centres(mel.rate, mel.config)
    seconds = np.arange(frames + 1) * mel.config.hop / mel.rate
    edges = np.concatenate([[max(centres[0] - 15.0, 0.0)], (centres[1:] + centres[:-1]) / 2, [mel.rate / 2]])
    mesh = axes.pcolormesh(
        seconds, edges / 1000, explanation.decibels, cmap="RdBu_r", vmin=-20, vmax=20, rasterized=True
    )
    corner = (explanation.start, explanation.low / 1000)
    size = (explanation.end - explanation.start, (explanation.high - explanation.low) / 1000)
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor="black", linewidth=1.8))
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_yticks([0, 0.5, 1, 2, 4, 8], ["0", "0.5", "1", "2", "4", "8"])
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)", ylim=(0, mel.rate / 2000))
    axes.set_title(f"{title}\n{explanation.text}", loc="left", fontsize=10)
    figure.colorbar(mesh, ax=axes, label="dB above normal")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return write_whole(out, picture.getvalue())
