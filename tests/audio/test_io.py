"""Every file gets its sound or a clear verdict."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from offkey.audio.io import SOUND_LIMITS, AudioConfig, AudioError, inspect, prepare, read_clip, read_header

RATE = 16000
CONFIG = AudioConfig()


def tone(seconds: float = 1.0, rate: int = RATE, frequency: float = 440.0) -> NDArray[np.float64]:
    return 0.25 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write(path: Path, samples: NDArray[np.float64], rate: int = RATE, **how: str) -> Path:
    soundfile.write(path, samples, rate, **how)
    return path


def problem_of(path: Path, config: AudioConfig = CONFIG) -> str:
    """The problem of a refused file, by both doors."""
    with pytest.raises(AudioError) as caught:
        read_clip(path, config)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert caught.value.advice
    assert inspect(path, config).problems == (caught.value.problem,)
    return caught.value.problem


LOSSLESS = [
    ("a.wav", {"subtype": "PCM_U8"}, 1 / 128),
    ("a.wav", {"subtype": "PCM_16"}, 1 / 32768),
    ("a.wav", {"subtype": "PCM_24"}, 1e-6),
    ("a.wav", {"subtype": "PCM_32"}, 1e-7),
    ("a.wav", {"subtype": "FLOAT"}, 1e-7),
    ("a.wav", {"subtype": "DOUBLE"}, 1e-7),
    ("a.flac", {"subtype": "PCM_16"}, 1 / 32768),
    ("a.flac", {"subtype": "PCM_24"}, 1e-6),
    ("a.aiff", {"subtype": "PCM_16"}, 1 / 32768),
    ("a.au", {"subtype": "PCM_16"}, 1 / 32768),
    ("a.caf", {"subtype": "PCM_16"}, 1 / 32768),
    ("a.w64", {"subtype": "PCM_16"}, 1 / 32768),
    ("a.rf64", {"subtype": "PCM_16", "format": "RF64"}, 1 / 32768),
]


@pytest.mark.parametrize(("name", "how", "error"), LOSSLESS, ids=lambda value: str(value))
def test_lossless_formats_come_back_as_written(tmp_path, name, how, error):
    path = write(tmp_path / name, tone(), **how)
    clip = read_clip(path, CONFIG)
    assert clip.dtype == np.float32
    assert clip.shape == (RATE,)
    np.testing.assert_allclose(clip, tone(), atol=error)
    facts = inspect(path)
    assert (facts.rate, facts.channels, facts.problems, facts.remarks) == (RATE, 1, (), ())
    assert facts.seconds == pytest.approx(1.0)
    assert facts.level_dbfs == pytest.approx(20 * np.log10(0.25 / np.sqrt(2)), abs=0.1)


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_lossy_formats_keep_the_tone(tmp_path, name):
    clip = read_clip(write(tmp_path / name, tone(2.0)), CONFIG)
    assert abs(len(clip) - 2 * RATE) <= 2304
    spectrum = np.abs(np.fft.rfft(clip[4000:20000]))
    assert np.argmax(spectrum) == 440
    assert np.abs(clip).max() == pytest.approx(0.25, abs=0.05)


def test_one_channel_or_the_mean_is_chosen(tmp_path):
    left, right = tone(frequency=300), tone(frequency=900)
    path = write(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read_clip(path, AudioConfig(channel="0")), left, atol=1e-7)
    np.testing.assert_allclose(read_clip(path, AudioConfig(channel="1")), right, atol=1e-7)
    np.testing.assert_allclose(read_clip(path, CONFIG), (left + right) / 2, atol=1e-7)
    assert "channel 2" in problem_of(path, AudioConfig(channel="2"))


def test_eight_channels_are_averaged(tmp_path):
    sound = np.stack([tone(frequency=100.0 * (c + 1)) for c in range(8)], axis=1)
    clip = read_clip(write(tmp_path / "a.wav", sound, subtype="FLOAT"), CONFIG)
    np.testing.assert_allclose(clip, sound.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 192000])
def test_resampling_keeps_length_level_and_frequency(tmp_path, rate):
    path = write(tmp_path / "a.wav", tone(2.0, rate), rate, subtype="FLOAT")
    clip = read_clip(path, CONFIG)
    assert abs(len(clip) - 2 * RATE) <= 1
    inner = slice(RATE // 2, RATE * 3 // 2)
    np.testing.assert_allclose(clip[inner], tone(2.0)[inner], atol=2e-4)
    assert any("nothing above" in remark for remark in inspect(path).remarks) == (rate < RATE)


def test_resampling_removes_what_the_model_cannot_hear():
    high = tone(1.0, 48000, frequency=12000.0)
    assert np.abs(prepare(high, 48000, CONFIG)[800:-800]).max() < 1e-4


def test_level_is_brought_to_the_wanted_rms():
    clip = prepare(0.01 * tone(), RATE, AudioConfig(level_dbfs=-26.0))
    assert 20 * np.log10(np.sqrt(np.mean(np.square(clip, dtype=float)))) == pytest.approx(-26.0, abs=1e-4)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_samples_that_are_no_numbers_are_refused(tmp_path, value, word):
    sound = tone()
    sound[8000:8003] = value
    text = problem_of(write(tmp_path / "a.wav", sound, subtype="FLOAT"))
    assert text == f"3 {word} samples, the first at 0.50 s"


def test_infinities_of_both_signs_do_not_hide_each_other():
    sound = tone()
    sound[10], sound[20] = np.inf, -np.inf
    with pytest.raises(AudioError, match="2 infinite"):
        prepare(sound, RATE, CONFIG)


@pytest.mark.parametrize("size", [3e38, 1.01e10])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [RATE, 48000])
def test_samples_that_no_recording_has_are_refused(tmp_path, size, channels, rate):
    """Finite, and yet garbage: float32 cannot square them."""
    wave = 4 * tone(rate=rate).astype(np.float32)
    sound = np.stack([np.float32(size) * np.clip(wave, -1, 1)] * channels, axis=1)
    text = problem_of(write(tmp_path / "a.wav", sound, rate, subtype="FLOAT"))
    assert "not sound" in text
    assert "±1e+10" in text


def test_another_byte_order_is_no_sound(tmp_path):
    sound = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert "not sound" in problem_of(write(tmp_path / "a.wav", np.nan_to_num(sound.byteswap()), subtype="FLOAT"))
    with pytest.raises(AudioError, match="byte order"):
        prepare(np.nan_to_num(sound.byteswap()), RATE, CONFIG, "b.wav")


@pytest.mark.parametrize("size", [1e-40, 9e-11])
@pytest.mark.parametrize("level", [None, -20.0])
def test_what_is_smaller_than_any_step_is_silence(tmp_path, size, level):
    wave = np.float32(size) * 4 * tone().astype(np.float32)
    config = AudioConfig(level_dbfs=level)
    assert problem_of(write(tmp_path / "a.wav", wave, subtype="FLOAT"), config).startswith("silence")


def test_a_tone_that_does_not_outlast_resampling_is_refused():
    high = 1e-9 * tone(1.0, 48000, frequency=20000.0)
    with pytest.raises(AudioError, match="no sound is left at 16000 Hz"):
        prepare(high, 48000, AudioConfig(level_dbfs=-20.0))


@pytest.mark.parametrize("size", SOUND_LIMITS)
@pytest.mark.parametrize("level", [None, -20.0])
def test_within_the_limits_every_power_is_finite(size, level):
    torch = pytest.importorskip("torch")
    from offkey.audio.fbank import kaldi_fbank
    from offkey.audio.mel import LogMel

    wave = prepare(size * np.sign(tone()), RATE, AudioConfig(level_dbfs=level))
    assert np.isfinite(wave).all()
    assert level is None or 20 * np.log10(np.sqrt(np.mean(np.square(wave, dtype=float)))) == pytest.approx(
        level, abs=1e-3
    )
    for hear in (LogMel(RATE), lambda heard: kaldi_fbank(heard * 2**15)):
        assert torch.isfinite(hear(torch.from_numpy(wave)[None])).all()


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    assert problem_of(tmp_path / "a.wav") == "empty file: 0 bytes"


def test_no_samples_and_one_sample_are_too_short(tmp_path):
    assert "no samples" in problem_of(write(tmp_path / "none.wav", np.zeros(0)))
    assert "1 sample (6.25e-05 s), at least 0.1 s" in problem_of(write(tmp_path / "one.wav", tone()[5:6]))


def test_shortest_length_is_the_users_choice():
    short = tone(0.05)
    assert len(prepare(short, RATE, AudioConfig(min_seconds=0.05))) == 800
    with pytest.raises(AudioError, match="too short: 800 samples"):
        prepare(short, RATE, CONFIG)


def test_content_decides_over_the_ending(tmp_path):
    path = tmp_path / "a.wav"
    write(path, tone(), format="FLAC")
    assert len(read_clip(path, CONFIG)) == RATE
    assert inspect(path).problems == ()
    assert inspect(path).remarks == ("the ending .wav does not fit the content, which is FLAC",)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.raw", "a.mp3", "noending"])
@pytest.mark.parametrize("content", [b"no sound at all\n" * 400, bytes(9000), b"RIFF"])
def test_what_is_no_recording_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert "known format" in problem_of(path) or "truncated" in problem_of(path)


def test_known_formats_that_cannot_be_decoded_are_named(tmp_path):
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(4000))
    assert "cannot decode .m4a" in problem_of(path)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.wav", {}),
        ("a.wav", {"endian": "BIG"}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.wav", {"subtype": "IMA_ADPCM"}),
        ("a.aiff", {}),
        ("a.au", {}),
        ("a.w64", {}),
        ("a.rf64", {"format": "RF64"}),
        ("a.flac", {}),
        ("a.mp3", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [0.3, 0.62, 0.9])
def test_files_cut_short_are_refused_with_both_lengths(tmp_path, name, how, share):
    noise = 0.1 * np.random.default_rng(0).standard_normal(10 * RATE)
    path = write(tmp_path / name, noise, **how)
    whole = path.read_bytes()
    assert inspect(path).problems == ()
    path.write_bytes(whole[: int(share * len(whole))])
    text = problem_of(path)
    assert text.startswith("truncated: header promises 10.")
    present = float(text.split(", ")[1].split()[0])
    assert present == pytest.approx(10 * share, abs=0.3)


@pytest.mark.parametrize("how", [{"subtype": "VORBIS"}, {"subtype": "OPUS"}], ids=str)
def test_an_ogg_stream_without_its_end_is_refused(tmp_path, how):
    path = write(tmp_path / "a.ogg", tone(5.0), format="OGG", **how)
    whole = path.read_bytes()
    assert inspect(path).problems == ()
    for share in (0.6, 0.97):
        path.write_bytes(whole[: int(share * len(whole))])
        assert "no end mark" in problem_of(path)


def test_wav_of_unknown_length_is_read_whole(tmp_path):
    """Writers to a pipe cannot go back to fill in the length."""
    path = write(tmp_path / "a.wav", tone())
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    for unknown in (0xFFFFFFFF, 0x7FFFFFFF):
        content[at : at + 4] = struct.pack("<I", unknown)
        path.write_bytes(content)
        assert len(read_clip(path, CONFIG)) == RATE


def test_digital_silence_is_refused(tmp_path):
    assert problem_of(write(tmp_path / "a.wav", np.zeros(RATE))) == "digital silence: dead microphone or cable?"
    assert "constant value 0.125" in problem_of(write(tmp_path / "b.wav", np.full(RATE, 0.125)))


def test_channels_that_cancel_are_told_from_silence():
    with pytest.raises(AudioError, match="cancel each other"):
        prepare(np.stack([tone(), -tone()], axis=1), RATE, CONFIG)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: np.clip(20 * x, -1, 1), "clipping"),
        (lambda x: x + 0.2, "DC offset"),
        (lambda x: x * 1e-4, "very low level"),
        (lambda x: x * 32768, "over full scale"),
        (lambda x: x * 2**31, "over full scale"),
        (lambda x: x + 1e3, "DC offset"),
        (lambda x: np.stack([x, 0 * x], axis=1), "channel 1 is silent"),
    ],
)
def test_what_is_odd_but_usable_gets_a_remark(tmp_path, change, word):
    path = write(tmp_path / "a.wav", change(tone()), subtype="FLOAT")
    facts = inspect(path)
    assert facts.problems == ()
    assert any(word in remark for remark in facts.remarks)
    read_clip(path, CONFIG)


def test_one_loud_peak_is_no_clipping(tmp_path):
    sound = tone()
    sound[500] = 1.0
    assert inspect(write(tmp_path / "a.wav", sound, subtype="FLOAT")).remarks == ()


def test_missing_files_and_folders_are_told_apart(tmp_path):
    assert problem_of(tmp_path / "none.wav") == "there is no such file"
    assert "folder" in problem_of(tmp_path)


def test_arrays_are_treated_as_the_same_file_would_be(tmp_path):
    sound = np.stack([tone(1.0, 44100), tone(1.0, 44100, 700.0)], axis=1)
    config = AudioConfig(channel="1", level_dbfs=-20.0)
    path = write(tmp_path / "a.wav", sound, 44100, subtype="FLOAT")
    np.testing.assert_array_equal(prepare(sound.astype(np.float32), 44100, config), read_clip(path, config))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.float16, np.float64])
def test_arrays_of_any_number_type_are_scaled_to_one(kind):
    wave = tone()
    if np.issubdtype(kind, np.signedinteger):
        held = (wave * np.iinfo(kind).max).astype(kind)
    elif kind is np.uint8:
        held = (wave * 127 + 128).astype(kind)
    else:
        held = wave.astype(kind)
    np.testing.assert_allclose(prepare(held, RATE, CONFIG), wave, atol=0.01)


def test_the_callers_array_is_left_alone():
    for config in (CONFIG, AudioConfig(level_dbfs=-30.0)):
        for sound in (tone().astype(np.float32), np.stack([tone(), tone()], 1).astype(np.float32)):
            before = sound.copy()
            clip = prepare(sound, RATE, config)
            clip[:] = 9.0
            np.testing.assert_array_equal(sound, before)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 16000)), "transpose"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.zeros(5, complex), "complex"),
        (np.array(["a"]), "type"),
    ],
)
def test_arrays_of_a_wrong_form_say_what_to_pass(array, words):
    with pytest.raises(AudioError, match=words):
        prepare(array, RATE, CONFIG)


def test_nonsense_settings_are_refused():
    for wrong in ({"channel": "left"}, {"rate": 0}, {"level_dbfs": 3.0}, {"unknown": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AudioConfig(**wrong)


def test_the_error_survives_another_process():
    error = AudioError(Path("a.wav"), "too short", "Record longer")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.path, copy.problem) == (str(error), error.path, error.problem)
    assert str(error) == "a.wav: too short. Record longer."


def test_header_is_read_without_decoding(tmp_path):
    path = write(tmp_path / "a.flac", np.stack([tone(), tone()], 1), 44100)
    assert read_header(path) == (44100, 2, "FLAC", "PCM_16")
    (tmp_path / "b.wav").write_bytes(b"no")
    assert read_header(tmp_path / "b.wav") is None


def test_reading_and_checking_need_no_torch():
    code = "import sys, offkey.audio.io, offkey.data.check, offkey.data.labels; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
