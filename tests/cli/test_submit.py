"""`offkey submit`: result files and meta file of evaluated detectors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offkey.evaluation import read_submission

Call = Callable[..., Any]
MODEL = "logmel-knn"


@pytest.fixture
def model(copied: Callable[[str], Path], offkey: Call, small_set: Path) -> Path:
    folder = copied(MODEL)
    assert offkey("evaluate", folder, small_set, "--bootstrap", 0, "--year", 2025).code == 0
    return folder


def test_a_package_holds_what_was_evaluated(offkey: Call, model: Path, tmp_path: Path) -> None:
    said = offkey("submit", model, "--out", tmp_path / "package", "--label", "Doe_UNI_task2_1")
    assert said.code == 0
    assert "16 clips of 2 machines, 5 files" in said.out
    assert "fan, section 00: 8 test clips, and dcase2025 has 200" in said.err
    folder = tmp_path / "package" / "task2" / "Doe_UNI_task2_1"
    meta = (folder / "Doe_UNI_task2_1.meta.yaml").read_text()
    assert 'label: "Doe_UNI_task2_1"' in meta
    assert 'lastname: "TODO"' in meta
    assert 'input_sampling_rate: "16kHz"' in meta
    assert meta.count("auc_source:") == 2
    kept = json.loads((model / "evaluation" / "result.json").read_text())
    theirs = offkey("evaluate", "--scores", folder, "--year", 2025, "--json", "--bootstrap", 0).json
    assert theirs["official_score"] == kept["official_score"]
    assert theirs["decisions"]["all"]["f1"] == kept["decisions"]["all"]["f1"]
    assert len(read_submission(folder)) == 16
    assert offkey("submit", model, "--out", tmp_path / "package", "--label", "Doe_UNI_task2_1").code == 0
    filled = folder / "Doe_UNI_task2_1.meta.yaml"
    filled.write_text(meta.replace("TODO", "Doe"))
    again = offkey("submit", model, "--out", tmp_path / "package", "--label", "Doe_UNI_task2_1")
    assert again.code == 2
    assert "TODO" not in filled.read_text()
    assert "is not empty" in again.err


def test_labels_are_checked_before_anything_is_written(offkey: Call, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "package"
    for arguments, words in (
        (("--label", "Doe_UNI"), "is no label"),
        (("--label", "D_U_task2_1", "--label", "D_U_task2_2"), "1 runs need as many labels, and 2"),
        ((model, "--label", "D_U_task2_1", "--label", "D_U_task2_1"), "have the same label"),
        ((model, model, model, model), "takes 4 submissions of a team, and these are 5"),
    ):
        said = offkey("submit", model, *arguments, "--out", out)
        assert said.code == 2
        assert words in said.err
        assert not out.exists()


def test_without_a_label_a_person_has_to_choose_one(offkey: Call, model: Path, tmp_path: Path) -> None:
    assert offkey("submit", model, "--out", tmp_path / "p").code == 0
    assert [p.name for p in (tmp_path / "p" / "task2").iterdir()] == ["TODO_TODO_task2_1"]


def test_other_data_and_gaps_are_refused(offkey: Call, model: Path, small_set: Path, tmp_path: Path) -> None:
    less = Path(shutil.copytree(small_set, tmp_path / "less"))
    clip = sorted((less / "fan" / "test").glob("*.wav"))[0]
    clip.rename(clip.with_name(clip.name.replace("_0000", "_0077")))
    said = offkey("submit", model, "--out", tmp_path / "p", "--source", less)
    assert said.code == 2
    assert "1 test clips of the data set have no score (fan/" in said.err
    assert not (tmp_path / "p").exists()
    facts = model / "evaluation" / "evaluation.json"
    kept = json.loads(facts.read_text())
    facts.write_text(json.dumps(kept | {"failures": [["a.wav", "truncated"]]}))
    said = offkey("submit", model, "--out", tmp_path / "p")
    assert said.code == 2
    assert "1 test clips could not be scored, first a.wav: truncated" in said.err
    said = offkey("submit", tmp_path, "--out", tmp_path / "p")
    assert said.code == 2
    assert "holds no evaluation" in said.err
