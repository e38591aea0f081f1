"""Weights of the network in 8 bits.

Matrix products (the linear layers of BEATs) are computed in whole numbers, their inputs brought to 8 bits as they come
(dynamic quantisation). Weights of convolutions are kept in 8 bits, a scale for each channel, and computed with in
float32: whole-number convolutions are slower than float32 ones on most processors. Front end and scorers stay exact.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from offkey.exporting.trace import require

__all__ = ["quantise"]

_SCOPE = re.compile(r"(?:/members\.(?P<member>\d+))?/network/")
_SPARED = ("/mel/", "/front/", "/resample/", "/statistics/")  # below the network, but arithmetic and no weights
_SMALLEST = 1024  # numbers in a weight that is worth it


def quantise(source: Path, place: Path, spared: Collection[int] = ()) -> Path:
    """Write the model `source` with 8-bit weights to `place`, which may be the same; metadata stays.

    Of an ensemble, the members of the numbers `spared` stay exact.
    """
    require("onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    weights = {entry.name: entry for entry in model.graph.initializer}
    products = []
    for node in model.graph.node:
        scope = _SCOPE.match(node.name)
        if scope is None or any(part in node.name for part in _SPARED):
            continue
        if scope["member"] is not None and int(scope["member"]) in spared:
            continue
        given = weights.get(node.input[1]) if len(node.input) > 1 else None
        if given is None or given.data_type != onnx.TensorProto.FLOAT or int(np.prod(given.dims)) < _SMALLEST:
            continue
        if node.op_type in ("MatMul", "Gemm"):
            products.append(node.name)
        elif node.op_type == "Conv":
            _store_in_bytes(model, node, given)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.save(model, place)
    if products:
        with _quiet():
            quantize_dynamic(
                place, place, op_types_to_quantize=["MatMul", "Gemm"], nodes_to_quantize=products, per_channel=True,
                weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
        model = onnx.load(place)
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, properties)
        onnx.save(model, place)
    return place


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back advice that the library gives through the root logger; what it advises has been done."""

    def below_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    root = logging.getLogger()
    bare = not root.handlers
    root.addFilter(below_error)
    try:
        yield
    finally:
        root.removeFilter(below_error)
        if bare:  # its first message has given the root logger a handler
            root.handlers.clear()


def _store_in_bytes(model: Any, node: Any, weight: Any) -> None:
    """Replace a convolution's weight (O, …) by its 8-bit form and a scale for each of the O channels."""
    import onnx
    from onnx import numpy_helper

    values = numpy_helper.to_array(weight)
    scale = np.abs(values).reshape(len(values), -1).max(1) / 127.0
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    whole = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
    name = f"{node.name}/weight"
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(whole, f"{name}_int8"),
            numpy_helper.from_array(scale, f"{name}_scale"),
            numpy_helper.from_array(np.zeros(len(values), np.int8), f"{name}_zero"),
        ]
    )
    back = onnx.helper.make_node(
        "DequantizeLinear", [f"{name}_int8", f"{name}_scale", f"{name}_zero"], [name], f"{name}/bytes", axis=0
    )
    model.graph.node.insert(0, back)
    node.input[1] = name
    if not any(weight.name in other.input for other in model.graph.node):
        model.graph.initializer.remove(weight)
