"""Which weights of a pretrained encoder learn: whole stages, or low-rank changes of its attention."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from offkey.encoders.base import Encoder
from offkey.encoders.config import EncoderConfig
from offkey.types import Float, OffkeyError

__all__ = ["LowRank", "Unfrozen", "merge", "unfreeze"]

_POSITION = "pos_conv"


class Unfrozen(NamedTuple):
    """What `unfreeze` did.

    `stages`: names of those whose own weights learn, from input to output (low-rank changes not counted);
    `remarks`: sentences to show to people.
    """

    stages: tuple[str, ...]
    remarks: tuple[str, ...]


class LowRank(nn.Module):
    """Weight (O, I) -> weight + (alpha / rank)·B·A, with A (rank, I) and B (O, rank) to be learnt.

    Hu et al., "LoRA", arXiv 2106.09685. A is drawn from a normal distribution with torch's global generator, B starts
    at zero, so that nothing changes before the first step.
    """

    def __init__(self, outputs: int, inputs: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = alpha / rank
        nn.init.kaiming_normal_(self.a, a=math.sqrt(5))  # deviation 1 / sqrt(3·inputs), that of a linear layer's start

    def forward(self, weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        """Return the changed weight."""
        return weight + self.scale * (self.b @ self.a)


def unfreeze(encoder: Encoder, config: EncoderConfig) -> Unfrozen:
    """Let exactly the weights that `config.unfreeze` names learn, and put low-rank changes on attention if asked for.

    "last:N" means the last N blocks and whatever follows them. A positional convolution that the encoder does not
    have is remarked, no error: the same settings serve every encoder. The classifier never learns. `Encoder.train`
    and `Encoder.rates` go by what learns; low-rank changes count to the stage whose weight they change. The encoder
    is left in eval mode.

    Raises OffkeyError where there are fewer blocks than asked for, where low-rank changes are wanted of an encoder
    without attention, or where it already has them.
    """
    projections = encoder.attention_projections()
    if any(map(_low_rank, projections)):
        raise OffkeyError("the encoder has low-rank changes already: merge them before it is unfrozen anew")
    if config.lora_rank and not projections:
        raise OffkeyError(
            f"encoder.lora_rank is {config.lora_rank}, but {encoder.name} has no attention to put low-rank changes on: "
            "set it to 0 and choose layers with encoder.unfreeze"
        )
    stages = _chosen(encoder, config.unfreeze)
    remarks = []
    if _POSITION in config.unfreeze and _POSITION not in stages:
        rest = "the other layers asked for learn" if stages else "no layer of it learns"
        remarks.append(f"{encoder.name} has no positional convolution to unfreeze (encoder.unfreeze): {rest}")
    encoder.requires_grad_(False)
    for name, modules in encoder.stages():
        for module in modules:
            module.requires_grad_(name in stages)
    if config.lora_rank:
        for projection in projections:
            change = LowRank(projection.out_features, projection.in_features, config.lora_rank, config.lora_alpha)
            change.to(projection.weight.device, projection.weight.dtype)
            parametrize.register_parametrization(projection, "weight", change)
    encoder.eval()
    return Unfrozen(stages, tuple(remarks))


def merge(encoder: Encoder) -> None:
    """Fold low-rank changes into the plain weights; the encoder's state is then laid out as if untouched."""
    for projection in encoder.attention_projections():
        if not _low_rank(projection):
            continue
        parametrize.remove_parametrizations(projection, "weight", leave_parametrized=True)
        bias = projection.bias
        if bias is not None:  # a weight that comes back stands behind it, which would change the order of the state
            del projection.bias
            projection.bias = bias


def _low_rank(projection: nn.Linear) -> bool:
    return parametrize.is_parametrized(projection, "weight")


def _chosen(encoder: Encoder, wanted: str) -> tuple[str, ...]:
    """Names of the stages that `wanted` stands for, from input to output."""
    names = [name for name, _ in encoder.stages()]
    if wanted == "all":
        return tuple(names)
    chosen: set[str] = set()
    for part in wanted.split("+"):
        if part == _POSITION:
            chosen |= {_POSITION}
        elif part.startswith("last:"):
            blocks = [place for place, name in enumerate(names) if name.startswith("block.")]
            count = int(part.removeprefix("last:"))
            if count > len(blocks):
                raise OffkeyError(
                    f"encoder.unfreeze is {wanted!r}, but {encoder.name} has {len(blocks)} blocks: "
                    f"ask for last:{len(blocks)} at most, or all"
                )
            chosen |= set(names[blocks[-count] :])
    return tuple(name for name in names if name in chosen)
