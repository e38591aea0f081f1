"""`offkey export`, and `offkey score` of what it wrote: with torch, and where there is none."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

# An interpreter in which nothing heavy is installed, for all that a program can tell.
BARE = """
import sys

class Missing:
    names = {"torch", "scipy", "sklearn", "safetensors", "matplotlib", "jinja2", "onnx", "jaxtyping"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module", autouse=True)
def unchecked_shapes() -> Iterator[None]:
    """Tracing turns sizes into tensors, which annotations do not foresee."""
    pytest.importorskip("onnxruntime")
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def folder(fitted: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from offkey.cli.app import run

    out = tmp_path_factory.mktemp("export") / "out"
    assert run(["export", str(fitted("logmel-density").folder), "--out", str(out), "--format", "onnx"]) == 0
    return out


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def bare(code: str, *arguments: object) -> Any:
    command = [sys.executable, "-c", BARE + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def mixed(small_set: Path, tmp_path: Path) -> Path:
    """Two good clips of the valve, and one that is none."""
    place = tmp_path / "valve"
    place.mkdir()
    for number, path in enumerate(sorted(small_set.glob("valve/test/*.wav"))[:2]):
        shutil.copy(path, place / f"{number}.wav")
    (place / "broken.wav").write_text("no sound")
    return place


@pytest.mark.parametrize("engine", [(), ("--engine", "onnx")])
def test_the_table_is_that_of_the_detector(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], folder: Path, mixed: Path, engine: tuple[str, ...]
) -> None:
    said = offkey("score", folder, mixed, *engine)
    expected = offkey("score", fitted("logmel-density").folder, mixed)
    assert said.code == expected.code == 1
    assert said.err == expected.err
    for one, other in zip(rows(said.out), rows(expected.out), strict=True):
        assert {**one, "score": ""} == {**other, "score": ""}
        if not one["error"]:
            assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-4)


def test_without_torch_the_command_scores(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], folder: Path, mixed: Path
) -> None:
    said = bare("from offkey.cli import main\nmain()", "score", folder, mixed, "--out", mixed / "scores.csv")
    assert said.returncode == 1, said.stderr
    assert "broken.wav: no" in said.stderr
    told = rows((mixed / "scores.csv").read_text(encoding="utf-8"))
    expected = rows(offkey("score", fitted("logmel-density").folder, mixed).out)
    assert [row["is_anomalous"] for row in told] == [row["is_anomalous"] for row in expected]
    said = bare("from offkey.cli import main\nmain()", "score", fitted("logmel-density").folder, mixed)
    assert said.returncode == 2
    assert "is not installed, so that only exported detectors can be scored" in said.stderr
    assert bare("from offkey.cli import main\nmain()", "export", folder, "--out", mixed / "x").returncode == 2


def test_without_torch_python_scores_a_clip(folder: Path, mixed: Path, fitted: Callable[[str], Any]) -> None:
    code = (
        "from offkey.runtime import Exported\n"
        "verdict = Exported.load(sys.argv[1]).score(sys.argv[2])\n"
        "print(verdict.score, verdict.machine)\n"
        "assert not {'torch', 'scipy', 'sklearn', 'safetensors'} & set(sys.modules)"
    )
    said = bare(code, folder, mixed / "0.wav")
    assert said.returncode == 0, said.stderr
    expected = fitted("logmel-density").detector.score(mixed / "0.wav")
    assert said.stdout.split()[1] == "valve"
    assert float(said.stdout.split()[0]) == pytest.approx(expected.score, rel=1e-4)


def test_an_export_is_described(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], small_set: Path, tmp_path: Path
) -> None:
    told = offkey(
        "export", fitted("loudness").folder, "--out", tmp_path / "out", "--check", small_set, "--int8", "--json"
    ).json
    assert told["weights"] == "int8"
    assert told["check"]["real"] == 16
    assert told["check"]["auc"] == pytest.approx(told["check"]["auc_detector"], abs=0.01)
    assert (tmp_path / "out" / "export.json").is_file()


def test_wrong_use_is_said_in_words(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], folder: Path, mixed: Path, tmp_path: Path
) -> None:
    model = fitted("logmel-density").folder
    for arguments, words in (
        (("score", model, mixed, "--engine", "onnx"), f"make one: `offkey export {model} --out DIR`"),
        (("score", folder, mixed, "--engine", "torch"), "leave out --engine torch"),
        (("score", folder, mixed, "--explain", tmp_path / "why"), "an exported detector cannot explain"),
        (("export", tmp_path, "--out", tmp_path / "out"), "holds no finished detector"),
    ):
        said = offkey(*arguments)
        assert said.code == 2
        assert words in said.err


def test_a_changed_file_is_refused(offkey: Callable[..., Any], folder: Path, mixed: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "copy"))
    content = bytearray((other / "model.onnx").read_bytes())
    content[-1] ^= 1
    (other / "model.onnx").write_bytes(content)
    said = offkey("score", other, mixed)
    assert said.code == 2
    assert "is not the file that was saved" in said.err


def test_machines_are_told_apart_as_by_the_detector(
    offkey: Callable[..., Any], folder: Path, mixed: Path, tmp_path: Path
) -> None:
    stray = Path(shutil.copy(mixed / "0.wav", tmp_path / "stray.wav"))
    said = offkey("score", folder, stray, mixed / "0.wav")
    assert said.code == 1
    assert "which machine is stray.wav? name one of fan, valve" in said.err
    assert offkey("score", folder, stray, "--machine", "fan", "--json").json["files"][0]["machine"] == "fan"
    unknown = offkey("score", folder, stray, "--machine", "pump")
    assert unknown.code == 2
    assert "does not know the machine 'pump'" in unknown.err
