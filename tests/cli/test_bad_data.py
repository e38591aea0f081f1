"""Data that are wrong in one way each, from the download to the table: said clearly, and nothing is half-written."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from offkey.data import records
from offkey.data.catalog import catalog_text, dataset
from offkey.data.synthetic.years import YearConfig, write_year
from offkey.downloading import megabytes

_location = importlib.util.spec_from_file_location("bad", Path(__file__).parents[1] / "misbehaving_server.py")
bad = importlib.util.module_from_spec(_location)
_location.loader.exec_module(bad)

Call = Callable[..., Any]
FILE = "dev_fan.zip"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No record can be asked: the catalogue alone says what is right."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = bad.Server()
    monkeypatch.setattr(records, "ZENODO", server.serve("/x", bad.status(404)).removesuffix("/x"))
    yield
    server.close()


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fan of 2023's development set in miniature; nobody writes into it."""
    config = YearConfig(("fan",), train_source=3, train_target=1, test_per_group=1)
    return write_year(tmp_path_factory.mktemp("mini"), 2023, config).folder


def pack(path: Path, mini: Path) -> dict[str, bytes]:
    home = mini / "dev_data" / "raw"
    files = {p.relative_to(home).as_posix(): p.read_bytes() for p in sorted(home.rglob("*")) if p.is_file()}
    return write(path, list(files.items())) and files


def write(path: Path, files: list[tuple[str, bytes]]) -> bool:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in files:
            zipped.writestr(name, content)
    return True


