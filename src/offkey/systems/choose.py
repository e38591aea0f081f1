"""`auto`: looks at what there is to learn from, settles every open setting, and says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from offkey.data.labels import LabelSpace
from offkey.systems.config import SystemConfig, load_preset
from offkey.systems.settings import SettingsError
from offkey.types import ClipMeta, Content

__all__ = ["choose", "trains_behind_separator", "without_network"]

FEWEST_CLIPS = 40
"""Normal clips below which a network would learn the clips by heart instead of the machine."""

SMALLEST_CLASS = 5
FEWEST_CLASSES = 2


def choose(
    config: SystemConfig, clips: Sequence[ClipMeta], extra: Sequence[ClipMeta] = ()
) -> tuple[SystemConfig, list[str]]:
    """Settle an `auto` system for these training clips (`extra`: supplemental ones); other systems stay as they are.

    Label settings that somebody gave (`--set labels.…`) are kept.

    Returns settings whose kind is no longer "auto", and a sentence for each choice.
    """
    if config.kind != "auto":
        return config, []
    machines = sorted({clip.machine for clip in clips})
    reasons: list[str] = []
    usual = config.scoring == load_preset("auto").scoring
    if config.separation.front_end and usual:
        config = _behind_separator(config)
        reasons.append(
            "behind a separator three scores of log-mel statistics judge, and no network: it added nothing there "
            "(docs/benchmarks.md; `--system discriminative` trains one)"
        )
    elif not _looks_at_network(config):
        reasons.append("no scorer that was asked for looks at a network, so none is trained")
    elif len(clips) < FEWEST_CLIPS:
        reasons.append(
            f"{len(clips)} normal clips are too few to train a network (it takes {FEWEST_CLIPS}): "
            "training-free log-mel statistics"
        )
    if reasons:
        if config.encoder.name != "none":
            reasons.append(f"so {config.encoder.name} is not asked either")
        single, remarks = without_network(config)
        return single, reasons + remarks

    labels: dict[str, Any] = {"supplemental": False}
    space = LabelSpace.of(clips, "attributes")
    sizes = Counter(space.name(clip) for clip in clips if clip.attributes)
    classes = sum(count >= SMALLEST_CLASS for count in sizes.values())
    unnamed = [name for name in machines if not any(clip.attributes for clip in clips if clip.machine == name)]
    labels["identity"] = "attributes"
    if classes >= FEWEST_CLASSES * len(machines):
        reasons.append(
            f"{classes} combinations of machine and known setting with {SMALLEST_CLASS} clips or more: "
            "the network learns to tell them apart"
        )
    elif len(unnamed) < len(machines):
        reasons.append(f"{max(classes, 1)} known setting(s) for {len(machines)} machine(s)")
    # where known settings make classes enough, clusters of the other machines made the network worse (offkey demo)
    if unnamed and classes < FEWEST_CLASSES * len(machines):
        labels["identity"] = "clusters" if len(unnamed) == len(machines) else "attributes-or-clusters"
        others = "" if len(unnamed) == len(machines) else "; the other machines keep their known settings as classes"
        reasons.append(
            f"settings of {', '.join(unnamed)} are not told: clips that sound alike are clustered into pseudo-classes, "
            f"in each domain by itself{others}"
        )
    if classes < FEWEST_CLASSES * len(machines):
        labels["speeds"] = (1.0, 1.05, 1.1)
        reasons.append(
            "few classes to tell apart: every clip is also played 5 % and 10 % faster, as classes of their own"
        )
    pool = [clip for clip in extra if clip.content is Content.NOISE]
    if extra:
        labels["supplemental"] = True
        reasons.append(
            f"{len(extra)} supplemental clips ({len(pool)} of noise alone) join training as classes of their own"
        )
    if pool:
        reasons.append("noise recordings are mixed into training clips, so that the network learns to hear past them")
    reasons.append(
        "scores of the network's embedding and of log-mel statistics are blended, because either can be deaf"
    )
    told = config.labels.model_fields_set & labels.keys()
    if told:
        labels = {name: value for name, value in labels.items() if name not in told}
        reasons.append(f"as the settings say: {', '.join(f'labels.{name}' for name in sorted(told))}")
    return _changed(config, kind="discriminative", labels=labels), reasons


def trains_behind_separator(config: SystemConfig) -> bool:
    """Whether a system may train a network behind a separator: `auto` does only with scorers that somebody set."""
    if config.kind == "auto":
        return _looks_at_network(config) and config.scoring != load_preset("auto").scoring
    return config.kind != "training-free"


def without_network(config: SystemConfig) -> tuple[SystemConfig, list[str]]:
    """What `auto` becomes where no network is trained: training-free, without what only a network could use.

    The sentences tell what somebody asked for and does not get. Raises SettingsError where every scorer that was asked
    for looks at a network.
    """
    scorers = [entry for entry in config.scoring.scorers if entry.view != "network"]
    if not scorers:
        raise SettingsError(
            "scoring.scorers all look at a network, and for these clips auto trains none: give one the view logmel, or "
            "choose --system discriminative"
        )
    changes: dict[str, Any] = {
        "kind": "training-free", "scoring": {"scorers": scorers}, "encoder": {"name": "none"},
    }  # fmt: skip
    if not config.augmentation.remix.enabled:
        return _changed(config, **changes), []
    changes["augmentation"] = {"remix": {"enabled": False}}
    remark = "augmentation.remix is switched off: it makes clips to train on, and nothing is trained"
    return _changed(config, **changes), [remark]


def _looks_at_network(config: SystemConfig) -> bool:
    return any(entry.view == "network" for entry in config.scoring.scorers)


def _behind_separator(config: SystemConfig) -> SystemConfig:
    """With the scorer of logmel-density as well.

    What a separator errs in differs from clip to clip: one clip that is like it says more than a mean of all. That
    scorer joins, and the network leaves: settled on simulated machines (docs/benchmarks.md).
    """
    scorers = (*config.scoring.scorers, *load_preset("logmel-density").scoring.scorers)
    return config.model_copy(update={"scoring": config.scoring.model_copy(update={"scorers": scorers})})


def _changed(config: SystemConfig, **changes: Any) -> SystemConfig:
    tree = config.model_dump()
    for key, value in changes.items():
        _lay(tree, key, value)
    return SystemConfig.model_validate(tree)


def _lay(tree: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, dict) and isinstance(tree.get(key), dict):
        for inner, below in value.items():
            _lay(tree[key], inner, below)
    else:
        tree[key] = value
