"""`offkey data`: what a set holds, and simulated machines."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_check_counts_what_is_there(offkey: Callable[..., Any], small_set: Path) -> None:
    said = offkey("data", "check", small_set)
    assert said.code == 0, said.out
    assert "DCASE data set of 2025" in said.out
    assert "0 errors" in said.out
    found = offkey("data", "check", small_set, "--json").json
    assert [machine["machine"] for machine in found["machines"]] == ["fan", "valve"]
    assert sum(entry["count"] for entry in found["machines"][0]["clips"]) == 22 + 8 + 2


def test_check_names_what_is_wrong_and_ends_with_1(offkey: Callable[..., Any], small_set: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_set, tmp_path / "set"))
    victim = next(copy.glob("valve/train/*.wav"))
    victim.write_bytes(b"")
    said = offkey("data", "check", copy)
    assert said.code == 1
    assert victim.name in said.out
    found = offkey("data", "check", copy, "--json")
    assert found.code == 1
    assert any(problem["severity"] == "error" for problem in found.json["problems"])


def test_synth_writes_what_check_finds_good(offkey: Callable[..., Any], tmp_path: Path) -> None:
    root = tmp_path / "machines"
    sizes = ["seconds=2", "train_source=3", "train_target=1", "test_per_group=1", "supplemental=2"]
    command = ["data", "synth", root, "--machine", "slider", *(part for size in sizes for part in ("--set", size))]
    said = offkey(*command, "--json")
    assert said.code == 0
    assert said.json["machines"] == ["slider"]
    assert (said.json["written"], said.json["kept"]) == (10, 0)
    before = {path: path.read_bytes() for path in root.rglob("*.wav")}
    again = offkey(*command)
    assert "10 kept from an earlier run" in again.out
    assert f"next: offkey fit {root} --out MODEL" in again.out
    assert {path: path.read_bytes() for path in root.rglob("*.wav")} == before
    assert offkey("data", "check", root).code == 0
    other = offkey(*command, "--seed", 1)
    assert other.code == 2
    assert str(root) in other.err
