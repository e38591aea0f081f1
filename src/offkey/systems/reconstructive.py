"""Training of Approach 2 and of the DCASE baseline: windows of clips as they are, rebuilt through a narrow place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from offkey.audio.mel import LogMel
from offkey.models.config import BaselineConfig, ReconstructiveConfig
from offkey.models.dense_autoencoder import DenseAutoencoder
from offkey.objectives.config import ReconstructionConfig
from offkey.objectives.reconstruction import Reconstruction
from offkey.progress import Progress
from offkey.systems.lessons import Lessons, Outcome
from offkey.systems.network import Network, pretrained_encoder, reconstructive_network
from offkey.training.batches import BatchPlan
from offkey.training.loop import train
from offkey.training.task import TrainingTask
from offkey.training.windows import ClipRow, EveryWindow, WindowBatches, lay_out
from offkey.types import Batch

__all__ = ["train_reconstructive"]

ROWS = "windows"
"""Folder below that of the checkpoints in which features of all clips lie while a network learns from them."""


def train_reconstructive(lessons: Lessons, folder: Path, progress: Progress) -> Outcome:
    """Train an autoencoder on windows of normal clips; a killed run goes on from the checkpoints in `folder`."""
    config = lessons.config
    terms = config.objective
    if not isinstance(terms, ReconstructionConfig):
        raise TypeError(f"{config.system} rebuilds nothing")
    try:
        if isinstance(config.model, ReconstructiveConfig):
            return _convolutional(lessons, config.model, terms, folder, progress)
        if isinstance(config.model, BaselineConfig):
            return _dense(lessons, config.model, terms, folder, progress)
    finally:
        shutil.rmtree(folder / ROWS, ignore_errors=True)
    raise TypeError(f"{config.model.name} is no autoencoder")


def _convolutional(
    lessons: Lessons, model: ReconstructiveConfig, terms: ReconstructionConfig, folder: Path, progress: Progress
) -> Outcome:
    config, settings = lessons.config, lessons.config.training
    kernel = config.mel.n_fft
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = pretrained_encoder(config)
        network = reconstructive_network(config, model, encoder)
        counts = lessons.identity_counts()
        objective = Reconstruction(model.latent, len(counts), terms, counts)

    def row(batches: Iterable[Batch], name: str) -> ClipRow:
        return _row(lessons, batches, network.fixed_features, folder / ROWS / name, progress, model.use_tgram)

    learning = WindowBatches(
        row(_lessons(lessons, progress), "learning"),
        model.window,
        kernel,
        settings.batch_size,
        settings.target_share,
        config.seed,
    )
    network.fit_normalisation(learning.cover())
    exam: BatchPlan | None = None
    if lessons.waiting:
        waiting = row(lessons.passes(lessons.waiting, labelled=True), "waiting")
        exam = WindowBatches(waiting, model.window, kernel, settings.batch_size, seed=config.seed).cover()
    published = "" if encoder is None else encoder.fingerprint()
    told = _learn(network, objective, learning.epoch, exam, lessons, folder, progress, published)
    if encoder is not None:
        told["encoder"] = {"name": encoder.name, "published": published, "learnt": []}
    learnt = sum(weights.numel() for weights in network.parameters() if weights.requires_grad)
    return lessons.outcome(network, learnt, lessons.labels.identities, told)


def _dense(
    lessons: Lessons, model: BaselineConfig, terms: ReconstructionConfig, folder: Path, progress: Progress
) -> Outcome:
    config, settings = lessons.config, lessons.config.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = DenseAutoencoder(LogMel(config.audio.rate, config.mel), model)
        counts = lessons.identity_counts()
        objective = Reconstruction(model.latent, len(counts), terms, counts)

    def row(batches: Iterable[Batch], name: str) -> ClipRow:
        return _row(lessons, batches, network.mel, folder / ROWS / name, progress, with_samples=False)

    kernel, size = config.mel.n_fft, settings.batch_size
    share = 0.0 if lessons.waiting else model.validation_share
    learning = EveryWindow(row(_lessons(lessons, progress), "learning"), model.frames, kernel, size, config.seed, share)
    exam = learning.held_out() if share else None
    if lessons.waiting:
        waiting = row(lessons.passes(lessons.waiting, labelled=True), "waiting")
        exam = EveryWindow(waiting, model.frames, kernel, size).in_order()
    told = _learn(network, objective, learning.epoch, exam, lessons, folder, progress)
    network.cpu().fit_residuals(learning.epoch(settings.epochs))
    learnt = sum(weights.numel() for weights in network.parameters())
    return lessons.outcome(network, learnt, lessons.labels.identities, told)


def _lessons(lessons: Lessons, progress: Progress) -> Iterator[Batch]:
    """The clips to learn from, and with `augmentation.remix` as many remixed copies of each as it says."""
    remix = lessons.remix(progress)
    yield from lessons.passes(lessons.learning, labelled=True)
    if remix is None:
        return
    for copy in range(lessons.config.augmentation.remix.copies):
        for batch in lessons.passes(lessons.learning, labelled=True):
            remix.seek_batch(lessons.config.seed, copy, batch)
            yield remix(batch)


def _row(
    lessons: Lessons,
    batches: Iterable[Batch],
    describe: Callable[[Tensor, Tensor], Tensor],
    folder: Path,
    progress: Progress,
    with_samples: bool,
) -> ClipRow:
    """What the frozen layers say of these clips, on disk."""
    remix = lessons.config.augmentation.remix
    progress.start("listening", len(lessons.clips) + (remix.copies * len(lessons.learning) if remix.enabled else 0))
    done = 0

    def told(waveform: Tensor, lengths: Tensor) -> Tensor:
        nonlocal done
        done += len(waveform)
        progress.step(done)
        return describe(waveform, lengths)

    return lay_out(batches, told, lessons.config.mel.hop, folder, with_samples=with_samples)


def _learn(
    network: Network,
    objective: Reconstruction,
    epoch: Callable[[int], BatchPlan],
    exam: BatchPlan | None,
    lessons: Lessons,
    folder: Path,
    progress: Progress,
    published: str = "",
) -> dict[str, object]:
    """Go through the one loop; the facts to tell of it."""
    config = lessons.config
    history = train(
        TrainingTask(network, objective),
        epoch,
        None if exam is None else lambda _: exam,
        config.training,
        folder,
        progress,
        seed=config.seed,
        data=lessons.fingerprint(published),
    )
    return {"history": history.to_dict()}
