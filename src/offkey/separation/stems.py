"""Foreground and background of every clip, found once and kept on disk.

Only the foreground is kept: the background is what it leaves of the recording. The two add up to it as exactly as
`separation.separator.add_up` has it, at any rate; where clips are brought to a level, to float32's last place.
An entry belongs to the content of a file, the way it is decoded and the separator's weights; a copy under another
name is not separated again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from offkey.audio.cache import ArrayCache, content_key
from offkey.audio.io import AudioConfig, AudioError, prepare, read_clip
from offkey.data.loader import Failure
from offkey.progress import Progress, Quiet
from offkey.types import ClipMeta, Content, Float

__all__ = ["STEMS_BYTES", "ClipSeparator", "Pair", "Stems", "bring_to_level"]

STEMS_BYTES = 12_000_000_000
"""Room that the foregrounds of a whole data set may take on disk: 7000 clips of 10 s at 16 kHz take 4.5 GB."""


@runtime_checkable
class ClipSeparator(Protocol):
    """What stems are found with: `separation.separator.Separator`, or a stand-in with its face.

    `config.rate` is the sampling rate in hertz that it works at.
    """

    config: Any

    def separate(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """(T,) -> (2, T), foreground first."""

    def fingerprint(self) -> str:
        """Stands for its weights and settings."""


class Pair(NamedTuple):
    """`foreground` and `background` of one clip, (T,) float32 each; they add up to the clip."""

    foreground: NDArray[np.float32]
    background: NDArray[np.float32]


class Stems:
    """Separates files as `read_clip` decodes them, each one once where there is a `cache`.

    At another rate than the separator's own, the clip is resampled for it and its foreground back and rounded, so that
    the parts add up; what the separator cannot hear (above half of its rate) is then background. `config.level_dbfs`
    scales both parts of a clip as it scales the clip. Safe to share between threads: they wait for each other where the
    separator itself is at work, so that memory holds one clip's spectra.
    """

    def __init__(
        self, separator: ClipSeparator, config: AudioConfig | None = None, cache: ArrayCache | None = None
    ) -> None:
        self.separator = separator
        self.config = config or AudioConfig()
        self.cache = cache
        self.fingerprint = separator.fingerprint()
        # The level is set after separation: one entry serves all levels.
        self._decoding = self.config.model_copy(update={"level_dbfs": None})
        # Foregrounds at other rates that an earlier offkey kept are not rounded: they are not to be met again.
        self._kind = "foreground" if int(separator.config.rate) == self.config.rate else "rounded foreground"
        self._one_at_a_time = threading.Lock()

    def foreground(self, path: Path) -> Float[np.ndarray, " T"]:
        """The machine in a file; read-only where it comes from the cache. Raises AudioError as `read_clip` does."""
        if self.config.level_dbfs is not None:
            return self.pair(path).foreground
        kept = self._kept(path)
        return kept if kept is not None else self._find(path, read_clip(path, self._decoding))

    def pair(self, path: Path) -> Pair:
        """Both parts of a file. Raises AudioError as `read_clip` does."""
        mixture = read_clip(path, self._decoding)
        kept = self._kept(path)
        return self._pair(mixture, kept if kept is not None else self._find(path, mixture))

    def of(self, clip: ClipMeta) -> Pair:
        """Both parts of a clip: one of noise alone is all background, one of the machine alone all foreground."""
        if clip.content is Content.MIXTURE:
            return self.pair(clip.path)
        whole = read_clip(clip.path, self.config)
        nothing = np.zeros_like(whole)
        return Pair(nothing, whole) if clip.content is Content.NOISE else Pair(whole, nothing)

    def split(self, samples: NDArray[Any], rate: int, name: str = "array") -> Pair:
        """Both parts of sound in memory, (T,) or (T, channels) at `rate` Hz; nothing is kept."""
        mixture = prepare(samples, rate, self._decoding, name)
        return self._pair(mixture, self._separate(mixture, name))

    def find(
        self, clips: Sequence[ClipMeta], progress: Progress | None = None, failures: list[Failure] | None = None
    ) -> list[ClipMeta]:
        """Separate what is not separated yet; returns the clips whose parts can be had.

        Without `failures` the AudioError of a clip that cannot be read is raised; with it, the clip is noted there.
        """
        progress = progress or Quiet()
        good, size = [], 0
        progress.start("separating", len(clips))
        for number, clip in enumerate(clips):
            try:
                part = self.foreground(clip.path) if clip.content is Content.MIXTURE else self.of(clip).foreground
            except AudioError as error:
                if failures is None:
                    raise
                failures.append(Failure(clip.path, error.problem))
            else:
                good.append(clip)
                size += part.nbytes if clip.content is Content.MIXTURE else 0
            progress.step(number + 1)
        if self.cache is None or size > self.cache.max_bytes:
            room = "no cache" if self.cache is None else f"{self.cache.max_bytes / 1e9:.1f} GB of cache"
            progress.say(
                f"the foregrounds take {size / 1e9:.1f} GB and there is {room}: some are separated more than once"
            )
        return good

    def _key(self, path: Path) -> str | None:
        try:
            return content_key(path, self._kind, self._decoding, self.fingerprint)
        except OSError:
            return None  # decoding says what is wrong with the file

    def _kept(self, path: Path) -> NDArray[np.float32] | None:
        key = self._key(path) if self.cache is not None else None
        return None if key is None or self.cache is None else self.cache.get(key)

    def _find(self, path: Path, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        found = self._separate(mixture, str(path))
        key = self._key(path)
        if self.cache is not None and key is not None:
            self.cache.put(key, found)
        return found

    def _separate(self, mixture: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        own, rate = int(self.separator.config.rate), self.config.rate
        heard = mixture if own == rate else _resample(mixture, rate, own)
        with self._one_at_a_time:
            found = np.asarray(self.separator.separate(heard), dtype=np.float32)
        if found.shape != (2, len(heard)) or not np.isfinite(found).all():
            raise AudioError(
                name,
                f"the separator made {found.shape} samples of {len(heard)}, or some that are not finite",
                "Train or copy the separator again",
            )
        if own == rate:
            return np.ascontiguousarray(found[0])
        foreground = _resample(found[0], own, rate)[: len(mixture)]
        # Resampling there and back may end a sample early or late.
        return _rounded(mixture, np.pad(foreground, (0, len(mixture) - len(foreground))))

    def _pair(self, mixture: NDArray[np.float32], foreground: NDArray[np.float32]) -> Pair:
        if self.config.level_dbfs is not None:
            gain = np.float32(_gain(mixture, self.config.level_dbfs))
            mixture, foreground = mixture * gain, foreground * gain
        return Pair(foreground, mixture - foreground)


def bring_to_level(samples: NDArray[np.float32], level_dbfs: float | None) -> NDArray[np.float32]:
    """Scale (T,) to an RMS level in dBFS; silence, and any clip where the level is None, stays as it is."""
    return samples if level_dbfs is None else samples * np.float32(_gain(samples, level_dbfs))


def _gain(samples: NDArray[np.float32], level_dbfs: float) -> float:
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return 10.0 ** (level_dbfs / 20.0) / power**0.5 if power > 0 else 1.0


def _rounded(mixture: NDArray[np.float32], foreground: NDArray[np.float32]) -> NDArray[np.float32]:
    """The foreground (T,) as `add_up` rounds it, so that it and what it leaves add up to the mixture (T,)."""
    import torch

    from offkey.separation.separator import add_up

    waves = [torch.from_numpy(np.array(wave, dtype=np.float32))[None] for wave in (mixture, foreground)]
    return np.ascontiguousarray(add_up(*waves)[0, 0].numpy())


def _resample(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    import soxr

    return np.asarray(soxr.resample(samples, rate, wanted, quality="HQ"), dtype=np.float32)
