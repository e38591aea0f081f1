"""Training of Approach 1: which classes the network learns, what it hears, and the call of the one training loop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offkey.audio.mel import LogMel
from offkey.data.labels import LabelSpace
from offkey.data.loader import ClipReader, balanced_order, load_batches
from offkey.encoders.base import Encoder
from offkey.models.discriminative import Discriminative
from offkey.models.statistics import LogMelStatistics
from offkey.objectives.multitask import MultiTask
from offkey.progress import Progress
from offkey.scoring.calibrate import clips_needed
from offkey.systems.clusters import cluster
from offkey.systems.config import SystemConfig
from offkey.systems.network import build_network, pretrained_encoder
from offkey.training.augmentation import WaveformAugmentation
from offkey.training.batches import BatchPlan
from offkey.training.loop import train
from offkey.training.task import TrainingTask
from offkey.training.unfreeze import merge, unfreeze
from offkey.training.variants import variant_names, vary
from offkey.types import Batch, ClipMeta, Content, OffkeyError

__all__ = ["Outcome", "held_out_places", "label_clips", "train_network"]

SMALLEST_CLASS = 4
"""Clips of a class and domain below which it gives up none for the held-out part."""

_MOST_SHARE = 0.25  # of a machine's clips that the threshold may ask for
_NORMALISING_CLIPS = 256  # enough for a mean and deviation a band
_VARIANTS, _HELD_OUT = 11, 12  # purposes of random numbers, apart from those of training/


@dataclass(frozen=True)
class Outcome:
    """A trained network, the clips that it never learnt from, and what the model card tells."""

    network: Discriminative
    held_out: frozenset[Path]
    facts: dict[str, Any]


def label_clips(clips: Sequence[ClipMeta], config: SystemConfig, reader: ClipReader, workers: int = 2) -> LabelSpace:
    """The classes of the training clips, by `config.labels`; clusters are found in log-mel statistics."""
    if config.labels.identity != "clusters":
        return LabelSpace.of(clips, config.labels.identity)
    pseudo: dict[Path, str] = {}
    for unit in sorted({(clip.machine, clip.section) for clip in clips}):
        mine = [clip for clip in clips if (clip.machine, clip.section) == unit and clip.content is Content.MIXTURE]
        if not mine:
            continue  # a machine of which there are supplemental clips alone
        groups = cluster(_statistics(mine, config, reader, workers), config.labels.clusters, config.seed)
        pseudo |= {clip.path: str(group) for clip, group in zip(mine, groups, strict=True)}
    return LabelSpace.of(clips, "machine", pseudo)


def _statistics(
    clips: Sequence[ClipMeta], config: SystemConfig, reader: ClipReader, workers: int
) -> NDArray[np.float64]:
    """Mean and standard deviation of each log-mel band, (N, 2M)."""
    module = LogMelStatistics(LogMel(config.audio.rate, config.mel), mean=True, std=True)
    order = [[place] for place in range(len(clips))]
    rows = [module(batch).embedding[0].double().numpy() for batch in load_batches(clips, order, reader, None, workers)]
    return np.stack(rows)


def train_network(
    clips: Sequence[ClipMeta],
    labels: LabelSpace,
    config: SystemConfig,
    reader: ClipReader,
    folder: Path,
    *,
    workers: int,
    progress: Progress,
) -> Outcome:
    """Train the network on normal clips; checkpoints and logs lie in `folder`, and a killed run goes on from there.

    Raises OffkeyError where there is one class only: then there is nothing to learn to tell apart.
    """
    speeds = config.labels.speeds
    names = variant_names(labels.identities, speeds)
    if len(names) < 2:
        raise OffkeyError(
            f"there is one class only ({names[0]}), so there is nothing to tell apart: let clusters or variants make "
            "classes (--system auto, or --set labels.speeds=[1.0,1.05,1.1]), or use a training-free system"
        )
    codes = [labels.encode(clip) for clip in clips]
    held = held_out_places(clips, codes, config)
    learning = [clip for place, clip in enumerate(clips) if place not in held]
    waiting = [clip for place, clip in enumerate(clips) if place in held]
    kept = [labels.encode(clip) for clip in learning]
    with torch.random.fork_rng(devices=[]):  # the first weights draw from torch's global state, which is given back
        torch.manual_seed(config.seed)
        encoder = pretrained_encoder(config)
        published = "" if encoder is None else encoder.fingerprint()
        network = build_network(config, encoder)
        unfrozen = () if encoder is None else _unfreeze(encoder, config, progress)
        learnt = sum(weights.numel() for weights in network.parameters() if weights.requires_grad)
        network.fit_normalisation(_passes(learning[:: max(1, len(learning) // _NORMALISING_CLIPS)], reader, workers))
        counts = np.bincount([identity for identity, _, _ in kept if identity >= 0], minlength=len(labels.identities))
        objective = MultiTask(
            config.model.embedding,
            len(names),
            [len(values) for _, values in labels.attribute_heads],
            config.objective,
            identity_counts=np.repeat(counts, len(speeds)).tolist(),
        )
    pool = [reader.read(clip.path) for clip in learning if clip.content is Content.NOISE]
    task = TrainingTask(network, objective, WaveformAugmentation(config.augmentation, config.audio.rate, pool))
    settings = config.training
    window = round(settings.crop_seconds * config.audio.rate) or None

    def load(clips_of: Sequence[ClipMeta], epoch: int, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        for batch in load_batches(clips_of, order, reader, labels, workers):
            # drawn from the batch's own clips: a resumed run, which loads the rest of an epoch only, draws the same
            draws = np.random.default_rng([config.seed, epoch, _VARIANTS, *batch.place.tolist()])
            yield vary(batch, speeds, window, draws)

    def lessons(epoch: int) -> BatchPlan:
        order = balanced_order(
            [domain for _, _, domain in kept],
            [identity for identity, _, _ in kept],
            settings.batch_size,
            settings.target_share,
            config.seed,
            epoch,
        )
        return BatchPlan(order, partial(load, learning, epoch))

    def exam(_: int) -> Iterator[Batch]:
        size = settings.batch_size
        order = [list(range(at, min(at + size, len(waiting)))) for at in range(0, len(waiting), size)]
        # the same windows and variants in every epoch, so that epochs can be compared
        return load(waiting, 0, order)

    heard = [f"{clip.machine} {clip.path.name}" for clip in clips]
    data = hashlib.sha256("\n".join([*heard, config.encoder.model_dump_json(), published]).encode()).hexdigest()
    history = train(task, lessons, exam if waiting else None, settings, folder, progress, seed=config.seed, data=data)
    if encoder is not None:
        merge(encoder)
    facts = {
        "classes": list(names),
        "clips": len(learning),
        "held_out": len(waiting),
        "held_out_clips": [f"{clip.machine}/{clip.path.name}" for clip in waiting],
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "learnt": learnt,
        "history": history.to_dict(),
    }
    if encoder is not None:
        facts["encoder"] = {"name": encoder.name, "published": published, "learnt": list(unfrozen)}
    return Outcome(network.cpu().eval(), frozenset(clip.path for clip in waiting), facts)


def _unfreeze(encoder: Encoder, config: SystemConfig, progress: Progress) -> tuple[str, ...]:
    """Let the layers learn that the settings name; say what there is to say; return their names."""
    unfrozen = unfreeze(encoder, config.encoder)
    for remark in unfrozen.remarks:
        progress.say(remark)
    return unfrozen.stages


def _passes(clips: Sequence[ClipMeta], reader: ClipReader, workers: int) -> Iterator[Batch]:
    order = [list(range(at, min(at + 16, len(clips)))) for at in range(0, len(clips), 16)]
    return load_batches(clips, order, reader, None, workers)


def held_out_places(
    clips: Sequence[ClipMeta], codes: Sequence[tuple[int, tuple[int, ...], int]], config: SystemConfig
) -> set[int]:
    """Places of the normal clips that the network does not learn from: a share of every machine's.

    The share is at least `training.held_out_share`, and, as far as a quarter of the clips allows, so many that the
    threshold can rest on them alone. They are spread over the machine's classes and domains by size; a class gives up
    at most a quarter (or that share), and one of fewer than four clips nothing: there, each is worth more in training.
    """
    share = config.training.held_out_share
    if share == 0:
        return set()
    rng = np.random.default_rng([config.seed, _HELD_OUT])
    machines: dict[tuple[str, str], list[int]] = {}
    for place, clip in enumerate(clips):
        if clip.content is Content.MIXTURE:
            machines.setdefault((clip.machine, clip.section), []).append(place)
    held: set[int] = set()
    for _, members in sorted(machines.items()):
        for_threshold = min(clips_needed(config.calibration.false_alarm_rate), int(_MOST_SHARE * len(members)))
        wanted = max(round(share * len(members)), for_threshold)
        groups: dict[tuple[int, int], list[int]] = {}
        for place in members:
            groups.setdefault((codes[place][0], codes[place][2]), []).append(place)
        queue: list[tuple[float, int]] = []
        for _, group in sorted(groups.items()):
            # the j-th of n stands at j/n, so that big and small classes give up like shares
            order = [
                ((number + rng.random()) / len(group), int(place))
                for number, place in enumerate(rng.permutation(group))
            ]
            queue += order if len(group) >= SMALLEST_CLASS else []
        held |= {place for moment, place in sorted(queue)[:wanted] if moment < max(share, _MOST_SHARE)}
    return held
