"""Pretrained audio encoders: one contract, `Encoder`, and a table of those that there are."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offkey.encoders.config import ENCODERS, EncoderConfig

if TYPE_CHECKING:
    from offkey.encoders.base import Encoder

__all__ = ["ENCODERS", "EncoderConfig", "build_encoder", "encoder_class", "load_encoder"]


def encoder_class(name: str) -> type[Encoder]:
    """The class of an encoder; raises OffkeyError for a name that is not in the table."""
    from offkey.types import OffkeyError

    if name not in ENCODERS:
        raise OffkeyError(f"there is no encoder {name!r}; known: {', '.join(sorted(ENCODERS))}")
    module, attribute = ENCODERS[name]
    found: type[Encoder] = getattr(import_module(module), attribute)
    return found


def build_encoder(name: str, architecture: Mapping[str, Any] | None = None) -> Encoder:
    """An encoder with random weights, of the usual architecture or of the one that another's `architecture` tells."""
    return encoder_class(name).build(architecture or {})


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    *,
    classifier: bool = True,
    checkpointing: bool = False,
    bf16: bool = False,
) -> Encoder:
    """A pretrained encoder in eval mode.

    `weights`: a name of `offkey weights list`, or the path of a file; None takes the encoder's usual ones.
    `classifier=False` leaves out the classifier of a fine-tuned file. `checkpointing` and `bf16` trade time
    and precision for memory. Raises WeightsError where the file is not at hand or is not what it should be,
    EncoderError where it does not fit the encoder.
    """
    from offkey.encoders.weights import open_weights

    kind = encoder_class(name)
    encoder = kind.from_checkpoint(open_weights(weights or kind.usual_weights), classifier=classifier)
    encoder.checkpointing, encoder.bf16 = checkpointing, bf16
    return encoder.eval()
