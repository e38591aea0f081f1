"""Every year of DCASE Task 2 in miniature, from download to judged submission: quiet, killed everywhere, on full disks.

python benchmarks/years.py --folder FOLDER [--years 2020,…] [--json]

A year's miniature is served by a server on this machine that misbehaves (429, 503, broken and reset connections, wrong
bytes, ranges). The way is walked twice in the same place: once without disturbance, and once with every command killed
by SIGKILL, again and again, each time a little later, and started again. Then all files of both are compared byte by
byte; what tells times and memory is left out. A third walk has the disk full at every place of the source that needs
room, and then room again. What is finished stays in FOLDER and is not done again.

Processes are forked from one that has loaded everything, and the kill comes from inside, right before a change of the
disk: so a kill falls on a chosen spot, and hundreds of them take minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import mmap
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

YEARS = {
    2020: "fan,ToyCar", 2021: "fan,ToyTrain", 2022: "valve,ToyCar", 2023: "fan,bearing,Vacuum,ToyTank",
    2024: "gearbox,fan,Scanner,AirCompressor", 2025: "bearing,fan,ToyPet,HomeCamera",
    2026: "fan,ToyCarEmu,Sander,ToyDrone",
}  # fmt: skip
"""Machines of each year's miniature: of both halves, with and without attributes."""

TINY = "tiny=baseline training.epochs=1 training.batch_size=64 model.width=16"
SPARSE = {"train_source": 4, "train_target": 2, "test_per_group": 1, "supplemental": 2, "sections": 2, "seconds": 2.0}
SERVER = Path(__file__).resolve().parents[1] / "tests" / "misbehaving_server.py"
UNSTEADY = re.compile(
    rb'"(created|hours|seconds|fit_seconds|score_seconds|peak_mib|resumed_at)": ("[^"]*"|[-0-9.e]+|null)'
)
"""Times, memory, and where training was gone on with; the rest is the same however often a command was killed."""


LOADED = (
    "torch", "torch._dynamo", "torch.optim", "soundfile", "scipy.io.wavfile", "scipy.ndimage", "scipy.optimize",
    "scipy.stats", "offkey.assessment", "offkey.card", "offkey.cli.app", "offkey.data.fetch", "offkey.data.truth",
    "offkey.fitting", "offkey.keeping", "offkey.report", "offkey.reproducing",
)  # fmt: skip
"""What commands load, once for all."""


# ---- processes that die, or run out of disk, where they are told to


@dataclass
class Ended:
    """How a command ended: exit code (-9 for SIGKILL), what it said, and what it changed on the disk, in order."""

    code: int
    out: str
    err: str
    changes: list[str] = field(default_factory=list)


class Forks:
    """Starts `offkey` commands in processes forked from one that has loaded everything."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "140", "no_proxy": "127.0.0.1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.running = 0

    def run(self, folder: Path, *arguments: object, **disturbance: Any) -> Ended:
        """Run a command in `folder` to its end.

        `kill` N: SIGKILL for it and all its processes before change number N of what lies in the folder; `at`: a
        pattern that these changes match. `full`: the disk is full from the first thing on that needs room at this place
        of the source ("" notes the places). `largest` bytes a file, by the system's own limit; `roomy`: free space is
        not looked at before. `zenodo`: an address in the place of Zenodo's and GitHub's.
        """
        asked = {"folder": str(folder), "arguments": [str(word) for word in arguments], **disturbance}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        self.running = int(self.process.stdout.readline())
        told = json.loads(self.process.stdout.readline())
        self.running = 0
        return Ended(**told)

    def kill(self) -> None:
        """Kill the running command from outside."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running, signal.SIGKILL)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)


def serve_forks() -> None:
    """The process that forks: a request a line on stdin, the number of the process and how it ended on stdout."""
    for name in LOADED:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        folder = Path(asked["folder"])
        said = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err", "changes")]
        for path in said:
            path.write_bytes(b"")
        number = os.fork()
        if number == 0:
            _command(asked, folder, *said)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        _, status = os.waitpid(number, 0)
        out, err, changes = (path.read_text(encoding="utf-8", errors="replace") for path in said)
        for path in said:
            path.unlink()
        ended = Ended(os.waitstatus_to_exitcode(status), out, err, changes.splitlines())
        sys.stdout.write(json.dumps(ended.__dict__) + "\n")
        sys.stdout.flush()


