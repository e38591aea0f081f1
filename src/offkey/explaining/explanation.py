"""Where a clip departs from normal: its log-mel spectrogram against the normal clips that its system finds nearest.

Kinds of explanation, by what the system's score is made of:

    reconstruction   a model's error, beside the difference to normal
    nearest          an embedding: the difference to the normal clips whose embeddings lie nearest
    statistics       log-mel statistics: the same, and what each band adds to the score

Beside that comparison stands the system's own map (`anomaly_map`): the strangest region is the one on which both agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offkey.audio.mel import LogMel, mel_centres
from offkey.explaining.anomaly_map import AnomalyMap, Asked, MapKind, anomaly_map, weight
from offkey.explaining.profile import Profile, Spectra, local, stretches
from offkey.explaining.scan import (
    Ordinary,
    Region,
    ordinary,
    strangest_always,
    strangest_regions,
    widened,
)

__all__ = ["Evidence", "Explanation", "Kind", "explain_waveform"]

Kind = Literal["reconstruction", "nearest", "statistics"]

_SMOOTH_SECONDS = 0.1
_CLEAR = 2.0  # standard deviations beyond what looking everywhere finds in normal clips
_ALWAYS = 0.8  # of a clip's length is all the time
_CANDIDATES = 3  # regions of which the one is told that the system's map agrees with
_OWN_WEIGHT = 0.3  # of a place that departs from normal and on which the map has nothing
_OWN_SAY = 0.5  # of a region on which the map has nothing; all of it would add 1
_ORDINARY = slice(2, 11)  # knots of -2 to 2: what lies between is left as it is where a clip is made normal


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a system says of a clip beside its score.

    `clips` (N,) names of the reference clips, `nearest` (k,) rows of those that it finds nearest, nearest first;
    `shares` (M,) what each mel band adds to the score, None where it is not made of bands; `asked` is what the system
    can tell of this clip for its map.
    """

    kind: Kind
    clips: tuple[str, ...]
    nearest: NDArray[np.int64]
    shares: NDArray[np.float64] | None = None
    asked: Asked = field(default_factory=Asked)


