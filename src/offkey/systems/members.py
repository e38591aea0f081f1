"""The systems of an ensemble, and which settings somebody has given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from offkey.systems.config import SystemConfig, load_preset
from offkey.systems.settings import SettingsError, toml_value

__all__ = ["given_settings", "member_systems"]

_OWN = {"system", "about", "kind", "scoring", "ensemble", "auto"}  # of the ensemble itself


def member_systems(config: SystemConfig) -> dict[str, SystemConfig]:
    """The systems of an ensemble by name. What was set in the ensemble holds for all; a member's own settings win.

    `augmentation.remix` of the ensemble passes by members that train nothing.

    Raises SettingsError for a member that does not exist, settings that do not fit it, or `augmentation.remix` where
    no member trains.

    >>> ensemble = load_preset("ensemble", ["ensemble.members=['loudness']", "calibration.folds=3"])
    >>> member_systems(ensemble)["loudness"].calibration.folds
    3
    """
    shared = config.model_dump(mode="json", exclude_unset=True, exclude=_OWN)
    named = zip(config.ensemble.names, config.ensemble.members, strict=True)
    if not config.augmentation.remix.enabled:
        return {name: load_preset(entry.system, entry.settings, shared) for name, entry in named}
    plain = config.augmentation.model_dump(mode="json", exclude_unset=True, exclude={"remix": {"enabled"}})
    systems = {}
    for name, entry in named:
        untrained = load_preset(entry.system, entry.settings, shared | {"augmentation": plain})
        trains = untrained.kind != "training-free"
        systems[name] = load_preset(entry.system, entry.settings, shared) if trains else untrained
    if not any(system.augmentation.remix.enabled for system in systems.values()):
        raise SettingsError(
            "augmentation.remix makes training clips, and no member of this ensemble learns from any: leave it out, or "
            f"add one that trains (members: {', '.join(systems)})"
        )
    return systems


def given_settings(config: SystemConfig, base: SystemConfig) -> tuple[str, ...]:
    """The settings in which `config` differs from `base`, KEY=VALUE texts that `--set` would take.

    >>> given_settings(load_preset("auto", ["training.epochs=2"]), load_preset("auto"))
    ('training.epochs=2',)
    """
    told = _differences(config.model_dump(mode="json"), base.model_dump(mode="json"))
    return tuple(text for key, text in told if key.partition(".")[0] not in ("system", "about", "kind", "auto"))


def _differences(tree: Mapping[str, Any], base: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        key = f"{path}{name}"
        if isinstance(value, Mapping) and isinstance(base.get(name), Mapping):
            yield from _differences(value, base[name], f"{key}.")
        elif name not in base or value != base[name]:
            yield key, f"{key}={'null' if value is None else toml_value(value)}"
