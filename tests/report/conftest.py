"""Made-up machines for the report's tests: real shapes, invented scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offkey.report import ClipReport, EmbeddingMap, MachineReport, ReportData
from offkey.types import Condition, Domain, OffkeyError

RATE = 16000


def tone(path: Path) -> tuple[np.ndarray, int]:
    """Two seconds of a tone in noise that depend on the name alone; names with 'gone' cannot be read."""
    if "gone" in path.name:
        raise OffkeyError(f"{path.name}: no such file")
    rng = np.random.default_rng(sum(path.name.encode("utf-8", "surrogateescape")))
    time = np.arange(2 * RATE) / RATE
    wave = 0.05 * np.sin(2 * np.pi * 440 * time) + 0.02 * rng.standard_normal(len(time))
    return wave.astype(np.float32), RATE


def make_machine(
    name: str = "fan",
    clips: int = 40,
    labelled: bool = True,
    domains: tuple[Domain, ...] = (Domain.SOURCE, Domain.TARGET),
    embedded: bool = True,
    seed: int = 0,
) -> MachineReport:
    rng = np.random.default_rng(seed)
    reference = rng.normal(1.0, 0.2, 60)
    threshold = float(np.quantile(reference, 0.95))
    made = []
    for index in range(clips):
        odd = index % 2 == 1
        score = float(rng.normal(1.6 if odd else 1.0, 0.3))
        condition = (Condition.ANOMALY if odd else Condition.NORMAL) if labelled else Condition.UNKNOWN
        made.append(
            ClipReport(
                file=f"{name}/clip_{index:04d}.wav",
                path=Path(f"{name}/clip_{index:04d}.wav"),
                score=score,
                is_anomalous=score > threshold,
                p_value=float((1 + np.sum(reference >= score)) / (1 + len(reference))),
                domain=domains[(index // 2) % len(domains)],
                condition=condition,
            )
        )
    layout = EmbeddingMap(rng.normal(size=(60, 2)), rng.normal(size=(clips, 2)), (), (0.4, 0.2))
    return MachineReport(name, made, threshold, 0.05, reference, layout if embedded else None)


def make_result(names: list[str]) -> dict[str, Any]:
    row = {"auc_source": 0.81, "auc_target": 0.62, "pauc": 0.55, "intervals": {"auc_source": [0.7, 0.9]}}
    return {
        "protocol": "dcase2025",
        "official_score": 0.641,
        "interval": [0.58, 0.7],
        "machines": {name: dict(row) for name in names},
    }


@pytest.fixture
def machine() -> Callable[..., MachineReport]:
    return make_machine


@pytest.fixture
def report() -> Callable[..., ReportData]:
    def make(*machines: MachineReport, **changes: Any) -> ReportData:
        shown = machines or (make_machine(),)
        known: dict[str, Any] = {
            "title": "Trial run",
            "system": "auto",
            "created": "2025-11-22",
            "version": "0.1.0",
            "machines": shown,
            "result": make_result([m.name for m in shown]),
            "facts": [("Learnt from", "60 normal clips")],
            "reasons": ["Two settings are enough for classes."],
            "problems": [("bad.wav", "0 samples")],
            "config_toml": "seed = 0\n",
            "notes": ["A note of the run."],
        }
        return ReportData(**{**known, **changes})

    return make


@pytest.fixture
def audio() -> Callable[[Path], tuple[np.ndarray, int]]:
    return tone
