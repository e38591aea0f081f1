"""`offkey fit`: what it prints, what it leaves, and how it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offkey as package
from offkey.systems.config import preset_names


@pytest.fixture
def plain(small_set: Path, tmp_path: Path) -> Path:
    """A folder of normal clips without names that mean anything."""
    folder = tmp_path / "press"
    folder.mkdir()
    for number, path in enumerate(sorted(small_set.glob("*/train/*.wav"))):
        shutil.copy(path, folder / f"{number:02d}.wav")
    return folder


def test_the_next_command_is_told(offkey: Callable[..., Any], small_set: Path, tmp_path: Path) -> None:
    said = offkey("fit", small_set, "--system", "logmel-knn", "--out", tmp_path / "m")
    assert said.code == 0
    assert f"detector for fan, valve from 44 normal clips: {tmp_path / 'm'}" in said.out
    assert f"next: offkey score {tmp_path / 'm'}" in said.out


def test_auto_says_why(offkey: Callable[..., Any], plain: Path, tmp_path: Path, quick: tuple[str, ...]) -> None:
    settings = [part for text in quick for part in ("--set", text)]
    said = offkey("fit", plain, "--out", tmp_path / "m", *settings, "--json")
    assert said.code == 0
    reasons = said.json["reasons"]
    assert any("settings of press are not told" in reason for reason in reasons)
    for reason in reasons:
        assert reason in said.err
        assert reason in (tmp_path / "m" / "CARD.md").read_text(encoding="utf-8")
    clip = next(plain.glob("*.wav"))
    assert offkey("score", tmp_path / "m", clip).code == 0


def test_unusable_clips_are_named_and_the_rest_learnt(offkey: Callable[..., Any], plain: Path, tmp_path: Path) -> None:
    (plain / "07.wav").write_bytes(b"")
    (plain / "08.wav").write_text("text")
    said = offkey("fit", plain, "--system", "loudness", "--out", tmp_path / "m")
    assert said.code == 1
    assert str(plain / "07.wav") in said.err
    assert str(plain / "08.wav") in said.err
    assert "2 files could not be used" in said.err
    assert len(package.load(tmp_path / "m").machines["press"].clips) == 42


def test_started_again_it_says_so_and_changes_nothing(offkey: Callable[..., Any], plain: Path, tmp_path: Path) -> None:
    command = ["fit", plain, "--system", "logmel-density", "--out", tmp_path / "m"]
    assert offkey(*command).code == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "m").rglob("*.*")}
    said = offkey(*command)
    assert said.code == 0
    assert "already holds this detector; nothing to do" in said.err
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "m").rglob("*.*")} == before
    refused = offkey(*command, "--set", "calibration.folds=3")
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert offkey(*command, "--set", "calibration.folds=3", "--overwrite").code == 0
    assert package.load(tmp_path / "m").config.calibration.folds == 3


def test_the_seed_is_the_option_else_the_settings_own(offkey: Callable[..., Any], plain: Path, tmp_path: Path) -> None:
    def seed_of(name: str, *options: object) -> int:
        assert offkey("fit", plain, "--system", "loudness", "--out", tmp_path / name, *options).code == 0
        return package.load(tmp_path / name).config.seed

    assert seed_of("none") == 0
    assert seed_of("option", "--seed", 3) == 3
    assert seed_of("set", "--set", "seed=4") == 4
    assert seed_of("both", "--set", "seed=4", "--seed", 3) == 3


def test_only_the_named_machine(offkey: Callable[..., Any], small_set: Path, tmp_path: Path) -> None:
    said = offkey("fit", small_set, "--system", "loudness", "--machine", "valve", "--out", tmp_path / "m", "--json")
    assert list(said.json["facts"]["clips"]) == ["valve"]


def test_subfolders_are_machines_or_settings(offkey: Callable[..., Any], plain: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(plain.glob("*.wav"))):
        folder = plain / ("slow", "fast")[number % 2]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    fit = ["fit", plain, "--system", "loudness", "--json", "--out"]
    assert set(offkey(*fit, tmp_path / "a").json["facts"]["clips"]) == {"fast", "slow"}
    assert set(offkey(*fit, tmp_path / "b", "--subfolders", "settings").json["facts"]["clips"]) == {"press"}
    assert offkey(*fit, tmp_path / "c", "--subfolders", "colours").code == 2


def test_faults_in_settings_name_what_is_known(offkey: Callable[..., Any], plain: Path, tmp_path: Path) -> None:
    said = offkey("fit", plain, "--out", tmp_path / "m", "--set", "training.epoch=3")
    assert (said.code, "did you mean 'training.epochs'" in said.err) == (2, True)
    said = offkey("fit", plain, "--out", tmp_path / "m", "--system", "aut")
    assert (said.code, ", ".join(preset_names()) in said.err) == (2, True)
    said = offkey("fit", plain, "--out", tmp_path / "m", "--system", tmp_path / "none.toml")
    assert (said.code, "none.toml" in said.err) == (2, True)
    assert not (tmp_path / "m").exists()


def test_faulty_recordings_in_the_training_folder_are_refused(
    offkey: Callable[..., Any], plain: Path, tmp_path: Path
) -> None:
    shutil.copytree(plain, tmp_path / "set" / "train")
    shutil.copy(plain / "00.wav", tmp_path / "set" / "train" / "anomaly_00.wav")
    said = offkey("fit", tmp_path / "set", "--system", "loudness", "--out", tmp_path / "m")
    assert said.code == 2
    assert "anomaly_00.wav" in said.err


def test_facts_are_what_was_heard(offkey: Callable[..., Any], small_set: Path, tmp_path: Path) -> None:
    facts = offkey("fit", small_set, "--system", "loudness", "--out", tmp_path / "m", "--json").json["facts"]
    assert facts["clips"] == {"fan": 22, "valve": 22}
    assert facts["hours"] == pytest.approx(44 * 2.0 / 3600, abs=1e-4)
    assert facts["offkey"] == package.__version__
    document = json.loads((tmp_path / "m" / "calibration.json").read_text(encoding="utf-8"))
    assert document["facts"] == facts


# ---- clips cut from one recording


@pytest.fixture
def cut(plain: Path, tmp_path: Path) -> Path:
    """The folder's clips under names of four recordings, eleven slices each, and a table of them beside it."""
    rows = ["file,day"]
    for number, path in enumerate(sorted(plain.glob("*.wav"))):
        path.rename(plain / f"day{number // 11}_{number % 11:02d}.wav")
        rows.append(f"press/day{number // 11}_{number % 11:02d}.wav,day {number // 11}")
    (tmp_path / "cuts.csv").write_text("\n".join(rows))
    return plain


