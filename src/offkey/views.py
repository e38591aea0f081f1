"""What a system's scorers look at: the views of a clip, each found once a batch.

network    the trained embedding, or a frozen encoder's (B, D)
error      an autoencoder's error, pooled over the clip (B, 1)
residual   selective Mahalanobis of the DCASE baseline  (B, 1)
logmel     log-mel statistics over time                 (B, M) or (B, 2M)
loudness   level in dBFS                                (B, 1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from offkey.audio.mel import LogMel
from offkey.models.config import DiscriminativeConfig, RetrievalConfig
from offkey.models.dense_autoencoder import DenseAutoencoder, SelectiveMahalanobis
from offkey.models.discriminative import Discriminative
from offkey.models.error_pooling import pool_errors
from offkey.models.reconstructive import Reconstructive
from offkey.models.retrieval import Retrieval
from offkey.models.statistics import LogMelStatistics, Loudness
from offkey.systems.config import SystemConfig, View
from offkey.systems.network import Network
from offkey.types import Batch, OffkeyError, Representation

__all__ = ["SHARED", "Seen", "ViewError", "Views"]

SHARED = ""
"""Name of the network that all machines share, where there is one a machine otherwise."""

_TRAINED = ("network", "error", "residual")


class ViewError(OffkeyError):
    """A view was asked for that the networks at hand cannot give."""


class Seen(NamedTuple):
    """A batch as the scorers see it: `embeddings` (B, D) float32 a view.

    `errors` has an array (F_b,) float32 a clip, the reconstruction error of its own frames; None where nothing is
    rebuilt. Only where it was asked for, and the network can tell: `error_maps`, (M, F_b) a clip, that error by mel
    band, and `patches`, (Pt_b, Pf, D) a clip, an encoder's patches.
    """

    embeddings: dict[str, NDArray[np.float32]]
    errors: list[NDArray[np.float32]] | None
    error_maps: list[NDArray[np.float32]] | None = None
    patches: list[NDArray[np.float32]] | None = None


class _Errors(NamedTuple):
    """`values` (B, F) a frame, of which the first `counts` (B,) are the clip's own."""

    values: torch.Tensor
    counts: torch.Tensor


class Views:
    """The views that the scorers of `config` ask for; `networks` by machine, or one by the name `SHARED`."""

    def __init__(self, config: SystemConfig, networks: Mapping[str, Network]) -> None:
        """Raises ViewError where a view is of a network and there is none."""
        self.config = config
        self.networks = {name: network.eval() for name, network in networks.items()}
        self.names: list[View] = list(dict.fromkeys(entry.view for entry in config.scoring.scorers))
        for view in self.names:
            if view in _TRAINED and not networks:
                raise ViewError(f"system {config.system!r} scores the view {view} of a network, but none was trained")
        mel = LogMel(config.audio.rate, config.mel)
        self._statistics = LogMelStatistics(mel, mean=config.statistics.mean, std=config.statistics.std).eval()
        self._loudness = Loudness().eval()

    def __call__(self, batch: Batch, machines: Sequence[str], reasons: bool = False) -> Seen:
        """Look at a batch whose clips belong to `machines` (B names); ViewError for a machine without a network.

        `reasons`: tell what explanations need as well (`Seen.error_maps`, `Seen.patches`).
        """
        with torch.inference_mode():
            if not self.networks or SHARED in self.networks:
                return self._see(batch, self.networks.get(SHARED), reasons)
            parts = []
            for machine in dict.fromkeys(machines):
                if machine not in self.networks:
                    raise ViewError(f"there is no network for the machine {machine!r}")
                rows = [row for row, name in enumerate(machines) if name == machine]
                parts.append((rows, self._see(_part(batch, rows), self.networks[machine], reasons)))
        return _joined(parts, len(machines))

    def _see(self, batch: Batch, network: Network | None, reasons: bool) -> Seen:
        heard, errors = None, None
        if network is not None and {"network", "error"} & set(self.names):
            heard = network(batch, patches=True) if reasons and isinstance(network, Retrieval) else network(batch)
            errors = _own_errors(network, heard, batch)
        embeddings: dict[str, NDArray[np.float32]] = {
            view: self._view(view, batch, network, heard, errors).float().cpu().numpy() for view in self.names
        }
        maps = _error_maps(network, batch) if reasons and errors is not None else None
        patches = None
        if heard is not None and heard.patch_grid is not None:
            patches = list(heard.patch_grid.float().cpu().numpy())
        if errors is None:
            return Seen(embeddings, None, maps, patches)
        rows = zip(errors.values.cpu().numpy(), errors.counts.tolist(), strict=True)
        return Seen(embeddings, [row[:count] for row, count in rows], maps, patches)

    def _view(
        self, view: View, batch: Batch, network: Network | None, heard: Representation | None, errors: _Errors | None
    ) -> torch.Tensor:
        model = self.config.model
        match view:
            case "logmel":
                return self._statistics(batch).embedding
            case "loudness":
                return self._loudness(batch).embedding
            case "residual" if isinstance(network, DenseAutoencoder):
                return SelectiveMahalanobis(network)(batch).embedding
            case "network" if heard is not None:
                return heard.embedding
            case "error" if errors is not None and not isinstance(model, DiscriminativeConfig | RetrievalConfig):
                return pool_errors(errors.values, errors.counts, model.pooling, model.top)[:, None]
        raise ViewError(f"the network of system {self.config.system!r} cannot give the view {view}")


def _own_errors(network: Network, heard: Representation, batch: Batch) -> _Errors | None:
    if heard.frame_error is None or isinstance(network, Discriminative | Retrieval):
        return None
    return _Errors(heard.frame_error.float(), network.error_frames(batch.lengths))


def _error_maps(network: Network | None, batch: Batch) -> list[NDArray[np.float32]] | None:
    """The error of each clip's own frames by mel band, where the network rebuilds log-mel."""
    if isinstance(network, DenseAutoencoder) or (isinstance(network, Reconstructive) and network.config.use_log_mel):
        counts = network.mel.frames(batch.lengths).tolist()
        maps = network.error_map(batch).float().cpu().numpy()
        return [one[:, :count] for one, count in zip(maps, counts, strict=True)]
    return None


def _part(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some clips of a batch, no longer padded than they need."""
    lengths = batch.lengths[list(rows)]
    return Batch(batch.waveform[list(rows), : int(lengths.max())], lengths, None, batch.place[list(rows)])


def _joined(parts: Sequence[tuple[Sequence[int], Seen]], count: int) -> Seen:
    """What was seen of parts of a batch, in the batch's order."""
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    first = parts[0][1]
    embeddings = {
        view: np.concatenate([seen.embeddings[view] for _, seen in parts])[order] for view in first.embeddings
    }

    def told(rows: Sequence[list[NDArray[np.float32]] | None]) -> list[NDArray[np.float32]] | None:
        known = [one for row in rows for one in row or ()]
        return [known[place] for place in order.tolist()] if len(known) == count else None

    seen = [one for _, one in parts]
    return Seen(
        embeddings,
        told([one.errors for one in seen]),
        told([one.error_maps for one in seen]),
        told([one.patches for one in seen]),
    )
