"""Training of Approach 1: which classes the network learns, what it hears, and the call of the one training loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from offkey.data.loader import balanced_order, load_batches
from offkey.encoders.base import Encoder
from offkey.models.config import DiscriminativeConfig
from offkey.objectives.config import MultiTaskConfig
from offkey.objectives.multitask import MultiTask
from offkey.progress import Progress
from offkey.separation.remix import Remix
from offkey.systems.config import SystemConfig
from offkey.systems.lessons import Lessons, Outcome
from offkey.systems.network import discriminative_network, pretrained_encoder
from offkey.training.augmentation import WaveformAugmentation
from offkey.training.batches import BatchPlan
from offkey.training.loop import train
from offkey.training.task import TrainingTask
from offkey.training.unfreeze import merge, unfreeze
from offkey.training.variants import variant_names, vary
from offkey.types import Batch, ClipMeta, Content, OffkeyError

__all__ = ["train_discriminative"]

_NORMALISING_CLIPS = 256  # enough for a mean and deviation a band
_VARIANTS = 11  # purpose of random numbers, apart from those of training/


def train_discriminative(lessons: Lessons, folder: Path, progress: Progress) -> Outcome:
    """Train the network on normal clips; checkpoints and logs lie in `folder`, and a killed run goes on from there.

    Raises OffkeyError where there is one class only: then there is nothing to learn to tell apart.
    """
    config, labels, learning, waiting = lessons.config, lessons.labels, lessons.learning, lessons.waiting
    model, terms = config.model, config.objective
    if not isinstance(model, DiscriminativeConfig) or not isinstance(terms, MultiTaskConfig):
        raise TypeError(f"{config.system} is not discriminative")
    speeds = config.labels.speeds
    names = variant_names(labels.identities, speeds)
    if len(names) < 2:
        raise OffkeyError(
            f"there is one class only ({names[0]}), so there is nothing to tell apart: let clusters or variants make "
            "classes (--system auto, or --set labels.speeds=[1.0,1.05,1.1]), or use a training-free system"
        )
    with torch.random.fork_rng(devices=[]):  # the first weights draw from torch's global state, which is given back
        torch.manual_seed(config.seed)
        encoder = pretrained_encoder(config)
        published = "" if encoder is None else encoder.fingerprint()
        network = discriminative_network(config, model, encoder)
        unfrozen = () if encoder is None else _unfreeze(encoder, config, progress)
        learnt = sum(weights.numel() for weights in network.parameters() if weights.requires_grad)
        network.fit_normalisation(lessons.passes(learning[:: max(1, len(learning) // _NORMALISING_CLIPS)]))
        objective = MultiTask(
            model.embedding,
            len(names),
            [len(values) for _, values in labels.attribute_heads],
            terms,
            identity_counts=np.repeat(lessons.identity_counts(), len(speeds)).tolist(),
            featex=config.augmentation.featex.enabled,
        )
    pool = [lessons.reader.read(clip.path) for clip in learning if clip.content is Content.NOISE]
    task = TrainingTask(network, objective, WaveformAugmentation(config.augmentation, config.audio.rate, pool))
    remix = lessons.remix(progress)
    settings = config.training
    window = round(settings.crop_seconds * config.audio.rate) or None

    def load(
        clips_of: Sequence[ClipMeta], epoch: int, order: Sequence[Sequence[int]], remix: Remix | None = None
    ) -> Iterator[Batch]:
        for batch in load_batches(clips_of, order, lessons.reader, labels, lessons.workers):
            if remix is not None:
                remix.seek_batch(config.seed, epoch, batch)
                batch = remix(batch)
            # drawn from the batch's own clips: a resumed run, which loads the rest of an epoch only, draws the same
            draws = np.random.default_rng([config.seed, epoch, _VARIANTS, *batch.place.tolist()])
            yield vary(batch, speeds, window, draws)

    def epoch_of(epoch: int) -> BatchPlan:
        order = balanced_order(
            [domain for _, _, domain in lessons.codes],
            [identity for identity, _, _ in lessons.codes],
            settings.batch_size,
            settings.target_share,
            config.seed,
            epoch,
        )
        return BatchPlan(order, partial(load, learning, epoch, remix=remix))

    def exam(_: int) -> Iterator[Batch]:
        size = settings.batch_size
        order = [list(range(at, min(at + size, len(waiting)))) for at in range(0, len(waiting), size)]
        # the same windows and variants in every epoch, so that epochs can be compared
        return load(waiting, 0, order)

    data = lessons.fingerprint(published)
    history = train(task, epoch_of, exam if waiting else None, settings, folder, progress, seed=config.seed, data=data)
    told: dict[str, object] = {"history": history.to_dict()}
    if encoder is not None:
        merge(encoder)
        told["encoder"] = {"name": encoder.name, "published": published, "learnt": list(unfrozen)}
    return lessons.outcome(network, learnt, names, told)


def _unfreeze(encoder: Encoder, config: SystemConfig, progress: Progress) -> tuple[str, ...]:
    """Let the layers learn that the settings name; say what there is to say; return their names."""
    unfrozen = unfreeze(encoder, config.encoder)
    for remark in unfrozen.remarks:
        progress.say(remark)
    return unfrozen.stages
