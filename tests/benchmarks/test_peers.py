"""Peers: strange clips score higher, company does not matter, and their runs stand in offkey's own table."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from offkey.benchmarking import BenchmarkError, finished_runs
from offkey.cli.app import run


@pytest.fixture
def peers(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("peers")


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal clips, and ten ordinary and ten strange ones, 6 numbers each, of unlike size."""
    rng = np.random.default_rng(seed)
    sizes = np.array([1.0, 2.0, 0.5, 1.0, 4.0, 1.0])
    strange = (rng.normal(size=(10, 6)) + 5.0) * sizes
    return rng.normal(size=(80, 6)) * sizes, rng.normal(size=(10, 6)) * sizes, strange


PYOD = ["knn", "lof", "iforest", "ecod", "copod", "ocsvm", "pca", "hbos", "gmm"]


@pytest.mark.parametrize("key", PYOD)
def test_higher_is_stranger_and_company_does_not_matter(peers: ModuleType, key: str) -> None:
    pytest.importorskip("pyod")
    assert set(PYOD) == set(peers.PYOD)
    normal, ordinary, strange = drawn()

    def build() -> Any:
        return peers.pyod_detector(key, seed=0)

    both = peers.scores_of(build, normal, np.vstack([ordinary, strange]))
    assert np.median(both[10:]) > np.median(both[:10])
    alone = peers.scores_of(build, normal, strange)
    np.testing.assert_allclose(alone, both[10:], rtol=1e-9)  # ECOD and COPOD give other scores to a whole batch


def test_the_nearest_neighbour_is_the_nearest(peers: ModuleType) -> None:
    normal, ordinary, _ = drawn(1)
    found = peers.scores_of(peers.Cosine, normal, ordinary)
    slow = [
        min(1 - float(q @ r) / (float(q @ q) * float(r @ r)) ** 0.5 for r in normal) for q in ordinary
    ]  # fmt: skip
    np.testing.assert_allclose(found, slow, rtol=1e-9, atol=1e-12)


def test_a_machine_is_judged_by_its_own_clips_unless_all_are_pooled(peers: ModuleType) -> None:
    normal = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    machines = ["fan", "fan", "valve", "valve"]
    query = np.array([[0.0, 1.0], [1.0, 0.0]])
    own = peers.scores_by_machine(peers.Cosine, normal, machines, query, ["fan", "fan"])
    assert own[0] > 0.9
    assert own[1] == pytest.approx(0.0)
    pooled = peers.scores_by_machine(peers.Cosine, normal, machines, query, ["fan", "fan"], pooled=True)
    np.testing.assert_allclose(pooled, 0.0, atol=1e-12)
    with pytest.raises(SystemExit, match="no normal clip of pump"):
        peers.scores_by_machine(peers.Cosine, normal, machines, query, ["pump", "fan"])


def test_scaling_weighs_numbers_alike_and_a_dead_one_does_no_harm(peers: ModuleType) -> None:
    class Largest:
        def fit(self, reference: np.ndarray) -> None:
            self.mean = reference.mean(axis=0)

        def decision_function(self, query: np.ndarray) -> np.ndarray:
            found: np.ndarray = np.abs(query - self.mean).max(axis=1)
            return found

    normal = np.array([[0.0, -100.0, 7.0], [2.0, 100.0, 7.0]])
    query = np.array([[9.0, 50.0, 7.0]])
    assert peers.scores_of(Largest, normal, query) == pytest.approx([50.0])
    assert peers.scores_of(Largest, normal, query, scaled=True) == pytest.approx([8.0])


def test_names_are_read_back(peers: ModuleType) -> None:
    for pooled in (False, True):
        for scaled in (False, True):
            peer = peers.Peer("ecod", pooled, scaled)
            assert peers.Peer.read(peer.name) == peer
    assert peers.Peer.read(peers.NEAREST) == peers.Peer("")
    for wrong in ("pyod-nonsense", "ecod", "pyod-knn-pool"):
        with pytest.raises(SystemExit, match="there is no peer"):
            peers.Peer.read(wrong)
    names = [peer.name for peer in peers.peers_of("", 2, True, True)]
    assert len(names) == len(set(names)) == 1 + 4 * len(peers.PYOD)
    assert all("pooled" not in peer.name for peer in peers.peers_of("", 1, True, False))


