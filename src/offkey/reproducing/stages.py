"""The way from data to tables, stage by stage; killed at any point and started again, it ends with the same result.

The run folder:

    plan.json               what was asked for, and every run that was
    stages/<stage>.json     what each stage found
    data/own, data/joined   links to exactly the clips that systems may see
    data/files.csv          every clip with size and SHA-256
    runs/<name>-seed<n>/    a run of `offkey.benchmarking`: detector, per-clip scores, times
    metrics/<run>.json      the official metric, computed anew from the per-clip scores
    table.md, .csv, .html   ours beside what was published
    audit.json              versions, hardware, settings, seeds, hashes

`STAGES` is data: a stage is a name and a function.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offkey.assessment import COLUMNS, FOLDER
from offkey.benchmarking import Contestant, benchmark
from offkey.data.machines import machine_of
from offkey.data.truth import find_truth
from offkey.downloading import one_at_a_time
from offkey.encoders import encoder_class
from offkey.encoders.weights import WeightsError, at_hand, fetch, find, published
from offkey.evaluation.protocol import EvaluationError, ScoredClip, evaluate
from offkey.evaluation.result import Result
from offkey.evaluation.submission import Truth, read_truth
from offkey.evaluation.tables import Run
from offkey.files import sha256, sweep, write_whole
from offkey.progress import Progress
from offkey.reproducing.clips import find_clips, lacking, lay_out, read_listing, without_table
from offkey.reproducing.plan import Plan, ReproduceError, experiment, unit_of
from offkey.reproducing.provenance import commit, hardware, versions
from offkey.reproducing.tables import Comparison, compare, remarks_of
from offkey.separation.fitting import fit_separator
from offkey.separation.recipe import SeparationRecipe
from offkey.types import Condition, Domain

__all__ = ["PLAN", "STAGES", "Fetch", "FinishedRun", "Stage", "Work", "finished_runs", "reproduce", "year_of"]

PLAN = "plan.json"
RUNS = "runs"

Fetch = Callable[[Plan], None]
"""Brings the data of a plan below its root, or raises an OffkeyError."""

Facts = dict[str, Any]


@dataclass
class Work:
    """What the stages share. `fetch` None means that nothing is downloaded; `facts` by the name of a finished stage.

    `failures` are sentences on runs that did not end well; the others go on.
    """

    plan: Plan
    progress: Progress
    fetch: Fetch | None = None
    failures: list[str] = field(default_factory=list)
    facts: dict[str, Facts] = field(default_factory=dict)
    comparison: Comparison | None = None

    def path(self, *parts: str) -> Path:
        """A place in the run folder."""
        return self.plan.out.joinpath(*parts)

    def settings(self) -> list[str]:
        """Settings of every system."""
        return self.plan.common()


@dataclass(frozen=True)
class Stage:
    """One stage: `run` does what is left of it and returns facts."""

    name: str
    about: str
    run: Callable[[Work], Facts]


@dataclass(frozen=True)
class FinishedRun:
    """A run whose detector is fitted and whose test clips are scored."""

    name: str
    seed: int
    folder: Path

    @property
    def title(self) -> str:
        """How its files are called."""
        return f"{self.name}-seed{self.seed}"


def reproduce(work: Work, stages: Sequence[Stage] | None = None) -> Comparison | None:
    """Go through the stages; the comparison, None where no run could be judged (`work.failures` and `say` tell why).

    Raises ReproduceError where data is missing or does not fit, or the run folder stands for something else;
    WeightsError where weights are missing.
    """
    work.plan.configs()  # a setting that does not exist is told before anything is written
    work.plan.out.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(work.plan.out / PLAN, work.progress):
        _claim(work.plan)
        for stage in STAGES if stages is None else stages:
            work.progress.say(f"{stage.name}: {stage.about}")
            work.facts[stage.name] = stage.run(work)
            _write_json(work.path("stages", f"{stage.name}.json"), work.facts[stage.name])
        sweep(work.plan.out)
    return work.comparison


def finished_runs(out: Path) -> list[FinishedRun]:
    """Every finished run of a run folder, in the order in which they were asked for."""
    kept = _read_json(out / PLAN)
    runs = [FinishedRun(run["name"], int(run["seed"]), out / run["folder"]) for run in kept.get("runs", [])]
    return [run for run in runs if (run.folder / "run.json").is_file()]


def year_of(out: Path) -> int | None:
    """The year whose data a run folder was made of; None where there is no run folder."""
    asked = _read_json(out / PLAN).get("asked")
    return None if asked is None else experiment(asked["experiment"]).year


def _claim(plan: Plan) -> None:
    """Note what the run folder stands for, or refuse."""
    path = plan.out / PLAN
    if plan.out.resolve().is_relative_to(plan.folder().resolve()):
        raise ReproduceError(
            f"{plan.out} lies among the data, where its links would count as clips; choose another --out"
        )
    kept = _read_json(path)
    asked = plan.asked()
    contestants = {c.name: {"system": c.system, "settings": list(c.overrides), "additional": plan.joins(c.name)}
                   for c in plan.contestants}  # fmt: skip
    old: Facts = kept.get("asked", asked)
    for key, value in asked.items():
        if old.get(key) != value:
            raise ReproduceError(
                f"{plan.out} was begun with {key} {old.get(key)!r}, not {value!r}; choose another --out, or ask as then"
            )
    known: Facts = kept.get("contestants", {})
    for name, told in contestants.items():
        if known.get(name, told) != told:
            raise ReproduceError(f"{plan.out} was begun with another {name}: {known[name]}; choose another --out")
    runs = [
        {"name": c.name, "seed": seed, "folder": str(_folder(plan, c, seed).relative_to(plan.out))}
        for c in plan.contestants
        for seed in plan.seeds
    ]
    runs = [*kept.get("runs", []), *(run for run in runs if run not in kept.get("runs", []))]
    new = {"asked": asked, "contestants": known | contestants, "runs": runs}
    if new != kept:
        _write_json(path, new)


def _folder(plan: Plan, contestant: Contestant, seed: int) -> Path:
    group = RUNS if not plan.joins(contestant.name) else f"{RUNS}-joined"
    return plan.out / group / f"{contestant.name}-seed{seed}"


# ---- data


def _data(work: Work) -> Facts:
    """Look whether everything is there; hash it; lay out what systems may see."""
    plan = work.plan
    clips = find_clips(plan)
    missing = lacking(plan, clips)
    if missing and work.fetch is not None:
        work.progress.say(f"{missing[0]}: fetching")
        work.fetch(plan)
        clips = find_clips(plan)
        missing = lacking(plan, clips)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ReproduceError(
            f"{plan.root}: {missing[0]}{more}. Get the data with\n    {plan.fetch_command()}\n"
            "or name with --root the folder that holds it"
        )
    listing = work.path("data", "files.csv")
    sizes = {str(clip.path.relative_to(plan.root)): clip.path.stat().st_size for clip in clips}
    rows = read_listing(listing)
    old = {name: size for name, (size, _) in rows.items()}
    changed = sorted(name for name in old.keys() & sizes.keys() if old[name] != sizes[name])
    gone = sorted(old.keys() - sizes.keys())
    if changed or gone:
        first = (changed or gone)[0]
        raise ReproduceError(
            f"{plan.root / first} {'has changed' if changed else 'is gone'} since this run was begun; numbers of "
            "different data must not be mixed: put it back, or choose another --out"
        )
    if old.keys() != sizes.keys():
        work.progress.start("hashing clips", len(sizes))
        for place, (name, size) in enumerate(sorted(sizes.items())):
            if name not in rows:
                rows[name] = (size, sha256(plan.root / name))
            work.progress.step(place + 1)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "bytes", "sha256"])
        writer.writerows((name, *rows[name]) for name in sorted(rows))
        write_whole(listing, text.getvalue())
    own = plan.units
    lay_out(work.path("data", "own"), [clip for clip in clips if unit_of(clip) in own])
    if plan.additional:
        lay_out(work.path("data", "joined"), clips)
    bare = without_table(plan, clips)
    if bare:
        work.progress.say(f"no table of attributes beside {', '.join(bare)}: file names alone tell settings")
    found = {"files": len(sizes), "bytes": sum(sizes.values()), "list_sha256": sha256(listing)}
    return found | {"without_table": bare}


# ---- weights, separator


def _weights(work: Work) -> Facts:
    """Find (or fetch) the encoders' weights before hours of work; their hashes."""
    found: Facts = {}
    for name, config in work.plan.configs().items():
        if config.encoder.name == "none":
            continue
        asked = config.encoder.weights or encoder_class(config.encoder.name).usual_weights
        try:
            path = find(asked)
        except WeightsError:
            if work.fetch is None:
                raise
            entry = published(str(asked))
            work.progress.say(f"{entry.name}: licence {entry.licence} ({entry.source})")
            path = at_hand(entry) or fetch(entry.name, progress=work.progress)
        found[name] = {"encoder": config.encoder.name, "weights": str(asked), "file": str(path)}
    hashes = {facts["file"]: sha256(Path(facts["file"])) for facts in found.values()}
    return {"systems": {name: facts | {"sha256": hashes[facts["file"]]} for name, facts in found.items()}}


