"""`offkey data list | fetch | truth | miniature`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offkey.cli import data, datasets
from offkey.data import records, truth
from offkey.data.catalog import CATALOG
from offkey.data.synthetic.years import YearConfig, pack_year, write_year

if not {command.name for command in data.app.registered_commands} & {"fetch"}:
    datasets.add_to(data.app)

_location = importlib.util.spec_from_file_location("bad", Path(__file__).parents[1] / "misbehaving_server.py")
bad = importlib.util.module_from_spec(_location)
_location.loader.exec_module(bad)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("published")
    config = YearConfig(("fan", "ToyPet"), train_source=2, train_target=1, test_per_group=1, rate=8000)
    mini = write_year(root, 2025, config)
    return SimpleNamespace(mini=mini, site=pack_year(mini, root / "site"))


@pytest.fixture
def mirror(published: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = bad.Server()
    for path in published.site.rglob("*"):
        if path.is_file():
            where = "/" + path.relative_to(published.site).as_posix()
            server.base = server.serve(where, bad.whole(path.read_bytes())).removesuffix(where)
    for module, name in ((records, "ZENODO"), (truth, "ZENODO"), (truth, "GITHUB")):
        monkeypatch.setattr(module, name, server.base + "/elsewhere")
    yield server
    server.close()


def test_list_names_all(offkey: Callable[..., Any]) -> None:
    said = offkey("data", "list")
    assert said.code == 0
    for word in (*CATALOG, "15097779", "CoffeeGrinder", "additional"):
        assert word in said.out
    told = offkey("data", "list", "2023", "--json").json
    assert [one["name"] for one in told["datasets"]] == ["dcase2023"]
    assert all(len(archive["md5"]) == 32 for archive in told["datasets"][0]["archives"])


def test_fetch_truth_and_check_go_hand_in_hand(
    offkey: Callable[..., Any], mirror: Any, published: Any, tmp_path: Path
) -> None:
    arguments = ("data", "fetch", "dcase2025", "--root", tmp_path, "--machines", "fan,ToyPet", "--mirror", mirror.base)
    said = offkey(*arguments)
    assert said.code == 0, said.err
    folder = tmp_path / "dcase2025t2"
    lines = said.err.splitlines()
    assert lines[0] == "record 15097779: miniature of dcase2025"
    assert lines[1].startswith("    licence: cc-by-4.0")
    assert lines.index("    licence: cc-by-4.0 (" + records.ZENODO + "/records/15519362)") < next(
        at for at, line in enumerate(lines) if "dev_fan.zip" in line
    )
    assert "3 archives to" in said.err
    assert "3 archives unpacked, 0 were here, 0 could not be had" in said.out
    assert f"next: offkey data check {folder}" in said.out
    assert offkey("data", "check", folder).code == 0
    again = offkey(*arguments, "--json")
    assert again.json == {
        "folder": str(folder), "done": [],
        "present": ["dev_fan.zip", "eval_data_ToyPet_train.zip", "eval_data_ToyPet_test.zip"], "failed": [],
    }  # fmt: skip
    said = offkey("data", "truth", "dcase2025", "--root", tmp_path, "--mirror", mirror.base)
    assert said.code == 0, said.err
    assert "forbids passing it on" in said.err
    assert "4 clips of ToyPet" in said.out
    told = offkey("data", "truth", "dcase2025", "--root", tmp_path, "--from", published.mini.truth, "--json").json
    assert told["clips"] == {"ToyPet": 4}


def test_one_that_cannot_be_had_is_named_and_ends_with_1(
    offkey: Callable[..., Any], mirror: Any, tmp_path: Path
) -> None:
    mirror.serve("/records/15097779/files/dev_fan.zip", bad.status(404))
    arguments = ("data", "fetch", "2025", "--root", tmp_path, "--machines", "fan,ToyPet", "--mirror", mirror.base)
    said = offkey(*arguments)
    assert said.code == 1
    assert "dev_fan.zip could not be fetched" in said.err
    assert "by hand" in said.err
    assert "2 archives unpacked" in said.out
    assert not (tmp_path / "dcase2025t2" / "dev_data").exists()


def test_own_zips(offkey: Callable[..., Any], mirror: Any, published: Any, tmp_path: Path) -> None:
    arguments = ("data", "fetch", "2025", "--root", tmp_path, "--machines", "fan", "--from", published.site)
    said = offkey(*arguments, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["done"] == ["dev_fan.zip"]
    assert not [path for path, _ in mirror.asked if path.endswith(".zip")]


def test_a_year_with_pinned_checksums_is_had_by_its_own_catalogue(
    offkey: Callable[..., Any], mirror: Any, tmp_path: Path
) -> None:
    """The miniature of 2023 is refused by offkey's catalogue, which pins the real one, and taken by that beside it."""
    config = YearConfig(("fan", "Vacuum"), train_source=1, train_target=1, test_per_group=1, rate=8000)
    site = pack_year(write_year(tmp_path / "mini", 2023, config), tmp_path / "site")
    common = ("data", "fetch", "2023", "--root", tmp_path / "data", "--machines", "fan", "--from", site)
    catalog = ("--catalog", site / "catalog.json")
    refused = offkey(*common)
    assert refused.code == 1
    assert "its md5 is" in refused.err
    assert not list((tmp_path / "data").rglob("*.wav"))
    said = offkey(*common, *catalog)
    assert said.code == 0, said.err
    assert f"catalogue: {site / 'catalog.json'}, not offkey's own" in said.err
    told = offkey("data", "list", *catalog, "--json").json["datasets"]
    assert [one["name"] for one in told] == ["dcase2023"]
    assert {archive["machine"] for archive in told[0]["archives"]} == {"fan", "Vacuum"}
    again = offkey(*common)
    assert again.code == 2
    assert "choose another --root" in again.err
    truth_of = ("data", "truth", "2023", "--root", tmp_path / "data", "--from", tmp_path / "mini" / "evaluator")
    assert offkey(*truth_of).code == 2
    assert offkey(*truth_of, *catalog).code == 0


def test_miniature_is_what_a_fetch_would_bring(offkey: Callable[..., Any], tmp_path: Path) -> None:
    said = offkey("data", "miniature", "dcase2023", tmp_path / "mini", "--machines", "fan", "--site", tmp_path / "site")
    assert said.code == 0, said.err
    assert (tmp_path / "site/records/7882613/files/dev_fan.zip").is_file()
    assert offkey("data", "check", tmp_path / "mini" / "dcase2023t2").code == 0
    assert f"--catalog {tmp_path / 'site' / 'catalog.json'}" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fetch", "dcase2019"), "no data set is called"),
        (("fetch", "dcase2025", "--machines", "gearbx"), "did you mean gearbox"),
        (("fetch", "dcase2025", "--parts", "test"), "dev, additional, eval"),
        (("fetch", "dcase2025", "--from", "no/such/folder"), "is no folder"),
        (("truth", "dcase2025", "--from", "no/such/folder"), "is not there"),
    ],
)
def test_wrong_use_is_2(offkey: Callable[..., Any], arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    said = offkey("data", *arguments, "--root", tmp_path / "data")
    assert said.code == 2
    assert words in said.err


@pytest.mark.parametrize("command", ["list", "fetch", "truth", "miniature"])
def test_help(offkey: Callable[..., Any], command: str) -> None:
    said = offkey("data", command, "--help")
    assert said.code == 0
    assert said.out.startswith(f"Usage: offkey data {command} [OPTIONS]")


def test_fetching_loads_no_torch() -> None:
    code = "import sys, offkey.data.fetch, offkey.data.truth; sys.stdout.write(str('torch' in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False"
