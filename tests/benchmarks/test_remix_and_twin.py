"""Differences that a table tells are those of pairs, and halves are made of whole groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from offkey.benchmarking import BenchmarkRun, benchmark
from offkey.benchmarking import Contestant as Row
from offkey.evaluation.result import Result
from offkey.progress import Quiet
from offkey.systems.config import load_preset


@pytest.fixture
def twin(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("twin")


@pytest.fixture
def remix(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("remix")


def made(system: str, seed: int, score: float, half: float = 0.05) -> BenchmarkRun:
    result = Result("dcase2025", score, (score - half, score + half), {}, {"pauc": score}, {"pauc": score})
    return BenchmarkRun(system, seed, Path(f"{system}-seed{seed}"), result, 1.0, 1.0, 1.0)


def test_remix_is_compared_seed_by_seed(remix: ModuleType) -> None:
    runs = [made("a", 0, 0.5), made("a", 1, 0.7), made("a", 2, 0.9), made("a-remix", 0, 0.6), made("a-remix", 1, 0.8)]
    table = remix.table_of({"here": [*runs, made("b", 0, 0.5)]}).splitlines()
    assert table[2] == "| here | a | 0, 1 | 60.0 ± 14.1 | 70.0 ± 14.1 | +10.0 ± 0.0 |"
    assert table[3] == "| here | b | none has both | – | – | – |"


def test_rows_with_and_without_remix_differ_in_nothing_else(remix: ModuleType, tmp_path: Path) -> None:
    rows = remix.contestants(["discriminative", "system1"], tmp_path, tmp_path / "w.pt", [])
    assert [row.name for row in rows] == ["discriminative", "discriminative-remix", "system1", "system1-remix"]
    for plain, mixed in (rows[:2], rows[2:]):
        one = load_preset(plain.system, plain.overrides).model_dump()
        other = load_preset(mixed.system, mixed.overrides).model_dump()
        assert other["augmentation"]["remix"].pop("enabled") is True
        assert one["augmentation"]["remix"].pop("enabled") is False
        assert other["separation"].pop("model") == str(tmp_path)
        one["separation"].pop("model")
        assert one == other
    assert [row.name for row in remix.contestants(["discriminative", "system1"], tmp_path, None, [])] == [
        "discriminative", "discriminative-remix",
    ]  # fmt: skip


def test_without_a_separator_the_command_that_makes_one_is_told(
    remix: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offkey.data.synthetic.synthesize", lambda root, config: None)
    assert remix.main(["--out", str(tmp_path), "--clips", "1", "--seconds", "2"]) == 1
    assert f"offkey fit-separator {tmp_path / 'simulated'} --out" in capsys.readouterr().err


def test_halves_are_whole_groups_and_hold_every_stratum(twin: ModuleType) -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{number}" for number in rng.integers(20, size=200)]
    strata = [f"s{int(group[1:]) % 3}" for group in groups]
    for seed in range(5):
        first = twin.deal(groups, strata, seed)
        for group in set(groups):
            assert len({side for side, name in zip(first, groups, strict=True) if name == group}) == 1
        for stratum in set(strata):
            inside = {g for g, s in zip(groups, strata, strict=True) if s == stratum}
            here = {g for g, side in zip(groups, first, strict=True) if side} & inside
            assert abs(2 * len(here) - len(inside)) <= 1
    assert twin.deal(groups, strata, 1) == twin.deal(groups, strata, 1) != twin.deal(groups, strata, 2)


def test_choosing_by_luck_loses_in_the_other_half(twin: ModuleType) -> None:
    rng = np.random.default_rng(0)
    halves = [
        twin.Half(*({f"s{k}": float(v) for k, v in enumerate(rng.normal(0.6, 0.05, 10))} for _ in range(2)))
        for _ in range(200)
    ]
    here, there, same = twin.loss_of_choosing(halves)
    assert here == pytest.approx(0.6 + 1.54 * 0.05, abs=0.005)  # the mean of the largest of ten normal draws
    assert there == pytest.approx(0.6, abs=0.01)
    assert same / 400 == pytest.approx(0.1, abs=0.06)
    better = [twin.Half({"a": 0.9, "b": 0.5}, {"a": 0.8, "b": 0.6})]
    assert twin.loss_of_choosing(better) == (pytest.approx(0.85), pytest.approx(0.85), 2)


def test_a_twin_stands_beside_with_the_interval_of_the_difference(twin: ModuleType) -> None:
    text = twin.twin_text(
        [made("a", 0, 0.8, 0.03), made("a", 1, 0.6, 0.03), made("b", 0, 0.5)],
        [made("a", 0, 0.6, 0.04), made("a", 1, 0.6, 0.04)],
    )
    lines = text.splitlines()
    assert lines[2] == "| a | 70.0 [67.0, 73.0] | 60.0 [56.0, 64.0] | -10.0 [-15.0, -5.0] |"
    assert lines[3] == "| b | 50.0 | – | – |"


def test_halves_of_kept_runs(
    twin: ModuleType, small_set: Path, tmp_path: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row.read("loudness"), Row.read("logmel-knn")]
    runs = benchmark(small_set, rows, [0], tmp_path, workers=0, progress=Quiet(), failures=[])
    names = sorted(path.name for path in small_set.glob("*/test/*.wav"))
    table = tmp_path / "groups.csv"
    table.write_text("file,flight\n" + "".join(f"{name},{number}\n" for number, name in enumerate(names)))
    assert twin.main([str(tmp_path), "--groups", f"{table}:flight", "--splits", "2", "--out", str(tmp_path / "x")]) == 0
    assert "Over 2 deals" in (tmp_path / "x").read_text()
    found = twin.halves(runs, {name: str(number) for number, name in enumerate(names)}, 1)
    assert set(found[0].first) == {"loudness", "logmel-knn"}
    with pytest.raises(SystemExit, match="no group is told"):
        twin.halves(runs, {}, 1)
    assert twin.main([str(tmp_path), "--twin", str(tmp_path)]) == 0
    assert "+0.0" in capsys.readouterr().out
