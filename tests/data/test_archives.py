"""Archives that mean harm are refused, damaged ones noticed, and a folder appears whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import shutil
import stat
import struct
import warnings
import zipfile
from pathlib import Path

import pytest

from offkey.data import archives
from offkey.data.archives import ArchiveError, Limits, survey, unpack

CLIPS = {f"fan/train/clip_{number}.wav": random.Random(number).randbytes(30_000) for number in range(6)}


def pack(path: Path, files, **info) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in files.items() if isinstance(files, dict) else files:
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            entry.compress_type = zipfile.ZIP_DEFLATED
            for key, value in info.items():
                setattr(entry, key, value)
            zipped.writestr(entry, content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def good(tmp_path):
    return pack(tmp_path / "good.zip", {**CLIPS, "fan/attributes_00.csv": b"file_name\n"})


def test_everything_is_unpacked(good, tmp_path):
    members = unpack(good, tmp_path / "out")
    assert tree(tmp_path / "out") == {**CLIPS, "fan/attributes_00.csv": b"file_name\n"}
    assert [m.place for m in members] == [*CLIPS, "fan/attributes_00.csv"]
    assert members == survey(good)
    assert {p.name for p in tmp_path.iterdir()} == {"good.zip", "out"}
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out" / "fan/attributes_00.csv").stat().st_mode) == 0o666 & ~mask


def test_places_are_chosen_and_litter_is_left_out(tmp_path):
    path = pack(tmp_path / "a.zip", {"d/a.wav": b"1", "d/b.txt": b"2", "__MACOSX/d/a.wav": b"3", "d/.DS_Store": b"4"})
    unpack(path, tmp_path / "out", lambda name: "z/" + name if name.endswith("wav") else None)
    assert tree(tmp_path / "out") == {"z/d/a.wav": b"1"}


def flagged(path: Path, offset: int, value: bytes) -> Path:
    """The archive with bytes of its first central entry changed."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + offset
    content[at : at + len(value)] = value
    path.write_bytes(content)
    return path


def overlapping(path: Path) -> Path:
    """Two names for the same bytes: how the smallest zip bombs are made."""
    pack(path, {"a": bytes(2000), "b": bytes(2000)})
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    content[second + 42 : second + 46] = struct.pack("<I", 0)
    path.write_bytes(content)
    return path


EVIL = {
    "up": (lambda p: pack(p, {"fan/../../x.wav": b"1"}), "leads out"),
    "absolute": (lambda p: pack(p, {"/etc/x": b"1"}), "leads out"),
    "drive": (lambda p: pack(p, {"C:/x": b"1"}), "leads out"),
    "backslash": (lambda p: pack(p, {"fan\\x.wav": b"1"}), "no name for a file"),
    "control": (lambda p: pack(p, {"fan/\nx.wav": b"1"}), "no name for a file"),
    "long": (lambda p: pack(p, {"x" * 300: b"1"}), "longer than 255"),
    "link": (lambda p: pack(p, {"fan/x": b"/etc/passwd"}, external_attr=(stat.S_IFLNK | 0o777) << 16), "a link"),
    "pipe": (lambda p: pack(p, {"fan/x": b""}, external_attr=(stat.S_IFIFO | 0o666) << 16), "special file"),
    "twice": (lambda p: pack(p, [("fan/x", b"1"), ("fan/x", b"2")]), "twice"),
    "twice in two spellings": (lambda p: pack(p, [("fan/x", b"1"), ("fan/./x", b"2")]), "twice"),
    "case": (lambda p: pack(p, {"fan/X.wav": b"1", "fan/x.wav": b"2"}), "case or accents"),
    "case of a folder": (lambda p: pack(p, {"Fan/a.wav": b"1", "fan/b.wav": b"2"}), "case or accents"),
    "accents": (lambda p: pack(p, {"fan/\u00e9": b"1", "fan/e\u0301": b"2"}), "case or accents"),
    "file and folder": (lambda p: pack(p, {"fan": b"1", "fan/x": b"2"}), "a folder for"),
    "encrypted": (lambda p: flagged(pack(p, {"fan/x": b"1"}), 8, b"\x01"), "encrypted"),
    "bomb": (lambda p: pack(p, {"fan/x": bytes(20_000_000)}), "zip bomb"),
    "bomb of many": (lambda p: pack(p, {f"fan/{n}": bytes(900_000) for n in range(20)}), "zip bomb"),
    "overlap": (overlapping, "shares its bytes"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_harm_is_refused_and_leaves_nothing(kind, tmp_path):
    make, words = EVIL[kind]
    path = make(tmp_path / "evil.zip")
    for act in (lambda: survey(path), lambda: unpack(path, tmp_path / "deep" / "out")):
        with pytest.raises(ArchiveError, match=words) as error:
            act()
        assert str(path) in str(error.value)
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(members=3), "entries"),
        (Limits(member=1000), "would unpack to"),
        (Limits(total=100_000), "more than 100000 bytes|more than 0.1 MB"),
    ],
)
def test_limits_hold(good, tmp_path, limits, words):
    with pytest.raises(ArchiveError, match=words):
        unpack(good, tmp_path / "out", limits=limits)
    assert list(tmp_path.iterdir()) == [good]


