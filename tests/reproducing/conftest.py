"""A miniature of a year's data set, and runs that happen in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offkey.benchmarking import Contestant
from offkey.progress import Quiet
from offkey.reproducing import Plan, Work, experiment

SMALL = "training.epochs=1"


@pytest.fixture(scope="session")
def dcase_root(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2025 in the official tree: fan and valve for development, AutoTrash and ToyPet (hidden) for evaluation."""
    root = tmp_path_factory.mktemp("root")
    for part, names in (("dev", {"fan": "fan", "valve": "valve"}), ("eval", {"fan": "AutoTrash", "valve": "ToyPet"})):
        raw = root / "dcase2025t2" / f"{part}_data" / "raw"
        for old, new in names.items():
            shutil.copytree(small_set / old, raw / new)
    lines = []
    for machine in ("AutoTrash", "ToyPet"):
        lines.append(machine)
        tests = sorted((root / "dcase2025t2" / "eval_data" / "raw" / machine / "test").glob("*.wav"))
        for number, path in enumerate(tests):
            hidden = f"section_00_{number:04d}.wav"
            lines.append(f"{hidden},{path.name}")
            path.rename(path.with_name(hidden))
    (root / "eval_data_list_2025.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def planned(dcase_root: Path, tmp_path: Path) -> Callable[..., Plan]:
    """A plan for the miniature; two systems that need no training and one that learns for an epoch."""

    def make(name: str = "table1", systems: tuple[str, ...] = ("baseline", "logmel-knn"), **changes: object) -> Plan:
        known = experiment(name)
        own = tuple(m for m in known.machines if m in ("fan", "valve", "AutoTrash", "ToyPet"))
        contestants = tuple(Contestant.read(f"{n}={n} {SMALL}" if n == "baseline" else n) for n in systems)
        settled: dict[str, object] = {"root": dcase_root, "out": tmp_path / "run", "machines": own, "bootstrap": 20,
                                      "workers": 0, "contestants": contestants} | changes  # fmt: skip
        return Plan(known, **settled)  # type: ignore[arg-type]

    return make


@pytest.fixture
def work_of() -> Callable[..., Work]:
    return lambda plan, **more: Work(plan, Quiet(), **more)
