"""Signal-level variants: a clip played faster is a sound of another class.

To tell 1.00 from 1.05 times the speed a network has to hear where a machine's lines stand, which is what many
faults move; and there are classes to tell apart even where a data set names no settings. The idea is that of
self-supervised classes for anomalous sound detection (T. Inoue et al., DCASE 2020 Task 2: "Detection of
anomalous sounds for machine condition monitoring using classification confidence").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from offkey.types import Batch, OffkeyError

__all__ = ["variant_names", "vary"]


def variant_names(identities: Sequence[str], speeds: Sequence[float]) -> tuple[str, ...]:
    """The class names that `vary` numbers: every identity at every speed, the speed running fastest.

    >>> variant_names(["fan"], [1.0, 1.05])
    ('fan', 'fan@1.05')
    """
    return tuple(name if speed == 1.0 else f"{name}@{speed:g}" for name in identities for speed in speeds)


def vary(batch: Batch, speeds: Sequence[float], window: int | None, generator: np.random.Generator) -> Batch:
    """Play every clip of a labelled batch at a randomly drawn speed, number its class accordingly, and cut windows.

    Identity i at speed number v becomes i·V + v; unknown identities (-1) stay unknown. A window of `window` samples is
    taken at a random place (a clip that is too short is repeated until it fills it); without `window`, what the
    fastest variant leaves of the clip (T / max(speeds)), so that length tells nothing. With one speed and no window the
    batch is returned as it is. Raises OffkeyError on a batch without labels.
    """
    if len(speeds) < 2 and window is None:
        return batch
    if batch.labels is None:
        raise OffkeyError("signal-level variants make classes: load the batches with a label space")
    import soxr

    drawn = generator.integers(len(speeds), size=len(batch.lengths))
    starts = generator.random(len(batch.lengths))
    rows = []
    for waveform, length, number, start in zip(batch.waveform, batch.lengths.tolist(), drawn, starts, strict=True):
        played = waveform[:length].numpy()
        if speeds[number] != 1.0:
            # resampling to fewer samples and playing them at the old rate is what "faster" means
            played = soxr.resample(played, speeds[number], 1.0)
        keep = window if window is not None else max(1, int(length / max(speeds)))
        if len(played) < keep:
            played = np.tile(played, -(-keep // len(played)))
        first = int(start * (len(played) - keep + 1))
        rows.append(torch.from_numpy(np.ascontiguousarray(played[first : first + keep], dtype=np.float32)))
    identity = batch.labels.identity
    numbered = torch.where(identity >= 0, identity * len(speeds) + torch.from_numpy(drawn), identity)
    return batch._replace(
        waveform=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        lengths=torch.tensor([len(row) for row in rows]),
        labels=batch.labels._replace(identity=numbered),
    )
