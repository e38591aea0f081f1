"""The YAML file beside a submission that tells the organisers what the system is.

The keys are those of the challenge's template as it was in 2023 to 2025, from memory of its manner and not from a copy:
compare the file with the template of the year before it is sent. What a program cannot know is marked `TODO`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offkey.evaluation.result import Result

__all__ = ["TODO", "MetaFacts", "meta_yaml"]

TODO = "TODO"
"""What stands where a person has to write."""

Tree = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MetaFacts:
    """What a detector knows of itself.

    `parameters` counts numbers that a network holds, None where there is none; `external` are pretrained weights or
    data from elsewhere, by name; `results` the development result where there is one.
    """

    system: str
    about: str
    rate_hz: int
    features: Sequence[str]
    augmentation: Sequence[str] = ()
    method: str = ""
    subsystems: int = 1
    decision: str = ""
    parameters: int | None = None
    external: Sequence[str] = ()
    results: Result | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def meta_yaml(label: str, facts: MetaFacts) -> str:
    """The file as text; every scalar that is text is quoted, so any YAML reader gets back what was meant.

    >>> print(meta_yaml("Doe_UNI_task2_1", MetaFacts("loudness", "level", 16000, ["level"])).splitlines()[3])
      label: "Doe_UNI_task2_1"
    """
    person = {
        "lastname": TODO,
        "firstname": TODO,
        "email": TODO,
        "corresponding": True,
        "affiliation": {"abbreviation": TODO, "institute": TODO, "department": TODO, "location": TODO},
    }
    external = [{"name": name, "url": TODO, "total_audio_length": TODO} for name in facts.external]
    tree: dict[str, Any] = {
        "submission": {
            "label": label,
            "name": f"offkey {facts.system}",
            "abbreviation": TODO,
            "authors": [person],
        },
        "system": {
            "description": {
                "input_sampling_rate": f"{facts.rate_hz / 1000:g}kHz",
                "acoustic_features": ", ".join(facts.features) or None,
                "data_augmentation": ", ".join(facts.augmentation) or None,
                "embeddings": ", ".join(facts.external) or None,
                "machine_learning_method": facts.method or facts.about,
                "ensemble_method_subsystem_count": facts.subsystems,
                "decision_making": facts.decision or None,
                "external_data_usage": "pre-trained model" if facts.external else None,
            },
            "complexity": {"total_parameters": facts.parameters or 0, "MACS": TODO},
            "external_datasets": external or None,
            "source_code": TODO,
        },
        "results": {"development_dataset": _results(facts.results) if facts.results is not None else TODO},
    }
    head = [
        f"# {label}: written by offkey. Replace every {TODO}, and compare the keys with the template of the year:",
        "# the organisers may have renamed some.",
        *(f"# {' '.join(note.split())}" for note in facts.notes),
    ]
    return "\n".join([*head, *_lines(tree, 0)]) + "\n"


def _results(result: Result) -> dict[str, Any]:
    """Percent with two decimals, a machine each."""
    return {
        name: {metric: round(100 * value, 2) for metric, value in machine.values.items()}
        for name, machine in result.machines.items()
    }


def _lines(value: Tree, depth: int) -> list[str]:
    lines = []
    for key, below in value.items():
        name = f"{'  ' * depth}{_key(key)}:"
        if isinstance(below, Mapping):
            lines += [name, *_lines(below, depth + 1)]
        elif isinstance(below, list):
            lines.append(name)
            for entry in below:
                first, *rest = _lines(entry, depth + 2)
                lines += ["  " * (depth + 1) + "- " + first.lstrip(), *rest]
        else:
            lines.append(f"{name} {_scalar(below)}")
    return lines


def _key(key: str) -> str:
    """A key that YAML cannot take for a number: `3DPrinter` is one of the machines."""
    return key if key.isidentifier() else json.dumps(key)


def _scalar(value: object) -> str:
    """JSON's scalars are YAML's too."""
    return json.dumps(value, ensure_ascii=False)
