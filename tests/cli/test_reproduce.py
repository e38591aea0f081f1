"""`offkey reproduce`: the plan, the run, and the way on to a submission that is judged."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offkey.benchmarking as benchmarking
from offkey.cli.app import run
from offkey.data.synthetic.years import YearConfig, write_year

Call = Callable[..., Any]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs happen in this process: a process each takes seconds."""

    def command(arguments: list[str]) -> tuple[float, float]:
        if run(arguments) not in (0, 1):
            raise benchmarking.BenchmarkError("ended badly")
        return 0.25, 100.0

    monkeypatch.setattr(benchmarking, "_command", command)


@pytest.fixture(scope="module")
def root(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fan and valve of 2025's development set; AutoTrash of its evaluation set, hidden, with the organisers' list."""
    root = tmp_path_factory.mktemp("root")
    for machine in ("fan", "valve"):
        shutil.copytree(small_set / machine, root / "dcase2025t2" / "dev_data" / "raw" / machine)
    hidden = root / "dcase2025t2" / "eval_data" / "raw" / "AutoTrash"
    shutil.copytree(small_set / "fan", hidden)
    lines = ["AutoTrash"]
    for number, path in enumerate(sorted((hidden / "test").glob("*.wav"))):
        lines.append(f"section_00_{number:04d}.wav,{path.name}")
        path.rename(path.with_name(f"section_00_{number:04d}.wav"))
    (root / "eval_data_list_2025.csv").write_text("\n".join(lines) + "\n")
    return root


def test_a_dry_run_writes_nothing_and_tells_everything(offkey: Call, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = (
        "reproduce",
        "table1",
        "--root",
        root,
        "--machines",
        "fan,valve",
        "--seeds",
        "0,1",
        "--out",
        out,
        "--dry-run",
    )
    said = offkey(*command)
    assert said.code == 0
    assert not out.exists()
    assert "data: 64 clips" in said.out
    assert "weights: not here: offkey weights fetch BEATs_iter3_plus_AS2M" in said.out
    for word in ("system1", "system4", "baseline", "2 cores", "one GPU", "docs/benchmarks.md", "not measured"):
        assert word in said.out
    found = offkey(*command, "--json").json
    assert found["counts"]["told"] == "counted"
    assert [entry["name"] for entry in found["systems"]] == ["system1", "system2", "system3", "system4", "baseline"]
    assert found["total"]["cpu_hours"] == pytest.approx(2 * sum(e["cpu_seconds"] for e in found["systems"]) / 3600)
    assert found["stages"][0] == "data"
    assert found["fetch"] is None


def test_a_dry_run_without_data_says_how_to_get_it(offkey: Call, tmp_path: Path) -> None:
    said = offkey("reproduce", "dcase2024", "--root", tmp_path / "none", "--systems", "baseline", "--dry-run")
    assert said.code == 0
    assert "offkey data fetch dcase2024" in said.out
    assert "clips usual" in said.out
    assert "clips a section: 990 + 10 for training and 200 for test" in said.out
    old = offkey("reproduce", "evaluation2020", "--root", tmp_path / "none", "--systems", "baseline", "--dry-run").out
    assert "ToyConveyor (04 05 06)" in old
    assert "offkey data fetch dcase2020" in old
    assert "organisers of 2020" in old
    assert offkey("reproduce", "dcase2024", "--root", tmp_path / "none", "--systems", "baseline", "--out",
                  tmp_path / "run").code == 2  # fmt: skip


def test_an_evaluation_set_goes_all_the_way(offkey: Call, here: None, root: Path, tmp_path: Path) -> None:
    out, package = tmp_path / "run", tmp_path / "package"
    command = ["reproduce", "evaluation2025", "--root", root, "--machines", "AutoTrash", "--systems",
               "logmel-knn,loudness", "--bootstrap", 0, "--workers", 0, "--out", out]  # fmt: skip
    said = offkey(*command)
    assert said.code == 0
    assert "scores without a metric: logmel-knn-seed0, loudness-seed0" in said.out
    assert f"next: offkey submit {out} --out PACKAGE" in said.out
    assert offkey("submit", out, "--out", package, "--label", "D_U_task2_1", "--label", "D_U_task2_2").code == 0
    folder = package / "task2" / "D_U_task2_1"
    truth = root / "eval_data_list_2025.csv"
    judged = offkey("evaluate", "--scores", folder, "--truth", truth, "--year", 2025, "--bootstrap", 0, "--json").json
    table = offkey(*command, "--truth", truth, "--json").json
    ours = {
        row["system"]: row["percent"]
        for row in table["table"]
        if (row["machine"], row["metric"]) == ("", "official_score")
    }
    assert ours["logmel-knn"] == pytest.approx(100 * judged["official_score"])
    assert offkey("submit", out, "--out", tmp_path / "other", "--seed", 3).err.count("has no run with seed 3; it has 0")


@pytest.mark.parametrize(
    ("year", "files"),
    [
        (2020, {"anomaly_score_fan_id_01.csv", "anomaly_score_fan_id_03.csv"}),
        (2021, {f"{kind}_fan_section_0{section}_{domain}_test.csv" for kind in ("anomaly_score", "decision_result")
                for section in (3, 4) for domain in ("source", "target")}),
        (2022, {f"{kind}_fan_section_0{section}_test.csv" for kind in ("anomaly_score", "decision_result")
                for section in (3, 4)}),
    ],
)  # fmt: skip
def test_a_year_with_several_sections_goes_all_the_way(
    offkey: Call, here: None, year: int, files: set[str], tmp_path: Path
) -> None:
    small = YearConfig(machines=("fan",), train_source=3, train_target=1, test_per_group=1, seconds=2.0, rate=8000)
    mini = write_year(tmp_path / "mini", year, small)
    root = mini.folder.rename(tmp_path / "data")  # its name tells no year
    out, package, truth = tmp_path / "run", tmp_path / "package", tmp_path / "truth" / f"dcase{year}t2" / "truth"
    command = ["reproduce", f"evaluation{year}", "--root", root, "--machines", "fan", "--systems", "loudness",
               "--bootstrap", 0, "--workers", 0, "--out", out]  # fmt: skip
    plan = offkey(*command, "--dry-run", "--json").json
    assert (plan["counts"]["train"], plan["counts"]["test"], plan["missing"]) == (8, 8, [])
    assert len(plan["sections"]) == 3
    assert "scores without a metric: loudness-seed0" in offkey(*command).out
    assert offkey("submit", out, "--out", package, "--label", "D_U_task2_1").code == 0
    folder = package / "task2" / "D_U_task2_1"
    assert {path.name for path in folder.glob("*.csv")} == files
    assert offkey("data", "truth", f"dcase{year}", "--root", tmp_path / "truth", "--from", mini.truth).code == 0
    judged = offkey("evaluate", "--scores", folder, "--truth", truth, "--year", year, "--bootstrap", 0, "--json").json
    said = offkey(*command, "--truth", truth)
    assert "fan/03" in said.out
    assert f"{'arithmetic' if year == 2020 else 'harmonic'} mean, recomputed" in said.out
    assert {2020: "AUC / pAUC.", 2021: "pAUC source / pAUC target.", 2022: "AUC target / pAUC."}[year] in said.out
    table = offkey(*command, "--truth", truth, "--json").json["table"]
    ours = {(row["machine"], row["metric"]): row["percent"] for row in table}
    assert ours["", "official_score"] == pytest.approx(100 * judged["official_score"])
    for section, values in judged["machines"]["fan"]["sections"].items():
        for metric, value in values.items():
            assert ours[f"fan/{section}", metric] == pytest.approx(100 * value)


def test_missing_data_is_fetched_by_the_command_that_is_told(
    offkey: Call, here: None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offkey.cli import app as room

    empty = tmp_path / "empty"
    empty.mkdir()
    ours, fetched = room.run, []

    def run(arguments: list[str]) -> int:
        if arguments[:2] == ["data", "fetch"]:
            fetched.append(arguments)
            shutil.copytree(root / "dcase2025t2", empty / "dcase2025t2")
            return 0
        return ours(arguments)

    monkeypatch.setattr(room, "run", run)
    small = ("--machines", "fan", "--systems", "loudness", "--bootstrap", 0, "--workers", 0)
    said = offkey("reproduce", "dcase2025", "--root", empty, *small, "--out", tmp_path / "run", "--fetch")
    assert said.code == 0
    assert fetched == [["data", "fetch", "dcase2025", "--root", str(empty), "--parts", "dev", "--machines", "fan"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("table2",), "did you mean table1"),
        (("table1", "--seeds", "a"), "whole numbers"),
        (("table1", "--machines", "pump"), "no machine 'pump'"),
        (("table1", "--systems", ""), "at least one system"),
        (("table1", "--systems", "sistem1"), "there is no system 'sistem1'"),
        (("table1", "--set", "training.epoch=1"), "training.epochs"),
        (("table1", "--additional", "auto"), "--additional names auto"),
    ],
)
def test_wrong_use_is_told(offkey: Call, root: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    said = offkey("reproduce", *arguments, "--root", root, "--out", tmp_path / "run")
    assert said.code == 2
    assert words in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_table1_with_every_system_in_miniature(
    offkey: Call, here: None, root: Path, tmp_path: Path, small_beats: Path
) -> None:
    out = tmp_path / "run"
    weights = f"encoder.weights={small_beats}"
    quick = "training.epochs=1 training.batch_size=8 model.width=0.125"
    slim = "training.epochs=1 training.batch_size=64 model.width=16"
    variants = [f"{name}={name} {quick} {weights}" for name in ("system1", "system2")]
    variants += [f"{name}={name} {slim} {weights}" for name in ("system3", "system4")] + [f"baseline=baseline {slim}"]
    given = [word for text in variants for word in ("--variant", text)]
    said = offkey("reproduce", "table1", "--root", root, "--machines", "fan,valve", *given, "--bootstrap", 0,
                  "--workers", 0, "--out", out)  # fmt: skip
    assert said.code == 0, said.err
    with (out / "table.csv").open(newline="") as file:
        published = {row["system"] for row in csv.DictReader(file) if row["origin"] == "published"}
    assert published == {"System 1", "System 2", "System 3", "System 4", "AE, MSE", "AE, Mahalanobis"}
    assert "official score, recomputed" in said.out
    audit = json.loads((out / "audit.json").read_text())
    assert len(audit["runs"]) == 5
    assert set(audit["stages"]["weights"]["systems"]) == {"system1", "system2", "system3", "system4"}
    assert offkey("submit", out, "--out", tmp_path / "package").code == 2  # five systems, and four may be handed in