def test_recordings_that_are_told_are_kept(offkey: Callable[..., Any], cut: Path, tmp_path: Path) -> None:
    command = ["fit", cut, "--system", "logmel-knn", "--out", tmp_path / "m"]
    table = f"{tmp_path / 'cuts.csv'}:day"
    said = offkey(*command, "--groups", table)
    assert said.code == 0
    assert "may be cut from" not in said.err
    assert "press: 4 recordings of normal clips cannot promise a false-alarm rate of 0.1: at least 9" in said.err
    known = package.load(tmp_path / "m").machines["press"]
    assert known.recordings == 4
    assert known.calibration.threshold(0.2) < np.inf
    assert known.sessions == tuple(f"day {number // 11}" for number in range(44))
    assert known.calibration.counts() == [4]
    card = (tmp_path / "m" / "CARD.md").read_text(encoding="utf-8")
    assert "The 44 clips of press were cut from 4 recordings" in card
    assert "| press | 44 of 4 recordings |" in card
    assert offkey(*command, "--groups", table).code == 0  # nothing to do
    other = offkey(*command)
    assert other.code == 2
    assert "other settings or clips" in other.err


def test_an_update_goes_on_with_the_recordings(offkey: Callable[..., Any], cut: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for path in sorted(cut.glob("day3_*.wav")):
        path.rename(new / path.name)
    table = f"{tmp_path / 'cuts.csv'}:day"
    assert offkey("fit", cut, "--system", "logmel-knn", "--out", tmp_path / "m", "--groups", table).code == 0
    update = ["update", tmp_path / "m", new, "--machine", "press"]
    assert offkey(*update, "--out", tmp_path / "told", "--groups", table).code == 0
    assert package.load(tmp_path / "told").machines["press"].recordings == 4
    assert offkey(*update, "--out", tmp_path / "untold").code == 0
    known = package.load(tmp_path / "untold").machines["press"]
    assert known.recordings == 3 + 11
    assert known.calibration.counts() == [14]


def test_an_ensemble_has_the_recordings_of_its_members(offkey: Callable[..., Any], cut: Path, tmp_path: Path) -> None:
    members = 'ensemble.members=[{system="logmel-knn"},{system="loudness"}]'
    command = ["fit", cut, "--system", "ensemble", "--set", members, "--out", tmp_path / "m"]
    said = offkey(*command, "--groups", f"{tmp_path / 'cuts.csv'}:day")
    assert said.code == 0, said.err
    whole = package.load(tmp_path / "m")
    assert whole.machines["press"].recordings == 4
    assert all(member.machines["press"].recordings == 4 for member in whole.members.values())
    assert "cut from 4 recordings" in whole.card()


def test_names_that_look_cut_are_asked_about(offkey: Callable[..., Any], cut: Path, tmp_path: Path) -> None:
    said = offkey("fit", cut, "--system", "logmel-knn", "--out", tmp_path / "m")
    assert said.code == 0
    assert "press: by their names, 44 normal clips may be cut from 4 recordings" in said.err
    assert "--groups" in said.err
    assert package.load(tmp_path / "m").machines["press"].sessions is None


def test_groups_that_do_not_do_are_refused(offkey: Callable[..., Any], cut: Path, tmp_path: Path) -> None:
    table = tmp_path / "cuts.csv"
    lines = table.read_text().splitlines()
    (tmp_path / "some.csv").write_text("\n".join(lines[:-2]))
    (tmp_path / "one.csv").write_text("\n".join([lines[0], *(line.split(",")[0] + ",monday" for line in lines[1:])]))
    for name, words in (("some", "nor of 1 more"), ("one", "all 44 normal clips were cut from one recording (monday)")):
        said = offkey("fit", cut, "--out", tmp_path / "m", "--groups", f"{tmp_path / name}.csv:day")
        assert said.code == 2
        assert words in said.err
    assert not (tmp_path / "m").exists()