def _command(asked: dict[str, Any], folder: Path, out: Path, err: Path, changes: Path) -> None:
    """In the forked process: be the command, with its disturbance."""
    code = 70
    try:
        os.setpgid(0, 0)
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        trace = os.open(changes, os.O_WRONLY | os.O_APPEND)
        os.chdir(folder)
        if "zenodo" in asked:
            from offkey.data import records, truth

            records.ZENODO = truth.ZENODO = truth.GITHUB = asked["zenodo"]
        counter = mmap.mmap(-1, 8)  # shared with the processes that this one starts
        sys.addaudithook(_watcher(folder, trace, counter, asked))
        if "full" in asked:
            _fill_the_disk(folder, trace, counter, asked["full"])
        if "largest" in asked:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest"], asked["largest"]))
        if asked.get("roomy"):
            shutil.disk_usage = lambda _: shutil._ntuple_diskusage(10**12, 0, 10**12)  # type: ignore[assignment]
        code = _in_this_process(asked["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _in_this_process(arguments: list[str]) -> int:
    from offkey import benchmarking
    from offkey.cli.app import run
    from offkey.data.records import PATIENT

    object.__setattr__(PATIENT, "sleep", lambda _: None)  # nobody waits for a server that was told to misbehave

    def fork(words: list[str]) -> tuple[float, float]:
        """As `offkey.benchmarking` starts a run: a process of its own."""
        number = os.fork()
        if number == 0:
            code = 70
            try:
                code = run(words)
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(number, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, 1):
            raise benchmarking.BenchmarkError(f"`offkey {words[0]}` ended with {code}")
        return 0.25, 100.0

    benchmarking._command = fork
    return run(arguments)


def _change(folder: str, event: str, given: tuple[Any, ...]) -> str | None:
    """What an event changes in the folder, such as `rename plan.json`; None for one that changes nothing there."""
    if event == "open":
        if not isinstance(given[2], int) or not given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return None
        names: tuple[Any, ...] = given[:1]
    elif event in ("os.rename", "os.symlink", "os.link"):
        names = given[1:2]
    elif event in ("os.mkdir", "os.remove", "os.rmdir"):
        names = given[:1]
    else:
        return None
    name = os.fsdecode(names[0]) if isinstance(names[0], str | bytes | os.PathLike) else ""
    whole = os.path.abspath(name)  # noqa: PTH100 - no Path an event
    inside = name and whole.startswith(folder + os.sep) and not whole.endswith(".lock")
    return f"{event.removeprefix('os.')} {whole[len(folder) + 1 :]}" if inside else None


def _watcher(
    folder: Path, trace: int, counter: mmap.mmap, asked: dict[str, Any]
) -> Callable[[str, tuple[Any, ...]], None]:
    """Notes every change, and kills before the one that was chosen."""
    root, kill, pattern = str(folder.resolve()), asked.get("kill"), re.compile(asked.get("at", ""))

    def watch(event: str, given: tuple[Any, ...]) -> None:
        change = _change(root, event, given)
        if change is None:
            return
        os.write(trace, (change + "\n").encode("utf-8", "replace"))
        if kill is not None and pattern.search(change):
            counter[0] += 1  # of 256: what a test needs
            if counter[0] == kill:
                os.killpg(0, signal.SIGKILL)

    return watch


def _fill_the_disk(folder: Path, trace: int, counter: mmap.mmap, place: str) -> None:
    """From the first thing on that needs room in the folder at `place`, there is none; half a block is still written.

    With no place ("") there is always room; the places are noted.
    """
    import builtins
    import io

    import offkey

    root, opened, ours = str(folder.resolve()), io.open, str(Path(offkey.__file__).parent)

    def needs_room(kind: str) -> bool:
        frame, names = sys._getframe(2), []
        while frame is not None:
            if frame.f_code.co_filename.startswith(ours):
                names.append(f"{frame.f_code.co_filename[len(ours) + 1 :]}:{frame.f_lineno}")
            frame = frame.f_back  # type: ignore[assignment]
        inner = [name for name in names if not name.startswith(("files.py", "cli/app.py"))]
        here = f"{kind} {' '.join(inner[:2] + names[:1])}"
        os.write(trace, f"room {here}\n".encode())
        if place and here == place:
            counter[1] = 1
        return counter[1] == 1

    def refuse(path: object) -> OSError:
        return OSError(28, "No space left on device", str(path))

    class Full:
        def __init__(self, file: Any, path: object) -> None:
            self.file, self.path = file, path

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, block: Any) -> int:
            if needs_room("write"):
                self.file.write(block[: len(block) // 2])
                raise refuse(self.path)
            return int(self.file.write(block))

    def open_full(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        handle = opened(file, mode, *rest, **named)
        if not set(mode) & set("wax+"):
            return handle
        name = str(Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else Path(file).absolute())
        return Full(handle, name) if name.startswith(root + os.sep) else handle

    def watch(event: str, given: tuple[Any, ...]) -> None:
        change = _change(root, event, given)
        kind, _, path = (change or "").partition(" ")
        creates = kind in ("mkdir", "symlink", "link") or (kind == "open" and not os.path.lexists(f"{root}/{path}"))
        if creates and needs_room(kind):
            raise refuse(folder / path)

    sys.addaudithook(watch)
    io.open = builtins.open = open_full  # type: ignore[assignment]


# ---- a server that misbehaves


class Site:
    """A folder served on a bad day: of every file the first answers are useless or broken, and the last is good."""

    def __init__(self, site: Path, forks: Forks | None = None) -> None:
        spec = importlib.util.spec_from_file_location("misbehaving_server", SERVER)
        if spec is None or spec.loader is None:
            raise SystemExit(f"{SERVER} is not there: run this from a checkout")
        self.bad = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.bad)
        self.site, self.forks = site, forks
        self.server = self.bad.Server()
        self.mirror = self.server.serve("/x", self.bad.status(404)).removesuffix("/x")

    def behave(self) -> None:
        """Serve all files as a good server does."""
        for where, body in self._files():
            self.server.serve(where, self.bad.whole(body))

    def misbehave(self) -> None:
        """429, 503, a connection that ends and one that is reset, wrong bytes; once the client dies half-way."""
        bad = self.bad
        for number, (where, body) in enumerate(self._files()):
            part = len(body) // 3
            behaviours = [bad.status(429, Retry_After=1), bad.status(503), bad.broken(body, part)]
            if where.endswith(".zip"):
                behaviours.append(bad.broken(body, part // 2, reset=number % 2 == 0))
                behaviours.append(bad.whole(bytes(part) + body[part:]))  # of the right length, and wrong
                behaviours.append(self._deadly(body, part))
                behaviours.append(bad.status(504))
            self.server.serve(where, *behaviours, bad.whole(body, ranges=number % 3 > 0))

    def _deadly(self, body: bytes, count: int) -> Callable[[Any], None]:
        """Some bytes, and then the client is killed."""
        send = self.bad.broken(body, count)

        def behave(handler: Any) -> None:
            send(handler)
            time.sleep(0.03)
            if self.forks is not None:
                self.forks.kill()

        return behave

    def _files(self) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self.site.rglob("*")):
            if path.is_file():
                yield "/" + path.relative_to(self.site).as_posix(), path.read_bytes()

    def close(self) -> None:
        self.server.close()


# ---- the way


@dataclass(frozen=True)
class Step:
    """One command; `spots` are patterns of changes before which it is killed once each, beside the rising kills."""

    name: str
    arguments: tuple[object, ...]
    spots: tuple[str, ...] = ()
    kills: int = 0


SPOTS = (
    *(f"stages/{stage}" for stage in ("data", "weights", "separator")), "runs/.*-seed0/manifest", "runs/.*run",
    *(f"stages/{stage}" for stage in ("runs", "metric", "tables", "audit")),
)  # fmt: skip
"""Files whose appearance ends a stage of `offkey reproduce`: the work is done, and nothing is noted."""


def way(year: int, machines: str, mirror: str, systems: Sequence[str], both: bool = True) -> list[Step]:
    """From download to judged submission; `both` parts of the year are reproduced, or the evaluation set alone."""
    name, catalog = f"dcase{year}", ("--catalog", "../site/catalog.json")
    data = f"data/{name}t2"
    labels = [f"D_U_task2_{number}" for number in range(1, len(systems) + 1)]
    steps = [
        Step("fetch", ("data", "fetch", name, "--root", "data", "--machines", machines, "--mirror", mirror, *catalog),
             (r"rename .*\.lock\.json$", r"open .*\.ready\.part\.file", r"rename .*/\.[^/]*\.ready$",
              r"rename .*\.wav$", r"rename .*fetched\.json$"), 40),
        Step("check", ("data", "check", data)),
    ]  # fmt: skip
    given = [word for system in systems for word in (("--variant", system) if "=" in system else ())]
    plain = ",".join(system for system in systems if "=" not in system)
    known = {machine.lower() for machine in machines.split(",")}
    for experiment in (f"dcase{year}", f"evaluation{year}") if both else (f"evaluation{year}",):
        own = [m for m in _machines(experiment) if m.lower() in known]
        steps.append(
            Step(experiment, ("reproduce", experiment, "--root", "data", "--machines", ",".join(own), "--systems",
                              plain, *given, "--bootstrap", 0, "--workers", 0, "--out", f"runs/{experiment}"),
                 tuple(rf"rename runs/{experiment}/{spot}\.json$" for spot in SPOTS), 25)
        )  # fmt: skip
    run = f"runs/evaluation{year}"
    steps += [
        Step("submit", ("submit", run, "--out", "package", *(word for text in labels for word in ("--label", text))),
             kills=60),
        Step("truth", ("data", "truth", name, "--root", "data", "--mirror", mirror, *catalog), kills=60),
        Step("judged", steps[-1].arguments, (r"rename .*/metrics/", r"rename .*/table\.md$"), 15),
    ]  # fmt: skip
    return steps + [_judged(label, data, year) for label in labels]


def _judged(label: str, data: str, year: int) -> Step:
    given = ("--scores", f"package/task2/{label}", "--truth", f"{data}/truth", "--year", year, "--bootstrap", 0)
    return Step(f"evaluate {label}", ("evaluate", *given, "--json"))


def _machines(experiment: str) -> tuple[str, ...]:
    from offkey.reproducing import EXPERIMENTS

    return EXPERIMENTS[experiment].machines


def quiet(forks: Forks, folder: Path, steps: Sequence[Step], **more: Any) -> dict[str, str]:
    """Walk the way; what each step printed. AssertionError where one does not end well."""
    said = {}
    for step in steps:
        ended = forks.run(folder, *step.arguments, **more)
        assert ended.code == 0, f"{step.name} ended with {ended.code}: {ended.err}"
        said[step.name] = ended.out
    return said


def killed(
    forks: Forks, folder: Path, steps: Sequence[Step], most: int = 1000, **more: Any
) -> tuple[dict[str, str], dict[str, int]]:
    """Walk the way with every step killed and started again; what each printed at last, and how often it was killed."""
    said, times = {}, {}
    for step in steps:
        deaths, ended = 0, None
        for spot in step.spots:
            one = forks.run(folder, *step.arguments, kill=1, at=spot, **more)
            assert one.code in (0, -9), f"{step.name}, killed at {spot}, ended with {one.code}: {one.err}"
            deaths += one.code == -9
        for number in range(1, min(step.kills, most) + 1):
            ended = forks.run(folder, *step.arguments, kill=number, **more)
            assert ended.code in (0, -9), f"{step.name}, {number}, ended with {ended.code}: {ended.err}"
            deaths += ended.code == -9
            if ended.code == 0:
                break
        while ended is None or ended.code != 0:  # the server kills too
            ended = forks.run(folder, *step.arguments, **more)
            assert ended.code in (0, -9), f"{step.name} ended with {ended.code}: {ended.err}"
            deaths += ended.code == -9
        said[step.name], times[step.name] = ended.out, deaths
    return said, times


def filled(forks: Forks, folder: Path, steps: Sequence[Step], kinds: str = "", **more: Any) -> dict[str, int]:
    """Walk the way with the disk full at every place of the source that needs room; how many places each step has.

    `kinds` are the first letters of what needs room (write, open, mkdir, symlink); left out, all.

    After every failure: a message that says so and no traceback, no hidden file of ours left, and nothing that stands
    under its own name may be another file than the one of a quiet walk. At last, with room again, each step goes on.
    """
    aside, found = folder.with_name(f"{folder.name}.aside"), {}
    for step in steps:
        shutil.copytree(folder, aside, symlinks=True)
        ended = forks.run(folder, *step.arguments, full="", **more)
        assert ended.code == 0, f"{step.name} ended with {ended.code}: {ended.err}"
        right = content(folder)
        shutil.rmtree(folder)
        aside.rename(folder)
        places = list(dict.fromkeys(text[5:] for text in ended.changes if text.startswith(f"room {kinds}")))
        before = content(folder)
        for place in places:
            ended = forks.run(folder, *step.arguments, full=place, **more)
            told = f"{step.name}, full at {place}: {ended.code}, {ended.err}"
            if ended.code == 0:  # an earlier start went past this place
                continue
            assert ended.code in (1, 2), told
            assert "Traceback" not in ended.err, told
            assert re.search(r"No space left|is full", ended.err), told
            now = content(folder)
            for name in now.keys() - {name for name in now if KEPT.search(name)}:
                assert now[name] in (right.get(name), before.get(name)), (
                    f"{told}: {name} is neither the old nor the new"
                )
        ended = forks.run(folder, *step.arguments, **more)
        assert ended.code == 0, f"{step.name}, with room again, ended with {ended.code}: {ended.err}"
        wrong = differences(right, content(folder))
        assert not wrong, f"{step.name}, with room again: {wrong}"
        found[step.name] = len(places)
    return found


KEPT = re.compile(r"/\.zips/|\.zip\.ready/|/training/")
"""What may be there unfinished, aside from its place: downloads, archives to be moved, states of training."""


def content(folder: Path) -> dict[str, bytes]:
    """Every file and link below a folder; times and memory are blotted out, and the hashes of files that tell them."""
    found: dict[str, bytes] = {}
    hashes: set[bytes] = set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.fsencode(path.readlink())
        elif path.is_file():
            whole = path.read_bytes()
            found[name] = UNSTEADY.sub(rb'"\1": 0', whole)
            if found[name] != whole:
                hashes.add(hashlib.sha256(whole).hexdigest().encode())
    telling = [name for name in found if name.endswith(".json") and not (folder / name).is_symlink()]
    while hashes:
        blot, hashes = re.compile(rb'("bytes": \d+,\s+"sha256": ")?(' + b"|".join(hashes) + b")"), set()
        for name in telling:
            if blot.search(found[name]):
                found[name] = blot.sub(b"0", found[name])
                hashes.add(hashlib.sha256((folder / name).read_bytes()).hexdigest().encode())
    return found


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of files that are not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def year_in_miniature(
    forks: Forks, folder: Path, year: int, machines: str, systems: Sequence[str], both: bool = True, most: int = 1000,
    **config: Any,
) -> dict[str, Any]:  # fmt: skip
    """A year walked quietly, with kills, and with full disks, in the same place; what was found."""
    from offkey.data.synthetic.years import YearConfig, pack_year, write_year

    begun = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"
    mini = write_year(folder / "mini", year, YearConfig(machines=tuple(machines.split(",")), **{**SPARSE, **config}))
    site = Site(pack_year(mini, folder / "site"), forks)
    elsewhere = {"zenodo": f"{site.mirror}/elsewhere"}
    try:
        steps = way(year, machines, site.mirror, systems, both)
        site.behave()
        work.mkdir()
        told = quiet(forks, work, steps, **elsewhere)
        straight = content(work)
        shutil.rmtree(work)
        work.mkdir()
        site.misbehave()
        again, kills = killed(forks, work, steps, most, **elsewhere)
        differing = differences(straight, content(work))
        shutil.rmtree(work)
        work.mkdir()
        site.behave()
        places = filled(forks, work, way(year, machines, site.mirror, systems, both=False), **elsewhere)
    finally:
        site.close()
    judged = {name: json.loads(text) for name, text in told.items() if name.startswith("evaluate ")}
    differing += [f"printed by {name}" for name in judged if again[name] != told[name]]
    return {
        "year": year, "machines": machines, "clips": mini.clips, "files": len(straight), "kills": kills, "full": places,
        "differences": differing, "seconds": round(time.perf_counter() - begun, 1),
        "official_scores": {name.removeprefix("evaluate "): one["official_score"] for name, one in judged.items()},
    }  # fmt: skip


def main() -> None:
    """Walk all years that are not finished yet, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where all is kept")
    parser.add_argument("--years", default=",".join(map(str, YEARS)), help="with commas between")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--forks", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.forks:
        serve_forks()
        return
    if asked.folder is None:
        parser.error("--folder is needed")
    forks, results = Forks(), []
    try:
        for year in map(int, asked.years.split(",")):
            kept = asked.folder.absolute() / f"{year}.json"
            if not kept.is_file():
                sys.stderr.write(f"{year} …\n")
                found = year_in_miniature(forks, kept.with_suffix(""), year, YEARS[year], ("loudness", TINY))
                kept.write_text(json.dumps(found, indent=1) + "\n")
                shutil.rmtree(kept.with_suffix(""))
            results.append(json.loads(kept.read_text()))
    finally:
        forks.close()
    if asked.json:
        print(json.dumps(results, indent=1))
        return
    print("| year | machines | clips | files | kills, a command | full disks, a command | not the same | seconds |")
    print("|---|---|---:|---:|---|---|---|---:|")
    for one in results:
        kills, full = (
            ", ".join(f"{name} {count}" for name, count in one[what].items() if count) for what in ("kills", "full")
        )
        wrong = ", ".join(one["differences"]) or "none"
        cells = (one["year"], one["machines"], one["clips"], one["files"], kills, full, wrong, round(one["seconds"]))
        print("|", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main()
