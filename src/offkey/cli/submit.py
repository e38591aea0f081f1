"""`offkey submit`: the challenge's files from evaluated detectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from offkey.cli.output import complain
from offkey.types import OffkeyError

if TYPE_CHECKING:
    from offkey.detector import Detector
    from offkey.evaluation.meta import MetaFacts
    from offkey.evaluation.protocol import Protocol, ScoredClip

MOST = 4
"""How many submissions a team may hand in."""


def submit(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Evaluated detectors, or the folder of `offkey reproduce`."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the package (new).")],
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Label of a submission, NAME_INSTITUTE_task2_1; one a run, in order."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of a folder of `offkey reproduce`: the runs of this seed (default: the first).")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--source", help="Data set to check against (default: the one evaluated).")
    ] = None,
    year: Annotated[int | None, typer.Option(help="Challenge whose names are used (default: the data set's).")] = None,
) -> int:
    """Write score and decision files, checked against the data set, and the meta file with every TODO to be filled."""
    from offkey.evaluation.submission import check_label, write_package

    found = [(model, year or own) for run in runs for model, own in _models(run, seed)]
    models = [model for model, _ in found]
    if len(models) > MOST:
        names = ", ".join(model.name for model in models)
        raise OffkeyError(f"the challenge takes {MOST} submissions of a team, and these are {len(models)}: {names}")
    labels = list(label or [f"TODO_TODO_task2_{number}" for number in range(1, len(models) + 1)])
    if len(labels) != len(models):
        raise OffkeyError(f"{len(models)} runs need as many labels, and {len(labels)} were given")
    if len(set(labels)) != len(labels):
        raise OffkeyError("two submissions have the same label; count them from 1 to 4")
    for text in labels:
        check_label(text)
    packages = [_one(model, text, source, rules) for (model, rules), text in zip(found, labels, strict=True)]
    for text, package in zip(labels, packages, strict=True):
        files = write_package(out, text, package.scored, package.meta, package.protocol)
        machines = len({clip.machine for clip in package.scored})
        typer.echo(f"{text}: {len(package.scored)} clips of {machines} machines, {len(files)} files")
    for remark in dict.fromkeys(remark for package in packages for remark in package.remarks):
        complain(remark)
    typer.echo(f"next: replace every TODO in {out / 'task2'}/*/*.meta.yaml, add the technical report, and zip task2/")
    return 0


def _models(run: Path, seed: int | None) -> Sequence[tuple[Path, int | None]]:
    """The detector itself, or those of one seed in a folder of `offkey reproduce`, with the year that it stands for."""
    from offkey.reproducing import PLAN, finished_runs, year_of

    if not (run / PLAN).is_file():
        return [(run, None)]
    found = finished_runs(run)
    if not found:
        raise OffkeyError(f"{run} has no finished run yet; start `offkey reproduce` again")
    chosen = found[0].seed if seed is None else seed
    models = [(entry.folder, year_of(run)) for entry in found if entry.seed == chosen]
    if not models:
        seeds = ", ".join(sorted({str(entry.seed) for entry in found}))
        raise OffkeyError(f"{run} has no run with seed {chosen}; it has {seeds}")
    return models


class _Package(NamedTuple):
    """One submission before it is written; `remarks` are to be said of it."""

    scored: list[ScoredClip]
    meta: str
    protocol: Protocol
    remarks: list[str]


def _one(model: Path, label: str, source: Path | None, year: int | None) -> _Package:
    """Check what a detector scored against the data set."""
    from offkey.assessment import FOLDER, read_assessment
    from offkey.data.machines import machine_of
    from offkey.data.source import open_source
    from offkey.detector import Detector, machine_key
    from offkey.evaluation.meta import meta_yaml
    from offkey.evaluation.protocol import ScoredClip, choose_protocol
    from offkey.evaluation.submission import check_scored
    from offkey.types import Content

    kept = read_assessment(model / FOLDER)
    if kept.facts.get("failures"):
        first = kept.facts["failures"][0]
        raise OffkeyError(
            f"{len(kept.facts['failures'])} test clips could not be scored, first {first[0]}: {first[1]}; the "
            "challenge asks for a score for every clip"
        )
    data = open_source(source if source is not None else Path(kept.facts["source"]))
    scored = [  # a detector of several sections knows its machines as fan/01, the challenge as fan
        ScoredClip(
            c.file, machine_of(c.machine, c.section), c.section, c.domain, c.condition, c.score, c.is_anomalous
        )
        for c in kept.clips
    ]  # fmt: skip
    detector = Detector.load(model)
    protocol = choose_protocol(year if year is not None else data.year, scored)
    known = [c for c in data.test() if c.content is Content.MIXTURE]
    wanted = [c for c in known if machine_key(c, detector.machines) is not None]
    remarks = check_scored(scored, wanted, protocol)
    without = sorted({clip.machine for clip in known} - {clip.machine for clip in wanted})
    if without:
        remarks.append(f"machines of the data set that {model} does not know are left out: {', '.join(without)}")
    return _Package(scored, meta_yaml(label, _facts(detector, kept.result)), protocol, remarks)


def _facts(detector: Detector, result: object) -> MetaFacts:
    """What the detector's settings tell; of an ensemble, what those of its members do."""
    from offkey.ensemble import Ensemble
    from offkey.evaluation.meta import MetaFacts
    from offkey.evaluation.result import Result

    if isinstance(detector, Ensemble):
        parts = [_facts(member, None) for member in detector.members.values()]
        rates = [part.rate_hz for part in parts]
        learnt = [part.parameters for part in parts if part.parameters is not None]
        return MetaFacts(
            system=detector.config.system,
            about=detector.config.about,
            rate_hz=max(rates),
            features=list(dict.fromkeys(name for part in parts for name in part.features)),
            augmentation=list(dict.fromkeys(name for part in parts for name in part.augmentation)),
            method="; ".join(part.method for part in parts),
            subsystems=sum(part.subsystems for part in parts),
            decision=_decision(detector),
            parameters=sum(learnt) if learnt else None,
            external=list(dict.fromkeys(name for part in parts for name in part.external)),
            results=Result.from_dict(result) if isinstance(result, dict) else None,
            notes=[f"offkey {detector.facts.get('offkey', '')}, seed {detector.config.seed}"],
        )
    config = detector.config
    trained = config.kind not in ("training-free", "auto")
    features = ["log-mel energies"] if config.kind != "training-free" or "logmel" in str(config.scoring) else []
    if trained and config.model.name != "dense-autoencoder":
        features.append("raw waveform")
    if config.model.name == "retrieval":
        features.append("embeddings of a pretrained encoder")
    changes = config.augmentation
    names = ("gain", "noise", "shift", "polarity", "mixup", "spec_augment")
    external = []
    if config.encoder.name != "none":
        external.append(f"{config.encoder.name} {Path(str(config.encoder.weights or 'usual weights')).name}")
    training = detector.facts.get("training") or {}
    return MetaFacts(
        system=config.system,
        about=config.about,
        rate_hz=config.audio.rate,
        features=features,
        augmentation=[name for name in names if trained and getattr(changes, name).enabled],
        method=config.about,
        subsystems=len(config.scoring.voters),
        decision=_decision(detector),
        parameters=int(training["parameters"]) if "parameters" in training else None,
        external=external,
        results=Result.from_dict(result) if isinstance(result, dict) else None,
        notes=[f"offkey {detector.facts.get('offkey', '')}, seed {config.seed}"],
    )


def _decision(detector: Detector) -> str:
    rule = detector.config.calibration
    return f"{rule.method} threshold, false-alarm rate {rule.false_alarm_rate:g}"
