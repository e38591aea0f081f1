"""From normal recordings to a detector: the one way that `offkey.fit`, the command line and the benchmark take.

source -> labels -> (training, where the system has a network) -> embeddings -> scorers and calibration, a machine
each -> Detector. A run that is killed goes on where it stopped when it is started again with the same arguments.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offkey.alarms import with_rate
from offkey.audio.cache import ArrayCache, default_cache_dir
from offkey.data.fingerprint import clips_fingerprint
from offkey.data.loader import ClipReader, Failure, load_batches
from offkey.data.sessions import with_sessions
from offkey.data.source import Source, open_source
from offkey.detector import Detector, DetectorError
from offkey.ensemble import MEMBERS, Ensemble
from offkey.files import check_folder
from offkey.manifest import MANIFEST
from offkey.progress import Progress, Quiet
from offkey.references import assemble, machine_groups
from offkey.scoring import FalseAlarms, sessions_apart
from offkey.separation.front_end import FITTED, FrontEnd
from offkey.separation.stems import STEMS_BYTES, Stems
from offkey.systems.auto import settle, wants_separator
from offkey.systems.choose import trains_behind_separator
from offkey.systems.config import SystemConfig, load_preset
from offkey.systems.discriminative import train_discriminative
from offkey.systems.lessons import Lessons, Outcome, label_clips
from offkey.systems.members import member_systems
from offkey.systems.network import check_encoder
from offkey.systems.reconstructive import train_reconstructive
from offkey.systems.retrieval import encoder_facts, frozen_network, settle_parts
from offkey.training.checkpoint import forget
from offkey.training.distributed import leads
from offkey.types import ClipMeta, Condition, Content, OffkeyError, Split
from offkey.views import SHARED

__all__ = ["FitError", "fit"]

SMALLEST_REFERENCE = 2
_BATCH = 16


class FitError(OffkeyError):
    """A detector cannot be fitted from what was given."""


def fit(
    source: str | Path | Source,
    system: str | Path | SystemConfig = "auto",
    *,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    machines: Sequence[str] = (),
    workers: int = 2,
    overwrite: bool = False,
    progress: Progress | None = None,
    failures: list[Failure] | None = None,
    false_alarms: str | FalseAlarms | None = None,
    clip_every: float | None = None,
    groups: Mapping[str, str] | None = None,
) -> Detector:
    """Learn a detector from normal recordings.

    `source`: a folder of recordings, or the root of a DCASE data set; only its normal training clips (and, where
    the system asks for them, its supplemental ones) are heard. `system`: the name of a preset, the path of a TOML
    file, or settings; of an ensemble each member is fitted, and an `Ensemble` returned. `overrides`: `KEY=VALUE` texts.
    `out`: where the detector is saved; without it nothing stays on disk. `machines`: only these. Clips that cannot be
    read are left out and appended to `failures`.

    `false_alarms`: the rate that a threshold is set for, a machine: a share of clips ("5%", 0.05) or a frequency
    ("1/week") where a clip comes every `clip_every` seconds (default: back to back, as long as the median normal
    clip). It stands above the setting `calibration.false_alarm_rate`.

    `groups` (file -> recording session): which normal clips were cut from one recording. Whole recordings are then left
    out together when normal scores are found and when clips are held out of training, and the rate is promised for
    clips of new recordings. Without it every clip counts as a recording by itself, and the rate of clips that were cut
    from few recordings may be far above the one asked for.

    A killed run, started again with the same arguments, goes on where it stopped and ends with the same weights.

    Raises FitError where nothing usable is left or all is of one recording, SessionError for a clip that `groups` does
    not tell of, SettingsError for settings that do not exist, DetectorError where `out` holds another detector
    (`overwrite` replaces it), and OSError, before anything is learnt, where `out` cannot be written into.
    """
    progress = progress or Quiet()
    failures = failures if failures is not None else []
    config = system if isinstance(system, SystemConfig) else load_preset(system, overrides)
    if seed is not None:
        config = config.model_copy(update={"seed": seed})
    wanted = FalseAlarms.parse(false_alarms) if isinstance(false_alarms, str) else false_alarms
    source = source if isinstance(source, Source) else open_source(Path(source))
    clips, extra = _training_clips(source, machines)
    clips = with_sessions(clips, groups) if groups is not None else clips
    again = {
        "seed": None, "machines": machines, "workers": workers, "overwrite": overwrite, "progress": progress,
        "failures": failures, "false_alarms": false_alarms, "clip_every": clip_every, "groups": groups,
    }  # fmt: skip
    place = None if out is None else Path(out)
    separate, about_surroundings = wants_separator(config, clips, extra)
    reasons = [about_surroundings] if about_surroundings else []
    for reason in reasons:
        progress.say(reason)
    if not separate:
        return _learn(source, config, clips, extra, place, wanted, reasons, again)
    with tempfile.TemporaryDirectory() as scratch:
        fingerprint = clips_fingerprint(clips + extra) if config.separation.folder else ""
        config = _with_separator(source, config, Path(scratch) if place is None else place, fingerprint, again)
        return _learn(source, config, clips, extra, place, wanted, reasons, again)


def _learn(
    source: Source,
    config: SystemConfig,
    clips: list[ClipMeta],
    extra: list[ClipMeta],
    out: Path | None,
    wanted: FalseAlarms | None,
    why: Sequence[str],
    again: Mapping[str, Any],
) -> Detector:
    """Fit a system for which it is settled what its clips are heard through; `why` joins its reasons.

    `again` are the arguments of `fit`, as members of an ensemble get them.
    """
    progress, failures, workers, clip_every = (again[key] for key in ("progress", "failures", "workers", "clip_every"))
    settled = config.separation.model_copy(update={"fit": "never", "folder": ""})
    if config.separation != settled:  # members of an ensemble are not asked again
        config = config.model_copy(update={"separation": settled})
    front_end, separator = _separators(config)
    separated = _separator_facts(config)  # a damaged record ends this before minutes of training, not after
    asked: dict[str, Any] = {"settings": config.model_dump(mode="json"), "clips": clips_fingerprint(clips + extra)}
    heard_through = _fingerprints(front_end, separator)
    if config.kind == "ensemble":  # members may name others in settings of their own
        own = [mark for each in member_systems(config).values() for mark in _fingerprints(*_separators(each))]
        heard_through += [mark for mark in dict.fromkeys(own) if mark not in heard_through]
    if any(heard_through):  # a path may hold other weights than last time
        asked["separators"] = heard_through
    if wanted is not None:
        asked["false_alarms"] = [wanted.share, wanted.per_second, clip_every]
    if out is not None:
        finished = _finished(out, asked, again["overwrite"])
        if finished is not None:
            forget(out / "training")  # of a run that was killed right after it had saved
            progress.say(f"{out} already holds this detector; nothing to do")
            return finished
        check_folder(out)

    if config.kind == "ensemble":
        return _fit_members(source, config, out, asked, why, again, wanted)
    check_encoder(config)  # before minutes of reading
    stem_cache = ArrayCache(default_cache_dir() / "stems", STEMS_BYTES)
    reader = ClipReader(config.audio, stem_cache if front_end else ArrayCache(default_cache_dir()), front_end)
    # no more than a look at clips that nothing listens to: to separate them takes far longer than to decode them
    looks = reader if trains_behind_separator(config) else ClipReader(config.audio, ArrayCache(default_cache_dir()))
    lengths: dict[Path, float] = {}
    clips, extra = (
        _readable(clips, reader, workers, progress, failures, lengths),
        _readable(extra, looks, workers, Quiet(), failures, {}),
    )
    _enough(clips, source)
    _several_recordings(clips)
    if wanted is not None:
        config = _with_rate(config, clips, wanted, clip_every, lengths)
    config, chosen = settle(config, clips, extra)
    for reason in chosen:
        progress.say(reason)
    reasons = [*why, *chosen]
    if config.kind == "ensemble":
        return _fit_members(source, config, out, asked, reasons, again, wanted)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out if out is not None else scratch)
        outcomes: dict[str, Outcome] = {}
        labels = None
        if config.kind != "training-free":
            heard = clips + (extra if config.labels.supplemental else [])
            labels = label_clips(heard, config, reader, workers)
            plan = Lessons(
                heard,
                labels,
                config,
                reader,
                workers,
                None if separator is None else Stems(separator, config.audio, stem_cache),
                extra,
            )
            outcomes = _train(plan, folder / "training", progress)
        networks: dict[str, Any] = {name: outcome.network for name, outcome in outcomes.items()}
        frozen = frozen_network(config)
        if frozen is not None:
            networks[SHARED] = frozen
        config = settle_parts(config, frozen)
        detector = assemble(
            clips,
            config,
            networks,
            labels,
            frozenset[Path]().union(*(outcome.held_out for outcome in outcomes.values())),
            reader,
            workers=workers,
            progress=progress,
            failures=failures,
        )
        if wanted is not None:
            detector.machines, told = with_rate(detector.machines, wanted, clip_every)
            for sentence in told:
                progress.say(sentence)
        detector.front_end = front_end
        detector.reasons = tuple(reasons)
        detector.facts |= {
            "asked": asked,
            "training": _training_facts(outcomes),
            "source": source.root.name,
            "kind": source.kind,
        }
        if frozen is not None:
            detector.facts["encoder"] = encoder_facts(frozen)
        detector.facts |= separated
        if out is not None and leads():
            detector.save(out)
            forget(out / "training")
    return detector


def _fit_members(
    source: Source,
    config: SystemConfig,
    out: Path | None,
    asked: Mapping[str, Any],
    reasons: Sequence[str],
    again: Mapping[str, Any],
    wanted: FalseAlarms | None,
) -> Ensemble:
    """Fit each member of an ensemble (into `out`/members/NAME; one that is finished is not fitted again), and blend."""
    systems, failures, separated = member_systems(config), again["failures"], _separator_facts(config)
    for settings in systems.values():  # before minutes of training the first
        check_encoder(settings)
    members = {}
    for name, settings in systems.items():
        again["progress"].say(f"member {name}: {settings.about or settings.system}")
        place, bad = None if out is None else out / MEMBERS / name, list[Failure]()
        members[name] = fit(source, settings, out=place, **{**again, "failures": bad})
        known = {failure.path for failure in failures}
        failures += [failure for failure in bad if failure.path not in known]
    ensemble = Ensemble.of(members, config=config)
    if wanted is not None:
        ensemble.machines = with_rate(ensemble.machines, wanted, again["clip_every"])[0]
    warnings = [(name, known.calibration.warning()) for name, known in ensemble.machines.items()]
    for remark in (*ensemble.reasons, *(f"{name}: {warning}" for name, warning in warnings if warning)):
        again["progress"].say(remark)
    ensemble.reasons = (*reasons, *ensemble.reasons)
    ensemble.facts |= {"asked": asked, "source": source.root.name, "kind": source.kind} | separated
    if out is not None and leads():
        ensemble.save(out, members=False)
    return ensemble


def _with_separator(
    source: Source, config: SystemConfig, out: Path, fingerprint: str, again: Mapping[str, Any]
) -> SystemConfig:
    """Fit a separator into `out`/separator, or find it where others left it; the settings of who hears through it.

    `fingerprint` stands for the clips, where `separation.folder` names a place that is shared.
    """
    from offkey.separation.fitting import fit_separator
    from offkey.separation.recipe import SeparationRecipe

    recipe, channel, shared = SeparationRecipe(seed=config.seed), config.audio.channel, config.separation.folder
    place = out / FITTED
    if shared:
        mark = hashlib.sha256(json.dumps([recipe.model_dump(mode="json"), channel, fingerprint]).encode()).hexdigest()
        place = Path(shared).expanduser() / f"seed{config.seed}-{mark[:12]}"
    if again["overwrite"]:
        _clear(out)
    elif not shared and (out / MANIFEST).is_file() and not (place / MANIFEST).is_file():
        raise DetectorError(
            f"{out} holds a detector without a separator of its own beside it ({place}); choose another --out, or "
            "--overwrite it"
        )
    keys = ("machines", "workers", "progress")
    # clips that cannot be read are noted when the detector is fitted
    passed = {key: again[key] for key in keys} | {"overwrite": again["overwrite"] and not shared}
    fit_separator(source, place, recipe, channel=channel, failures=[], **passed)
    told = config.separation.model_copy(update={"front_end": str(place), "fit": "never"})
    return config.model_copy(update={"separation": told})


def _separators(config: SystemConfig) -> tuple[FrontEnd | None, Any]:
    """The front end and the separator of `augmentation.remix`, None where the settings name none."""
    told = config.separation
    front_end = FrontEnd.load(Path(told.front_end), told.keep) if told.front_end else None
    if not config.augmentation.remix.enabled:
        return front_end, None
    from offkey.separation.separator import Separator

    return front_end, Separator.load(Path(told.model))


def _fingerprints(front_end: FrontEnd | None, separator: Any) -> list[str]:
    return [front_end.fingerprint if front_end else "", separator.fingerprint() if separator is not None else ""]


def _separator_facts(config: SystemConfig) -> dict[str, Any]:
    """How the separator that clips are heard through was trained, as far as its folder tells."""
    from offkey.separation.fitting import training_told

    told = training_told(Path(config.separation.front_end)) if config.separation.front_end else None
    return {} if told is None else {"separator": told}


def _train(lessons: Lessons, folder: Path, progress: Progress) -> dict[str, Outcome]:
    """The trained network that all machines share, or one for each; checkpoints lie in `folder`, or a folder in it."""
    teach = train_discriminative if lessons.config.kind == "discriminative" else train_reconstructive
    if lessons.config.networks == "shared":
        return {SHARED: teach(lessons, folder, progress)}
    outcomes = {}
    for name, members in machine_groups(lessons.clips).items():
        progress.say(f"the network of {name}")
        mine = [lessons.clips[place] for place in members]
        labels = label_clips(mine, lessons.config, lessons.reader, lessons.workers)
        own = {clip.path for clip in mine}
        others = [clip for clip in lessons.clips if clip.path not in own and clip.split is Split.TRAIN]
        outcomes[name] = teach(
            replace(lessons, clips=mine, labels=labels, others=others), folder / name.replace("/", "_"), progress
        )
    return outcomes


def _training_facts(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """What the card tells of training; numbers of several networks are added up, and each stands by itself as well."""
    told = {name: outcome.facts for name, outcome in outcomes.items()}
    if SHARED in told or not told:
        return told.get(SHARED, {})
    first = next(iter(told.values()))
    total: dict[str, Any] = {
        key: sum(facts[key] for facts in told.values()) for key in ("clips", "held_out", "parameters", "learnt")
    }
    total |= {key: [entry for facts in told.values() for entry in facts[key]] for key in ("classes", "held_out_clips")}
    total |= {key: first[key] for key in ("encoder",) if key in first}
    return total | {"machines": told}


def _training_clips(source: Source, machines: Sequence[str]) -> tuple[list[ClipMeta], list[ClipMeta]]:
    """Normal training clips, and supplemental ones (the machine alone, noise alone)."""
    known = source.machines()
    for name in machines:
        if name not in known:
            raise FitError(f"{source.root} has no machine {name!r}; it has {', '.join(known)}")
    chosen = [clip for clip in source.clips if not machines or clip.machine in machines]
    train = [clip for clip in chosen if clip.split is Split.TRAIN and clip.content is Content.MIXTURE]
    extra = [clip for clip in chosen if clip.split is Split.SUPPLEMENTAL]
    faulty = [clip for clip in train if clip.condition is Condition.ANOMALY]
    if faulty:
        raise FitError(
            f"{faulty[0].path} is known to be faulty, as are {len(faulty) - 1} more of the training clips; a detector "
            "learns from normal recordings only: leave them out"
        )
    if not train:
        raise FitError(
            f"{source.root} has no training clips: put normal recordings into it (or into its train/ folder); "
            f"`offkey data check {source.root}` tells what was found"
        )
    return train, extra


def _with_rate(
    config: SystemConfig,
    clips: Sequence[ClipMeta],
    wanted: FalseAlarms,
    clip_every: float | None,
    lengths: Mapping[Path, float],
) -> SystemConfig:
    """The settings with the lowest rate that any machine asks for: so many clips are held out of training."""
    medians = [
        float(np.median([lengths[clips[place].path] for place in members]))
        for members in machine_groups(clips).values()
    ]
    rate = min(wanted.share_of(clip_every or seconds) for seconds in medians)
    calibration = config.calibration.model_copy(update={"false_alarm_rate": rate})
    return config.model_copy(update={"calibration": calibration})


def _readable(
    clips: list[ClipMeta],
    reader: ClipReader,
    workers: int,
    progress: Progress,
    failures: list[Failure],
    lengths: dict[Path, float],
) -> list[ClipMeta]:
    """The clips that decode; the others go to `failures`. One pass now, so that no epoch stumbles later.

    `lengths` receives the seconds of each.
    """
    bad: list[Failure] = []
    order = [list(range(at, min(at + _BATCH, len(clips)))) for at in range(0, len(clips), _BATCH)]
    progress.start("reading", len(clips))
    for batch in load_batches(clips, order, reader, None, workers=workers, failures=bad):
        for place, length in zip(batch.place.tolist(), batch.lengths.tolist(), strict=True):
            lengths[clips[place].path] = length / reader.config.rate
        progress.step(int(batch.place.max()) + 1)
    failures += bad
    broken = {failure.path for failure in bad}
    return [clip for clip in clips if clip.path not in broken]


def _enough(clips: Sequence[ClipMeta], source: Source) -> None:
    counts = Counter(clip.machine for clip in clips)
    for machine in source.machines():
        if 0 < counts[machine] < SMALLEST_REFERENCE:
            raise FitError(
                f"{machine}: {counts[machine]} usable normal clip is too few, at least {SMALLEST_REFERENCE} are "
                "needed, and 20 or more to speak of a threshold"
            )
    if not counts:
        raise FitError(f"{source.root}: no training clip could be read; `offkey data check {source.root}` says why")


def _several_recordings(clips: Sequence[ClipMeta]) -> None:
    for name, members in machine_groups(clips).items():
        apart = sessions_apart([clips[place].session for place in members])
        if apart is not None and len(set(apart)) == 1:
            raise FitError(
                f"{name}: all {len(members)} normal clips were cut from one recording ({clips[members[0]].session}) by "
                "the groups, so nothing tells how clips of another one would score: record one more at least"
            )


def _finished(out: Path, asked: dict[str, Any], overwrite: bool) -> Detector | None:
    if overwrite:
        _clear(out)
        return None
    if not (out / MANIFEST).is_file():
        return None
    detector = Detector.load(out)
    if _less_places(detector.facts.get("asked")) != _less_places(asked):
        raise DetectorError(
            f"{out} holds a detector that was fitted with other settings or clips; "
            "choose another --out, or --overwrite it"
        )
    return detector


def _less_places(asked: Any) -> Any:
    """What was asked for, less where separators lie: a folder may be moved, and fingerprints tell what is in it."""
    told = json.loads(json.dumps(asked))
    separation = (told or {}).get("settings", {}).get("separation", {})
    for name in ("front_end", "model", "folder"):
        separation.pop(name, None)
    return told


def _clear(out: Path) -> None:
    """Forget the detector in a folder, and what a killed run has left of one."""
    if (out / MANIFEST).is_file():  # so the folder is ours, and so are these
        for old in ("training", "evaluation", MEMBERS):
            shutil.rmtree(out / old, ignore_errors=True)
        (out / MANIFEST).unlink()
    forget(out / "training")
