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
from offkey.explaining.profile import REACHES, Profile, Reach, Spectra, lasting, stretches
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
_REACHED = 0.95  # of normal clips go no further: what is beyond counts as above (or below) normal
_FILLED = 1.25  # as long as a duration may be beside the region that is said to fill it
_ROUNDING = 0.05  # dB or normal scores that what is kept in float16 may differ by
_ORDINARY = slice(2, 11)  # knots of -2 to 2: what lies between is left as it is where a clip is made normal


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a system says of a clip beside its score.

    `clips` (N,) names of the reference clips, `nearest` (k,) rows of those that it finds nearest, nearest first;
    `shares` (M,) what each mel band adds to the score, None where it is not made of bands; `asked` is what the system
    can tell of this clip for its map. `itself` are rows of the reference clips that are this very clip: they do not
    count among the normal clips that it is compared with.
    """

    kind: Kind
    clips: tuple[str, ...]
    nearest: NDArray[np.int64]
    shares: NDArray[np.float64] | None = None
    asked: Asked = field(default_factory=Asked)
    itself: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)
class Explanation:
    """`deviation` (M, F) in units of each band's spread, `decibels` (M, F) above the normal mean; the strangest region.

    `start`, `end` in seconds, `low`, `high` in hertz; `text` says it in words; `kind` as above. `difference` is in dB
    above normal, negative where something is missing. Of what lasts: the region's mean above that of the nearest
    normal clips. Of what passes: how far its bands rise above their own median, beyond what 19 of 20 normal clips reach
    somewhere for as long: 0.1, 0.3 or 1 s, or the region's own length, whichever tells most; 0 where they reach as
    much. Detectors of older versions do not know that: then it is the region's mean above the rest of the clip, and
    `text` says so.

    `map` (M, F) is the system's own, higher where it objects more; `map_kind` says how it was found and `map_name` what
    its numbers are; where a system can tell none it is the departure from normal, of kind "departure". `agreement`
    (M, F) is how far a place departs from normal where the map objects: the best guess at where the fault is.

    `nearest` names the normal clip that the system finds nearest. `like` of `normal_clips` normal clips stray as far in
    that band somewhere, for as long; a clip that is one of them counts in neither.
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
    reached = lasting(level, frame)
    own = reached[0]
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
    rising = float((standing if passing else decibels)[inside].mean()) >= 0
    others = np.setdiff1d(np.arange(len(spectra)), evidence.itself)
    if not passing:
        difference, most = float(decibels[inside].mean()), None
        like = _as_loud(spectra, others, level - lift, region)
    elif profile.reach is None:
        difference = float(own[inside].mean())
        most = float(own[inside].max() if difference >= 0 else own[inside].min())
        like = int((_beyond_stretches(spectra, others, level, region, usual, rising)[1] <= _ROUNDING).sum())
    else:
        coarse = _beyond_stretches(spectra, others, level, region, usual, rising)
        beyond = np.concatenate([_beyond_reach(profile.reach, others, reached, region, frame, rising), coarse])
        furthest = float(np.quantile(beyond[:-1], 1 - _REACHED, axis=1).max())  # the last are no decibels
        difference, most = max(furthest, 0.0) if rising else min(-furthest, 0.0), None
        like = int((beyond <= _ROUNDING).all(axis=0).sum())
    seconds = len(waveform) / mel.rate
    # frame f is centred on sample f · hop
    start, end = max((region.start - 0.5) * frame, 0.0), min((region.end + 0.5) * frame, seconds)
    low, high = _hertz_of(region, mel)
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
    known = len(others) < len(spectra)
    text = _sentence(start, end, seconds, low, high, difference, most, rising)
    text += f", seen in {like} of {len(others)}{' other' * known} normal clip{'s' * (len(others) > 1)}"
    text += _share(shares, region)
    if region.strangeness < _CLEAR:
        text += "; hardly more than chance"
    if known:
        text += "; this clip is itself one of the normal clips"
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
        normal_clips=len(others),
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


