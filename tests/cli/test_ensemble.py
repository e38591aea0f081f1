"""`offkey ensemble` and `offkey card`: detectors that judge together, through every command that takes a detector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture
def made(offkey: Call, fitted: Callable[[str], Any], tmp_path: Path) -> Path:
    out = tmp_path / "together"
    said = offkey("ensemble", fitted("logmel-knn").folder, fitted("discriminative").folder, "--out", out, "--json")
    assert said.code == 0
    assert said.json["members"] == {"discriminative": 0.5, "logmel-knn": 0.5}
    return out


def test_every_command_takes_an_ensemble(offkey: Call, made: Path, small_set: Path, tmp_path: Path) -> None:
    clip = next((small_set / "fan" / "test").glob("*anomaly*.wav"))
    assert offkey("score", made, clip, "--explain", tmp_path / "p").code == 0
    told = offkey("explain", made, clip, "--out", tmp_path / "pictures", "--json").json
    assert Path(told["files"][0]["picture"]).is_file()
    assert "Nothing when this was written" in offkey("card", made).out
    result = offkey("evaluate", made, small_set, "--bootstrap", 0, "--year", 2025, "--json").json
    assert set(result["scorers"]) == {"discriminative", "logmel-knn"}
    assert offkey("report", made, "--examples", 1).code == 0
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "discriminative (" in page
    assert "principal components of the members" in page
    said = offkey("submit", made, "--out", tmp_path / "package", "--label", "Doe_UNI_task2_1")
    assert said.code == 0
    meta = (tmp_path / "package/task2/Doe_UNI_task2_1/Doe_UNI_task2_1.meta.yaml").read_text()
    assert "log-mel energies" in meta
    card = offkey("card", made).out
    assert f"{100 * result['official_score']:.1f}" in card
    assert "of 4 | " in card
    assert "nan" not in card.lower()


def test_wrong_use_is_refused(offkey: Call, made: Path, fitted: Callable[[str], Any], tmp_path: Path) -> None:
    model = fitted("logmel-knn").folder
    before = sorted(path.name for path in model.iterdir())
    for arguments, words in (
        ((model, "--out", made), "holds a detector"),
        ((model, "--out", model, "--overwrite"), "is one of the detectors"),
        ((made / "members" / "logmel-knn", "--out", made, "--overwrite"), "or holds one"),
        ((model, "--weights", "best", "--out", tmp_path / "x"), "equal, agreement, or numbers"),
        ((model, "--weights", "1,2", "--out", tmp_path / "x"), "2 weights for 1 detectors"),
        ((model, "--set", "training.epochs=2", "--out", tmp_path / "x"), "fitted already"),
        ((model, "--set", "calibration.rate=2", "--out", tmp_path / "x"), "unknown setting"),
    ):
        said = offkey("ensemble", *arguments)
        assert said.code == 2, arguments
        assert words in said.err
    assert not (tmp_path / "x").exists()
    assert sorted(path.name for path in model.iterdir()) == before


def test_the_alarm_rule_can_be_chosen(offkey: Call, fitted: Callable[[str], Any], tmp_path: Path) -> None:
    out = tmp_path / "m"
    folders = [fitted(name).folder for name in ("logmel-knn", "logmel-density", "logmel-knn")]
    said = offkey("ensemble", *folders, "--out", out, "--set", "calibration.false_alarm_rate=0.01")
    assert said.code == 0
    assert "logmel-knn comes twice and counts once" in said.err
    assert "22 normal clips cannot promise a false-alarm rate of 0.01" in said.err
    assert "It will never raise an alarm" in offkey("card", out).out
