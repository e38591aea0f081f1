"""What stands in the meta file, and that any YAML reader gets it back."""

from __future__ import annotations

from typing import Any

import pytest

from offkey.evaluation import MachineResult, Result
from offkey.evaluation.meta import TODO, MetaFacts, meta_yaml

LABEL = "Doe_UNI_task2_1"
ODD = 'loudness: "level", yes # no'


def parsed(facts: MetaFacts) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(meta_yaml(LABEL, facts))


def test_what_is_known_comes_back_and_the_rest_is_marked() -> None:
    values = {"auc_source": 0.58255, "auc_target": 0.5, "pauc": 0.5}
    result = Result("dcase2024", 0.5, None, {"3DPrinter": MachineResult(values)}, values, values)
    facts = MetaFacts("x", ODD, 16000, ["log-mel energies"], parameters=12, external=["beats"], results=result)
    found = parsed(facts)
    assert found["submission"]["label"] == LABEL
    assert found["submission"]["authors"][0]["affiliation"]["institute"] == TODO
    described = found["system"]["description"]
    assert described["machine_learning_method"] == ODD
    assert described["input_sampling_rate"] == "16kHz"
    assert described["data_augmentation"] is None
    assert found["system"]["complexity"] == {"total_parameters": 12, "MACS": TODO}
    assert found["system"]["external_datasets"] == [{"name": "beats", "url": TODO, "total_audio_length": TODO}]
    assert found["results"]["development_dataset"]["3DPrinter"]["auc_source"] == 58.26


def test_without_a_result_or_a_network_it_says_so() -> None:
    text = meta_yaml(LABEL, MetaFacts("x", "about", 16000, [], notes=["two\nlines: of a note"]))
    assert 'development_dataset: "TODO"' in text
    assert "# two lines: of a note\n" in text
    assert "total_parameters: 0" in text
    assert f"Replace every {TODO}" in text.splitlines()[0]
