"""Windows cut from recordings of any length and from streams; at most two windows and a second are in memory."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from offkey.audio.headers import read_promise
from offkey.audio.io import AudioError

__all__ = ["PCM_FORMATS", "Pcm", "Window", "cut", "seconds_in", "windows_of_file", "windows_of_stream"]

_KINDS: dict[str, tuple[str, float]] = {
    "u8": ("u1", 128.0),
    "s16le": ("<i2", 2.0**15),
    "s24le": ("s24", 2.0**23),
    "s32le": ("<i4", 2.0**31),
    "f32le": ("<f4", 1.0),
    "f64le": ("<f8", 1.0),
}
PCM_FORMATS = tuple(_KINDS)
"""Kinds of samples that a stream may hold."""
_OF_WAV = {(1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le", (3, 32): "f32le", (3, 64): "f64le"}
_EXTENSIBLE = 0xFFFE


@runtime_checkable
class Readable(Protocol):
    """What bytes come from: a pipe, a socket's file, a file."""

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes or fewer; none at the end."""


class Window(NamedTuple):
    """`samples` (T, C) float32 at `rate` hertz, beginning `start` seconds into its recording."""

    samples: NDArray[np.float32]
    rate: int
    start: float

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class Pcm:
    """What raw samples are: `rate` hertz, `channels` interleaved, `kind` one of `PCM_FORMATS`."""

    rate: int
    channels: int = 1
    kind: str = "s16le"

    def __post_init__(self) -> None:
        """`AudioError` for what cannot be."""
        if self.kind not in _KINDS or self.rate <= 0 or not 1 <= self.channels <= 1024:
            raise AudioError(
                "stream", f"samples {self.kind}, {self.rate} Hz, {self.channels} channels cannot be read",
                f"Known kinds: {', '.join(PCM_FORMATS)}",
            )  # fmt: skip

    @property
    def width(self) -> int:
        """Bytes of one frame."""
        return self.channels * (3 if self.kind == "s24le" else np.dtype(_KINDS[self.kind][0]).itemsize)

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """(T, C) float32 in [-1, 1) of whole frames."""
        code, scale = _KINDS[self.kind]
        if code == "s24":
            bytes_ = np.frombuffer(data, np.uint8).reshape(-1, 3)
            padded = np.zeros((len(bytes_), 4), np.uint8)
            padded[:, 1:] = bytes_
            values = (padded.view("<i4")[:, 0] >> 8).astype(np.float32)
        else:
            values = np.frombuffer(data, code).astype(np.float32) - (128.0 if code == "u1" else 0.0)
        return np.asarray((values / scale).astype(np.float32).reshape(-1, self.channels))


def cut(
    read: Callable[[int], NDArray[np.float32]], rate: int, seconds: float, step: float, first: int = 0
) -> Iterator[Window]:
    """Windows of `seconds`, `step` seconds apart, from `read(n)`: the next n frames or fewer, none at the end.

    The n-th window begins round(n · step · rate) frames in; `first` windows are passed over. What remains at the end
    gets a window that ends with the recording, if it is at least half a window; a recording shorter than a window is
    one window as it is.
    """
    size = max(1, round(seconds * rate))
    buffer, begin = np.zeros((0, 1), np.float32), 0  # frame `begin` of the recording is the first one kept
    number, ended = first, False
    heard = round((first - 1) * step * rate) + size if first else 0  # the end of what was in a window
    while True:
        at = round(number * step * rate)
        while begin + len(buffer) < at + size and not ended:
            block = read(min(at + size - begin - len(buffer), max(rate, 1)))
            ended = len(block) == 0
            if not ended:
                buffer = block if not len(buffer) else np.concatenate([buffer, block])
            keep = max(0, at - size)  # the window that ends with the recording may reach back so far
            if keep > begin:
                drop = min(keep - begin, len(buffer))
                buffer, begin = buffer[drop:], begin + drop
        total = begin + len(buffer)
        if total >= at + size:
            yield Window(buffer[at - begin : at - begin + size], rate, at / rate)
            number, heard = number + 1, at + size
            continue
        if number == 0 and total:
            yield Window(buffer, rate, 0.0)
        elif number > 0 and 2 * (total - max(heard, at)) >= size:
            start = max(begin, total - size)
            yield Window(buffer[start - begin :], rate, start / rate)
        return


def seconds_in(path: Path) -> float | None:
    """How long a recording says that it is; None where it cannot be opened or does not say."""
    import soundfile

    try:
        with path.open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            frames, rate = int(sound.frames), int(sound.samplerate)
    except (OSError, RuntimeError):
        return None
    return frames / rate if rate > 0 and 0 < frames < 1 << 48 else None


def windows_of_file(path: Path, seconds: float, step: float, first: int = 0) -> Iterator[Window]:
    """Windows of a recording. Raises AudioError after the last good one where decoding stops or sound is missing."""
    import soundfile

    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("rb"))
            promise = read_promise(file)
            os.lseek(file.fileno(), 0, os.SEEK_SET)  # libsndfile goes on from where the descriptor stands
            sound = opened.enter_context(soundfile.SoundFile(file.fileno(), closefd=False))
        except (OSError, RuntimeError) as error:
            raise AudioError(path, f"cannot be read: {error}", "Copy it again, or convert it to WAV or FLAC") from None
        rate, got = int(sound.samplerate), 0

        def read(frames: int) -> NDArray[np.float32]:
            nonlocal got
            try:
                block = sound.read(frames, dtype="float32", always_2d=True)
            except RuntimeError:
                raise AudioError(
                    path, f"damaged: decoding stops after {got / rate:.1f} s", "Copy or record it again"
                ) from None
            got += len(block)
            return np.asarray(block)

        yield from cut(read, rate, seconds, step, first)
    if promise.share < 1.0 or not promise.ended:
        raise AudioError(path, f"truncated: only {got / rate:.1f} s are there", "Copy or record it again")


def windows_of_stream(
    stream: Readable, seconds: float, step: float, pcm: Pcm | None = None, name: str = "stdin"
) -> Iterator[Window]:
    """Windows of a stream that has no end or an unknown one: WAV, or raw samples as `pcm` says.

    A window comes as soon as its last byte has. The length that a WAV header tells is believed only where it is one.
    """
    left: int | None = None
    if pcm is None:
        pcm, left = _wav_header(stream, name)
    told = pcm

    def read(frames: int) -> NDArray[np.float32]:
        nonlocal left
        wanted = frames * told.width
        if left is not None:
            wanted = min(wanted, left)
        data = _exactly(stream, wanted)
        if left is not None:
            left -= len(data)
        return told.decode(data[: len(data) // told.width * told.width])

    yield from cut(read, told.rate, seconds, step)


def _exactly(stream: Readable, count: int) -> bytes:
    """`count` bytes, fewer only at the end; a pipe gives what it has."""
    parts = io.BytesIO()
    while count > 0:
        part = stream.read(min(count, 1 << 20))
        if not part:
            break
        parts.write(part)
        count -= len(part)
    return parts.getvalue()


def _wav_header(stream: Readable, name: str) -> tuple[Pcm, int | None]:
    """Read up to the first sample; what the samples are, and their bytes where the header knows."""
    advice = "Send a WAV file, or say what the samples are (--pcm s16le --rate 16000)"
    head = _exactly(stream, 12)
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        raise AudioError(name, "this is no WAV stream" if head else "nothing came", advice)
    pcm = None
    while True:
        chunk = _exactly(stream, 8)
        if len(chunk) < 8:
            raise AudioError(name, "the stream ends before its first sample", advice)
        kind, length = struct.unpack("<4sI", chunk)
        if kind == b"data":
            if pcm is None:
                raise AudioError(name, "a WAV stream without a format", advice)
            return pcm, None if length in (0, 0xFFFFFFFF) or length >= 0x7FFF0000 else length
        if length > 1 << 24:
            raise AudioError(name, "this is no WAV stream that can be read", advice)
        content = _exactly(stream, length + length % 2)
        if kind == b"fmt " and len(content) >= 16:
            code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
            if code == _EXTENSIBLE and len(content) >= 26:
                (code,) = struct.unpack("<H", content[24:26])
            if (code, bits) not in _OF_WAV:
                raise AudioError(name, f"WAV of kind {code} with {bits} bits cannot be read from a stream", advice)
            pcm = Pcm(rate, channels, _OF_WAV[code, bits])
