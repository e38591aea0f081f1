"""What any network learns from: which classes the clips have, which it never hears, and what it leaves behind."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from offkey.audio.mel import LogMel
from offkey.data.fingerprint import clips_fingerprint
from offkey.data.labels import LabelSpace
from offkey.data.loader import ClipReader, load_batches
from offkey.models.encoder_frames import EncoderMean
from offkey.models.statistics import LogMelStatistics
from offkey.progress import Progress
from offkey.scoring.calibrate import clips_needed, sessions_apart
from offkey.separation.remix import Remix
from offkey.separation.stems import Stems
from offkey.systems.clusters import cluster
from offkey.systems.config import SystemConfig
from offkey.systems.network import frame_cache, pretrained_encoder
from offkey.types import Batch, ClipMeta, Content, OffkeyError

__all__ = ["Lessons", "Outcome", "held_out_places", "label_clips"]

SMALLEST_CLASS = 4
"""Clips of a class and domain below which it gives up none for the held-out part."""

_MOST_SHARE = 0.25  # of a machine's clips that the threshold may ask for
_MOST_OF_FEW = 0.5  # of a class, where whole recordings are held out
_HELD_OUT = 12  # purpose of random numbers, apart from those of training/
_DECISIVE = {"audio", "mel", "labels", "encoder", "model", "objective", "augmentation"}
_PASS = 16  # clips at once where nothing is learnt


@dataclass(frozen=True)
class Outcome:
    """A trained network, the clips that it never learnt from, and what the model card tells."""

    network: nn.Module
    held_out: frozenset[Path]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Lessons:
    """Normal clips, `learning` from which a network learns and `waiting` which it never hears, with their classes.

    `others`: normal training clips of other machines, where each machine has a network; they lend backgrounds alone.
    """

    clips: Sequence[ClipMeta]
    labels: LabelSpace
    config: SystemConfig
    reader: ClipReader
    workers: int
    stems: Stems | None = None
    supplemental: Sequence[ClipMeta] = ()
    others: Sequence[ClipMeta] = ()

    @cached_property
    def _codes(self) -> list[tuple[int, tuple[int, ...], int]]:
        return [self.labels.encode(clip) for clip in self.clips]

    @cached_property
    def _held(self) -> set[int]:
        return held_out_places(self.clips, self._codes, self.config)

    @cached_property
    def learning(self) -> list[ClipMeta]:
        """Clips to learn from."""
        return [clip for place, clip in enumerate(self.clips) if place not in self._held]

    @cached_property
    def waiting(self) -> list[ClipMeta]:
        """Clips held out."""
        return [clip for place, clip in enumerate(self.clips) if place in self._held]

    @cached_property
    def codes(self) -> list[tuple[int, tuple[int, ...], int]]:
        """Identity, attributes and domain of the clips to learn from, as numbers."""
        return [code for place, code in enumerate(self._codes) if place not in self._held]

    def identity_counts(self) -> list[int]:
        """How many clips there are to learn from, a class each."""
        known = [identity for identity, _, _ in self.codes if identity >= 0]
        return np.bincount(known, minlength=len(self.labels.identities)).tolist()

    def passes(self, clips: Sequence[ClipMeta], labelled: bool = False) -> Iterator[Batch]:
        """Each of these clips once, in order."""
        order = [list(range(at, min(at + _PASS, len(clips)))) for at in range(0, len(clips), _PASS)]
        return load_batches(clips, order, self.reader, self.labels if labelled else None, self.workers)

    def remix(self, progress: Progress) -> Remix | None:
        """What recombines the clips to learn from, where `augmentation.remix` is on; their stems are found first.

        Supplemental clips of noise alone lend their background, whether or not the network learns from them, and so do
        clips of `others`. Held-out clips take no part.
        """
        if not self.config.augmentation.remix.enabled:
            return None
        if self.stems is None:
            raise OffkeyError("augmentation.remix needs a separator: separation.model names its folder")
        self.stems.find([*self.learning, *self.supplemental, *self.others], progress)
        return Remix(self.config.augmentation.remix, self.learning, self.stems, self.supplemental, self.others)

    def fingerprint(self, published: str = "") -> str:
        """A hash of all that decides what is learnt, beside `training`: another run with it learns the same.

        Clips, what is in them, settings, the encoder's `published` weights, and separators.
        """
        heard = [
            f"{clip.machine} {clip.path.name} {self.labels.name(clip)}" + (f" {clip.session}" if clip.session else "")
            for clip in self.clips
        ]
        told = [self.config.model_dump_json(include=_DECISIVE), published]
        if self.config.augmentation.remix.enabled and self.stems is not None:
            told += [self.stems.fingerprint, clips_fingerprint(self.supplemental), clips_fingerprint(self.others)]
        if self.reader.front_end is not None:
            told.append(self.reader.front_end.fingerprint)
        told.append(clips_fingerprint(self.clips))
        return hashlib.sha256("\n".join([*heard, *told]).encode(errors="backslashreplace")).hexdigest()

    def _pseudo_classes(self) -> dict[str, Any]:
        """What groups were found without labels, and how many clips each holds; nothing where there are none."""
        grouped = [clip for clip in self.clips if clip.path in self.labels.pseudo]
        if not grouped:
            return {}
        sizes = Counter(self.labels.name(clip) for clip in grouped)
        return {"pseudo_classes": {"on": self.config.labels.cluster_on, "clips": dict(sorted(sizes.items()))}}

    def outcome(self, network: nn.Module, learnt: int, classes: Sequence[str], told: Mapping[str, Any]) -> Outcome:
        """What `fit` goes on with; `learnt` of the network's numbers were learnt, `told` is added to the facts."""
        facts = {
            "classes": list(classes),
            "clips": len(self.learning),
            "held_out": len(self.waiting),
            "held_out_clips": [f"{clip.machine}/{clip.path.name}" for clip in self.waiting],
            "parameters": sum(weights.numel() for weights in network.parameters()),
            "learnt": learnt,
            **self._pseudo_classes(),
            **told,
        }
        return Outcome(network.cpu().eval(), frozenset(clip.path for clip in self.waiting), facts)


