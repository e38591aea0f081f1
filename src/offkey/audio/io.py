"""Any file that libsndfile reads -> mono float32 at one rate, or a clear verdict why not.

`read_clip` refuses a file (`AudioError`) that is empty, cut short, silent, too short or holds NaN, infinite or absurd
samples (`SOUND_LIMITS`); `inspect` tells the same as text and remarks on what is usable but odd. Nothing here needs
torch.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from offkey.audio.headers import read_promise
from offkey.types import OffkeyError

__all__ = [
    "AUDIO_SUFFIXES",
    "SOUND_LIMITS",
    "UNREADABLE_SUFFIXES",
    "AudioConfig",
    "AudioError",
    "FileFacts",
    "inspect",
    "prepare",
    "read_clip",
    "read_header",
]

_FORMATS: dict[str, frozenset[str]] = {
    ".wav": frozenset({"WAV", "WAVEX", "RF64"}),
    ".wave": frozenset({"WAV", "WAVEX", "RF64"}),
    ".rf64": frozenset({"RF64", "WAV"}),
    ".w64": frozenset({"W64"}),
    ".flac": frozenset({"FLAC"}),
    ".ogg": frozenset({"OGG"}),
    ".oga": frozenset({"OGG", "FLAC"}),
    ".opus": frozenset({"OGG"}),
    ".mp3": frozenset({"MP3"}),
    ".aif": frozenset({"AIFF"}),
    ".aiff": frozenset({"AIFF"}),
    ".aifc": frozenset({"AIFF"}),
    ".au": frozenset({"AU"}),
    ".snd": frozenset({"AU"}),
    ".caf": frozenset({"CAF"}),
}
AUDIO_SUFFIXES: frozenset[str] = frozenset(_FORMATS)
"""Endings (lower case) of the files that a scan of a folder takes for recordings."""
UNREADABLE_SUFFIXES: frozenset[str] = frozenset(
    {".m4a", ".aac", ".wma", ".mp4", ".amr", ".webm", ".mka", ".ape", ".wv", ".alac"}
)
"""Endings of recordings that libsndfile cannot decode; a scan names them so that nobody misses them."""

SOUND_LIMITS = (1e-10, 1e10)
"""The largest absolute sample of a clip lies between these, full scale being 1: what is beyond is no sound.

Integers of 32 bits that were stored as floats reach 2.1e9, and their smallest step is 4.7e-10 of full scale. Between
these bounds no power of a spectrum overflows float32.
"""

_BLOCK = 1 << 20  # frames asked for at once: a header may promise anything
_MP3_SLACK = 2304  # samples; encoder delay and padding make two frames' difference harmless
_CLIP_LEVEL = 0.9999  # of full scale; 16-bit clipping stands at 32767/32768 = 0.99997
_DC_DBFS = -30.0
_LOW_DBFS = -70.0
_CONVERT = "Convert it to WAV or FLAC (for example: ffmpeg -i IN OUT.wav)"


class AudioConfig(BaseModel):
    """How recordings become the model's input."""

    # a channel is a word or a number: `audio.channel=0` must be as good as "0"
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    rate: int = Field(default=16000, ge=1000, le=768_000, description="sampling rate of the model, Hz")
    channel: str = Field(
        default="mean",
        pattern=r"^(mean|\d{1,4})$",
        description='"mean" of all channels, or the number of one ("0" is the first)',
    )
    level_dbfs: float | None = Field(
        default=None, ge=-200.0, le=0.0, description="RMS level that every clip is brought to, dBFS; null: as recorded"
    )
    min_seconds: float = Field(default=0.1, ge=0.0, description="shorter recordings are refused, seconds")