def test_a_size_that_lies_is_noticed_while_writing(tmp_path):
    path = flagged(pack(tmp_path / "a.zip", {"fan/x": b"0123456789"}), 24, struct.pack("<I", 4))
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_archive_is_refused(good, tmp_path, share):
    content = good.read_bytes()
    good.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArchiveError, match="cut short"):
        unpack(good, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [good]


def test_a_flipped_bit_is_noticed(good, tmp_path):
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 1
    good.write_bytes(content)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(good, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [good]


def test_nothing_is_unpacked_over_a_folder(good, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="there already"):
        unpack(good, tmp_path / "out")


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_killed_call_is_gone_on_with(good, tmp_path, monkeypatch, stop):
    write, written = archives._write_member, []

    def counting(archive, zipped, member, path):
        if len(written) == stop:
            raise KeyboardInterrupt
        written.append(member.place)
        write(archive, zipped, member, path)

    monkeypatch.setattr(archives, "_write_member", counting)
    if stop < 7:
        with pytest.raises(KeyboardInterrupt):
            unpack(good, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        work = tmp_path / ".out.part"
        (work / written[0]).write_bytes(bytes(30_000))  # the right size, the wrong content
        (work / "stray").write_bytes(b"1")
    before, stop = set(written[1:]), 99
    written.clear()
    unpack(good, tmp_path / "out")
    assert tree(tmp_path / "out") == {**CLIPS, "fan/attributes_00.csv": b"file_name\n"}
    assert not before & set(written)  # what was whole was not written again
    assert {p.name for p in tmp_path.iterdir()} == {"good.zip", "out"}


def test_a_full_disk_is_told_and_nothing_stays(good, tmp_path, monkeypatch):
    def full(archive, zipped, member, path):
        path.write_bytes(b"part of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(archives, "_write_member", full)
    with pytest.raises(ArchiveError, match="is full"):
        unpack(good, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [good]


def test_a_write_that_the_system_refuses(good, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ArchiveError, match="cannot be unpacked"):
            unpack(good, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [good]


def test_room_is_looked_for_before_the_first_byte(good, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100_000))
    monkeypatch.setattr(archives, "_write_member", lambda *_: pytest.fail("it began to write"))
    with pytest.raises(ArchiveError, match="make room"):
        unpack(good, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [good]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ArchiveError, match="is not there"):
        survey(tmp_path / "no.zip")


def test_an_archive_in_memory_order_is_no_matter(tmp_path):
    """Honest archives may list their members in any order."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as zipped:
        for name in "abc":
            zipped.writestr(name, name * 50)
        zipped.filelist.reverse()
    path = tmp_path / "a.zip"
    path.write_bytes(memory.getvalue())
    unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {name: (name * 50).encode() for name in "abc"}
