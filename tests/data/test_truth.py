"""The truth is taken from wherever the organisers' form of it lies, checked, and kept as it was."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from offkey.data import records, truth
from offkey.data.catalog import CATALOG
from offkey.data.synthetic.years import YearConfig, pack_year, write_year
from offkey.data.truth import TruthError, find_truth, take_truth
from offkey.downloading import DownloadError, Patience
from offkey.evaluation.submission import read_truth

_location = importlib.util.spec_from_file_location("bad", Path(__file__).parents[1] / "misbehaving_server.py")
bad = importlib.util.module_from_spec(_location)
_location.loader.exec_module(bad)

MACHINES = {2020: ("fan",), 2021: ("fan",), 2024: ("Scanner",), 2025: ("ToyPet", "Polisher")}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Year -> its miniature and site, once."""
    known = {}

    def make(year):
        if year not in known:
            root = tmp_path_factory.mktemp(f"truth{year}")
            config = YearConfig(MACHINES[year], train_source=1, train_target=1, test_per_group=1, rate=8000)
            mini = write_year(root, year, config)
            known[year] = SimpleNamespace(mini=mini, site=pack_year(mini, root / "site"))
        return known[year]

    return make


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = bad.Server()
    dead = running.serve("/x", bad.status(404)).removesuffix("/x") + "/elsewhere"
    for module, name in ((records, "ZENODO"), (truth, "ZENODO"), (truth, "GITHUB")):
        monkeypatch.setattr(module, name, dead)
    yield running
    running.close()


def mirror_of(server, site: Path) -> str:
    for path in site.rglob("*"):
        if path.is_file():
            where = "/" + path.relative_to(site).as_posix()
            base = server.serve(where, bad.whole(path.read_bytes())).removesuffix(where)
    return base


@pytest.mark.parametrize("year", MACHINES)
def test_fetched_and_taken_from_a_clone_it_is_the_same(published, server, tmp_path, year):
    name, one = f"dcase{year}", published(year)
    patience = Patience(tries=2, sleep=lambda _: None)
    fetched = take_truth(name, tmp_path / "a", mirror=mirror_of(server, one.site), patience=patience)
    cloned = take_truth(name, tmp_path / "b", one.mini.truth)
    told = read_truth(fetched.folder)
    assert told == read_truth(cloned.folder)
    assert sum(fetched.clips.values()) == len(told) > 0
    assert set(fetched.clips) == set(MACHINES[year])
    assert fetched.origin == CATALOG[name].truth.page
    assert cloned.origin == str(one.mini.truth)
    assert fetched.commit == (CATALOG[name].truth.commit if year != 2025 else fetched.commit)
    if year == 2025:  # the catalogue knows no commit: the archive's own is noted
        assert json.loads((fetched.folder / "SOURCE.json").read_text())["commit"] == fetched.commit
        assert len(fetched.commit) == 40
    assert {p.name for p in (tmp_path / "a" / f"{name}t2").iterdir()} <= {"truth", ".zips"}
    assert not list((tmp_path / "a").rglob("*.zip"))
    if year > 2020:
        for path in one.mini.truth.rglob("*.csv"):
            assert (fetched.folder / path.relative_to(one.mini.truth)).read_bytes() == path.read_bytes()


def test_a_zip_and_the_baselines_list_do_too(published, tmp_path):
    one = published(2025)
    (zipped,) = one.site.rglob("HEAD.zip")
    from_zip = take_truth("dcase2025", tmp_path / "a", zipped)
    assert zipped.is_file()
    rows, told = [], read_truth(from_zip.folder)
    for machine in sorted(from_zip.clips):
        rows.append(machine)
        for (whose, file), (domain, condition) in sorted(told.items()):
            if whose == machine:
                rows.append(f"{file},section_00_{domain}_test_{condition}_{file[11:15]}_a_1.wav")
    listed = tmp_path / "clone" / "datasets" / "eval_data_list_2025.csv"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(rows))
    for source, root in ((tmp_path / "clone", "b"), (listed, "c")):
        assert read_truth(take_truth("dcase2025", tmp_path / root, source).folder) == told


