"""Miniatures are read as the year that they imitate, by every reader that the real data will meet."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from pathlib import Path

import pytest
import soundfile

from offkey.data.catalog import CATALOG, CatalogError
from offkey.data.check import check
from offkey.data.source import open_source
from offkey.data.synthetic.years import YearConfig, pack_year, write_year
from offkey.data.truth import take_truth
from offkey.evaluation.submission import read_truth
from offkey.types import Condition, Content, Domain, Split

MACHINES = {
    2020: ("fan", "ToyCar"),
    2021: ("fan",),
    2022: ("valve",),
    2023: ("fan", "Vacuum"),
    2024: ("gearbox", "AirCompressor", "Scanner"),
    2025: ("bearing", "fan", "ToyPet", "HomeCamera"),
    2026: ("fan", "Sander"),
}
SMALL = {"train_source": 3, "train_target": 1, "test_per_group": 1, "seconds": 2.0, "rate": 8000}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Year -> its miniature, once."""
    known = {}

    def make(year):
        if year not in known:
            root = tmp_path_factory.mktemp(f"year{year}")
            known[year] = write_year(root, year, YearConfig(machines=MACHINES[year], **SMALL))
        return known[year]

    return make


@pytest.mark.parametrize("year", MACHINES)
def test_it_is_read_as_its_year(made, year):
    mini = made(year)
    source = open_source(mini.folder)
    assert (source.kind, source.year, source.remarks) == ("dcase", year, [])
    assert set(source.machines()) == set(MACHINES[year]) == set(mini.machines)
    assert len(source.clips) == mini.clips
    assert not check(mini.folder).errors
    kinds = {problem.kind for problem in check(mini.folder).problems}
    assert kinds <= {"unlabelled", "hidden-attributes", "low-rate"}  # of 8 kHz: quicker to make
    channels = {soundfile.info(clip.path).channels for clip in source.clips}
    assert channels == ({2} if year == 2026 else {1})


@pytest.mark.parametrize("year", MACHINES)
def test_test_clips_of_the_evaluation_half_tell_nothing_and_the_truth_tells_all(made, year, tmp_path):
    mini = made(year)
    half = open_source(mini.folder / "eval_data")
    hidden = half.test()
    assert {clip.condition for clip in hidden} == {Condition.UNKNOWN}
    assert {clip.domain for clip in hidden} == ({Domain.SOURCE, Domain.TARGET} if year == 2021 else {Domain.UNKNOWN})
    assert all(not clip.attributes for clip in hidden)
    told = read_truth(take_truth(f"dcase{year}", tmp_path, mini.truth).folder)
    assert set(told) == {(clip.machine, clip.path.name) for clip in hidden}
    labels = set(told.values())
    domains = {Domain.UNKNOWN} if year == 2020 else {Domain.SOURCE, Domain.TARGET}
    assert labels == {(domain, c) for domain in domains for c in (Condition.NORMAL, Condition.ANOMALY)}
    assert all(clip.split is not Split.TEST or clip.condition is not Condition.UNKNOWN
               for clip in open_source(mini.folder / "dev_data").clips)  # fmt: skip


def test_names_are_those_of_the_year(made):
    def names(year, *, half="eval_data", split="test"):
        return {p.name for p in (made(year).folder / half).rglob(f"{split}/*.wav")}

    assert "id_01_00000000.wav" in names(2020)
    for domain in ("source", "target"):
        assert all(
            re.fullmatch(rf"section_0[34]_{domain}_test_000\d.wav", n) for n in names(2021, split=f"{domain}_test")
        )
    assert "section_03_test_0000.wav" in names(2022)
    for year in range(2023, 2027):
        assert names(year) == {f"section_00_{n:04d}.wav" for n in range(4)}
    assert any("noAttribute" in name for name in names(2025, half="dev_data"))
    assert "section_00_noise_supplemental_normal_0000.wav" in names(2025, split="supplemental")
    assert not names(2024, split="supplemental")


def test_supplemental_clips_are_machine_or_noise(made):
    contents = [clip.content for clip in open_source(made(2025).folder).supplemental()]
    assert sorted(set(contents)) == [Content.MACHINE, Content.NOISE]
    assert contents.count(Content.MACHINE) == contents.count(Content.NOISE) == 4


def test_tables_come_in_all_their_forms(made):
    forms, columns = set(), set()
    for year in (2024, 2025):
        for path in sorted(made(year).folder.rglob("attributes_00.csv")):
            with path.open(newline="") as file:
                header, first, *_ = csv.reader(file)
            forms.add(("/" in first[0], first[0].endswith(".wav")))
            columns.add(len(header) > 1)
            assert header[0] == "file_name"
    assert forms == {(True, True), (False, True), (False, False)}
    assert columns == {True, False}  # hidden attributes have none
    assert not list(made(2021).folder.rglob("*.csv"))
    clips = open_source(made(2025).folder).train()
    assert all(bool(c.attributes) == (c.machine in ("fan", "HomeCamera")) for c in clips)


def test_equal_settings_give_equal_bytes_and_another_seed_others(made, tmp_path):
    mini = made(2023)
    again = write_year(tmp_path / "again", 2023, YearConfig(machines=MACHINES[2023], **SMALL))
    other = write_year(tmp_path / "other", 2023, YearConfig(machines=MACHINES[2023], **{**SMALL, "seed": 1}))

    def content(folder: Path):
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    assert content(again.folder) == content(mini.folder)
    assert content(again.truth) == content(mini.truth)
    wavs = {name: body for name, body in content(other.folder).items() if name.endswith(".wav")}
    assert not [name for name, body in wavs.items() if content(mini.folder)[name] == body]


@pytest.mark.parametrize("year", [2020, 2025])
def test_packed_as_the_organisers_publish_it(made, year, tmp_path):
    mini = made(year)
    site = pack_year(mini, tmp_path / "site")
    mine = [a for a in CATALOG[f"dcase{year}"].archives if a.machine in MACHINES[year]]
    packed = set()
    for archive in mine:
        path = site / "records" / archive.record / "files" / archive.file
        with zipfile.ZipFile(path) as zipped:
            packed |= {(archive.folder, name) for name in zipped.namelist()}
        answer = json.loads((site / "api" / "records" / archive.record).read_text())
        (entry,) = [entry for entry in answer["files"] if entry["key"] == archive.file]
        assert entry["size"] == path.stat().st_size
    assert packed == {
        (half, p.relative_to(mini.folder / half).as_posix())
        for half in ("dev_data/raw", "eval_data/raw")
        for p in (mini.folder / half).rglob("*")
        if p.is_file()
    }


def test_a_killed_call_is_gone_on_with(tmp_path):
    config = YearConfig(machines=("fan",), **SMALL)
    first = write_year(tmp_path, 2023, config)
    paths = sorted(first.folder.rglob("*.wav"))
    paths[0].unlink()
    times = {path: path.stat().st_mtime_ns for path in paths[1:]}
    assert write_year(tmp_path, 2023, config) == first
    assert paths[0].is_file()
    assert {path: path.stat().st_mtime_ns for path in paths[1:]} == times


def test_an_unknown_year_is_refused(tmp_path):
    with pytest.raises(CatalogError, match="2019"):
        write_year(tmp_path, 2019)
