"""Tables say over how many seeds, how far they spread, and what the test set allows."""

import csv
import io
import statistics
from dataclasses import replace

import pytest

from offkey.evaluation import PROTOCOLS, Run, ScoredClip, evaluate, summarise
from offkey.types import Condition, Domain, OffkeyError


def result_of(seed, machines=("fan", "valve"), protocol="dcase2025", bootstrap=20):
    clips = [
        ScoredClip(f"{d}{c}{i}", m, "00", d, c, float((7 * i + 3 * seed + len(m) + (c == "anomaly") * 5) % 11))
        for m in machines
        for d in (Domain.SOURCE, Domain.TARGET)
        for c in (Condition.NORMAL, Condition.ANOMALY)
        for i in range(9)
    ]
    return evaluate(clips, PROTOCOLS[protocol], bootstrap=bootstrap)


@pytest.fixture
def runs():
    return [Run("knn", s, result_of(s)) for s in range(3)] + [Run("loudness", 0, result_of(5))]


def test_mean_and_deviation_are_over_seeds(runs):
    table = summarise(runs, machines=True)
    assert table.systems == ("knn", "loudness")
    scores = [run.result.official_score for run in runs[:3]]
    cell = table.cells[0][0]
    assert cell.mean == pytest.approx(statistics.mean(scores))
    assert cell.deviation == pytest.approx(statistics.stdev(scores))
    assert cell.seeds == 3
    assert cell.interval[0] == pytest.approx(statistics.mean(run.result.interval[0] for run in runs[:3]))
    place = table.columns.index(("valve", "auc_target"))
    values = [run.result.machines["valve"].values["auc_target"] for run in runs[:3]]
    assert table.cells[0][place].mean == pytest.approx(statistics.mean(values))
    assert table.cells[1][0].deviation is None


def test_text_forms_have_the_same_cells(runs):
    table = summarise(runs)
    lines = table.to_markdown().splitlines()
    assert len(lines) == 4
    assert lines[0] == "| system | official score | AUC source | AUC target | pAUC |"
    cells = [c.strip() for c in lines[2].strip("|").split("|")]
    assert cells == table.rows()[0]
    assert cells[1] == table.cells[0][0].text()
    assert "[" in cells[1]
    assert "[" not in cells[2]


def test_csv_is_in_fractions_and_complete(runs):
    table = summarise(runs, machines=True)
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == 2 * (4 + 2 * 3)
    first = rows[0]
    assert (first["system"], first["machine"], first["metric"], first["seeds"]) == (
        "knn",
        "",
        "official_score",
        "3",
    )
    assert float(first["mean"]) == table.cells[0][0].mean
    assert float(first["low"]) == table.cells[0][0].interval[0]
    assert rows[-1]["deviation"] == ""


def test_a_machine_that_a_system_lacks_is_a_dash(runs):
    runs = [*runs[:3], Run("other", 0, result_of(1, machines=("fan",)))]
    table = summarise(runs, machines=True)
    assert table.rows()[1][-1] == "–"
    assert "other,valve" not in table.to_csv()


def test_2020_shows_arithmetic_means():
    result = result_of(0, protocol="dcase2020")
    table = summarise([Run("a", 0, result)])
    assert table.cells[0][1].mean == result.arithmetic_mean["auc"]


def test_without_bootstrap_there_is_no_interval():
    table = summarise([Run("a|b", 0, result_of(0, bootstrap=0))])
    assert table.cells[0][0].interval is None
    assert "[" not in table.to_markdown()
    assert "a\\|b" in table.to_markdown()


def test_what_a_run_takes_is_told_last_and_in_its_own_unit(runs):
    dear = [replace(run, costs={"fit_seconds": 100.0 + run.seed, "peak_mib": 512.0}) for run in runs[:3]]
    table = summarise([*dear, runs[3]], machines=True)
    assert table.columns[-2:] == (("", "fit_seconds"), ("", "peak_mib"))
    assert table.header()[-2:] == ["fit, s", "memory, MiB"]
    assert [row[-2:] for row in table.rows()] == [["101", "512"], ["–", "–"]]
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    told = {row["metric"]: (float(row["mean"]), row["low"]) for row in rows if row["system"] == "knn"}
    assert told["fit_seconds"] == (101.0, "")
    assert table.cells[0][-2].deviation == pytest.approx(1.0)


def test_refuses_what_does_not_compare(runs):
    with pytest.raises(OffkeyError, match="no runs"):
        summarise([])
    with pytest.raises(OffkeyError, match="seed 0 twice"):
        summarise([runs[0], replace(runs[1], seed=0)])
    with pytest.raises(OffkeyError, match="dcase2020, dcase2025"):
        summarise([runs[0], Run("knn", 9, result_of(0, protocol="dcase2020"))])
