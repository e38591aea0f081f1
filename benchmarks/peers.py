"""Peers beside offkey's systems: the same clips, the same metric, the same intervals, one table.

    python benchmarks/peers.py SOURCE --out FOLDER [--weights mn04_as_mAP_432.pt] [--groups truth.csv:flight]

    pyod-NAME          a detector of PyOD with the library's own settings, on log-mel statistics (mean and deviation
                       over time of 128 bands, in dB), fitted to the normal clips of each machine
    pyod-NAME-pooled   one fitted to the normal clips of all machines (where there are several)
    …-scaled           each number brought to mean 0 and deviation 1 over the normal clips first (--scaled)
    efficientat-1nn    frozen EfficientAT, mean over time, cosine distance to the nearest normal clip of the machine
                       (--weights)

and offkey's own loudness, logmel-knn and baseline (the DCASE autoencoder), or those of --systems. Every clip is scored
by itself, as it would be in use: ECOD and COPOD give a clip other scores in other company. Detectors that draw at
random run with every seed, the others with the first.

Each run is a process and a folder, as in `offkey benchmark`: what is finished is never done again, what fails is named
and ends nothing else, and `offkey benchmark SOURCE … --beside FOLDER` shows all of it in its own table. Needs
PyOD: `pip install --group benchmarks`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Build = Callable[[], Any]

PYOD = {
    "knn": "KNN",
    "lof": "LOF",
    "iforest": "IForest",
    "ecod": "ECOD",
    "copod": "COPOD",
    "ocsvm": "OCSVM",
    "pca": "PCA",
    "hbos": "HBOS",
    "gmm": "GMM",
}
"""Detectors of PyOD by module, with the name of the class."""
RANDOM = {"iforest"}
SYSTEMS = "loudness,logmel-knn,baseline"
NEAREST = "efficientat-1nn"
COLUMNS = ("file", "path", "machine", "section", "domain", "condition", "score")


class Peer(NamedTuple):
    """A row of the table. `detector` is a key of PYOD, or empty for the nearest neighbour of an encoder."""

    detector: str
    pooled: bool = False
    scaled: bool = False

    @property
    def name(self) -> str:
        if not self.detector:
            return NEAREST
        return f"pyod-{self.detector}" + "-pooled" * self.pooled + "-scaled" * self.scaled

    @classmethod
    def read(cls, name: str) -> Peer:
        """The reverse of `name`; SystemExit for a name that is none."""
        if name == NEAREST:
            return cls("")
        found = re.fullmatch(r"pyod-(\w+?)(-pooled)?(-scaled)?", name)
        if found is None or found[1] not in PYOD:
            known = ", ".join(f"pyod-{key}" for key in PYOD)
            raise SystemExit(f"there is no peer {name!r}; known: {NEAREST}, {known}, with -pooled and -scaled behind")
        return cls(found[1], bool(found[2]), bool(found[3]))

    @property
    def random(self) -> bool:
        return self.detector in RANDOM


class Cosine:
    """Distance to the nearest normal clip, 0 to 2: written down as it is defined, apart from offkey's scorers."""

    def fit(self, reference: Array) -> None:
        self.reference = reference / np.linalg.norm(reference, axis=1, keepdims=True)

    def decision_function(self, query: Array) -> Array:
        unit = query / np.linalg.norm(query, axis=1, keepdims=True)
        nearest: Array = 1.0 - (unit @ self.reference.T).max(axis=1)
        return nearest


def pyod_detector(key: str, seed: int) -> Any:
    """A detector with the library's defaults; `seed` where it draws at random."""
    try:
        kind = getattr(import_module(f"pyod.models.{key}"), PYOD[key])
    except ImportError as error:
        raise SystemExit(
            f"peers from PyOD need the package pyod ({error}): `pip install --group benchmarks` in offkey's folder, "
            "or choose others with --peers"
        ) from None
    return kind(random_state=seed) if key in RANDOM else kind()


def scores_of(build: Build, reference: Array, query: Array, scaled: bool = False) -> Array:
    """Scores (M,) of `query` (M, D), higher is stranger, each row by itself, after a fit to `reference` (N, D)."""
    if scaled:
        mean, deviation = reference.mean(axis=0), reference.std(axis=0)
        deviation[deviation == 0] = 1.0
        reference, query = (reference - mean) / deviation, (query - mean) / deviation
    detector = build()
    detector.fit(reference)
    return np.array([float(detector.decision_function(row[None])[0]) for row in query])


def scores_by_machine(
    build: Build,
    reference: Array,
    reference_machines: Sequence[str],
    query: Array,
    query_machines: Sequence[str],
    pooled: bool = False,
    scaled: bool = False,
) -> Array:
    """Scores (M,) with one fit for each machine, or with `pooled` one for all."""
    if pooled:
        return scores_of(build, reference, query, scaled)
    known, asked = np.array(reference_machines), np.array(query_machines)
    scores = np.full(len(query), np.nan)
    for machine in dict.fromkeys(query_machines):
        if machine not in reference_machines:
            raise SystemExit(f"there is no normal clip of {machine} to learn from")
        mine = asked == machine
        scores[mine] = scores_of(build, reference[known == machine], query[mine], scaled)
    return scores