def honest(files: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return list(files.items())


WRONG: dict[str, tuple[Callable[[Path, dict[str, bytes]], object], str]] = {
    "a way out": (lambda p, f: write(p, [*honest(f), ("fan/train/../../../../x.wav", b"")]), "leads out of the folder"),
    "a bomb": (lambda p, f: write(p, [*honest(f), ("fan/train/x.wav", bytes(30_000_000))]), "a zip bomb does"),
    "one name twice": (lambda p, f: write(p, [*honest(f), (next(iter(f)), b"1")]), "is there twice"),
    "one name in two cases": (
        lambda p, f: write(p, [*honest(f), ("fan/train/A.wav", b"1"), ("fan/train/a.wav", b"2")]),
        "in case or accents only",
    ),
    "cut short": (lambda p, f: p.write_bytes(p.read_bytes()[: p.stat().st_size * 2 // 3]), "it may be cut short"),
    "another machine": (
        lambda p, f: write(p, [(k.replace("fan/", "valve/").replace("train/", "a/"), v) for k, v in f.items()]),
        "is it the right archive?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*WRONG, "wrong md5"])
def test_an_archive_that_must_not_be_taken(kind: str, offkey: Call, nobody: None, mini: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    good = tmp_path / "good.zip"
    files = pack(good, mini)
    zipped = Path(shutil.copy(good, own / FILE))
    words = "its md5 is"
    if kind in WRONG:
        harm, words = WRONG[kind]
        harm(zipped, files)
    else:
        content = bytearray(zipped.read_bytes())
        content[200] ^= 1
        zipped.write_bytes(content)
    year = dataset("dcase2023")
    archive = next(a for a in year.archives if a.file == FILE)

    def fetch(promised: Path, data: Path) -> Any:
        catalog = tmp_path / "catalog.json"
        digest = hashlib.md5(promised.read_bytes()).hexdigest()
        catalog.write_text(catalog_text([replace(year, archives=(replace(archive, md5=digest),))]))
        return offkey("data", "fetch", "dcase2023", "--root", data, "--catalog", catalog, "--from", own)

    lock = tmp_path / "data" / "dcase2023t2.lock.json"
    said = fetch(zipped if kind in WRONG else good, lock.parent)
    assert said.code == 1
    assert words in said.err
    assert FILE in said.err
    assert "0 archives unpacked, 0 were here, 1 could not be had" in said.out
    known = (zipped, good, tmp_path / "catalog.json", lock)
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p not in known]
    assert left == []
    shutil.copy(good, zipped)
    data = tmp_path / "other" if kind in WRONG else lock.parent  # another catalogue promised another zip
    assert fetch(good, data).code == 0
    found = data / "dcase2023t2" / "dev_data" / "raw"
    assert {p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file() and p.name[0] != "."} == set(files)


def test_a_disk_without_room_is_told_before_the_first_byte(
    offkey: Call, nobody: None, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    pack(own / FILE, mini)
    year = dataset("dcase2023")
    digest = hashlib.md5((own / FILE).read_bytes()).hexdigest()
    archive = replace(next(a for a in year.archives if a.file == FILE), md5=digest)
    (tmp_path / "catalog.json").write_text(catalog_text([replace(year, archives=(archive,))]))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100_000))
    said = offkey("data", "fetch", "2023", "--root", tmp_path / "data", "--catalog", tmp_path / "catalog.json",
                  "--from", own)  # fmt: skip
    assert said.code == 1
    assert f"where {megabytes(100_000)} are free; make room, or choose another folder" in said.err
    assert not list((tmp_path / "data").rglob("*.wav"))


def set_of(mini: Path, tmp_path: Path) -> tuple[Path, Path]:
    root = tmp_path / "data"
    shutil.copytree(mini, root / "dcase2023t2")
    return root, root / "dcase2023t2" / "dev_data" / "raw" / "fan"


def reproduce(offkey: Call, root: Path, out: Path) -> Any:
    return offkey("reproduce", "dcase2023", "--root", root, "--machines", "fan", "--systems", "loudness", "--out", out)


def test_no_table_of_attributes(offkey: Call, mini: Path, tmp_path: Path) -> None:
    """Names tell settings too: it is said, and nothing is refused."""
    root, home = set_of(mini, tmp_path)
    (home / "attributes_00.csv").unlink()
    said = offkey("data", "check", root / "dcase2023t2")
    assert said.code == 0
    assert (
        f"warning: fan: there is no attributes_00.csv in {home}, so settings are read from file names alone" in said.out
    )


def test_one_clip_in_two_places(offkey: Call, mini: Path, tmp_path: Path) -> None:
    root, home = set_of(mini, tmp_path)
    shutil.copytree(home, root / "dcase2023t2" / "copy" / "fan")
    for said in (offkey("data", "check", root / "dcase2023t2"), reproduce(offkey, root, tmp_path / "run")):
        assert said.code in (1, 2)
        assert "of fan twice" in said.out + said.err
        assert "name the folder of one of them" in said.out + said.err
    shutil.rmtree(root / "dcase2023t2" / "copy")
    clip = next((home / "train").glob("*.wav"))
    shutil.copy(clip, home / "test" / clip.name.replace("train", "test"))
    said = offkey("data", "check", root / "dcase2023t2")
    assert said.code == 1
    assert "the same content 2 times, in training and in test" in said.out


def test_a_test_clip_without_training_clips(offkey: Call, mini: Path, tmp_path: Path) -> None:
    root, home = set_of(mini, tmp_path)
    shutil.rmtree(home / "train")
    said = offkey("data", "check", root / "dcase2023t2")
    assert said.code == 1
    assert "error: fan: section 00 has 4 test clips but no training clips" in said.out
    said = reproduce(offkey, root, tmp_path / "run")
    assert said.code == 2
    assert "fan has no training clips" in said.err
    assert "offkey data fetch dcase2023" in said.err
    assert not (tmp_path / "run" / "runs").exists()
    said = offkey("fit", root / "dcase2023t2", "--system", "loudness", "--out", tmp_path / "model")
    assert said.code == 2
    assert not (tmp_path / "model").exists()


def test_one_condition_only(offkey: Call, mini: Path, tmp_path: Path) -> None:
    root, home = set_of(mini, tmp_path)
    for path in home.glob("test/*anomaly*"):
        path.unlink()
    said = offkey("data", "check", root / "dcase2023t2")
    assert said.code == 0
    assert "warning: fan: all labelled test clips of section 00 are normal: no AUC" in said.out
    said = reproduce(offkey, root, tmp_path / "run")
    assert said.code == 2
    assert "fan cannot be judged by the rules of dcase2023: no anomalous test clip" in said.err
    assert not (tmp_path / "run" / "runs").exists()
    scores = tmp_path / "scores"
    scores.mkdir()
    rows = "".join(f"{path.name},{number}\n" for number, path in enumerate(sorted(home.glob("test/*.wav"))))
    (scores / "anomaly_score_fan_section_00_test.csv").write_text(rows)
    said = offkey("evaluate", "--scores", scores)
    assert said.code == 2
    assert "no anomalous test clip" in said.err
