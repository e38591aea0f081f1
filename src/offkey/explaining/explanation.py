"""Where a clip departs from normal: its log-mel spectrogram against the normal clips that its system finds nearest.

Kinds of explanation, by what the system's score is made of:

    reconstruction   a model's error a frame says when; within that time the difference to normal says in which band
    nearest          an embedding: the difference to the normal clips whose embeddings lie nearest
    statistics       log-mel statistics: the same, and what each band adds to the score
    profile          nothing is known of single normal clips (a detector of offkey 0.1): the difference to their mean
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offkey.audio.mel import LogMel, mel_centres
from offkey.explaining.profile import Profile, Spectra, local, stretches
from offkey.explaining.scan import (
    Ordinary,
    Region,
    ordinary,
    strangest_always,
    strangest_band,
    strangest_region,
    strangest_time,
)

__all__ = ["Evidence", "Explanation", "Kind", "explain_waveform"]

Kind = Literal["reconstruction", "nearest", "statistics", "profile"]

_SMOOTH_SECONDS = 0.1
_CLEAR = 2.0  # standard deviations beyond what looking everywhere finds in normal clips
_ALWAYS = 0.8  # of a clip's length is all the time


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a system says of a clip beside its score.

    `clips` (N,) names of the reference clips, `nearest` (k,) rows of those that it finds nearest, nearest first;
    `frame_error` (F',) over equal parts of the clip, None where nothing is reconstructed; `shares` (M,) what each mel
    band adds to the score, None where it is not made of bands.
    """

    kind: Kind
    clips: tuple[str, ...]
    nearest: NDArray[np.int64]
    frame_error: NDArray[np.float64] | None = None
    shares: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """`deviation` (M, F) in units of each band's spread, `decibels` (M, F) above normal; the strangest region.

    `start`, `end` in seconds, `low`, `high` in hertz; `difference` is the region's mean in dB above normal (negative:
    something is missing; of what passes, what stands above the clip's own median); `text` says it in words. `kind` as
    above.

    `nearest` names the normal clip that the system finds nearest. `like` of `normal_clips` normal clips stray as far in
    that band somewhere, for as long; None where not known.
    `strangeness` is how far the region's mean strays, in standard deviations of such means in normal clips, less a
    charge for looking everywhere: near or below 0 nothing sticks out.

    For the picture: `level` (M, F) the clip in dB; `normal` (M, C) what it is compared with, over equal stretches of
    time; `curve` (F,) what the system objects to over time, `curve_name` what that is; `shares` (M,) of the score.
    """

    deviation: NDArray[np.float32]
    decibels: NDArray[np.float32]
    start: float
    end: float
    low: float
    high: float
    difference: float
    text: str
    kind: Kind
    nearest: str | None
    like: int | None
    normal_clips: int
    strangeness: float
    level: NDArray[np.float32]
    normal: NDArray[np.float32]
    curve: NDArray[np.float32]
    curve_name: str
    shares: NDArray[np.float32] | None = None


def explain_waveform(
    waveform: NDArray[np.float32],
    mel: LogMel,
    profile: Profile,
    levelled: bool = False,
    evidence: Evidence | None = None,
    usual: Ordinary | None = None,
) -> Explanation:
    """Find the strangest region of a mono clip (T,) at the model's rate.

    `levelled`: clips are brought to one level before they are judged. A loud fault then pushes everything else down,
    so the median difference, over all bands and frames, is taken off first. `usual` is what `ordinary` measured on the
    same profile; without it that is done here.
    """
    import torch
    from scipy import ndimage

    level = mel(torch.from_numpy(np.array(waveform, dtype=np.float32))[None])[0].double().numpy()
    frame = mel.config.hop / mel.rate
    spectra = profile.spectra
    compared = spectra is not None and evidence is not None and len(evidence.nearest) > 0
    if spectra is not None and evidence is not None and compared:
        near = spectra.levels[evidence.nearest].astype(np.float64)
        expected, typical = near.mean(axis=(0, 2)), np.median(near, axis=2).mean(axis=0)
        normal = spectra.levels[evidence.nearest[0]].astype(np.float32)
    else:
        expected = typical = profile.mean.astype(np.float64)
        normal = profile.mean[:, None]
    decibels = level - expected[:, None]
    gain = float(np.median(decibels))
    own = local(level, frame)
    usual = usual if usual is not None else ordinary(profile, None, levelled, frame)
    error = None
    if evidence is not None and evidence.frame_error is not None:
        places = (np.arange(level.shape[1]) + 0.5) * len(evidence.frame_error) / level.shape[1]
        error = np.interp(places, np.arange(len(evidence.frame_error)) + 0.5, evidence.frame_error)
        first, last = strangest_time(error, profile.frame_error, frame)
        always = last - first > _ALWAYS * len(error)
        stands = strangest_band(own, usual, first, last)
    else:
        always, stands = True, strangest_region(own, usual)
    typically = np.median(stretches(level), axis=1) - typical
    if levelled:
        typically -= np.median(typically)
    lasts = strangest_always(typically, usual, level.shape[1])
    passing = not always or (error is None and stands.strangeness >= lasts.strangeness)
    region = stands if passing else lasts
    # how loud the clip is as a whole says nothing of what passes in it
    lift = gain if levelled or passing else 0.0
    decibels -= lift
    inside = np.s_[region.low : region.high + 1, region.start : region.end + 1]
    difference = float((own if passing else decibels)[inside].mean())
    seconds = len(waveform) / mel.rate
    # frame f is centred on sample f · hop
    start, end = max((region.start - 0.5) * frame, 0.0), min((region.end + 0.5) * frame, seconds)
    low, high = _hertz_of(region, mel)
    like = None if spectra is None else _like(spectra, level - lift, region, usual, passing)
    count = 0 if spectra is None else len(spectra)
    # single frames of noise fluctuate by several dB: show what lasts
    width = max(1, round(_SMOOTH_SECONDS / frame))
    deviation = ndimage.uniform_filter(decibels / profile.spread[:, None], size=(3, width), mode="nearest")
    curve = error
    if curve is None:
        standing = usual.scores(own) if passing else deviation
        curve = standing[region.low : region.high + 1].mean(axis=0)
    shares = None if evidence is None else evidence.shares
    most = difference
    if passing:
        most = float(own[inside].max() if difference >= 0 else own[inside].min())
    text = _sentence(start, end, seconds, low, high, difference, most)
    text += _compared(like, count) + _share(shares, region)
    if region.strangeness < _CLEAR:
        text += "; hardly more than chance"
    return Explanation(
        deviation=deviation.astype(np.float32),
        decibels=decibels.astype(np.float32),
        start=start,
        end=end,
        low=low,
        high=high,
        difference=difference,
        text=text,
        kind="profile" if evidence is None or not (compared or error is not None) else evidence.kind,
        nearest=evidence.clips[int(evidence.nearest[0])] if evidence is not None and len(evidence.nearest) else None,
        like=like,
        normal_clips=count,
        strangeness=region.strangeness,
        level=(level - lift).astype(np.float32),
        normal=normal.astype(np.float32),
        curve=curve.astype(np.float32),
        curve_name="how far the framed band stands out (deviations)" if error is None else "reconstruction error",
        shares=None if shares is None else shares.astype(np.float32),
    )