def peers_of(names: str, machines: int, scaled: bool, weights: bool) -> list[Peer]:
    """The rows that are asked for by name, or all; pooled ones where there are several machines."""
    if names:
        return [Peer.read(name.strip()) for name in names.split(",")]
    found = [
        Peer(key, pooled, scale)
        for scale in ([False, True] if scaled else [False])
        for pooled in ([False, True] if machines > 1 else [False])
        for key in PYOD
    ]
    return [*([Peer("")] if weights else []), *found]


def vectors(peer: Peer, clips: Sequence[Any], weights: str, workers: int) -> tuple[Array, list[int]]:
    """A row a clip that can be read, (N, D), and the places of these clips in `clips`."""
    import torch

    from offkey.audio.io import AudioConfig
    from offkey.audio.mel import LogMel
    from offkey.data.loader import ClipReader, Failure, load_batches
    from offkey.encoders import load_encoder
    from offkey.models.statistics import LogMelStatistics
    from offkey.types import Batch

    listen: Callable[[Batch], torch.Tensor]
    if peer.detector:
        rate = AudioConfig().rate
        statistics = LogMelStatistics(LogMel(rate), mean=True, std=True).eval()

        def listen(batch: Batch) -> torch.Tensor:
            return statistics(batch).embedding
    else:
        encoder = load_encoder("efficientat", weights=weights)
        rate = encoder.rate

        def listen(batch: Batch) -> torch.Tensor:
            return encoder.embed(batch.waveform, batch.lengths)

    failures: list[Failure] = []
    order = [list(range(at, min(at + 8, len(clips)))) for at in range(0, len(clips), 8)]
    rows: dict[int, Array] = {}
    with torch.inference_mode():
        for batch in load_batches(clips, order, ClipReader(AudioConfig(rate=rate)), None, workers, failures):
            heard = listen(batch).double().numpy()
            rows.update(zip(batch.place.tolist(), heard, strict=True))
    for failure in failures:
        print(f"left out: {failure.path}: {failure.problem}", file=sys.stderr)
    places = sorted(rows)
    return np.stack([rows[place] for place in places]), places


