"""What benchmarks beside other people's code share: a file as a module, and two ways timed in turns."""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_file(path: Path, name: str) -> Any:
    """A Python file as the module `name`, wherever it lies."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path} is no Python file, or not there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def take_turns(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way in each turn, after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def middle(values: list[float]) -> dict[str, float]:
    """Median, quartiles and least."""
    low, mid, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": mid, "low": low, "high": high, "best": min(values)}
