"""AdamW, its parameter groups, and the learning rate of every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from offkey.training.config import TrainingConfig
from offkey.types import OffkeyError

__all__ = ["make_optimiser", "rate_factor", "set_rate"]


def rate_factor(step: int, total: int, config: TrainingConfig) -> float:
    """Share of the peak rate at `step` of `total` (counted from 0): linear climb, then cosine or constant.

    >>> config = TrainingConfig(warmup_share=0.5, final_share=0.0)
    >>> [round(rate_factor(step, 4, config), 3) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = round(config.warmup_share * total)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    passed = (step - warmup) / max(total - warmup, 1)
    return config.final_share + (1.0 - config.final_share) * 0.5 * (1.0 + math.cos(math.pi * min(passed, 1.0)))


def make_optimiser(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW without decay on norms and biases.

    A module may say by `parameter_groups(config)` which parameters learn how (a list of dicts of AdamW, each
    with "params" and "lr"), or by `encoder_parameters()` which learn at the encoder's rate. Frozen ones stay
    out. Raises OffkeyError where nothing can learn.
    """
    own = getattr(module, "parameter_groups", None)
    groups: list[dict[str, Any]] = own(config) if own is not None else _groups(module, config)
    for group in groups:
        group["peak"] = group["lr"]
    if not groups:
        raise OffkeyError("nothing to train: every parameter is frozen, or the module has none")
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to `factor` of its peak rate; return the highest rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return float(max(group["lr"] for group in optimiser.param_groups))


def _groups(module: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    listed = getattr(module, "encoder_parameters", None)
    encoder = {id(parameter) for parameter in listed()} if listed is not None else set()
    buckets: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1  # norms, biases, gains and slopes are vectors
            buckets.setdefault((id(parameter) in encoder, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.encoder_learning_rate if pretrained else config.learning_rate,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (pretrained, decays), parameters in sorted(buckets.items(), key=lambda item: item[0])
    ]
