"""The clips of an experiment: which are needed, lacking, or were there at an earlier start; links to exactly these."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from offkey.data.dcase import FIRST_TABLES, SPLITS
from offkey.data.source import NoRecordings, open_source
from offkey.evaluation.protocol import ScoredClip, lacks
from offkey.reproducing.plan import Plan, Unit, unit_of
from offkey.types import ClipMeta, Condition, Content, Split

__all__ = ["find_clips", "lacking", "lay_out", "mixtures", "read_listing", "without_table"]


def find_clips(plan: Plan) -> list[ClipMeta]:
    """The clips in `Plan.folder` that are needed: all of what is judged, training clips of what joins.

    Empty where nothing is there.
    """
    try:
        clips = open_source(plan.folder()).clips
    except NoRecordings:
        return []
    own, others = plan.units, plan.joining
    return [c for c in clips if unit_of(c) in own or (unit_of(c) in others and c.split is not Split.TEST)]


def mixtures(clips: Iterable[ClipMeta], split: Split) -> list[ClipMeta]:
    """The clips of a split in which the machine sounds in its surroundings."""
    return [clip for clip in clips if clip.split is split and clip.content is Content.MIXTURE]


def lacking(plan: Plan, clips: Sequence[ClipMeta]) -> list[str]:
    """Sentences on what the plan needs and the clips do not hold: clips, and conditions that the year's rules ask for.

    Conditions are asked for in a development set whose truth is not given elsewhere, and wherever some are known.
    """
    train = {unit_of(clip) for clip in mixtures(clips, Split.TRAIN)}
    tests: dict[Unit, list[ClipMeta]] = {}
    for clip in mixtures(clips, Split.TEST):
        tests.setdefault(unit_of(clip), []).append(clip)
    found = []
    for machine in plan.judged:
        units = [unit for unit in plan.experiment.units if unit.machine == machine]
        there = [unit for unit in units if unit in train or unit in tests]
        for unit in there or units[:1]:
            name = plan.experiment.called(unit) if there else machine
            found += [
                f"{name} has no {what} clips"
                for what, known in (("training", train), ("test", tests.keys()))
                if unit not in known
            ]
    if plan.additional and not train & plan.joining:
        found.append("there are no training clips of the year's other part, which --additional asks for")
    if not found:
        hidden = plan.experiment.part == "eval" or plan.truth is not None
        told = [own for own in tests.values() if not hidden or any(c.condition is not Condition.UNKNOWN for c in own)]
        scored = [ScoredClip(c.path.name, *unit_of(c), c.domain, c.condition, 0.0) for own in told for c in own]
        rules = plan.experiment.protocol
        found += [
            f"{name} cannot be judged by the rules of {rules.name}: {why}" for name, why in lacks(scored, rules).items()
        ]
    return found


def without_table(plan: Plan, clips: Sequence[ClipMeta]) -> list[str]:
    """Judged machines or sections without a table of attributes beside their clips, in a year that has such tables."""
    if plan.experiment.year < FIRST_TABLES:
        return []
    homes = {(unit_of(clip), _home(clip)) for clip in mixtures(clips, Split.TRAIN) if unit_of(clip) in plan.units}
    bare = {unit for unit, home in homes if not any(home.glob(f"attribute*_{unit.section}*.csv"))}
    return [plan.experiment.called(unit) for unit in sorted(bare)]


def read_listing(path: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every clip in a list that an earlier start wrote; empty where there is none."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["file"]: (int(row["bytes"]), row["sha256"]) for row in csv.DictReader(file)}


def lay_out(view: Path, clips: Sequence[ClipMeta]) -> None:
    """Make `view` a data set of links to these clips and the attribute tables beside them; whole or not at all."""
    wanted = {f"{clip.machine}/{_shelf(clip)}/{clip.path.name}": clip.path.absolute() for clip in clips}
    for machine, home in {(clip.machine, _home(clip)) for clip in clips}:
        wanted |= {f"{machine}/{table.name}": table.absolute() for table in home.glob("attribute*.csv")}
    if view.is_dir() and {str(p.relative_to(view)) for p in view.glob("*/**/*") if p.is_symlink()} == wanted.keys():
        return
    part = view.with_name(f".{view.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name, target in wanted.items():
        place = part / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    shutil.rmtree(view, ignore_errors=True)
    part.replace(view)


def _shelf(clip: ClipMeta) -> str:
    """The folder of its split, under the year's own name: that of 2021 tells the domain of a test clip."""
    folder = clip.path.parent.name
    return folder if folder.lower() in SPLITS else str(clip.split)


def _home(clip: ClipMeta) -> Path:
    """The folder of its machine, where the tables of attributes lie."""
    folder = clip.path.parent
    return folder.parent if folder.name.lower() in SPLITS else folder
