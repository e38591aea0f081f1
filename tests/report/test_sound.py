"""Spectrograms show frequencies where they are, and audio survives its way into the page."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import soundfile

from offkey.report.sound import encode_audio, picture, png, spectrogram, spectrum_of


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
@pytest.mark.parametrize("frequency", [100.0, 1000.0, 3000.0])
def test_a_tone_stands_in_its_band_at_its_level(rate, frequency):
    time = np.arange(2 * rate) / rate
    spectrum = spectrogram((0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32), rate)
    loudest = int(np.median(spectrum.level.argmax(axis=0)))
    width = rate / 1024
    assert spectrum.edges[loudest] - 2 * width <= frequency <= spectrum.edges[loudest + 1] + 2 * width
    assert spectrum.seconds == 2.0
    assert -20 < np.median(spectrum.level.max(axis=0)) <= -6.0


def test_a_click_stands_at_its_time():
    wave = np.zeros(32000, np.float32)
    wave[24000] = 1.0
    level = spectrogram(wave, 16000).level
    assert level.max(axis=0).argmax() / level.shape[1] == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("count", [1, 100, 1023, 1024, 1025, 700_000])
def test_any_length_gives_a_bounded_finite_picture(count):
    spectrum = spectrogram(np.full(count, 0.1, np.float32), 16000)
    assert np.isfinite(spectrum.level).all()
    assert 1 <= spectrum.level.shape[1] <= 300


def test_picture_has_low_frequencies_at_the_bottom():
    time = np.arange(32000) / 16000
    spectrum = spectrogram((0.5 * np.sin(2 * np.pi * 50 * time)).astype(np.float32), 16000)
    data = picture(spectrum, -80.0, -10.0)
    height, width, rows = _decode(data)
    assert (height, width) == spectrum.level.shape
    assert rows.mean(axis=1).argmax() > 0.9 * height


def _decode(data: bytes) -> tuple[int, int, np.ndarray]:
    """An independent reading of the PNG, through its chunks."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    place, found = 8, {}
    while place < len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + size]
        (check,) = struct.unpack(">I", data[place + 8 + size : place + 12 + size])
        assert check == zlib.crc32(kind + body)
        found[kind] = body
        place += 12 + size
    width, height = struct.unpack(">II", found[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return height, width, rows[:, 1:]


def test_png_is_read_by_others():
    image = pytest.importorskip("PIL.Image")
    shades = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = np.arange(36, dtype=np.uint8).reshape(12, 3)
    with image.open(io.BytesIO(png(shades, palette))) as opened:
        assert np.array_equal(np.asarray(opened.convert("RGB")), palette[shades])


def test_flac_returns_16_bit_recordings_bit_for_bit_and_doubled_ones_do_not_grow():
    rng = np.random.default_rng(0)
    whole = rng.integers(-2000, 2000, 16000).astype(np.int16)
    samples = (whole / 32768).astype(np.float32)
    kind, plain = encode_audio(samples, 16000, 0, small=False)
    assert kind == "audio/flac"
    assert np.array_equal(soundfile.read(io.BytesIO(plain), dtype="int16")[0], whole)
    _, louder = encode_audio(samples, 16000, 3, small=False)
    assert np.array_equal(soundfile.read(io.BytesIO(louder), dtype="int16")[0], whole * 8)
    assert len(louder) < 1.01 * len(plain)


def test_overshoot_is_cut_and_never_wraps():
    _, data = encode_audio(np.array([2.0, -2.0] * 5000, np.float32), 16000, 2, small=False)
    heard, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    assert set(heard.tolist()) == {32767, -32768}


def test_small_audio_is_much_smaller_and_falls_back_where_mp3_cannot():
    noise = (0.1 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
    kind, data = encode_audio(noise, 16000, 0, small=True)
    assert kind == "audio/mpeg"
    assert len(data) < 0.4 * len(encode_audio(noise, 16000, 0, small=False)[1])
    assert encode_audio(noise, 17000, 0, small=True)[0] == "audio/flac"


def test_a_map_of_other_bands_stands_at_its_frequencies_and_is_cut_with_the_clip():
    values = np.zeros((40, 500), np.float32)
    values[10, 200] = 1.0  # 2.0 to 2.2 kHz, at 8 s of 20
    found = spectrum_of(values, np.linspace(0.0, 8000.0, 41), 20.0, 10.0)
    assert found.seconds == 10.0
    assert found.level.shape[1] == 250
    rows, columns = np.nonzero(found.level)
    assert set(columns) == {200}
    assert 1900 < found.edges[rows.min()] <= found.edges[rows.max() + 1] < 2300
    assert spectrum_of(values, np.linspace(0.0, 8000.0, 41), 20.0, 30.0).level.shape[1] == 300
