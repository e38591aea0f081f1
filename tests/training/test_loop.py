"""The training loop: it learns, repeats itself bit for bit, and goes on after a kill as if nothing had happened."""

import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from offkey.training.batches import BatchPlan
from offkey.training.checkpoint import CheckpointError, CheckpointStore
from offkey.training.loop import TrainingConfig, TrainingError, train
from offkey.training.optimiser import rate_factor
from offkey.types import OffkeyError

CHILD = Path(__file__).with_name("child.py")
QUICK: dict[str, Any] = {"epochs": 3, "learning_rate": 0.02, "device": "cpu", "accumulate": 2}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def start_child(folder: Path, pause: float, **environment: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(folder), str(pause)],
        stdout=subprocess.PIPE if pause else subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def test_it_learns_and_tells_what_happened(tmp_path: Path, tiny_task: Any, batches: Any) -> None:
    task = tiny_task()
    history = train(task, batches, lambda _: batches(99, 2), TrainingConfig(**QUICK), tmp_path)
    losses = [record.train["total"] for record in history.epochs]
    assert losses[-1] < 0.7 * losses[0]
    assert history.epochs[-1].held_out["accuracy"] > 0.8
    assert [record.step for record in history.epochs] == [5, 10, 15]
    assert history.kept_epoch == 2
    assert not task.training


def test_two_runs_of_one_seed_agree_bit_for_bit_and_leave_global_state_alone(
    tmp_path: Path, tiny_task: Any, batches: Any
) -> None:
    results = []
    for number, seed in enumerate((3, 3, 4)):
        task = tiny_task()
        torch.manual_seed(number)
        state = torch.get_rng_state()
        train(task, batches, None, TrainingConfig(**QUICK), tmp_path / str(number), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(task.state_dict())
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_a_run_killed_in_the_middle_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    undisturbed = start_child(calm, 0.0)
    first = start_child(killed, 0.3)
    with first.stdout as lines:
        for line in lines:
            if line.strip() == "step 8":  # in the middle of the second of three epochs of five steps
                first.send_signal(signal.SIGKILL)
                break
    assert first.wait() == -signal.SIGKILL
    assert not (killed / "result-0.pt").exists()
    second = start_child(killed, 0.0)
    assert second.wait() == 0
    assert undisturbed.wait() == 0
    once, twice = (torch.load(folder / "result-0.pt", weights_only=True) for folder in (calm, killed))
    assert 5 < twice["resumed_at"] <= 8
    assert once["resumed_at"] == -1
    assert same(once["weights"], twice["weights"])
    assert once["losses"] == twice["losses"]


class Interrupted(Exception):
    """Stands for a kill, within this process."""


class StopAt:
    def __init__(self, step: int) -> None:
        self.at = step
        self.said: list[str] = []

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.total = total

    def step(self, done: int, note: str = "") -> None:
        if done == self.at:
            raise Interrupted

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("at", [1, 4, 5, 6, 11, 15])
@pytest.mark.parametrize("plan", [False, True])
def test_every_place_can_be_resumed_from(tmp_path: Path, tiny_task: Any, batches: Any, at: int, plan: bool) -> None:
    config = TrainingConfig(**QUICK, checkpoint_every_steps=1, keep="best", early_stop=1)
    loaded: list[int] = []

    def planned(epoch: int) -> Any:
        if not plan:
            return batches(epoch)

        def load(order: Any) -> Any:
            loaded.append(len(order))
            return [batches(epoch)[number] for (number,) in order]

        return BatchPlan([[number] for number in range(9)], load)

    def held_out(_: int) -> Any:
        return batches(99, 2)

    calm, task = tiny_task(), tiny_task()
    expected = train(calm, batches, held_out, config, tmp_path / "calm")
    with pytest.raises(Interrupted):
        train(task, planned, held_out, config, tmp_path / "run", StopAt(at))
    task = tiny_task(seed=9)  # what it starts from does not matter any more
    loaded.clear()
    history = train(task, planned, held_out, config, tmp_path / "run")
    assert same(task.state_dict(), calm.state_dict()) or at == 1  # before the first checkpoint it starts anew
    if at > 1:
        assert [replace(record, seconds=0.0) for record in history.epochs] == [
            replace(record, seconds=0.0) for record in expected.epochs
        ]
    if plan and at == 4:
        assert loaded[0] == 9 - 6  # three steps of two batches were done and are not loaded again


def test_a_finished_run_only_loads_its_weights(tmp_path: Path, tiny_task: Any, batches: Any) -> None:
    first, second = tiny_task(), tiny_task(seed=1)
    config = TrainingConfig(**QUICK)
    before = train(first, batches, None, config, tmp_path)

    def never(_: int) -> Any:
        raise AssertionError("a finished run needs no clips")

    after = train(second, never, None, config, tmp_path)
    assert same(first.state_dict(), second.state_dict())
    assert after.epochs == before.epochs


def test_other_settings_clips_or_layers_are_refused_by_name(tmp_path: Path, tiny_task: Any, batches: Any) -> None:
    config = TrainingConfig(**QUICK)
    train(tiny_task(), batches, None, config, tmp_path, data="clips A")
    with pytest.raises(CheckpointError, match=r"settings\.learning_rate: 0\.02 -> 0\.5"):
        train(tiny_task(), batches, None, config.model_copy(update={"learning_rate": 0.5}), tmp_path, data="clips A")
    with pytest.raises(CheckpointError, match="data: clips A -> clips B"):
        train(tiny_task(), batches, None, config, tmp_path, data="clips B")
    other = tiny_task()
    other.last = nn.Linear(8, 4)
    with pytest.raises(CheckpointError, match=r"last\.weight: \[3, 8\] -> \[4, 8\]"):
        train(other, batches, None, config, tmp_path, data="clips A")
    free = config.model_copy(update={"checkpoint_every_steps": 7, "device": "auto"})
    assert train(tiny_task(), batches, None, free, tmp_path, data="clips A").resumed_at == 15


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, tiny_task: Any, batches: Any, damage: str
) -> None:
    config = TrainingConfig(**QUICK, checkpoint_every_steps=1)
    calm, task = tiny_task(), tiny_task()
    train(calm, batches, None, config, tmp_path / "calm")
    with pytest.raises(Interrupted):
        train(task, batches, None, config, tmp_path / "run", StopAt(9))
    newest = tmp_path / "run" / "checkpoint.pt"
    content = newest.read_bytes()
    weights = task.state_dict()["first.weight"].numpy().tobytes()
    state = torch.load(newest, weights_only=True)["module"]["first.weight"].numpy().tobytes()
    place = content.index(state)
    assert len(weights) == len(state)
    newest.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "flip": content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :],
            "empty": b"",
            "text": b"not a checkpoint",
        }[damage]
    )
    told = StopAt(-1)
    task = tiny_task(seed=9)
    history = train(task, batches, None, config, tmp_path / "run", told)
    assert history.resumed_at == 7
    assert "damaged" in told.said[0]
    assert same(task.state_dict(), calm.state_dict())


