"""The catalogue holds what the facts list, and wrong names are told from right ones."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from offkey.data.catalog import CATALOG, PARTS, CatalogError, catalog_text, chosen, dataset, read_catalog


def test_every_archive_of_the_facts_is_there_and_no_other(shared_data):
    facts = json.loads((shared_data.parent / "facts" / "dcase_task2_files.json").read_text())
    for year in ("2023", "2024", "2025", "2026"):
        mine = {(a.record, a.file, a.md5) for a in CATALOG[f"dcase{year}"].archives}
        listed = {(entry["record"], entry["file"], entry["md5"]) for entry in facts[year]}
        assert listed <= mine
        assert {record for record, _, _ in mine - listed} <= {facts["2026_eval_test_record"]}


@pytest.mark.parametrize("name", CATALOG)
def test_a_year_is_consistent(name):
    year = dataset(name)
    assert year.folder == f"{name}t2"
    files = Counter((a.record, a.file) for a in year.archives)
    assert set(files.values()) == {1}
    assert year.machines("additional") == year.machines("eval")
    for part in PARTS:
        mine = [a for a in year.archives if a.part == part]
        assert len({a.record for a in mine}) == 1
        assert len({a.machine for a in mine}) == len(mine) > 0
    for archive in year.archives:
        assert re.fullmatch(r"\d{7,8}", archive.record)
        assert archive.machine in archive.file
        assert archive.md5 is None or re.fullmatch(r"[0-9a-f]{32}", archive.md5)
    assert year.truth.page.startswith("https://")
    assert year.truth.commit is None or re.fullmatch(r"[0-9a-f]{40}", year.truth.commit)


@pytest.mark.parametrize("name", ["dcase2025", "2025", "DCASE2025T2", "dcase_2025", "DCASE-2025"])
def test_names_of_a_year(name):
    assert dataset(name) is CATALOG["dcase2025"]


def test_parts_of_a_year_have_no_machine_and_section_in_common():
    for year in CATALOG.values():
        dev, hidden, more = ({(m, s) for m in year.machines(p) for s in year.sections(m, p)} for p in PARTS)
        assert hidden == more
        assert not dev & hidden
    assert CATALOG["dcase2020"].sections("ToyConveyor", "eval") == ("04", "05", "06")
    assert CATALOG["dcase2021"].sections("fan", "dev") == ("00", "01", "02")
    assert CATALOG["dcase2026"].sections("Sander", "additional") == ("00",)


def test_some_machines_and_parts():
    year = CATALOG["dcase2025"]
    assert [a.file for a in chosen(year, ["FAN", "ToyPet"], ["dev", "eval"])] == [
        "dev_fan.zip",
        "eval_data_ToyPet_test.zip",
    ]
    assert chosen(year) == year.archives


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: dataset("dcase2019"), ["dcase2019", "dcase2020"]),
        (lambda: chosen(CATALOG["dcase2025"], ["gearbx"]), ["gearbx", "did you mean gearbox"]),
        (lambda: chosen(CATALOG["dcase2025"], ["xyz"]), ["xyz", "ToyCar"]),
        (lambda: chosen(CATALOG["dcase2025"], [], ["test"]), ["test", "dev, additional, eval"]),
        (lambda: chosen(CATALOG["dcase2025"], ["fan"], ["eval"]), ["nothing of fan in eval"]),
    ],
)
def test_wrong_names_are_told(ask, words):
    with pytest.raises(CatalogError) as error:
        ask()
    for word in words:
        assert word in str(error.value)


def test_a_catalogue_of_ones_own_is_read_back(tmp_path):
    path = tmp_path / "catalog.json"
    path.write_text(catalog_text([CATALOG["dcase2023"]]))
    (own,) = read_catalog(path).values()
    assert (own.name, own.year, own.archives, own.truth) == (
        "dcase2023", 2023, CATALOG["dcase2023"].archives, CATALOG["dcase2023"].truth
    )  # fmt: skip
    assert len(own.private) == 64
    assert dataset("2023", read_catalog(path)) is not dataset("2023") is dataset(dataset("2023"))
    with pytest.raises(CatalogError, match="there are dcase2023"):
        dataset("2025", read_catalog(path))
    again = json.loads(path.read_text())
    again["datasets"][0]["archives"][0]["md5"] = "0" * 32
    path.write_text(json.dumps(again))
    assert read_catalog(path)["dcase2023"].private != own.private


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format=2), "format 2 is not known"),
        (lambda c: c.pop("datasets"), "is no catalogue"),
        (lambda c: c["datasets"][0].update(name="mine"), "is called dcase<year>"),
        (lambda c: c["datasets"][0].update(year=2019, name="dcase2019"), "is called dcase<year>"),
        (lambda c: c["datasets"][0]["archives"][0].update(md5=None), "has no md5"),
        (lambda c: c["datasets"][0]["archives"][0].update(machine="../fan"), "is no part, machine, record or zip"),
        (lambda c: c["datasets"][0]["archives"][0].update(file="/etc/x.zip"), "is no part, machine, record or zip"),
        (lambda c: c["datasets"][0]["archives"][0].update(file="x.tar"), "is no part, machine, record or zip"),
        (lambda c: c["datasets"][0]["archives"][0].update(part="test"), "is no part, machine, record or zip"),
        (lambda c: c["datasets"][0]["archives"].append(c["datasets"][0]["archives"][0]), "twice"),
        (lambda c: c["datasets"][0].update(archives=[]), "has no archives"),
        (lambda c: c["datasets"][0].update(truth={}), "the truth of dcase2023 is a repository"),
        (lambda c: c["datasets"][0].update(truth={"repository": "../x"}), "the truth of dcase2023 is a repository"),
        (lambda c: c["datasets"][0].update(archives=[{"url": "x"}]), "is no catalogue"),
    ],
)
def test_a_catalogue_that_cannot_be_gone_by(tmp_path, change, words):
    content = json.loads(catalog_text([CATALOG["dcase2023"]]))
    change(content)
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CatalogError, match=words) as error:
        read_catalog(path)
    assert str(path) in str(error.value)


def test_a_catalogue_that_is_not_there(tmp_path):
    with pytest.raises(CatalogError, match="cannot be read"):
        read_catalog(tmp_path / "none.json")
