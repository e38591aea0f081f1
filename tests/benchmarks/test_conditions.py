"""Which system to trust when: the table marks what it says, and one failing run ends nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from offkey.data.synthetic.plan import plan_clips
from offkey.systems.config import load_preset, preset_names
from offkey.types import Content, Split


@pytest.fixture
def conditions(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("conditions")


def test_the_interval_of_a_mean_is_that_of_independent_sets(conditions: ModuleType) -> None:
    rng = np.random.default_rng(0)
    deviations = np.array([0.03, 0.05, 0.02])
    draws = rng.normal([0.6, 0.7, 0.5], deviations, size=(200_000, 3))
    limits = np.quantile(draws, [0.025, 0.975], axis=0)
    scores = [
        conditions.Score(seed, float(draws[:, seed].mean()), *map(float, limits[:, seed]), 1.0) for seed in range(3)
    ]
    cell = conditions.joined(scores)
    expected = np.quantile(draws.mean(axis=1), [0.025, 0.975])
    assert cell.mean == pytest.approx(0.6, abs=1e-3)
    assert (cell.low, cell.high) == pytest.approx(tuple(expected), abs=1e-3)
    assert cell.deviation == pytest.approx(0.1, abs=1e-3)
    assert conditions.joined([]) is None
    assert conditions.joined(scores[:1]).deviation is None


def test_the_best_and_those_within_its_interval_are_marked(conditions: ModuleType) -> None:
    def cell(mean: float, seeds: int = 2) -> Any:
        return conditions.Cell(mean, mean - 0.05, mean + 0.04, 0.01, seeds)

    cells = {
        "a": {"quiet": cell(0.8), "noise": cell(0.5)},
        "b": {"quiet": cell(0.76), "noise": cell(0.99, seeds=1)},
        "c": {"quiet": cell(0.74), "noise": None},
    }
    lines = conditions.table_of(cells, ["quiet", "noise"], seeds=2).splitlines()
    assert lines[2] == "| a | **80.0** [75, 84] | **50.0** [45, 54] |"
    assert lines[3] == "| b | *76.0* [71, 80] | 99.0 (1 of 2 seeds) [94, 103] |"
    assert lines[4] == "| c | 74.0 [69, 78] | – |"


def test_conditions_are_what_their_names_say(conditions: ModuleType) -> None:
    given = type("Given", (), {"scale": 1.0, "seconds": 4.0})()
    sets = {
        condition.name: conditions.synthetic(condition, 101, place, given)
        for place, condition in enumerate(conditions.CONDITIONS)
    }
    base = sets["noise"]
    assert sets["quiet"].snr_db[0] > base.snr_db[1]
    assert sets["loud noise"].snr_db[1] <= base.snr_db[0]
    assert set(sets["hidden"].hidden_attributes) == set(base.machines)
    assert base.hidden_attributes == ()
    assert len(sets["one"].machines) == 1
    assert len(sets["many"].machines) == 6
    clips = [clip for clip in plan_clips(sets["20 clips"]) if clip.machine == "fan" and clip.split is not Split.TEST]
    assert len(clips) == 20
    assert all(clip.content is Content.MIXTURE for clip in clips)
    turns = {conditions.CONDITIONS[3].machines_of(place) for place in range(3)}
    assert turns == {("fan",), ("valve",), ("gearbox",)}  # over three seeds the machines of the other columns


def test_every_preset_is_a_row_once_its_weights_are_there(conditions: ModuleType, tmp_path: Path) -> None:
    from offkey.benchmarking import Contestant

    free = [name for name in preset_names() if load_preset(name).encoder.name == "none"]
    assert [text.split("=")[0] for text in conditions.default_systems(None)] == free
    weights = tmp_path / "weights.pt"
    rows = [Contestant.read(text) for text in conditions.default_systems(weights)]
    assert [row.name for row in rows] == sorted([*preset_names(), "auto-efficientat"])
    for row in rows:
        config = load_preset(row.system, row.overrides)
        assert config.encoder.name in ("none", "efficientat")
        assert config.separation.fit == "never"
        assert config.auto.retrieval is (row.name != "auto")  # one without whatever weights are at hand, one with
        if config.kind != "training-free":
            assert config.training.epochs < load_preset(row.system).training.epochs


def test_a_table_is_made_goes_on_and_names_what_failed(
    conditions: ModuleType, tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [
        "--out", str(tmp_path), "--seconds", "2", "--scale", "0.1", "--seeds", "102,101", "--conditions", "one",
        "--system", "loudness", "--system", "broken=loudness statistics.mean=9",
    ]  # fmt: skip
    assert conditions.main(command) == 1
    written = (tmp_path / "conditions.md").read_text(encoding="utf-8")
    assert "**" in written
    assert "broken" in written.split("Failed: ")[1]
    record = json.loads((tmp_path / "conditions.json").read_text(encoding="utf-8"))
    assert set(record["cells"]) == {"loudness", "broken"}
    scores = record["scores"]["loudness"]["one"]
    assert [score["seed"] for score in scores] == [102, 101]
    mean = math.fsum(score["value"] for score in scores) / 2
    assert record["cells"]["loudness"]["one"]["mean"] == pytest.approx(mean)
    done = len(commands)
    assert conditions.main(command[:-2]) == 0
    assert len(commands) == done  # nothing is done again
    capsys.readouterr()
    with pytest.raises(SystemExit):
        conditions.main(["--out", str(tmp_path), "--seeds", "77"])
    assert "settings were chosen" in capsys.readouterr().err
