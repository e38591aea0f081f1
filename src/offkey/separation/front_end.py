"""Separation before features: a detector that hears the foreground of every clip alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offkey.audio.cache import ArrayCache
from offkey.audio.io import AudioConfig
from offkey.separation.stems import ClipSeparator, Pair, Stems, bring_to_level
from offkey.types import Float

__all__ = ["FITTED", "FOLDER", "FrontEnd"]

FITTED = "separator"
"""Where a detector's folder has the separator that was fitted for it, with how it was trained."""

FOLDER = "front_end"
"""Where a detector keeps its separator, below its own folder."""


class FrontEnd:
    """Turns a decoded clip into one of its two parts, the same when learning and when scoring.

    `keep` says which; the machine is the foreground. Where `audio.level_dbfs` is set, it is the part that is brought
    to that level: noise around a machine would otherwise decide how loud the machine is. What is costly is kept in
    the cache by the content of the file and the separator's fingerprint, and shared with `Stems`.
    """

    def __init__(self, separator: ClipSeparator, keep: Literal["foreground", "background"] = "foreground") -> None:
        self.separator = separator
        self.keep = keep
        self._stems: dict[tuple[AudioConfig, str], Stems] = {}

    @property
    def fingerprint(self) -> str:
        """Stands for what is done to a clip: another part or other weights have another one."""
        return f"{self.keep} {self.separator.fingerprint()}"

    def read(self, path: Path, config: AudioConfig, cache: ArrayCache | None = None) -> Float[np.ndarray, " T"]:
        """The kept part of a file, decoded as `read_clip` would; raises AudioError where it cannot be read."""
        stems = self._for(config, cache)
        part = stems.foreground(path) if self.keep == "foreground" else stems.pair(path).background
        return bring_to_level(part, config.level_dbfs)

    def prepare(
        self, samples: NDArray[Any], rate: int, config: AudioConfig, name: str = "array"
    ) -> Float[np.ndarray, " T"]:
        """The kept part of sound in memory, (T,) or (T, channels) at `rate` Hz, as `offkey.audio.io.prepare`."""
        pair: Pair = self._for(config, None).split(samples, rate, name)
        return bring_to_level(getattr(pair, self.keep), config.level_dbfs)

    def save(self, folder: Path) -> Path:
        """Write the separator into `folder`/front_end, so that a detector stays one folder; returns that place."""
        separator: Any = self.separator
        separator.save(folder / FOLDER)
        return folder / FOLDER

    @classmethod
    def load(cls, folder: Path, keep: Literal["foreground", "background"] = "foreground") -> FrontEnd:
        """The front end whose separator lies in `folder`; raises its errors where it is missing or was changed."""
        from offkey.separation.separator import Separator

        return cls(Separator.load(folder), keep)

    def _for(self, config: AudioConfig, cache: ArrayCache | None) -> Stems:
        # The part is levelled here and not by the stems, which would level the whole clip.
        plain = config.model_copy(update={"level_dbfs": None})
        key = (plain, str(cache.folder) if cache else "")
        stems = self._stems.get(key)
        if stems is None:
            stems = self._stems.setdefault(key, Stems(self.separator, plain, cache))
        return stems