def _separator(work: Work) -> Facts:
    """Learn to take machine and surroundings apart, if training clips are to be recombined."""
    plan = work.plan
    if not plan.remix:
        return {"fitted": False}
    fitted = fit_separator(
        work.path("data", "joined" if plan.additional else "own"),
        plan.separator,
        SeparationRecipe.of(plan.remix).model_copy(update={"seed": plan.seeds[0]}),
        workers=plan.workers,
        progress=work.progress,
    )
    told = {"fitted": True, "folder": str(plan.separator), "mode": fitted.mode, "reasons": list(fitted.reasons)}
    return told | {"fingerprint": fitted.separator.fingerprint()}


# ---- runs


def _runs(work: Work) -> Facts:
    """Fit and score every system with every seed, a process each."""
    plan = work.plan
    for view, group, joined in (("own", RUNS, False), ("joined", f"{RUNS}-joined", True)):
        contestants = [entry for entry in plan.contestants if plan.joins(entry.name) == joined]
        if not contestants:
            continue
        failures: list[str] = []
        benchmark(
            work.path("data", view).absolute(), contestants, plan.seeds, work.path(group), overrides=work.settings(),
            workers=plan.workers, progress=work.progress, failures=failures,
        )  # fmt: skip
        work.failures += [text for text in failures if not _only_hidden(work.path(group), text)]
    finished = finished_runs(plan.out)
    if not finished:
        raise ReproduceError("no run ended well; the first said: " + (work.failures or ["nothing"])[0])
    return {"finished": [run.title for run in finished], "failures": list(work.failures)}