def measure(given: argparse.Namespace, peer: Peer, seed: int, folder: Path) -> None:
    """One run, in this process: learn, score, judge, and write the files of a run folder."""
    import resource

    from offkey.assessment import FOLDER, protocol_of
    from offkey.benchmarking import RECORD
    from offkey.data.source import open_source
    from offkey.evaluation.protocol import ScoredClip, evaluate
    from offkey.files import write_whole
    from offkey.types import Content

    begun = time.perf_counter()
    source = open_source(given.source)
    train = [clip for clip in source.train() if clip.content is Content.MIXTURE]
    test = [clip for clip in source.test() if clip.content is Content.MIXTURE]
    if not train or not test:
        raise SystemExit(f"{given.source} needs normal training clips and labelled test clips")
    weights = str(given.weights or "")
    reference, known = vectors(peer, train, weights, given.workers)
    learnt = time.perf_counter()
    query, places = vectors(peer, test, weights, given.workers)
    clips = [test[place] for place in places]
    build: Build = (lambda: pyod_detector(peer.detector, seed)) if peer.detector else Cosine
    scores = scores_by_machine(
        build, reference, [unit(train[place]) for place in known], query, [unit(clip) for clip in clips],
        peer.pooled, peer.scaled,
    )  # fmt: skip
    done = time.perf_counter()
    scored = [
        ScoredClip(clip.path.name, clip.machine, clip.section, clip.domain, clip.condition, float(score))
        for clip, score in zip(clips, scores, strict=True)
    ]
    groups = groups_of(given.groups, [clip.path.name for clip in clips]) if given.groups else None
    result = evaluate(scored, protocol_of(source, None, scored), bootstrap=given.bootstrap, groups=groups)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for clip, score in zip(clips, scores, strict=True):
        told = (clip.machine, clip.section, clip.domain.value, clip.condition.value, repr(float(score)))
        writer.writerow((clip.path.name, str(clip.path.absolute()), *told))
    write_whole(folder / FOLDER / "scores.csv", text.getvalue())
    write_whole(folder / FOLDER / "result.json", json.dumps(result.to_dict(), indent=1))
    kept = {
        "asked": asked(given, peer),
        "fit_seconds": learnt - begun,
        "score_seconds": done - learnt,  # the fit itself, a matter of a moment, is among it
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    write_whole(folder / RECORD, json.dumps(kept, indent=1))


def unit(clip: Any) -> str:
    """What one detector is fitted for: a machine, or a section of it where the data set has sections."""
    return f"{clip.machine}/{clip.section}"


def groups_of(text: str, files: Sequence[str]) -> list[str]:
    """A group a file, from `CSV:COLUMN`."""
    path, sign, column = text.rpartition(":")
    if not sign:
        raise SystemExit(f"--groups {text!r}: expected CSV:COLUMN, for example truth.csv:flight")
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or column not in rows[0] or "file" not in rows[0]:
        raise SystemExit(f"{path} needs the columns file and {column}")
    table = {Path(row["file"]).name: row[column] for row in rows}
    missing = [file for file in files if file not in table]
    if missing:
        raise SystemExit(f"{path} tells no {column} of {missing[0]} and {len(missing) - 1} more test clips")
    return [table[file] for file in files]


def asked(given: argparse.Namespace, peer: Peer) -> dict[str, Any]:
    weights = None if peer.detector else str(given.weights)
    return {
        "source": str(given.source.absolute()),
        "peer": peer.name,
        "weights": weights,
        "groups": given.groups,
        "bootstrap": given.bootstrap,
    }


def run_all(given: argparse.Namespace, peers: Sequence[Peer], failures: list[str]) -> None:
    """Every peer with its seeds, a process each; what is finished stays."""
    from offkey.benchmarking import RECORD

    plan = [(peer, seed) for peer in peers for seed in (given.seeds if peer.random else given.seeds[:1])]
    for number, (peer, seed) in enumerate(plan, start=1):
        folder = given.out / f"{peer.name}-seed{seed}"
        record = folder / RECORD
        if record.is_file():
            if json.loads(record.read_text(encoding="utf-8"))["asked"] != asked(given, peer):
                failures.append(f"{folder.name} was made from other data or settings; choose another --out")
            continue
        print(f"{number}/{len(plan)} {folder.name}", file=sys.stderr, flush=True)
        problem = process(given, peer, seed, folder)
        if problem:
            failures.append(f"{folder.name}: {problem}")


def process(given: argparse.Namespace, peer: Peer, seed: int, folder: Path) -> str:
    """Run `measure` in a process of its own; what went wrong, or nothing."""
    command = [
        sys.executable, str(Path(__file__).resolve()), str(given.source), "--out", str(given.out),
        "--only", peer.name, "--seeds", str(seed), "--workers", str(given.workers),
        "--bootstrap", str(given.bootstrap),
        *(["--groups", given.groups] if given.groups else []),
        *(["--weights", str(given.weights)] if given.weights else []),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    finished = (folder / "run.json").is_file()
    return "" if finished else f"ended with {done.returncode}: {done.stdout.strip()[-600:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="data set with labelled test clips")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and tables")
    parser.add_argument("--peers", default="", help="names with commas between; default: all")
    parser.add_argument("--scaled", action="store_true", help="PyOD's detectors also on standardised numbers")
    parser.add_argument("--systems", default=SYSTEMS, help="systems of offkey in the same table; empty for none")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="'NAME=SYSTEM KEY=VALUE …'", help="one more system"
    )
    parser.add_argument("--weights", type=Path, help="EfficientAT's weights, for " + NEAREST)
    parser.add_argument("--seeds", default="0", help="whole numbers with commas between")
    parser.add_argument("--groups", help="CSV:COLUMN naming a group a file; whole groups are resampled")
    parser.add_argument("--bootstrap", type=int, default=1000, help="repetitions behind the intervals of the peers")
    parser.add_argument("--workers", type=int, default=1, help="threads that decode")
    parser.add_argument("--only", help="one peer, in this process, without tables")
    given = parser.parse_args(arguments)
    given.seeds = [int(seed) for seed in given.seeds.split(",")]
    if given.only:
        peer = Peer.read(given.only)
        measure(given, peer, given.seeds[0], given.out / f"{peer.name}-seed{given.seeds[0]}")
        return 0
    from offkey.benchmarking import BenchmarkError, BenchmarkRun, Contestant, benchmark, finished_runs, write_tables
    from offkey.cli.output import Bars
    from offkey.data.source import open_source

    if any(Peer.read(name.strip()).detector == "" for name in given.peers.split(",") if name) and not given.weights:
        parser.error(f"{NEAREST} needs --weights")
    machines = len({unit(clip) for clip in open_source(given.source).test()})
    peers = peers_of(given.peers, machines, given.scaled, given.weights is not None)
    failures: list[str] = []
    run_all(given, peers, failures)
    systems = [Contestant.read(text) for text in [*filter(None, given.systems.split(",")), *given.variant]]
    runs: list[BenchmarkRun] = []
    if systems:
        with Bars() as bars:
            runs = benchmark(
                given.source, systems, given.seeds, given.out, groups=given.groups, workers=given.workers,
                progress=bars, failures=failures,
            )  # fmt: skip
    try:
        # the order of the plan: what offkey has, then the peers
        names = [peer.name for peer in peers]
        beside = [run for run in finished_runs(given.out) if run.system in names]
        runs += sorted(beside, key=lambda run: (names.index(run.system), run.seed))
    except BenchmarkError as error:
        failures.append(str(error))
    if runs:
        table = write_tables(runs, given.out)
        print(table.to_markdown())
        print(f"tables: {given.out}/table.md, table.csv, table.html, runs.csv")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
