"""Which parts of a clip make its score: each is made normal in turn, the clip is scored again, and the drop is told.

A tile of time and frequency is brought to what normal clips have there by a gain a band and frame, in the clip's
short-time Fourier transform, so that any system can be asked, whatever it looks at. Large tiles come first; those that
count are split. Nothing is drawn at random.

M. D. Zeiler, R. Fergus: Visualizing and understanding convolutional networks, ECCV 2014, 818-833 (occlusion).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offkey.audio.mel import LogMel, mel_centres

__all__ = ["Score", "Tile", "occlusion_map"]

Score = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Waveforms (B, T) at the model's rate -> their scores (B,), higher is stranger."""

TIMES, BANDS = 8, 6
"""Tiles of the first round along time and along frequency."""

SPLIT, ROUNDS = 4, 2
"""Tiles that are split into four, a round, and how many rounds there are: 1 + 48 + 2 · 16 scores a clip."""

_BATCH = 16
_MOST_SAMPLES = 5_000_000  # of a batch: an hour's recording must not fill the memory
_SHORTEST_SECONDS = 0.1  # of a tile: what is shorter is not told apart from noise
_LEAST_BANDS = 3
_LOUDER_DB, _QUIETER_DB = 12.0, -40.0  # a gap is filled with what little noise it holds: not beyond reason


class Tile(NamedTuple):
    """Mel bands `low` … `high` and frames `start` … `end`, the ends not in."""

    low: int
    high: int
    start: int
    end: int


def occlusion_map(
    waveform: NDArray[np.float32], mel: LogMel, change: NDArray[np.float64], score: Score
) -> NDArray[np.float64]:
    """(M, F) how much of a clip's score each place makes, in units of the score a cell; the sum is that of all tiles.

    `waveform` (T,) at the model's rate; `change` (M, F) is the gain in dB that makes each place of the clip's log-mel
    normal. A tile's share is the drop of the score once it is changed, positive where that makes the clip more normal;
    the tiles that it is split into share it in proportion to their own drops. The clip's RMS level is kept, as that
    of every clip is where a system levels its clips, and does no harm elsewhere: a tile changes it by little.
    """
    bands, frames = change.shape
    occlude = _Occluder(waveform, mel, np.clip(change, _QUIETER_DB, _LOUDER_DB))
    seconds = mel.config.hop / mel.rate
    least = max(1, round(_SHORTEST_SECONDS / seconds))
    own = float(score(waveform[None])[0])
    size = max(1, min(_BATCH, _MOST_SAMPLES // len(waveform)))

    def drops(tiles: list[Tile]) -> list[float]:
        told: list[float] = []
        for begin in range(0, len(tiles), size):
            told += (own - score(occlude(tiles[begin : begin + size]))).tolist()
        return told

    tiles = [
        Tile(low, high, start, end)
        for low, high in _parts(0, bands, min(BANDS, max(1, bands // _LEAST_BANDS)))
        for start, end in _parts(0, frames, min(TIMES, max(1, frames // least)))
    ]
    shares = dict(zip(tiles, drops(tiles), strict=True))
    for _ in range(ROUNDS):
        wanted = sorted((tile for tile in shares if shares[tile] > 0), key=lambda tile: (-_density(shares, tile), tile))
        parents = [(tile, _quarters(tile, least)) for tile in wanted]
        parents = [(tile, parts) for tile, parts in parents if len(parts) > 1][:SPLIT]
        found = dict(zip(every := [part for _, parts in parents for part in parts], drops(every), strict=True))
        for tile, parts in parents:
            positive = np.maximum([found[part] for part in parts], 0.0)
            part_of = positive / positive.sum() if positive.sum() > 0 else np.full(len(parts), 1 / len(parts))
            whole = shares.pop(tile)
            shares.update({part: whole * float(share) for part, share in zip(parts, part_of, strict=True)})
    drawn = np.zeros(change.shape)
    for tile in shares:
        drawn[tile.low : tile.high, tile.start : tile.end] = _density(shares, tile)
    return drawn


def _density(shares: dict[Tile, float], tile: Tile) -> float:
    return shares[tile] / ((tile.high - tile.low) * (tile.end - tile.start))


def _parts(begin: int, end: int, count: int) -> list[tuple[int, int]]:
    """Equal parts of a range."""
    borders = [begin + number * (end - begin) // count for number in range(count + 1)]
    return list(pairwise(borders))


def _quarters(tile: Tile, least: int) -> list[Tile]:
    """The halves of a tile along time and along frequency, as far as they are not too small."""
    times = 2 if tile.end - tile.start >= 2 * least else 1
    bands = 2 if tile.high - tile.low >= 2 * _LEAST_BANDS else 1
    return [
        Tile(low, high, start, end)
        for low, high in _parts(tile.low, tile.high, bands)
        for start, end in _parts(tile.start, tile.end, times)
    ]


class _Occluder:
    """Tiles -> waveforms (B, T) in which each tile of a clip is made normal."""

    def __init__(self, waveform: NDArray[np.float32], mel: LogMel, change: NDArray[np.float64]) -> None:
        import torch

        self.length = len(waveform)
        self.size = mel.config.n_fft
        self.hop = min(mel.config.hop, self.size // 2)  # windows must overlap for the way back
        self.window = torch.hann_window(self.size, periodic=True)
        samples = torch.from_numpy(np.array(waveform, dtype=np.float32))
        self.level = float(samples.square().mean().sqrt())
        self.spectrum = torch.stft(
            samples, self.size, self.hop, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        # a gain a bin from the gains of the bands around it, and one a frame of this transform from mel's frames
        centres = mel_centres(mel.rate, mel.config)
        bins = np.arange(self.size // 2 + 1) * (mel.rate / self.size)
        self.spread = torch.from_numpy(
            np.stack([np.interp(bins, centres, row) for row in np.eye(len(centres))], axis=1).astype(np.float32)
        )
        count = self.spectrum.shape[-1]
        self.places = np.minimum(np.arange(count) * self.hop // mel.config.hop, change.shape[1] - 1)
        self.change = change.astype(np.float32)

    def __call__(self, tiles: list[Tile]) -> NDArray[np.float32]:
        import torch

        decibels = np.zeros((len(tiles), *self.change.shape), dtype=np.float32)
        for row, (low, high, start, end) in zip(decibels, tiles, strict=True):
            row[low:high, start:end] = self.change[low:high, start:end]
        with torch.inference_mode():
            gain = 10.0 ** (self.spread @ torch.from_numpy(decibels[:, :, self.places]) / 20.0)
            made = torch.istft(
                self.spectrum * gain, self.size, self.hop, window=self.window, center=True, length=self.length
            )
            level = made.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
            return np.asarray((made * (self.level / level)).numpy())