def _only_hidden(group: Path, failure: str) -> bool:
    """Whether a run was done, and the benchmark only misses the conditions of the test clips."""
    folder = group / failure.partition(":")[0]
    return (folder / "run.json").is_file() and "there is nothing to compare" in failure


# ---- metric


def _metric(work: Work) -> Facts:
    """The official metric of every run, from its per-clip scores and the truth."""
    plan = work.plan
    told = _truth_place(plan)
    truth = read_truth(told) if told is not None else None
    protocol = plan.experiment.protocol
    hashes, silent = {}, ""
    finished = finished_runs(plan.out)
    work.progress.start("metric", len(finished))
    for place, run in enumerate(finished):
        scores = run.folder / FOLDER / "scores.csv"
        hashes[run.title] = sha256(scores)
        key = {"scores": hashes[run.title], "truth": _truth_hash(truth), "protocol": protocol.name,
               "bootstrap": plan.bootstrap, "machines": list(plan.judged)}  # fmt: skip
        target = work.path("metrics", f"{run.title}.json")
        if _read_json(target).get("of") != key:
            try:
                result = _judge(scores, plan, truth)
            except EvaluationError as error:
                target.unlink(missing_ok=True)
                silent = str(error)
                if truth is not None or plan.experiment.part == "dev":
                    source = "" if told is None else f" by {told}"
                    raise ReproduceError(
                        f"{run.title} has no metric{source}: {silent}. Its scores are kept in {scores}"
                    ) from None
            else:
                _write_json(target, {"of": key, "result": result.to_dict()})
        work.progress.step(place + 1, run.title)
    if silent:
        work.progress.say(
            f"no metric: {silent}. The scores are kept; get the truth (offkey data truth dcase{plan.experiment.year} "
            f"--root {plan.root}, or --truth FILE) and give the same command again"
        )
    return {"protocol": protocol.name, "scores_sha256": hashes, "truth": None if told is None else str(told),
            "truth_sha256": _truth_hash(truth)}  # fmt: skip


