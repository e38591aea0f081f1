"""Which patches of a clip lie far from all patches that normal clips have in the same band of frequency.

Of every machine a bounded bank of normal patches is kept, so that a map costs one matrix product a band.

K. Roth et al.: Towards total recall in industrial anomaly detection, CVPR 2022, 14318-14328 (a memory of normal
patches); here the bank is a plain sample, the same whatever the order or the batches in which clips came. Where clips
come later, a rare sound among them must not be lost in the sample: then those stay that lie farthest apart (that
paper's greedy choice).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offkey.audio.mel import LogMel, mel_centres

__all__ = ["BANK", "PatchBank", "PatchBankBuilder", "join_banks", "laid_on_mel", "patch_distances"]

BANK = 512
"""Normal patches a band and machine that are kept at most: 768 numbers each take 0.8 MB a band."""

_SMALLEST_SPREAD = 1e-3  # of a cosine distance
_LAW = 500  # points that stand for a normal law


@dataclass(frozen=True, eq=False)
class PatchBank:
    """Normal patches: `vectors` (Pf, K, D) float16 of length 1, K ≤ 512; `clips` (Pf, K) int32 says of which clip.

    `usual` (Pf, 2) float32: median and spread of the cosine distance from a normal patch to the nearest one of another
    clip, a band each.
    """

    vectors: NDArray[np.float16]
    clips: NDArray[np.int32]
    usual: NDArray[np.float32]


class PatchBankBuilder:
    """Draws at most `BANK` patches a band from clips that come one by one, in any order."""

    def __init__(self) -> None:
        self._kept: list[tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float16]]] = []

    def add(self, place: int, grid: NDArray[np.float32]) -> None:
        """Count the patches (Pt, Pf, D) of the clip at `place`; those past its end are zero and do not count."""
        times, bands, _ = grid.shape
        # every patch draws a number that depends on its clip alone; the smallest numbers stay
        keys = np.random.default_rng(place).random((times, bands))
        if not self._kept:
            empty = np.zeros((0, grid.shape[2]), np.float16)
            self._kept = [(np.zeros(0), np.zeros(0, np.int32), empty)] * bands
        own = np.asarray(grid.any(axis=2))
        for band, (known, clips, vectors) in enumerate(self._kept):
            rows = own[:, band]
            numbers = np.concatenate([known, keys[rows, band]])
            clips = np.concatenate([clips, np.full(int(rows.sum()), place, np.int32)])
            vectors = np.concatenate([vectors, _unit(grid[rows, band]).astype(np.float16)])
            stay = np.argsort(numbers, kind="stable")[:BANK]
            self._kept[band] = numbers[stay], clips[stay], vectors[stay]

    def bank(self) -> PatchBank | None:
        """What was drawn; None where there was no patch."""
        count = min((len(numbers) for numbers, *_ in self._kept), default=0)
        if count == 0:
            return None
        vectors = np.stack([kept[:count] for *_, kept in self._kept])
        clips = np.stack([kept[:count] for _, kept, _ in self._kept])
        usual = np.stack([_usual(one, of) for one, of in zip(vectors, clips, strict=True)])
        return PatchBank(vectors, clips, usual)


def join_banks(old: PatchBank, new: PatchBank, share: float) -> PatchBank:
    """The bank of all clips of two, at most `BANK` patches a band; `share` in (0, 1) of the frames are new.

    Of each band's patches those stay that lie farthest from each other, so that what only a few clips sound like is
    kept too. `usual` is that of old and new distances together, mixed by `share`: the old ones as a normal law, and
    those from the new patches to the nearest one of another clip that stays.
    """
    later = new.clips + (int(old.clips.max()) + 1 - int(new.clips.min()))
    vectors, clips, usual = [], [], []
    for band, both in enumerate(zip(old.vectors, new.vectors, strict=True)):
        joined, of = np.concatenate(both), np.concatenate([old.clips[band], later[band]])
        stay = _farthest(joined, BANK)
        vectors.append(joined[stay])
        clips.append(of[stay])
        usual.append(_mixed(old.usual[band], _nearest(both[1], later[band], joined[stay], of[stay]), share))
    return PatchBank(np.stack(vectors), np.stack(clips), np.stack(usual))


def patch_distances(grid: NDArray[np.float32], bank: PatchBank) -> NDArray[np.float64]:
    """(Pt, Pf) cosine distance of each patch (Pt, Pf, D) to the nearest of its band, in deviations of normal ones.

    0 is what is typical of normal patches. Patches past a clip's end are zero, and their distance is 0.
    """
    told = np.zeros(grid.shape[:2])
    for band, known in enumerate(bank.vectors):
        near = 1.0 - (_unit(grid[:, band]) @ known.astype(np.float32).T).max(axis=1)
        told[:, band] = (near - bank.usual[band, 0]) / bank.usual[band, 1]
    return np.where(grid.any(axis=2), told, 0.0)


def laid_on_mel(
    values: NDArray[np.float64], span: tuple[float, float], mel: LogMel, frames: int
) -> NDArray[np.float64]:
    """A map of patches (Pt, Pf) as one of mel bands and frames (M, F), by straight lines between patches' centres.

    Patches are equal parts of the clip, and equal parts of `span` (lowest and highest hertz) on HTK's mel scale, as in
    the encoders' filter banks. Bands beyond the span have the value of its edge.
    """
    times, bands = values.shape
    low, high, own = (_mel(np.asarray(hertz)) for hertz in (span[0], span[1], mel_centres(mel.rate, mel.config)))
    rows = np.clip((own - low) / (high - low) * bands - 0.5, 0, bands - 1)
    columns = np.clip((np.arange(frames) + 0.5) / frames * times - 0.5, 0, times - 1)
    across = np.stack([np.interp(columns, np.arange(times), values[:, band]) for band in range(bands)])
    return np.stack([np.interp(rows, np.arange(bands), column) for column in across.T], axis=1)


def _farthest(vectors: NDArray[np.float16], most: int) -> NDArray[np.int64]:
    """Rows of at most `most` vectors (K, D), each the one farthest from those before it, in the order of rows."""
    if len(vectors) <= most:
        return np.arange(len(vectors))
    single = vectors.astype(np.float32)
    chosen = [0]
    near = 1.0 - single @ single[0]
    for _ in range(most - 1):
        near[chosen[-1]] = -np.inf
        chosen.append(int(near.argmax()))
        near = np.minimum(near, 1.0 - single @ single[chosen[-1]])
    return np.sort(chosen)


def _nearest(
    vectors: NDArray[np.float16],
    clips: NDArray[np.int32],
    known: NDArray[np.float16],
    known_clips: NDArray[np.int32],
) -> NDArray[np.float32]:
    """Distances of patches (K, D) to the nearest of those `known` of another clip, where there is one."""
    between = 1.0 - vectors.astype(np.float32) @ known.astype(np.float32).T
    other = clips[:, None] != known_clips[None, :]
    near = np.where(other, between, np.inf).min(axis=1)
    return np.asarray(near[np.isfinite(near)])


def _usual(vectors: NDArray[np.float16], clips: NDArray[np.int32]) -> NDArray[np.float32]:
    """Median and spread (2,) of distances between the patches (K, D) of different clips, the nearest of each."""
    near = _nearest(vectors, clips, vectors, clips)
    if not len(near):
        return np.array([0.0, 1.0], np.float32)
    middle = float(np.median(near))
    spread = 1.4826 * float(np.median(np.abs(near - middle)))
    return np.array([middle, max(spread, _SMALLEST_SPREAD)], np.float32)


def _mixed(usual: NDArray[np.float32], near: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Median and spread (2,) of a mixture: a normal law of the `usual` ones, and a `share` of distances (K,)."""
    from scipy.special import ndtri

    count = max(_LAW, len(near))
    law = float(usual[0]) + float(usual[1]) * ndtri((np.arange(count) + 0.5) / count)
    values = np.concatenate([law, near.astype(np.float64)])
    shares = np.concatenate([np.full(count, (1 - share) / count), np.full(len(near), share / max(len(near), 1))])

    def median(of: NDArray[np.float64]) -> float:
        order = np.argsort(of, kind="stable")
        return float(of[order][np.searchsorted(np.cumsum(shares[order]), shares.sum() / 2)])

    middle = median(values)
    return np.array([middle, max(1.4826 * median(np.abs(values - middle)), _SMALLEST_SPREAD)], np.float32)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12), dtype=np.float32)


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(hertz / 700.0))
