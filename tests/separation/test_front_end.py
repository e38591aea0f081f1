"""The front end gives features one part of a clip, the same from a file, from memory and from the cache."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.separation.stand_in import LowPass, sound, write

from offkey.audio.cache import ArrayCache
from offkey.audio.io import AudioConfig
from offkey.separation.front_end import FOLDER, FrontEnd
from offkey.separation.stems import Stems


@pytest.mark.parametrize("keep", ["foreground", "background"])
@pytest.mark.parametrize("level", [None, -20.0])
def test_file_memory_and_cache_agree(tmp_path: Path, keep: str, level: float | None) -> None:
    clip = write(tmp_path / "a.wav", sound(200, 3000))
    config, cache = AudioConfig(level_dbfs=level), ArrayCache(tmp_path / "cache")
    front = FrontEnd(LowPass(), keep)
    plain = front.read(clip.path, config)
    for other in (
        front.read(clip.path, config, cache),
        front.read(clip.path, config, cache),
        front.prepare(sound(200, 3000), 16000, config),
    ):
        np.testing.assert_array_equal(plain, other)
    if level is None:
        silent = {"foreground": {"noise": 0.0}, "background": {"loud": 0.0}}[keep]
        np.testing.assert_allclose(plain, sound(200, 3000, **silent), atol=1e-6)
    else:
        assert np.mean(plain**2) == pytest.approx(0.01, rel=1e-5)


def test_noise_does_not_decide_how_loud_the_machine_is() -> None:
    config, front = AudioConfig(level_dbfs=-20.0), FrontEnd(LowPass())
    quiet, noisy = (front.prepare(sound(200, 3000, noise=noise), 16000, config) for noise in (0.01, 0.8))
    np.testing.assert_allclose(quiet, noisy, atol=1e-4)


def test_the_cache_is_shared_with_stems(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.wav", sound(200, 3000))
    separator, cache = LowPass(), ArrayCache(tmp_path / "cache")
    Stems(separator, cache=cache).pair(clip.path)
    front = FrontEnd(separator)
    for level in (None, -20.0, -30.0):
        front.read(clip.path, AudioConfig(level_dbfs=level), cache)
    assert separator.asked == 1


def test_the_fingerprint_tells_part_and_weights() -> None:
    told = {FrontEnd(LowPass(), "foreground").fingerprint, FrontEnd(LowPass(), "background").fingerprint}
    assert len(told | {FrontEnd(LowPass(edge=500.0)).fingerprint}) == 3
    assert FrontEnd(LowPass()).fingerprint in told


def test_it_is_saved_below_the_detector_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "offkey.separation.separator", SimpleNamespace(Separator=LowPass))
    front = FrontEnd(LowPass(edge=700.0), "background")
    place = front.save(tmp_path)
    assert place == tmp_path / FOLDER
    assert FrontEnd.load(place, "background").fingerprint == front.fingerprint