def test_when_no_checkpoint_is_whole_it_says_so(tmp_path: Path, tiny_task: Any, batches: Any) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    (tmp_path / "previous.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        train(tiny_task(), batches, None, TrainingConfig(**QUICK), tmp_path)


def test_a_kill_between_the_two_renames_loses_one_step_only(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for number in (1, 2):
        store.save({"number": number})
    (tmp_path / "checkpoint.pt").rename(tmp_path / "previous.pt")
    (tmp_path / ".checkpoint.pt.1.tmp").write_bytes(b"half")
    state, remarks = store.load()
    assert state["number"] == 2
    assert not remarks
    store.save({"number": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "previous.pt"]


def test_checkpoints_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"format": 1, "module": nn.Linear(1, 1)}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        CheckpointStore(tmp_path).load()


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path, batches: Any) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 3)
            nn.init.zeros_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)

        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            return {"total": nn.functional.cross_entropy(self.layer(batch.waveform), batch.labels.identity)}

    def large(epoch: int) -> Any:
        parts = batches(epoch, 8)
        joined = []
        for at in range(0, 8, 4):
            group = parts[at : at + 4]
            labels = type(group[0].labels)(
                *(torch.cat(fields) for fields in zip(*(b.labels for b in group), strict=True))
            )
            joined.append(
                type(group[0])(
                    torch.cat([b.waveform for b in group]), torch.cat([b.lengths for b in group]), labels, None
                )
            )
        return joined

    small, big = Plain(), Plain()
    settings = {**QUICK, "epochs": 2}
    config = TrainingConfig(**{**settings, "accumulate": 4})
    train(small, lambda epoch: batches(epoch, 8), None, config, tmp_path / "small")
    train(big, large, None, TrainingConfig(**{**settings, "accumulate": 1}), tmp_path / "big")
    torch.testing.assert_close(small.state_dict(), big.state_dict())


