"""`auto`: looks at what a user has, clips, settings, weights, a GPU, time, and chooses what is fitted, with reasons.

`offkey.systems.choose` settles a single detector; here it is decided what stands beside it (retrieval with an encoder
whose weights are at hand), what goes before it (a separator), and how long all that will take.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from offkey.encoders.catalog import WeightsError
from offkey.encoders.config import ENCODERS
from offkey.encoders.weights import find
from offkey.systems.choose import FEWEST_CLIPS, choose, trains_behind_separator, without_network
from offkey.systems.config import SystemConfig, load_preset, preset_names
from offkey.systems.members import given_settings, member_systems
from offkey.systems.surroundings import unlikeness
from offkey.types import ClipMeta, Content

__all__ = ["RATES", "RETRIEVAL", "SEPARATOR_MINUTES", "encoder_at_hand", "settle", "wants_separator"]

RETRIEVAL = "retrieval"
"""The preset that joins where an encoder is at hand."""

RATES = {
    "read": 0.01,
    "network": 0.038,
    "beats hears": 0.56,
    "efficientat hears": 0.0094,
}
"""Seconds that a clip of 10 s takes on two processor cores, once (a network: every epoch).

The numbers of `offkey reproduce`: measured, see docs/benchmarks.md; `read` is rounded up.
"""

GPU_RATES = {"read": 0.004, "network": 0.004, "beats hears": 0.0045, "efficientat hears": 0.004}
"""The same on a GPU: counted and bound by decoding, not measured."""

SEPARATOR_MINUTES = 22.0
"""What a separator takes on one core: 20 epochs took 22 minutes (docs/benchmarks.md)."""

SEPARATOR_HEARS = 0.32
"""Seconds that a separator takes for a clip of 10 s on two cores, GPU or not: ten minutes of sound took 19 s."""

FEWEST_ALONE = 20
"""Clips of machines alone, and as many of noise alone, from which a separator is fitted unasked."""

_SAMPLED = 50  # clips whose headers are read
_FOR_RETRIEVAL = ("audio.", "encoder.", "separation.", "calibration.", "seed=")


def settle(
    config: SystemConfig, clips: Sequence[ClipMeta], extra: Sequence[ClipMeta] = ()
) -> tuple[SystemConfig, list[str]]:
    """Settle an `auto` system for these training clips (`extra`: supplemental ones); other systems stay as they are.

    Returns settings whose kind is no longer "auto" (an ensemble's where an encoder's weights are at hand), and a
    sentence for each choice.
    """
    if config.kind != "auto":
        return config, []
    encoder, about_encoder = encoder_at_hand(config)
    alone = config
    if encoder is not None:  # it listens for retrieval: beside a network that listens too, the two would err alike
        alone = config.model_copy(update={"encoder": type(config.encoder)()})
    limit = config.auto.minutes
    seconds = _sound(clips)
    heard = len(clips) + len(extra)
    single, reasons = choose(alone, clips, extra)
    minutes = _minutes("network", heard * single.training.epochs, seconds) if single.kind == "discriminative" else 0.0
    if limit and minutes > limit:
        reasons = [
            f"a network would take about {_time(minutes)} to train, and auto.minutes allows {_time(limit)}: "
            "training-free log-mel statistics"
        ]
        (single, remarks), minutes = without_network(alone), 0.0
        reasons += remarks
    minutes += _minutes("read", 2 * heard, seconds)
    result = single
    if encoder is not None:
        minutes += _minutes(f"{encoder} hears", len(clips), seconds)
        result = _together(config, alone, single, encoder)
        reasons.append(about_encoder)
        reasons.append("the two are blended by rank and count alike: an encoder hears what log-mel statistics do not")
    elif about_encoder:
        reasons.append(about_encoder)
    if config.separation.front_end:
        minutes += _separating(heard if single.kind == "discriminative" else len(clips), seconds)
        reasons.append(f"every clip goes through a separator first, which passes on its {config.separation.keep}")
    where = "a GPU" if _gpu() else "two processor cores"
    reasons.append(
        f"{len(clips)} normal clips of {seconds:.1f} s: about {_time(minutes)} on {where}, reckoned from measured rates"
        if seconds
        else f"{len(clips)} normal clips"
    )
    return result, reasons


def wants_separator(config: SystemConfig, clips: Sequence[ClipMeta], extra: Sequence[ClipMeta]) -> tuple[bool, str]:
    """Whether a system has a separator fitted first (`separation.fit`), and a sentence on why, or why not.

    With "auto" it has one where there is enough to learn it from, time, and something to gain: clips of
    noise alone that differ from one another more than clips of the machine alone do. Surroundings that stay the same
    hide little, and what a separator takes from the machine then costs more than it brings (docs/benchmarks.md).
    Never where a front end is named already, or where training clips are remixed; the sentence is empty where there is
    nothing to say.
    """
    if config.separation.fit == "never" or config.separation.front_end or config.augmentation.remix.enabled:
        return False, ""
    if config.separation.fit == "always":
        return True, "a separator first, as the settings say"
    alone = {
        what: [clip for clip in extra if clip.content is content]
        for what, content in (("the machine", Content.MACHINE), ("noise", Content.NOISE))
    }
    told = " and ".join(f"{len(found)} clips of {what} alone" for what, found in alone.items() if found)
    if not told:
        return False, ""
    if min(map(len, alone.values())) < FEWEST_ALONE:
        return False, f"{told}: too few for a separator, which takes {FEWEST_ALONE} of each (separation.fit=always)"
    if not _separator_fits(config, clips, extra):
        return False, f"for a separator, about {_time(SEPARATOR_MINUTES)} more, auto.minutes has no room"
    machine, noise = (unlikeness(found, config.audio, config.mel) for found in alone.values())
    if not (machine >= 0 and noise >= 0):
        return False, f"{told}: no two of them of one machine could be read and compared (separation.fit=always)"
    differ = f"from clip to clip noise alone differs by {noise:.1f} dB, the machine alone by {machine:.1f} dB"
    if noise > machine:
        return True, f"{differ}: a separator is fitted first, in about {_time(SEPARATOR_MINUTES)}"
    return False, f"{differ}: a separator would bring little (separation.fit=always fits one)"


def _separator_fits(config: SystemConfig, clips: Sequence[ClipMeta], extra: Sequence[ClipMeta]) -> bool:
    """Whether there is time for a separator, and for the network where there is time for that as well."""
    limit = config.auto.minutes
    if not limit:
        return True
    seconds, heard = _sound(clips), len(clips)
    systems = member_systems(config).values() if config.kind == "ensemble" else [config]
    network = 0.0
    for system in systems:
        if not trains_behind_separator(system) or (system.kind == "auto" and len(clips) < FEWEST_CLIPS):
            continue
        needed = _minutes("network", (len(clips) + len(extra)) * system.training.epochs, seconds)
        if system.kind != "auto" or needed <= limit:  # auto leaves out a network that takes too long
            network, heard = network + needed, len(clips) + len(extra)
    return network + SEPARATOR_MINUTES + _separating(heard, seconds) <= limit


def encoder_at_hand(config: SystemConfig) -> tuple[str | None, str]:
    """The encoder that retrieval would listen with, and a sentence on it; None where there is none.

    The one that somebody named (`encoder.name`), else the first of BEATs and EfficientAT whose usual weights are here.
    Nothing is downloaded.
    """
    if not config.auto.retrieval or RETRIEVAL not in preset_names():
        return None, ""
    if config.encoder.name != "none":
        return config.encoder.name, f"{config.encoder.name}, as the settings say, compares clips for {RETRIEVAL}"
    if "name" in config.encoder.model_fields_set:  # somebody wants none
        return None, ""
    for name in ENCODERS:
        try:
            find(name)
        except WeightsError:
            continue
        return name, f"weights of {name} are at hand: {RETRIEVAL} compares clips by what it hears"
    return None, (
        "no weights of an encoder are at hand; with some (`offkey weights fetch mn04_as`, 4 MB) a second system, "
        f"{RETRIEVAL}, would join"
    )


def _together(config: SystemConfig, alone: SystemConfig, single: SystemConfig, encoder: str) -> SystemConfig:
    """The ensemble of the single detector and retrieval, each with what the user has set."""
    given = given_settings(alone, load_preset("auto"))
    listens = [text for text in given_settings(config, load_preset("auto")) if text.startswith(_FOR_RETRIEVAL)]
    listens += [] if config.encoder.name != "none" else [f"encoder.name={encoder}"]
    trained = single.kind == "discriminative"
    members = [
        {
            "name": "network" if trained else "logmel",
            "system": "auto",
            "settings": (*given, "auto.retrieval=false", *_bound(config)),
        },
        {"name": RETRIEVAL, "system": RETRIEVAL, "settings": tuple(listens)},
    ]
    tree = {
        "system": config.system, "about": config.about, "kind": "ensemble", "seed": config.seed,
        "calibration": config.calibration, "ensemble": {"members": members}, "auto": config.auto,
    }  # fmt: skip
    return SystemConfig.model_validate(tree)


def _bound(config: SystemConfig) -> tuple[str, ...]:
    return (f"auto.minutes={config.auto.minutes}",) if config.auto.minutes else ()


def _sound(clips: Sequence[ClipMeta]) -> float:
    """Seconds of a clip, the median over some of them; 0 where no header tells."""
    ordered = sorted(clips, key=lambda clip: str(clip.path))
    step = max(1, len(ordered) // _SAMPLED)
    told = [seconds for clip in ordered[::step] if (seconds := _seconds(clip)) > 0]
    return median(told) if told else 0.0


def _seconds(clip: ClipMeta) -> float:
    import soundfile

    try:
        with clip.path.open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            return float(sound.frames) / float(sound.samplerate)
    except (OSError, soundfile.SoundFileError):
        return 0.0


def _minutes(what: str, clips: int, seconds: float) -> float:
    """Minutes for so many clips, by the measured rate of what is done with each."""
    rates = GPU_RATES if _gpu() else RATES
    return clips * rates.get(what, 0.0) * seconds / 10.0 / 60.0


def _separating(clips: int, seconds: float) -> float:
    """Minutes that so many clips take through a separator."""
    return clips * SEPARATOR_HEARS * seconds / 10.0 / 60.0


def _gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _time(minutes: float) -> str:
    if minutes < 1:
        return f"{max(1, round(60 * minutes))} s"
    if minutes < 1.5:
        return "a minute"
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
