"""Files from the net: resumed where they broke off, verified, from one mirror after another, and never half there."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from offkey.files import write_whole
from offkey.progress import Progress, Quiet
from offkey.types import OffkeyError

__all__ = ["DownloadError", "Patience", "download", "megabytes", "mismatch", "one_at_a_time"]

_BLOCK = 1 << 18
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that may be better in a while


class DownloadError(OffkeyError):
    """A file could not be fetched; the message names it, each address with what went wrong, and the way by hand."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long servers are waited for.

    `tries` at one address without a new byte before the next address is asked; `timeout` seconds without a byte end a
    try; waits begin at `first_wait` seconds and double up to `longest_wait`. `sleep` and `clock` (seconds) are there
    for tests.
    """

    tries: int = 5
    timeout: float = 30.0
    first_wait: float = 1.0
    longest_wait: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


PATIENT = Patience()


def download(
    urls: Sequence[str],
    destination: Path,
    *,
    size: int | None = None,
    digest: str | None = None,
    progress: Progress | None = None,
    patience: Patience = PATIENT,
) -> Path:
    """Fetch the file that all of `urls` (http, https) hold to `destination`, and return that path.

    `size` in bytes; `digest` is an algorithm and its hex digits ("sha256:…", "md5:…"). What came is kept beside the
    destination as `NAME.part` and gone on with by the next call, in this process or a later one. Nothing is fetched
    where the destination holds the right file already. Two calls at once: the second waits for the first.

    Raises DownloadError where no address gave the right file, or where it has no room on the disk.

    >>> download([], Path("nowhere.bin"), digest="sha256:123")
    Traceback (most recent call last):
    ...
    ValueError: no digest: 'sha256:123'
    """
    if digest is not None:
        _split_digest(digest)
    told = progress or Quiet()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(destination, told, patience.sleep):
            if destination.is_file() and mismatch(destination, size, digest) is None:
                destination.with_name(f"{destination.name}.part.json").unlink(missing_ok=True)  # of a kill at the end
                return destination
            return _Download(destination, size, digest, told, patience).run(urls)
    except OSError as error:
        where = error.filename or destination
        raise DownloadError(f"{destination.name} cannot be written: {where}: {error.strerror or error}") from error


def mismatch(path: Path, size: int | None = None, digest: str | None = None) -> str | None:
    """What is wrong with a file that should have `size` bytes and `digest`; None if nothing is."""
    there = path.stat().st_size
    if size is not None and there != size:
        return f"it has {there} bytes, not {size}"
    if digest is not None:
        algorithm, expected = _split_digest(digest)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        if found != expected:
            return f"its {algorithm} is {found}, not {expected}"
    return None


def megabytes(count: int) -> str:
    """Bytes as people read them.

    >>> megabytes(361_499_833), megabytes(4_066_513), megabytes(120)
    ('361.5 MB', '4.1 MB', '120 bytes')
    """
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} bytes"


@contextlib.contextmanager
def one_at_a_time(
    path: Path, progress: Progress | None = None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Keep other processes and threads that ask for the same `path` waiting; a process that dies gives way.

    Raises OSError where the folder cannot be written. File systems without locks let everybody through.
    """
    lock = path.with_name(path.name + ".lock")
    said = False
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        # whoever had the lock may have removed this very file before we got hold of it
        if _locked(handle) and _same(handle, lock):
            break
        os.close(handle)
        if not said and progress is not None:
            progress.say(f"another process is at work on {path.name}; waiting for it")
        said = True
        sleep(0.2)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file; an empty one stays
            lock.unlink()
        os.close(handle)


