"""Every scorer as a module in float64 whose numbers are those of `Scorer.score`; so also the blend and the p-value.

A new scorer gets a class here and a line in `SCORER_GRAPHS`; until then a detector that uses it cannot be exported, and
says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offkey.exporting.problem import ExportError
from offkey.scoring import (
    Calibration,
    Density,
    Level,
    Mahalanobis,
    Mixture,
    Neighbours,
    NormalQuantile,
    Scorer,
    scorer_from_state,
)
from offkey.scoring.bank import FEWEST
from offkey.scoring.density import smallest_distance
from offkey.scoring.reconstruction import Value

__all__ = ["SCORER_GRAPHS", "BlendGraph", "PValues", "QuantileGraph", "scorer_graph"]


def _doubles(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64, order="C"))


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """(A, B) squared Euclidean distances of rows, from one matrix product in float64."""
    lengths = a.square().sum(1, keepdim=True) + b.square().sum(1)[None, :]
    return (lengths - 2.0 * a @ b.T).clamp_min(0.0)


class _Graph(nn.Module):
    """Constants live in buffers, so that they become the file's weights."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.options = scorer.options
        for name, value in scorer.state().items():
            if name != "header" and value.dtype.kind == "f":
                self.register_buffer(name, _doubles(value))

    def _standard(self, x: Tensor) -> Tensor:
        """Features on the scale of the reference."""
        mean: Any = self.standardise_mean
        return (x - mean) / self.standardise_scale


class _Mahalanobis(_Graph):
    origin: Tensor
    spaces: Tensor
    centres: Tensor

    def __init__(self, scorer: Mahalanobis) -> None:
        super().__init__(scorer)
        kinds = scorer.state()["kinds"]
        self.places = {int(kind): torch.from_numpy(np.flatnonzero(kinds == kind)) for kind in np.unique(kinds)}

    def forward(self, x: Tensor) -> Tensor:
        points = self._standard(x) - self.origin
        found = [
            _squared(points @ self.spaces[kind], self.centres[places]).amin(1) for kind, places in self.places.items()
        ]
        return torch.stack(found).amin(0).sqrt()


class _Mixture(_Graph):
    origin: Tensor
    space: Tensor
    means: Tensor
    factors: Tensor
    constants: Tensor

    def __init__(self, scorer: Mixture) -> None:
        super().__init__(scorer)
        state = scorer.state()
        self.sizes = state["sizes"].tolist()
        width = state["means"].shape[1]
        # the density in the original space is the density in the white one times |det W|
        volume = float(np.linalg.slogdet(state["space"])[1])
        diagonals = np.log(np.diagonal(state["factors"], axis1=1, axis2=2)).sum(1)
        constants = np.log(state["weights"]) + diagonals - 0.5 * width * np.log(2 * np.pi) + volume
        self.register_buffer("constants", _doubles(constants))

    def forward(self, x: Tensor) -> Tensor:
        points = (self._standard(x) - self.origin) @ self.space
        white = torch.matmul((points[None] - self.means[:, None]), self.factors)  # (K, B, D)
        joint = self.constants[:, None] - 0.5 * white.square().sum(2)
        least = []
        for part in joint.split(self.sizes):
            top = part.amax(0)
            least.append(-(top + (part - top).exp().sum(0).log()))
        return torch.stack(least).amin(0)


class _Near(_Graph):
    """What neighbours and local density share: distances to points that lie ready in the space of the metric.

    An embedding of several parts is judged part by part, and the results are added.
    """

    points: Tensor
    middle: Tensor

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer)
        if scorer.options.index == "approximate" and max(scorer.state()["sizes"]) > FEWEST:
            raise ExportError(
                f"the scorer {scorer.name} searches its {len(self.points)} references approximately (index = "
                '"approximate"), which has no form in ONNX, and an exact search would give other scores; fit with '
                'index = "exact", or score with the detector itself'
            )
        self.cosine = scorer.options.metric == "cosine"
        width = self.points.shape[1] // scorer.options.parts
        self.columns = [slice(at, at + width) for at in range(0, self.points.shape[1], width)]
        middle = torch.zeros(self.points.shape[1], dtype=torch.float64) if self.cosine else self.points.mean(0)
        self.register_buffer("middle", middle)  # small numbers lose less in the product
        self.points -= middle

    def distances(self, x: Tensor) -> list[Tensor]:
        """(B, N) a part."""
        x = self._standard(x)
        return [self._away(x[:, part], self.points[:, part], self.middle[part]) for part in self.columns]

    def _away(self, x: Tensor, points: Tensor, middle: Tensor) -> Tensor:
        if not self.cosine:
            return _squared(x - middle, points).sqrt()
        largest = x.abs().amax(1, keepdim=True)
        x = x / torch.where(largest > 0, largest, torch.ones_like(largest))
        length = x.square().sum(1, keepdim=True).sqrt()
        return 0.5 * _squared(x / torch.where(length > 0, length, torch.ones_like(length)), points)


class _Neighbours(_Near):
    centre: Tensor
    scale: Tensor

    def __init__(self, scorer: Neighbours) -> None:
        super().__init__(scorer)
        self.sizes = scorer.state()["sizes"].tolist()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self._part(away, place) for place, away in enumerate(self.distances(x))]).sum(0)

    def _part(self, away: Tensor, place: int) -> Tensor:
        best = []
        for number, pool in enumerate(away.split(self.sizes, dim=1)):
            k = min(self.options.k, self.sizes[number])
            near = pool.amin(1) if k == 1 else pool.topk(k, dim=1, largest=False).values.mean(1)
            best.append((near - self.centre[number, place]) / self.scale[number, place])
        return torch.stack(best).amin(0)


