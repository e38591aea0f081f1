"""CARD.md: what a person should know of a detector before trusting it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from offkey.objectives.config import ReconstructionConfig
from offkey.scoring.calibrate import clips_needed

if TYPE_CHECKING:
    from offkey.detector import Detector

__all__ = ["write_card"]

_SHOWN = 5


def write_card(detector: Detector) -> str:
    """Markdown: data, settings, calibration and limits of a fitted detector, with its own numbers."""
    config, facts = detector.config, detector.facts
    rates = {known.calibration.alpha for known in detector.machines.values()}
    lines = [
        f"# Detector: {', '.join(detector.machines)}",
        "",
        f"System `{config.system}`: {config.about}." if config.about else f"System `{config.system}`.",
        f"Made by offkey {facts.get('offkey', '?')} on {str(facts.get('created', '?'))[:10]}, seed {config.seed}.",
        "",
        "## Learnt from",
        "",
        "| machine | normal clips | of the source domain | of the target domain | behind the threshold | threshold |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, known in detector.machines.items():
        threshold = detector.threshold(name)
        told = f"{threshold:.4g}" if math.isfinite(threshold) else "none: too few clips"
        lines.append(
            f"| {name} | {len(known.clips)} | {known.domains.count('source')} | {known.domains.count('target')} | "
            f"{len(known.calibration.scores)} | {told} |"
        )
    lines += [
        "",
        f"{60 * float(facts.get('hours', 0)):.1f} minutes of sound. No faulty recording was heard.",
        "",
    ]
    if detector.reasons:
        lines += ["## Why this system", "", *(f"- {reason}" for reason in detector.reasons), ""]
    training = facts.get("training") or {}
    if training:
        lesson = f"to tell {len(training['classes'])} classes apart"
        if config.kind == "reconstructive":
            told = (
                f", and {lesson}"
                if isinstance(config.objective, ReconstructionConfig)
                and (config.objective.identity_weight and len(training["classes"]) > 1)
                else ""
            )
            lesson = f"to rebuild what was heard{told},"
        count = len(training.get("machines", ()))
        lines += [
            "## Network" + ("s, one a machine" if count else ""),
            "",
            f"{training['parameters']:,} weights, of which {training['learnt']:,} learnt {lesson} in "
            f"{training['clips']} clips; {training['held_out']} normal clips were held out.",
            "",
        ]
        lines += _pseudo_classes(training)
        encoder = training.get("encoder")
        if encoder:
            learnt = ", ".join(encoder["learnt"]) or "nothing"
            lines += [
                f"Pretrained encoder: {encoder['name']}, weights {encoder['published']}; of it learnt: {learnt}.",
                "",
            ]
    listens = facts.get("encoder")
    if listens:
        bands = "each frequency band by itself" if listens["bands"] == "kept" else "over all frequency bands"
        lines += [
            "## Network",
            "",
            f"Nothing was trained. A frozen encoder listens: {listens['name']}, weights {listens['published']}; layers "
            f"{', '.join(map(str, listens['layers']))}, pooled over time by {listens['pooling']}, {bands}: "
            f"{listens['embedding']:,} numbers a clip, which are compared with those of the normal clips.",
            "",
        ]
    told = ", ".join(f"{100 * rate:.4g}" for rate in sorted(rates))
    lines += [
        *_updates(detector),
        "## Alarms",
        "",
        f"An alarm is a score above the threshold, set so that about {told} % of normal clips raise one "
        f"({config.calibration.method}; cross-fitted: no clip was judged by a scorer that was fitted on it). The rate "
        f"holds for recordings made like those above; it needs at least {clips_needed(min(rates))} normal clips.",
        "",
        *_true_rates(detector),
        "## Limits",
        "",
        "- A new microphone, place, mounting or setting is strange to the detector even if the machine is well.",
        "- A high score says that a clip is unlike the normal ones, not that the machine is broken, nor how.",
        "- Clips cut from one recording are not independent: the promise is weaker then, false alarms come in runs.",
    ]
    return "\n".join(lines) + "\n"


def _true_rates(detector: Detector) -> list[str]:
    """In what range the true rate lies, a machine each: normal clips are a sample, and so is the threshold."""
    lines = []
    for name, known in detector.machines.items():
        calibration = known.calibration
        if calibration.method == "gamma" or not math.isfinite(calibration.threshold()):
            continue
        low, high = (100 * end for end in calibration.true_rate())
        each = "" if calibration.domain is None else " in each domain"
        lines.append(
            f"- {name}: with {len(calibration.scores)} clips behind the threshold, the true rate{each} lies between "
            f"{low:.2g} % and {high:.2g} % for nineteen of twenty detectors made like this one."
        )
    return [*lines, ""] if lines else []


def _updates(detector: Detector) -> list[str]:
    """What was added after the detector had been fitted."""
    updates = detector.facts.get("updates") or []
    if not updates:
        return []
    lines = ["## Added later", "", "Without training: reference, scorers and threshold are new, networks are not.", ""]
    for entry in updates:
        why = "called false alarms" if entry["reason"] == "false-alarm" else "normal clips"
        names = entry["clips"]
        shown = ", ".join(f"`{name}`" for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        lines.append(f"- {entry['when'][:10]}, {entry['machine']}: {len(names)} {why} ({shown})")
    if any(entry["reason"] == "false-alarm" for entry in updates):
        lines += [
            "",
            "Clips that were called false alarms are no sample of all clips: the rate errs towards fewer alarms.",
        ]
    return [*lines, ""]


def _pseudo_classes(training: Mapping[str, Any]) -> list[str]:
    """Which classes were found without labels, in the one network or in each machine's."""
    told = [facts["pseudo_classes"] for facts in (training, *training.get("machines", {}).values())
            if "pseudo_classes" in facts]  # fmt: skip
    if not told:
        return []
    heard = "what the pretrained encoder hears" if told[0]["on"] == "encoder" else "log-mel statistics"
    counts = [f"{name} ({count} clips)" for groups in told for name, count in groups["clips"].items()]
    return [
        f"Settings were not told for all clips. Those that sound alike ({heard}) were taken for a class, "
        f"{len(counts)} in all: {', '.join(counts)}.",
        "",
    ]
