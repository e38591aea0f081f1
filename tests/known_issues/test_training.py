"""Past bugs of what is learnt from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from offkey.audio.io import AudioConfig
from offkey.data.loader import ClipReader
from offkey.scoring.calibrate import clips_needed
from offkey.systems.config import load_preset
from offkey.systems.lessons import held_out_places, label_clips
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
    assert "fan/00/unknown#0" in space.identities
    assert len(space.identities) == 2


def test_every_machine_gives_up_enough_clips_for_its_threshold() -> None:
    # six settings of ten clips: a tenth of each, rounded down a setting, left six clips where nine were needed
    clips = [
        ClipMeta(Path(f"{number}.wav"), "fan", attributes=(("spd", str(number % 6)),), split=Split.TRAIN)
        for number in range(60)
    ] + [ClipMeta(Path(f"t{number}.wav"), "fan", attributes=(("spd", "9"),), split=Split.TRAIN) for number in range(3)]
    config = load_preset("discriminative")
    codes = [(number % 6 if number < 60 else 6, (), 0) for number in range(63)]
    held = held_out_places(clips, codes, config)
    assert len(held) == clips_needed(config.calibration.false_alarm_rate) == 9
    assert not held & {60, 61, 62}, "a class of three clips gives up none"
    assert len({place % 6 for place in held}) >= 5, "they are spread over the settings"
    assert held_out_places(clips, codes, config) == held
    none = load_preset("discriminative", ["training.held_out_share=0"])
    assert held_out_places(clips, codes, none) == set()
