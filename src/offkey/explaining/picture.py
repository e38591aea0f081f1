"""An explanation as a picture: what the system objects to over time, the clip, and beside it what is normal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offkey.audio.mel import LogMel, mel_centres
from offkey.explaining.explanation import Explanation

__all__ = ["draw"]

_TICKS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def draw(
    explanation: Explanation,
    mel: LogMel,
    title: str,
    out: Path,
    normal: NDArray[np.float32] | None = None,
    part: str = "",
) -> Path:
    """A PNG: the clip's spectrogram with the strangest region framed, the system's map, and the difference to normal.

    Above stands what the system objects to over time; beside it the nearest normal clip: its own samples `normal` (T,)
    at the model's rate where they are at hand, else the coarse spectrogram that the detector keeps. `part` names what a
    front end lets the system hear of both ("foreground"); empty for whole recordings.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from offkey.files import write_whole

    frame = mel.config.hop / mel.rate
    seconds = explanation.level.shape[1] * frame
    frequencies = _edges(mel)
    beside, length, name = _beside(explanation, mel, normal)
    figure = Figure(figsize=(11, 9.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(4, 2, width_ratios=(1.6, 1.0), height_ratios=(0.7, 2, 2, 2))
    curve, clip, objects, difference = (figure.add_subplot(grid[row, 0]) for row in range(4))
    other, last = figure.add_subplot(grid[1, 1]), figure.add_subplot(grid[2, 1])

    low, high = (float(v) for v in np.quantile(explanation.level, (0.02, 0.998)))
    high = max(high, low + 20.0)
    times = (np.arange(explanation.level.shape[1] + 1) - 0.5) * frame
    shown = clip.pcolormesh(times, frequencies, explanation.level, cmap="magma", vmin=low, vmax=high, rasterized=True)
    edges = np.linspace(0.0, length, beside.shape[1] + 1)
    other.pcolormesh(edges, frequencies, beside, cmap="magma", vmin=low, vmax=high, rasterized=True)
    red = difference.pcolormesh(
        times, frequencies, explanation.decibels, cmap="RdBu_r", vmin=-20, vmax=20, rasterized=True
    )
    top = max(float(explanation.map.max()), 1e-6)
    strange = objects.pcolormesh(
        times, frequencies, np.maximum(explanation.map, 0.0), cmap="inferno", vmin=0.0, vmax=top, rasterized=True
    )
    figure.colorbar(shown, ax=clip, label="dB", pad=0.01)
    figure.colorbar(strange, ax=objects, pad=0.01)
    figure.colorbar(red, ax=difference, label="dB above the normal mean", pad=0.01)
    for axes, colour in ((clip, "white"), (objects, "white"), (difference, "black")):
        size = (explanation.end - explanation.start, explanation.high - explanation.low)
        axes.add_patch(
            Rectangle((explanation.start, explanation.low), *size, fill=False, edgecolor=colour, linewidth=1.8)
        )
        axes.set(xlim=(0, seconds), ylabel="frequency (kHz)")
    whose = f", its {part}, which is what the system hears" if part else ""
    clip.set_title(f"this clip{whose}", loc="left", fontsize=9)
    objects.set_title(
        f"what the system objects to ({explanation.map_kind}): {explanation.map_name}", loc="left", fontsize=9
    )
    difference.set(xlabel="time (s)")
    difference.set_title("its difference to the mean of normal clips", loc="left", fontsize=9)
    other.set(xlabel="time (s)")
    other.set_title(_verbatim(name), loc="left", fontsize=9, parse_math=False)
    for axes in (clip, objects, difference, other):
        _scale(axes, frequencies, "y")

    curve.plot(np.arange(len(explanation.curve)) * frame, explanation.curve, color="black", linewidth=1.0)
    curve.axvspan(explanation.start, explanation.end, color="tab:red", alpha=0.2, linewidth=0)
    curve.set(xlim=(0, seconds), ylim=(min(0.0, float(explanation.curve.min())), None))
    curve.set_title(explanation.curve_name, loc="left", fontsize=9)
    _spectra(last, explanation, mel, beside)
    figure.suptitle(_verbatim(f"{title}\n{explanation.text}"), x=0.01, ha="left", fontsize=10, parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return write_whole(out, picture.getvalue())


def _verbatim(text: str) -> str:
    """Text with a name of a file in it, of which bytes that are no UTF-8 are spelled out: fonts have none for them."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _beside(
    explanation: Explanation, mel: LogMel, normal: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], float, str]:
    """What stands beside the clip: a map (M, C), its length in seconds, and what it is."""
    import torch

    if normal is not None:
        found = mel(torch.from_numpy(np.array(normal, dtype=np.float32))[None])[0].numpy()
        return found, len(normal) / mel.rate, f"nearest normal clip: {_short(explanation.nearest)}"
    length = explanation.level.shape[1] * mel.config.hop / mel.rate
    return explanation.normal, length, f"nearest normal clip (coarse): {_short(explanation.nearest)}"


def _spectra(axes: object, explanation: Explanation, mel: LogMel, beside: NDArray[np.float32]) -> None:
    """The clip's and the normal clip's mean over time, and what each band adds to the score."""
    from matplotlib.axes import Axes

    if not isinstance(axes, Axes):
        raise TypeError("axes of matplotlib are needed")
    centres = mel_centres(mel.rate, mel.config)
    first = round(explanation.start * mel.rate / mel.config.hop)
    last = max(first + 1, round(explanation.end * mel.rate / mel.config.hop))
    axes.plot(centres, beside.mean(axis=1), color="tab:blue", linewidth=1.2, label="normal")
    framed = explanation.level[:, first:last]
    axes.plot(centres, framed.mean(axis=1), color="tab:red", linewidth=1.2, label="this clip, framed time")
    axes.axvspan(explanation.low, explanation.high, color="tab:red", alpha=0.1, linewidth=0)
    axes.set(xlabel="frequency (kHz)", ylabel="dB")
    _scale(axes, _edges(mel), "x")
    if explanation.shares is not None and explanation.shares.max() > 0:
        part = axes.twinx()
        share = 100 * explanation.shares / explanation.shares.sum()
        part.fill_between(centres, share, step="mid", color="tab:gray", alpha=0.45, linewidth=0)
        part.set_ylabel("% of the score, a band")
        axes.set_zorder(part.get_zorder() + 1)
        axes.patch.set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _edges(mel: LogMel) -> NDArray[np.float64]:
    """(M + 1,) borders between the mel bands, Hz."""
    centres = mel_centres(mel.rate, mel.config)
    top = mel.rate / 2 if mel.config.f_max is None else mel.config.f_max
    return np.concatenate([[mel.config.f_min], (centres[1:] + centres[:-1]) / 2, [top]])


def _scale(axes: object, frequencies: NDArray[np.float64], which: str) -> None:
    """A frequency axis in kHz: linear below 1 kHz, logarithmic above, as the mel scale."""
    from matplotlib.axes import Axes

    if not isinstance(axes, Axes):
        raise TypeError("axes of matplotlib are needed")
    low, high = float(frequencies[0]), float(frequencies[-1])
    ticks = [tick for tick in _TICKS if low <= 1000 * tick <= high]
    (axes.set_yscale if which == "y" else axes.set_xscale)("symlog", linthresh=1000.0)
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_ticks([1000 * tick for tick in ticks], [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)
    (axes.set_ylim if which == "y" else axes.set_xlim)(low, high)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 13]}…{name[-12:]}"
