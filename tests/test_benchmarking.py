"""Many systems and seeds in one table; what is finished is never done again."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offkey
import offkey.benchmarking as room
from offkey.benchmarking import BenchmarkError, BenchmarkRun, Contestant, benchmark
from offkey.cli.app import run
from offkey.evaluation.result import Result
from offkey.progress import Quiet


def bench(
    source: Path, out: Path, systems: list[str], seeds: list[int], **keywords: Any
) -> tuple[list[Any], list[str]]:
    failures: list[str] = []
    contestants = [Contestant.read(system) for system in systems]
    runs = benchmark(source, contestants, seeds, out, progress=Quiet(), failures=failures, **keywords)
    return runs, failures


SYSTEMS = ["loudness", "logmel-knn"]


def test_two_systems_and_two_seeds_make_a_table(small_set: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    runs, failures = bench(small_set, tmp_path, SYSTEMS, [0, 1])
    assert failures == []
    assert [(found.system, found.seed) for found in runs] == [
        ("loudness", 0), ("loudness", 1), ("logmel-knn", 0), ("logmel-knn", 1),
    ]  # fmt: skip
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["system"], row["seed"]) for row in rows] == [(found.system, str(found.seed)) for found in runs]
    for row, found in zip(rows, runs, strict=True):
        assert float(row["official_score"]) == found.result.official_score
        assert float(row["fit_seconds"]) == found.fit_seconds
    with (tmp_path / "table.csv").open(newline="") as file:
        assert {row["system"] for row in csv.DictReader(file)} == set(SYSTEMS)
    written = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert all(name in written for name in SYSTEMS)
    head = written.splitlines()[0]
    assert all(f"| {name} |" in head for name in ("fan AUC source", "valve pAUC", "fit, s", "score, s", "memory, MiB"))
    assert written.count("| 0.2 | 0.2 | 100 |") == 2
    page = (tmp_path / "table.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in page for name in (*SYSTEMS, "valve AUC target", "memory, MiB"))
    for found in runs:
        assert (found.folder / "manifest.json").is_file()
        assert json.loads((found.folder / "config.toml").read_text().split("seed = ")[1].split()[0]) == found.seed


def test_scorers_of_a_blend_have_rows_of_their_own(tmp_path: Path) -> None:
    def result(score: float, scorers: dict[str, Result]) -> Result:
        return Result("dcase2025", score, None, {}, {"pauc": score}, {"pauc": score}, scorers=scorers)

    parts = {"network:gmm": result(0.6, {}), "network:mahalanobis": result(0.7, {})}
    table = room.write_tables([BenchmarkRun("system1", 0, tmp_path, result(0.8, parts), 1.0, 1.0, 1.0)], tmp_path)
    assert table.systems == ("system1", "system1 · network:gmm", "system1 · network:mahalanobis")
    assert [row[-1] for row in table.rows()] == ["1.0", "–", "–"]
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        assert [float(row["official_score"]) for row in csv.DictReader(file)] == [0.8, 0.6, 0.7]


def test_systems_of_one_seed_share_the_separator_that_is_fitted_first(
    small_set: Path, tmp_path: Path, commands: list[list[str]], separators: list[Path]
) -> None:
    # a benchmark of ten systems fitted ten of them, twenty minutes each
    runs, failures = bench(small_set, tmp_path / "Bänke", SYSTEMS, [0, 1], overrides=["separation.fit=always"])
    assert failures == []
    assert len(set(separators)) == 2
    assert {place.parent for place in separators} == {tmp_path / "Bänke" / "separators"}
    # all are charged for it: the first by the clock (here 0.25 s), the others by what its training took
    assert [found.fit_seconds for found in runs] == [0.25, 0.25, 2000.25, 2000.25]
    bench(small_set, tmp_path / "Bänke", ["loudness"], [0], overrides=["separation.fit=always"])
    own = [f"separation.fit=always separation.folder={tmp_path}/mine"]
    bench(small_set, tmp_path / "Bänke", [f"other=loudness {own[0]}"], [0])
    assert separators[-1].parent == tmp_path / "mine"


def test_finished_runs_are_not_done_again(small_set: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    first, _ = bench(small_set, tmp_path, ["loudness"], [0])
    assert [arguments[0] for arguments in commands] == ["fit", "evaluate"]
    again, _ = bench(small_set, tmp_path, ["loudness", "logmel-knn"], [0])
    assert [arguments[0] for arguments in commands] == ["fit", "evaluate"] * 2
    assert again[0] == first[0]
    assert [found.system for found in again] == ["loudness", "logmel-knn"]


def test_a_run_that_was_killed_between_its_steps_goes_on(
    small_set: Path, tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = room._command

    def killed(arguments: list[str]) -> tuple[float, float]:
        if arguments[0] == "evaluate":
            raise KeyboardInterrupt
        return ours(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(room, "_command", killed)
        with pytest.raises(KeyboardInterrupt):
            bench(small_set, tmp_path, ["logmel-knn"], [0])
    model = tmp_path / "logmel-knn-seed0"
    fitted = (model / "scorer.safetensors").stat().st_mtime_ns
    runs, failures = bench(small_set, tmp_path, ["logmel-knn"], [0])
    assert (len(runs), failures) == (1, [])
    assert runs[0].fit_seconds is None  # 3 s were told of minutes that nobody had timed
    assert "fit, s" not in (tmp_path / "table.md").read_text(encoding="utf-8")
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["fit_seconds"] == ""
    assert (model / "scorer.safetensors").stat().st_mtime_ns == fitted


def test_one_failure_ends_one_run(small_set: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    runs, failures = bench(small_set, tmp_path, ["loudnes", "loudness"], [0])
    assert [found.system for found in runs] == ["loudness"]
    assert len(failures) == 1
    assert failures[0].startswith("loudnes-seed0: ")


def test_other_settings_need_another_folder(small_set: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    bench(small_set, tmp_path, ["loudness"], [0])
    runs, failures = bench(small_set, tmp_path, ["loudness"], [0], overrides=["calibration.folds=3"])
    assert runs == []
    assert "made from other data or settings; choose another --out" in failures[0]


def test_overrides_and_groups_reach_the_runs(small_set: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    table = tmp_path / "groups.csv"
    names = [path.name for path in small_set.glob("*/test/*.wav")]
    table.write_text("file,group\n" + "".join(f"{name},{name[:30]}\n" for name in names))
    runs, _ = bench(
        small_set, tmp_path, ["loudness"], [0], overrides=["calibration.folds=3"], groups=f"{table}:group", workers=0
    )
    assert runs[0].result.grouped
    assert "calibration.folds=3" in commands[0]
    assert commands[0][-2:] == commands[1][-2:] == ["--workers", "0"]


def test_fit_is_told_which_normal_clips_are_of_one_recording(
    small_set: Path, tmp_path: Path, commands: list[list[str]]
) -> None:
    names = [path.name for path in sorted(small_set.glob("*/train/*.wav"))]
    table = tmp_path / "cuts.csv"
    table.write_text("file,tape\n" + "".join(f"{name},{number // 2}\n" for number, name in enumerate(names)))
    told: dict[str, Any] = {"fit_groups": f"{table}:tape", "workers": 0}
    [found], _ = bench(small_set, tmp_path / "out", ["loudness"], [0], **told)
    machines = offkey.load(found.folder).machines.values()
    assert sum(len(known.clips) for known in machines) == len(names)
    assert all(0 < (known.recordings or 0) <= len(known.clips) // 2 + 1 for known in machines)
    assert not found.result.grouped
    assert bench(small_set, tmp_path / "out", ["loudness"], [0], **told)[0] == [found]
    _, failures = bench(small_set, tmp_path / "out", ["loudness"], [0], workers=0)
    assert "made from other data or settings" in failures[0]


def test_a_set_without_labels_cannot_be_compared(small_set: Path, tmp_path: Path, commands: list[list[str]]) -> None:
    hidden = Path(shutil.copytree(small_set, tmp_path / "set"))
    for number, path in enumerate(sorted(hidden.glob("*/test/*.wav"))):
        path.rename(path.with_name(f"section_00_{number:04d}.wav"))
    runs, failures = bench(hidden, tmp_path / "out", ["loudness"], [0])
    assert runs == []
    assert "no labelled test clips" in failures[0]


def test_the_command_runs_processes_and_is_resumable(
    small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["benchmark", str(small_set), "--systems", "loudness, nonsense", "--out", str(tmp_path), "--json"]
    assert run(command) == 1
    said = capsys.readouterr()
    assert "nonsense-seed0: `offkey fit` ended with 2" in said.err
    assert "there is no system 'nonsense'" in said.err
    found = json.loads(said.out)
    assert [entry["system"] for entry in found] == ["loudness"]
    assert found[0]["peak_mib"] > 50
    assert found[0]["fit_seconds"] > 0
    assert run([*command[:3], "loudness", *command[4:6]]) == 0
    said = capsys.readouterr()
    assert "table.md" in said.out
    record = json.loads((tmp_path / "loudness-seed0" / "run.json").read_text())
    assert record["fit_seconds"] == found[0]["fit_seconds"]


def test_seeds_that_are_none_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["benchmark", "x", "--systems", "loudness", "--out", str(tmp_path), "--seeds", "a"]) == 2
    assert "expected whole numbers with commas between" in capsys.readouterr().err


def test_a_variant_is_a_row_with_settings_of_its_own(
    small_set: Path, tmp_path: Path, commands: list[list[str]]
) -> None:
    runs, failures = bench(
        small_set,
        tmp_path,
        ["logmel-knn", "five=logmel-knn scoring.scorers.0.scorer.k=5"],
        [0],
        overrides=["statistics.std=false"],
    )
    assert failures == []
    assert [found.system for found in runs] == ["logmel-knn", "five"]
    fits = [arguments for arguments in commands if arguments[0] == "fit"]
    assert "statistics.std=false" in fits[0]
    assert "scoring.scorers.0.scorer.k=5" not in fits[0]
    assert fits[1][fits[1].index("statistics.std=false") + 2] == "scoring.scorers.0.scorer.k=5"
    runs, failures = bench(small_set, tmp_path, ["logmel-knn=logmel-knn statistics.std=true"], [0])
    assert runs == []
    assert "logmel-knn-seed0 was made from other data or settings" in failures[0]


@pytest.mark.parametrize("text", ["a/b=loudness", "x=", "x=loudness seed"])
def test_a_variant_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match="is not of the form"):
        Contestant.read(text)


def test_two_rows_of_one_name_are_refused(small_set: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="'loudness'"):
        bench(small_set, tmp_path, ["loudness", "loudness=logmel-knn"], [0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_run_dies_with_the_benchmark(tmp_path: Path) -> None:
    """No orphan works on in the folder in which the next start goes on."""
    script = tmp_path / "run"
    script.write_text(f"#!/bin/sh\ncd {tmp_path}\necho $$ > new\nmv new number\nexec sleep 60\n")
    script.chmod(0o755)
    code = f"import sys, offkey.benchmarking as b; sys.executable = {str(script)!r}; b._command(['fit'])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    number = tmp_path / "number"
    wait_for(number.exists)
    child = int(number.read_text())
    parent.kill()
    parent.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)
