"""The cache returns what was put, stays within its bound and survives damage, rivals and a full disk."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from offkey.audio.cache import ArrayCache, content_key, default_cache_dir
from offkey.audio.io import AudioConfig


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.npy"))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.zeros((0, 5)),
        np.array(3.5),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array([True, False]),
    ],
    ids=str,
)
def test_arrays_come_back_equal_and_read_only(tmp_path, array):
    cache = ArrayCache(tmp_path, 10**6)
    assert cache.get("abcd") is None
    assert cache.put("abcd", array)
    found = cache.get("abcd")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    with pytest.raises(ValueError, match="read-only"):
        found[...] = 0
    assert cache.path("abcd") == tmp_path / "ab" / "abcd.npy"


def test_a_later_put_replaces_and_leaves_no_rubbish(tmp_path):
    cache = ArrayCache(tmp_path, 10**6)
    cache.put("abcd", np.zeros(5))
    cache.put("abcd", np.ones(3))
    np.testing.assert_array_equal(cache.get("abcd"), np.ones(3))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["abcd.npy"]


def test_fetch_makes_once(tmp_path):
    cache, calls = ArrayCache(tmp_path, 10**6), []

    def make() -> np.ndarray:
        calls.append(1)
        return np.arange(4)

    for _ in range(3):
        np.testing.assert_array_equal(cache.fetch("word", make), np.arange(4))
    assert len(calls) == 1


def test_least_recently_used_goes_first(tmp_path):
    cache = ArrayCache(tmp_path, 10 * 1128)
    for number in range(9):
        cache.put(f"key{number}", np.zeros(125))  # 1000 bytes and a head of 128
        os.utime(cache.path(f"key{number}"), (1000 + number, 1000 + number))
    assert cache.get("key0") is not None  # touched: now the youngest
    cache.put("key9", np.zeros(125))
    cache.put("keyA", np.zeros(125))
    assert size_of(tmp_path) <= 10 * 1128
    assert cache.get("key1") is None
    assert cache.get("key0") is not None
    assert cache.get("keyA") is not None


def test_bound_holds_over_many_writes(tmp_path):
    cache = ArrayCache(tmp_path, 20_000)
    for number in range(100):
        cache.put(f"key{number:03d}", np.zeros(60))
        assert size_of(tmp_path) <= 20_000


def test_an_array_larger_than_the_bound_is_not_kept(tmp_path):
    cache = ArrayCache(tmp_path, 1000)
    assert not cache.put("abcd", np.zeros(1000))
    assert cache.get("abcd") is None


@pytest.mark.parametrize("damage", ["cut", "head", "empty", "longer", "text"])
def test_damaged_entries_are_dropped_and_made_again(tmp_path, damage):
    cache = ArrayCache(tmp_path, 10**6)
    cache.put("abcd", np.arange(1000))
    path = cache.path("abcd")
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:-8], "head": whole[:20], "empty": b"", "longer": whole + b"x", "text": b"hello" * 300}[damage]
    )
    assert cache.get("abcd") is None
    assert not path.exists()
    np.testing.assert_array_equal(cache.fetch("abcd", lambda: np.arange(1000)), np.arange(1000))


def test_objects_are_neither_written_nor_read(tmp_path):
    cache = ArrayCache(tmp_path, 10**6)
    with pytest.raises(ValueError, match="objects"):
        cache.put("abcd", np.array([{}, None], dtype=object))
    path = cache.path("abcd")
    path.parent.mkdir()
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    assert cache.get("abcd") is None


@pytest.mark.parametrize("key", ["", "ab", "../../etc", "a/bcd", "a.bcd", "-abcd", "x" * 300])
def test_keys_cannot_leave_the_folder(tmp_path, key):
    with pytest.raises(ValueError, match="key"):
        ArrayCache(tmp_path, 100).path(key)


def test_a_folder_that_cannot_be_written_warns_once_and_goes_on(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = ArrayCache(blocked, 10**6)
    with pytest.warns(RuntimeWarning, match="nothing can be cached"):
        assert not cache.put("abcd", np.zeros(3))
    np.testing.assert_array_equal(cache.fetch("abcd", lambda: np.ones(2)), np.ones(2))


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    (tmp_path / "ab").mkdir()
    old, new = tmp_path / "ab" / ".abcd.1.x.tmp", tmp_path / "ab" / ".abcd.2.y.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 9999,) * 2)
    ArrayCache(tmp_path, 10**6).put("abce", np.zeros(2))
    assert not old.exists()
    assert new.exists()


def _work(folder: str, name: int) -> str:
    """Put and get the same keys as the other process; every array read must be one that was written whole."""
    cache = ArrayCache(Path(folder), 60_000)
    for turn in range(150):
        key = f"key{turn % 20:02d}"
        found = cache.get(key)
        if found is not None and not (found == found.flat[0]).all():
            return f"{key} is torn"
        if not cache.put(key, np.full(500 + turn % 3, name * 1000.0 + turn)):
            return f"{key} was not kept"
    return "well"


def test_two_processes_share_a_folder(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2) as pool:
        answers = pool.starmap(_work, [(str(tmp_path), 1), (str(tmp_path), 2)])
    assert answers == ["well", "well"]
    assert size_of(tmp_path) <= 60_000 * 1.1
    assert not list(tmp_path.rglob("*.tmp"))


def test_content_key_follows_content_and_settings_only(tmp_path):
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (content_key(tmp_path / name, "mel", 3, AudioConfig()) for name in "abc")
    assert a == b != c
    assert (
        len(
            {
                a,
                *(content_key(tmp_path / "a", *parts) for parts in (("mel",), ("mel", 3), ("mel3",), ("mel", "3"))),
            }
        )
        == 5
    )
    assert content_key(tmp_path / "a", "mel", 3, AudioConfig(rate=8000)) != a
    ArrayCache(tmp_path, 100).path(a)


def test_content_key_notices_a_rewritten_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = content_key(path)
    path.write_bytes(b"two")
    os.utime(path, (5000, 5000))
    assert content_key(path) != before


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("OFFKEY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "offkey"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "offkey"


def test_an_entry_is_kept_when_no_file_handle_is_free(tmp_path, monkeypatch):
    cache = ArrayCache(tmp_path, 10**6)
    cache.put("abcd", np.zeros(3))

    def exhausted(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", exhausted)
        assert cache.get("abcd") is None
    assert cache.get("abcd") is not None