class _Density(_Near):
    local_mean: Tensor
    alpha: Tensor
    floors: Tensor

    def __init__(self, scorer: Density) -> None:
        super().__init__(scorer)
        self.register_buffer("floors", _doubles([smallest_distance(local) for local in self.local_mean.numpy().T]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self._part(away, place) for place, away in enumerate(self.distances(x))]).sum(0)

    def _part(self, away: Tensor, place: int) -> Tensor:
        local, alpha = self.local_mean[:, place], self.alpha[place]
        match self.options.mode:
            case "ratio":
                return (away / local).amin(1)
            case "log-variance":
                return (torch.maximum(away, self.floors[place]).log() - alpha * local.log()).amin(1)
        return (away - alpha * local).amin(1)


class _Level(_Graph):
    mean: Tensor
    spread: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return ((x[:, None] - self.mean) / self.spread).square().mean(2).sqrt().amin(1)


class _Value(_Graph):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.options.column or 0]


SCORER_GRAPHS: dict[type[Scorer], type[_Graph]] = {
    Mahalanobis: _Mahalanobis,
    Mixture: _Mixture,
    Neighbours: _Neighbours,
    Density: _Density,
    Level: _Level,
    Value: _Value,
}
"""Scorer -> the module that gives its numbers."""


def scorer_graph(scorer: Scorer) -> nn.Module:
    """A module from embeddings (B, D) float64 to the scores (B,) float64 of a fitted scorer.

    Raises ExportError for a scorer that has no such form yet.
    """
    made = SCORER_GRAPHS.get(type(scorer))
    if made is None:
        raise ExportError(f"the scorer {scorer.name} cannot be exported yet; choose one of {_names()}")
    return made(scorer_from_state(scorer.state()))


def _names() -> str:
    return ", ".join(sorted(str(kind.Options.model_fields["name"].default) for kind in SCORER_GRAPHS))


class QuantileGraph(nn.Module):
    """`NormalQuantile` of scores (B,)."""

    knots: Tensor
    quantiles: Tensor
    slopes: Tensor

    def __init__(self, to: NormalQuantile) -> None:
        super().__init__()
        self.slope = to.slope
        self.register_buffer("knots", _doubles(to.knots))
        self.register_buffer("quantiles", _doubles(to.quantiles))
        steps = np.diff(to.knots)
        self.register_buffer("slopes", _doubles(np.diff(to.quantiles) / steps if len(steps) else np.zeros(1)))

    def forward(self, scores: Tensor) -> Tensor:
        """(B,) quantiles of the standard normal distribution."""
        lowest, highest = self.knots[0], self.knots[-1]
        inside = scores.clamp_min(lowest).minimum(highest)
        place = (inside[:, None] >= self.knots).sum(1) - 1
        place = place.clamp(0, len(self.slopes) - 1)
        between = self.quantiles[place] + self.slopes[place] * (inside - self.knots[place])
        return between + self.slope * (scores - inside)


class BlendGraph(nn.Module):
    """`blend`: (B,) from scores (B, S) of S scorers."""

    share: Tensor

    def __init__(self, quantiles: Sequence[NormalQuantile], weights: Sequence[float]) -> None:
        super().__init__()
        self.quantiles = nn.ModuleList(QuantileGraph(to) for to in quantiles)
        self.alone = int(np.argmax(weights))
        self.register_buffer("share", _doubles(weights) / sum(weights))

    def forward(self, parts: Tensor) -> Tensor:
        """The weighted mean of normal quantiles, or the one score that counts."""
        if not len(self.quantiles):
            return parts[:, self.alone]
        return torch.stack([to(parts[:, place]) for place, to in enumerate(self.quantiles)], 1) @ self.share


class PValues(nn.Module):
    """`Calibration.p_values` of scores (B,)."""

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        pools = calibration_pools(calibration)
        self.names = [f"pool{number}" for number in range(len(pools))]
        self.counts = calibration.counts()
        self.weighed = calibration.session is not None
        for name, pool, weights in zip(self.names, pools.values(), calibration.weights(), strict=True):
            self.register_buffer(name, _doubles(pool))
            if self.weighed:
                self.register_buffer(f"{name}_weights", _doubles(weights))

    def forward(self, scores: Tensor) -> Tensor:
        """(B,) in (0, 1]; the largest that any domain gives."""
        found = []
        for name, count in zip(self.names, self.counts, strict=True):
            higher = self.get_buffer(name)[None, :] >= scores[:, None]
            above = higher.double() @ self.get_buffer(f"{name}_weights") if self.weighed else higher.sum(1).double()
            found.append((1.0 + above) / (count + 1.0))
        return torch.stack(found).amax(0)


def calibration_pools(calibration: Calibration) -> Mapping[str, NDArray[np.float64]]:
    """The sorted scores among which a clip is ranked: under "" all of them, or a domain's under its name."""
    if calibration.domain is None:
        return {"": calibration.scores}
    return {name: calibration.scores[calibration.domain == name] for name in sorted(set(calibration.domain.tolist()))}