def _beyond_reach(
    reach: Reach, others: NDArray[np.int64], reached: NDArray[np.float64], region: Region, frame: float, rising: bool
) -> NDArray[np.float64]:
    """(S, N) dB by which a region goes beyond the most of each normal clip of the rows `others` (N,) in its bands.

    `reached` (3, M, F) is what `lasting` says of the clip; of its durations those count that the region fills.
    Where bands rise, those count most that rise most, as in a mean of powers: a frame may be wider than its event.
    """
    seconds = (region.end + 1 - region.start) * frame
    fits = [place for place, least in enumerate(REACHES) if place == 0 or least <= _FILLED * seconds]
    inside = reached[fits, region.low : region.high + 1, region.start : region.end + 1]
    mine = (inside.max(axis=2) if rising else inside.min(axis=2)).astype(np.float16)
    kept = (reach.highest if rising else reach.lowest)[others, region.low : region.high + 1][:, :, fits]
    own, normal = mine.astype(np.float64), kept.astype(np.float64)
    if not rising:
        return np.asarray(normal.mean(axis=1).T - own.mean(axis=1)[:, None])
    powers = (np.mean(10.0 ** (decibels / 10), axis=1) for decibels in (own, normal))
    return np.asarray(10 * np.log10(next(powers))[:, None] - 10 * np.log10(next(powers)).T)


def _as_loud(spectra: Spectra, others: NDArray[np.int64], level: NDArray[np.float64], region: Region) -> int:
    """How many of the normal clips of the rows `others` are as loud (or quiet) throughout in the region's band."""
    band = np.s_[region.low : region.high + 1]
    own, kept = float(level[band].mean()), spectra.levels[others, band].astype(np.float64).mean(axis=(1, 2))
    reaches = kept >= own - _ROUNDING if own >= np.median(kept) else kept <= own + _ROUNDING
    return int(reaches.sum())


def _beyond_stretches(
    spectra: Spectra,
    others: NDArray[np.int64],
    level: NDArray[np.float64],
    region: Region,
    usual: Ordinary,
    rising: bool,
) -> NDArray[np.float64]:
    """(2, N) how far a region goes beyond the most of each normal clip of the rows `others` (N,) in its band.

    Both rise above (or sink below) their own median, here in dB, there in normal scores: means over the band, and over
    stretches as long as those that are kept of normal clips, as many as the region fills.
    """
    band = np.s_[region.low : region.high + 1]
    columns = min(level.shape[1], max(1, round(level.shape[1] * usual.frame / usual.seconds)))
    share = columns / level.shape[1]
    runs = max(1, min(spectra.levels.shape[2], columns, round((region.end + 1 - region.start) * share)))
    sign = 1.0 if rising else -1.0

    def rises(coarse: NDArray[np.float16]) -> NDArray[np.float64]:
        exact = coarse.astype(np.float64)
        exact -= np.median(exact, axis=1, keepdims=True)
        means = sign * np.stack([exact[band].mean(axis=0), usual.scores(exact)[band].mean(axis=0)])
        total = np.concatenate([np.zeros((2, 1)), np.cumsum(means, axis=1)], axis=1)
        return np.asarray((total[:, runs:] - total[:, :-runs]) / runs)

    mine = rises(stretches(level, columns).astype(np.float16))
    middle = (region.start + region.end + 1) / 2 * share - runs / 2
    here = mine[:, max(0, int(middle - 1)) : int(np.ceil(middle)) + 2]
    own = here.max(axis=1) if here.shape[1] else mine[:, -1]
    return np.stack([own - rises(spectra.levels[row]).max(axis=1) for row in others], axis=1)


def _sentence(
    start: float,
    end: float,
    length: float,
    low: float,
    high: float,
    difference: float,
    most: float | None,
    rising: bool,
) -> str:
    """When, in which band, and by how much; `most` dB where that is told of the rest of the clip, not of normal."""
    when = "all the time" if end - start > _ALWAYS * length else f"{start:.1f}–{end:.1f} s"
    side = "above" if rising else "below"
    how_far = f"{abs(difference):.0f} dB {side} normal" if round(abs(difference)) > 0 else f"hardly {side} normal"
    if most is not None:
        peak = f" (up to {abs(most):.0f})" if abs(most) > abs(difference) + 3 else ""
        how_far = f"{abs(difference):.0f} dB{peak} {'above' if difference >= 0 else 'below'} the rest of the clip"
    return f"{when}, {_span(low, high)}: {how_far}"


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
