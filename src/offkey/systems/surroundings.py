"""How much recordings differ from one another: whether it is the machine or its surroundings that changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offkey.audio.io import AudioConfig, AudioError, read_clip
from offkey.audio.mel import LogMel, MelConfig
from offkey.types import ClipMeta

__all__ = ["unlikeness"]

_MOST = 40  # clips of a machine that are compared


def unlikeness(clips: Sequence[ClipMeta], audio: AudioConfig, mel: MelConfig) -> float:
    """By how many dB the mean spectra of a machine's clips differ, whatever their levels.

    The standard deviation over clips of a mel band's mean over time (in dB, less the clip's mean over bands), as a root
    mean square over bands and machines. At most 40 clips of a machine are read, evenly spaced; those that cannot be
    read do not count. NaN where no machine has two clips.
    """
    import torch

    hear = LogMel(audio.rate, mel)
    variances: list[float] = []
    for machine in sorted({clip.machine for clip in clips}):
        own = sorted((clip for clip in clips if clip.machine == machine), key=lambda clip: str(clip.path))
        spectra = []
        for clip in own[:: -(-len(own) // _MOST)]:
            try:
                samples = read_clip(clip.path, audio)
            except AudioError:
                continue
            spectrum = hear(torch.from_numpy(np.array(samples))[None])[0].mean(1).double().numpy()
            spectra.append(spectrum - spectrum.mean())
        if len(spectra) > 1:
            variances.append(float(np.stack(spectra).var(axis=0, ddof=1).mean()))
    return float(np.sqrt(np.mean(variances))) if variances else float("nan")
