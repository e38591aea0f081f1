"""Files are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from offkey.files import read_pairs, sha256, sweep, write_whole
from offkey.types import OffkeyError


@pytest.mark.parametrize("content", ["", "täxt\r\n", b"", bytes(range(256))])
def test_what_is_written_is_read(tmp_path: Path, content: str | bytes) -> None:
    path = write_whole(tmp_path / "new" / "folder" / "file", content)
    wanted = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == wanted
    assert sha256(path) == hashlib.sha256(wanted).hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_whole(tmp_path / "file", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("offkey.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_others_may_read_what_the_mask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write_whole(tmp_path / "file", "x")
        assert os.umask(0o027) == 0o027  # the mask itself is as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_only_what_a_killed_write_left_is_swept(tmp_path: Path) -> None:
    kept = ["clip.wav.part", ".hidden", ".zip.part", ".a.file.toolong123.part", "deep/file"]
    left = [".plan.json.k3_x9abc.part", "deep/.scores.csv.abcdefgh.part"]
    for name in (*kept, *left):
        write_whole(tmp_path / name, name)
    sweep(tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == set(kept)


def test_what_a_killed_write_leaves_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from offkey.files import write_whole\n"
        "pathlib.Path.replace = lambda *_: os._exit(9)\n"
        "write_whole(pathlib.Path(sys.argv[1]) / 'plan.json', '{}')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_read_in_their_order_or_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"

    def read() -> dict[str, str]:
        return read_pairs(path, OffkeyError, "file,0", str.isdigit)

    path.write_text("\ufeffb.wav, 1\n\na.wav,0\n", encoding="utf-8")
    assert list(read().items()) == [("b.wav", "1"), ("a.wav", "0")]
    for text, words in (
        ("b.wav,1\na.wav,x\n", "line 2: expected file,0, found 'a.wav,x'"),
        ("b.wav,1,2\n", "line 1: expected file,0"),
        (",1\n", "line 1: expected file,0"),
        ("a,1\na,1\n", "line 2: a is there twice"),
    ):
        path.write_text(text)
        with pytest.raises(OffkeyError, match=words) as error:
            read()
        assert str(path) in str(error.value)
