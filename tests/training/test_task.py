"""The real network learns, end to end, on clips that differ by their tone."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offkey.audio.mel import LogMel, MelConfig
from offkey.models.discriminative import Discriminative, DiscriminativeConfig
from offkey.objectives.multitask import MultiTask, MultiTaskConfig
from offkey.training.augmentation import SpecAugment, StreamExchange, WaveformAugmentation
from offkey.training.config import (
    AugmentationConfig,
    FeatExConfig,
    GainConfig,
    MixupConfig,
    NoiseConfig,
    SpecAugmentConfig,
)
from offkey.training.loop import TrainingConfig, train
from offkey.training.memory import kept_memory
from offkey.training.randomness import Moment
from offkey.training.task import TrainingTask
from offkey.types import Batch, Labels, OffkeyError

RATE = 4000


def tone_batches(epoch: int, count: int = 4, size: int = 8) -> list[Batch]:
    """Clips of 0.3 to 0.5 s: the class is the pitch, the domain the loudness."""
    rng = np.random.default_rng([1, epoch])
    batches = []
    for _ in range(count):
        identity, domain = rng.integers(3, size=size), rng.integers(2, size=size)
        lengths = rng.integers(1200, 2000, size=size)
        waveform = np.zeros((size, 2000), dtype=np.float32)
        for row in range(size):
            time = np.arange(lengths[row]) / RATE
            tone = np.sin(2 * np.pi * 300 * (1 + identity[row]) * time + rng.uniform(0, 6))
            waveform[row, : lengths[row]] = 0.1 * (1 + domain[row]) * tone + 0.02 * rng.standard_normal(lengths[row])
        labels = Labels(torch.from_numpy(identity), torch.from_numpy(identity[:, None] % 2), torch.from_numpy(domain))
        batches.append(Batch(torch.from_numpy(waveform), torch.from_numpy(lengths), labels, torch.arange(size)))
    return batches


def make_task(seed: int = 0, head: str = "arcface", featex: bool = False) -> TrainingTask:
    torch.manual_seed(seed)
    config = AugmentationConfig(
        gain=GainConfig(enabled=True, min_db=-2.0, max_db=2.0),
        noise=NoiseConfig(enabled=True, min_snr_db=15.0),
        mixup=MixupConfig(enabled=True, probability=0.3),
        spec_augment=SpecAugmentConfig(enabled=True),
    )
    model = Discriminative(
        LogMel(RATE, MelConfig(n_fft=256, hop=128, n_mels=24)),
        DiscriminativeConfig(embedding=16, width=0.125, bottlenecks=((2, 64, 1, 2), (2, 64, 1, 2))),
        SpecAugment(config.spec_augment),
        stream_exchange=StreamExchange(FeatExConfig(enabled=True)) if featex else None,
    )
    model.fit_normalisation(tone_batches(0))
    return TrainingTask(
        model, MultiTask(16, 3, (2,), MultiTaskConfig(head=head), featex=featex), WaveformAugmentation(config, RATE)
    )


@pytest.mark.parametrize(("head", "featex"), [("arcface", False), ("arcface", True), ("adacos", True)])
def test_the_network_learns_resumes_and_repeats_itself(tmp_path: Path, head: str, featex: bool) -> None:
    class Kill(Exception):
        pass

    class Stop:
        def start(self, what: str, total: int, done: int = 0) -> None: ...

        def say(self, text: str) -> None: ...

        def step(self, done: int, note: str = "") -> None:
            if done == 14:
                raise Kill

    config = TrainingConfig(epochs=8, learning_rate=5e-3, device="cpu", checkpoint_every_steps=3)
    calm = make_task(0, head, featex)
    history = train(calm, tone_batches, lambda _: tone_batches(99, 2), config, tmp_path / "calm")
    first, last = history.epochs[0], history.epochs[-1]
    if not featex and head == "arcface":
        assert last.train["total"] < 0.7 * first.train["total"]
        assert last.held_out["accuracy"] > 0.9
    told = {name: [record.train[name] for record in history.epochs] for name in first.train}
    assert sum(told["total"][-2:]) < sum(told["total"][:2])
    assert sum(told["accuracy"][-2:]) > sum(told["accuracy"][:2]) + 0.3
    assert ("featex" in told) == ("featex" in last.held_out) == featex
    if featex and head == "arcface":  # AdaCos's losses at different scales cannot be compared
        assert sum(told["featex"][-2:]) < 0.95 * sum(told["featex"][:2])
    with pytest.raises(Kill):
        train(
            make_task(0, head, featex), tone_batches, lambda _: tone_batches(99, 2), config, tmp_path / "killed", Stop()
        )
    resumed = make_task(1, head, featex)
    train(resumed, tone_batches, lambda _: tone_batches(99, 2), config, tmp_path / "killed")
    for name, tensor in calm.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert ("objective.identity.scale" in calm.state_dict()) == (head == "adacos")


def test_augmentation_acts_in_training_only_and_follows_the_moment() -> None:
    task, batch = make_task(), tone_batches(0)[0]
    losses = {}
    with torch.no_grad():
        for name, moment in (("a", Moment(0, 0, 0)), ("b", Moment(0, 0, 1)), ("again", Moment(0, 0, 0))):
            task.seek(moment)
            task.train()
            losses[name] = task(batch)["total"].item()
            task.eval()
            losses[f"eval {name}"] = task(batch)["total"].item()
            task.load_state_dict(make_task().state_dict())
    assert losses["a"] == losses["again"] != losses["b"]


def test_batches_without_labels_are_refused() -> None:
    with pytest.raises(OffkeyError, match="labels"):
        make_task()(tone_batches(0)[0]._replace(labels=None))


def test_tensorboard_holds_the_curves_and_says_when_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_task: Any, batches: Any
) -> None:
    config = TrainingConfig(epochs=2, device="cpu", log="tensorboard")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
        with pytest.raises(OffkeyError, match=r"offkey\[track\]"):
            train(tiny_task(), batches, None, config, tmp_path / "none")
    history = train(tiny_task(), batches, lambda _: batches(9, 1), config, tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("train/total")) == 18
    expected = [record.held_out["total"] for record in history.epochs]
    assert [event.value for event in events.Scalars("held_out/total")] == pytest.approx(expected)


def test_kept_memory_changes_no_number() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    with kept_memory(True):
        inside = (x @ x).sum()
    with kept_memory(False) as active:
        assert not active
        assert torch.equal((x @ x).sum(), inside)
