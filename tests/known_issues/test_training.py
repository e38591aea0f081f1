"""Past bugs of what is learnt from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from offkey.audio.io import AudioConfig
from offkey.data.loader import ClipReader
from offkey.systems.config import load_preset
from offkey.systems.discriminative import label_clips
from offkey.types import ClipMeta, Content, Split


def test_clusters_broke_on_a_machine_of_which_there_are_supplemental_clips_alone(tmp_path: Path) -> None:
    clips = []
    for number in range(3):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, 0.1 * np.random.default_rng(number).standard_normal(8000), 16000)
        clips.append(ClipMeta(path, "fan", split=Split.TRAIN))
    noise = ClipMeta(tmp_path / "noise.wav", "pump", split=Split.SUPPLEMENTAL, content=Content.NOISE)
    config = load_preset("discriminative", ["labels.identity=clusters"])
    space = label_clips([*clips, noise], config, ClipReader(AudioConfig()), workers=0)
    assert "fan/00#0" in space.identities
    assert len(space.identities) == 2
