"""What is normal in each band, when normal clips have come to those that a profile was made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offkey.explaining.patches import PatchBank, join_banks
from offkey.explaining.profile import KNOTS, Profile, Reach, Spectra

__all__ = ["join_profiles"]

_GRID = np.linspace(-60.0, 60.0, 2401)


def join_profiles(old: Profile, new: Profile, share: float) -> Profile:
    """The profile of all clips of two, those of `new` behind those of `old`; `share` in (0, 1) of the frames are new.

    Means, spreads and reconstruction errors are those of all frames (but for the smallest spread, below which a
    profile tells none); quantiles of the fluctuation are those of the mixture, between knots by straight lines.
    Patches are joined as `join_banks` says. What one of the two does not tell is left as `old` tells it, and how far
    clips go for a while is then told of none.
    """
    mean, spread = _moments((old.mean, old.spread), (new.mean, new.spread), share)
    spectra = Spectra(
        np.concatenate([old.spectra.levels, new.spectra.levels]),
        np.concatenate([old.spectra.seconds, new.spectra.seconds]),
        _mixed(old.spectra.fluctuation, new.spectra.fluctuation, share),
    )
    return replace(
        old,
        mean=mean.astype(np.float32),
        spread=spread.astype(np.float32),
        spectra=spectra,
        frame_error=_joined_error(old.frame_error, new.frame_error, share),
        band_error=_joined_bands(old.band_error, new.band_error, share),
        patches=_joined_patches(old.patches, new.patches, share),
        reach=_joined_reach(old.reach, new.reach),
    )


def _moments(
    old: tuple[NDArray[Any], NDArray[Any]], new: tuple[NDArray[Any], NDArray[Any]], share: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of a mixture, from those of its parts."""
    (a, a_spread), (b, b_spread) = ([np.asarray(part, dtype=np.float64) for part in both] for both in (old, new))
    mean = (1 - share) * a + share * b
    square = (1 - share) * (a_spread**2 + (a - mean) ** 2) + share * (b_spread**2 + (b - mean) ** 2)
    return mean, np.sqrt(square)


def _joined_error(
    old: NDArray[np.float32] | None, new: NDArray[np.float32] | None, share: float
) -> NDArray[np.float32] | None:
    """Mean over frames, deviation of the clips' means, deviation within clips, of all clips."""
    if old is None or new is None:
        return old
    a, b = old.astype(np.float64), new.astype(np.float64)
    mean, between = _moments((a[:1], a[1:2]), (b[:1], b[1:2]), share)
    within = (1 - share) * a[2:] ** 2 + share * b[2:] ** 2
    return np.concatenate([mean, between, np.sqrt(within)]).astype(np.float32)


def _joined_bands(
    old: NDArray[np.float32] | None, new: NDArray[np.float32] | None, share: float
) -> NDArray[np.float32] | None:
    """Mean and deviation (M, 2) of the errors of all frames."""
    if old is None or new is None:
        return old
    return np.stack(_moments((old[:, 0], old[:, 1]), (new[:, 0], new[:, 1]), share), axis=1).astype(np.float32)


def _joined_patches(old: PatchBank | None, new: PatchBank | None, share: float) -> PatchBank | None:
    return old if old is None or new is None else join_banks(old, new, share)


def _joined_reach(old: Reach | None, new: Reach | None) -> Reach | None:
    if old is None or new is None:
        return None
    return Reach(np.concatenate([old.highest, new.highest]), np.concatenate([old.lowest, new.lowest]))


def _mixed(old: NDArray[np.float32], new: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Quantiles (M, 13) of a mixture, from those of its parts."""
    from scipy.special import ndtr

    wanted = ndtr(KNOTS)
    rows = []
    for a, b in zip(old.astype(np.float64), new.astype(np.float64), strict=True):
        below = (1 - share) * np.interp(_GRID, *_rising(a), left=0.0, right=1.0) + share * np.interp(
            _GRID, *_rising(b), left=0.0, right=1.0
        )
        rows.append(np.clip(np.interp(wanted, below, _GRID), min(a[0], b[0]), max(a[-1], b[-1])))
    return np.stack(rows).astype(np.float32)


def _rising(quantiles: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of a distribution function: the quantiles (13,), made strictly rising, and the shares below them."""
    from scipy.special import ndtr

    return np.maximum.accumulate(quantiles) + 1e-9 * np.arange(len(quantiles)), ndtr(KNOTS)
