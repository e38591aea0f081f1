"""Scripts of the folder `benchmarks`, loaded as they lie there."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Name -> the script as a module, loaded once."""
    known: dict[str, ModuleType] = {}

    def load(name: str) -> ModuleType:
        if name not in known:
            spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            known[name] = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = known[name]
            spec.loader.exec_module(known[name])
        return known[name]

    return load
