"""How much sound the header of a file promises, so that a file cut short is told from a short one.

libsndfile reads what is there and says nothing of what is missing for the formats handled here: RIFF and RF64
(WAV), FORM (AIFF), AU, W64 and Ogg. FLAC and MP3 carry their own count, which libsndfile reports.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["Promise", "read_promise"]

_UNKNOWN_FROM = 0x7FFF0000  # writers to a pipe put about 2 or 4 GiB where they cannot know the length
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_OGG_TAIL = 131072  # two of the longest possible pages


@dataclass(frozen=True, slots=True)
class Promise:
    """Bytes of sound that a header promises and bytes that are there; None where it does not say.

    `ended` is False for an Ogg stream whose last page is not marked as the last one.
    """

    promised: int | None = None
    present: int | None = None
    ended: bool = True

    @property
    def share(self) -> float:
        """What part of the promised sound is there, 1.0 where nothing is missing or known."""
        if not self.promised or self.present is None:
            return 1.0
        return min(1.0, self.present / self.promised)


def read_promise(file: BinaryIO) -> Promise:
    """Look at the header (and for Ogg at the tail) of an open file; leaves the position anywhere."""
    size = file.seek(0, 2)
    file.seek(0)
    magic = file.read(12)
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64") and magic[8:] == b"WAVE":
        return _chunks(file, size, ">" if magic[:4] == b"RIFX" else "<", b"data")
    if magic[:4] == b"FORM" and magic[8:] in (b"AIFF", b"AIFC"):
        return _chunks(file, size, ">", b"SSND")
    if magic[:4] == b".snd":
        start, length = struct.unpack(">II", magic[4:])
        return _promise(length, size - start)
    if magic[:4] == b"riff":
        return _w64(file, size)
    if magic[:4] == b"OggS":
        return Promise(ended=_ogg_ended(file, size))
    return Promise()


def _promise(promised: int, present: int) -> Promise:
    if promised == 0 or (promised >= _UNKNOWN_FROM and present < promised // 2):
        return Promise()
    return Promise(promised, max(0, present))


def _chunks(file: BinaryIO, size: int, order: str, wanted: bytes) -> Promise:
    """Walk the chunks of a RIFF or FORM file: four letters, length, content padded to an even length."""
    at, long_length = 12, None
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack(order + "4sI", file.read(8))
        if name == b"ds64":
            long_length = struct.unpack("<Q", file.read(16)[8:])[0] if size >= at + 24 else None
        if name == wanted:
            if length == 0xFFFFFFFF and long_length is not None:
                return Promise(long_length, size - at - 8)
            return _promise(length, size - at - 8)
        at += 8 + length + length % 2
    return Promise()


def _w64(file: BinaryIO, size: int) -> Promise:
    """Walk the chunks of a Wave64 file: 16 bytes of name, length with its own head, aligned to 8."""
    at = 40
    while at + 24 <= size:
        file.seek(at)
        name, length = struct.unpack("<16sQ", file.read(24))
        if name == _W64_DATA:
            return _promise(length - 24, size - at - 24)
        at += max(24, length + -length % 8)
    return Promise()


def _ogg_ended(file: BinaryIO, size: int) -> bool:
    """Whether the last page is whole and carries the end-of-stream mark (RFC 3533, section 6)."""
    file.seek(max(0, size - _OGG_TAIL))
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27:
        return False
    segments = tail[26 + at]
    body = sum(tail[at + 27 : at + 27 + segments])
    return bool(tail[at + 5] & 4) and len(tail) >= at + 27 + segments + body