class Scripted(nn.Module):
    """Held-out losses as a script says; the weight counts the epochs."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("epoch", torch.tensor(-1))
        self.losses = losses

    def seek(self, moment: Any) -> None:
        self.epoch.fill_(moment.epoch)

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        if self.training:
            return {"total": (self.weight * 0).sum()}
        return {"total": torch.tensor(self.losses[int(self.epoch)])}


@pytest.mark.parametrize(("keep", "kept"), [("best", 1), ("last", 3)])
def test_early_stop_waits_and_keeps_what_was_asked_for(tmp_path: Path, batches: Any, keep: str, kept: int) -> None:
    module = Scripted([3.0, 1.0, 2.0, 1.5, 0.0, 0.0])
    config = TrainingConfig(epochs=6, early_stop=2, keep=keep, device="cpu")
    history = train(module, batches, lambda _: batches(0, 1), config, tmp_path)
    assert history.stopped_early
    assert [record.held_out["total"] for record in history.epochs] == [3.0, 1.0, 2.0, 1.5]
    assert (history.best_epoch, history.kept_epoch, int(module.epoch)) == (1, kept, kept)
    assert len(list(tmp_path.glob("best-*.pt"))) == (keep == "best")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_training_with_advice(tmp_path: Path, batches: Any, where: str) -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.calls = 0

        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            self.calls += 1
            if self.calls < 4:
                return {"total": self.weight.sum()}
            broken = (
                self.weight.sum() * math.nan if where == "loss" else (self.weight - self.weight.detach()).sqrt().sum()
            )
            return {"total": broken}

    config = TrainingConfig(epochs=1, learning_rate=0.25, device="cpu")
    with pytest.raises(TrainingError, match=rf"{where} is not finite at epoch 1, batch 4 .*learning_rate \(now 0.25"):
        train(Bad(), batches, None, config, tmp_path)


def test_settings_that_need_held_out_clips_say_so(tmp_path: Path, tiny_task: Any, batches: Any) -> None:
    with pytest.raises(TrainingError, match="held_out_share"):
        train(tiny_task(), batches, None, TrainingConfig(early_stop=3, device="cpu"), tmp_path)


def test_no_batches_or_no_parameters_are_refused(tmp_path: Path, tiny_task: Any, batches: Any) -> None:
    with pytest.raises(TrainingError, match="no training clips"):
        train(tiny_task(), lambda _: [], None, TrainingConfig(device="cpu"), tmp_path)
    frozen = tiny_task().requires_grad_(False)
    with pytest.raises(OffkeyError, match="nothing to train"):
        train(frozen, batches, None, TrainingConfig(device="cpu"), tmp_path)


def test_fp16_without_a_gpu_and_a_gpu_that_is_not_there_are_refused(
    tmp_path: Path, tiny_task: Any, batches: Any
) -> None:
    with pytest.raises(TrainingError, match="fp16"):
        train(tiny_task(), batches, None, TrainingConfig(precision="fp16", device="cpu"), tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(OffkeyError, match="no GPU"):
            train(tiny_task(), batches, None, TrainingConfig(device="cuda"), tmp_path)
    with pytest.raises(OffkeyError, match="no device 'gpu'"):
        train(tiny_task(), batches, None, TrainingConfig(device="gpu"), tmp_path)


def test_bf16_trains_on_a_cpu_when_asked(tmp_path: Path, tiny_task: Any, batches: Any) -> None:
    config = TrainingConfig(**QUICK, precision="bf16")
    full, half = tiny_task(), tiny_task()
    train(full, batches, None, TrainingConfig(**QUICK), tmp_path / "full")
    history = train(half, batches, None, config, tmp_path / "half")
    assert history.epochs[-1].train["total"] < 0.8 * history.epochs[0].train["total"]
    assert not same(full.state_dict(), half.state_dict())
    assert half.first.weight.dtype == torch.float32


def test_the_rate_climbs_then_falls_along_a_cosine() -> None:
    config = TrainingConfig(warmup_share=0.1, final_share=0.05)
    rates = [rate_factor(step, 1000, config) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[99] == rates[100] == 1.0
    assert rates[550] == pytest.approx((1 + 0.05) / 2)
    assert rates[1000] == pytest.approx(0.05)
    assert all(a >= b for a, b in pairwise(rates[100:]))
    constant = TrainingConfig(schedule="constant", warmup_share=0.0)
    assert {rate_factor(step, 10, constant) for step in range(10)} == {1.0}


def test_two_processes_end_with_the_same_weights_and_learn(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    children = [start_child(tmp_path, 0.0, RANK=str(rank), LOCAL_RANK=str(rank), **where) for rank in (0, 1)]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    results = [torch.load(tmp_path / f"result-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert same(results[0]["weights"], results[1]["weights"])
    assert results[0]["losses"] == results[1]["losses"]
    assert results[0]["losses"][-1] < 0.8 * results[0]["losses"][0]


def test_a_wrong_number_of_processes_says_how_to_start(tmp_path: Path, tiny_task: Any, batches: Any) -> None:
    with pytest.raises(OffkeyError, match="torchrun --nproc-per-node 4"):
        train(tiny_task(), batches, None, TrainingConfig(devices=4, device="cpu"), tmp_path)
