"""Class numbers for training: who a clip sounds like (identity), its settings (attributes), its domain.

An identity is a machine with one combination of known settings; where a machine's settings are hidden, the
machine with its domain. Clips whose class was not seen among the training clips get -1, which every loss
skips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from offkey.types import ClipMeta, Content, Domain, OffkeyError

__all__ = ["IdentityBy", "LabelSpace"]

IdentityBy = Literal["attributes", "domain", "machine"]
_DOMAINS = {Domain.SOURCE: 0, Domain.TARGET: 1, Domain.UNKNOWN: -1}


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a set of training clips, in a fixed (sorted) order.

    `identities` are class names; `attribute_heads` are (head, values) pairs, one a machine and setting with
    at least two values, named "machine/setting"; `identity_by` is the rule that names a clip's class;
    `with_settings` are the "machine/section" whose settings are known. `pseudo` (path -> suffix) refines
    identities by clusters found elsewhere; it is not saved by `to_dict`, since it names files.

    >>> clips = [ClipMeta(Path(f"{i}.wav"), "fan", attributes=(("speed", v),)) for i, v in enumerate("1212")]
    >>> space = LabelSpace.of(clips)
    >>> space.identities
    ('fan/00/speed=1', 'fan/00/speed=2')
    >>> space.encode(clips[1])
    (1, (1,), -1)
    """

    identities: tuple[str, ...]
    attribute_heads: tuple[tuple[str, tuple[str, ...]], ...] = ()
    identity_by: IdentityBy = "attributes"
    with_settings: tuple[str, ...] = ()
    pseudo: Mapping[Path, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        clips: Sequence[ClipMeta],
        identity: IdentityBy = "attributes",
        pseudo: Mapping[Path, str] | None = None,
    ) -> LabelSpace:
        """The classes that `clips` have; raises `OffkeyError` where there are no clips."""
        if not clips:
            raise OffkeyError("there are no clips to learn classes from; look for training clips first")
        known = sorted({_unit(clip) for clip in clips if clip.attributes})
        draft = cls((), (), identity, tuple(known), dict(pseudo or {}))
        values: dict[str, set[str]] = {}
        for clip in clips:
            for name, value in clip.attributes:
                values.setdefault(f"{clip.machine}/{name}", set()).add(value)
        heads = tuple((head, tuple(sorted(seen))) for head, seen in sorted(values.items()) if len(seen) > 1)
        names = sorted({draft.name(clip) for clip in clips})
        return cls(tuple(names), heads, identity, tuple(known), draft.pseudo)

    def name(self, clip: ClipMeta) -> str:
        """The identity that `clip` belongs to by the rule, whether or not it is one of `identities`."""
        unit = _unit(clip)
        if clip.content is Content.NOISE:
            # Surroundings without the machine are one class: noise of one machine is mixed into clips of another.
            name = "noise"
        elif self.identity_by == "machine":
            name = unit
        elif self.identity_by == "attributes" and clip.attributes and unit in self.with_settings:
            name = f"{unit}/" + ",".join(f"{key}={value}" for key, value in clip.attributes)
        else:
            name = f"{unit}/{clip.domain.value}"
        suffix = self.pseudo.get(clip.path)
        return name if suffix is None else f"{name}#{suffix}"

    def encode(self, clip: ClipMeta) -> tuple[int, tuple[int, ...], int]:
        """(identity, one value number an attribute head, domain: 0 source, 1 target); -1 where not known."""
        settings = {f"{clip.machine}/{name}": value for name, value in clip.attributes}
        attributes = tuple(numbers.get(settings[head], -1) if head in settings else -1 for head, numbers in self._heads)
        return self._numbers.get(self.name(clip), -1), attributes, _DOMAINS[clip.domain]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.identities)}

    @cached_property
    def _heads(self) -> list[tuple[str, dict[str, int]]]:
        return [(head, {value: number for number, value in enumerate(values)}) for head, values in self.attribute_heads]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, for JSON; `from_dict` restores them."""
        return {
            "identities": list(self.identities),
            "attribute_heads": [[head, list(values)] for head, values in self.attribute_heads],
            "identity_by": self.identity_by,
            "with_settings": list(self.with_settings),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LabelSpace:
        """The space that `to_dict` described; raises `OffkeyError` on anything else."""
        try:
            heads = tuple(
                (str(head), tuple(str(value) for value in values)) for head, values in state["attribute_heads"]
            )
            rule = state["identity_by"]
            if rule not in ("attributes", "domain", "machine"):
                raise ValueError(f"identity_by is {rule!r}")
            return cls(
                tuple(str(name) for name in state["identities"]),
                heads,
                rule,
                tuple(str(unit) for unit in state["with_settings"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise OffkeyError(f"this is no description of classes: {error}") from None


def _unit(clip: ClipMeta) -> str:
    return f"{clip.machine}/{clip.section}"
