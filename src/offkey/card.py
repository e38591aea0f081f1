"""CARD.md: what a person should know of a detector before trusting it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from offkey.objectives.config import ReconstructionConfig
from offkey.scoring.calibrate import clips_needed

if TYPE_CHECKING:
    from offkey.detector import Detector

__all__ = ["write_card"]


def write_card(detector: Detector) -> str:
    """Markdown: data, settings, calibration and limits of a fitted detector, with its own numbers."""
    config, facts = detector.config, detector.facts
    alpha = config.calibration.false_alarm_rate
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
    lines += [
        "## Alarms",
        "",
        f"An alarm is a score above the threshold, set so that about {100 * alpha:g} % of normal clips raise one "
        f"({config.calibration.method}; cross-fitted: no clip was judged by a scorer that was fitted on it). The rate "
        f"holds for recordings made like those above; it needs at least {clips_needed(alpha)} normal clips.",
        "",
        "## Limits",
        "",
        "- A new microphone, place, mounting or setting is strange to the detector even if the machine is well.",
        "- A high score says that a clip is unlike the normal ones, not that the machine is broken, nor how.",
        "- Clips cut from one recording are not independent: the promise is weaker then, false alarms come in runs.",
    ]
    return "\n".join(lines) + "\n"
