"""`offkey evaluate`, `report`: the official metric of a detector or of score files, and the page."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offkey.scoring import FalseAlarms

MODEL = "discriminative"


@pytest.fixture
def model(copied: Callable[[str], Path]) -> Path:
    return copied(MODEL)


def test_json_has_the_keys_that_programs_rely_on(offkey: Callable[..., Any], model: Path, small_set: Path) -> None:
    said = offkey("evaluate", model, small_set, "--json", "--bootstrap", 50)
    assert said.code == 0
    found = said.json
    assert found["protocol"] == "dcase2025"
    low, high = found["interval"]
    assert 0 <= low <= found["official_score"] <= high <= 1
    assert set(found["machines"]) == {"fan", "valve"}
    for machine in found["machines"].values():
        assert all(0 <= machine[key] <= 1 for key in ("auc_source", "auc_target", "pauc"))
    values = [machine[key] for machine in found["machines"].values() for key in ("auc_source", "auc_target", "pauc")]
    assert found["official_score"] == pytest.approx(len(values) / sum(1 / max(value, 1e-300) for value in values))


def test_people_get_a_table_in_percent_and_the_next_command(
    offkey: Callable[..., Any], model: Path, small_set: Path
) -> None:
    said = offkey("evaluate", model, small_set, "--bootstrap", 0)
    assert said.code == 0
    result = json.loads((model / "evaluation" / "result.json").read_text())
    assert f"official score (dcase2025): {100 * result['official_score']:.1f} %" in said.out
    for name, values in result["machines"].items():
        row = next(line for line in said.out.splitlines() if name in line)
        assert f"{100 * values['auc_source']:.1f}" in row
    assert "harmonic mean" in said.out
    assert f"next: offkey report {model}" in said.out
    assert result["interval"] is None


def test_2020_has_arithmetic_means(offkey: Callable[..., Any], tmp_path: Path) -> None:
    for machine, anomalous in (("fan", (2, 3)), ("pump", (0.5, 3))):
        rows = [f"normal_id_00_0000000{n}.wav,{n}" for n in (0, 1)]
        rows += [f"anomaly_id_00_0000000{n}.wav,{score}" for n, score in enumerate(anomalous)]
        (tmp_path / f"anomaly_score_{machine}_id_00.csv").write_text("\n".join(rows) + "\n")
    said = offkey("evaluate", "--scores", tmp_path, "--year", 2020, "--bootstrap", 0)
    row = next(line for line in said.out.splitlines() if "mean" in line)
    assert row.split()[1:4] == ["arithmetic", "mean", "│"]
    assert "87.5" in row  # of 100 and 75


def test_evaluating_again_gives_the_same(offkey: Callable[..., Any], model: Path, small_set: Path) -> None:
    first = offkey("evaluate", model, small_set, "--json", "--bootstrap", 20).out
    kept = (model / "evaluation" / "scores.csv").read_bytes()
    assert offkey("evaluate", model, small_set, "--json", "--bootstrap", 20, "--workers", 0).out == first
    assert (model / "evaluation" / "scores.csv").read_bytes() == kept


def test_a_submission_has_the_same_score(
    offkey: Callable[..., Any], model: Path, small_set: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "submission"
    ours = offkey("evaluate", model, small_set, "--json", "--bootstrap", 0, "--submission", folder).json
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        f"{kind}_{machine}_section_00_test.csv"
        for kind in ("anomaly_score", "decision_result")
        for machine in ("fan", "valve")
    ]
    theirs = offkey("evaluate", "--scores", folder, "--year", 2025, "--json", "--bootstrap", 0).json
    assert theirs["official_score"] == ours["official_score"]
    for name, machine in ours["machines"].items():
        for key in ("auc_source", "auc_target", "pauc"):
            assert theirs["machines"][name][key] == machine[key]
        for rate in ("precision", "recall", "f1"):
            assert theirs["decisions"]["all"][rate] == ours["decisions"]["all"][rate]


def test_groups_widen_the_unit_of_the_interval(
    offkey: Callable[..., Any], model: Path, small_set: Path, tmp_path: Path
) -> None:
    table = tmp_path / "truth.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "flight"])
        for path in sorted(small_set.glob("*/test/*.wav")):
            writer.writerow([path.relative_to(small_set), path.name[11:40]])
    command = ["evaluate", model, small_set, "--json", "--bootstrap", 20]
    assert offkey(*command, "--groups", f"{table}:flight").json["bootstrap"]["grouped"] is True
    for wrong, words in ((f"{table}:day", "needs the columns file and day"), (f"{table}", "expected CSV:COLUMN")):
        said = offkey(*command, "--groups", wrong)
        assert said.code == 2
        assert words in said.err
    assert offkey(*command, "--groups", f"{tmp_path / 'none.csv'}:day").code == 2


def test_without_labels_the_scores_are_kept_and_it_is_said(
    offkey: Callable[..., Any], model: Path, small_set: Path, tmp_path: Path
) -> None:
    hidden = Path(shutil.copytree(small_set, tmp_path / "set"))
    for number, path in enumerate(sorted(hidden.glob("*/test/*.wav"))):
        path.rename(path.with_name(f"section_00_{number:04d}.wav"))
    said = offkey("evaluate", model, hidden, "--json")
    assert said.code == 0
    assert said.json["official_score"] is None
    assert "condition of no test clip is known" in said.err
    assert (model / "evaluation" / "scores.csv").is_file()
    assert offkey("report", model).code == 0


def test_normal_clips_alone_are_told(offkey: Callable[..., Any], model: Path, small_set: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_set, tmp_path / "set"))
    for path in copy.glob("*/test/*anomaly*.wav"):
        path.unlink()
    said = offkey("evaluate", model, copy)
    assert said.code == 2
    assert "no anomalous test clip" in said.err


def test_no_test_clips_are_told(offkey: Callable[..., Any], model: Path, small_set: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_set, tmp_path / "set", ignore=shutil.ignore_patterns("test")))
    said = offkey("evaluate", model, copy)
    assert said.code == 2
    assert "no test clips of fan, valve" in said.err


def test_broken_test_clips_are_named_and_the_rest_judged(
    offkey: Callable[..., Any], model: Path, small_set: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_set, tmp_path / "set"))
    victim = sorted(copy.glob("fan/test/*normal*.wav"))[0]
    victim.write_bytes(b"")
    said = offkey("evaluate", model, copy, "--json", "--bootstrap", 0)
    assert said.code == 1
    assert str(victim) in said.err
    assert 0 < said.json["official_score"] <= 1


def test_one_of_the_two_ways_is_needed(offkey: Callable[..., Any], model: Path) -> None:
    said = offkey("evaluate", model)
    assert said.code == 2
    assert "needs MODEL SOURCE, or --scores DIR" in said.err


def test_the_report_is_one_page_of_the_run(
    offkey: Callable[..., Any], model: Path, small_set: Path, tmp_path: Path
) -> None:
    said = offkey("report", model)
    assert said.code == 2
    assert "run `offkey evaluate MODEL SOURCE` first" in said.err
    assert offkey("evaluate", model, small_set, "--bootstrap", 20).code == 0
    said = offkey("report", model, "--title", "A <trial> run", "--examples", 1)
    assert said.code == 0
    page = model / "report.html"
    assert said.out == f"report: {page}\n"
    html = page.read_text(encoding="utf-8")
    result = json.loads((model / "evaluation" / "result.json").read_text())
    assert "A &lt;trial&gt; run" in html
    assert f"{100 * result['official_score']:.1f}" in html
    for name in ("fan", "valve"):
        assert name in html
    assert "<audio" in html
    elsewhere = tmp_path / "pages" / "one.html"
    assert offkey("report", model, "--out", elsewhere, "--examples", 0).code == 0
    assert elsewhere.stat().st_size < page.stat().st_size


@pytest.mark.parametrize("system", ["auto", "loudness"])
def test_every_kind_of_system_has_a_page(
    offkey: Callable[..., Any], copied: Callable[[str], Path], small_set: Path, system: str
) -> None:
    model = copied(system)
    assert offkey("evaluate", model, small_set, "--bootstrap", 0).code == 0
    assert offkey("report", model, "--examples", 1).code == 0
    html = (model / "report.html").read_text(encoding="utf-8")
    assert ("network&#39;s embeddings" in html or "network's embeddings" in html) == (system == "auto")


def test_a_page_survives_that_the_recordings_are_gone(
    offkey: Callable[..., Any], copied: Callable[[str], Path], small_set: Path, tmp_path: Path
) -> None:
    model, copy = copied("loudness"), Path(shutil.copytree(small_set, tmp_path / "set"))
    assert offkey("evaluate", model, copy, "--bootstrap", 0).code == 0
    shutil.rmtree(copy)
    assert offkey("report", model).code == 0


def test_without_a_threshold_there_is_a_page_and_a_word(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], small_set: Path, tmp_path: Path
) -> None:
    few = fitted("logmel-knn").detector.with_false_alarms(FalseAlarms.parse("0.1%"))
    model = few.save(tmp_path / "few")
    said = offkey("evaluate", model, small_set, "--bootstrap", 0)
    assert said.code == 0
    assert "fan: no clip will raise an alarm: this rate takes 999 normal clips" in said.err
    assert offkey("report", model, "--examples", 0).code == 0
    assert "There is no threshold: too few normal clips" in (model / "report.html").read_text(encoding="utf-8")
    more = sorted(small_set.glob("fan/test/*normal*.wav"))[:1]
    said = offkey("update", model, *more, "--out", tmp_path / "more")
    assert "threshold none (too few clips) -> none (too few clips)" in said.out
