"""Downloads against a real server that misbehaves: the right file in the end, or a clear error."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offkey import downloading
from offkey.downloading import DownloadError, Patience, download, mismatch, one_at_a_time

_location = importlib.util.spec_from_file_location("bad", Path(__file__).with_name("misbehaving_server.py"))
bad = importlib.util.module_from_spec(_location)
_location.loader.exec_module(bad)

BODY = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
SIZE = len(BODY)
DIGEST = "sha256:" + hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = bad.Server()
    yield running
    running.close()


class Told:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.started: list[tuple[str, int, int]] = []
        self.steps: list[tuple[int, str]] = []

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.started.append((what, total, done))

    def step(self, done: int, note: str = "") -> None:
        self.steps.append((done, note))

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def get(tmp_path: Path) -> Callable[..., Any]:
    """Downloads to `tmp_path/file.bin` without waiting; gives the path or the error, the waits, and what was told."""

    def call(*urls: str, size: int | None = SIZE, digest: str | None = DIGEST, timeout: float = 5.0) -> Any:
        waits: list[float] = []
        told = Told()
        patience = Patience(tries=4, timeout=timeout, sleep=waits.append)
        path, error = tmp_path / "file.bin", None
        try:
            assert download(urls, path, size=size, digest=digest, progress=told, patience=patience) == path
        except DownloadError as raised:
            error = str(raised)
        return SimpleNamespace(path=path, error=error, waits=waits, told=told)

    return call


def is_right(result: Any) -> None:
    assert result.error is None
    assert result.path.read_bytes() == BODY
    assert [path.name for path in result.path.parent.iterdir()] == ["file.bin"]  # no part, no notes, no lock


def failed(result: Any, *words: str, kept: int = 0) -> None:
    """Nothing stands in the destination's place; the error says where it goes, and why it is not there."""
    assert result.error is not None
    assert not result.path.exists()
    assert not result.path.with_name("file.bin.lock").exists()
    part = result.path.with_name("file.bin.part")
    assert (part.stat().st_size if part.exists() else 0) == kept
    for word in ("file.bin", str(result.path), DIGEST[7:], *words):
        assert word in result.error


def test_a_file_comes_whole(server: Any, get: Callable[..., Any]) -> None:
    result = get(server.serve("/a", bad.whole(BODY)))
    is_right(result)
    assert result.waits == []
    assert result.told.started == [("file.bin, MB", 1, 0)]
    assert result.told.steps[-1][0] == 1
    assert result.told.steps[-1][1].endswith(" MB/s")


def test_a_file_that_is_there_is_not_fetched_again(server: Any, get: Callable[..., Any]) -> None:
    url = server.serve("/a", bad.whole(BODY))
    is_right(get(url))
    is_right(get(url))
    assert len(server.asked) == 1


