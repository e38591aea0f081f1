"""The strangest region of a clip: a scan over all stretches of time and all bands, measured by what normal clips do.

Two things can be strange about a clip, and are looked for apart.

*All the time*: what is typical of a clip (the median over its stretches, which does not heed what passes), in dB above
the normal clips it is compared with, divided by how far normal clips stray from those that THEY are compared with,
τ(B), measured for each band B as a whole.

*For a while*: how far the clip stands above its own median in each mel band, for a tenth of a second at a time, turned
into normal scores z by what normal clips do in that band (a slide that moves and rests, a valve that clicks, are no
surprise). The mean z̄ of a region of band B and duration L strays in normal clips by

    v(B, L) = min(1, σ²(B) · ℓ / L)

where σ² is measured for the whole band B on stretches of ℓ seconds of normal clips: bands that rise and fall together
do not count many times. What counts is |z̄| / √v.

Small regions can be placed in more ways and so reach higher values by chance; each is charged for that:

    strangeness = |z̄| / √v − √(2 log(e · A / a))        A all cells, a the region's

L. Dümbgen, V. Spokoiny: Multiscale testing of qualitative hypotheses, Annals of Statistics 29 (2001), 124–152 (the
charge for small scales).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offkey.explaining.profile import KNOTS, Profile

__all__ = [
    "Ordinary",
    "Region",
    "ordinary",
    "strangest_always",
    "strangest_band",
    "strangest_region",
    "strangest_regions",
    "widened",
]

_BANDS = 64  # cells of the scan along frequency, and along time
_CELLS = 96
_SHORTEST_SECONDS = 0.1
_SMALLEST_DB = 0.5  # what two recordings of the same thing may differ by
_SMALLEST_SCORE = 0.05  # variance of a region's mean normal score: no clip is as even as the noise model has it
_STEEPEST = 1.0  # dB a normal score is worth at least beyond what was seen
_HIGHEST_SCORE = 8.0  # of a place, so that a click does not outweigh what lasts
_HIGHEST_IN_BAND = 64.0
_SKIRT = 0.25
_MOST_CLIPS = 256  # of the reference, evenly spread, for the two variances
_WIDER = 0.3  # of the most that a region's bands show: neighbours above that belong to it
_COMMON = 0.5  # share of a band's variance taken to be common to clips and bands where that is not known


class Region(NamedTuple):
    """Mel bands `low` … `high` and frames `start` … `end`, the ends included; `strangeness` in normal deviations."""

    low: int
    high: int
    start: int
    end: int
    strangeness: float


class Ordinary(NamedTuple):
    """How far the means of regions stray in normal clips.

    `edges` (K + 1,) borders of the scan's bands in mel bands; `low`, `high` (I,) every run of them, upper ends not in;
    `between` (I,) variance of what is typical of each run in a clip, dB²; `within` (I,) that of its mean normal score
    over a stretch of `seconds`; a frame lasts `frame` seconds; `fluctuation` (M, 13) dB at the normal scores `KNOTS`.
    """

    edges: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    between: NDArray[np.float64]
    within: NDArray[np.float64]
    seconds: float
    frame: float
    fluctuation: NDArray[np.float64]

    def deviation(self, seconds: float) -> NDArray[np.float64]:
        """(I,) normal scores by which the mean over a stretch of `seconds` strays."""
        return np.asarray(np.sqrt(np.clip(self.within * self.seconds / seconds, _SMALLEST_SCORE**2, 1.0)))

    def scores(self, local: NDArray[np.float64], highest: float = _HIGHEST_SCORE) -> NDArray[np.float64]:
        """Normal scores (M, F), at most `highest`, of what stands above a clip's own median by (M, F) dB."""
        found = np.stack([_score(row, knots) for row, knots in zip(local, self.fluctuation, strict=True)])
        return np.clip(found, -highest, highest)


