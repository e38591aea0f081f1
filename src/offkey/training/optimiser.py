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

    A module may tell by `encoder_rates()` which weights are pretrained: pairs (parameter, factor on the
    encoder's rate). All others learn at the rate of new layers. Frozen ones stay out. The groups' order
    follows from the rates, that within a group from the module. Raises OffkeyError where nothing can learn.
    """
    groups = _groups(module, config)
    if not groups:
        raise OffkeyError("nothing to train: every parameter is frozen, or the module has none")
    for group in groups:
        group["peak"] = group["lr"]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to `factor` of its peak rate; return the highest rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return float(max(group["lr"] for group in optimiser.param_groups))


def _groups(module: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    told = getattr(module, "encoder_rates", None)
    factors: dict[int, float] = {id(parameter): factor for parameter, factor in told()} if told is not None else {}
    buckets: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            pretrained = id(parameter) in factors
            decays = parameter.ndim > 1  # norms, biases, gains and slopes are vectors
            key = (pretrained, factors.get(id(parameter), 1.0), decays)
            buckets.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": factor * (config.encoder_learning_rate if pretrained else config.learning_rate),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (pretrained, factor, decays), parameters in sorted(buckets.items(), key=lambda item: item[0])
    ]
