"""What all commands have in common: help, exit codes, and errors without a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offkey as package

COMMANDS = [
    "demo",
    "fit",
    "score",
    "explain",
    "evaluate",
    "report",
    "benchmark",
    "data check",
    "data synth",
    "weights list",
    "weights fetch",
    "weights check",
    "weights convert",
]


def test_the_version_is_told(offkey: Callable[..., Any]) -> None:
    assert offkey("--version") == (0, f"offkey {package.__version__}\n", "")


def test_help_names_every_command(offkey: Callable[..., Any]) -> None:
    said = offkey("--help")
    assert said.code == 0
    for command in COMMANDS:
        assert re.search(rf"\b{command.split()[0]}\b", said.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(offkey: Callable[..., Any], command: str) -> None:
    said = offkey(*command.split(), "--help")
    assert said.code == 0
    assert said.out.startswith(f"Usage: offkey {command} [OPTIONS]")
    assert said.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"], ["fit"], ["fit", "x"], ["score"], ["score", "model"], ["evaluate"], ["evaluate", "model"],
        ["report"], ["benchmark", "x"], ["data"], ["data", "nonsense"], ["fit", "x", "--out", "y", "--nonsense"],
        ["fit", "x", "--out", "y", "--workers", "-1"], ["fit", "x", "--out", "y", "--seed", "-1"],
        ["fit", "x", "--out", "y", "--seed", "one"], ["fit", "no/such/folder", "--out", "y"],
        ["score", "no/such/model", "x.wav"], ["evaluate", "no/such/model", "x"], ["report", "no/such/run"],
        ["evaluate", "--scores", "no/such/folder"], ["data", "check", "no/such/folder"], ["demo", "--seed", "-1"],
        ["benchmark", "x", "--systems", "a", "--out", "y", "--seeds", "one"],
        ["data", "synth", "y", "--machine", "dragon"], ["data", "synth", "y", "--set", "secnds=3"],
        ["data", "synth", "y", "--seed", "-1"], ["explain"], ["explain", "model"],
        ["explain", "no/such/model", "x.wav"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use_is_2_and_says_why(
    offkey: Callable[..., Any], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = offkey(*arguments)
    assert said.code == 2
    assert said.err.strip() or said.out.strip()
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_data_synth_names_the_nearest_setting_and_the_known_machines(
    offkey: Callable[..., Any], tmp_path: Path
) -> None:
    assert "did you mean 'seconds'" in offkey("data", "synth", tmp_path / "y", "--set", "secnds=3").err
    assert "'dragon' is not one of fan, gearbox" in offkey("data", "synth", tmp_path / "y", "--machine", "dragon").err


def test_without_arguments_help_is_shown(offkey: Callable[..., Any]) -> None:
    said = offkey()
    assert "Usage" in said.out + said.err


def test_errors_of_the_disk_are_told_without_a_traceback(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], small_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    clip = next(small_set.glob("fan/test/*.wav"))
    said = offkey("score", fitted("loudness").folder, clip, "--out", tmp_path / "file" / "scores.csv")
    assert said.code == 2
    assert "Traceback" not in said.err
    assert "scores.csv" in said.err or "file" in said.err


def test_a_bug_is_not_hidden(offkey: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("offkey.detector.Detector.load", broken)
    with pytest.raises(ZeroDivisionError):
        offkey("score", "model", "x.wav")


def test_stopping_by_hand_is_130_and_says_how_to_go_on(
    offkey: Callable[..., Any], small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("offkey.fitting.assemble", stop)
    said = offkey("fit", small_set, "--system", "loudness", "--out", tmp_path / "x")
    assert said.code == 130
    assert "start the same command again to go on" in said.err


def test_the_program_itself_ends_with_the_code_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "offkey", "score", str(tmp_path / "none"), "x.wav"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("offkey: ")
    assert "Traceback" not in ended.stderr


def test_a_reader_that_leaves_is_no_error(fitted: Callable[[str], Any], small_set: Path) -> None:
    model = fitted("loudness").folder
    command = f"'{sys.executable}' -m offkey score '{model}' '{small_set}/fan/test' | true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "0"
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr
