"""Past bugs of what the commands print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import offkey.benchmarking as room
from offkey.benchmarking import BenchmarkError, BenchmarkRun, Contestant, benchmark
from offkey.cli.output import print_json
from offkey.evaluation.result import Result
from offkey.progress import Quiet


def test_an_infinite_threshold_made_json_that_other_readers_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"threshold": float("inf"), "rows": [(1.5, float("nan"))]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"threshold": None, "rows": [[1.5, None]]}


def test_a_failed_run_of_the_benchmark_was_shown_with_the_score_of_the_run_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Notes(Quiet):
        told: list[str] = []  # noqa: RUF012 - of this test alone

        def step(self, done: int, note: str = "") -> None:
            self.told.append(note)

    result = Result("plain", 0.75, None, {}, {}, {})

    def once(folder: Path, entry: Contestant, seed: int, *_: object) -> BenchmarkRun:
        if entry.name == "bad":
            raise BenchmarkError("no")
        return BenchmarkRun(entry.name, seed, folder, result, 1.0, 1.0, 1.0)

    monkeypatch.setattr(room, "_run", once)
    monkeypatch.setattr(room, "write_tables", lambda *_: None)
    failures: list[str] = []
    benchmark(
        tmp_path, [Contestant.read("good"), Contestant.read("bad")], [0], tmp_path, progress=Notes(), failures=failures
    )
    assert Notes.told == ["good-seed0: 75.0 %", "bad-seed0: failed"]
    assert failures == ["bad-seed0: no"]
