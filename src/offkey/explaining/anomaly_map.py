"""The map of a system's own objections to a clip, over mel bands and frames, whatever the system is made of.

patches          an encoder's patches: how far each lies from normal ones of its band
reconstruction   a model's error a band and frame, or a frame alone, in deviations of that in normal clips
occlusion        any other: how much of the score goes when a place is made normal
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offkey.audio.mel import LogMel
from offkey.explaining.occlusion import Score, occlusion_map
from offkey.explaining.patches import laid_on_mel, patch_distances
from offkey.explaining.profile import Profile

__all__ = ["AnomalyMap", "Asked", "MapKind", "PatchGrid", "anomaly_map", "weight"]

MapKind = Literal["patches", "reconstruction", "occlusion"]

_SMOOTH_BANDS, _SMOOTH_SECONDS = 8, 0.2  # a system's map is coarse: its tiles or patches say no more than the region
_SMALLEST_ERROR = 1e-6
_SMALLEST_SPREAD = 0.05


class PatchGrid(NamedTuple):
    """An encoder's patches of one clip: `vectors` (Pt, Pf, D) float32, over `span` in hertz along frequency."""

    vectors: NDArray[np.float32]
    span: tuple[float, float]


class Asked(NamedTuple):
    """What a system can be asked about one clip, each None where it cannot.

    `error_map` (M, F) squared error a band and frame; `frame_error` (F',) over equal parts of the clip; `patches`;
    `score` judges waveforms.
    """

    error_map: NDArray[np.float64] | None = None
    frame_error: NDArray[np.float64] | None = None
    patches: PatchGrid | None = None
    score: Score | None = None


@dataclass(frozen=True, eq=False)
class AnomalyMap:
    """`values` (M, F), higher where the system objects more, near or below 0 where it does not; `name` tells what."""

    values: NDArray[np.float32]
    kind: MapKind
    name: str


def anomaly_map(
    asked: Asked, profile: Profile, waveform: NDArray[np.float32], mel: LogMel, change: NDArray[np.float64]
) -> AnomalyMap | None:
    """The map (M, F) of a clip (T,): the first of the three that the system can give; None where it can give none.

    `change` (M, F) in dB makes the clip normal, for `occlusion_map`.
    """
    bands, frames = change.shape
    if asked.patches is not None and profile.patches is not None:
        grid = patch_distances(asked.patches.vectors, profile.patches)
        drawn = laid_on_mel(grid, asked.patches.span, mel, frames)
        return AnomalyMap(drawn.astype(np.float32), "patches", "distance to normal patches (deviations)")
    if asked.error_map is not None and profile.band_error is not None:
        usual = profile.band_error.astype(np.float64)
        error = _fitted(np.log(np.maximum(asked.error_map, _SMALLEST_ERROR)), frames)
        drawn = (error - usual[:, :1]) / np.maximum(usual[:, 1:], _SMALLEST_SPREAD)
        return AnomalyMap(drawn.astype(np.float32), "reconstruction", "reconstruction error (deviations)")
    if asked.frame_error is not None:
        error = _fitted(asked.frame_error[None], frames)[0]
        known = profile.frame_error
        middle = float(np.median(error)) if known is None else float(known[0])
        spread = float(np.std(error)) if known is None else float(np.hypot(known[1], known[2]))
        curve = (error - middle) / max(spread, 1e-12)
        drawn = np.repeat(curve[None], bands, axis=0)
        return AnomalyMap(drawn.astype(np.float32), "reconstruction", "reconstruction error a frame (deviations)")
    if asked.score is not None:
        drawn = occlusion_map(waveform, mel, change, asked.score)
        total = float(np.abs(drawn).max())
        scaled = drawn / total if total > 0 else drawn
        return AnomalyMap(scaled.astype(np.float32), "occlusion", "what makes the score (share of the highest)")
    return None


def weight(drawn: AnomalyMap, frame: float) -> NDArray[np.float64]:
    """(M, F) in [0, 1]: where the system objects, blurred by what its map does not tell; a frame lasts `frame` s."""
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(
        np.maximum(drawn.values.astype(np.float64), 0.0), (_SMOOTH_BANDS, _SMOOTH_SECONDS / frame), mode="nearest"
    )
    return np.asarray(blurred / max(float(blurred.max()), 1e-12))


def _fitted(values: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    """(M, F) of values (M, F') over equal parts of the clip."""
    if values.shape[1] == frames:
        return values
    places = (np.arange(frames) + 0.5) * values.shape[1] / frames
    own = np.arange(values.shape[1]) + 0.5
    return np.stack([np.interp(places, own, row) for row in values])
