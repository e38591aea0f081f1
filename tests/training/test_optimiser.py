"""Which weight learns at which rate, and that it stays so over a restart."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import nn

from offkey.training.config import TrainingConfig
from offkey.training.optimiser import make_optimiser, set_rate
from offkey.training.task import TrainingTask
from offkey.types import OffkeyError

CONFIG = TrainingConfig(learning_rate=0.1, encoder_learning_rate=0.001, weight_decay=0.3)


class Two(nn.Module):
    """A pretrained part of two stages, a new one, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 1)
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def encoder_rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        for module, factor in ((self.first, 0.25), (self.second, 1.0), (self.norm, 1.0)):
            yield from ((parameter, factor) for parameter in module.parameters())


def settings(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, tuple[float, float] | None]:
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    return {name: found.get(id(parameter)) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("wrapped", [False, True])
def test_stages_learn_at_their_rates_and_vectors_do_not_decay(wrapped: bool) -> None:
    module = Two()
    whole = TrainingTask(module, nn.Identity()) if wrapped else module
    assert settings(module, make_optimiser(whole, CONFIG)) == {
        "head.weight": (0.1, 0.3),
        "head.bias": (0.1, 0.0),
        "first.weight": (0.00025, 0.3),
        "first.bias": (0.00025, 0.0),
        "second.weight": (0.001, 0.3),
        "second.bias": (0.001, 0.0),
        "norm.weight": (0.001, 0.0),
        "norm.bias": (0.001, 0.0),
        "frozen.weight": None,
        "frozen.bias": None,
    }


def test_the_schedule_keeps_the_rates_in_proportion() -> None:
    module = Two()
    optimiser = make_optimiser(module, CONFIG)
    assert set_rate(optimiser, 0.5) == pytest.approx(0.05)
    rates = {name: pair[0] for name, pair in settings(module, optimiser).items() if pair}
    assert rates["first.weight"] == pytest.approx(0.000125)
    assert rates["second.weight"] == pytest.approx(0.0005)


def test_a_module_without_pretrained_weights_has_one_rate() -> None:
    optimiser = make_optimiser(nn.Linear(2, 2), CONFIG)
    assert [(group["lr"], len(group["params"])) for group in optimiser.param_groups] == [(0.1, 1), (0.1, 1)]


def test_nothing_to_learn_is_an_error() -> None:
    with pytest.raises(OffkeyError, match="nothing to train"):
        make_optimiser(nn.Linear(2, 2).requires_grad_(False), CONFIG)


def test_another_process_goes_on_with_the_state_to_the_bit() -> None:
    def step(module: Two, optimiser: torch.optim.Optimizer) -> None:
        x = torch.linspace(-1, 1, 6).reshape(3, 2)
        module.head(module.norm(module.second(module.first(x)))).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    torch.manual_seed(0)
    straight, again = Two(), Two()
    first = make_optimiser(straight, CONFIG)
    for _ in range(2):
        step(straight, first)
    again.load_state_dict(straight.state_dict())
    second = make_optimiser(again, CONFIG)
    second.load_state_dict(deepcopy(first.state_dict()))  # as if read from a file: torch shares the tensors
    assert [g["peak"] for g in second.param_groups] == [0.1, 0.1, 0.00025, 0.00025, 0.001, 0.001]
    for module, optimiser in ((straight, first), (again, second)):
        step(module, optimiser)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
