"""From recordings to a separator: what the data allows, the training, and the folder that is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from offkey.audio.io import AudioConfig, AudioError
from offkey.data.fingerprint import clips_fingerprint
from offkey.data.loader import ClipReader, Failure
from offkey.data.source import Source, open_source
from offkey.files import check_folder, write_whole
from offkey.manifest import MANIFEST
from offkey.progress import Progress, Quiet
from offkey.separation.mixing import (
    MixtureLessons,
    SupervisedLessons,
    by_machine,
    fixed_lessons,
    lesson_plan,
    teacher_epoch,
)
from offkey.separation.recipe import Mode, SeparationRecipe
from offkey.separation.separator import Separator
from offkey.separation.training import Measured, SeparationTask
from offkey.training.checkpoint import forget
from offkey.training.distributed import leads
from offkey.training.history import TrainingHistory
from offkey.training.loop import train
from offkey.types import Batch, ClipMeta, Condition, Content, OffkeyError, Split

__all__ = ["FittedSeparator", "SeparatorFitError", "choose_mode", "fit_separator", "training_told"]

FACTS = "training.json"
_SMALLEST = 4  # clips of a kind and machine below which none is held out
_HELD_OUT = 33  # purpose of random numbers
Way = Literal["supervised", "mixtures"]


class SeparatorFitError(OffkeyError):
    """A separator cannot be trained from what was given."""


@dataclass(frozen=True)
class FittedSeparator:
    """A trained separator, how it was trained and why so, and what held-out mixtures say of it (None: there were none).

    In mode `supervised` the held-out truth is real. In mode `mixtures` it is a normal clip, which has noise of its own:
    a gain there understates what was learnt, and can only be compared with itself.
    """

    separator: Separator
    mode: Way
    reasons: tuple[str, ...]
    measured: Measured | None
    facts: dict[str, Any] = field(default_factory=dict)


def choose_mode(clips: Sequence[ClipMeta], mode: Mode = "auto") -> tuple[Way, list[str]]:
    """How to train on these clips, with the reasons in words.

    Raises SeparatorFitError where the mode asked for is not possible.
    """
    clean, noise, normal = (by_machine(clips, content) for content in (Content.MACHINE, Content.NOISE, Content.MIXTURE))
    if mode == "mixtures" or (mode == "auto" and not (clean and noise)):
        if not normal:
            raise SeparatorFitError(
                "there are no normal clips to learn separation from, and no pair of clean-machine and noise-only "
                "clips; `offkey data check` tells what was found"
            )
        if mode == "mixtures":
            return "mixtures", ["mixtures, as asked: clips of a machine alone or of noise alone are not heard"]
        missing = "a machine alone" if not clean else "noise alone"
        reasons = [f"mixtures: there are no clips of {missing}, so background is taken to be what is stationary"]
        if noise:
            reasons.append(f"noise-only clips of {', '.join(noise)} stand for background")
        if clean:
            reasons.append(
                f"{sum(map(len, clean.values()))} clips of a machine alone ({', '.join(clean)}) are foregrounds as "
                "they are, in such background"
            )
        return "mixtures", reasons
    if not (clean and noise):
        missing = "of a machine alone" if not clean else "of noise alone"
        raise SeparatorFitError(
            "supervised training needs clips of a machine alone and clips of noise alone, and there are none "
            f"{missing}: add them to supplemental/, or use --mode mixtures"
        )
    reasons = [
        f"supervised: {sum(map(len, clean.values()))} clips of a machine alone ({', '.join(clean)}) and "
        f"{sum(map(len, noise.values()))} of noise alone ({', '.join(noise)})"
    ]
    unheard = [name for name in normal if name not in clean]
    if unheard:
        reasons.append(f"{', '.join(unheard)}: no clean clips, so normal ones with more noise added join later")
    return "supervised", reasons


def fit_separator(
    source: str | Path | Source,
    out: str | Path,
    recipe: SeparationRecipe | None = None,
    *,
    mode: Mode = "auto",
    machines: Sequence[str] = (),
    channel: str = "mean",
    workers: int = 2,
    overwrite: bool = False,
    progress: Progress | None = None,
    failures: list[Failure] | None = None,
) -> FittedSeparator:
    """Train a separator and save it in the folder `out`.

    `source`: a folder of normal recordings, or the root of a DCASE data set. Only its supplemental and its normal
    training clips are heard, never test clips. `machines`: only these. `channel`: that of the recordings, "mean" of
    all or a number from 0. Clips that cannot be read are left out and appended to `failures`. A killed run, started
    again with the same arguments, goes on where it stopped and ends with the same weights.

    Raises SeparatorFitError where there is nothing to learn from, or where `out` holds another separator (`overwrite`
    replaces it), and OSError, before anything is learnt, where `out` cannot be written into.
    """
    recipe, progress, out = recipe or SeparationRecipe(), progress or Quiet(), Path(out)
    failures = failures if failures is not None else []
    source = source if isinstance(source, Source) else open_source(Path(source))
    reader = ClipReader(AudioConfig(rate=recipe.separator.rate, channel=channel))
    clips = _clips(source, machines, mode)
    way, reasons = choose_mode(clips, mode)
    if way == "supervised":
        # the others are not heard: normal clips of a machine that has clean ones would only cost time to read
        has_clean = by_machine(clips, Content.MACHINE)
        clips = [clip for clip in clips if clip.content is not Content.MIXTURE or clip.machine not in has_clean]
    asked = {
        "recipe": recipe.model_dump(mode="json"), "mode": way, "channel": channel, "clips": clips_fingerprint(clips)
    }  # fmt: skip
    finished = _finished(out, asked, overwrite)
    if finished is not None:
        progress.say(f"{out} already holds this separator; nothing to do")
        return finished
    check_folder(out)
    clips = _readable(clips, reader, workers, progress, failures)
    contents = {clip.content for clip in clips}
    needed = {Content.MACHINE, Content.NOISE} if way == "supervised" else {Content.MIXTURE}
    if not needed <= contents:
        raise SeparatorFitError(
            f"{source.root}: too few clips could be read for {way} training; `offkey data check` says why"
        )
    for reason in reasons:
        progress.say(reason)
    learning, waiting = _held_out(clips, recipe)
    lessons = (SupervisedLessons if way == "supervised" else MixtureLessons)(learning, reader, recipe)
    exam: list[Batch] = []
    if waiting and recipe.mixing.held_out:
        judge = (SupervisedLessons if way == "supervised" else MixtureLessons)(waiting, reader, recipe)
        exam = fixed_lessons(judge, recipe, recipe.mixing.held_out)
    with torch.random.fork_rng(devices=[]):  # first weights draw from torch's global state, which is given back
        torch.manual_seed(recipe.seed)
        separator = Separator(recipe.separator)
    task = SeparationTask(separator, recipe, teacher=lessons.needs_teacher)

    def validate(epoch: int) -> Iterator[Batch]:
        task.measured()
        yield from exam  # the loop comes back here after the last batch was judged
        measured = task.measured()
        if measured is not None:
            progress.say(f"epoch {epoch + 1}: {_words(measured)}")

    def plan(epoch: int) -> Any:
        if lessons.needs_teacher and epoch == teacher_epoch(recipe):
            progress.say(f"from epoch {epoch + 1} on, the net's own running mean answers for normal clips")
        return lesson_plan(lessons, recipe, epoch, workers)

    history = train(
        task,
        plan,
        validate if exam else None,
        recipe.training,
        out / "training",
        progress,
        seed=recipe.seed,
        data=json.dumps(asked, sort_keys=True),
    )
    separator.cpu().eval()
    final = _last(history, recipe.mixing.held_out)
    facts = {
        "asked": asked,
        "mode": way,
        "reasons": reasons,
        "held_out": None if final is None else {"before": final.before, "after": final.after, "mixtures": final.clips},
        "held_out_clips": [f"{clip.machine}/{clip.path.name}" for clip in waiting],
        "parameters": sum(weights.numel() for weights in separator.parameters()),
        "history": history.to_dict(),
    }
    if leads():
        separator.save(out)
        write_whole(out / FACTS, json.dumps(facts, indent=1))
        forget(out / "training")
    return FittedSeparator(separator, way, tuple(reasons), final, facts)


def _comparable(asked: dict[str, Any]) -> Any:
    """What was asked for, less what this way of learning passes by (and older folders do not tell)."""
    told = json.loads(json.dumps(asked))
    if told["mode"] == "supervised":
        told["recipe"]["prior"] = told["recipe"]["prior"].get("alone_share")
    return told


def training_told(folder: Path) -> dict[str, Any] | None:
    """What a card should say of how the separator in `folder` was trained; None where nothing is known of it.

    `mode`; `before` and `after`, SI-SNR in dB over `mixtures` held-out ones (None where there were none);
    `seconds` that training took. Raises SeparatorFitError where the record is damaged.
    """
    place = folder / FACTS
    if not place.is_file():  # weights of other people's
        return None
    try:
        facts = json.loads(place.read_text(encoding="utf-8"))
        return {
            "mode": facts["mode"],
            **(facts["held_out"] or {"before": None, "after": None, "mixtures": 0}),
            "seconds": round(sum(epoch["seconds"] for epoch in facts["history"]["epochs"]), 1),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise SeparatorFitError(f"{place} is damaged ({error}); fit the separator again") from error


def _words(measured: Measured) -> str:
    return (
        f"held-out SI-SNR {measured.before:.1f} -> {measured.after:.1f} dB "
        f"({measured.gain:+.1f} dB over {measured.clips} mixtures)"
    )


def _last(history: TrainingHistory, mixtures: int) -> Measured | None:
    """What was measured with the weights that stayed."""
    kept = next((record for record in history.epochs if record.epoch == history.kept_epoch), None)
    if kept is None or "si_snr" not in kept.held_out:
        return None
    return Measured(kept.held_out["si_snr_before"], kept.held_out["si_snr"], mixtures)


def _clips(source: Source, machines: Sequence[str], mode: Mode) -> list[ClipMeta]:
    """Normal training clips and supplemental ones; of known faults nothing is learnt."""
    known = source.machines()
    for name in machines:
        if name not in known:
            raise SeparatorFitError(f"{source.root} has no machine {name!r}; it has {', '.join(known)}")
    chosen = [
        clip
        for clip in source.clips
        if (not machines or clip.machine in machines)
        and (
            (clip.split is Split.TRAIN and clip.content is Content.MIXTURE)
            or (clip.split is Split.SUPPLEMENTAL and mode != "mixtures" and clip.content is not Content.MIXTURE)
        )
    ]
    faulty = [clip for clip in chosen if clip.condition is Condition.ANOMALY]
    if faulty:
        raise SeparatorFitError(
            f"{faulty[0].path} is known to be faulty, as are {len(faulty) - 1} more of the clips to learn from; "
            "leave them out"
        )
    return chosen


def _readable(
    clips: Sequence[ClipMeta], reader: ClipReader, workers: int, progress: Progress, failures: list[Failure]
) -> list[ClipMeta]:
    """The clips that decode; the others go to `failures`."""

    def problem(clip: ClipMeta) -> str | None:
        try:
            reader.read(clip.path)
        except AudioError as error:
            return error.problem
        return None

    good = []
    progress.start("reading", len(clips))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for number, (clip, found) in enumerate(zip(clips, pool.map(problem, clips), strict=True)):
            if found is None:
                good.append(clip)
            else:
                failures.append(Failure(clip.path, found))
            progress.step(number + 1)
    return good


def _held_out(clips: Sequence[ClipMeta], recipe: SeparationRecipe) -> tuple[list[ClipMeta], list[ClipMeta]]:
    """Clips to learn from and clips to be examined by: a share of each kind of each machine that has some to spare."""
    share = recipe.training.held_out_share
    groups: dict[tuple[str, str], list[int]] = {}
    for place, clip in enumerate(clips):
        groups.setdefault((clip.machine, clip.content.value), []).append(place)
    rng = np.random.default_rng([recipe.seed, _HELD_OUT])
    held: set[int] = set()
    for _, members in sorted(groups.items()):
        order = rng.permutation(members)
        if share > 0 and len(members) >= _SMALLEST:
            held |= {int(place) for place in order[: max(1, round(share * len(members)))]}
    learning = [clip for place, clip in enumerate(clips) if place not in held]
    waiting = [clip for place, clip in enumerate(clips) if place in held]
    known = {Content.MACHINE, Content.NOISE}
    needed = known if known <= {clip.content for clip in clips} else {Content.MIXTURE}
    enough = needed <= {clip.content for clip in waiting}
    return (learning, waiting) if enough else (list(clips), [])


def _finished(out: Path, asked: dict[str, Any], overwrite: bool) -> FittedSeparator | None:
    """The separator that `out` holds already, if it is the one asked for."""
    facts_file = out / FACTS
    if overwrite:
        if facts_file.is_file():  # so the folder is ours
            shutil.rmtree(out / "training", ignore_errors=True)
            facts_file.unlink()
        (out / MANIFEST).unlink(missing_ok=True)  # else a run that is killed could not go on
        forget(out / "training")
        return None
    if not facts_file.is_file():
        if (out / MANIFEST).is_file():
            raise SeparatorFitError(f"{out} holds another model; choose another --out, or --overwrite it")
        return None
    try:
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        same = _comparable(facts["asked"]) == _comparable(asked)
    except (ValueError, KeyError, TypeError) as error:
        raise SeparatorFitError(
            f"{facts_file} is damaged ({error}); choose another --out, or --overwrite it"
        ) from error
    if not same:
        raise SeparatorFitError(
            f"{out} holds a separator that was trained with other settings or clips; choose another --out, or "
            "--overwrite it"
        )
    told = facts["held_out"]
    measured = None if told is None else Measured(told["before"], told["after"], told["mixtures"])
    return FittedSeparator(Separator.load(out), facts["mode"], tuple(facts["reasons"]), measured, facts)
