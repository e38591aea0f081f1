"""Past bugs that somebody met who used the commands on files, folders and options as people have them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offkey as package
from offkey.assessment import assess
from offkey.benchmarking import BenchmarkError, Contestant, benchmark
from offkey.cli.app import run
from offkey.cli.recordings import folder_or_file, own_names
from offkey.data.sessions import SessionError
from offkey.data.source import open_source
from offkey.files import write_whole
from offkey.progress import Quiet
from offkey.updating import replace_folder
from offkey.watching import follow

Fit = Callable[[str], Any]


@pytest.fixture
def clip(small_set: Path) -> Path:
    return sorted(small_set.glob("fan/test/*.wav"))[0]


def named(clip: Path, folder: Path, name: bytes) -> Path:
    """A copy of a clip under a name that is no text in UTF-8."""
    try:
        shutil.copy(clip, os.fsencode(folder) + b"/" + name)
    except OSError:
        pytest.skip("this disk takes no such name")
    return folder / os.fsdecode(name)


def test_a_file_name_that_is_no_utf8_ended_score_and_lost_all_rows(
    fitted: Fit, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = named(clip, tmp_path, b"l\xfcfter.wav"), tmp_path / "scores.csv"
    assert run(["score", str(fitted("loudness").folder), str(file), "--machine", "fan", "--out", str(out)]) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    assert [row["file"] for row in rows] == [f"{tmp_path}/l\\udcfcfter.wav"]
    capsys.readouterr()
    assert run(["score", str(fitted("loudness").folder), str(file), "--machine", "fan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["file"] == str(file)


def test_the_name_of_a_file_was_read_as_a_formula_or_broke_its_picture(
    fitted: Fit, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [Path(shutil.copy(clip, tmp_path / "5$_{ 6$^.wav")), named(clip, tmp_path, b"l\xfcfter.wav")]
    out = tmp_path / "why"
    command = ["explain", str(fitted("loudness").folder), *map(str, files), "--machine", "fan", "--out", str(out)]
    assert run(command) == 0, capsys.readouterr().err
    assert sorted(path.stem for path in out.iterdir()) == sorted(file.stem for file in files)


def test_watch_and_fit_ended_at_a_file_name_that_is_no_utf8(
    fitted: Fit, small_set: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = named(clip, tmp_path, b"l\xfcfter.wav")
    for window in ((), ("--window", "0.5s")):
        watched = ["watch", str(fitted("loudness").folder), str(file), "--machine", "fan", "--json", *window]
        assert run(watched) == 0, capsys.readouterr().err
    folder = tmp_path / "pump"
    folder.mkdir()
    for number, path in enumerate(sorted(small_set.glob("fan/train/*.wav"))[:3]):
        named(path, folder, b"l\xfcfter %d.wav" % number)
    members = ["--system", "ensemble", "--set", 'ensemble.members=["loudness", "logmel-knn"]']
    assert run(["fit", str(folder), *members, "--out", str(tmp_path / "model"), "--workers", "0"]) == 0
    assert set(package.load(tmp_path / "model").machines["pump"].clips) == {path.name for path in folder.iterdir()}


def test_two_clips_had_one_picture() -> None:
    files = [Path("a/x.wav"), Path("b/x.wav"), Path("c/0001_x.wav"), Path("d/X.flac")]
    names = own_names(files)
    assert len({name.casefold() for name in names}) == 4
    assert names[2] == "0001_x"


def test_recordings_in_linked_folders_and_in_formats_that_cannot_be_read_were_passed_by(
    clip: Path, tmp_path: Path
) -> None:
    real, folder = tmp_path / "real", tmp_path / "seen"
    (real / "fan").mkdir(parents=True)
    (folder / ".trash").mkdir(parents=True)
    for place in (real / "fan" / "1.wav", folder / "2.wav", folder / ".trash" / "3.wav"):
        shutil.copy(clip, place)
    (folder / "4.m4a").write_bytes(b"0000ftypM4A ")
    (folder / "linked").symlink_to(real, target_is_directory=True)
    found = [str(file.relative_to(folder)) for file in folder_or_file(folder)]
    assert found == ["2.wav", "4.m4a", "linked/fan/1.wav"]


def test_fit_did_not_name_the_recordings_that_it_left_out(
    small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pump"
    folder.mkdir()
    for number, path in enumerate(sorted(small_set.glob("fan/train/*.wav"))[:3]):
        shutil.copy(path, folder / f"{number}.wav")
    (folder / "phone.m4a").write_bytes(b"0000ftypM4A ")
    assert run(["fit", str(folder), "--system", "loudness", "--out", str(tmp_path / "model"), "--workers", "0"]) == 0
    assert f"{folder / 'phone.m4a'}; convert them to WAV or FLAC" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "score"])
def test_a_place_that_cannot_be_written_to_was_found_after_all_the_work(
    command: str, fitted: Fit, small_set: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = tmp_path / "held"
    if command == "fit":
        held.write_text("a file")
        arguments = [str(small_set), "--system", "loudness", "--out", str(held)]
        words = "held: it is a file, where a folder is needed"
    else:
        held.mkdir()
        arguments = [str(fitted("loudness").folder), str(clip), "--out", str(held)]
        words = "held: it is a folder; name a file"
    assert run([command, *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "…" not in said  # no stage had begun
    with pytest.raises(IsADirectoryError, match="name a file"):
        write_whole(tmp_path, "text")


def test_an_update_threw_away_what_else_lay_in_the_folder(copied: Fit, small_set: Path) -> None:
    folder = copied("logmel-knn")
    (folder / "notes.txt").write_text("mine")
    (folder / "own").mkdir()
    (folder / "own" / "watch.json").write_text("{}")
    for old in ("evaluation/result.json", "report.html", "report-separation.html"):
        (folder / old).parent.mkdir(exist_ok=True)
        (folder / old).write_text("of the detector that was")
    grown = package.load(folder).update(sorted(small_set.glob("fan/test/*_normal_*"))[:1], machine="fan", workers=0)
    replace_folder(grown, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "own" / "watch.json").read_text() == "{}"
    assert not list(folder.glob("evaluation")) + list(folder.glob("report*"))
    assert len(package.load(folder).machines["fan"].clips) == len(grown.machines["fan"].clips)


def test_groups_of_test_clips_were_found_by_their_names_alone(fitted: Fit, small_set: Path, tmp_path: Path) -> None:
    groups: dict[str, str] = {}
    for machine in ("fan", "valve"):
        for condition in ("normal", "anomaly"):
            folder = tmp_path / machine / "test" / condition
            folder.mkdir(parents=True)
            for number, path in enumerate(sorted(small_set.glob(f"{machine}/test/*_{condition}_*"))):
                shutil.copy(path, folder / f"{number}.wav")
                groups[f"{machine}/test/{condition}/{number}.wav"] = f"{machine}, {condition}, {number // 2}"
    source, detector = open_source(tmp_path), fitted("loudness").detector
    found = assess(detector, source, bootstrap=10, groups=groups)
    assert found.result is not None
    assert found.result.grouped
    told = {str(meta.path.relative_to(tmp_path)): meta.session for meta in found.clips}
    assert told == groups
    seen: list[int] = []
    fewer = {name: group for name, group in groups.items() if not name.endswith("/3.wav")}
    with pytest.raises(SessionError, match="do not tell"):
        assess(detector, source, groups=fewer, progress=lambda done, _: seen.append(done))
    assert not seen  # nobody waits for scores to hear of a wrong table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--scores", "files", "--groups", "truth.csv:flight"], "--groups cannot stand beside --scores"),
        (["evaluate", "model", "--scores", "files", "--submission", "out"], "MODEL and --submission cannot stand"),
        (["evaluate", "model", "source", "--truth", "truth.csv"], "--truth goes with --scores"),
        (["fit", "source", "--out", "model", "--clip-every", "10s"], "give --false-alarms with it"),
        (["score", "model", "clip.wav", "--clip-every", "10s"], "give --false-alarms with it"),
    ],
)
def test_options_without_a_use_were_passed_by_in_silence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_seed_given_twice_was_noticed_after_its_run(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="seed 1 is told twice"):
        benchmark(tmp_path, [Contestant.read("loudness")], [0, 1, 1], tmp_path / "out", progress=Quiet(), failures=[])
    assert not (tmp_path / "out").exists()


def test_an_empty_file_in_a_followed_folder_was_never_named(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    done: set[Path] = set()
    for path in follow([tmp_path], done.__contains__, poll=10.0, idle=100.0, sleep=lambda _: None):
        done.add(path)
    assert {path.name for path in done} == {"empty.wav"}
