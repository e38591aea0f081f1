"""CARD.md: what a person should know of a detector before trusting it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from offkey.encoders.catalog import WeightsError, published
from offkey.objectives.config import ReconstructionConfig
from offkey.scoring.calibrate import clips_needed

if TYPE_CHECKING:
    from offkey.detector import Detector, MachineDetector

__all__ = ["write_card"]

_SHOWN = 5  # names of clips that were added later
_FEW_TARGET = 30  # clips of the target domain below which their rate of false alarms is anybody's guess


def write_card(detector: Detector, result: Mapping[str, Any] | None = None, place: str = "DETECTOR") -> str:
    """Markdown: data, settings, training, alarms, limits and use of a fitted detector, with its own numbers.

    `result`: what `offkey evaluate` measured (`result.json`), None where it has not; `place`: the folder, for commands.
    """
    config, facts = detector.config, detector.facts
    lines = [
        f"# Detector: {', '.join(detector.machines)}",
        "",
        f"System `{config.system}`: {config.about}." if config.about else f"System `{config.system}`.",
        f"Made by offkey {facts.get('offkey', '?')} on {str(facts.get('created', '?'))[:10]}, seed {config.seed}.",
        "",
        *_data(detector),
        *_added(facts.get("updates") or []),
    ]
    if detector.reasons:
        lines += ["## Why this system", "", *(f"- {reason}" for reason in detector.reasons), ""]
    members = _members_of(detector)
    lines += _blend(detector, members) if members else _network(detector)
    lines += [
        "## Settings that matter",
        "",
        *_settings(detector),
        "",
        *_alarms(detector),
        "## Measured",
        "",
        *_measured(result, place),
        "",
        "## Limits",
        "",
        *_limits(detector),
        "",
        "## Use",
        "",
        f"- Judge recordings: `offkey score {place} NEW.wav …`; see why: `offkey explain {place} NEW.wav …`.",
        f"- Measure it, with clips whose condition is known: `offkey evaluate {place} SOURCE`.",
        f"- Add normal clips, or clips that were false alarms: `offkey update {place} CLIP … --out NEW`.",
        f"- After a change of machine, place or microphone, record normal clips and fit again: {_again(detector)}.",
        "",
        "## Versions",
        "",
        f"offkey {facts.get('offkey', '?')}, Python {facts.get('python', '?')}. {_licences(detector)}",
    ]
    return "\n".join(lines) + "\n"


def _members_of(detector: Detector) -> Mapping[str, Detector]:
    ensemble: Any = detector
    return ensemble.members if detector.config.kind == "ensemble" else {}


# ---- what it learnt from


def _data(detector: Detector) -> list[str]:
    facts = detector.facts
    told = facts.get("recordings") or {}
    lines = [
        "## Learnt from",
        "",
        "| machine | normal clips | of the source domain | of the target domain | minutes | seconds a clip "
        "| known settings (values) |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, known in detector.machines.items():
        own = told.get(name) or {}
        minutes = f"{own['minutes']:.1f}" if own else "?"
        length = _span(own["shortest"], own["longest"]) if own else "?"
        settings = ", ".join(f"{key} ({count})" for key, count in own.get("attributes", {}).items()) or "none told"
        lines.append(
            f"| {name} | {len(known.clips)} | {known.domains.count('source')} | {known.domains.count('target')} | "
            f"{minutes} | {length} | {settings} |"
        )
    cut = [
        f"The {len(known.clips)} clips of {name} were cut from {known.recordings} recordings, as people told."
        for name, known in detector.machines.items()
        if known.recordings is not None
    ]
    lines += ["", *cut, f"{60 * float(facts.get('hours', 0)):.1f} minutes of sound. No faulty recording was heard."]
    rates = sorted({int(rate) for own in told.values() for rate in own.get("rates", {})})
    if rates:
        lines.append(f"Recorded at {' and '.join(map(str, rates))} Hz.")
    asked = facts.get("asked") or {}
    if facts.get("source") or asked.get("clips"):
        mark = (
            f", fingerprint `{str(asked['clips'])[:16]}` (names and content of the clips)" if asked.get("clips") else ""
        )
        lines.append(f"Data set `{facts.get('source', '?')}`{mark}.")
    return [*lines, ""]


def _span(shortest: float, longest: float) -> str:
    return f"{shortest:.1f}" if f"{shortest:.1f}" == f"{longest:.1f}" else f"{shortest:.1f}–{longest:.1f}"


def _added(updates: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was added after the detector had been fitted."""
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


