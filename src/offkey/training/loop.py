"""One plain loop for every model: from losses and batches to weights, through any number of kills."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from offkey.progress import Progress, Quiet
from offkey.training.batches import BatchPlan, count_batches, take_batches
from offkey.training.checkpoint import CheckpointError, CheckpointStore, differences
from offkey.training.config import TrainingConfig
from offkey.training.distributed import Processes
from offkey.training.history import EpochRecord, TrainingHistory
from offkey.training.memory import kept_memory
from offkey.training.optimiser import make_optimiser, rate_factor, set_rate
from offkey.training.randomness import Moment
from offkey.training.tensorboard import TensorBoardLog
from offkey.types import Batch, Labels, OffkeyError

__all__ = ["BatchPlan", "TrainingConfig", "TrainingError", "TrainingHistory", "train"]

Batches = Callable[[int], Iterable[Batch]]

# settings that may change between a kill and the next start: they do not change the weights
_FREE_SETTINGS = {"checkpoint_every_steps", "checkpoint_every_seconds", "log", "devices", "device", "threads"}


class TrainingError(OffkeyError):
    """Training cannot go on; the message says at which step and what to try."""


def train(
    module: nn.Module,
    make_batches: Batches,
    validate: Batches | None,
    config: TrainingConfig,
    folder: Path,
    progress: Progress | None = None,
    *,
    seed: int = 0,
    data: str = "",
) -> TrainingHistory:
    """Train `module` in place and return what happened; its final weights are in it, in eval mode.

    `module` maps a Batch to a dict of scalar losses with "total" (and measures without gradient, which are
    averaged and shown). Optional methods: `seek(Moment)` before every batch, so that its random draws follow
    from seed, epoch and step; `parameter_groups(config)` or `encoder_parameters()`, see `make_optimiser`.

    `make_batches(epoch)` gives the batches of an epoch, the same ones at every call; a `BatchPlan` or
    anything with a length spares one counting pass. `validate(epoch)` gives batches of held-out normal clips,
    or is None.

    Checkpoints are kept in `folder`. A run that was killed and is started again with the same arguments goes
    on and ends with the same weights, bit for bit on a CPU, as one that was not; a finished run only loads
    its weights. Augmentation and dropout follow from `seed`. `data` is any text that stands for the clips: with
    other settings, clips or layers the folder is refused, naming what differs. Global random state is put back as
    it was.

    Raises TrainingError for a loss or gradient that is not finite and for settings that do not fit together;
    CheckpointError for a folder that cannot be continued.
    """
    if validate is None and (config.early_stop or config.keep == "best"):
        raise TrainingError(
            "training.early_stop and training.keep = 'best' need held-out clips: "
            "raise training.held_out_share, or set early_stop to 0 and keep to 'last'"
        )
    with Processes(config) as processes, _torch_settings(config, processes.device):
        run = _Run(module, make_batches, validate, config, folder, progress or Quiet(), processes, seed, data)
        return run.go()


class _Run:
    """State of one call of `train`; what must survive a kill goes through `_state` and `_resume`."""

    def __init__(
        self,
        module: nn.Module,
        make_batches: Batches,
        validate: Batches | None,
        config: TrainingConfig,
        folder: Path,
        progress: Progress,
        processes: Processes,
        seed: int,
        data: str,
    ) -> None:
        self.seed = seed
        self.config, self.processes, self.progress = config, processes, progress
        self.make_batches, self.validate = make_batches, validate
        self.leads = processes.rank == 0
        self.device = processes.device
        self.half = _half_type(config, self.device)
        self.module = module.to(self.device)
        self.optimiser = make_optimiser(module, config)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.half is torch.float16)
        self.store = CheckpointStore(folder)
        self.fingerprint = {
            "settings": config.model_dump(mode="json", exclude=_FREE_SETTINGS),
            "seed": seed,
            "data": data,
            "weights": {name: str(list(tensor.shape)) for name, tensor in module.state_dict().items()},
            "processes": processes.world,
        }
        self.epoch = self.batch = self.step = 0  # epochs done, own batches done in this one, optimiser steps
        self.sums: dict[str, float] = {}
        self.clips = 0
        self.seconds = 0.0
        self.history = TrainingHistory()
        self.finished = False
        self.best_loss = float("inf")
        self.saved_at = time.monotonic()
        self.log: TensorBoardLog | None = None

    def go(self) -> TrainingHistory:
        self._resume()
        if not self.finished:
            self._train()
        if self.config.keep == "best" and self.history.best_epoch is not None:
            if self.leads:
                self.module.load_state_dict(self.store.load_best(self.history.best_epoch))
            self.processes.share(self.module.state_dict().values())
            self.history.kept_epoch = self.history.best_epoch
        else:
            self.history.kept_epoch = self.history.epochs[-1].epoch if self.history.epochs else None
        self.module.eval()
        return self.history

    def _train(self) -> None:
        config = self.config
        per_epoch = self._own_batches(count_batches(self.make_batches(0)))
        total = config.epochs * -(-per_epoch // config.accumulate)
        if config.log == "tensorboard" and self.leads:
            self.log = TensorBoardLog(self.store.folder / "tensorboard", self.step)
        self.progress.start("training", total, self.step)
        parallel = self.processes.wrap(self.module)
        try:
            while self.epoch < config.epochs and not self.finished:
                self._run_epoch(parallel, total, per_epoch)
        finally:
            if self.log is not None:
                self.log.close()

    def _own_batches(self, count: int) -> int:
        """How many batches of an epoch each process takes: all take equally many, for they step together."""
        self.processes.agree(count, "the number of batches")
        own = count // self.processes.world
        if own == 0:
            raise TrainingError(
                f"{count} batch(es) an epoch are too few for {self.processes.world} process(es): "
                "there are no training clips, or training.batch_size is too large for so many processes"
            )
        return own

    def _run_epoch(self, parallel: nn.Module, total: int, per_epoch: int) -> None:
        started = time.monotonic()
        world, rank = self.processes.world, self.processes.rank
        batches = self.make_batches(self.epoch)
        if hasattr(batches, "__len__"):
            per_epoch = self._own_batches(count_batches(batches))
        places = range(self.batch * world + rank, per_epoch * world, world)
        own = take_batches(batches, places)
        self.module.train()
        while self.batch < per_epoch:
            group = list(islice(own, min(self.config.accumulate, per_epoch - self.batch)))
            if not group and world == 1:
                break  # clips that could not be read have left fewer batches than were planned
            if not group:
                raise TrainingError(
                    f"epoch {self.epoch + 1}: process {rank} ran out of batches: can it read the clips?"
                )
            rate = set_rate(self.optimiser, rate_factor(self.step, total, self.config))
            losses = self._optimise(parallel, group)
            self.batch += len(group)
            self.step += 1
            note = f"epoch {self.epoch + 1}/{self.config.epochs}, loss {losses['total']:.4f}"
            self.progress.step(min(self.step, total), note)
            if self.log is not None:
                self.log.write(self.step, "train", {**losses, "learning_rate": rate})
            if self.batch < per_epoch and self._due():
                self._save(self.seconds + time.monotonic() - started)
        self.seconds += time.monotonic() - started
        self._end_epoch()

    def _optimise(self, parallel: nn.Module, group: list[Batch]) -> dict[str, float]:
        """One optimiser step on the mean loss of a group of batches; return the means."""
        means: dict[str, float] = {}
        for index, batch in enumerate(group):
            moment = Moment(self.seed, self.epoch, self.batch + index, self.processes.rank)
            # dropout draws from torch's global state: seeding every step makes a resumed run draw the same
            torch.manual_seed(moment.torch_seed())
            _seek(self.module, moment)
            last = index == len(group) - 1
            whole = last or not isinstance(parallel, nn.parallel.DistributedDataParallel)
            waits = contextlib.nullcontext() if whole else parallel.no_sync()  # type: ignore[operator]
            with waits:
                losses = self._forward(parallel, batch)
                values = _numbers(losses)
                if not torch.isfinite(losses["total"].detach()):
                    raise self._not_finite("loss", values)
                self.scaler.scale(losses["total"] / len(group)).backward()
            count = len(batch.waveform)
            self.clips += count
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * count
                means[name] = means.get(name, 0.0) + value / len(group)
        self.scaler.unscale_(self.optimiser)
        limit = self.config.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        if self.half is not torch.float16 and not torch.isfinite(norm):  # the scaler copes with fp16 by itself
            raise self._not_finite("gradient", means)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        return means

    def _forward(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            losses: dict[str, Tensor] = module(_move(batch, self.device))
        return losses

    def _not_finite(self, what: str, values: dict[str, float]) -> TrainingError:
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        half = "" if self.half is None else "set training.precision to float32, "
        return TrainingError(
            f"the {what} is not finite at epoch {self.epoch + 1}, batch {self.batch + 1} ({terms}): {half}"
            f"lower training.learning_rate (now {self.config.learning_rate:g}), or look for broken "
            "recordings with `offkey data check`"
        )

    def _end_epoch(self) -> None:
        self.processes.share(self.module.buffers())
        train = self._means(self.sums, self.clips)
        held_out = self._held_out()
        rate = float(max(group["lr"] for group in self.optimiser.param_groups))
        record = EpochRecord(self.epoch, self.step, train, held_out, rate, round(self.seconds, 3))
        self.history.epochs.append(record)
        if self.log is not None and held_out:
            self.log.write(self.step, "held_out", held_out)
        if held_out:
            self._judge(held_out)
        self.epoch += 1
        self.batch, self.sums, self.clips, self.seconds = 0, {}, 0, 0.0
        self.finished = self.finished or self.epoch == self.config.epochs
        self._save(0.0)
        if self.leads and self.history.best_epoch is not None:
            self.store.forget_best(self.history.best_epoch)

    def _judge(self, held_out: dict[str, float]) -> None:
        """Keep the best weights and decide whether to stop."""
        if "total" not in held_out or held_out["total"] != held_out["total"]:
            raise self._not_finite("held-out loss", held_out)
        if held_out["total"] < self.best_loss:
            self.best_loss, self.history.best_epoch = held_out["total"], self.epoch
            if self.config.keep == "best" and self.leads:
                self.store.save_best(self.epoch, self.module.state_dict())
        since = self.epoch - (self.history.best_epoch or 0)
        if self.config.early_stop and since >= self.config.early_stop:
            self.finished = self.history.stopped_early = True
            self.progress.say(
                f"stopped after epoch {self.epoch + 1}: the held-out loss has not fallen since "
                f"epoch {(self.history.best_epoch or 0) + 1}"
            )

    def _held_out(self) -> dict[str, float]:
        if self.validate is None:
            return {}
        batches = self.validate(self.epoch)
        sums: dict[str, float] = {}
        clips = 0
        self.module.eval()
        with torch.no_grad():
            for place, batch in enumerate(batches):
                if place % self.processes.world != self.processes.rank:
                    continue
                count = len(batch.waveform)
                clips += count
                for name, value in _numbers(self._forward(self.module, batch)).items():
                    sums[name] = sums.get(name, 0.0) + value * count
        return self._means(sums, clips)

    def _means(self, sums: dict[str, float], clips: int) -> dict[str, float]:
        """Means a clip over all processes; a process without a batch knows no names and adds nothing."""
        if self.processes.world > 1:
            names = sorted(self.history.epochs[0].train if self.history.epochs else self.sums)
        else:
            names = list(sums)
        *totals, count = self.processes.add_up([*(sums.get(name, 0.0) for name in names), float(clips)])
        return {name: total / count for name, total in zip(names, totals, strict=True)} if count else {}

    def _due(self) -> bool:
        config = self.config
        by_step = config.checkpoint_every_steps and self.step % config.checkpoint_every_steps == 0
        seconds = config.checkpoint_every_seconds
        return bool(by_step or (seconds and time.monotonic() - self.saved_at >= seconds))

    def _save(self, seconds: float) -> None:
        if not self.leads:
            return
        self.store.save(
            {
                "fingerprint": self.fingerprint,
                "module": self.module.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "place": [self.epoch, self.batch, self.step],
                "sums": self.sums,
                "clips": self.clips,
                "seconds": seconds,
                "history": self.history.to_dict(),
                "best_loss": self.best_loss,
                "finished": self.finished,
            }
        )
        self.saved_at = time.monotonic()

    def _resume(self) -> None:
        state, remarks = self.store.load()
        for remark in remarks:
            self.progress.say(remark)
        self.processes.agree(-1 if state is None else state["place"][2], "the step to go on from")
        if state is None:
            return
        changed = differences(state["fingerprint"], self.fingerprint)
        if changed:
            raise CheckpointError(
                f"{self.store.folder} holds a run that does not match this one ({'; '.join(changed[:5])}"
                f"{'; …' if len(changed) > 5 else ''}): start it with the same settings and clips "
                "to go on, or delete the folder to start anew"
            )
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.batch, self.step = state["place"]
        if not state["finished"]:
            self.progress.say(f"going on after step {self.step} of an earlier start")
        # each process adds its own losses; only the first one's were saved
        self.sums = state["sums"] if self.leads else dict.fromkeys(state["sums"], 0.0)
        self.clips = state["clips"] if self.leads else 0
        self.seconds = state["seconds"]
        self.history = TrainingHistory.from_dict(state["history"])
        self.history.resumed_at = self.step
        self.best_loss = state["best_loss"]
        self.finished = state["finished"]


@contextlib.contextmanager
def _torch_settings(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Set torch's global switches for the run, and put them back."""
    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    gpus = [device] if device.type == "cuda" else []
    try:
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.deterministic and device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        with torch.random.fork_rng(gpus), kept_memory(config.keep_memory and device.type == "cpu"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.backends.cudnn.benchmark = benchmark


def _half_type(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    """The reduced precision to run in, None for float32."""
    if config.precision == "bf16":
        return torch.bfloat16
    if config.precision == "fp16":
        if device.type != "cuda":
            raise TrainingError("training.precision is 'fp16', which needs a GPU: use auto, float32 or bf16")
        return torch.float16
    if config.precision == "float32" or device.type != "cuda":
        return None
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _seek(module: nn.Module, moment: Moment) -> None:
    own = getattr(module, "seek", None)
    if own is not None:
        own(moment)


def _numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    """Read all losses at once: one wait for a GPU instead of one a loss."""
    values = torch.stack([loss.detach().float().reshape(()) for loss in losses.values()])
    return dict(zip(losses, values.tolist(), strict=True))


def _move(batch: Batch, device: torch.device) -> Batch:
    if batch.waveform.device == device:
        return batch
    labels = batch.labels
    return Batch(
        batch.waveform.to(device, non_blocking=True),
        batch.lengths.to(device),
        None if labels is None else Labels(*(tensor.to(device) for tensor in labels)),
        batch.place,
        None if batch.features is None else batch.features.to(device, non_blocking=True),
    )
