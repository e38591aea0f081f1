"""A module to the bytes of an ONNX model, with the numbers of clips and samples left open.

torch has two exporters. This is the one that traces: a second instead of half a minute, the same graph from torch 2.4
on, no bounds on lengths, and node names that say which module a node is of (what is quantised is chosen by them).
Tracing freezes decisions; here they are frozen to the way that is right for any batch, and `offkey.exporting.check`
looks at lengths that were not traced.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from offkey.exporting.graph import INPUTS, OUTPUTS, DetectorGraph
from offkey.exporting.problem import ExportError

__all__ = ["LARGEST", "OPSET", "onnx_bytes", "tidy"]

OPSET = 17
LARGEST = 1_900_000_000
"""Bytes of one ONNX file: the format ends at 2 GiB."""


def onnx_bytes(graph: DetectorGraph) -> bytes:
    """Trace a module with two clips of unequal length, so that nothing is taken for unpadded."""
    require("onnx")
    rate = graph.audio.rate
    samples = max(2 * rate, 2 * graph.shortest)
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(2, samples, generator=generator)
    example = (waveform, torch.tensor([samples, (2 * samples) // 3]), torch.zeros(2, dtype=torch.int64))
    axes = {"waveform": {0: "clips", 1: "samples"}, "lengths": {0: "clips"}, "machine": {0: "clips"}}
    axes |= {name: {0: "clips"} for name in OUTPUTS}
    written = io.BytesIO()
    graph = graph.eval()
    more: dict[str, Any] = {"dynamo": False} if _has_dynamo() else {}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of decisions that tracing freezes, and of the exporter's age
            torch.onnx.export(
                graph, example, cast(Any, written), input_names=list(INPUTS), output_names=list(OUTPUTS),
                dynamic_axes=axes, opset_version=OPSET, **more,
            )  # fmt: skip
    except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
        raise ExportError(f"this torch ({torch.__version__}) cannot write the detector as ONNX: {error}") from error
    return written.getvalue()


def _has_dynamo() -> bool:
    import inspect

    return "dynamo" in inspect.signature(torch.onnx.export).parameters


def tidy(content: bytes, place: Path, metadata: Mapping[str, str]) -> Path:
    """Write a model to `place`, what is constant computed beforehand, with `metadata` in it."""
    require("onnx")
    require("onnxruntime")
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # the basic level stays within the standard: any runtime reads it
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(place)
    options.log_severity_level = 3
    traced = onnx.load_from_string(content)
    _take_constants_themselves(traced.graph)
    onnxruntime.InferenceSession(traced.SerializeToString(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(place)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name = "offkey"
    onnx.save(model, place)
    return place


def _take_constants_themselves(graph: Any) -> None:
    """Leave out nodes that only give a constant another name, as the exporter does with those that are equal.

    onnxruntime removes them too, but then misses some of the names: those of separators that members share.
    """
    constants = {constant.name for constant in graph.initializer}
    outputs = {output.name for output in graph.output}
    names: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in outputs:
            names[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def require(package: str) -> None:
    """Raise ExportError, which says how to come by it, where a package is missing."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise ExportError(f"exporting needs the package {package}: pip install 'offkey[export]'")
