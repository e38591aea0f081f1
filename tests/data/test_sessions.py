"""Which clips were cut from one recording: told by a table, or asked for where names look like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from offkey.data.sessions import SessionError, looks_cut, read_groups, with_sessions
from offkey.types import ClipMeta


def clip(path: str) -> ClipMeta:
    return ClipMeta(Path(path), Path(path).parent.name)


def test_a_table_is_read_and_found_by_name_or_folder(tmp_path: Path) -> None:
    table = tmp_path / "cuts.csv"
    table.write_text("file,day\ntrain/pump/01.wav,mo\ntrain/fan/01.wav,tu\n02.wav,mo\n", encoding="utf-8-sig")
    groups = read_groups(f"{table}:day")
    clips = [clip("/data/train/pump/01.wav"), clip("elsewhere/fan/01.wav"), clip("/x/y/02.wav")]
    assert [each.session for each in with_sessions(clips, groups)] == ["mo", "tu", "mo"]


@pytest.mark.parametrize(
    ("text", "asked", "words"),
    [
        ("file,day\n01.wav,mo\n01.wav,tu\n", "day", "01.wav is told two groups, mo and tu"),
        ("name,day\n01.wav,mo\n", "day", "needs the columns file and day; it has name, day"),
        ("file,day\n01.wav,mo\n", "night", "needs the columns file and night"),
    ],
)
def test_tables_that_tell_nothing_are_refused(tmp_path: Path, text: str, asked: str, words: str) -> None:
    table = tmp_path / "cuts.csv"
    table.write_text(text)
    with pytest.raises(SessionError, match=words):
        read_groups(f"{table}:{asked}")
    with pytest.raises(SessionError, match="expected CSV:COLUMN"):
        read_groups("day")


def test_clips_that_nothing_is_told_of_are_named() -> None:
    with pytest.raises(SessionError, match=r"b/02.wav was cut from, nor of 1 more"):
        with_sessions([clip("b/01.wav"), clip("b/02.wav"), clip("b/03.wav")], {"01.wav": "mo", "03.wav": ""})


def test_files_of_one_name_need_their_folders() -> None:
    with pytest.raises(SessionError, match=r"several recordings for files called 01.wav \(mo, tu\)"):
        with_sessions([clip("/data/pump/01.wav")], {"a/01.wav": "mo", "b/01.wav": "tu"})


def test_a_line_tells_nothing_of_a_file_elsewhere_where_its_own_is_there() -> None:
    clips = [clip("/data/pump/01.wav"), clip("/data/fan/01.wav")]
    with pytest.raises(SessionError, match=r"recording /data/fan/01\.wav was cut from"):
        with_sessions(clips, {"pump/01.wav": "mo"})
    groups = {"pump/01.wav": "mo", "01.wav": "tu"}
    assert [each.session for each in with_sessions(clips, groups)] == ["mo", "tu"]
    assert [each.session for each in with_sessions(clips, {"01.wav": "tu"})] == ["tu", "tu"]
    assert with_sessions(clips[1:], {"old/01.wav": "mo"})[0].session == "mo"  # the folder has another name by now


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([f"{day}-{number:02d}.wav" for day in "abc" for number in range(1, 6)], 3),
        ([f"pump_{number}.wav" for number in range(40)], 0),  # forty recordings as likely as one
        ([f"{day}_{number}.wav" for day in "abc" for number in (10, 20, 30)], 0),  # speeds, perhaps
        ([f"{day}_{number}.wav" for day in "abc" for number in range(2)], 0),
        ([f"{day}_{number}.wav" for day in "abc" for number in range(4)] + ["other.wav"], 0),
        ([f"section_0{s}_source_train_normal_{n:04d}_a_{n}.wav" for s in range(3) for n in range(4)], 0),
        ([f"section_0{s}_source_train_normal_{n:04d}.wav" for s in range(3) for n in range(4)], 0),
        ([], 0),
    ],
)  # fmt: skip
def test_names_say_so_only_where_it_is_plain(names: list[str], found: int) -> None:
    assert looks_cut(names) == found


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_bytes("file,day\nkühl.wav,1\n".encode("latin-1"))
    with pytest.raises(SessionError, match=r"groups.csv.*UTF-8"):
        read_groups(f"{tmp_path / 'groups.csv'}:day")
