"""What `benchmarks/speed.py` and `curves.py` make of their measurements; nothing is measured here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def speed_result() -> Any:
    return load("speed_result")


def load(name: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module(name)


def result(ratio: float, peak: float = 100.0, against: str = "librosa", **more: Any) -> dict[str, Any]:
    row = {"cpu": 0.002, "wall": 0.1, "audio": 10.0, "against": against, "ratio": ratio, "low": ratio, "high": ratio}
    machine = {"processor": "P", "cores": 2, "torch": "2", "python": "3", "load": 0.5}
    return {
        "format": 1, "date": "2026-01-01", "machine": machine, "threads": 1,
        "parts": {"features": {"rows": {"log-mel": row | more}, "peak_mib": peak, "skipped": []}},
    }  # fmt: skip


def test_a_ratio_is_taken_within_a_turn(speed_result):
    # the machine was four times as slow in the last two turns, which touches no ratio
    assert speed_result.ratio_of([1, 4, 4], [3, 12, 12]) == {"ratio": 3.0, "low": 3.0, "high": 3.0}
    assert speed_result.ratio_of([2.0], [1.0])["ratio"] == 0.5
    with pytest.raises(ValueError, match="argument"):
        speed_result.ratio_of([1.0, 1.0], [1.0])


def test_a_regression_is_what_falls_beyond_the_tolerance(speed_result):
    compare = speed_result.compare
    assert compare(result(4.0), result(3.1)) == []
    assert compare(result(4.0), result(9.0)) == []
    assert compare(result(4.0), result(2.9)) == ["features: log-mel: 4 → 2.9 times librosa"]
    assert compare(result(4.0), result(3.1), tolerance=0.1) != []
    assert compare(result(4.0), result(1.0, against="another peer")) == []
    assert compare(result(4.0, peak=100), result(4.0, peak=130)) == ["features: peak memory 100 → 130 MiB"]
    assert compare(result(4.0, peak=100), result(4.0, peak=120)) == []
    failed = result(4.0) | {"parts": {"features": {"failed": "no torch"}}}
    assert compare(result(4.0), failed) == ["features: failed (no torch)"]
    assert compare(failed, result(4.0)) == []
    assert compare(failed, failed) == []
    assert compare(result(4.0), result(4.0) | {"parts": {}}) == []


def test_the_table_tells_the_spread_of_two_runs(speed_result):
    lines = speed_result.markdown([result(4.0), result(3.0, peak=150.0)]).splitlines()
    assert "| features: log-mel | 2 | 5000 | librosa | 3.00 – 4.00 (3.00 to 4.00) |" in lines
    assert "Peak memory, MiB: features 100 – 150." in lines
    alone = speed_result.markdown([result(4.0)])
    assert "| features: log-mel | 2 | 5000 | librosa | 4.00 (4.00 to 4.00) |" in alone
    assert "Not measured" not in alone
    failed = result(4.0) | {"parts": {"features": {"failed": "no torch"}}}
    assert "failed: no torch" in speed_result.markdown([failed])


def test_a_page_is_changed_between_its_markers_only(speed_result, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# A\n{speed_result.START}\nold\n{speed_result.END}\n## B\n")
    speed_result.write_between(page, "new\n")
    assert page.read_text() == f"# A\n{speed_result.START}\nnew\n{speed_result.END}\n## B\n"
    page.write_text("# A\n")
    with pytest.raises(ValueError, match="speed: begin"):
        speed_result.write_between(page, "new\n")


def test_another_file_is_no_result(speed_result, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="not a result"):
        speed_result.read(path)


def test_the_command_compares_and_names_what_it_does_not_know(tmp_path, monkeypatch, capsys):
    speed = load("speed")
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(result(4.0)))
    new.write_text(json.dumps(result(2.0)))
    monkeypatch.setattr(sys, "argv", ["speed.py", "--compare", str(old), str(new)])
    assert speed.main() == 1
    assert "log-mel" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["speed.py", "--compare", str(old), str(new), "--tolerance", "0.6"])
    assert speed.main() == 0
    monkeypatch.setattr(sys, "argv", ["speed.py", "--only", "nonsense"])
    with pytest.raises(SystemExit):
        speed.main()
    assert "no part 'nonsense'" in capsys.readouterr().err


def test_every_part_has_its_function():
    speed, parts = load("speed"), load("speed_parts")
    assert all(callable(getattr(parts, name)) for name in speed.PARTS)


def test_ways_take_turns_and_the_first_one_does_not_count():
    speed = load("speed")
    called: list[str] = []
    watch = speed.Stopwatch(repeats=2)
    watch.turns("row", {"ours": lambda: called.append("ours"), "peer": lambda: called.append("peer")}, audio=3.0)
    assert called == ["ours", "peer"] * 3
    row = watch.rows["row"]
    assert row["against"] == "peer"
    assert row["audio"] == 3.0
    assert row["low"] <= row["ratio"] <= row["high"]


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found_whatever_the_unit(power):
    curves = load("curves")
    sizes = [10, 40, 160, 640]
    for unit in (1e-6, 1.0, 3e4):
        assert curves.exponent(sizes, [unit * size**power for size in sizes]) == pytest.approx(power)


def test_a_constant_start_does_not_hide_a_quadratic_end():
    curves = load("curves")
    sizes = [1000, 4000, 16000]
    hidden = [1.0 + (size / 4000) ** 2 for size in sizes]
    assert curves.exponent(sizes, hidden) > 1.5
    assert curves.exponent(sizes, [1.0 + size / 4000 for size in sizes]) < 1.0


def test_surprises_are_named():
    curves = load("curves")
    fine = {"sizes": [1, 2, 4], "cpu": [1, 2, 4], "exponent": 1.0, "mib": [300, 301, 302]}
    assert curves.surprises("clips", fine) == []
    assert "time grows with power 1.90" in curves.surprises("clips", fine | {"exponent": 1.9})[0]
    grown = curves.surprises("clips", fine | {"mib": [300, 500, 700]})
    assert "memory grows by 400 MiB" in grown[0]
    assert curves.surprises("length-beats", fine | {"exponent": 1.9}) == []
