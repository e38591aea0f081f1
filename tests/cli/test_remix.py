"""`offkey remix`: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from tests.separation.stand_in import LowPass, sound, write

from offkey.cli.remix import remix


@pytest.fixture
def offkey_remix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The command by itself, with a stand-in for the separator that --model names."""
    from offkey.cli import app as commands

    loaded = SimpleNamespace(load=lambda folder: LowPass(edge=float(Path(folder).name)))
    monkeypatch.setitem(sys.modules, "offkey.separation.separator", SimpleNamespace(Separator=loaded))
    alone = typer.Typer()
    alone.callback()(lambda: None)
    alone.command("remix")(remix)
    monkeypatch.setattr(commands, "app", alone)

    def call(*arguments: object) -> Any:
        capsys.readouterr()
        code = commands.run(["remix", *map(str, arguments)])
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return call


@pytest.fixture
def press(tmp_path: Path) -> Path:
    for number in range(3):
        write(tmp_path / "press" / f"{number}.wav", sound(200 + 50 * number, 3000))
    return tmp_path / "press"


def test_it_writes_a_set_and_tells_what_comes_next(offkey_remix: Any, press: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = offkey_remix(press, "--out", out, "--model", "1000", "--copies", 2, "--snr", -3, 3, "--originals")
    assert said.code == 0, said.err
    assert f"6 remixed clips and 3 originals: {out}" in said.out
    assert f"offkey fit {out}" in said.out
    assert len(list(out.rglob("*.wav"))) == 9
    assert '"min_snr_db": -3.0' in (out / "remix.json").read_text()


def test_programs_read_counts(offkey_remix: Any, press: Path, tmp_path: Path) -> None:
    import json

    told = json.loads(offkey_remix(press, "--out", tmp_path / "out", "--model", "1000", "--json").out)
    assert told == {"out": str(tmp_path / "out"), "written": 3, "originals": 0, "left_out": 0}


def test_what_could_not_be_used_is_named(offkey_remix: Any, press: Path, tmp_path: Path) -> None:
    (press / "1.wav").write_bytes(b"")
    said = offkey_remix(press, "--out", tmp_path / "out", "--model", "1000")
    assert said.code == 1
    assert str(press / "1.wav") in said.err


def test_where_nothing_was_separated_it_says_so(offkey_remix: Any, press: Path, tmp_path: Path) -> None:
    said = offkey_remix(press, "--out", tmp_path / "out", "--model", "100")
    assert said.code == 0
    assert "3 were left out" in said.out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [(["--snr", 3, -3], "lowest comes first"), (["--channel", "left"], "channel"), (["--out", "."], "not empty")],
)
def test_wrong_use_ends_with_2(
    offkey_remix: Any, press: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[Any], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = offkey_remix(press, "--out", tmp_path / "out", "--model", "1000", *options)
    assert said.code == 2
    assert complaint in said.err


@pytest.mark.parametrize("snr", [("nan", "nan"), ("-inf", "inf"), (-100000, -100000), (0, 1000)])
def test_levels_that_no_sound_has_are_an_error_that_says_so(
    offkey_remix: Any, press: Path, tmp_path: Path, snr: tuple[object, object]
) -> None:
    said = offkey_remix(press, "--out", tmp_path / "out", "--model", "1000", "--snr", *snr)
    assert said.code == 2
    assert "snr_db: input should be" in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "out").exists()
