"""What a detector keeps of normal clips so that a strange one can be compared with them: no audio, a few kB a clip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offkey.audio.mel import LogMel
from offkey.explaining.patches import PatchBank, PatchBankBuilder
from offkey.types import Batch, OffkeyError

__all__ = [
    "KNOTS",
    "REACHES",
    "STRETCHES",
    "Profile",
    "ProfileBuilder",
    "ProfileError",
    "Reach",
    "Spectra",
    "lasting",
    "local",
    "rows_of",
    "stretches",
]

STRETCHES = 16
"""Columns of the coarse spectrogram that is kept of each normal clip."""

KNOTS = np.linspace(-3.0, 3.0, 13)
"""Normal scores at which `Spectra.fluctuation` is kept."""

REACHES = (0.1, 0.3, 1.0)
"""Seconds for which `Reach` tells how far normal clips go: a click, a rub, a phase of the machine's work."""

_SMOOTH_SECONDS = REACHES[0]  # single frames of noise fluctuate by several dB: look at what lasts
_SAME_DB = 0.1  # what float16, and the clips beside it in a batch, do to a clip's coarse spectrogram
_SMALLEST_SPREAD_DB = 1.0
_SMALLEST_ERROR = 1e-6
_BINS = np.linspace(-60.0, 60.0, 481)


class ProfileError(OffkeyError):
    """A clip of which no spectrum can be kept."""


@dataclass(frozen=True, eq=False)
class Spectra:
    """Coarse log-mel spectrograms of normal clips: `levels` (N, M, 16) float16 in dB, `seconds` (N,) float32.

    A column is the mean over a sixteenth of its clip. Rows stand in the order of the detector's reference clips.
    128 bands take 4 kB a clip. `fluctuation` (M, 13) float32: how many dB a normal clip is, for a tenth of a second,
    above its own median in each band: quantiles over all clips, at the normal scores `KNOTS`.
    """

    levels: NDArray[np.float16]
    seconds: NDArray[np.float32]
    fluctuation: NDArray[np.float32]

    def __len__(self) -> int:
        """How many clips there are."""
        return len(self.levels)


