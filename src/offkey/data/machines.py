"""Which machine a recording is of: by its name, its folders, or what the asker says. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from offkey.data.dcase import parse_name
from offkey.types import ClipMeta, OffkeyError

__all__ = ["UnknownMachine", "clip_meta", "known_machine", "machine_key", "machine_of", "which_machine"]


class UnknownMachine(OffkeyError):
    """A recording of a machine that was not learnt; reaches you as the error of what was asked."""


def clip_meta(path: str | Path | ClipMeta) -> ClipMeta:
    """What a path tells of its recording: the folder names the machine, a DCASE name the section."""
    if isinstance(path, ClipMeta):
        return path
    path = Path(path)
    name = parse_name(path.name)
    return ClipMeta(path, machine=path.absolute().parent.name, section=name.section if name else "00")


def machine_key(meta: ClipMeta, machines: Iterable[str]) -> str | None:
    """The one of `machines` that a clip belongs to: its machine, or its machine and section; None if neither."""
    known = set(machines)
    for key in (f"{meta.machine}/{meta.section}", meta.machine):
        if key in known:
            return key
    return None


def machine_of(key: str, section: str) -> str:
    """The reverse of `machine_key`: what the challenge calls a machine that a detector knows by its section.

    >>> machine_of("fan/03", "03"), machine_of("fan", "00")
    ('fan', 'fan')
    """
    return key.removesuffix(f"/{section}")


def known_machine(named: str, machines: Iterable[str]) -> str:
    """`named`, where it is one of `machines`; raises UnknownMachine, which tells them."""
    machines = list(machines)
    if named not in machines:
        raise UnknownMachine(f"this detector does not know the machine {named!r}; it knows {', '.join(machines)}")
    return named


def which_machine(clip: ClipMeta, machines: Iterable[str], named: str | None = None) -> str:
    """The one of `machines` that a clip is judged as; raises UnknownMachine, which names them."""
    machines = list(machines)
    if named is not None:
        return known_machine(named, machines)
    if len(machines) == 1:
        return machines[0]
    for name in (clip.machine, *(folder.name for folder in clip.path.parents)):
        key = machine_key(replace(clip, machine=name), machines)
        if key is not None:
            return key
    known = ", ".join(machines)
    raise UnknownMachine(f"which machine is {clip.path.name}? name one of {known} (its folder, or --machine)")