# ---- what it is


def _blend(detector: Detector, members: Mapping[str, Detector]) -> list[str]:
    entries = detector.config.scoring.scorers
    total = sum(entry.weight for entry in entries)
    lines = [
        "## Members",
        "",
        "Each one's score counts by its rank among that member's normal clips; each has a card in `members/NAME`.",
        "",
        "| member | share | system | trained |",
        "|---|---:|---|---|",
    ]
    for entry in entries:
        member = members[entry.name]
        learnt = (member.facts.get("training") or {}).get("learnt")
        about = f"`{member.config.system}`" + (f": {member.config.about}" if member.config.about else "")
        share = f"{100 * entry.weight / total:.0f} %" if entry.weight else "no say"
        lines.append(f"| {entry.name} | {share} | {about} | {f'{learnt:,} weights' if learnt else 'no'} |")
    return [*lines, ""]


def _network(detector: Detector) -> list[str]:
    config = detector.config
    training = detector.facts.get("training") or {}
    if not training:
        return _listening(detector.facts.get("encoder") or {})
    lesson = f"to tell {len(training['classes'])} classes apart"
    if config.kind == "reconstructive":
        told = (
            f", and {lesson}"
            if isinstance(config.objective, ReconstructionConfig)
            and (config.objective.identity_weight and len(training["classes"]) > 1)
            else ""
        )
        lesson = f"to rebuild what was heard{told},"
    lines = [
        "## Network" + ("s, one a machine" if training.get("machines") else ""),
        "",
        f"{training['parameters']:,} weights, of which {training['learnt']:,} learnt {lesson} in "
        f"{training['clips']} clips; {training['held_out']} normal clips were held out.",
        f"{config.training.epochs} epochs, batches of {config.training.batch_size}, "
        f"learning rate {config.training.learning_rate:g}.",
        "",
    ]
    lines += _pseudo_classes(training)
    encoder_facts = training.get("encoder")
    if encoder_facts:
        learnt = ", ".join(encoder_facts["learnt"]) or "nothing"
        lines += [
            f"Pretrained encoder: {encoder_facts['name']}, weights {encoder_facts['published']}; "
            f"of it learnt: {learnt}.",
            "",
        ]
    return lines


def _listening(told: Mapping[str, Any]) -> list[str]:
    """The frozen encoder of a retrieval system."""
    if not told:
        return []
    bands = "each frequency band by itself" if told["bands"] == "kept" else "over all frequency bands"
    return [
        "## Network",
        "",
        f"Nothing was trained. A frozen encoder listens: {told['name']}, weights {told['published']}; layers "
        f"{', '.join(map(str, told['layers']))}, pooled over time by {told['pooling']}, {bands}: "
        f"{told['embedding']:,} numbers a clip, which are compared with those of the normal clips.",
        "",
    ]


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


def _settings(detector: Detector) -> list[str]:
    members = _members_of(detector)
    if members:
        return [f"- {name}: {'; '.join(_heard(member))}" for name, member in members.items()]
    config = detector.config
    scores = ", ".join(
        name + ("" if entry.weight > 0 else " (no say)")
        for name, entry in zip(config.scoring.names, config.scoring.scorers, strict=True)
    )
    return [*(f"- {each}" for each in _heard(detector)), f"- scores: {scores}"]