def _locked(handle: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _split_digest(digest: str) -> tuple[str, str]:
    algorithm, _, digits = digest.partition(":")
    length = {"sha256": 64, "md5": 32}.get(algorithm)
    if length is None or not re.fullmatch(rf"[0-9a-f]{{{length}}}", digits):
        raise ValueError(f"no digest: {digest!r}")
    return algorithm, digits


class _Passing(Exception):
    """One try failed; another one at the same address may not. `wait` seconds are what the server asked for."""

    def __init__(self, problem: str, wait: float | None = None, tries: int | None = None) -> None:
        super().__init__(problem)
        self.wait = wait
        self.tries = tries


class _Refused(Exception):
    """Nothing can be had from this address."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in {"http", "https"} or (before == "https" and after != "https"):
            raise _Refused(f"it points on to {_shown(newurl)}, which is less safe; not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    # built by hand: the usual one also opens file:, ftp: and data:, to which a server could point on
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "offkey")]
    return opener


@dataclass(frozen=True, slots=True)
class _Notes:
    """What is known of the bytes in a `.part` file; kept beside it."""

    url: str
    validator: str | None  # what the server calls this version of the file
    digest: str | None
    size: int | None


class _Download:
    """One file on its way to `destination`."""

    def __init__(
        self, destination: Path, size: int | None, digest: str | None, progress: Progress, patience: Patience
    ) -> None:
        self.destination = destination
        self.part = destination.with_name(destination.name + ".part")
        self.notes_file = destination.with_name(destination.name + ".part.json")
        self.size = size
        self.digest = digest
        self.progress = progress
        self.patience = patience
        self.opener = _opener()
        self.started = False
        self.mixed = self.have > 0  # bytes of several answers stand in the part: wrong ones may come from the seam

    @property
    def have(self) -> int:
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    def run(self, urls: Sequence[str]) -> Path:
        problems: list[tuple[str, str]] = []
        for url in urls:
            try:
                self._ask(url)
            except _Refused as refusal:
                problems.append((url, str(refusal)))
                self.mixed = self.have > 0
                if len(problems) < len(urls):
                    self.progress.say(f"{_shown(url)}: {refusal}; asking the next address")
            else:
                return self.destination
        raise DownloadError(self._report(problems))

    def _report(self, problems: Sequence[tuple[str, str]]) -> str:
        lines = [f"{self.destination.name} could not be fetched"]
        lines += [f"    {_shown(url)}: {problem}" for url, problem in problems] or ["    no address of it is known"]
        if self.have:
            lines.append(f"{megabytes(self.have)} of it are kept; the same command goes on from there")
        facts = [f"{self.size} bytes"] if self.size is not None else []
        facts += [self.digest.replace(":", " ")] if self.digest else []
        lines.append(
            f"by hand: get it from {'one of these addresses' if len(problems) > 1 else 'there'} and put it at "
            f"{self.destination}{' (' + ', '.join(facts) + ')' if facts else ''}"
        )
        return "\n".join(lines)

    def _ask(self, url: str) -> None:
        """Try at one address until the file is there; raises _Refused where that leads nowhere."""
        if urlsplit(url).scheme not in {"http", "https"}:
            raise _Refused("not an http or https address")
        failures, furthest = 0, self.have
        while True:
            try:
                self._fetch(url)
                self._finish()
            except _Passing as problem:
                # only bytes that were never reached before count: a server that starts over each time must not do so
                # for ever
                if self.have > furthest:
                    failures, furthest = 0, self.have
                failures += 1
                if failures >= (problem.tries or self.patience.tries):
                    raise _Refused(f"{problem}{f' ({failures} times)' if failures > 1 else ''}") from None
                wait = problem.wait
                if wait is None:
                    ceiling = min(self.patience.longest_wait, self.patience.first_wait * 2 ** (failures - 1))
                    wait = ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients, guards nothing
                elif wait > self.patience.longest_wait:
                    raise _Refused(f"{problem}; it asks to come back in {wait:.0f} s") from None
                self.progress.say(f"{_shown(url)}: {problem}; trying again in {wait:.0f} s")
                self.patience.sleep(wait)
            else:
                return

    def _fetch(self, url: str) -> None:
        """Bring the part to its full length."""
        notes = self._read_notes()
        same = notes is not None and notes.url == url
        known = notes.validator if notes is not None and same else None
        # without a digest only the server can tell that both halves are of one file
        if self.have and (notes is None or notes.digest != self.digest or (self.digest is None and known is None)):
            self._drop()
        if self.size is not None:
            if self.have > self.size:
                self._drop()
            if self.have == self.size and self.part.exists():
                return
            self._room_for(self.size - self.have)
        have = self.have
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if known is not None:
                headers["If-Range"] = known
        with self._open(url, headers) as answer:
            total = self._begin(answer, url, have, known)
            self._receive(answer, total)

    def _open(self, url: str, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was looked at
        try:
            return self.opener.open(request, timeout=self.patience.timeout)
        except urllib.error.HTTPError as error:
            with error:
                self._judge(error)
        except urllib.error.URLError as error:
            raise _network(error.reason if isinstance(error.reason, Exception) else error) from None
        except (OSError, http.client.HTTPException) as error:
            raise _network(error) from None
        except ValueError as error:  # an address that is none
            raise _Refused(str(error)) from None

    def _judge(self, error: urllib.error.HTTPError) -> None:
        said = f"{error.code} {error.reason}".strip()
        if error.code == 416:
            self._drop()
            raise _Passing("it has no such part of the file; starting over")
        if error.code in _PASSING:
            raise _Passing(said, _retry_after(error.headers.get("Retry-After")))
        raise _Refused(said)

    def _begin(self, answer: Any, url: str, have: int, known: str | None) -> int | None:
        """Look at the head of an answer; returns the length of the whole file, None if that is not known."""
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise _Refused(f"it sends the file packed ({encoding}), which was not asked for")
        length = answer.headers.get("Content-Length", "")
        told = int(length) if length.isdigit() else None
        validator = _validator(answer.headers)
        if answer.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
            if not have or found is None or int(found[1]) != have:
                self._drop()
                raise _Passing("it sent another part of the file than asked for; starting over")
            if known is not None and validator is not None and validator != known:
                self._drop()
                raise _Passing("the file has changed there; starting over")
            whole = int(found[2]) if found[2] != "*" else None if told is None else have + told
            self.mixed = self.mixed or known is None or validator != known
        elif answer.status == 200:
            if have:
                self._drop()  # the file has changed, or the server knows no ranges: this is all of it
            whole = told
            self.mixed = False
        else:
            raise _Refused(f"{answer.status} {answer.reason}")
        if self.size is not None and whole is not None and whole != self.size:
            raise _Refused(f"its file has {whole} bytes, not {self.size}")
        whole = whole if whole is not None else self.size
        if whole is not None and self.size is None:
            self._room_for(whole - self.have)
        write_whole(
            self.notes_file,
            json.dumps({"url": url, "validator": validator, "digest": self.digest, "size": whole}) + "\n",
        )
        return whole

    def _receive(self, answer: Any, total: int | None) -> None:
        begun, first = self.patience.clock(), self.have
        told = have = first
        if not self.started:
            self.started = True
            self.progress.start(f"{self.destination.name}, MB", -(-(total or 0) // 1_000_000), have // 1_000_000)
        with self.part.open("ab") as file:
            while True:
                try:
                    block = answer.read1(_BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    raise _network(error, have) from None
                if not block:
                    break
                if total is not None and have + len(block) > total:
                    self._drop()
                    raise _Refused(f"it sends more than {total} bytes")
                file.write(block)
                file.flush()  # a kill loses nothing that came
                have += len(block)
                if have - told >= 1_000_000 or have == total:
                    told = have
                    rate = (have - first) / 1e6 / max(self.patience.clock() - begun, 1e-3)
                    self.progress.step(
                        -(-have // 1_000_000) if have == total else have // 1_000_000, f"{rate:.1f} MB/s"
                    )
            os.fsync(file.fileno())
        if total is not None and have < total:
            raise _Passing(f"the connection broke after {megabytes(have)} of {megabytes(total)}")

    def _finish(self) -> None:
        problem = mismatch(self.part, self.size, self.digest)
        if problem is not None:
            self._drop()
            if self.mixed:
                self.mixed = False
                raise _Passing("the pieces do not make the right file; starting over", wait=0.0)
            raise _Refused(f"it sent another file: {problem}")
        self.part.replace(self.destination)
        self.notes_file.unlink(missing_ok=True)

    def _room_for(self, needed: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise DownloadError(
                f"{self.destination.name} needs {megabytes(needed)} more on the disk of {self.destination.parent}, "
                f"where {megabytes(free)} are free; make room, or choose another folder"
            )

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self.notes_file.unlink(missing_ok=True)

    def _read_notes(self) -> _Notes | None:
        try:
            return _Notes(**json.loads(self.notes_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _validator(headers: Any) -> str | None:
    """What may stand in If-Range: a strong ETag, else the date of the last change."""
    etag: str | None = headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    changed: str | None = headers.get("Last-Modified")
    return changed


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _network(error: BaseException, have: int = 0) -> _Passing | _Refused:
    after = f" after {megabytes(have)}" if have else ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _Refused(f"its certificate is not trusted: {error.verify_message}")
    if isinstance(error, socket.gaierror):
        return _Passing("its name is not known; is there a network?", tries=2)
    if isinstance(error, ConnectionRefusedError):
        return _Passing("nobody answers there", tries=2)
    if isinstance(error, TimeoutError):
        return _Passing(f"it went silent{after}")
    if isinstance(error, ConnectionError | http.client.HTTPException):
        return _Passing(f"the connection broke{after}")
    return _Passing(f"{getattr(error, 'strerror', None) or error}{after}")


def _shown(url: str) -> str:
    """An address without the password that may stand in it."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)