def test_without_pyod_the_message_says_what_to_install(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyod.models.knn", None)
    with pytest.raises(SystemExit, match=r"need the package pyod.*--group benchmarks"):
        peers.pyod_detector("knn", 0)


@pytest.fixture
def here(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Peers run in this process, and are noted; LOF always fails."""
    noted: list[str] = []

    def run_here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        given = command[2:]
        noted.append(given[given.index("--only") + 1])
        if noted[-1] == "pyod-lof":
            return subprocess.CompletedProcess(command, 3, "it broke")
        return subprocess.CompletedProcess(command, peers.main(given), "")

    monkeypatch.setattr(peers.subprocess, "run", run_here)
    return noted


def test_runs_are_kept_fail_alone_and_stand_beside_those_of_offkey(
    peers: ModuleType, here: list[str], small_set: Path, tmp_path: Path, commands: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("pyod")
    out = tmp_path / "peers"
    command = [
        str(small_set), "--out", str(out), "--peers", "pyod-lof,pyod-iforest,pyod-knn-pooled-scaled",
        "--systems", "loudness", "--seeds", "0,1", "--bootstrap", "20", "--workers", "0",
    ]  # fmt: skip
    assert peers.main(command) == 1
    said = capsys.readouterr()
    assert "failed: pyod-lof-seed0: ended with 3: it broke" in said.err
    assert here == ["pyod-lof", "pyod-iforest", "pyod-iforest", "pyod-knn-pooled-scaled"]
    table = (out / "table.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| loudness", "| pyod-iforest", "| pyod-knn-pooled-scaled"]
    with (out / "pyod-iforest-seed1" / "evaluation" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert all(np.isfinite(float(row["score"])) for row in rows)

    assert peers.main([*command[:4], "pyod-iforest", *command[5:]]) == 0  # nothing is done again
    assert len(here) == 4
    capsys.readouterr()
    assert peers.main([*command[:4], "pyod-iforest", *command[5:-4], "--bootstrap", "30"]) == 1
    assert "made from other data or settings" in capsys.readouterr().err

    table_out = tmp_path / "table"
    beside = ["benchmark", str(small_set), "--systems", "logmel-knn", "--out", str(table_out), "--workers", "0"]
    assert run([*beside, "--beside", str(out)]) == 0
    written = (table_out / "table.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in written for name in ("logmel-knn", "loudness", "pyod-iforest"))
    assert run([*beside, "--beside", str(out), "--beside", str(out)]) == 1  # the same runs twice
    assert "already; leave one out" in capsys.readouterr().err


def test_runs_of_other_clips_do_not_stand_beside(
    small_set: Path, tmp_path: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one"
    assert run(["benchmark", str(small_set), "--systems", "loudness,logmel-knn", "--out", str(one)]) == 0
    scores = one / "loudness-seed0" / "evaluation" / "scores.csv"
    kept = scores.read_text()
    scores.write_text("".join(kept.splitlines(keepends=True)[:-1]))
    with pytest.raises(BenchmarkError, match="judged other test clips"):
        finished_runs(one)
    scores.write_text(kept)
    result = scores.with_name("result.json")
    told = json.loads(result.read_text())
    told["bootstrap"]["grouped"] = True
    result.write_text(json.dumps(told))
    with pytest.raises(BenchmarkError, match="--groups was given for one alone"):
        finished_runs(one)
    result.write_text("{}")
    with pytest.raises(BenchmarkError, match="damaged"):
        finished_runs(one)
    result.unlink()
    assert [found.system for found in finished_runs(one)] == ["logmel-knn"]
    capsys.readouterr()
    assert run(["benchmark", str(small_set), "--beside", str(tmp_path), "--out", str(tmp_path / "x")]) == 1
    assert "holds no finished runs" in capsys.readouterr().err
