"""`offkey weights`: listing, fetching, checking, converting."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from offkey import files
from offkey.encoders.catalog import CATALOG, Published
from offkey.encoders.checkpoint import read_checkpoint

_location = importlib.util.spec_from_file_location("bad", Path(__file__).parents[1] / "misbehaving_server.py")
bad = importlib.util.module_from_spec(_location)
_location.loader.exec_module(bad)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "weights"
    monkeypatch.setenv("OFFKEY_WEIGHTS", str(place))
    return place


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny.pt"
    torch.save({"cfg": {"layers": 2}, "model": {"a": torch.ones(3, 4)}}, path)
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = bad.Server()
    yield running
    running.close()


@pytest.fixture
def tiny(original: Path, server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """Published weights whose mirror is the local server."""
    url = server.serve("/official/Tiny.pt", bad.whole(original.read_bytes()))
    size, digest = original.stat().st_size, files.sha256(original)
    entry = Published("Tiny", "beats", "Tiny.pt", size, digest, "MIT", "somebody", (url,), "for tests")
    monkeypatch.setitem(CATALOG, "Tiny", entry)
    return entry


def test_list_names_all_and_says_which_are_here(
    offkey: Callable[..., Any], tiny: Published, folder: Path, original: Path
) -> None:
    said = offkey("weights", "list")
    assert said.code == 0
    for word in (*CATALOG, "361.5 MB", "4.1 MB", "MIT", str(folder)):
        assert word in said.out
    told = offkey("weights", "list", "--json").json
    assert told["folder"] == str(folder)
    assert [entry["name"] for entry in told["weights"]] == list(CATALOG)
    assert all(entry["path"] is None for entry in told["weights"])
    assert told["weights"][2]["bytes"] == CATALOG["BEATs_iter3"].size
    folder.mkdir()
    shutil.copy(original, folder)
    assert offkey("weights", "list", "--json").json["weights"][-1]["path"] == str(folder / "Tiny.pt")


def test_fetch_shows_licence_and_size_first_and_says_where_it_lies(
    offkey: Callable[..., Any], tiny: Published, folder: Path, server: Any
) -> None:
    said = offkey("weights", "fetch", "tiny")
    assert said.code == 0, said.err
    assert said.out.splitlines() == [
        f"Tiny: {tiny.size} bytes, licence MIT (somebody)",
        f"to {folder}",
        f"Tiny is at hand: {folder / 'Tiny.safetensors'}",
    ]
    assert offkey("weights", "fetch", "Tiny").code == 0
    assert len(server.asked) == 1


def test_fetch_asks_a_mirror_first(offkey: Callable[..., Any], tiny: Published, server: Any, original: Path) -> None:
    mirror = server.serve("/near/Tiny.pt", bad.status(404)).removesuffix("Tiny.pt")
    assert offkey("weights", "fetch", "Tiny", "--mirror", mirror).code == 0
    assert [path for path, _ in server.asked] == ["/near/Tiny.pt", "/official/Tiny.pt"]


def test_fetch_from_an_address_asks_no_other(
    offkey: Callable[..., Any], tiny: Published, server: Any, folder: Path
) -> None:
    url = server.serve("/mine/Tiny.pt", bad.status(404))
    said = offkey("weights", "fetch", "Tiny", "--from", url)
    assert said.code == 1
    for word in (url, "404", "by hand", str(folder / "Tiny.pt"), tiny.sha256):
        assert word in said.err
    assert [path for path, _ in server.asked] == ["/mine/Tiny.pt"]


def test_fetch_from_a_file_needs_no_network(
    offkey: Callable[..., Any], tiny: Published, server: Any, original: Path, tmp_path: Path
) -> None:
    assert offkey("weights", "fetch", "Tiny", "--from", original).code == 0
    assert offkey("weights", "check", "Tiny").code == 0
    assert server.asked == []
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(original.read_bytes()[:-5])
    said = offkey("weights", "fetch", "Tiny", "--from", wrong)
    assert said.code == 1
    assert "cut short" in said.err


def test_a_wrong_name_is_told_before_anything_is_fetched(
    offkey: Callable[..., Any], tiny: Published, server: Any
) -> None:
    said = offkey("weights", "fetch", "Tiny", "BEATs_iter33")
    assert said.code == 2
    assert "did you mean BEATs_iter3" in said.err
    assert server.asked == []


def test_one_that_fails_does_not_keep_the_others(offkey: Callable[..., Any], tiny: Published, server: Any) -> None:
    base = server.serve("/Tiny.pt", *server.behaviours["/official/Tiny.pt"]).removesuffix("Tiny.pt")
    said = offkey("weights", "fetch", "mn04_as", "Tiny", "--from", base)
    assert said.code == 1
    assert "mn04_as_mAP_432.pt could not be fetched" in said.err
    assert "Tiny is at hand" in said.out


def test_check_tells_good_from_damaged(
    offkey: Callable[..., Any], tiny: Published, folder: Path, original: Path
) -> None:
    assert "no published weights are in" in offkey("weights", "check").out
    offkey("weights", "fetch", "Tiny")
    said = offkey("weights", "check")
    assert said.code == 0
    assert "Tiny: good" in said.out
    assert "layers 2" in said.out
    conversion = folder / "Tiny.safetensors"
    conversion.write_bytes(conversion.read_bytes()[:-1] + b"\x07")
    torch.save({"cfg": {"layers": 2}, "model": {"a": torch.zeros(3, 4)}}, original)
    said = offkey("weights", "check", "Tiny", original, "mn04_as")
    assert said.code == 1
    assert "Tiny: " in said.err
    assert "mn04_as: " in said.err
    assert f"{original}: good" in said.out
    told = offkey("weights", "check", "Tiny", original, "--json")
    assert told.code == 1
    assert [entry["problem"] is None for entry in told.json["weights"]] == [False, True]
    assert told.json["weights"][1]["parameters"] == 12
    assert told.json["weights"][1]["architecture"] == {"layers": 2}


def test_convert_writes_safetensors_and_overwrites_nothing(
    offkey: Callable[..., Any], original: Path, folder: Path, tmp_path: Path
) -> None:
    said = offkey("weights", "convert", original)
    assert said.code == 0
    place = original.with_suffix(".safetensors")
    assert said.out.splitlines() == [f"1 tensors: {place}", f"next: --set encoder.weights={place}"]
    assert read_checkpoint(place).architecture == {"layers": 2}
    said = offkey("weights", "convert", original)
    assert said.code == 2
    assert "is there already" in said.err
    assert offkey("weights", "convert", original, "--out", tmp_path / "new" / "x.safetensors").code == 0


@pytest.mark.parametrize(
    "arguments", [[], ["fetch"], ["convert"], ["convert", "no/such/file"], ["fetch", "nonsense"], ["nonsense"]]
)
def test_wrong_use_is_2(offkey: Callable[..., Any], folder: Path, arguments: list[str]) -> None:
    said = offkey("weights", *arguments)
    assert said.code == 2
    assert "Traceback" not in said.err


@pytest.mark.parametrize("command", ["list", "fetch", "check", "convert"])
def test_help(offkey: Callable[..., Any], command: str) -> None:
    said = offkey("weights", command, "--help")
    assert said.code == 0
    assert said.out.startswith(f"Usage: offkey weights {command} [OPTIONS]")


def test_listing_loads_no_torch() -> None:
    code = (
        "import sys; from offkey.cli.app import run; run(['weights', 'list', '--json']);"
        "sys.stderr.write(str('torch' in sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stderr == "False"
