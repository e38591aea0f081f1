"""Windows: where they begin, what is left over, streams, and that memory does not grow with the recording."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from offkey.audio.io import AudioError
from offkey.watching import PCM_FORMATS, Pcm, cut, windows_of_file, windows_of_stream

RATE = 1000


def frames(total: int, seconds: float = 1.0, step: float = 1.0, first: int = 0) -> list[tuple[int, int]]:
    """(first, last) value of each window of a ramp, read in odd pieces."""
    ramp, place = np.arange(total, dtype=np.float32)[:, None], 0

    def read(n: int) -> np.ndarray:
        nonlocal place
        block = ramp[place : place + max(1, n - 1 if n > 1 else n)]
        place += len(block)
        return block

    return [(int(w.samples[0, 0]), int(w.samples[-1, 0])) for w in cut(read, RATE, float(seconds), float(step), first)]


@pytest.mark.parametrize(
    ("total", "seconds", "step", "expected"),
    [
        (3000, 1, 1, [(0, 999), (1000, 1999), (2000, 2999)]),
        (2400, 1, 1, [(0, 999), (1000, 1999)]),
        (2500, 1, 1, [(0, 999), (1000, 1999), (1500, 2499)]),
        (400, 1, 1, [(0, 399)]),
        (0, 1, 1, []),
        (2000, 1, 0.5, [(0, 999), (500, 1499), (1000, 1999)]),
        (2600, 1, 0.5, [(0, 999), (500, 1499), (1000, 1999), (1500, 2499)]),
        (5000, 1, 2, [(0, 999), (2000, 2999), (4000, 4999)]),
        (3300, 1, 2, [(0, 999), (2000, 2999)]),
    ],
)
def test_where_windows_lie(total: int, seconds: float, step: float, expected: list[tuple[int, int]]) -> None:
    assert frames(total, seconds=seconds, step=step) == expected
    for first in range(len(expected) + 1):  # a watch that goes on hears what it has not heard, and nothing twice
        if total >= 1000:
            assert frames(total, seconds=seconds, step=step, first=first) == expected[first:]


def test_steps_that_are_no_whole_frames_do_not_add_up_errors() -> None:
    begins = [begin for begin, _ in frames(100_000, seconds=0.1, step=1 / 3)]
    assert begins == [round(n * RATE / 3) for n in range(len(begins))]
    assert len(begins) == 300


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_a_stream_is_heard_as_soundfile_hears_the_file(tmp_path: Path, subtype: str, channels: int) -> None:
    sound = np.random.default_rng(0).uniform(-0.9, 0.9, (2500, channels))
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype=subtype)
    expected = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)[0]
    data = (tmp_path / "a.wav").read_bytes()
    at = data.index(b"data") + 4
    endless = data[:at] + b"\xff" * 4 + data[at + 4 :]
    for given in (data, endless):
        got = list(windows_of_stream(io.BytesIO(given), 1.0, 1.0))
        assert [window.start for window in got] == [0.0, 1.0, 1.5]
        np.testing.assert_allclose(got[1].samples, expected[1000:2000], atol=1e-7)
        assert got[0].rate == RATE


@pytest.mark.parametrize("kind", PCM_FORMATS)
def test_raw_samples(kind: str) -> None:
    values = np.array([-0.5, 0.0, 0.25])
    coded = {
        "u8": (values * 128 + 128).astype("u1").tobytes(),
        "s16le": (values * 2**15).astype("<i2").tobytes(),
        "s24le": b"".join(int(v * 2**23).to_bytes(3, "little", signed=True) for v in values),
        "s32le": (values * 2**31).astype("<i4").tobytes(),
        "f32le": values.astype("<f4").tobytes(),
        "f64le": values.astype("<f8").tobytes(),
    }[kind]
    (window,) = windows_of_stream(io.BytesIO(coded + b"\x00"[: int(kind != "u8")]), 1.0, 1.0, Pcm(RATE, 1, kind))
    np.testing.assert_allclose(window.samples[:, 0], values)


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", b"not a wav stream at all", b"RIFF\0\0\0\0WAVEdata\0\0\0\0", b"RIFF\0\0\0\0WAVE"]
)
def test_what_is_no_stream_is_said(data: bytes) -> None:
    with pytest.raises(AudioError, match="stdin"):
        list(windows_of_stream(io.BytesIO(data), 1.0, 1.0))


def test_a_recording_cut_short_is_heard_as_far_as_it_goes_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 5000), RATE)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 2300])
    got = []
    with pytest.raises(AudioError, match=r"truncated: only 2\.3 s"):
        got.extend(windows_of_file(path, 1.0, 1.0))
    (tmp_path / "b.wav").write_text("a text")
    with pytest.raises(AudioError, match="cannot be read"):
        list(windows_of_file(tmp_path / "b.wav", 1.0, 1.0))


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 1_500_000).astype(np.float32), 16000)
    tracemalloc.start()
    count = sum(1 for _ in windows_of_file(path, 1.0, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 94  # 93.75 s: the last one ends with the recording
    assert peak < 1_000_000  # the recording is 6 MB
