"""An evaluated detector on disk -> the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

import offkey
from offkey.assessment import FOLDER, KeptAssessment, KeptClip, read_assessment
from offkey.audio.io import AudioConfig, AudioError, read_clip
from offkey.audio.mel import mel_centres
from offkey.detector import Detector
from offkey.report.contents import ClipReport, EmbeddingMap, MachineReport, Reason, ReportData
from offkey.report.page import write_report
from offkey.report.projection import project
from offkey.report.separation import SeparatedClip, write_separation_report
from offkey.separation.front_end import FrontEnd
from offkey.separation.stems import Stems
from offkey.systems.config import ScoringConfig
from offkey.systems.settings import to_toml
from offkey.types import Domain, OffkeyError

__all__ = ["report_data", "write_run_report"]

_VIEWS = {
    "network": "the network's embeddings",
    "error": "the autoencoder's error",
    "residual": "the residual (selective Mahalanobis)",
    "logmel": "log-mel statistics",
    "loudness": "loudness",
    "members": "the members' scores",
}


def write_run_report(run: Path, out: Path, title: str | None = None, examples: int = 3) -> Path:
    """Write the page of a run folder (a detector with its `evaluation/`) to `out`; return its path.

    Raises DetectorError or AssessmentError where one of the two is missing or damaged.
    """
    detector = Detector.load(run)
    kept = read_assessment(run / FOLDER)
    data = report_data(detector, kept, title or f"{run.absolute().name}: {', '.join(detector.machines)}")
    facts = list(data.facts)
    for number, (heard_by, front_end, audio) in enumerate(detector.front_ends()):
        page = out.with_name(f"{out.stem}-separation{f'-{number + 1}' if number else ''}.html")
        of = f" of {', '.join(heard_by)}" if heard_by else ""
        told = [("Report", _link(out)), (f"Front end{of}", front_end.keep)]
        _write_stems(
            front_end,
            audio,
            kept,
            page,
            data.title + (f", heard by {', '.join(heard_by)}" if of else ""),
            told,
            examples,
        )
        facts.append((f"Front end{of}", Markup("{}: {}").format(front_end.keep, _link(page))))
    data = replace(data, facts=facts)
    # Players keep the recording's own level and both channels mixed: what a person would hear.
    config = AudioConfig(rate=detector.config.audio.rate, channel=detector.config.audio.channel)
    return write_report(
        data,
        out,
        audio=lambda path: (read_clip(path, config), config.rate),
        examples=examples,
        explain=lambda machine, clip: _reason(detector, machine, clip),
    )


def _link(page: Path) -> Markup:
    """A link to a page in the same folder."""
    place = quote(page.name, errors="surrogateescape")  # "./" since what stands before a colon would be a protocol
    return Markup('<a href="./{}">{}</a>').format(place, page.name)


def _reason(detector: Detector, machine: str, clip: ClipReport) -> Reason | None:
    """Why a clip is strange; None where its file cannot be heard."""
    if clip.path is None:
        return None
    try:
        told = detector.explainer(clip.path, machine=machine)
        found = told.explain(clip.path, machine=machine)
    except (OffkeyError, OSError):
        return None
    config, rate = told.config.mel, told.config.audio.rate
    centres = mel_centres(rate, config)
    top = rate / 2 if config.f_max is None else config.f_max
    strength = np.maximum(found.map, 0.0)
    return Reason(
        text=found.text,
        strength=strength / max(float(strength.max()), 1e-12),
        strength_name=found.map_name,
        normal=found.normal,
        nearest=found.nearest,
        edges=np.concatenate([[config.f_min], (centres[1:] + centres[:-1]) / 2, [top]]),
        seconds=found.level.shape[1] * config.hop / rate,
        box=(found.start, found.end, found.low, found.high),
        part="" if told.front_end is None else told.front_end.keep,
    )


def _write_stems(
    front_end: FrontEnd,
    audio: AudioConfig,
    kept: KeptAssessment,
    out: Path,
    title: str,
    facts: Sequence[tuple[str, str]],
    examples: int,
) -> Path:
    """A page beside the report: the strangest and the most ordinary clips of each machine, taken apart."""
    stems = Stems(front_end.separator, AudioConfig(rate=audio.rate, channel=audio.channel))
    shown, problems = [], []
    for machine in sorted({clip.machine for clip in kept.clips}):
        ordered = sorted((clip for clip in kept.clips if clip.machine == machine), key=lambda clip: -clip.score)
        ends = ordered if len(ordered) <= 2 * examples else ordered[:examples] + ordered[len(ordered) - examples :]
        for clip in ends:
            try:
                front, back = stems.pair(Path(clip.path))
            except AudioError as error:
                problems.append((clip.file, error.problem))
                continue
            told = {"score": f"{clip.score:.3g}", "condition": clip.condition.value}
            shown.append(SeparatedClip(clip.file, front + back, front, back, audio.rate, told).excerpt())
    return write_separation_report(shown, out, title=title, version=offkey.__version__, facts=facts, problems=problems)


def report_data(detector: Detector, kept: KeptAssessment, title: str) -> ReportData:
    """Everything that the page shows, from a detector and the evaluation kept beside it."""
    rows: dict[str, list[int]] = {name: [] for name in detector.machines}
    for number, clip in enumerate(kept.clips):
        rows.setdefault(clip.machine, []).append(number)
    machines = [_machine(detector, name, kept, mine) for name, mine in rows.items() if mine]
    config = detector.config
    facts = [
        ("System", f"{config.system} – {config.about}" if config.about else config.system),
        ("Learnt from", f"{sum(len(m.clips) for m in detector.machines.values())} normal clips, "
         f"{60 * detector.facts.get('hours', 0):.0f} min"),
        ("Scores", _scores(config.scoring, kept.result)),
        ("Alarm rule", f"{config.calibration.method}, {100 * config.calibration.false_alarm_rate:g} % false alarms"),
        ("Seed", str(config.seed)),
        ("Data", Path(str(kept.facts["source"])).name),
    ]  # fmt: skip
    notes = [str(kept.facts["no_result"])] if kept.facts.get("no_result") else []
    return ReportData(
        title=title,
        system=config.system,
        created=str(kept.facts["created"]),
        version=str(detector.facts.get("offkey", "")),
        machines=machines,
        result=kept.result,
        facts=facts,
        reasons=detector.reasons,
        problems=[(file, reason) for file, reason in kept.facts["failures"]],
        config_toml=to_toml(config),
        notes=notes,
    )


def _scores(scoring: ScoringConfig, result: Mapping[str, Any] | None) -> str:
    """What is blended, and the official score of each part by itself."""
    alone = (result or {}).get("scorers") or {}
    told = []
    for name, entry in zip(scoring.names, scoring.scorers, strict=True):
        value = f" ({100 * alone[name]['official_score']:.1f} % alone)" if name in alone else ""
        what = name if entry.view == "members" else f"{entry.scorer.name} on {_VIEWS[entry.view]}"
        told.append(f"{what}{value}" if entry.weight > 0 else f"({what}{value}: told beside, without a say)")
    return " + ".join(told)


def _machine(detector: Detector, name: str, kept: KeptAssessment, mine: Sequence[int]) -> MachineReport:
    known = detector.machines[name]
    view = detector.config.scoring.scorers[0].view
    return MachineReport(
        name=name,
        clips=[_clip(kept.clips[number]) for number in mine],
        threshold=detector.threshold(name),
        false_alarm_rate=known.calibration.alpha,
        reference_scores=np.asarray(known.calibration.scores, dtype=np.float64),
        embedding=_map(known.embeddings, known.domains, kept.embeddings, mine, view),
    )


def _clip(clip: KeptClip) -> ClipReport:
    return ClipReport(
        file=clip.file,
        path=clip.path,
        score=clip.score,
        is_anomalous=clip.is_anomalous,
        p_value=clip.p_value,
        domain=clip.domain,
        condition=clip.condition,
    )


def _map(
    reference: Mapping[str, NDArray[Any]],
    domains: Sequence[str],
    scored: Mapping[str, NDArray[Any]],
    mine: Sequence[int],
    view: str,
) -> EmbeddingMap | None:
    known, asked = reference[view], scored[view][list(mine)]
    if known.shape[1] < 2:
        return None  # loudness or an error is one number: there is no plane to draw
    places = project(known, asked)
    return EmbeddingMap(
        reference=places.reference,
        clips=places.query,
        reference_domains=[Domain(domain) for domain in domains],
        explained=places.explained,
        method=f"principal components of {_VIEWS[view]}, each dimension standardised",
    )