def _truth_place(plan: Plan) -> Path | None:
    """The truth that was named, else what `offkey data truth` has put beside an evaluation set."""
    if plan.truth is not None or plan.experiment.part == "dev":
        return plan.truth
    beside = find_truth(plan.root, f"dcase{plan.experiment.year}")
    return None if beside is None else beside.folder


def _truth_hash(truth: Truth | None) -> str | None:
    if truth is None:
        return None
    return hashlib.sha256("\n".join(f"{k}{v}" for k, v in sorted(truth.items())).encode()).hexdigest()


def _judge(scores: Path, plan: Plan, truth: Truth | None) -> Result:
    """The result of one run, and of each of its scorers alone."""
    with scores.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    clips = []
    for row in rows:
        machine, domain, condition = machine_of(row["machine"], row["section"]), row["domain"], row["condition"]
        if condition == Condition.UNKNOWN and truth is not None:
            told = truth.get((machine, row["file"]))
            if told is None:
                raise ReproduceError(f"the truth does not tell about {machine}/{row['file']}; give a full list")
            domain = domain if told[0] is Domain.UNKNOWN else told[0]
            condition = told[1]
        clips.append((row["file"], machine, row["section"], Domain(domain), Condition(condition)))
    scorers = [name for name in (rows[0] if rows else {}) if name not in COLUMNS]

    def of(column: str) -> Result:
        alarms: list[bool | None] = [row["is_anomalous"] == "true" if column == "score" else None for row in rows]
        scored = [
            ScoredClip(*clip, float(row[column]), alarm) for clip, row, alarm in zip(clips, rows, alarms, strict=True)
        ]
        result = evaluate(scored, plan.experiment.protocol, bootstrap=plan.bootstrap)
        for name, reason in result.left_out.items():
            raise EvaluationError(f"{name} cannot be judged by the rules of {result.protocol}: {reason}")
        return result

    whole = of("score").to_dict()
    return Result.from_dict(whole | {"scorers": {name: of(name).to_dict() for name in scorers}})


# ---- tables, audit


def _compare(work: Work) -> Facts:
    """Ours beside what was published."""
    runs = []
    for run in finished_runs(work.plan.out):
        kept = _read_json(work.path("metrics", f"{run.title}.json"))
        if kept:
            result = Result.from_dict(kept["result"])
            runs += [Run(run.name, run.seed, result)]
            runs += [Run(f"{run.name} · {name}", run.seed, alone) for name, alone in result.scorers.items()]
    if not runs:
        return {"tables": []}
    plan = work.plan
    remarks = remarks_of(plan, runs[0].result, work.facts["data"]["without_table"], work.failures)
    work.comparison = compare(plan.experiment.name, plan.experiment.title, plan.judged, runs, remarks)
    texts = {"md": work.comparison.to_markdown(), "csv": work.comparison.to_csv(), "html": work.comparison.to_html()}
    return {"tables": [write_whole(work.path(f"table.{end}"), text).name for end, text in texts.items()]}


def _audit(work: Work) -> Facts:
    """Everything that a number depends on."""
    runs = {}
    for run in finished_runs(work.plan.out):
        names = ("config.toml", "manifest.json", "run.json", f"{FOLDER}/scores.csv")
        runs[run.title] = {
            "folder": str(run.folder.relative_to(work.plan.out)),
            "seed": run.seed,
            "sha256": {name: sha256(run.folder / name) for name in names if (run.folder / name).is_file()},
        }
    facts: Facts = {
        "plan": _read_json(work.path(PLAN)),
        "settings": work.settings(),
        "stages": {name: found for name, found in work.facts.items() if name != "audit"},
        "runs": runs,
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
    }
    _write_json(work.path("audit.json"), facts)
    return {"file": "audit.json"}


def _read_json(path: Path) -> Facts:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReproduceError(f"{path} is damaged ({error}); remove it and start again") from None
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


STAGES: tuple[Stage, ...] = (
    Stage("data", "which clips there are, and their hashes", _data),
    Stage("weights", "pretrained encoders", _weights),
    Stage("separator", "machine and surroundings apart", _separator),
    Stage("runs", "training and scoring, a process each", _runs),
    Stage("metric", "the official metric from per-clip scores", _metric),
    Stage("tables", "ours beside what was published", _compare),
    Stage("audit", "versions, settings, hashes", _audit),
)
"""The stages in their order."""
