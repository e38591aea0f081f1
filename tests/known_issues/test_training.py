"""Past bugs of what is learnt from."""

from __future__ import annotations

from collections import Counter
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


def test_whole_recordings_are_held_out() -> None:
    """Slices of a recording that the network learnt from are not new to it."""
    rng = np.random.default_rng(0)
    config = load_preset("discriminative", ["calibration.false_alarm_rate=0.2"])
    clips = [
        ClipMeta(Path(f"{number}.wav"), "fan", session=f"day {number // 8}" if number < 160 else "")
        for number in range(176)
    ]
    codes = [(int(number >= 80), (), 0) for number in range(176)]
    codes[160:] = [(2, (), 0)] * 16  # a class of recordings by themselves
    shuffled = rng.permutation(176).tolist()
    held = held_out_places([clips[place] for place in shuffled], [codes[place] for place in shuffled], config)
    places = {shuffled[place] for place in held}
    days = Counter(clips[place].session for place in places if place < 160)
    assert set(days.values()) == {8}
    assert len(days) + sum(place >= 160 for place in places) == 4  # what 0.2 takes; a tenth of 36 is no more
    # a class that is one recording alone is not given up
    alone = [ClipMeta(Path(f"{number}.wav"), "fan", session=f"day {number // 4}") for number in range(40)]
    for seed in range(5):
        given = held_out_places(
            alone, [(int(number < 4), (), 0) for number in range(40)], config.model_copy(update={"seed": seed})
        )
        assert given
        assert min(given) >= 4
    # classes of two recordings each can spare one of them
    pairs = held_out_places(alone, [(number // 8, (), 0) for number in range(40)], config)
    assert len({place // 4 for place in pairs}) == 2
    assert len(pairs) == 8
