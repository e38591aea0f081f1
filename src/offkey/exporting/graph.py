"""The whole way from waveforms to scores as one module: separator, level, network, views, scorers, blend, p-value.

An ensemble is a detector whose only view are its members' scores, and so it is here: its module holds one of the same
kind for each member. What members share, down to a whole encoder, is found and computed once when the file is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from offkey.audio.io import AudioConfig
from offkey.audio.mel import LogMel
from offkey.detector import Detector, MachineDetector
from offkey.ensemble import MEMBERS, Ensemble
from offkey.exporting.front import MelGraph, own
from offkey.exporting.networks import Heard, network_graph, shortest_samples
from offkey.exporting.problem import ExportError
from offkey.exporting.scorers import BlendGraph, PValues, scorer_graph
from offkey.exporting.separators import SeparatorGraph, front_end_graph
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

    T must be at least `shortest`; `lengths` are each clip's own samples, 1 or more, and `longest` at most, where that
    is not None. `audio` says how files are read for it. The `members` of an ensemble have the same `machines`.
    """

    shortest: int
    longest: int | None
    separates: bool

    def __init__(
        self,
        config: SystemConfig,
        network: nn.Module | None,
        machines: Mapping[str, MachineDetector],
        separator: SeparatorGraph | None = None,
        members: Sequence[DetectorGraph] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.audio = _heard_by(members) if members else config.audio
        self.machines = tuple(machines)
        self.separator = separator
        self.members = nn.ModuleList(members)
        self.shortest = max([shortest_samples(network), *(member.shortest for member in members)])
        bounds = [member.longest for member in members] if members else [separator.longest if separator else None]
        self.longest = min((bound for bound in bounds if bound is not None), default=None)
        self.separates = separator is not None or any(member.separates for member in members)
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
        if self.members:  # each of them hears in its own way
            seen = {MEMBERS: torch.stack([member(waveform, lengths, machine).score for member in self.members], 1)}
        else:
            seen = self._views(*self._hear(waveform, lengths))
        told = [judge(seen) for judge in self.judges]
        # Every machine's scorers judge every clip, and its own one's answer is taken: they cost little beside the net.
        return Judged(*(_pick([answer[place] for answer in told], machine) for place in range(len(OUTPUTS))))

    def _hear(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.separator is not None:
            waveform = self.separator(waveform, lengths)
        waveform = waveform * own(lengths, waveform.shape[1])
        if self.config.audio.level_dbfs is not None:
            waveform = _level(waveform, lengths, self.config.audio.level_dbfs)
        return waveform, lengths

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
    hearers = list(detector.members.values()) if isinstance(detector, Ensemble) else [detector]
    names = list(detector.machines)
    if all(not hearer.networks or SHARED in hearer.networks for hearer in hearers):
        return {"model": _graph(detector, names)}
    return {f"model{number}": _graph(detector, [name]) for number, name in enumerate(names)}


def _graph(detector: Detector, names: Sequence[str]) -> DetectorGraph:
    """The module for some machines, which share a network where a detector has any."""
    machines = {name: detector.machines[name] for name in names}
    if isinstance(detector, Ensemble):
        return DetectorGraph(
            detector.config, None, machines, members=[_member(*member, names) for member in detector.members.items()]
        )
    front_end = detector.front_end
    separator = None if front_end is None else front_end_graph(front_end, detector.config.audio)
    network = detector.networks.get(SHARED, detector.networks.get(names[0]))
    return DetectorGraph(detector.config, network, machines, separator)


def _member(name: str, detector: Detector, machines: Sequence[str]) -> DetectorGraph:
    try:
        return _graph(detector, machines)
    except ExportError as error:
        raise ExportError(f"the member {name} of this ensemble: {error}") from error


def _heard_by(members: Sequence[DetectorGraph]) -> AudioConfig:
    """How files are read for several members; raises ExportError where one reading does not suit all of them."""
    heard = [member.audio for member in members]
    for name in ("rate", "channel"):
        told = {str(getattr(audio, name)) for audio in heard}
        if len(told) > 1:
            raise ExportError(
                f"the members of this ensemble differ in audio.{name} ({', '.join(sorted(told))}), and an exported "
                "detector reads a file in one way; fit them alike, or export them (members/NAME) one by one"
            )
    levels = {audio.level_dbfs for audio in heard}
    return heard[0].model_copy(
        update={
            "level_dbfs": levels.pop() if len(levels) == 1 else None,
            "min_seconds": max(audio.min_seconds for audio in heard),
        }
    )
