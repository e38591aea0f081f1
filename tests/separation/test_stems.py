"""Stems add up to the clip, are found once, and belong to content, decoding and separator."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tests.separation.stand_in import LowPass, sound, write

from offkey.audio.cache import ArrayCache, content_key
from offkey.audio.io import AudioConfig, AudioError, read_clip
from offkey.data.loader import Failure
from offkey.separation.stems import Stems, bring_to_level
from offkey.types import Content


def test_both_parts_add_up_to_the_clip(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.wav", sound(200, 3000))
    pair = Stems(LowPass()).of(clip)
    np.testing.assert_array_equal(pair.background, read_clip(clip.path, AudioConfig()) - pair.foreground)
    np.testing.assert_allclose(pair.foreground, sound(200, 3000, noise=0.0), atol=1e-6)
    np.testing.assert_allclose(pair.background, sound(200, 3000, loud=0.0), atol=1e-6)


def test_a_clip_is_separated_once_whatever_its_name(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.wav", sound(200, 3000))
    other = tmp_path / "copy.wav"
    shutil.copy(clip.path, other)
    separator = LowPass()
    cache = ArrayCache(tmp_path / "cache")
    first = Stems(separator, cache=cache).pair(clip.path)
    again = Stems(separator, cache=cache).pair(other)
    assert separator.asked == 1
    np.testing.assert_array_equal(first.foreground, again.foreground)
    np.testing.assert_array_equal(first.background, again.background)


def test_other_weights_and_other_decoding_are_other_stems(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.wav", sound(200, 3000))
    cache = ArrayCache(tmp_path / "cache")
    Stems(LowPass(), cache=cache).foreground(clip.path)
    sharper = LowPass(edge=100.0)
    assert np.abs(Stems(sharper, cache=cache).foreground(clip.path)).max() < 1e-6
    slower = LowPass(rate=8000)
    assert len(Stems(slower, AudioConfig(rate=8000), cache).foreground(clip.path)) == 4000
    assert (sharper.asked, slower.asked) == (1, 1)


def test_the_level_scales_both_parts_and_needs_no_new_separation(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.wav", sound(200, 3000))
    separator, cache, loud = LowPass(), ArrayCache(tmp_path / "cache"), AudioConfig(level_dbfs=-10.0)
    Stems(separator, cache=cache).foreground(clip.path)
    pair = Stems(separator, loud, cache).pair(clip.path)
    assert separator.asked == 1
    np.testing.assert_allclose(np.add(*pair), read_clip(clip.path, loud), atol=1e-6)
    np.testing.assert_array_equal(Stems(separator, loud, cache).foreground(clip.path), pair.foreground)


def test_bring_to_level_leaves_silence_alone() -> None:
    silent = np.zeros(8, np.float32)
    np.testing.assert_array_equal(bring_to_level(silent, -20.0), silent)
    assert np.mean(bring_to_level(sound(200, 3000), -20.0) ** 2) == pytest.approx(0.01, rel=1e-5)


def test_at_another_rate_what_the_separator_cannot_hear_is_background(tmp_path: Path) -> None:
    given = sound(200, 12000, rate=44100)
    clip = write(tmp_path / "a.wav", given, rate=44100)
    pair = Stems(LowPass(), AudioConfig(rate=44100)).pair(clip.path)
    inner = slice(2000, -2000)  # resampling rings at the ends
    np.testing.assert_allclose(pair.foreground[inner], sound(200, 12000, noise=0.0, rate=44100)[inner], atol=2e-3)
    np.testing.assert_array_equal(pair.background, read_clip(clip.path, AudioConfig(rate=44100)) - pair.foreground)


def test_clean_and_noise_clips_are_taken_whole(tmp_path: Path) -> None:
    separator = LowPass()
    noise = write(tmp_path / "n.wav", sound(200, 3000), content=Content.NOISE)
    clean = write(tmp_path / "m.wav", sound(200, 3000), content=Content.MACHINE)
    stems = Stems(separator)
    np.testing.assert_array_equal(stems.of(noise).background, sound(200, 3000))
    np.testing.assert_array_equal(stems.of(clean).foreground, sound(200, 3000))
    assert not stems.of(noise).foreground.any()
    assert not stems.of(clean).background.any()
    assert separator.asked == 0


def test_sound_in_memory_is_split_alike(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.wav", sound(200, 3000))
    stems = Stems(LowPass())
    np.testing.assert_array_equal(stems.split(sound(200, 3000), 16000).foreground, stems.pair(clip.path).foreground)


def test_find_names_what_cannot_be_read_and_keeps_the_rest(tmp_path: Path) -> None:
    good = write(tmp_path / "a.wav", sound(200, 3000))
    bad = write(tmp_path / "b.wav", sound(200, 3000))
    bad.path.write_bytes(b"")
    stems = Stems(LowPass(), cache=ArrayCache(tmp_path / "cache"))
    failures: list[Failure] = []
    assert stems.find([good, bad], failures=failures) == [good]
    assert failures[0].path == bad.path
    assert "empty" in failures[0].problem
    with pytest.raises(AudioError, match="empty file"):
        stems.find([bad])


def test_too_small_a_cache_is_told(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener:
        def start(self, what: str, total: int, done: int = 0) -> None: ...
        def step(self, done: int, note: str = "") -> None: ...
        def say(self, text: str) -> None:
            said.append(text)

    clip = write(tmp_path / "a.wav", sound(200, 3000))
    Stems(LowPass(), cache=ArrayCache(tmp_path / "c", max_bytes=1000)).find([clip], Listener())
    assert "more than once" in said[0]
    Stems(LowPass(), cache=ArrayCache(tmp_path / "d")).find([clip], Listener())
    assert len(said) == 1


@pytest.mark.parametrize("broken", [lambda wave: np.stack([wave] * 3), lambda wave: np.full((2, len(wave)), np.nan)])
def test_a_broken_separator_is_told_with_the_clip(tmp_path: Path, broken: object) -> None:
    clip = write(tmp_path / "a.wav", sound(200, 3000))
    separator = LowPass()
    separator.separate = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(AudioError, match=r"a\.wav: the separator made"):
        Stems(separator).pair(clip.path)


@pytest.mark.parametrize("rate", [48000, 44100, 8000])
def test_recordings_of_24_bits_add_up_bit_for_bit_at_any_rate(tmp_path: Path, rate: int) -> None:
    wave = 0.3 * np.random.default_rng(0).standard_normal(rate)
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="PCM_24")
    cache = ArrayCache(tmp_path / "cache")
    for _ in range(2):  # found, and from the cache
        stems = Stems(LowPass(), AudioConfig(rate=rate), cache)
        pair = stems.pair(tmp_path / "a.wav")
        np.testing.assert_array_equal(np.add(*pair), read_clip(tmp_path / "a.wav", AudioConfig(rate=rate)))
        np.testing.assert_array_equal(stems.foreground(tmp_path / "a.wav"), pair.foreground)


def test_foregrounds_that_were_not_rounded_are_not_met_again(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.wav", sound(200, 3000, rate=48000), rate=48000)
    cache, config = ArrayCache(tmp_path / "cache"), AudioConfig(rate=48000)
    cache.put(content_key(clip.path, "foreground", config, LowPass().fingerprint()), np.ones(24000, np.float32))
    assert np.abs(Stems(LowPass(), config, cache).foreground(clip.path)).max() < 0.2
