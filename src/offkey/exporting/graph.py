"""The whole way from waveforms to scores as one module: level, front end, network, views, scorers, blend, p-value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from offkey.audio.mel import LogMel
from offkey.detector import Detector, MachineDetector
from offkey.exporting.front import MelGraph, own
from offkey.exporting.networks import Heard, network_graph, shortest_samples
from offkey.exporting.problem import ExportError
from offkey.exporting.scorers import BlendGraph, PValues, scorer_graph
from offkey.models.config import DiscriminativeConfig, RetrievalConfig
from offkey.models.error_pooling import pool_errors
from offkey.models.statistics import LogMelStatistics, Loudness
from offkey.systems.config import SystemConfig
from offkey.types import Batch
from offkey.views import SHARED

__all__ = ["INPUTS", "OUTPUTS", "DetectorGraph", "Judged", "graphs_of"]

INPUTS = ("waveform", "lengths", "machine")
OUTPUTS = ("score", "p_value", "threshold", "is_anomalous", "parts")


class Judged(NamedTuple):
    """What a file gives, in the order of `OUTPUTS`: (B,) float64 three times, (B,) bool, (B, S) float64."""

    score: Tensor
    p_value: Tensor
    threshold: Tensor
    is_anomalous: Tensor
    parts: Tensor


class DetectorGraph(nn.Module):
    """(waveform (B, T), lengths (B,), machine (B,)) to `Judged`; `machine` counts the names in `machines`.

    T must be at least `shortest`; `lengths` are each clip's own samples, 1 or more.
    """

    def __init__(self, config: SystemConfig, network: nn.Module | None, machines: Mapping[str, MachineDetector]):
        super().__init__()
        self.config = config
        self.machines = tuple(machines)
        self.shortest = shortest_samples(network)
        entries = config.scoring.scorers
        self.views = list(dict.fromkeys(entry.view for entry in entries))
        heard = {"network", "error", "residual"} & set(self.views)
        self.network = network_graph(network) if network is not None and heard else None
        self.statistics: LogMelStatistics | None = None
        if "logmel" in self.views:
            mel = LogMel(config.audio.rate, config.mel)
            self.statistics = LogMelStatistics(mel, mean=config.statistics.mean, std=config.statistics.std).eval()
            self.statistics.add_module("mel", MelGraph(mel))
        self.loudness = Loudness()
        self.judges = nn.ModuleList(_Judge(config, known) for known in machines.values())

    def forward(self, waveform: Tensor, lengths: Tensor, machine: Tensor) -> Judged:
        """Judge a batch."""
        waveform = waveform * own(lengths, waveform.shape[1])
        if self.config.audio.level_dbfs is not None:
            waveform = _level(waveform, lengths, self.config.audio.level_dbfs)
        seen = self._views(waveform, lengths)
        told = [judge(seen) for judge in self.judges]
        # Every machine's scorers judge every clip, and its own one's answer is taken: they cost little beside the net.
        return Judged(*(_pick([answer[place] for answer in told], machine) for place in range(len(OUTPUTS))))

    def _views(self, waveform: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        batch = Batch(waveform, lengths, None, torch.zeros_like(lengths))
        heard = self.network(waveform, lengths) if self.network is not None else None
        return {view: self._view(view, batch, heard).double() for view in self.views}

    def _view(self, view: str, batch: Batch, heard: Heard | None) -> Tensor:
        match view:
            case "logmel" if self.statistics is not None:
                return self.statistics(batch).embedding
            case "loudness":
                return self.loudness(batch).embedding
            case "network" if heard is not None:
                return heard.embedding
            case "residual" if heard is not None and heard.residual is not None:
                return heard.residual
            case "error" if heard is not None and heard.errors is not None and heard.counts is not None:
                model = self.config.model
                if not isinstance(model, DiscriminativeConfig | RetrievalConfig):
                    return pool_errors(heard.errors, heard.counts, model.pooling, model.top)[:, None]
        raise ExportError(f"the view {view} of system {self.config.system!r} cannot be exported yet")


class _Judge(nn.Module):
    """What one machine's scorers say of the views of a batch."""

    def __init__(self, config: SystemConfig, known: MachineDetector) -> None:
        super().__init__()
        entries = config.scoring.scorers
        self.views = [entry.view for entry in entries]
        self.scorers = nn.ModuleList(scorer_graph(scorer) for scorer in known.scorers)
        self.blend = BlendGraph(known.quantiles, [entry.weight for entry in entries])
        self.p_values = PValues(known.calibration)
        self.threshold = known.calibration.threshold()

    def forward(self, seen: Mapping[str, Tensor]) -> Judged:
        pairs = zip(self.views, self.scorers, strict=True)
        parts = torch.stack([scorer(seen[view]) for view, scorer in pairs], 1)
        score = self.blend(parts)
        threshold = torch.full_like(score, self.threshold)
        return Judged(score, self.p_values(score), threshold, score > threshold, parts)


def _level(waveform: Tensor, lengths: Tensor, dbfs: float) -> Tensor:
    """Bring each clip's own samples to an RMS level; silence stays silent."""
    wide = waveform.double()
    power = wide.square().sum(1) / lengths
    gain = 10.0 ** (dbfs / 20.0) / power.sqrt().clamp_min(1e-30)
    return (wide * gain[:, None]).float()


def _pick(answers: Sequence[Tensor], machine: Tensor) -> Tensor:
    """Row b of the answer of machine number `machine[b]`."""
    stacked = torch.stack(list(answers), 1)
    place = machine.reshape(-1, 1, *[1] * (stacked.ndim - 2)).expand(-1, 1, *stacked.shape[2:])
    return stacked.gather(1, place)[:, 0]


def graphs_of(detector: Detector) -> dict[str, DetectorGraph]:
    """A file's stem -> its module: one file for all machines that share a network, one a network otherwise.

    Raises ExportError, in words, where a part of the detector cannot be exported.
    """
    if detector.config.kind == "ensemble":
        raise ExportError("an ensemble cannot be exported yet; export its members (members/NAME) one by one")
    if detector.front_end is not None:
        raise ExportError(
            "this detector hears every clip through a separator (separation.front_end), which cannot be exported; "
            "fit it without one, or score with the detector itself"
        )
    if not detector.networks or SHARED in detector.networks:
        return {"model": DetectorGraph(detector.config, detector.networks.get(SHARED), detector.machines)}
    return {
        f"model{number}": DetectorGraph(detector.config, detector.networks[name], {name: known})
        for number, (name, known) in enumerate(detector.machines.items())
    }