class AudioError(OffkeyError):
    """A recording that cannot be used: `path` (or an array's name), `problem`, `advice` on what to do."""

    def __init__(self, path: Path | str, problem: str, advice: str = "") -> None:
        super().__init__(path, problem, advice)  # all three, so that the error crosses process borders
        self.path = Path(path)
        self.problem = problem
        self.advice = advice

    def __str__(self) -> str:
        stop = "" if self.problem.endswith(("?", ".")) else "."
        return f"{self.path}: {self.problem}{stop}" + (f" {self.advice}." if self.advice else "")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one file holds. `problems` is empty for a file that `read_clip` takes; `remarks` are odd facts.

    `rate` in Hz, `seconds` of decoded sound, `level_dbfs` the RMS level of the chosen channel; they are
    0, 0.0 and -inf where nothing could be decoded. `format` and `subtype` are libsndfile's names.
    """

    path: Path
    rate: int = 0
    channels: int = 0
    seconds: float = 0.0
    format: str = ""
    subtype: str = ""
    level_dbfs: float = float("-inf")
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Decoded:
    samples: NDArray[np.float32]  # (T, C)
    rate: int
    format: str
    subtype: str
    remarks: tuple[str, ...]


def read_clip(path: Path, config: AudioConfig) -> NDArray[np.float32]:
    """Decode `path` to (T,) float32 at `config.rate`, finite, nominally in [-1, 1].

    Raises `AudioError` with path, problem and advice for everything that cannot be used.
    """
    decoded = _decode(Path(path))
    return _to_clip(decoded.samples, decoded.rate, config, str(path))


def prepare(samples: NDArray[Any], rate: int, config: AudioConfig, name: str = "array") -> NDArray[np.float32]:
    """The treatment of `read_clip` for sound in memory: (T,) or (T, C) at `rate` Hz -> (T',) float32.

    Integers are scaled to [-1, 1) by their type's range (uint8 is centred on 128). The input stays as it is.
    Raises `AudioError` that calls the sound `name`.

    >>> prepare(np.full(1600, 16384, np.int16), 16000, AudioConfig())[:2]
    Traceback (most recent call last):
    offkey.audio.io.AudioError: array: constant value 0.5, no sound: dead microphone or cable? ...
    >>> wave = np.sin(np.arange(32000) / 5)
    >>> prepare(np.stack([wave, wave], axis=1), 32000, AudioConfig()).shape
    (16000,)
    """
    given = np.asarray(samples)
    if rate <= 0:
        raise AudioError(name, f"the rate is {rate} Hz", "Pass the sampling rate in hertz")
    clip = _to_clip(_as_float(given, name), int(rate), config, name)
    return clip.copy() if np.may_share_memory(clip, given) else clip


def _to_clip(signal: NDArray[np.float32], rate: int, config: AudioConfig, name: str) -> NDArray[np.float32]:
    """`prepare` for (T, C) float32; the answer may be a view of `signal`."""
    mono = _choose_channel(signal, config.channel, name)
    if not np.isfinite(mono).all():
        _refuse_non_finite(mono, rate, name)
    if len(mono) == 0 or len(mono) / rate < config.min_seconds or len(mono) * config.rate // rate == 0:
        held = "no samples" if len(mono) == 0 else f"{len(mono)} sample{'s' * (len(mono) > 1)}"
        raise AudioError(
            name,
            f"too short: {held} ({len(mono) / rate:.3g} s), at least {config.min_seconds:g} s are needed",
            "Leave it out or record longer",
        )
    _refuse_silence(mono, signal, config.channel, name)
    _refuse_absurd(mono, rate, name)
    if rate != config.rate:
        import soxr

        mono = np.asarray(soxr.resample(mono, rate, config.rate, quality="HQ"), dtype=np.float32)
        if max(-float(mono.min()), float(mono.max())) < SOUND_LIMITS[0]:
            raise AudioError(
                name, f"no sound is left at {config.rate} Hz", "Choose a higher audio.rate, or look at the microphone"
            )
    if config.level_dbfs is not None:
        gain = 10.0 ** (config.level_dbfs / 20.0) / _rms(mono)
        mono = (mono * gain).astype(np.float32)
    return np.ascontiguousarray(mono, dtype=np.float32)


def inspect(path: Path, config: AudioConfig | None = None) -> FileFacts:
    """Decode `path` and tell what it holds, what keeps it from use and what is odd; never raises."""
    path, config = Path(path), config or AudioConfig()
    try:
        decoded = _decode(path)
    except AudioError as error:
        rate, channels, kind, subtype = read_header(path) or (0, 0, "", "")
        return FileFacts(path, rate, channels, format=kind, subtype=subtype, problems=(error.problem,))
    problems: tuple[str, ...] = ()
    try:
        same_rate = config.model_copy(update={"rate": decoded.rate})  # resampling finds no problems
        _to_clip(decoded.samples, decoded.rate, same_rate, str(path))
    except AudioError as error:
        problems = (error.problem,)
    frames, channels = decoded.samples.shape
    level = float("-inf")
    remarks = list(decoded.remarks)
    if not problems or frames:
        finite = np.nan_to_num(decoded.samples, nan=0.0, posinf=0.0, neginf=0.0)
        chosen = int(config.channel) if config.channel.isdecimal() else None
        mono = _mean(finite) if chosen is None or chosen >= channels else finite[:, chosen]
        level = _dbfs(_rms(mono)) if frames else level
        remarks += _remarks(finite, mono, level, decoded, config)
    return FileFacts(
        path,
        decoded.rate,
        channels,
        frames / decoded.rate,
        decoded.format,
        decoded.subtype,
        level,
        problems,
        tuple(remarks) if not problems else decoded.remarks,
    )


def read_header(path: Path) -> tuple[int, int, str, str] | None:
    """(rate, channels, format, subtype) of a file, not decoded; None where libsndfile cannot open it."""
    import soundfile

    try:
        with Path(path).open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            return int(sound.samplerate), int(sound.channels), str(sound.format), str(sound.subtype)
    except (OSError, soundfile.SoundFileError):
        return None


def _decode(path: Path) -> _Decoded:
    import soundfile

    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise AudioError(path, "there is no such file", "Check the path") from None
    except IsADirectoryError:
        raise AudioError(path, "this is a folder, not a recording", "Name the files in it") from None
    except OSError as error:
        raise AudioError(path, f"cannot be opened: {error.strerror}", "Check the permissions") from None
    with file:
        if file.seek(0, io.SEEK_END) == 0:
            raise AudioError(path, "empty file: 0 bytes", "Copy or record it again")
        try:
            promise = read_promise(file)
            # libsndfile shares the descriptor, whose position a buffered seek() may leave where it was.
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            # A descriptor instead of the path: the content decides, not the ending.
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                rate = int(sound.samplerate)
                kind, subtype = str(sound.format), str(sound.subtype)
                promised = int(sound.frames)
                samples, failure = _read_all(sound)
        except soundfile.LibsndfileError as error:
            raise AudioError(path, _unreadable(path, error), _CONVERT) from None
        except (RuntimeError, OSError) as error:
            raise AudioError(path, f"cannot be read: {error}", _CONVERT) from None
    if rate <= 0:
        raise AudioError(path, f"the header gives a rate of {rate} Hz", "Copy or record it again")
    known = 0 < promised < 1 << 48  # libsndfile gives the largest integer where a FLAC header does not say
    if failure is not None or (known and promised - len(samples) > (_MP3_SLACK if kind == "MP3" else 0)):
        if known and promised > len(samples):
            raise _truncated(path, promised / rate, len(samples) / rate)
        raise AudioError(path, f"damaged: decoding stops after {len(samples) / rate:.1f} s", "Copy or record it again")
    if promise.share < 1.0:
        raise _truncated(path, len(samples) / rate / promise.share if len(samples) else None, len(samples) / rate)
    if not promise.ended:
        raise AudioError(
            path,
            f"truncated: the stream has no end mark, {len(samples) / rate:.1f} s are there",
            "Copy it again, or convert it to WAV to use what is there",
        )
    expected = _FORMATS.get(path.suffix.lower())
    remarks: tuple[str, ...] = ()
    if expected is None or kind not in expected:
        remarks = (f"the ending {path.suffix or '(none)'} does not fit the content, which is {kind}",)
    return _Decoded(samples, rate, kind, subtype, remarks)


def _read_all(sound: Any) -> tuple[NDArray[np.float32], Exception | None]:
    """All frames (T, C) that can be decoded, and the error that stopped the decoding, if any."""
    import soundfile

    blocks: list[NDArray[np.float32]] = []
    frames, step = 0, _BLOCK
    while True:
        try:
            block = sound.read(step, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            if step == 1024 or not sound.seekable():
                return _joined(blocks, sound.channels), error
            # Go through the broken block in small steps: how much is there belongs into the message.
            try:
                sound.seek(frames)
            except soundfile.LibsndfileError:
                return _joined(blocks, sound.channels), error
            step = 1024
            continue
        frames += len(block)
        blocks.append(block)
        if len(block) < step:
            return _joined(blocks, sound.channels), None


def _joined(blocks: list[NDArray[np.float32]], channels: int) -> NDArray[np.float32]:
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.zeros((0, channels), np.float32)


def _unreadable(path: Path, error: Any) -> str:
    reason = str(getattr(error, "error_string", error)).strip().rstrip(".") or "unknown reason"
    if path.suffix.lower() in UNREADABLE_SUFFIXES:
        return f"libsndfile cannot decode {path.suffix.lower()} files ({reason})"
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return f"not a readable {path.suffix.lower()} file, and no other known format ({reason})"
    return f"no recording in a known format ({reason})"


def _truncated(path: Path, promised: float | None, present: float) -> AudioError:
    said = "more" if promised is None else f"{promised:.1f} s"
    return AudioError(path, f"truncated: header promises {said}, {present:.1f} s are there", "Copy or record it again")


def _as_float(samples: NDArray[Any], name: str) -> NDArray[np.float32]:
    """(T, C) float32 of any numeric array."""
    if samples.ndim not in (1, 2):
        raise AudioError(name, f"an array of shape {samples.shape}", "Pass (samples,) or (samples, channels)")
    if samples.ndim == 2 and samples.shape[1] > max(samples.shape[0], 8):
        raise AudioError(
            name,
            f"an array of shape {samples.shape} has more channels than samples",
            "Pass (samples, channels); transpose it with .T",
        )
    two = samples if samples.ndim == 2 else samples[:, None]
    if samples.dtype == np.uint8:
        return ((two.astype(np.float32) - 128.0) / 128.0).astype(np.float32)
    if np.issubdtype(samples.dtype, np.signedinteger):
        return (two / (float(np.iinfo(samples.dtype).max) + 1.0)).astype(np.float32)
    if np.issubdtype(samples.dtype, np.floating):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused as such
            return two.astype(np.float32, copy=False)
    raise AudioError(name, f"an array of type {samples.dtype}", "Pass floats in [-1, 1] or signed integers")


def _choose_channel(signal: NDArray[np.float32], channel: str, name: str) -> NDArray[np.float32]:
    channels = signal.shape[1]
    if channel == "mean":
        if channels == 0:
            raise AudioError(name, "no channels", "Copy or record it again")
        with np.errstate(over="ignore", invalid="ignore"):
            mono = signal[:, 0] if channels == 1 else signal.mean(axis=1, dtype=np.float32)
            # finite channels may have a sum that is not
            return mono if channels == 1 or np.isfinite(mono).all() else _mean(signal)
    if int(channel) >= channels:
        raise AudioError(
            name,
            f"channel {channel} was asked for, the recording has {channels} (0 to {channels - 1})",
            "Choose another channel or 'mean'",
        )
    return signal[:, int(channel)]


def _mean(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean (T,) of channels (T, C), finite where they are."""
    return signal.mean(axis=1, dtype=np.float64).astype(np.float32)


def _refuse_non_finite(mono: NDArray[np.float32], rate: int, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(mono))
    what = "NaN" if np.isnan(mono[bad]).any() else "infinite"
    raise AudioError(
        name,
        f"{len(bad)} {what} sample{'s' * (len(bad) > 1)}, the first at {bad[0] / rate:.2f} s",
        "Look at the program that wrote it",
    )


def _refuse_absurd(mono: NDArray[np.float32], rate: int, name: str) -> None:
    """Refuse what no recording holds and float32 cannot square: garbage read as samples."""
    lowest, highest = SOUND_LIMITS
    if highest >= max(-float(mono.min()), float(mono.max())) >= lowest:
        return
    size = np.abs(mono)
    peak = float(size.max())
    if peak < lowest:
        raise AudioError(
            name,
            f"silence: no sample reaches {lowest:g} of full scale (the largest is {peak:.3g})",
            "Was it written in another sample format or byte order? Otherwise look at the microphone",
        )
    bad = np.flatnonzero(size > highest)
    raise AudioError(
        name,
        f"not sound: {len(bad)} sample{'s' * (len(bad) > 1)} beyond ±{highest:g} (full scale is 1), the largest "
        f"{peak:.3g}, the first at {bad[0] / rate:.2f} s",
        "Was it written in another sample format or byte order (endianness)? Write or convert it again",
    )


def _refuse_silence(mono: NDArray[np.float32], signal: NDArray[np.float32], channel: str, name: str) -> None:
    if mono[0] != mono[-1] or mono.min() != mono.max():
        return
    advice = "Leave it out and look at the microphone"
    if mono[0] != 0.0:
        raise AudioError(name, f"constant value {mono[0]:.3g}, no sound: dead microphone or cable?", advice)
    if channel == "mean" and signal.any():
        raise AudioError(
            name,
            "the channels cancel each other in their mean",
            "Choose one channel (channel = '0') and check polarity",
        )
    raise AudioError(name, "digital silence: dead microphone or cable?", advice)


def _remarks(
    signal: NDArray[np.float32],
    mono: NDArray[np.float32],
    level: float,
    decoded: _Decoded,
    config: AudioConfig,
) -> list[str]:
    """What is odd about a usable recording (T, C)."""
    remarks: list[str] = []
    if not len(mono):
        return remarks
    full = np.abs(signal) >= _CLIP_LEVEL
    runs = full[:-2] & full[1:-1] & full[2:]  # one loud sample is a peak, three in a row are clipped
    if runs.any():
        remarks.append(f"clipping: {int(full.sum())} samples at full scale; record at a lower gain")
    peak = float(np.abs(signal).max())
    if peak > 1.5:
        remarks.append(f"peak of {_dbfs(peak):+.0f} dB over full scale: were integers stored as floats?")
    offset = abs(float(mono.mean(dtype=np.float64)))
    if offset > 10.0 ** (_DC_DBFS / 20.0):
        remarks.append(f"DC offset of {offset:.3g} of full scale")
    if level < _LOW_DBFS:
        remarks.append(f"very low level: {level:.0f} dBFS")
    dead = [str(c) for c in range(signal.shape[1]) if not signal[:, c].any()]
    if dead and len(dead) < signal.shape[1]:
        remarks.append(f"channel {', '.join(dead)} is silent")
    if decoded.rate < config.rate:
        remarks.append(f"recorded at {decoded.rate} Hz: nothing above {decoded.rate // 2} Hz")
    return remarks


def _rms(mono: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(mono, dtype=np.float64)))) if len(mono) else 0.0


def _dbfs(amplitude: float) -> float:
    return 20.0 * float(np.log10(amplitude)) if amplitude > 0.0 else float("-inf")