@dataclass(frozen=True, eq=False)
class Reach:
    """How far normal clips go for a while: `highest`, `lowest` (N, M, 3) float16, rows as in `Spectra`.

    The most and the least that each clip stands above its own median in each band, in dB, for the seconds in `REACHES`.
    128 bands take 1.5 kB a clip.
    """

    highest: NDArray[np.float16]
    lowest: NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Profile:
    """What is normal in each mel band: `mean` and `spread` (M,) in dB over the frames of all normal clips.

    `spectra` are the clips one by one. `frame_error` (3,) is what is normal of a model's reconstruction error: its mean
    over all frames, the standard deviation of the clips' own means, and that of frames within their clip; None where
    nothing is reconstructed. `band_error` (M, 2) is mean and standard deviation of the error's natural logarithm in
    each band; None where a model does not rebuild bands. `patches` are normal ones of an encoder, None where there are
    none. `reach` is None in detectors of older versions.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    spectra: Spectra
    frame_error: NDArray[np.float32] | None = None
    band_error: NDArray[np.float32] | None = None
    patches: PatchBank | None = None
    reach: Reach | None = None

    def of_clips(self, rows: NDArray[np.int64]) -> Profile:
        """The same of each band, but the clips at these `rows` alone, in their order."""
        spectra = replace(self.spectra, levels=self.spectra.levels[rows], seconds=self.spectra.seconds[rows])
        reach = None if self.reach is None else Reach(self.reach.highest[rows], self.reach.lowest[rows])
        return replace(self, spectra=spectra, reach=reach)


class ProfileBuilder:
    """Adds up normal clips, a batch at a time, to a `Profile` a machine.

    The spectra of a machine stand in the order of `Batch.place`. `names` by place are what errors call the clips.
    """

    def __init__(self, mel: LogMel, names: Sequence[str] = ()) -> None:
        self.mel = mel
        self.names = names
        self._sums: dict[str, list[NDArray[np.float64]]] = {}
        self._clips: dict[str, list[tuple[int, NDArray[np.float16], float, NDArray[np.float16]]]] = {}
        self._errors: dict[str, list[tuple[int, float, float]]] = {}
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._bands: dict[str, NDArray[np.float64]] = {}
        self._patches: dict[str, PatchBankBuilder] = {}

    def add(
        self,
        machines: Iterable[str],
        batch: Batch,
        errors: Sequence[NDArray[np.float32]] | None = None,
        error_maps: Sequence[NDArray[np.float32]] | None = None,
        patches: Sequence[NDArray[np.float32]] | None = None,
    ) -> None:
        """Count a batch whose clips belong to `machines` (B names).

        `errors` are B arrays, the model's error in each of a clip's own frames; `error_maps` the same by mel band,
        (M, F_b); `patches` an encoder's, (Pt_b, Pf, D).

        Raises ProfileError, and counts nothing, where the spectrum of a clip holds NaN or infinity.
        """
        names = list(machines)
        levels = self.mel(batch.waveform, batch.lengths).double().numpy()
        counts = self.mel.frames(batch.lengths).tolist()
        seconds = (batch.lengths.double() / self.mel.rate).tolist()
        places = batch.place.tolist()
        for row, place in enumerate(places):
            if not np.isfinite(levels[row, :, : counts[row]]).all():
                called = self.names[place] if place < len(self.names) else f"clip {place} of {names[row]}"
                raise ProfileError(
                    f"{called}: its spectrum holds NaN or infinity, so nothing normal can be told from it; leave the "
                    "recording out, or save it again with samples between -1 and 1"
                )
        for row, (name, place) in enumerate(zip(names, places, strict=True)):
            own = levels[row, :, : counts[row]]
            sums = self._sums.setdefault(name, [np.zeros(len(own)), np.zeros(len(own)), np.zeros(1)])
            sums[0] += own.sum(axis=1)
            sums[1] += np.square(own).sum(axis=1)
            sums[2] += counts[row]
            frame = self.mel.config.hop / self.mel.rate
            reached = lasting(own, frame)
            ends = np.stack([reached.max(axis=2).T, reached.min(axis=2).T]).astype(np.float16)
            self._clips.setdefault(name, []).append((place, stretches(own).astype(np.float16), seconds[row], ends))
            self._count(name, reached[0])
            if errors is not None:
                mine = errors[row].astype(np.float64)
                self._errors.setdefault(name, []).append((len(mine), float(mine.mean()), float(mine.var())))
            if error_maps is not None:
                told = np.log(np.maximum(error_maps[row].astype(np.float64), _SMALLEST_ERROR))
                added = np.stack([told.sum(axis=1), np.square(told).sum(axis=1), np.full(len(told), told.shape[1])])
                self._bands[name] = self._bands.get(name, np.zeros(())) + added
            if patches is not None:
                self._patches.setdefault(name, PatchBankBuilder()).add(place, patches[row])

    def profiles(self) -> dict[str, Profile]:
        """The profile of every machine that was counted."""
        made = {}
        for name, sums in self._sums.items():
            ordered = sorted(self._clips[name], key=lambda clip: clip[0])
            spectra = Spectra(
                np.stack([levels for _, levels, *_ in ordered]),
                np.array([seconds for _, _, seconds, _ in ordered], dtype=np.float32),
                _quantiles(self._counts[name]),
            )
            mean, spread = _moments(*sums)
            known = self._patches.get(name)
            made[name] = Profile(
                mean.astype(np.float32),
                np.maximum(spread, _SMALLEST_SPREAD_DB).astype(np.float32),
                spectra,
                self._usual_error(name),
                np.stack(_moments(*self._bands[name]), axis=1).astype(np.float32) if name in self._bands else None,
                None if known is None else known.bank(),
                Reach(np.stack([ends[0] for *_, ends in ordered]), np.stack([ends[1] for *_, ends in ordered])),
            )
        return made

    def _count(self, name: str, values: NDArray[np.float64]) -> None:
        """Add a clip's fluctuations (M, F) to its machine's histogram a band."""
        counts = self._counts.setdefault(name, np.zeros((len(values), len(_BINS) - 1), dtype=np.int64))
        step = float(_BINS[1] - _BINS[0])
        places = np.clip(np.floor((values - _BINS[0]) / step), 0, len(_BINS) - 2).astype(np.int64)
        np.add.at(counts, (np.arange(len(values))[:, None], places), 1)

    def _usual_error(self, name: str) -> NDArray[np.float32] | None:
        told = np.array(self._errors.get(name, ()), dtype=np.float64)
        if not len(told):
            return None
        share = told[:, 0] / told[:, 0].sum()
        mean = float(share @ told[:, 1])
        between = float(share @ np.square(told[:, 1] - mean))
        return np.array([mean, np.sqrt(between), np.sqrt(float(share @ told[:, 2]))], dtype=np.float32)


def _moments(
    total: NDArray[np.float64], squares: NDArray[np.float64], count: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and standard deviations (M,) from sums (M,) and sums of squares (M,) over `count` frames."""
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0.0))