def test_a_damaged_file_that_is_there_is_replaced(server: Any, get: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(BODY[:-1] + b"x")
    is_right(get(server.serve("/a", bad.whole(BODY))))


def test_a_damaged_file_stays_where_nothing_better_can_be_had(
    server: Any, get: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "file.bin").write_bytes(b"precious")
    result = get(server.serve("/a", bad.status(404)))
    assert "404" in result.error
    assert result.path.read_bytes() == b"precious"


@pytest.mark.parametrize("reset", [False, True])
def test_broken_connections_are_gone_on_with(server: Any, get: Callable[..., Any], reset: bool) -> None:
    first, second = bad.broken(BODY, 100_000, reset=reset), bad.broken(BODY, 50_000, reset=reset)
    result = get(server.serve("/a", first, second, bad.whole(BODY)))
    is_right(result)
    assert server.ranges("/a") == [None, "bytes=100000-", "bytes=150000-"]
    assert [headers.get("If-Range") for _, headers in server.asked] == [None, '"one"', '"one"']
    assert len(result.waits) == 2
    assert "broke after 100000" in result.told.lines[0] or "broke after 0.1 MB" in result.told.lines[0]


def test_many_breaks_are_no_reason_to_give_up_while_bytes_come(server: Any, get: Callable[..., Any]) -> None:
    is_right(get(server.serve("/a", *[bad.broken(BODY, 30_000)] * 9, bad.whole(BODY))))


def test_a_server_that_never_gets_further_is_given_up(server: Any, get: Callable[..., Any]) -> None:
    # each try starts over and reaches the same point: bytes come, but never new ones
    result = get(server.serve("/a", bad.broken(BODY, 100_000, ranges=False)))
    failed(result, "the connection broke after 0.1 MB of 0.3 MB (4 times)", "0.1 MB of it are kept", kept=100_000)
    assert len(server.asked) <= 6


def test_a_server_that_ignores_ranges_starts_over(server: Any, get: Callable[..., Any]) -> None:
    result = get(server.serve("/a", bad.broken(BODY, 100_000, ranges=False), bad.whole(BODY, ranges=False)))
    is_right(result)
    assert server.ranges("/a") == [None, "bytes=100000-"]


def test_a_silent_server_is_left_and_gone_on_with(server: Any, get: Callable[..., Any]) -> None:
    result = get(server.serve("/a", bad.silent(BODY, 70_000), bad.whole(BODY)), timeout=0.2)
    is_right(result)
    assert server.ranges("/a") == [None, "bytes=70000-"]
    assert "went silent" in result.told.lines[0]


def test_a_server_that_is_silent_for_ever_is_an_error(server: Any, get: Callable[..., Any]) -> None:
    failed(get(server.serve("/a", bad.silent(BODY, 0)), timeout=0.05), "it went silent (4 times)")


def test_wrong_bytes_are_thrown_away_and_the_next_mirror_asked(server: Any, get: Callable[..., Any]) -> None:
    wrong, right = server.serve("/a", bad.whole(OTHER)), server.serve("/b", bad.whole(BODY))
    result = get(wrong, right)
    is_right(result)
    assert server.ranges("/a") == [None]
    assert server.ranges("/b") == [None]
    assert "another file" in result.told.lines[0]


def test_wrong_bytes_everywhere_are_an_error_that_names_each_address(server: Any, get: Callable[..., Any]) -> None:
    urls = server.serve("/a", bad.whole(OTHER)), server.serve("/b", bad.status(403))
    failed(get(*urls), *urls, "it sent another file: its sha256 is " + hashlib.sha256(OTHER).hexdigest(), "403")


def test_a_mirror_goes_on_where_another_one_broke(server: Any, get: Callable[..., Any]) -> None:
    one = server.serve("/a", bad.broken(BODY, 100_000), bad.status(404))
    is_right(get(one, server.serve("/b", bad.whole(BODY, etag='"elsewhere"'))))
    assert server.ranges("/b") == ["bytes=100000-"]
    assert "If-Range" not in server.asked[-1][1]  # its names for versions are its own


def test_halves_of_two_files_are_noticed_and_fetched_anew(server: Any, get: Callable[..., Any]) -> None:
    one = server.serve("/a", bad.broken(OTHER, 100_000), bad.status(404))
    result = get(one, server.serve("/b", bad.whole(BODY)))
    is_right(result)
    assert server.ranges("/b") == ["bytes=100000-", None]


def test_halves_from_a_server_that_names_no_versions_are_noticed(server: Any, get: Callable[..., Any]) -> None:
    is_right(get(server.serve("/a", bad.broken(OTHER, 100_000, etag=None), bad.whole(BODY, etag=None))))
    assert server.ranges("/a") == [None, "bytes=100000-", None]


def test_a_range_of_a_file_of_unknown_length_is_good(server: Any, get: Callable[..., Any]) -> None:
    tries = bad.broken(BODY, 100_000), bad.deaf_to_if_range(BODY, '"one"', total="*")
    is_right(get(server.serve("/a", *tries), size=None))


def test_a_file_that_changes_between_two_tries_is_not_glued(server: Any, get: Callable[..., Any]) -> None:
    result = get(server.serve("/a", bad.broken(OTHER, 100_000, etag='"old"'), bad.whole(BODY, etag='"new"')))
    is_right(result)
    assert server.asked[1][1]["If-Range"] == '"old"'


@pytest.mark.parametrize("digest", [DIGEST, None])
def test_a_changed_file_from_a_server_deaf_to_if_range(
    server: Any, get: Callable[..., Any], digest: str | None
) -> None:
    tries = bad.broken(OTHER, 100_000, etag='"old"'), bad.deaf_to_if_range(BODY, '"new"'), bad.whole(BODY)
    result = get(server.serve("/a", *tries), digest=digest)
    is_right(result)
    assert "has changed" in result.told.lines[1]


def test_without_hash_and_version_nothing_is_glued(server: Any, get: Callable[..., Any]) -> None:
    tries = bad.broken(OTHER, 100_000, etag=None), bad.whole(BODY, etag=None)
    is_right(get(server.serve("/a", *tries), digest=None))
    assert server.ranges("/a") == [None, None]


def test_another_range_than_asked_for_starts_over(server: Any, get: Callable[..., Any]) -> None:
    tries = bad.broken(BODY, 100_000), bad.other_range(BODY), bad.whole(BODY)
    is_right(get(server.serve("/a", *tries)))
    assert server.ranges("/a") == [None, "bytes=100000-", None]


def test_416_starts_over(server: Any, get: Callable[..., Any]) -> None:
    is_right(get(server.serve("/a", bad.broken(BODY, 100_000), bad.status(416), bad.whole(BODY))))
    assert server.ranges("/a") == [None, "bytes=100000-", None]


@pytest.mark.parametrize("code", [429, 503, 504])
def test_a_busy_server_is_waited_for_as_long_as_it_asks(server: Any, get: Callable[..., Any], code: int) -> None:
    result = get(server.serve("/a", bad.status(code, Retry_After=7), bad.whole(BODY)))
    is_right(result)
    assert result.waits == [7.0]
    assert str(code) in result.told.lines[0]


def test_retry_after_may_be_a_date(server: Any, get: Callable[..., Any]) -> None:
    result = get(server.serve("/a", bad.status(503, Retry_After=bad.in_seconds(30)), bad.whole(BODY)))
    is_right(result)
    assert 25 < result.waits[0] < 31


def test_waits_grow_and_differ(server: Any, get: Callable[..., Any]) -> None:
    result = get(server.serve("/a", bad.status(503)))
    failed(result, "503 Service Unavailable (4 times)")
    assert [0.5 <= wait / 2**number <= 1 for number, wait in enumerate(result.waits)] == [True] * 3
    again = get(server.serve("/a", bad.status(503)))
    assert again.waits != result.waits


def test_nobody_waits_an_hour(server: Any, get: Callable[..., Any]) -> None:
    result = get(server.serve("/a", bad.status(429, Retry_After=3600)))
    failed(result, "429", "come back in 3600 s")
    assert result.waits == []
    is_right(get(server.serve("/a", bad.status(429, Retry_After=3600)), server.serve("/b", bad.whole(BODY))))


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_not_asked_again(server: Any, get: Callable[..., Any], code: int) -> None:
    result = get(server.serve("/a", bad.status(code)))
    failed(result, str(code), "by hand")
    assert len(server.asked) == 1
    assert result.waits == []


def test_a_longer_file_is_refused_by_its_head(server: Any, get: Callable[..., Any]) -> None:
    failed(get(server.serve("/a", bad.whole(BODY + b"more"))), "its file has 300004 bytes, not 300000")


def test_a_shorter_file_is_refused_by_its_head(server: Any, get: Callable[..., Any]) -> None:
    failed(get(server.serve("/a", bad.whole(BODY[:-4]))), "its file has 299996 bytes, not 300000")


@pytest.mark.parametrize("behaviour", ["chunked", "unmeasured"])
def test_more_bytes_than_told_are_stopped(server: Any, get: Callable[..., Any], behaviour: str) -> None:
    failed(get(server.serve("/a", getattr(bad, behaviour)(BODY + b"m" * 2_000_000))), "sends more than 300000 bytes")


@pytest.mark.parametrize("behaviour", ["chunked", "unmeasured"])
def test_an_answer_without_length_is_good(server: Any, get: Callable[..., Any], behaviour: str) -> None:
    is_right(get(server.serve("/a", getattr(bad, behaviour)(BODY))))


def test_an_answer_without_length_that_ends_early_is_gone_on_with(server: Any, get: Callable[..., Any]) -> None:
    is_right(get(server.serve("/a", bad.unmeasured(BODY[:100_000]), bad.whole(BODY, etag=None))))
    assert server.ranges("/a") == [None, "bytes=100000-"]


def test_a_length_that_is_not_kept_is_a_broken_connection(server: Any, get: Callable[..., Any]) -> None:
    failed(get(server.serve("/a", bad.lying(BODY[:1000], SIZE))), "broke after 1000 bytes of 0.3 MB", kept=1000)


def test_a_packed_answer_is_refused(server: Any, get: Callable[..., Any]) -> None:
    failed(get(server.serve("/a", bad.packed(BODY))), "gzip")


def test_redirects_are_followed_with_the_range(server: Any, get: Callable[..., Any]) -> None:
    place = server.serve("/place", bad.broken(BODY, 100_000), bad.whole(BODY))
    is_right(get(server.serve("/a", bad.redirect(place))))
    assert server.ranges("/place") == [None, "bytes=100000-"]
    assert len(server.ranges("/a")) == 2  # signed addresses grow old: each try begins at the first one


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_lead_nowhere_but_to_http(server: Any, get: Callable[..., Any], to: str) -> None:
    failed(get(server.serve("/a", bad.redirect(to))), "302")


def test_redirects_do_not_lead_from_https_to_http() -> None:
    import urllib.request

    from offkey.downloading import _Redirects, _Refused

    request = urllib.request.Request("https://example.org/file")
    follow = _Redirects().redirect_request
    with pytest.raises(_Refused, match="less safe"):
        follow(request, None, 302, "Found", {}, "http://example.org/file")
    assert follow(request, None, 302, "Found", {}, "https://example.com/file").full_url == "https://example.com/file"


def test_redirects_in_a_circle_end(server: Any, get: Callable[..., Any]) -> None:
    failed(get(server.serve("/a", bad.redirect("/a"))), "302")


def test_other_kinds_of_address_are_refused(get: Callable[..., Any]) -> None:
    failed(get("file:///etc/hostname"), "not an http or https address")


def test_nobody_at_home(get: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        result = get(f"http://127.0.0.1:{taken.getsockname()[1]}/x")
    failed(result, "nobody answers there (2 times)")


def test_without_a_network_the_words_are_clear(get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    result = get("https://somewhere.example/file.bin")
    failed(result, "https://somewhere.example/file.bin", "is there a network?", "by hand")


def test_a_password_in_an_address_is_not_shown(server: Any, get: Callable[..., Any]) -> None:
    result = get(server.serve("/a").replace("://", "://me:secret@"))
    assert "secret" not in result.error + "".join(result.told.lines)


def test_room_is_looked_for_first(server: Any, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000))
    url = server.serve("/a", bad.whole(BODY))
    result = get(url)
    assert "needs 0.3 MB more" in result.error
    assert "0.2 MB are free" in result.error
    assert server.asked == []
    result = get(url, size=None)  # what the server tells is looked at too
    assert "needs 0.3 MB more" in result.error
    assert not result.path.exists()
    monkeypatch.undo()


def test_what_is_there_already_needs_no_room(
    server: Any, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    get(server.serve("/a", bad.broken(BODY, 200_000), bad.status(404)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    is_right(get(server.serve("/a", bad.whole(BODY))))


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"x\.bin cannot be written"):
        download(["http://127.0.0.1:1/x"], tmp_path / "file" / "x.bin")


def test_the_next_process_goes_on_with_the_part(server: Any, get: Callable[..., Any]) -> None:
    url = server.serve("/a", bad.broken(BODY, 100_000), bad.status(404))
    failed(get(url), "0.1 MB of it are kept", kept=100_000)
    server.serve("/a", bad.whole(BODY))
    result = get(url)
    is_right(result)
    assert server.ranges("/a")[-1] == "bytes=100000-"


@pytest.mark.parametrize("harm", ["other bytes", "no notes", "damaged notes", "too long", "another digest"])
def test_a_part_of_something_else_does_no_harm(server: Any, get: Callable[..., Any], tmp_path: Path, harm: str) -> None:
    url = server.serve("/a", bad.broken(BODY, 100_000), bad.status(404))
    get(url, digest="md5:" + "0" * 32 if harm == "another digest" else DIGEST)
    part, notes = tmp_path / "file.bin.part", tmp_path / "file.bin.part.json"
    assert part.is_file()
    if harm == "other bytes":
        part.write_bytes(OTHER[:100_000])
    elif harm == "too long":
        part.write_bytes(BODY + b"more")
    elif harm == "no notes":
        notes.unlink()
    elif harm == "damaged notes":
        notes.write_text("{")
    server.serve("/a", bad.whole(BODY))
    is_right(get(url))
    assert server.ranges("/a")[-1] is None  # in the end all of it was asked for


def test_a_part_that_is_complete_is_not_asked_for(server: Any, get: Callable[..., Any], tmp_path: Path) -> None:
    url = server.serve("/a", bad.broken(BODY, 100_000), bad.status(404))
    get(url)
    (tmp_path / "file.bin.part").write_bytes(BODY)
    count = len(server.asked)
    is_right(get(url))
    assert len(server.asked) == count


def test_md5_is_known(server: Any, get: Callable[..., Any]) -> None:
    url = server.serve("/a", bad.whole(BODY))
    is_right(get(url, digest="md5:" + hashlib.md5(BODY).hexdigest()))
    result = get(url, digest="md5:" + "0" * 32)
    assert "its md5 is" in result.error


@pytest.mark.parametrize("digest", ["", "sha256", "sha256:", "md5:" + "0" * 64, "sha256:" + "G" * 64, "crc:00"])
def test_a_digest_that_is_none_is_refused(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="no digest"):
        mismatch(Path(__file__), None, digest)


CHILD = (
    "import sys; from pathlib import Path; from offkey.downloading import download\n"
    "download([sys.argv[1]], Path(sys.argv[2]), size=int(sys.argv[3]), digest=sys.argv[4])"
)


def start(url: str, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, url, str(path), str(SIZE), DIGEST], stderr=subprocess.PIPE, env=os.environ
    )


def test_a_killed_process_is_gone_on_with(server: Any, get: Callable[..., Any], tmp_path: Path) -> None:
    url = server.serve("/a", bad.whole(BODY, pause=0.02, piece=2000), bad.whole(BODY))
    part = tmp_path / "file.bin.part"
    child = start(url, tmp_path / "file.bin")
    try:
        until = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size > 10_000):
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stderr.close()
    kept = part.stat().st_size
    assert 10_000 < kept < SIZE
    assert not (tmp_path / "file.bin").exists()
    is_right(get(url))  # the dead process's lock is in nobody's way
    assert server.ranges("/a") == [None, f"bytes={kept}-"]


def test_two_processes_fetch_once(server: Any, tmp_path: Path) -> None:
    url = server.serve("/a", bad.whole(BODY, pause=0.02, piece=10_000))
    children = [start(url, tmp_path / "file.bin") for _ in range(2)]
    for child in children:
        assert child.wait(20) == 0
        child.stderr.close()
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    assert len(server.asked) == 1


def test_only_one_at_a_time_is_inside(tmp_path: Path) -> None:
    inside, most, order = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with one_at_a_time(tmp_path / "x", sleep=lambda _: time.sleep(0.001)):
                with order:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with order:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, real, calls = tmp_path / "x.lock", downloading._locked, []

    def late(handle: int) -> bool:
        if not calls:
            lock.unlink()  # its holder left just before
        calls.append(handle)
        return real(handle)

    monkeypatch.setattr(downloading, "_locked", late)
    with one_at_a_time(tmp_path / "x", sleep=lambda _: None):
        assert lock.exists()
    assert len(calls) == 2


def test_who_waits_is_told(tmp_path: Path) -> None:
    told, inside, leave = Told(), threading.Event(), threading.Event()

    def hold() -> None:
        with one_at_a_time(tmp_path / "x"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    with one_at_a_time(tmp_path / "x", told, lambda _: (leave.set(), thread.join())):
        pass
    assert told.lines == ["another process is at work on x; waiting for it"]
