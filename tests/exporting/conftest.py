"""Tracing turns sizes into tensors, which annotations do not foresee: shapes are not checked while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jaxtyping
import pytest


class Made(NamedTuple):
    detector: Any
    export: Any


@pytest.fixture(autouse=True, scope="package")
def unchecked_shapes() -> Iterator[None]:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="package")
def exported(
    fitted: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory, unchecked_shapes: None
) -> Callable[..., Made]:
    """Preset name -> that system's detector, and its export, once a session. Nobody writes into the folder."""
    from offkey.exporting import export_detector

    known: dict[tuple[str, bool], Made] = {}

    def export_once(system: str, int8: bool = False) -> Made:
        if (system, int8) not in known:
            detector = fitted(system).detector
            folder: Path = tmp_path_factory.mktemp("exported") / system
            known[system, int8] = Made(detector, export_detector(detector, folder, int8=int8))
        return known[system, int8]

    return export_once