def ordinary(profile: Profile, near: NDArray[np.int64] | None, levelled: bool, frame: float) -> Ordinary:
    """Measure what is ordinary on a machine's normal clips, a frame lasting `frame` seconds.

    `near` (N, k): to each normal clip the OTHER ones that it is compared with, as a strange clip will be compared with
    its own nearest; None: with the mean of all. `levelled` as in `explain_waveform`.
    """
    edges = _edges(len(profile.mean), _BANDS)
    low, high = np.triu_indices(len(edges), 1)
    spectra = profile.spectra
    if len(spectra) < 2:
        spread = profile.spread[:, None].astype(np.float64)
        variance = np.square(_runs(spread, edges, low, high)[:, 0])
        within = _COMMON + (1 - _COMMON) / (high - low)
        between = np.maximum(_COMMON * variance, _SMALLEST_DB**2)
        return Ordinary(edges, low, high, between, within, _SHORTEST_SECONDS, frame, spread * KNOTS)
    seconds = float(spectra.seconds.mean()) / spectra.levels.shape[2]
    fluctuation = spectra.fluctuation.astype(np.float64)
    blank = Ordinary(edges, low, high, np.zeros(0), np.zeros(0), seconds, frame, fluctuation)
    chosen = np.unique(np.linspace(0, len(spectra) - 1, min(len(spectra), _MOST_CLIPS)).astype(np.int64))
    own = spectra.levels.astype(np.float64)
    typical = np.median(own, axis=2)
    total = typical.sum(axis=0)
    between, within = np.zeros(len(low)), np.zeros(len(low))
    for place in chosen.tolist():
        if near is None or near.shape[1] == 0:
            expected = (total - typical[place]) / (len(typical) - 1)
        else:
            expected = typical[near[place]].mean(axis=0)
        difference = typical[place] - expected
        if levelled:
            difference -= np.median(difference)
        between += np.square(_runs(difference[:, None], edges, low, high)[:, 0])
        scores = blank.scores(own[place] - typical[place][:, None])
        within += np.square(_runs(scores, edges, low, high)).mean(axis=1)
    between = np.maximum(between / len(chosen), _SMALLEST_DB**2)
    return blank._replace(between=between, within=within / len(chosen))


