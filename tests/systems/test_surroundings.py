"""How much clips differ: the machine's spectrum, not its level."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from offkey.audio.io import AudioConfig
from offkey.audio.mel import MelConfig
from offkey.systems.surroundings import unlikeness
from offkey.types import ClipMeta

AUDIO, MEL = AudioConfig(rate=16000), MelConfig()


def write(folder: Path, name: str, tilt_db: float, level: float = 0.1, machine: str = "fan") -> ClipMeta:
    """Steady noise whose spectrum rises by `tilt_db` from the lowest to the highest frequency."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(32000))
    spectrum *= 10.0 ** (np.linspace(0.0, tilt_db, len(spectrum)) / 20.0)
    sound = np.fft.irfft(spectrum)
    path = folder / machine / name
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, level * sound / np.abs(sound).max(), 16000, subtype="FLOAT")
    return ClipMeta(path, machine)


def test_levels_do_not_count(tmp_path: Path) -> None:
    clips = [write(tmp_path, f"{place}.wav", 0.0, level) for place, level in enumerate((0.02, 0.2, 0.8))]
    assert unlikeness(clips, AUDIO, MEL) == pytest.approx(0.0, abs=1e-3)


def test_spectra_do_by_their_deviation(tmp_path: Path) -> None:
    some = [write(tmp_path, f"a{tilt}.wav", tilt) for tilt in (-3.0, 3.0)]
    more = [write(tmp_path, f"b{tilt}.wav", tilt) for tilt in (-6.0, 6.0)]
    assert 0.3 < unlikeness(some, AUDIO, MEL) < 3.0
    assert unlikeness(more, AUDIO, MEL) == pytest.approx(2 * unlikeness(some, AUDIO, MEL), rel=0.05)


def test_two_machines_are_not_compared_with_each_other(tmp_path: Path) -> None:
    fan = [write(tmp_path, f"{place}.wav", -9.0) for place in range(2)]
    pump = [write(tmp_path, f"{place}.wav", 9.0, machine="pump") for place in range(2)]
    assert unlikeness(fan + pump, AUDIO, MEL) == pytest.approx(0.0, abs=1e-3)


def test_what_cannot_be_read_does_not_count(tmp_path: Path) -> None:
    clips = [write(tmp_path, "a.wav", 0.0), write(tmp_path, "b.wav", 6.0)]
    told = unlikeness(clips, AUDIO, MEL)
    (tmp_path / "fan" / "c.wav").write_bytes(b"no sound")
    assert unlikeness([*clips, ClipMeta(tmp_path / "fan" / "c.wav", "fan")], AUDIO, MEL) == told
    assert math.isnan(unlikeness(clips[:1], AUDIO, MEL))