def stretches(level: NDArray[np.float64], count: int = STRETCHES) -> NDArray[np.float64]:
    """(M, count) means of a map (M, F) over equal stretches of time; stretches of a shorter map share frames.

    >>> stretches(np.arange(8.0)[None], 4)
    array([[0.5, 2.5, 4.5, 6.5]])
    """
    frames = level.shape[1]
    begin = np.arange(count) * frames // count
    end = np.maximum(np.arange(1, count + 1) * frames // count, begin + 1)
    total = np.concatenate([np.zeros((len(level), 1)), np.cumsum(level, axis=1)], axis=1)
    return np.asarray((total[:, end] - total[:, begin]) / (end - begin))


def local(level: NDArray[np.float64], frame: float) -> NDArray[np.float64]:
    """(M, F) dB by which a clip stands above its own median in each band, for about a tenth of a second.

    `level` (M, F) log-mel in dB, a frame lasting `frame` seconds.
    """
    return _above(level, max(1, round(_SMOOTH_SECONDS / frame)))


def lasting(level: NDArray[np.float64], frame: float) -> NDArray[np.float64]:
    """(3, M, F) the same for each of the seconds in `REACHES` around a frame, or the whole clip; the first is `local`.

    >>> lasting(np.array([[0.0, 0, 0, 6, 0, 0, 0, 0]]), 0.1)[:, 0, 3].round(1)
    array([6. , 2. , 0.8])
    """
    longest = [max(1, round(seconds / frame)) for seconds in REACHES]
    return np.stack([_above(level, min(width, max(longest[0], level.shape[1]))) for width in longest])


def rows_of(spectra: Spectra, level: NDArray[np.float64], seconds: float) -> NDArray[np.int64]:
    """Rows of the normal clips that are this very clip, of `level` (M, F), as far as rounding lets that be told.

    None where all of them are: then there is nothing else to compare it with.
    """
    candidates = np.flatnonzero(np.abs(spectra.seconds - seconds) < 1e-3)
    apart = np.abs(spectra.levels[candidates].astype(np.float64) - stretches(level))
    rows = candidates[apart.max(axis=(1, 2)) <= _SAME_DB].astype(np.int64)
    return rows if len(rows) < len(spectra) else rows[:0]


def _above(level: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    from scipy import ndimage

    return np.asarray(ndimage.uniform_filter1d(level, width, mode="nearest") - np.median(level, axis=1, keepdims=True))


def _quantiles(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """(M, 13) quantiles of histograms (M, bins) at the normal scores `KNOTS`."""
    from scipy.special import ndtr

    share = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
    wanted = ndtr(KNOTS)
    return np.stack([np.interp(wanted, np.concatenate([[0.0], row]), _BINS) for row in share]).astype(np.float32)