@dataclass(frozen=True, eq=False)
class Explanation:
    """`deviation` (M, F) in units of each band's spread, `decibels` (M, F) above normal; the strangest region.

    `start`, `end` in seconds, `low`, `high` in hertz; `difference` is the region's mean in dB above normal (negative:
    something is missing; of what passes, what stands above the clip's own median); `text` says it in words. `kind` as
    above.

    `map` (M, F) is the system's own, higher where it objects more; `map_kind` says how it was found and `map_name` what
    its numbers are; where a system can tell none it is the departure from normal, of kind "departure". `agreement`
    (M, F) is how far a place departs from normal where the map objects: the best guess at where the fault is.

    `nearest` names the normal clip that the system finds nearest. `like` of `normal_clips` normal clips stray as far in
    that band somewhere, for as long.
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
    nearest: str
    like: int
    normal_clips: int
    strangeness: float
    level: NDArray[np.float32]
    normal: NDArray[np.float32]
    curve: NDArray[np.float32]
    curve_name: str
    map: NDArray[np.float32]
    map_kind: MapKind | Literal["departure"]
    map_name: str
    agreement: NDArray[np.float32]
    shares: NDArray[np.float32] | None = None


def explain_waveform(
    waveform: NDArray[np.float32],
    mel: LogMel,
    profile: Profile,
    levelled: bool,
    evidence: Evidence,
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
    near = spectra.levels[evidence.nearest].astype(np.float64)
    expected, typical = near.mean(axis=(0, 2)), np.median(near, axis=2).mean(axis=0)
    decibels = level - expected[:, None]
    gain = float(np.median(decibels))
    own = local(level, frame)
    usual = usual if usual is not None else ordinary(profile, None, levelled, frame)
    typically = np.median(stretches(level), axis=1) - typical
    if levelled:
        typically -= np.median(typically)
    drawn = anomaly_map(evidence.asked, profile, waveform, mel, _change(own, typically, usual))
    standing = usual.scores(own)
    heeded = np.ones(level.shape) if drawn is None else weight(drawn, frame)
    agreement = np.abs(standing) * (_OWN_WEIGHT + (1 - _OWN_WEIGHT) * heeded)
    stands = _agreed(own, usual, None if drawn is None else drawn.values)
    lasts = strangest_always(typically, usual, level.shape[1])
    passing = stands.strangeness >= lasts.strangeness
    region = widened(stands, agreement) if passing and drawn is not None else stands if passing else lasts
    # how loud the clip is as a whole says nothing of what passes in it
    lift = gain if levelled or passing else 0.0
    decibels -= lift
    inside = np.s_[region.low : region.high + 1, region.start : region.end + 1]
    difference = float((own if passing else decibels)[inside].mean())
    seconds = len(waveform) / mel.rate
    # frame f is centred on sample f · hop
    start, end = max((region.start - 0.5) * frame, 0.0), min((region.end + 0.5) * frame, seconds)
    low, high = _hertz_of(region, mel)
    like = _like(spectra, level - lift, region, usual, passing)
    # single frames of noise fluctuate by several dB: show what lasts
    width = max(1, round(_SMOOTH_SECONDS / frame))
    deviation = ndimage.uniform_filter(decibels / profile.spread[:, None], size=(3, width), mode="nearest")
    shown, kind, name = _shown(drawn, standing if passing else deviation)
    curve, curve_name = shown[region.low : region.high + 1].mean(axis=0), f"{name}, framed band"
    if evidence.asked.frame_error is not None:
        error = evidence.asked.frame_error
        places = (np.arange(level.shape[1]) + 0.5) * len(error) / level.shape[1]
        curve, curve_name = np.interp(places, np.arange(len(error)) + 0.5, error), "reconstruction error"
    shares = evidence.shares
    most = difference
    if passing:
        most = float(own[inside].max() if difference >= 0 else own[inside].min())
    text = _sentence(start, end, seconds, low, high, difference, most)
    text += f", seen in {like} of {len(spectra)} normal clip{'s' * (len(spectra) > 1)}" + _share(shares, region)
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
        kind=evidence.kind,
        nearest=evidence.clips[int(evidence.nearest[0])],
        like=like,
        normal_clips=len(spectra),
        strangeness=region.strangeness,
        level=(level - lift).astype(np.float32),
        normal=spectra.levels[evidence.nearest[0]].astype(np.float32),
        curve=curve.astype(np.float32),
        curve_name=curve_name,
        map=shown.astype(np.float32),
        map_kind=kind,
        map_name=name,
        agreement=agreement.astype(np.float32),
        shares=None if shares is None else shares.astype(np.float32),
    )


def _change(own: NDArray[np.float64], typically: NDArray[np.float64], usual: Ordinary) -> NDArray[np.float64]:
    """(M, F) gains in dB that bring a clip back to what normal clips do, and leave what is ordinary as it is.

    What passes: `own` (M, F) above the clip's median is limited to what normal clips do in 95 of 100 places. What
    lasts: the part of `typically` (M,) that exceeds two standard deviations of its band in normal clips.
    """
    ordinarily = usual.fluctuation[:, _ORDINARY]
    passing = np.clip(own, ordinarily[:, :1], ordinarily[:, -1:]) - own
    single = np.flatnonzero(usual.high - usual.low == 1)
    edges = usual.edges
    limit = 2 * np.sqrt(np.repeat(usual.between[single], np.diff(edges)))
    return np.asarray(passing + (np.clip(typically, -limit, limit) - typically)[:, None])


def _agreed(own: NDArray[np.float64], usual: Ordinary, drawn: NDArray[np.float32] | None) -> Region:
    """The region that is strange and in whose time the map (M, F) has much of what it objects to."""
    if drawn is None:
        return strangest_regions(own, usual, 1)[0]
    objected = np.maximum(drawn.astype(np.float64), 0.0).sum(axis=0)
    total = max(float(objected.sum()), 1e-12)

    def agreement(region: Region) -> float:
        share = float(objected[region.start : region.end + 1].sum()) / total
        return max(region.strangeness, 0.0) * (_OWN_SAY + share)

    return max(strangest_regions(own, usual, _CANDIDATES), key=agreement)


def _shown(
    drawn: AnomalyMap | None, departure: NDArray[np.float64]
) -> tuple[NDArray[np.float64], MapKind | Literal["departure"], str]:
    """The map that is shown, its kind, and what its numbers are."""
    if drawn is None:
        return departure, "departure", "departure from normal (deviations)"
    return drawn.values.astype(np.float64), drawn.kind, drawn.name


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
    return f"{when}, {_span(low, high)}: {abs(difference):.0f} dB{peak} {side} normal"


def _share(shares: NDArray[np.float64] | None, region: Region) -> str:
    """What part of the score the region's bands make."""
    total = 0.0 if shares is None else float(shares.sum())
    if shares is None or total <= 0:
        return ""
    own = float(shares[region.low : region.high + 1].sum()) / total
    return f"; these bands make {100 * min(max(own, 0.0), 1.0):.0f} % of the score"


def _span(low: float, high: float) -> str:
    """Two frequencies with no more digits than they deserve: 3–5 kHz, 630 Hz–1.7 kHz, 50–120 Hz."""
    first, second = (
        f"{hertz / 1000:.2g} kHz" if hertz >= 995 else f"{float(f'{hertz:.2g}'):g} Hz" for hertz in (low, high)
    )
    unit = second[second.index(" ") :]
    return f"{first.removesuffix(unit)}–{second}"
