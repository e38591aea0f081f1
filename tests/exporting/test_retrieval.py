"""Every way of pooling an encoder's layers gives as a module what it gives as it is, on clips of unequal length."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from offkey.encoders.base import Encoder
from offkey.encoders.beats import Beats
from offkey.encoders.efficientat import EfficientAT
from offkey.exporting.encoders import encoder_graph
from offkey.exporting.networks import network_graph
from offkey.models.config import RetrievalConfig
from offkey.models.retrieval import Retrieval
from offkey.types import Batch

ARCHITECTURE = {
    "encoder_layers": 3, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4,
    "embed_dim": 24, "conv_pos": 8, "conv_pos_groups": 4,
}  # fmt: skip
LENGTHS = (24000, 700, 13579)

CASES: list[dict[str, Any]] = [
    {"layers": (1, -1), "pooling": "mean"},
    {"layers": (-1, 2), "pooling": "gem", "power": 2.5, "negatives": "kept"},
    {"layers": (1, 2, 3), "bands": "averaged", "pooling": "rdp"},
    {"layers": (2,), "bands": "averaged", "pooling": "gem", "normalise": True},
    {"pooling": "rdp+gem", "gamma": 0.0, "normalise": True},
]


def encoder(name: str) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Beats.build(ARCHITECTURE) if name == "beats" else EfficientAT.build({"width_mult": 0.1})
    return made.eval()


@pytest.mark.parametrize("name", ["beats", "efficientat"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_layers_and_poolings(case: dict[str, Any], name: str) -> None:
    network = Retrieval(encoder(name), RetrievalConfig(**case), 16000)
    waves = 0.1 * torch.randn(3, 24000, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor(LENGTHS)
    with torch.no_grad():
        expected = network(Batch(waves, lengths, None, torch.zeros_like(lengths))).embedding
        found = network_graph(network)(waves, lengths).embedding
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_patches_of_every_layer_are_counted() -> None:
    made = encoder("efficientat")
    graph = encoder_graph(made)
    few = torch.arange(1, 60000, 37)
    for layer in range(1, made.depth + 1):
        assert graph.patch_counts(few, layer).tolist() == made.patch_counts(few, layer).tolist()


@pytest.mark.parametrize("name", ["beats", "efficientat"])
def test_several_layers_in_the_runtime(name: str) -> None:
    """What tracing froze was right for lengths that were not traced."""
    import onnxruntime

    network = Retrieval(encoder(name), RetrievalConfig(layers=(1, -1), pooling="gem"), 16000)
    graph, written = network_graph(network), io.BytesIO()
    example = torch.randn(2, 16000, generator=torch.Generator().manual_seed(1)), torch.tensor([16000, 9000])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's age, and of decisions that tracing freezes
        torch.onnx.export(
            _Embedding(graph), example, written, input_names=["w", "n"], output_names=["e"], opset_version=17,
            dynamic_axes={"w": {0: "b", 1: "t"}, "n": {0: "b"}}, dynamo=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(written.getvalue())
    waves = 0.1 * torch.randn(3, 24000, generator=torch.Generator().manual_seed(0))
    for count in (3, 1):
        lengths = torch.tensor(LENGTHS[:count])
        with torch.no_grad():
            expected = network(Batch(waves[:count], lengths, None, torch.zeros_like(lengths))).embedding.numpy()
        (found,) = session.run(["e"], {"w": waves[:count].numpy(), "n": lengths.numpy()})
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


class _Embedding(torch.nn.Module):
    def __init__(self, graph: torch.nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.graph(waveform, lengths).embedding
        return found
