"""Clips as vectors pooled from a frozen encoder: batches, padding, bands and layers, and what is kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from offkey.audio.cache import ArrayCache
from offkey.encoders import build_encoder
from offkey.encoders.base import Encoder
from offkey.encoders.cache import FeatureCache
from offkey.models.config import RetrievalConfig
from offkey.models.retrieval import Retrieval, RetrievalError
from offkey.types import Batch

SMALL = {
    "beats": {
        "encoder_layers": 3, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4,
        "embed_dim": 24, "conv_pos": 8, "conv_pos_groups": 4,
    },
    "efficientat": {"width_mult": 0.1},
}  # fmt: skip


def small(name: str) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_encoder(name, SMALL[name]).eval()


@pytest.fixture(params=sorted(SMALL), scope="module")
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return small(request.param)


def clips(*lengths: int) -> Batch:
    generator = torch.Generator().manual_seed(7)
    waveform = 0.1 * torch.randn(len(lengths), max(lengths), generator=generator)
    own = torch.tensor(lengths)
    waveform *= torch.arange(max(lengths)) < own[:, None]
    return Batch(waveform, own, None, torch.arange(len(lengths)))


def one(batch: Batch, row: int) -> Batch:
    length = int(batch.lengths[row])
    return Batch(batch.waveform[row : row + 1, :length], batch.lengths[row : row + 1], None, batch.place[:1])


@pytest.mark.parametrize("pooling", ["mean", "gem", "rdp", "rdp+gem"])
@pytest.mark.parametrize("bands", ["kept", "averaged"])
@torch.no_grad()
def test_a_clip_is_embedded_as_it_is_alone(encoder: Encoder, pooling: Any, bands: Any) -> None:
    config = RetrievalConfig(layers=(1, -1), pooling=pooling, bands=bands)
    network = Retrieval(encoder, config, 16000)
    batch = clips(20000, 32000, 9000, 600)  # the last is too short for beats, and heard with silence behind it
    together = network(batch).embedding
    assert together.shape == (4, sum(network.blocks))
    assert torch.isfinite(together).all()
    for row in range(4):
        alone = network(one(batch, row)).embedding[0]
        assert (together[row] - alone).abs().max() < 1e-4 * together.abs().max()


@torch.no_grad()
def test_blocks_lie_layer_by_layer_and_band_by_band(encoder: Encoder) -> None:
    batch, layers = clips(32000), (2, encoder.depth)
    network = Retrieval(encoder, RetrievalConfig(layers=layers, pooling="mean"), 16000)
    blocks = network(batch).embedding[0].split(network.blocks)
    heard = network.resample(batch.waveform)
    grids = encoder.layers(heard, None, layers)
    expected = [grid[0, :, band].mean(0) for grid in grids for band in range(grid.shape[2])]
    assert len(blocks) == len(expected) > 2
    for ours, theirs in zip(blocks, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    averaged = Retrieval(encoder, RetrievalConfig(layers=(-1,), pooling="mean", bands="averaged"), 16000)
    assert averaged.parts == 1
    torch.testing.assert_close(averaged(batch).embedding, encoder.embed(heard), rtol=1e-4, atol=1e-5)
    units = Retrieval(encoder, RetrievalConfig(normalise=True), 16000)
    for block in units(batch).embedding[0].split(units.blocks):
        assert float(block.norm()) == pytest.approx(1.0, abs=1e-5)


def test_parts_are_told_where_they_are_equal() -> None:
    beats, mn = small("beats"), small("efficientat")
    assert Retrieval(beats, RetrievalConfig(layers=(1, -1)), 16000).parts == 16
    assert Retrieval(mn, RetrievalConfig(), 16000).parts == 4
    with pytest.raises(RetrievalError, match=r"differ in the numbers of a patch \(1 has 8, 16 has 96\).*parts = 1"):
        _ = Retrieval(mn, RetrievalConfig(layers=(1, -1)), 16000).parts
    for layers in ((4,), (-4,), (3, -1)):
        with pytest.raises(RetrievalError, match="beats has layers 1 to 3"):
            Retrieval(beats, RetrievalConfig(layers=layers), 16000)


def test_gamma_is_the_published_one_unless_told() -> None:
    assert Retrieval(small("beats"), RetrievalConfig(), 16000).gamma == 16
    assert Retrieval(small("efficientat"), RetrievalConfig(), 16000).gamma == 9
    assert Retrieval(small("beats"), RetrievalConfig(pooling="rdp"), 16000).gamma == 19
    assert Retrieval(small("beats"), RetrievalConfig(gamma=0.0), 16000).gamma == 0


def test_patches_are_told_where_they_are_asked_for(encoder: Encoder) -> None:
    network, batch = Retrieval(encoder, RetrievalConfig(), 16000), clips(32000, 16000)
    assert network(batch).patch_grid is None
    grid = network(batch, patches=True).patch_grid
    counts = encoder.patch_counts(network.resample.lengths(batch.lengths))
    assert grid.shape[1:3] == (int(counts[0]), encoder.bands)
    assert grid[1, int(counts[1]) - 1].any()
    assert not grid[1, int(counts[1]) :].any()


def test_nothing_learns_and_nothing_is_ever_in_training_mode(encoder: Encoder) -> None:
    network = Retrieval(encoder, RetrievalConfig(), 16000).train()
    assert not any(weights.requires_grad for weights in network.parameters())
    assert not any(part.training for part in network.encoder.modules())


def test_what_was_heard_is_never_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    plain = Encoder.layers

    def counted(self: Encoder, waveform: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
        heard.append(len(waveform))
        return plain(self, waveform, *rest)

    monkeypatch.setattr(Encoder, "layers", counted)
    encoder, cache = small("beats"), ArrayCache(tmp_path)
    config = RetrievalConfig(layers=(1, -1))

    def network(config: RetrievalConfig = config, rate: int = 16000) -> Retrieval:
        return Retrieval(encoder, config, rate, FeatureCache(cache))

    batch = clips(32000, 16000, 20000)
    first = network()(batch).embedding
    assert heard == [3]
    assert torch.equal(network()(batch).embedding, first)
    assert torch.equal(network()(one(batch, 1)).embedding[0], first[1])
    assert heard == [3]
    plainly = Retrieval(encoder, config, 16000)(batch).embedding
    torch.testing.assert_close(first, plainly, rtol=1e-4, atol=1e-5)
    heard.clear()
    # all that makes another vector asks anew
    told = ({"layers": (1,)}, {"pooling": "gem"}, {"power": 2.0}, {"gamma": 3.0}, {"negatives": "kept"},
            {"bands": "averaged"}, {"normalise": True})  # fmt: skip
    for change in told:
        assert network(config.model_copy(update=change))(batch).embedding.shape[0] == 3
    assert heard == [3] * len(told)
    network(rate=8000)(batch)
    assert len(heard) == len(told) + 1
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1
    assert not torch.equal(network()(batch).embedding, first)
    assert len(heard) == len(told) + 2
    assert network().pool([torch.ones(1, 2, 8, 32)] * 2, [torch.tensor([2])] * 2).shape == first[:1].shape


def test_a_clip_that_is_there_twice_is_heard_once(tmp_path: Path) -> None:
    network = Retrieval(small("beats"), RetrievalConfig(), 16000, FeatureCache(ArrayCache(tmp_path)))
    batch = clips(16000, 16000)
    batch.waveform[1] = batch.waveform[0]
    rows = network(batch).embedding
    assert torch.equal(rows[0], rows[1])
    assert len(list(tmp_path.rglob("*.npy"))) == 1