def _heard(detector: Detector) -> list[str]:
    """How clips are heard."""
    audio, separation = detector.config.audio, detector.config.separation
    lines = [f"heard at {audio.rate} Hz, nothing above {_highest(detector) / 1000:g} kHz", f"channel: {audio.channel}"]
    if audio.level_dbfs is not None:
        lines.append(f"every clip brought to {audio.level_dbfs:g} dBFS: how loud it is does not count")
    if separation.front_end:
        lines.append(f"through a separator first, which passes on its {separation.keep}{_separated(detector.facts)}")
    return lines


def _separated(facts: Mapping[str, Any]) -> str:
    """How well the separator does by mixtures that it held out, in half a sentence."""
    told = facts.get("separator") or {}
    if told.get("before") is None or told.get("after") is None:
        return ""
    gain = told["after"] - told["before"]
    from_what = (
        "clips of the machine alone and of noise alone" if told["mode"] == "supervised" else "normal clips in noise"
    )
    return (
        f"; on {told['mixtures']} mixtures of {from_what} that it had not learnt from, the machine came "
        f"{told['before']:.1f} -> {told['after']:.1f} dB out of the noise ({gain:+.1f} dB SI-SNR)"
    )


def _highest(detector: Detector) -> float:
    """Hertz above which nothing is heard: a separator finds nothing of the machine above half of its own rate."""
    rates = [detector.config.audio.rate]
    if detector.front_end is not None and detector.front_end.keep == "foreground":
        rates.append(int(detector.front_end.separator.config.rate))
    return min(rates) / 2


# ---- what its alarms are worth