def _hertz_of(region: Region, mel: LogMel) -> tuple[float, float]:
    """The frequencies at which a region's first and last filter peak, or half-way to their neighbours for one band."""
    centres = mel_centres(mel.rate, mel.config)
    low, high = float(centres[region.low]), float(centres[region.high])
    if region.low == region.high and len(centres) > 1:
        reach = float(centres[1] - centres[0] if region.low == 0 else low - centres[region.low - 1]) / 2
        low, high = max(low - reach, 0.0), high + reach
    return low, high


def _like(spectra: Spectra, level: NDArray[np.float64], region: Region, usual: Ordinary, passing: bool) -> int:
    """How many normal clips do in the region's band what this one does, somewhere and for as long.

    For what passes: rise above (or sink below) their own median as far, in mean normal scores; both sides are averaged
    over stretches as long as those that are kept of normal clips. For what lasts: be as loud (or quiet) throughout.
    """
    band = np.s_[region.low : region.high + 1]
    kept = spectra.levels.astype(np.float64)
    if not passing:
        own, others = float(level[band].mean()), kept[:, band].mean(axis=(1, 2))
        return int((others >= own).sum() if own >= np.median(others) else (others <= own).sum())
    columns = min(level.shape[1], max(1, round(level.shape[1] * usual.frame / usual.seconds)))
    share = columns / level.shape[1]
    runs = max(1, min(kept.shape[2], columns, round((region.end + 1 - region.start) * share)))

    def rises(coarse: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = usual.scores(coarse - np.median(coarse, axis=1, keepdims=True))
        total = np.concatenate([[0.0], np.cumsum(scores[band].mean(axis=0))])
        return np.asarray((total[runs:] - total[:-runs]) / runs)

    mine = rises(stretches(level, columns))
    middle = (region.start + region.end + 1) / 2 * share - runs / 2
    here = mine[max(0, int(middle - 1)) : int(np.ceil(middle)) + 2]
    own = float(here[np.abs(here).argmax()]) if len(here) else float(mine[-1])
    return sum(bool(rises(one).max() >= own if own >= 0 else rises(one).min() <= own) for one in kept)


def _sentence(start: float, end: float, length: float, low: float, high: float, difference: float, most: float) -> str:
    when = "all the time" if end - start > _ALWAYS * length else f"{start:.1f}–{end:.1f} s"
    side = "above" if difference >= 0 else "below"
    peak = f" (up to {abs(most):.0f})" if abs(most) > abs(difference) + 3 else ""
    return f"{when}, {_hertz(low)}–{_hertz(high)}: {abs(difference):.0f} dB{peak} {side} normal"


def _compared(like: int | None, count: int) -> str:
    if like is None:
        return ""
    return f"; {like or 'none'} of {count} normal clip{'s' * (count > 1)} {'do' if like > 1 else 'does'} the like there"


def _share(shares: NDArray[np.float64] | None, region: Region) -> str:
    """What part of the score the region's bands make."""
    total = 0.0 if shares is None else float(shares.sum())
    if shares is None or total <= 0:
        return ""
    own = float(shares[region.low : region.high + 1].sum()) / total
    return f"; these bands make {100 * min(max(own, 0.0), 1.0):.0f} % of the score"


def _hertz(value: float) -> str:
    return f"{value / 1000:.1f} kHz" if value >= 1000 else f"{value:.0f} Hz"
