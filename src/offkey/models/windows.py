"""Windows of a fixed number of frames: cut from clips of any length, and their results laid back on the clips.

A window of W frames that begins at frame f holds the frames f to f + W - 1 of its clip's centred spectrogram. Its
samples are those that these frames see, half a frame on either side included: (W - 1)·hop + kernel of them, the first
being number f·hop - kernel // 2 of the clip. Beyond the clip's ends they are zero, as in `LogMel` and `TgramNet`. So
what is computed from the samples of a window does not depend on where they were cut: from a whole clip in scoring, or
from an array on disk in training.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from offkey.models.masking import frame_mask
from offkey.types import Float, Int

__all__ = ["Windows", "cover", "cut_frames", "cut_samples", "lay_back", "own_frames", "window_samples"]


class Windows(NamedTuple):
    """Where N windows lie: `clip` (N,) places in the batch, `start` (N,) first frames, `frames` (N,) own ones."""

    clip: Tensor
    start: Tensor
    frames: Tensor


def window_samples(width: int, hop: int, kernel: int) -> int:
    """How many samples `width` frames of `kernel` samples see.

    >>> window_samples(32, hop=512, kernel=1024)
    16896
    """
    return (width - 1) * hop + kernel


def own_frames(lengths: Int[Tensor, " N"], hop: int, kernel: int) -> Int[Tensor, " N"]:
    """How many frames windows of `lengths` real samples have: the inverse of `window_samples`."""
    return torch.div(lengths - kernel, hop, rounding_mode="floor") + 1


def cover(frames: Int[Tensor, " B"], width: int) -> Windows:
    """Return the fewest windows that hold every frame of clips of `frames` frames, clip by clip in order of time.

    The last one is moved back to end with its clip; a clip shorter than a window has one, with fewer own frames.

    >>> cover(torch.tensor([7, 3]), 4)
    Windows(clip=tensor([0, 0, 1]), start=tensor([0, 3, 0]), frames=tensor([4, 4, 3]))
    """
    counts = torch.div(frames + width - 1, width, rounding_mode="floor").clamp_min(1)
    clip = torch.repeat_interleave(torch.arange(len(frames), device=frames.device), counts)
    first = (counts.cumsum(0) - counts)[clip]
    number = torch.arange(len(clip), device=frames.device) - first
    last = (frames - width).clamp_min(0)[clip]
    return Windows(clip, torch.minimum(number * width, last), frames.clamp_max(width)[clip])


def cut_frames(x: Float[Tensor, "B C F"], windows: Windows, width: int) -> Float[Tensor, "N C {width}"]:
    """Windows of a map; zero past a window's own frames."""
    inside = frame_mask(windows.frames, width)
    columns = (windows.start[:, None] + torch.arange(width, device=x.device)).clamp_max(x.shape[-1] - 1)
    cut = x.transpose(1, 2)[windows.clip[:, None], columns]
    return (cut * inside[..., None]).transpose(1, 2)


def cut_samples(
    waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"], windows: Windows, width: int, hop: int, kernel: int
) -> Float[Tensor, "N S"]:
    """Samples that the frames of each window see, (N, (width - 1)·hop + kernel); zero beyond the clip's ends."""
    size = window_samples(width, hop, kernel)
    own = waveform * frame_mask(lengths, waveform.shape[-1])
    behind = int(windows.start.max()) * hop + size - kernel // 2 - waveform.shape[-1]
    padded = torch.nn.functional.pad(own, (kernel // 2, max(behind, 0)))
    return padded.unfold(1, size, hop)[windows.clip, windows.start]


def lay_back(
    values: Float[Tensor, "N W"], windows: Windows, frames: Int[Tensor, " B"], width: int
) -> Float[Tensor, "B {width}"]:
    """One number a frame of each clip, the mean over the windows that hold it; 0 past a clip's own `frames`.

    `width` is how many frames the longest clip has.
    """
    inside = frame_mask(windows.frames, values.shape[-1])
    place = (
        windows.clip[:, None] * width + windows.start[:, None] + torch.arange(values.shape[-1], device=values.device)
    )
    place = place[inside]
    total = values.new_zeros(len(frames) * width).index_add(0, place, values[inside])
    count = values.new_zeros(len(frames) * width).index_add(0, place, values.new_ones(len(place)))
    return (total / count.clamp_min(1)).view(len(frames), width)