def label_clips(clips: Sequence[ClipMeta], config: SystemConfig, reader: ClipReader, workers: int = 2) -> LabelSpace:
    """The classes of the training clips, by `config.labels`.

    Pseudo-classes are found in each machine, section and domain by itself: ten target clips among a thousand would
    otherwise vanish in a source group, and with them what the network could learn of their domain. With
    "attributes-or-clusters" clips whose settings are told keep the class of these, and only the others are grouped.
    Raises OffkeyError where groups are wanted of what an encoder hears and there is no encoder.
    """
    rule = config.labels.identity
    if rule == "attributes" or rule == "domain" or rule == "machine":
        return LabelSpace.of(clips, rule)
    units: dict[tuple[str, str, str], list[ClipMeta]] = {}
    for clip in clips:
        if clip.content is Content.MIXTURE and (rule == "clusters" or not clip.attributes):
            units.setdefault((clip.machine, clip.section, clip.domain.value), []).append(clip)
    describe = _describing(config, reader, workers) if units else None
    pseudo: dict[Path, str] = {}
    for _, mine in sorted(units.items()):
        assert describe is not None  # noqa: S101
        groups = cluster(describe(mine), config.labels.clusters, config.seed)
        pseudo |= {clip.path: str(group) for clip, group in zip(mine, groups, strict=True)}
    return LabelSpace.of(clips, "domain" if rule == "clusters" else "attributes", pseudo)


def _describing(
    config: SystemConfig, reader: ClipReader, workers: int
) -> Callable[[Sequence[ClipMeta]], NDArray[np.float64]]:
    """What gives the numbers (N, D) that clips are grouped by."""
    if config.labels.cluster_on == "encoder":
        encoder = pretrained_encoder(config)
        if encoder is None:
            raise OffkeyError(
                "labels.cluster_on = encoder groups clips by what a pretrained encoder hears, and there is none: "
                "name one (encoder.name), or set labels.cluster_on to logmel"
            )
        module: nn.Module = EncoderMean(encoder, config.audio.rate, frame_cache() if config.encoder.cache else None)
    else:
        module = LogMelStatistics(LogMel(config.audio.rate, config.mel), mean=True, std=True)

    def describe(clips: Sequence[ClipMeta]) -> NDArray[np.float64]:
        order = [[place] for place in range(len(clips))]
        batches = load_batches(clips, order, reader, None, workers)
        return np.stack([module(batch).embedding[0].double().numpy() for batch in batches])

    return describe


def held_out_places(
    clips: Sequence[ClipMeta], codes: Sequence[tuple[int, tuple[int, ...], int]], config: SystemConfig
) -> set[int]:
    """Places of the normal clips that the network does not learn from: a share of every machine's.

    The share is at least `training.held_out_share`, and, as far as a quarter of the clips allows, so many that the
    threshold can rest on them alone. They are spread over the machine's classes and domains by size; a class gives up
    at most a quarter (or that share), and one of fewer than four clips nothing: there, each is worth more in training.

    Where it is told which clips were cut from one recording, whole recordings are held out, and counted; a class of two
    or three gives up one of them where other classes cannot spare enough.
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
        apart = sessions_apart([clips[place].session for place in members])
        if apart is not None:
            held |= _whole_recordings(members, apart, codes, config, rng)
            continue
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


def _whole_recordings(
    members: Sequence[int],
    apart: Sequence[str],
    codes: Sequence[tuple[int, tuple[int, ...], int]],
    config: SystemConfig,
    rng: np.random.Generator,
) -> set[int]:
    """Places of a machine's held-out clips: of `apart` (a recording a member), so many that rate and share ask for."""
    share = config.training.held_out_share
    recordings: dict[str, list[int]] = {}
    for place, name in zip(members, apart, strict=True):
        recordings.setdefault(name, []).append(place)
    groups: dict[tuple[int, int], list[str]] = {}
    for name, places in recordings.items():
        usual = Counter((codes[place][0], codes[place][2]) for place in places).most_common(1)[0][0]
        groups.setdefault(usual, []).append(name)
    queue = [
        ((number + rng.random()) / len(group), group[int(chosen)])
        for _, group in sorted(groups.items())
        for number, chosen in enumerate(rng.permutation(len(group)))
    ]
    for_threshold = min(clips_needed(config.calibration.false_alarm_rate), int(_MOST_SHARE * len(recordings)))
    wanted = max(round(share * len(recordings)), for_threshold)
    # a recording may be much of a class, or all of it: classes of two or three give one up where no others can
    whole = Counter((codes[place][0], codes[place][2]) for place in members)
    gone: Counter[tuple[int, int]] = Counter()
    held: set[int] = set()
    for limit in (max(share, _MOST_SHARE), _MOST_OF_FEW):
        for _, name in sorted(queue):
            own = Counter((codes[place][0], codes[place][2]) for place in recordings[name])
            free = wanted > 0 and held.isdisjoint(recordings[name])
            if free and all(gone[code] + count <= limit * whole[code] for code, count in own.items()):
                held |= set(recordings[name])
                gone += own
                wanted -= 1
    return held
