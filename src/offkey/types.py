"""The nouns of the project. Every other room may import this one; it imports none of ours.

Axes: B clips, T samples, F frames, M mel bins, P patches, D dimensions, N reference clips.
Units: seconds, hertz, dB; level in dBFS.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
elif "jaxtyping" in sys.modules:  # the tests load it first, and then every annotated shape is checked
    from jaxtyping import Bool, Float, Int
else:  # everywhere else shapes are documentation: loading jaxtyping would cost a sixth of a second

    class _Shape:
        """Stands for an array of any shape."""

        def __class_getitem__(cls, item: object) -> Any:
            return Any

    Bool = Float = Int = _Shape

__all__ = [
    "Batch",
    "Bool",
    "Clip",
    "ClipMeta",
    "Condition",
    "Content",
    "Domain",
    "Exchanged",
    "FileVerdict",
    "Float",
    "Int",
    "Labels",
    "OffkeyError",
    "Representation",
    "Split",
    "Verdict",
]


class OffkeyError(Exception):
    """Something that its reader can mend; the message says what was wrong, where, and what to do.

    Every error that offkey raises on purpose derives from it; the command line prints its message without
    a traceback and ends with exit code 2 (or 1 where a batch went on without the input at fault).
    """


class Domain(StrEnum):
    """Recording condition: `source` has plenty of normal data, `target` is shifted and has few clips."""

    SOURCE = "source"
    TARGET = "target"
    UNKNOWN = "unknown"


class Condition(StrEnum):
    """What is known of a clip. Training data is taken to be `normal`; hidden test data is `unknown`."""

    NORMAL = "normal"
    ANOMALY = "anomaly"
    UNKNOWN = "unknown"


class Split(StrEnum):
    """The part of a data set that a clip belongs to."""

    TRAIN = "train"
    TEST = "test"
    SUPPLEMENTAL = "supplemental"


class Content(StrEnum):
    """What sounds in a clip: the machine in its surroundings, the machine alone, or the noise alone."""

    MIXTURE = "mixture"
    MACHINE = "machine"
    NOISE = "noise"


@dataclass(frozen=True, slots=True)
class ClipMeta:
    """What is known of one audio file without opening it.

    `attributes` are (name, value) pairs of known operating settings in the order of the data set, empty where
    hidden; `name` of a file is `path.name`. `section` is DCASE's two-digit subset ("00" elsewhere). `session` names the
    recording that the clip was cut from; "" where it is one by itself, or nobody told.
    """

    path: Path
    machine: str
    section: str = "00"
    domain: Domain = Domain.UNKNOWN
    condition: Condition = Condition.UNKNOWN
    split: Split = Split.TEST
    attributes: tuple[tuple[str, str], ...] = ()
    content: Content = Content.MIXTURE
    session: str = ""


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording in memory: mono `samples` (T,) float32, nominally in [-1, 1], at `rate` hertz."""

    samples: NDArray[np.float32]
    rate: int
    meta: ClipMeta | None = None


class Labels(NamedTuple):
    """Class numbers of a batch; -1 means not known, and the loss leaves that clip out.

    `identity` (B,) int64; `attributes` (B, A) int64, one column an attribute head; `domain` (B,) int64,
    0 source, 1 target.
    """

    identity: Tensor
    attributes: Tensor
    domain: Tensor


class Batch(NamedTuple):
    """Clips padded with zeros at the end to the longest one, or windows of clips.

    `waveform` (B, T) float32; `lengths` (B,) int64 real samples a clip; `labels` None when scoring;
    `place` (B,) int64 is where each clip stands in the list that the loader was given.

    With `features` (B, C', F) float32 every row is a window of a clip (`offkey.models.windows` says how it is cut), and
    they are its fixed features, found beforehand and zero past its own frames.
    """

    waveform: Tensor
    lengths: Tensor
    labels: Labels | None
    place: Tensor
    features: Tensor | None = None


class Exchanged(NamedTuple):
    """What a model makes of clips that took some of their input streams from another clip of the batch.

    `embedding` (B, D) float32; `partner` (B,) int64 the clip that lent its streams; `met` (B,) bool which clips were
    exchanged: the others are not to be looked at.
    """

    embedding: Tensor
    partner: Tensor
    met: Tensor


class Representation(NamedTuple):
    """What a model says of a batch; the same type in training and in scoring.

    `embedding` (B, D) float32; `frame_error` (B, F) reconstruction error a frame, None where nothing is
    reconstructed; `patch_grid` (B, Pt, Pf, D') encoder patches, time x frequency, None where there are none;
    `modalities` (B, S, M) float32, one vector a clip and input stream (the mean over the clip's own frames), None
    where the model was not asked for it; `exchanged`, in training with exchanged streams, what they became.
    """

    embedding: Tensor
    frame_error: Tensor | None = None
    patch_grid: Tensor | None = None
    modalities: Tensor | None = None
    exchanged: Exchanged | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a detector says of one clip.

    `score` is higher for stranger clips and has no unit; `p_value` in (0, 1] is the conformal p-value: a
    normal clip gets one ≤ α with probability ≤ α, up to calibration error; `is_anomalous` is
    `score > threshold`.
    `parts` holds the score of each scorer before blending.
    """

    score: float
    p_value: float
    threshold: float
    is_anomalous: bool
    machine: str
    parts: Mapping[str, float] = field(default_factory=dict)


class FileVerdict(NamedTuple):
    """One row a file: a verdict, or the reason why there is none."""

    path: Path
    verdict: Verdict | None
    error: str | None
