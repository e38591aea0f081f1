"""`offkey score`: one row a file in the order given, the unusable ones named."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

HEADER = "file,score,p_value,threshold,is_anomalous,error"


@pytest.fixture
def mixed(small_set: Path, tmp_path: Path) -> Path:
    """Four good clips of the fan, and three that are none."""
    folder = tmp_path / "new clips, 1" / "fan"
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(small_set.glob("fan/test/*.wav"))[:4]):
        shutil.copy(path, folder / f"{2 * number}.wav")
    whole = (folder / "0.wav").read_bytes()
    (folder / "1.wav").write_bytes(whole[: len(whole) // 3])
    (folder / "3.wav").write_text("this is a text\n" * 50)
    (folder / "5.wav").write_bytes(b"")
    (folder / "notes.txt").write_text("no recording")
    (folder / ".hidden.wav").write_bytes(whole)
    return folder


BROKEN = ("1.wav", "3.wav", "5.wav")


def rows_of(text: str) -> list[dict[str, str]]:
    assert text.splitlines()[0] == HEADER
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_with_broken_files_among_good_ones(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], mixed: Path, tmp_path: Path
) -> None:
    detector, model = fitted("auto")
    out = tmp_path / "results" / "scores.csv"
    said = offkey("score", model, mixed, "--out", out)
    assert said.code == 1
    rows = rows_of(out.read_text(encoding="utf-8"))
    assert [row["file"] for row in rows] == [str(mixed / f"{number}.wav") for number in range(7)]
    for row in rows:
        if row["file"].endswith(BROKEN):
            assert row["error"]
            assert (row["score"], row["p_value"], row["threshold"], row["is_anomalous"]) == ("", "", "", "")
            assert row["file"] in said.err
        else:
            assert row["error"] == ""
            verdict = detector.score(row["file"])
            assert float(row["score"]) == pytest.approx(verdict.score, rel=1e-3)
            assert 0 < float(row["p_value"]) <= 1
            assert float(row["threshold"]) == pytest.approx(detector.threshold("fan"), rel=1e-8)
            assert row["is_anomalous"] == str(float(row["score"]) > float(row["threshold"])).lower()
    assert "4 files scored" in said.out
    assert "3 unusable" in said.out


def test_good_files_alone_end_with_0_and_rows_on_stdout(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], mixed: Path
) -> None:
    files = [mixed / "4.wav", mixed / "0.wav", mixed / "2.wav", mixed / "0.wav"]
    said = offkey("score", fitted("loudness").folder, *files)
    assert said.code == 0
    rows = rows_of(said.out)
    assert [row["file"] for row in rows] == [str(path) for path in files]
    assert rows[1] == rows[3]


def test_files_and_folders_keep_the_order_given(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], mixed: Path
) -> None:
    said = offkey("score", fitted("loudness").folder, mixed / "6.wav", mixed, mixed / "none.wav")
    assert said.code == 1
    names = [Path(row["file"]).name for row in rows_of(said.out)]
    assert names == ["6.wav", *(f"{number}.wav" for number in range(7)), "none.wav"]
    assert "none.wav" in said.err


def test_all_broken_is_1_and_every_one_is_named(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], mixed: Path
) -> None:
    said = offkey("score", fitted("loudness").folder, *(mixed / name for name in BROKEN))
    assert said.code == 1
    assert [bool(row["error"]) for row in rows_of(said.out)] == [True] * 3


def test_a_folder_without_recordings_is_wrong_use(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    said = offkey("score", fitted("loudness").folder, tmp_path / "empty")
    assert said.code == 2
    assert "no audio files in" in said.err


def test_json_says_the_same(offkey: Callable[..., Any], fitted: Callable[[str], Any], mixed: Path) -> None:
    model = fitted("loudness").folder
    said = offkey("score", model, mixed, "--json")
    assert said.code == 1
    table = rows_of(offkey("score", model, mixed).out)
    assert [entry["file"] for entry in said.json["files"]] == [row["file"] for row in table]
    for entry, row in zip(said.json["files"], table, strict=True):
        assert (entry["error"] or "") == row["error"]
        if not row["error"]:
            assert entry["score"] == pytest.approx(float(row["score"]), rel=1e-8)
            assert entry["is_anomalous"] is (row["is_anomalous"] == "true")
            assert entry["machine"] == "fan"
        else:
            assert "score" not in entry


def test_json_stays_json_where_there_is_no_threshold(offkey: Callable[..., Any], mixed: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("0.wav", "2.wav", "4.wav"):
        shutil.copy(mixed / name, few)
    assert offkey("fit", few, "--system", "logmel-knn", "--out", tmp_path / "model", "--json").json["model"]
    entry = offkey("score", tmp_path / "model", mixed / "6.wav", "--json").json["files"][0]
    assert entry["threshold"] is None
    assert entry["is_anomalous"] is False


def test_the_machine_can_be_named(offkey: Callable[..., Any], fitted: Callable[[str], Any], small_set: Path) -> None:
    model, clip = fitted("loudness").folder, next(small_set.glob("fan/test/*.wav"))
    assert offkey("score", model, clip, "--machine", "valve", "--json").json["files"][0]["machine"] == "valve"
    for command in ("score", "explain"):
        said = offkey(command, model, clip, "--machine", "pump")
        assert said.code == 2
        assert "does not know the machine 'pump'; it knows fan, valve" in said.err


def test_a_clip_of_no_known_machine_is_named_and_the_rest_done(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], small_set: Path, tmp_path: Path
) -> None:
    clip = next(small_set.glob("fan/test/*.wav"))
    stray = Path(shutil.copy(clip, tmp_path / "stray.wav"))
    said = offkey("score", fitted("loudness").folder, stray, clip)
    assert said.code == 1
    assert [bool(row["error"]) for row in rows_of(said.out)] == [True, False]
    assert "which machine is stray.wav" in said.err


def test_other_formats_and_rates_are_scored(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], tmp_path: Path
) -> None:
    sound = 0.1 * np.random.default_rng(0).standard_normal((44100, 2))
    names = ["a.flac", "b.ogg", "c.WAV"]
    (tmp_path / "fan").mkdir()
    for name in names:
        soundfile.write(tmp_path / "fan" / name, sound, 44100, format=name.split(".")[1].upper())
    said = offkey("score", fitted("logmel-knn").folder, tmp_path / "fan")
    assert said.code == 0, said.err
    assert [Path(row["file"]).name for row in rows_of(said.out)] == names


def test_a_picture_a_file_explains(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], mixed: Path, tmp_path: Path
) -> None:
    said = offkey("score", fitted("loudness").folder, mixed, "--explain", tmp_path / "why")
    assert said.code == 1
    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == ["0.png", "2.png", "4.png", "6.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "why").iterdir())


def test_names_with_commas_quotes_and_line_ends_survive_the_table(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], small_set: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "fan"
    folder.mkdir()
    clip = next(small_set.glob("fan/test/*.wav"))
    names = ['a,"b".wav', "c\nd.wav", "ä ö.wav"]
    for name in names:
        shutil.copy(clip, folder / name)
    said = offkey("score", fitted("loudness").folder, *(folder / name for name in names))
    assert [Path(row["file"]).name for row in rows_of(said.out)] == names
