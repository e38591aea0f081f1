"""One process or many: what training asks of torch.distributed, and nothing where there is one process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from offkey.training.config import TrainingConfig
from offkey.types import OffkeyError

__all__ = ["Processes", "choose_device", "leads"]


def leads() -> bool:
    """Whether this process is the lone one, or the first of those that torchrun started: it alone writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def choose_device(name: str, local_rank: int = 0, setting: str = "training.device") -> torch.device:
    """Turn a setting into a device: `auto` is this process's GPU where there is one, else the CPU.

    Raises OffkeyError for a device that this machine or this torch lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OffkeyError(f"{setting}: there is no device {name!r}; use auto, cpu or cuda") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise OffkeyError(f"{setting} is {name!r}, but torch finds no GPU here: use auto or cpu")
        if device.index is None:
            device = torch.device("cuda", local_rank)
    return device


class Processes:
    """The processes that torchrun started (or the lone one), as a context manager.

    `rank` of `world` processes; `device` of this one. Each keeps the whole model and takes its share of
    batches.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        if config.devices and config.devices != self.world:
            raise OffkeyError(
                f"training.devices is {config.devices}, but {self.world} process(es) run: start with "
                f"`torchrun --nproc-per-node {config.devices} -m offkey …`, or set training.devices to 0"
            )
        self.device = choose_device(config.device, int(os.environ.get("LOCAL_RANK", "0")))
        self._mine = False

    def __enter__(self) -> Processes:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            self._mine = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mine:
            dist.destroy_process_group()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Average gradients over the processes (nothing to do for one)."""
        if self.world == 1:
            return module
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=device_ids)

    def add_up(self, values: list[float]) -> list[float]:
        """Sums over all processes."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place (running statistics differ between them)."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, value: int, what: str) -> None:
        """Raise OffkeyError unless every process has the same number."""
        if self.world > 1:
            own = torch.tensor([value, -value], device=self.device)
            dist.all_reduce(own, dist.ReduceOp.MAX)
            if int(own[0]) != -int(own[1]):
                raise OffkeyError(
                    f"the processes disagree on {what} ({-int(own[1])} to {int(own[0])}): they must see the "
                    "same clips and the same folder"
                )