def _alarms(detector: Detector) -> list[str]:
    rules = sorted({(known.calibration.method, known.calibration.alpha) for known in detector.machines.values()})
    told = ", ".join(f"{100 * alpha:.4g}" for _, alpha in rules)
    needed = clips_needed(min(alpha for _, alpha in rules))
    method = " and ".join(dict.fromkeys(method for method, _ in rules))
    lines = [
        "## Alarms",
        "",
        f"An alarm is a score above the threshold, set so that about {told} % of normal clips raise one "
        f"({method}; cross-fitted: no clip was judged by a scorer that was fitted on it). The rate "
        f"holds for recordings made like those above; it needs at least {needed} normal clips.",
        *_by_recording(detector, needed),
        "",
        "| machine | clips behind the threshold | threshold | false alarms asked for | true rate, 95 % range |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, known in detector.machines.items():
        threshold = detector.threshold(name)
        shown = f"{threshold:.4g}" if math.isfinite(threshold) else "none: too few clips"
        alpha = known.calibration.alpha
        behind = str(len(known.calibration.scores))
        if known.calibration.session is not None:
            behind += f" of {len(set(known.calibration.session.tolist()))} recordings"
        lines.append(f"| {name} | {behind} | {shown} | {100 * alpha:.4g} % | {_range(known)} |")
    return [
        *lines,
        "",
        "The range is that of the rate which will be seen in the long run, over all the detectors that might have been "
        "made from as many clips like these (the law of order statistics).",
        "",
    ]


def _by_recording(detector: Detector, needed: int) -> list[str]:
    if all(known.recordings is None for known in detector.machines.values()):
        return []
    return [
        "Where it was told which clips were cut from one recording, whole recordings were left out, and it takes "
        f"{needed} recordings: the rate is that of clips of a new recording, the range that of so many recordings."
    ]


def _range(known: MachineDetector) -> str:
    calibration = known.calibration
    if calibration.method == "gamma":
        return "nothing is promised"
    if not math.isfinite(calibration.threshold()):
        return "no alarm is ever raised"
    low, high = calibration.true_rate()
    return f"{100 * low:.2g}–{100 * high:.2g} %"


def _measured(result: Mapping[str, Any] | None, place: str) -> list[str]:
    if result is None:
        return [
            f"Nothing when this was written. `offkey card {place}` prints the card with what `offkey evaluate` has "
            "found since; before that, nobody knows which faults it finds."
        ]
    metrics = list(next(iter(result["machines"].values())).keys() - {"intervals", "sections", "counts", "decisions"})
    order = [name for name in ("auc_source", "auc_target", "auc", "pauc") if name in metrics]
    lines = [
        f"Official score ({result['protocol']}): {_percent(result['official_score'], result.get('interval'))} %.",
        "",
        "| machine | " + " | ".join(f"{name.replace('_', ' ').replace('auc', 'AUC')}, %" for name in order)
        + " | false alarms | faults found |",
        "|---|" + "---:|" * (len(order) + 2),
    ]  # fmt: skip
    for name, own in result["machines"].items():
        values = [_percent(own[key], (own.get("intervals") or {}).get(key)) for key in order]
        counts = (own.get("decisions") or {}).get("all") or {}
        lines.append(f"| {name} | {' | '.join([*values, *_decided(counts)])} |")
    return [*lines, "", "In brackets: 95 % bootstrap intervals. 50 is guessing."]


def _decided(counts: Mapping[str, Any]) -> tuple[str, str]:
    """Alarms on normal clips and on faulty ones, of how many."""
    try:
        false, right = int(counts["false_positives"]), int(counts["true_positives"])
        normal, faulty = false + int(counts["true_negatives"]), right + int(counts["false_negatives"])
    except (KeyError, TypeError):
        return "?", "?"
    return f"{false} of {normal}", f"{right} of {faulty}"


def _percent(value: float, interval: Sequence[float] | None) -> str:
    text = f"{100 * value:.1f}"
    return text if not interval else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


# ---- what to beware of, and what to do


def _limits(detector: Detector) -> list[str]:
    lines = []
    networks = [detector, *_members_of(detector).values()]
    for name, known in detector.machines.items():
        target, source = known.domains.count("target"), known.domains.count("source")
        if not math.isfinite(detector.threshold(name)):
            lines.append(f"- {name}: too few normal clips for the rate asked for. It will never raise an alarm.")
        elif source and 0 < target < _FEW_TARGET:
            lines.append(
                f"- {name}: {target} of {target + source} normal clips are of the target domain. Target clips alone "
                "may alarm far more often than the rate says."
            )
        if any(
            each.facts.get("training") and len(each.machines[name].calibration.scores) == len(each.machines[name].clips)
            for each in networks
        ):
            lines.append(
                f"- {name}: the threshold rests on clips that a network learnt from. Expect more false alarms than "
                "asked for."
            )
    hearers = list(_members_of(detector).values()) or [detector]
    highest = min(_highest(hearer) for hearer in hearers)
    return [
        *lines,
        f"- What sounds above {highest / 1000:g} kHz, or below the noise, is not heard.",
        "- A new microphone, place, mounting or setting is strange to the detector even if the machine is well.",
        "- A high score says that a clip is unlike the normal ones, not that the machine is broken, nor how.",
        _of_one_recording(detector),
        "- Let people's safety not depend on it.",
    ]


def _of_one_recording(detector: Detector) -> str:
    if all(known.recordings is not None for known in detector.machines.values()):
        return "- Clips cut from one recording are alike: false alarms come in runs."
    return (
        "- Clips cut from one recording are not independent. If several of the normal clips were cut from one, and "
        "nobody told which (`offkey fit --groups`), far more clips may alarm than asked for. False alarms come in runs."
    )


def _again(detector: Detector) -> str:
    system = detector.config.system
    return f"`offkey fit SOURCE --system {system} --out NEW`"


def _licences(detector: Detector) -> str:
    told = []
    for each in _members_of(detector).values() or [detector]:
        encoder = each.config.encoder
        if encoder.name == "none":
            continue
        try:
            entry = published(encoder.weights or encoder.name)
            told.append(f"weights {entry.name}: licence {entry.licence} ({entry.source})")
        except WeightsError:
            told.append(f"weights of {encoder.name} from a file of the user's own, whose licence is not known here")
    if not told:
        return "No pretrained weights are in it."
    return "Pretrained weights: " + "; ".join(dict.fromkeys(told)) + "."