def _score(values: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal scores of values (F,): by straight lines between the knots (13,), beyond them at the last steps' slope."""
    inner = np.interp(values, knots, KNOTS)
    step = 2 * (KNOTS[1] - KNOTS[0])
    below = np.minimum(values - knots[0], 0.0) * step / max(float(knots[2] - knots[0]), _STEEPEST * step)
    above = np.maximum(values - knots[-1], 0.0) * step / max(float(knots[-1] - knots[-3]), _STEEPEST * step)
    return np.asarray(inner + below + above)


def strangest_always(typical: NDArray[np.float64], usual: Ordinary, frames: int) -> Region:
    """The band that is strangest over a whole clip of so many `frames`, typically `typical` (M,) dB above normal."""
    means = _runs(typical[:, None], usual.edges, usual.low, usual.high)[:, 0]
    strange = np.abs(means) / np.sqrt(usual.between) - _charge(float(usual.edges[-1]), _widths(usual))
    return _region(usual, int(strange.argmax()), 0, frames - 1, float(strange.max()))


def strangest_region(local: NDArray[np.float64], usual: Ordinary) -> Region:
    """The region that is strangest for its size in a clip that stands above its own median by `local` (M, F) dB."""
    borders = _borders(local.shape[1], usual.frame)
    runs = _summed(usual.scores(local), usual, borders)
    sizes = np.diff(borders)
    cells = float(usual.edges[-1] * borders[-1])
    best: tuple[float, int, int, int] | None = None
    for length in range(1, len(sizes) + 1):
        frames = borders[length:] - borders[:-length]
        mean = (runs[:, length:] - runs[:, :-length]) / frames
        seconds = float(frames.mean()) * usual.frame
        # the charge depends on the band and the duration alone, so the largest mean of a run is all that counts
        where = np.abs(mean).argmax(axis=1)
        largest = np.abs(mean[np.arange(len(mean)), where])
        strange = largest / usual.deviation(seconds) - _charge(cells, _widths(usual) * float(frames.mean()))
        run = int(strange.argmax())
        if best is None or strange[run] > best[0]:
            best = float(strange[run]), run, int(where[run]), length
    if best is None:
        raise ValueError("a map without frames has no region")
    strangeness, run, begin, length = best
    found = strangest_band(local, usual, int(borders[begin]), int(borders[begin + length]) - 1)
    return found._replace(strangeness=strangeness)


def strangest_regions(local: NDArray[np.float64], usual: Ordinary, count: int) -> list[Region]:
    """At most `count` regions, strangest first, of which no two share a frame; as the above."""
    left = local.copy()
    found: list[Region] = []
    for _ in range(count):
        region = strangest_region(left, usual)
        if found and region.strangeness <= 0:
            break
        found.append(region)
        left[:, region.start : region.end + 1] = 0.0
    return found


def widened(region: Region, strength: NDArray[np.float64]) -> Region:
    """The region with the bands beside it in which a map (M, F) is nearly as strong, in its time, as in its own."""
    means = strength[:, region.start : region.end + 1].mean(axis=1)
    enough = means >= _WIDER * float(means[region.low : region.high + 1].max())
    low, high = region.low, region.high
    while low > 0 and enough[low - 1]:
        low -= 1
    while high < len(enough) - 1 and enough[high + 1]:
        high += 1
    return region._replace(low=low, high=high)


def strangest_band(local: NDArray[np.float64], usual: Ordinary, start: int, end: int) -> Region:
    """The band of what happens between the frames `start` and `end`; otherwise as the above.

    That something happens then is settled, so the question is which bands take part, each as strongly as it may: the
    run of bands that maximises the sum of y² less a charge, 2 log(e · bands) as above for a single one of them. y is a
    band's mean score in units of how far such a mean strays; bands that moved the other way count against the run.
    Beside a loud tone the skirts of the analysis are far from normal too: the charge is at least what a band pays that
    rises by a quarter of what the strongest does.
    """
    single = np.flatnonzero(usual.high - usual.low == 1)
    deviation = usual.deviation((end + 1 - start) * usual.frame)
    scores = usual.scores(local[:, start : end + 1], _HIGHEST_IN_BAND).mean(axis=1)
    means = _runs(scores[:, None], usual.edges, usual.low, usual.high)[:, 0]
    height = means[single] / deviation[single]
    charge = float(_charge(float(len(single)), np.ones(1))[0]) ** 2
    charge = max(charge, float(np.square(_SKIRT * height).max()))
    gains = []
    for sign in (1.0, -1.0):
        total = np.concatenate([[0.0], np.cumsum(sign * height * np.abs(height) - charge)])
        gains.append(total[usual.high] - total[usual.low])
    run = int(np.maximum(*gains).argmax())
    strange = abs(float(means[run])) / deviation[run] - _charge(float(usual.edges[-1]), _widths(usual))[run]
    return _region(usual, run, start, end, float(strange))


def _region(usual: Ordinary, run: int, start: int, end: int, strangeness: float) -> Region:
    low, high = int(usual.edges[usual.low[run]]), int(usual.edges[usual.high[run]]) - 1
    return Region(low, high, start, end, strangeness)


def _charge(cells: float, size: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(2.0 * np.log(np.e * cells / size)))


def _edges(count: int, most: int) -> NDArray[np.int64]:
    """Borders of at most `most` equal parts of `count`."""
    return np.arange(min(count, most) + 1) * count // min(count, most)


def _borders(frames: int, frame: float) -> NDArray[np.int64]:
    """Borders of the scan's cells along time: of 0.1 s, or longer ones in long clips."""
    wanted = min(_CELLS, max(1, int(frames * frame / _SHORTEST_SECONDS + 1e-9)))
    return _edges(frames, min(wanted, frames))


def _widths(usual: Ordinary) -> NDArray[np.float64]:
    """(I,) mel bands in each run."""
    return (usual.edges[usual.high] - usual.edges[usual.low]).astype(np.float64)


def _summed(decibels: NDArray[np.float64], usual: Ordinary, borders: NDArray[np.int64]) -> NDArray[np.float64]:
    """(I, cells + 1): each run's mean over its bands, summed over the frames up to each border."""
    total = np.concatenate([np.zeros((len(decibels), 1)), np.cumsum(decibels, axis=1)], axis=1)[:, borders]
    return _runs(total, usual.edges, usual.low, usual.high)


def _runs(
    values: NDArray[np.float64], edges: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(I, C) means over the bands of each run, of values (M, C)."""
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])[edges]
    return np.asarray((total[high] - total[low]) / (edges[high] - edges[low])[:, None])
