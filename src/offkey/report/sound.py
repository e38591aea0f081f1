"""What a clip looks and sounds like, small enough to travel inside a page: PNG and audio bytes."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from offkey.report.svg import Plot, draw, nice_ticks, number
from offkey.types import Float

__all__ = ["Spectrum", "data_uri", "encode_audio", "png", "spectrogram", "spectrogram_figure", "spectrum_of"]

BANDS, COLUMNS, SHADES = 96, 300, 40
_MP3_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})


class Spectrum(NamedTuple):
    """Level in dB (BANDS, columns) of a clip, lowest band first; `edges` are the bands' borders in hertz."""

    level: NDArray[np.float32]
    edges: NDArray[np.float64]
    seconds: float


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 2595.0 * np.log10(1.0 + hertz / 700.0)


def spectrogram(samples: Float[np.ndarray, " T"], rate: int) -> Spectrum:
    """The clip's level over time and frequency, for looking at (a detector computes its own).

    Hann windows of about 64 ms, power averaged in bands of equal width on the mel scale (low frequencies,
    where machines' harmonics lie, get more room), in dB relative to a full-scale sine; floor −120 dB. At most
    `COLUMNS` columns: neighbouring frames are averaged. Shorter than one window is padded with silence.
    """
    size = 1 << max(6, round(np.log2(0.064 * rate)))
    padded = np.pad(np.asarray(samples, np.float64), (0, max(0, size - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)
    hop = max(size // 4, -(-len(frames) // (4 * COLUMNS)))
    window = np.hanning(size)
    power = np.abs(np.fft.rfft(frames[::hop] * window, axis=1)) ** 2 / (window.sum() / 2) ** 2

    edges_mel = np.linspace(0.0, float(_mel(np.array([rate / 2.0]))[0]), BANDS + 1)
    edges = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    # Power is summed up to each border with linear interpolation between bins, so that bands narrower than
    # one bin get their share of it instead of nothing.
    running = np.concatenate([np.zeros((len(power), 1)), np.cumsum(power, axis=1)], axis=1)
    place = np.clip(edges / rate * size + 0.5, 0.0, power.shape[1])
    below = np.minimum(place.astype(int), power.shape[1] - 1)
    summed = running[:, below] + (place - below) * (running[:, below + 1] - running[:, below])
    banded = np.diff(summed, axis=1) / np.diff(place)

    columns = min(COLUMNS, len(banded))
    cuts = np.linspace(0, len(banded), columns + 1).astype(int)[:-1]
    averaged = np.add.reduceat(banded, cuts, axis=0) / np.diff(np.append(cuts, len(banded)))[:, None]
    level = 10.0 * np.log10(np.maximum(averaged.T, 1e-12))
    return Spectrum(level.astype(np.float32), edges, len(samples) / rate)


def spectrum_of(
    values: Float[np.ndarray, "M F"], edges: Float[np.ndarray, " M1"], seconds: float, most_seconds: float
) -> Spectrum:
    """A map over bands between `edges` in hertz, laid on `spectrogram`'s bands; its first `most_seconds` at most."""
    top = float(_mel(edges[-1:])[0])
    own = 700.0 * (10.0 ** (np.linspace(0.0, top, BANDS + 1) / 2595.0) - 1.0)
    rows = np.clip(np.searchsorted(edges, (own[1:] + own[:-1]) / 2, side="right") - 1, 0, len(values) - 1)
    shown = min(seconds, most_seconds)
    frames = max(1, round(values.shape[1] * shown / seconds))
    columns = np.linspace(0, frames, min(COLUMNS, frames), endpoint=False).astype(int)
    return Spectrum(values[rows][:, columns].astype(np.float32), own, shown)


def png(shades: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """A PNG of palette indices (height, width), first row on top; `palette` is (colours, 3)."""
    height, width = shades.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = np.concatenate([np.zeros((height, 1), np.uint8), shades], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", palette.tobytes())
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def picture(spectrum: Spectrum, low: float, high: float) -> bytes:
    """The spectrogram as PNG; `low` dB and below is the darkest shade, `high` dB and above the brightest."""
    from matplotlib import colormaps

    colours = np.asarray(colormaps["magma"](np.linspace(0.0, 1.0, SHADES)))[:, :3]
    palette = np.round(colours * 255).astype(np.uint8)
    share = np.clip((spectrum.level - low) / max(1e-6, high - low), 0.0, 1.0)
    return png(np.round(share[::-1] * (SHADES - 1)).astype(np.uint8), palette)


def data_uri(kind: str, content: bytes) -> str:
    """The bytes as a `data:` address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def spectrogram_figure(
    key: str,
    image: bytes,
    spectrum: Spectrum,
    title: str,
    description: str,
    box: tuple[float, float, float, float] | None = None,
) -> Markup:
    """The picture with a time axis in seconds and a frequency axis in kHz (spaced as the ear hears).

    `box` frames what lies between (start, end) in seconds and (low, high) in hertz, as far as it is in the picture.
    """
    plot = Plot(300, 176, left=34, top=6, right=6, bottom=38)
    edges = spectrum.edges
    plot.span((0.0, max(spectrum.seconds, 1e-3)), (0.0, float(_mel(edges)[-1])))
    plot.add(
        draw(
            "image",
            href=data_uri("image/png", image),
            x=plot.left,
            y=plot.top,
            width=plot.right - plot.left,
            height=plot.bottom - plot.top,
            preserveAspectRatio="none",
        )
    )
    if box is not None and box[0] < spectrum.seconds:
        left, right = plot.x(box[0]), plot.x(box[1])
        lower, upper = (plot.y(float(_mel(np.array([hertz]))[0])) for hertz in box[2:])
        size = {"width": max(right - left, 2.0), "height": max(lower - upper, 2.0)}
        plot.add(draw("rect", x=left, y=upper, fill="none", stroke="#fff", stroke_width=1.6, **size))
    top = edges[-1] / 1000.0
    wanted = [0.0, *(kilo for kilo in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0) if kilo <= top * 1.001)]
    if top < 0.5:
        wanted = [0.0, top]
    for kilo in wanted:
        place = plot.y(float(_mel(np.array([kilo * 1000.0]))[0]))
        plot.line(plot.left - 4, place, plot.left, place, "edge")
        plot.text(plot.left - 7, place + 4, f"{kilo:g}", "tick", "end")
    ticks, step = nice_ticks(0.0, spectrum.seconds, 5)
    for value in ticks:
        plot.line(plot.x(value), plot.bottom, plot.x(value), plot.bottom + 4, "edge")
        plot.text(plot.x(value), plot.bottom + 16, number(value, step), "tick", "middle")
    plot.text((plot.left + plot.right) / 2, plot.bottom + 32, "time in s", "axis", "middle")
    turn = f"rotate(-90 9 {(plot.top + plot.bottom) / 2:.0f})"
    plot.add(
        draw(
            "text",
            "kHz",
            class_="axis",
            x=9,
            y=(plot.top + plot.bottom) / 2,
            text_anchor="middle",
            transform=turn,
        )
    )
    return plot.finish(key, title, description)


def encode_audio(samples: Float[np.ndarray, " T"], rate: int, doublings: int, small: bool) -> tuple[str, bytes]:
    """Media type and bytes of a clip: FLAC with 16 bits, or MP3 where `small` and the rate allow.

    Every sample is first doubled `doublings` times: a whole number of bits, which FLAC stores without
    growing, so a recording of 16 bits at its own rate is heard unaltered but louder. Overshoot is cut off.
    """
    import soundfile

    whole = np.clip(np.round(np.asarray(samples, np.float64) * (32768 << doublings)), -32768, 32767)
    memory = io.BytesIO()
    if small and rate in _MP3_RATES and "MP3" in soundfile.available_formats():
        soundfile.write(memory, whole.astype(np.int16), rate, format="MP3", subtype="MPEG_LAYER_III")
        return "audio/mpeg", memory.getvalue()
    soundfile.write(memory, whole.astype(np.int16), rate, format="FLAC", subtype="PCM_16")
    return "audio/flac", memory.getvalue()
