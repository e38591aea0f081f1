"""Speed and peak memory of every stage, as ratios to named peers or measured ceilings; each part in its own process.

python benchmarks/speed.py --out speed.json [--only decode,features,…] [--quick] [--threads 1]
    [--kaldi KALDI_PY] [--beats FOLDER_OF_BEATS] [--mn04 WEIGHTS]
python benchmarks/speed.py --markdown speed.json [SECOND.json] [--page docs/benchmarks.md]
python benchmarks/speed.py --compare OLD.json NEW.json [--tolerance 0.25]     (exit 1 on a regression)

KALDI_PY is torchaudio's compliance/kaldi.py, FOLDER_OF_BEATS microsoft/unilm's folder beats; neither is in this
repository, and without them those peers are left out. Ways take turns, so that what else the machine does falls on all
of them; ratios are of processor seconds within a turn (all threads added up), since wall clock on a shared machine
measures its other users. Both are stored.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from speed_result import FORMAT, TOLERANCE, compare, markdown, ratio_of, read, write_between

PARTS = ("start", "decode", "features", "encode", "train", "scorers", "separate", "score")
"""Each is a function of `speed_parts`."""


class Stopwatch:
    """Rows of one part: what was timed, on how much sound, against whom."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.rows: dict[str, dict[str, Any]] = {}
        self.skipped: list[str] = []

    def turns(
        self, name: str, ways: Mapping[str, Callable[[], Any]], audio: float = 0.0, repeats: int = 0, warm: bool = True
    ) -> dict[str, list[float]]:
        """Time "ours" and its peer, if there is one, in turns; processor seconds of each, a turn each.

        `audio` is in seconds. `warm`: one turn before that does not count.
        """
        cpu: dict[str, list[float]] = {way: [] for way in ways}
        wall: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(-int(warm), repeats or self.repeats):
            for way, run in ways.items():
                begun, used = time.perf_counter(), _processor_seconds()
                run()
                used, begun = _processor_seconds() - used, time.perf_counter() - begun
                if turn >= 0:
                    cpu[way].append(max(used, 1e-6))
                    wall[way].append(begun)
        row: dict[str, Any] = {"cpu": min(cpu["ours"]), "wall": min(wall["ours"])}
        if audio:
            row["audio"] = audio
        for peer in ways:
            if peer != "ours":
                row |= {"against": peer, "theirs_cpu": min(cpu[peer]), **ratio_of(cpu["ours"], cpu[peer])}
        self.rows[name] = row
        return cpu

    def skip(self, text: str) -> None:
        self.skipped.append(text)


def _processor_seconds() -> float:
    mine, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + others.ru_utime + others.ru_stime


def peak_mib() -> float:
    """Most memory that this process, or a child of it, has held."""
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    name = platform.processor()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        lines = [line for line in facts.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    found: dict[str, Any] = {
        "processor": name, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system(),
        "load": os.getloadavg()[0],
    }  # fmt: skip
    for package in ("offkey", "torch", "numpy", "scipy", "scikit-learn", "librosa", "soundfile", "soxr"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def run_part(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One part in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        threads = str(given.threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OFFKEY_CACHE": f"{scratch}/cache"
        }  # fmt: skip
        told = json.dumps(vars(given), default=str)
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--part", name, "--told", told, "--out", str(answer)],
            env=environment, cwd=scratch, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode or not answer.is_file():
            said = done.stderr.strip().splitlines()
            return {"failed": said[-1] if said else f"exit {done.returncode}"}
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found


def here(name: str, told: dict[str, Any], out: Path) -> None:
    """Within the process of one part."""
    for key in ("kaldi", "beats", "mn04"):
        told[key] = Path(told[key]) if told.get(key) else None
    watch = Stopwatch(3 if told["quick"] else 9)
    begun = time.perf_counter()
    getattr(import_module("speed_parts"), name)(watch, told)
    found = {"rows": watch.rows, "skipped": watch.skipped, "peak_mib": peak_mib(), "wall": time.perf_counter() - begun}
    out.write_text(json.dumps(found), encoding="utf-8")


def main() -> int:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON to write; parts that it holds already and are not run are kept")
    parser.add_argument("--only", help=f"comma-separated, of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer turns, smaller sizes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kaldi", type=Path)
    parser.add_argument("--beats", type=Path)
    parser.add_argument("--mn04", type=Path)
    parser.add_argument("--markdown", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, help="page between whose markers the table goes")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"))
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--told", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        here(given.part, json.loads(given.told), given.out)
        return 0
    if given.compare:
        old, new = map(read, given.compare)
        worse = compare(old, new, given.tolerance)
        print("\n".join(worse) or f"nothing is worse by more than {given.tolerance:.0%}")
        return 1 if worse else 0
    if given.markdown:
        table = markdown([read(path) for path in given.markdown])
        if given.page:
            write_between(given.page, table)
        else:
            print(table, end="")
        return 0
    names = given.only.split(",") if given.only else list(PARTS)
    wrong = [name for name in names if name not in PARTS]
    if wrong:
        parser.error(f"there is no part {wrong[0]!r}; choose from {', '.join(PARTS)}")
    for key in ("kaldi", "beats", "mn04"):
        path = getattr(given, key)
        setattr(given, key, path.resolve() if path else None)
    result: dict[str, Any] = {"format": FORMAT, "parts": {}}
    if given.out and given.out.is_file():
        result = read(given.out)
    result |= {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"), "machine": machine(),
        "threads": given.threads,
    }  # fmt: skip
    for name in names:
        result["parts"][name] = run_part(name, given) | {"quick": given.quick}
        if given.out:  # after every part: a run takes minutes
            given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(markdown([result | {"parts": {name: result["parts"][name]}}]).split("\n\n", 1)[1], flush=True)
    return 1 if any("failed" in result["parts"][name] for name in names) else 0


if __name__ == "__main__":
    raise SystemExit(main())
