"""The clips of an experiment: which are needed, lacking, or were there at an earlier start; links to exactly these."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from offkey.data.source import NoRecordings, open_source
from offkey.reproducing.plan import Plan
from offkey.types import ClipMeta, Condition, Content, Split

__all__ = ["find_clips", "lacking", "lay_out", "mixtures", "read_listing"]


def find_clips(plan: Plan) -> list[ClipMeta]:
    """The clips in `Plan.folder` that are needed: all of the judged machines, training clips of the others.

    Empty where nothing is there.
    """
    try:
        clips = open_source(plan.folder()).clips
    except NoRecordings:
        return []
    others = set(plan.experiment.others) if plan.additional else set()
    judged = set(plan.judged)
    return [c for c in clips if c.machine in judged or (c.machine in others and c.split is not Split.TEST)]


def mixtures(clips: Iterable[ClipMeta], split: Split) -> list[ClipMeta]:
    """The clips of a split in which the machine sounds in its surroundings."""
    return [clip for clip in clips if clip.split is split and clip.content is Content.MIXTURE]


def lacking(plan: Plan, clips: Sequence[ClipMeta]) -> list[str]:
    """Sentences on what the plan needs and the clips do not hold."""
    found = []
    train = {clip.machine for clip in mixtures(clips, Split.TRAIN)}
    tests: dict[str, list[ClipMeta]] = {}
    for clip in mixtures(clips, Split.TEST):
        tests.setdefault(clip.machine, []).append(clip)
    for machine in plan.judged:
        if machine not in train:
            found.append(f"{machine} has no training clips")
        if machine not in tests:
            found.append(f"{machine} has no test clips")
    if plan.additional and not train & set(plan.experiment.others):
        found.append("there are no training clips of the year's other machines, which --additional asks for")
    if not found and plan.experiment.part == "dev":
        for machine, own in sorted(tests.items()):
            kinds = {clip.condition for clip in own}
            if not {Condition.NORMAL, Condition.ANOMALY} <= kinds:
                found.append(f"{machine} has test clips of one condition only ({', '.join(sorted(kinds))})")
    return found


def read_listing(path: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every clip in a list that an earlier start wrote; empty where there is none."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["file"]: (int(row["bytes"]), row["sha256"]) for row in csv.DictReader(file)}


def lay_out(view: Path, clips: Sequence[ClipMeta]) -> None:
    """Make `view` a data set of links to these clips and the attribute tables beside them; whole or not at all."""
    wanted = {f"{clip.machine}/{clip.split}/{clip.path.name}": clip.path.absolute() for clip in clips}
    homes = {(clip.machine, clip.path.parent) for clip in clips}
    for machine, folder in homes:
        home = folder if folder.name == machine else folder.parent
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
