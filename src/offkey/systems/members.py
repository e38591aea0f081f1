"""The systems of an ensemble, and which settings somebody has given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from offkey.systems.config import SystemConfig, load_preset
from offkey.systems.settings import toml_value

__all__ = ["given_settings", "member_systems"]

_OWN = {"system", "about", "kind", "scoring", "ensemble", "auto"}  # of the ensemble itself


def member_systems(config: SystemConfig) -> dict[str, SystemConfig]:
    """The systems of an ensemble by name. What was set in the ensemble holds for all; a member's own settings win.

    Raises SettingsError for a member that does not exist, or settings that do not fit it.

    >>> ensemble = load_preset("ensemble", ["ensemble.members=['loudness']", "calibration.folds=3"])
    >>> member_systems(ensemble)["loudness"].calibration.folds
    3
    """
    shared = config.model_dump(mode="json", exclude_unset=True, exclude=_OWN)
    named = zip(config.ensemble.names, config.ensemble.members, strict=True)
    return {name: load_preset(entry.system, entry.settings, shared) for name, entry in named}


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
