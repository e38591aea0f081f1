"""The report's numbers, their means computed anew, and ours beside them."""

from __future__ import annotations

import csv
import io

import pytest

from offkey.evaluation import PROTOCOLS, MachineResult, Result, Run, harmonic_mean
from offkey.reproducing import PUBLISHED, compare, experiment

TABLE = experiment("table1")
MACHINES = TABLE.machines


def result(values: dict[str, tuple[float, float, float]]) -> Result:
    names = ("auc_source", "auc_target", "pauc")
    machines = {m: MachineResult(dict(zip(names, row, strict=True))) for m, row in values.items()}
    means = {n: harmonic_mean(row[i] for row in values.values()) for i, n in enumerate(names)}
    score = harmonic_mean(v for row in values.values() for v in row)
    return Result("dcase2025", score, None, machines, means, means)


def flat(value: float) -> Result:
    return result(dict.fromkeys(MACHINES, (value, value, value)))


def test_recomputed_means_are_those_of_the_design() -> None:
    runs = [Run(name, 0, flat(0.5)) for name in ("system1", "system2", "system3", "system4", "baseline")]
    found = {c.title: c.values for c in compare("table1", "t", MACHINES, runs).columns if c.origin == "published"}
    official = {name: round(values["", "official_score"].mean, 2) for name, values in found.items()}
    assert official == {"System 1": 61.99, "System 2": 61.55, "System 3": 53.83, "System 4": 53.56, "AE, MSE": 56.25}
    first = [round(found["System 1"]["", metric].mean, 2) for metric in ("auc_source", "auc_target", "pauc")]
    assert first == [70.48, 64.66, 53.37]


def test_the_selective_mahalanobis_rows_give_the_organisers_score() -> None:
    rows = PUBLISHED["table1"]["baseline · residual:value"]
    assert 100 * harmonic_mean(v / 100 for row in rows.machines.values() for v in row) == pytest.approx(55.34, abs=0.01)


def test_printed_means_that_do_not_follow_are_told() -> None:
    text = " ".join(compare("table1", "t", MACHINES, [Run("system1", 0, flat(0.5))]).remarks)
    assert "System 1: printed means that do not follow from the rows (recomputed): AUC source 69.21 (70.48)" in text
    assert "pAUC 56.66 (53.37)" in text
    part = compare("table1", "t", MACHINES[:2], [Run("system1", 0, result(dict.fromkeys(MACHINES[:2], (0.5,) * 3)))])
    assert "do not follow" not in " ".join(part.remarks)


def test_ours_stands_beside_with_its_spread() -> None:
    runs = [Run("system1", seed, flat(value)) for seed, value in enumerate((0.5, 0.6))]
    table = compare("table1", "Title <1>", MACHINES, [*runs, Run("mine", 0, flat(0.7))])
    assert table.header() == ["machine", "System 1, published", "system1, ours", "mine, ours"]
    rows = {row[0]: row[1:] for row in table.rows()}
    assert rows["fan"] == ["58.72 / 50.60 / 52.51", "55.0 ± 7.1 / 55.0 ± 7.1 / 55.0 ± 7.1", "70.0 / 70.0 / 70.0"]
    assert rows["official score, recomputed"] == ["61.99", "55.0 ± 7.1", "70.0"]
    assert rows["as printed"] == ["69.21 / 56.65 / 56.66", "–", "–"]
    assert "| fan | 58.72 / 50.60 / 52.51 |" in table.to_markdown()
    assert [pair.header()[1:] for pair in table.pairs()] == [table.header()[1:3], table.header()[3:]]
    page = table.to_html()
    assert "<h1>Title &lt;1&gt;</h1>" in page
    assert "<script" not in page
    assert "<td>58.72 / 50.60 / 52.51</td>" in page
    with io.StringIO(table.to_csv()) as file:
        cells = {(r["system"], r["machine"], r["metric"]): r for r in csv.DictReader(file)}
    assert float(cells["System 1", "valve", "auc_source"]["percent"]) == 96.68
    assert float(cells["system1", "valve", "pauc"]["percent"]) == pytest.approx(55.0)
    assert cells["system1", "valve", "pauc"]["seeds"] == "2"


def test_means_of_published_rows_are_over_the_machines_shown() -> None:
    runs = [Run("system1", 0, result(dict.fromkeys(("fan", "valve"), (0.5, 0.5, 0.5))))]
    rows = {row[0]: row for row in compare("table1", "t", ("fan", "valve"), runs).rows()}
    assert "as printed" not in rows  # these are of seven machines
    assert rows["official score, recomputed"][1] == f"{harmonic_mean((58.72, 50.6, 52.51, 96.68, 79.04, 53.71)):.2f}"


@pytest.mark.parametrize(("year", "kind"), [(2020, "arithmetic"), (2021, "harmonic")])
def test_metrics_and_means_are_those_of_the_year_and_sections_have_rows(year: int, kind: str) -> None:
    metrics = PROTOCOLS[f"dcase{year}"].metrics
    sections = {name: dict.fromkeys(metrics, value) for name, value in (("03", 0.4), ("04", 0.8))}
    fan = MachineResult(dict.fromkeys(metrics, 0.6), sections=sections)
    pump = MachineResult(dict.fromkeys(metrics, 0.5), sections={"03": dict.fromkeys(metrics, 0.5)})
    arithmetic, harmonic = dict.fromkeys(metrics, 0.55), dict.fromkeys(metrics, 0.54)
    found = Result(f"dcase{year}", 0.53, None, {"fan": fan, "pump": pump}, arithmetic, harmonic)
    table = compare(f"evaluation{year}", "t", ("pump", "fan"), [Run("mine", 0, found)])
    rows = dict(table.rows())
    cells = {n: " / ".join([v] * len(metrics)) for n, v in (("pump", "50.0"), ("fan", "60.0"), ("fan/04", "80.0"))}
    assert list(rows) == ["pump", "fan", "fan/03", "fan/04", f"{kind} mean, recomputed", "official score, recomputed"]
    assert {name: rows[name] for name in cells} == cells
    mean = "55.0" if kind == "arithmetic" else "54.0"
    assert rows[f"{kind} mean, recomputed"] == " / ".join([mean] * len(metrics))
    assert rows["official score, recomputed"] == "53.0"
    told = {2020: "AUC / pAUC.", 2021: "AUC source / AUC target / pAUC source / pAUC target."}[year]
    assert f"Percent: {told}" in table.to_markdown()
    assert f"Percent: {told}" in table.to_html()
    assert table.pairs()[0].rows() == table.rows()


def test_scorers_alone_have_a_column_where_something_is_published_for_them() -> None:
    runs = [Run(name, 0, flat(0.5)) for name in ("baseline", "baseline · residual:value", "system1 · network:gmm")]
    assert compare("table1", "t", MACHINES, runs).header()[1:] == [
        "AE, MSE, published", "baseline, ours", "AE, Mahalanobis, published", "baseline · residual:value, ours"
    ]  # fmt: skip


def test_a_lone_official_score_is_shown_as_printed() -> None:
    known = experiment("evaluation2025")
    runs = [Run("baseline", 0, result(dict.fromkeys(known.machines, (0.5, 0.5, 0.5))))]
    rows = {row[0]: row for row in compare(known.name, "t", known.machines, runs).rows()}
    assert rows["as printed"] == ["as printed", "54.43", "–"]
