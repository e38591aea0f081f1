"""The contract of a pretrained encoder: waveforms of any length to a grid of patches, time by frequency."""

from __future__ import annotations

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from offkey.encoders.checkpoint import Checkpoint
from offkey.types import Float, Int, OffkeyError

__all__ = ["Encoder", "EncoderError"]


class EncoderError(OffkeyError):
    """A clip that an encoder cannot hear, or weights that do not fit it."""


class Encoder(nn.Module, ABC):
    """A pretrained network that turns waveforms at `rate` hertz into patches.

    In eval mode a clip's patches depend neither on its company in the batch nor on the padding behind it. What lies
    past a clip's own patches is zero. Patch p is centred on second `patch_offset + p * patch_seconds`.

    A new encoder is one file with a subclass, and one line in the table of `offkey.encoders.config`.
    """

    name: ClassVar[str]
    usual_weights: ClassVar[str]
    """Name of the published weights that are used where none are asked for."""
    classifier_settings: ClassVar[frozenset[str]] = frozenset()
    """Names in `architecture` that the classifier alone depends on."""

    rate: int
    dimension: int
    bands: int
    """Patches along frequency."""
    span: tuple[float, float]
    """Lowest and highest hertz of its filter bank; `bands` are equal parts of it on HTK's mel scale."""
    depth: int
    """Layers whose output can be asked for, numbered 1 (nearest to the input) to `depth` (the last)."""
    patch_seconds: float
    patch_offset: float
    shortest: int
    """Samples below which a clip has no patch; shorter clips are refused."""

    checkpointing: bool = False
    """Forget activations in training and compute them again in the backward pass."""
    bf16: bool = False
    """Compute in bfloat16 where that is safe; results still come out as float32."""

    @classmethod
    @abstractmethod
    def build(cls, architecture: Mapping[str, Any]) -> Encoder:
        """An encoder with random weights; `architecture` is what `architecture` of another one told, {} the usual."""

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, classifier: bool = True) -> Encoder:
        """An encoder with the weights of a file, in eval mode; without its classifier, if that is not wanted.

        Raises EncoderError where a weight is missing, left over or of another shape.
        """

    @property
    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """All that `build` needs to make the same network; plain JSON values."""

    @abstractmethod
    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        """Names and modules from input to output: together every weight but the classifier's, each once.

        Blocks that repeat are called "block.0", "block.1", …; a positional convolution is called "pos_conv".
        """

    @abstractmethod
    def patch_counts(self, lengths: Int[Tensor, "*B"], layer: int | None = None) -> Int[Tensor, "*B"]:
        """Patches along time of clips of `lengths` samples in a layer, 1 to `depth`; None: the last one."""

    def layer_shape(self, layer: int) -> tuple[int, int]:
        """Patches along frequency and dimensions of a patch in a layer, 1 to `depth`; the same in all where not told.

        Raises EncoderError where there is no such layer.
        """
        self.check_layers([layer])
        return self.bands, self.dimension

    def check_layers(self, which: Sequence[int]) -> None:
        """Raise EncoderError where a layer is asked for that there is none of, or none is asked for."""
        if not which or not all(1 <= layer <= self.depth for layer in which):
            raise EncoderError(f"{self.name} has layers 1 to {self.depth}; asked for {list(which)}")

    @abstractmethod
    def _layers(self, waveform: Tensor, lengths: Tensor | None, which: Sequence[int]) -> list[Tensor]:
        """The outputs of layers `which`, (B, Pt, Pf, D) each; arguments have been checked."""

    def attention_projections(self) -> list[nn.Linear]:
        """Query and value projections, which low-rank adaptation changes; none where there is no attention."""
        return []

    def rates(self, decay: float = 1.0) -> Iterator[tuple[nn.Parameter, float]]:
        """Every weight that learns, with the factor on the encoder's learning rate, from input to output.

        The factor is `decay` to the power of the stage's distance from the last one.
        """
        stages = self.stages()
        for place, (_, modules) in enumerate(stages):
            for module in modules:
                for weight in module.parameters():
                    if weight.requires_grad:
                        yield weight, decay ** (len(stages) - 1 - place)

    def train(self, mode: bool = True) -> Encoder:
        """Put stages with a weight that learns into training mode, and everything else into eval mode.

        Frozen stages have no dropout then, and batch norms keep the statistics of pretraining even where their
        gains learn: a step moves the weights that learn, and nothing else.
        """
        super().train(False)
        for _, modules in self.stages() if mode else ():
            if any(weight.requires_grad for module in modules for weight in module.parameters()):
                self.training = True  # the flag alone: modules outside the stages stay as they are
                for part in (part for module in modules for part in module.modules()):
                    part.training = getattr(part, "running_mean", None) is None
        return self

    def forward(self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None) -> Tensor:
        """The same as `patches`."""
        return self.patches(waveform, lengths)

    def patches(
        self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B Pt Pf D"]:
        """The last layer's patches (B, Pt, Pf, D) float32 of samples in [-1, 1] at `rate`; `lengths` are the real ones.

        Raises EncoderError where a clip is too short.
        """
        return self.layers(waveform, lengths, [self.depth])[0]

    def layers(
        self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"] | None, which: Sequence[int]
    ) -> list[Tensor]:
        """Patches (B, Pt, Pf, D) of several layers, numbered from 1 to `depth`, in the order asked for.

        Layers may divide time and frequency each in their own way: `patch_counts` and `layer_shape` say how.

        Raises EncoderError where a clip is too short or there is no such layer.
        """
        self.check_layers(which)
        shortest = waveform.shape[1] if lengths is None else int(lengths.min())
        if shortest < self.shortest:
            raise EncoderError(
                f"a clip of {shortest / self.rate:.3f} s is too short for {self.name}, "
                f"which needs {self.shortest / self.rate:.3f} s"
            )
        if lengths is not None and int(lengths.max()) > waveform.shape[1]:
            raise EncoderError(f"a clip of {int(lengths.max())} samples does not fit into {waveform.shape[1]}")
        with self._precision(waveform.device.type):
            return [grid.float() for grid in self._layers(waveform, lengths, which)]

    def embed(self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B D"]:
        """The mean (B, D) over each clip's own patches."""
        grid = self.patches(waveform, lengths)
        if lengths is None:
            return grid.mean((1, 2))
        # past a clip's own patches the grid is zero
        return grid.sum((1, 2)) / (self.patch_counts(lengths) * grid.shape[2])[:, None]

    def fingerprint(self) -> str:
        """32 hex digits that stand for the architecture and every weight but the classifier's."""
        mixed = hashlib.blake2b(digest_size=16)
        settings = {name: told for name, told in self.architecture.items() if name not in self.classifier_settings}
        mixed.update(json.dumps([self.name, settings, self.bf16], sort_keys=True).encode())
        for name, modules in self.stages():
            for number, module in enumerate(modules):
                for key, value in module.state_dict().items():
                    mixed.update(f"{name}/{number}/{key}{list(value.shape)}".encode())
                    mixed.update(value.detach().cpu().contiguous().numpy().tobytes())
        return mixed.hexdigest()

    @contextlib.contextmanager
    def _precision(self, device: str) -> Iterator[None]:
        if not self.bf16:
            # in eval mode the answer has full precision even where the caller's training loop runs in half
            with torch.autocast(device, enabled=False) if not self.training else contextlib.nullcontext():
                yield
        else:
            with torch.autocast(device, torch.bfloat16):
                yield
