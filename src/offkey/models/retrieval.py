"""A clip as one vector, pooled from the patches of a frozen encoder; nothing is trained.

Source: P. Saengthong, T. Shinozaki, Deep Generic Representations for Domain-Generalized Anomalous Sound Detection
(GenRep), arXiv 2409.05035; the pooling as `offkey.models.pooling` says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from offkey.audio.resample import Resample
from offkey.encoders.base import Encoder
from offkey.encoders.cache import FeatureCache
from offkey.models.config import RetrievalConfig
from offkey.models.encoder_frames import long_enough
from offkey.models.pooling import pool_patches
from offkey.types import Batch, OffkeyError, Representation

__all__ = ["Retrieval", "RetrievalError"]


class RetrievalError(OffkeyError):
    """Settings of a retrieval system that its encoder cannot serve."""


class Retrieval(nn.Module):
    """Batch -> Representation with `embedding` (B, D) float32, and `patch_grid` where it is asked for.

    The embedding is made of blocks side by side, one a layer and in it one a frequency band. `rate` is that of the
    waveforms. What a clip was pooled to comes from `cache`, where there is one, and is then never computed again.
    """

    def __init__(self, encoder: Encoder, config: RetrievalConfig, rate: int, cache: FeatureCache | None = None) -> None:
        """Raises RetrievalError where the encoder has no such layer."""
        super().__init__()
        self.config = config
        self.encoder = encoder.eval().requires_grad_(False)
        self.resample = Resample(rate, encoder.rate)
        self.cache = cache
        self.layers = [layer if layer > 0 else encoder.depth + 1 + layer for layer in config.layers]
        if not all(1 <= layer <= encoder.depth for layer in self.layers) or len(set(self.layers)) < len(self.layers):
            raise RetrievalError(
                f"{encoder.name} has layers 1 to {encoder.depth} (or -1 to -{encoder.depth}), each named once; "
                f"model.layers asks for {list(config.layers)}"
            )
        self.gamma = config.gamma_for(encoder.name)

    @property
    def blocks(self) -> list[int]:
        """Numbers in each block of the embedding, layer by layer and band by band."""
        shapes = [self.encoder.layer_shape(layer) for layer in self.layers]
        return [width for bands, width in shapes for _ in range(bands if self.config.bands == "kept" else 1)]

    @property
    def parts(self) -> int:
        """How many equal parts the embedding consists of: a band of a layer each.

        Raises RetrievalError where they are not of one width, as in some layers of efficientat.
        """
        if len(set(self.blocks)) > 1:
            told = ", ".join(
                f"{layer} has {width}"
                for layer, (_, width) in zip(self.layers, map(self.encoder.layer_shape, self.layers), strict=True)
            )
            raise RetrievalError(
                f"the layers of {self.encoder.name} differ in the numbers of a patch ({told}), so the embedding cannot "
                "be taken apart into equal parts: set parts = 1 in the scorer, or choose layers that are alike"
            )
        return len(self.blocks)

    def forward(self, batch: Batch, patches: bool = False) -> Representation:
        """Embed clips of any lengths; a clip's embedding does not depend on its company.

        `patches`: tell the patches (B, Pt, Pf, D') of the last of `layers` as well, zero past a clip's own.
        """
        waveform, lengths = long_enough(batch.waveform, batch.lengths, self.encoder, self.resample)
        if self.cache is not None:
            given = (self.encoder, waveform, lengths, self.layers)
            known = self.cache.layers(*given, self.resample) if patches else None
            embedding = self.cache.pooled(*given, self.pool, self._told(), self.resample, known)
            return Representation(embedding, patch_grid=None if known is None else known[-1])
        heard, own = self.resample(waveform, lengths), self.resample.lengths(lengths)
        with torch.no_grad():
            grids = self.encoder.layers(heard, own, self.layers)
            counts = [self.encoder.patch_counts(own, layer) for layer in self.layers]
            return Representation(self.pool(grids, counts), patch_grid=grids[-1] if patches else None)

    def pool(self, grids: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
        """Patches (B, Pt, Pf, D') a layer, of which the first `counts` (B,) a layer are a clip's own -> (B, D)."""
        config = self.config
        blocks = []
        for grid, own in zip(grids, counts, strict=True):
            given = grid if config.bands == "kept" else grid.mean(2, keepdim=True)
            vectors = pool_patches(given, own, config.pooling, config.power, self.gamma, config.negatives)
            if config.normalise:
                vectors = nn.functional.normalize(vectors, dim=-1)
            blocks.append(vectors.flatten(1))
        return torch.cat(blocks, 1)

    def train(self, mode: bool = True) -> Retrieval:
        """Nothing here learns: the encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def _told(self) -> str:
        """All that makes a vector from the layers, for the cache."""
        settings = self.config.model_dump(mode="json", exclude={"layers", "gamma", "name"})
        return f"{sorted(settings.items())} {self.gamma}"