def test_it_is_taken_once_and_a_change_is_noticed(published, tmp_path):
    one = published(2025)
    assert find_truth(tmp_path, "dcase2025") is None
    first = take_truth("dcase2025", tmp_path, one.mini.truth)
    assert take_truth("dcase2025", tmp_path, tmp_path / "nowhere") == first == find_truth(tmp_path, "dcase2025")
    path = next(first.folder.rglob("*.csv"))
    path.write_text(path.read_text().replace(",1", ",0"))
    with pytest.raises(TruthError, match="take the truth again") as error:
        find_truth(tmp_path, "dcase2025")
    assert str(path) in str(error.value)


def harm(tmp_path, one, change):
    clone = Path(shutil.copytree(one.mini.truth, tmp_path / "clone"))
    change(clone)
    return clone


LABELS = "ground_truth_data/ground_truth_ToyPet_section_00_test.csv"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: shutil.rmtree(c / "ground_truth_data"), "holds no truth"),
        (lambda c: (c / LABELS).write_text("a.wav,2\n"), "line 1: expected file,0"),
        (lambda c: (c / LABELS).write_text("a.wav,0\na.wav,1\n"), "line 2: a.wav is there twice"),
        (lambda c: (c / LABELS).write_text("a.wav,0\nb.wav,0\n"), "one condition only"),
        (lambda c: (c / LABELS).write_text("a.wav,0\nb.wav,1\n"), "do not name the same clips"),
        (lambda c: (c / LABELS).write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda c: (c / LABELS).rename(c / LABELS.replace("ToyPet_section_00", "x")), "expected ground_truth_"),
    ],
)
def test_what_is_no_truth_is_refused_and_nothing_stays(published, tmp_path, change, words):
    clone = harm(tmp_path, published(2025), change)
    with pytest.raises(TruthError, match=words) as error:
        take_truth("dcase2025", tmp_path / "data", clone)
    assert str(clone) in str(error.value)
    assert list((tmp_path / "data" / "dcase2025t2").iterdir()) == []


def test_another_years_truth_is_refused(published, tmp_path):
    with pytest.raises(TruthError, match="another year"):
        take_truth("dcase2025", tmp_path, published(2024).mini.truth)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id_01_00000000.wav,normal_id_01_00000000.wav,0\n", "line 1"),
        ("fan\nid_01_00000000.wav,x,0\n", "line 2"),
        ("fan\na.wav,normal_id_01_00000000.wav\na.wav,normal_id_01_00000001.wav\n", "line 3.*twice"),
    ],
)
def test_a_list_that_cannot_be_read(tmp_path, text, words):
    path = tmp_path / "eval_data_list.csv"
    path.write_text(text)
    with pytest.raises(TruthError, match=words):
        take_truth("dcase2020", tmp_path / "data", path)


def test_wrong_sources_and_no_net(server, tmp_path):
    for source in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(TruthError, match="dcase2025_task2_evaluator"):
            take_truth("dcase2025", tmp_path / "data", source)
    with pytest.raises(DownloadError, match="404"):
        take_truth("dcase2025", tmp_path / "data", patience=Patience(tries=2, sleep=lambda _: None))


def test_another_commit_than_the_pinned_one_is_refused(published, server, tmp_path):
    one = published(2024)
    mirror = mirror_of(server, one.site)
    (zipped,) = one.site.rglob("archive/*.zip")
    body = zipped.read_bytes().replace(CATALOG["dcase2024"].truth.commit.encode(), b"0" * 40)
    server.serve("/" + zipped.relative_to(one.site).as_posix(), bad.whole(body))
    with pytest.raises(TruthError, match="gave commit 0000"):
        take_truth("dcase2024", tmp_path, mirror=mirror)
