"""From data to tables; killed once at every stage, the end is the same."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import offkey.benchmarking as benchmarking
from offkey.data.synthetic import SynthConfig, synthesize
from offkey.data.truth import take_truth
from offkey.encoders.weights import WeightsError
from offkey.evaluation import Result
from offkey.files import sha256
from offkey.reproducing import STAGES, Plan, ReproduceError, Work, finished_runs, reproduce
from offkey.reproducing import stages as room
from offkey.separation.recipe import MixingConfig, SeparationRecipe
from offkey.training.config import TrainingConfig

Planned = Callable[..., Plan]
WorkOf = Callable[..., Work]
Undisturbed = Callable[[tuple[str, ...]], dict[str, bytes]]
TABLES = ("table.md", "table.csv", "table.html")


def outcome(out: Path) -> dict[str, bytes]:
    """Everything that must not depend on how often a run was killed."""
    names = [*TABLES, "data/files.csv", *(f"metrics/{p.name}" for p in (out / "metrics").iterdir())]
    names += [str(p.relative_to(out)) for p in out.glob("runs*/*/evaluation/scores.csv")]
    return {name.replace(str(out), ""): (out / name).read_bytes() for name in sorted(names)}


@pytest.fixture(scope="module")
def straight() -> dict[tuple[str, ...], dict[str, bytes]]:
    """Filled by the first test that needs it."""
    return {}


def without_paths(found: dict[str, bytes]) -> dict[str, bytes]:
    """Per-clip scores name the links of their own run folder; everything else is bytes for bytes the same."""

    def cut(text: bytes) -> bytes:
        rows = list(csv.reader(text.decode().splitlines()))
        return "\n".join(",".join(cell for at, cell in enumerate(row) if at != 1) for row in rows).encode()

    def bare(text: bytes) -> bytes:
        kept = json.loads(text)
        return json.dumps(kept["result"]).encode()

    return {
        name: cut(text) if name.endswith("scores.csv") else bare(text) if name.startswith("metrics/") else text
        for name, text in found.items()
    }


@pytest.fixture
def undisturbed(
    straight: dict[tuple[str, ...], dict[str, bytes]],
    planned: Planned,
    work_of: WorkOf,
    commands: list[list[str]],
    tmp_path: Path,
) -> Callable[[tuple[str, ...]], dict[str, bytes]]:
    """Systems -> what a run that nobody disturbs ends with."""

    def found(systems: tuple[str, ...]) -> dict[str, bytes]:
        if systems not in straight:
            plan = planned(systems=systems, out=tmp_path / "straight")
            reproduce(work_of(plan))
            straight[systems] = without_paths(outcome(plan.out))
            commands.clear()
        return straight[systems]

    return found


def test_table1_of_a_miniature(planned: Planned, work_of: WorkOf, commands: list[list[str]]) -> None:
    plan = planned()
    work = work_of(plan)
    table = reproduce(work)
    assert work.failures == []
    assert table is not None
    assert table.header()[1:] == ["AE, MSE, published", "baseline, ours", "AE, Mahalanobis, published",
                                  "baseline · residual:value, ours", "logmel-knn, ours"]  # fmt: skip
    assert [name for name, *_ in table.rows()][:2] == ["fan", "valve"]
    assert any("2 of 7 machines" in remark for remark in table.remarks)
    assert any("baseline is baseline training.epochs=1" in remark for remark in table.remarks)
    assert all((plan.out / name).stat().st_size > 100 for name in TABLES)

    # the numbers follow from the per-clip scores alone, and are those of `offkey evaluate`
    for run in finished_runs(plan.out):
        kept = json.loads((run.folder / "evaluation" / "result.json").read_text())
        ours = Result.from_dict(json.loads((plan.out / "metrics" / f"{run.title}.json").read_text())["result"])
        assert ours.official_score == pytest.approx(kept["official_score"], abs=1e-12)
        assert ours.protocol == "dcase2025"
        assert set(ours.scorers) == set(kept["scorers"])

    audit = json.loads((plan.out / "audit.json").read_text())
    assert {"python", "torch", "offkey"} <= set(audit["versions"])
    assert audit["stages"]["data"]["list_sha256"] == sha256(plan.out / "data" / "files.csv")
    entry = audit["runs"]["baseline-seed0"]
    assert entry["sha256"]["evaluation/scores.csv"] == sha256(plan.out / entry["folder"] / "evaluation" / "scores.csv")
    assert entry["sha256"]["config.toml"] == sha256(plan.out / entry["folder"] / "config.toml")
    assert "training.epochs=1" in audit["plan"]["contestants"]["baseline"]["settings"]
    with (plan.out / "data" / "files.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert len(rows) == 64
    name = next(iter(rows))
    assert rows[name]["sha256"] == sha256(plan.root / name)


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_killed_at_a_stage_it_goes_on_to_the_same_end(
    stage: str, undisturbed: Undisturbed, planned: Planned, work_of: WorkOf, commands: list[list[str]]
) -> None:
    quick = ("logmel-knn", "loudness")
    plan, wanted = planned(systems=quick), undisturbed(quick)

    def killed(entry: Stage) -> Stage:
        def run(work: Work) -> dict[str, Any]:
            entry.run(work)  # the worst moment: all is done, and nothing is noted
            raise KeyboardInterrupt

        return replace(entry, run=run) if entry.name == stage else entry

    with pytest.raises(KeyboardInterrupt):
        reproduce(work_of(plan), [killed(entry) for entry in STAGES])
    begun = len(commands)
    assert reproduce(work_of(plan)) is not None
    assert without_paths(outcome(plan.out)) == wanted
    done_before = stage in ("runs", "metric", "tables", "audit")
    assert (begun, len(commands)) == ((4, 4) if done_before else (0, 4))


def test_killed_within_the_runs_it_repeats_nothing_that_is_done(
    undisturbed: Undisturbed, planned: Planned, work_of: WorkOf, commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    learning = ("baseline", "loudness")
    plan, wanted = planned(systems=learning), undisturbed(learning)
    ours = benchmarking._command

    def killed(arguments: list[str]) -> tuple[float, float]:
        if len(commands) == 3:  # the second run is fitted, and not yet scored
            raise KeyboardInterrupt
        return ours(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(benchmarking, "_command", killed)
        with pytest.raises(KeyboardInterrupt):
            reproduce(work_of(plan))
    assert [run.title for run in finished_runs(plan.out)] == ["baseline-seed0"]
    reproduce(work_of(plan))
    assert without_paths(outcome(plan.out)) == wanted
    fitted = [words[words.index("--out") + 1] for words in commands if words[0] == "fit"]
    assert [Path(folder).name for folder in fitted].count("baseline-seed0") == 1


def test_killed_while_links_are_laid_out(
    planned: Planned, work_of: WorkOf, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(systems=("loudness",))
    link, made = Path.symlink_to, []

    def killed(self: Path, target: Path) -> None:
        made.append(self)
        if len(made) == 20:
            raise KeyboardInterrupt
        link(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", killed)
        with pytest.raises(KeyboardInterrupt):
            reproduce(work_of(plan))
    assert not (plan.out / "data" / "own").exists()
    reproduce(work_of(plan))
    assert len(list((plan.out / "data" / "own").glob("*/*/*.wav"))) == 64


def test_seeds_and_systems_can_be_added_later(planned: Planned, work_of: WorkOf, commands: list[list[str]]) -> None:
    plan = planned(systems=("loudness",))
    reproduce(work_of(plan))
    table = reproduce(work_of(planned(systems=("logmel-knn",), seeds=(0, 1))))
    assert table is not None
    assert [column.title for column in table.columns] == ["loudness", "logmel-knn"]
    assert len([words for words in commands if words[0] == "fit"]) == 3


def test_a_run_folder_stands_for_one_question(planned: Planned, work_of: WorkOf, commands: list[list[str]]) -> None:
    plan = planned(systems=("loudness",))
    reproduce(work_of(plan))
    for other, words in (
        (replace(plan, machines=("fan",)), "begun with machines"),
        (replace(plan, settings=("calibration.folds=3",)), "begun with settings"),
        (planned("dcase2025", systems=("loudness",)), "begun with experiment 'table1'"),
        (replace(plan, contestants=(replace_name(plan),)), "begun with another loudness"),
    ):
        with pytest.raises(ReproduceError, match=words):
            reproduce(work_of(other))


def replace_name(plan: Plan) -> Any:
    return plan.contestants[0]._replace(system="logmel-knn")


def test_truth_that_was_taken_beside_the_data_is_found(
    planned: Planned, work_of: WorkOf, commands: list[list[str]], dcase_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(dcase_root, tmp_path / "root"))
    plan = planned("evaluation2025", root=root, systems=("loudness",))
    assert reproduce(work_of(plan)) is None
    take_truth("dcase2025", root, root / "eval_data_list_2025.csv")
    work = work_of(plan)
    assert reproduce(work) is not None
    assert Path(work.facts["metric"]["truth"]) == root / "dcase2025t2" / "truth"


def test_an_evaluation_set_is_judged_when_its_truth_is_there(
    planned: Planned, work_of: WorkOf, commands: list[list[str]], dcase_root: Path
) -> None:
    plan = planned("evaluation2025", systems=("logmel-knn",))
    work = work_of(plan)
    assert reproduce(work) is None
    assert work.failures == []
    assert [run.title for run in finished_runs(plan.out)] == ["logmel-knn-seed0"]
    begun = len(commands)
    table = reproduce(work_of(replace(plan, truth=dcase_root / "eval_data_list_2025.csv")))
    assert table is not None
    assert len(commands) == begun  # scores were kept
    assert [name for name, *_ in table.rows()][:2] == ["AutoTrash", "ToyPet"]
    half = plan.out / "half.csv"
    half.write_text("\n".join((dcase_root / "eval_data_list_2025.csv").read_text().splitlines()[:5]) + "\n")
    with pytest.raises(ReproduceError, match="does not tell about"):
        reproduce(work_of(replace(plan, truth=half)))


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One machine heard by two microphones."""
    root = tmp_path_factory.mktemp("stereo") / "set"
    config = SynthConfig(machines=("fan",), channels=2, seconds=2.0, train_source=6, train_target=2, test_per_group=2,
                         supplemental=2)  # fmt: skip
    synthesize(root, config)
    return root / "fan"


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("dcase2023", "bearing"), ("evaluation2023", "Vacuum"), ("dcase2024", "ToyCar"),
        ("evaluation2024", "3DPrinter"), ("dcase2026", "fan"), ("evaluation2026", "ToyDrone"),
    ],
)  # fmt: skip
def test_other_years_go_the_same_way(
    name: str, machine: str, planned: Planned, work_of: WorkOf, commands: list[list[str]], stereo: Path,
    small_set: Path, tmp_path: Path,
) -> None:  # fmt: skip
    year = name[-4:]
    root = tmp_path / "root"
    part = "dev" if name.startswith("dcase") else "eval"
    shutil.copytree(stereo if year == "2026" else small_set / "fan", root / f"dcase{year}t2" / f"{part}_data" / machine)
    work = work_of(planned(name, root=root, machines=(machine,), systems=("loudness",), bootstrap=0))
    table = reproduce(work)
    assert work.failures == []
    assert table is not None
    assert table.header() == ["machine", "loudness, ours"]
    kept = json.loads((work.plan.out / "metrics" / "loudness-seed0.json").read_text())["result"]
    assert kept["protocol"] == f"dcase{year}"
    assert list(kept["machines"]) == [machine]


def test_other_machines_join_where_they_are_asked_to(
    planned: Planned, work_of: WorkOf, commands: list[list[str]]
) -> None:
    plan = planned(systems=("loudness", "logmel-knn"), additional=frozenset({"logmel-knn"}))
    table = reproduce(work_of(plan))
    assert table is not None
    clips = {
        run.name: json.loads((run.folder / "calibration.json").read_text()).get("machines", {}).keys()
        or set(json.loads((run.folder / "calibration.json").read_text()))
        for run in finished_runs(plan.out)
    }
    assert "ToyPet" not in str(clips["loudness"])
    assert "ToyPet" in str(clips["logmel-knn"])
    assert [name for name, *_ in table.rows()][:3] == ["fan", "valve", "harmonic mean, recomputed"]
    joined = plan.out / "data" / "joined" / "ToyPet"
    assert sorted(p.name for p in joined.iterdir()) == ["attributes_00.csv", "supplemental", "train"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda raw: shutil.rmtree(raw / "fan"), r"fan has no training clips \(and 1 more\)"),
        (lambda raw: shutil.rmtree(raw / "fan" / "train"), "fan has no training clips"),
        (lambda raw: shutil.rmtree(raw / "valve" / "test"), "valve has no test clips"),
        (
            lambda raw: [p.unlink() for p in raw.glob("fan/test/*normal*")],
            "fan cannot be judged .* no normal test clip",
        ),
    ],
)
def test_data_that_is_not_there_is_told_with_the_command(
    harm: Callable[[Path], object], words: str, planned: Planned, work_of: WorkOf, dcase_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "harmed"
    shutil.copytree(dcase_root / "dcase2025t2" / "dev_data", root / "dcase2025t2" / "dev_data")
    harm(root / "dcase2025t2" / "dev_data" / "raw")
    with pytest.raises(ReproduceError, match=words) as caught:
        reproduce(work_of(planned(root=root)))
    assert f"offkey data fetch dcase2025 --root {root} --machines fan,valve --parts dev" in str(caught.value)


def test_missing_data_is_fetched_where_that_is_allowed(
    planned: Planned, work_of: WorkOf, commands: list[list[str]], dcase_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    asked: list[Plan] = []

    def bring(plan: Plan) -> None:
        asked.append(plan)
        shutil.copytree(dcase_root / "dcase2025t2", plan.root / "dcase2025t2")

    plan = planned(root=root, systems=("loudness",))
    assert reproduce(work_of(plan, fetch=bring)) is not None
    reproduce(work_of(plan, fetch=bring))
    assert asked == [plan]
    with pytest.raises(ReproduceError, match="Get the data with"):
        reproduce(work_of(planned(root=tmp_path / "none", out=tmp_path / "other"), fetch=lambda plan: None))


def test_changed_data_ends_a_run(
    planned: Planned, work_of: WorkOf, commands: list[list[str]], dcase_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(dcase_root / "dcase2025t2" / "dev_data" / "raw", root)
    plan = planned(root=root, systems=("loudness",))
    reproduce(work_of(plan))
    clip = sorted((root / "fan" / "train").glob("*.wav"))[0]
    clip.write_bytes(clip.read_bytes() + b"\0\0")
    with pytest.raises(ReproduceError, match=rf"{clip.name} has changed since"):
        reproduce(work_of(plan))
    clip.unlink()
    with pytest.raises(ReproduceError, match=rf"{clip.name} is gone since"):
        reproduce(work_of(plan))


def test_weights_are_asked_for_before_anything_is_learnt(
    planned: Planned, work_of: WorkOf, commands: list[list[str]], small_beats: Path
) -> None:
    plan = planned(systems=("system3",))
    with pytest.raises(WeightsError, match="offkey weights fetch"):
        reproduce(work_of(plan))
    assert commands == []
    told = room._weights(work_of(replace(plan, settings=(f"encoder.weights={small_beats}",))))
    assert told["systems"]["system3"]["sha256"] == sha256(small_beats)


def test_a_failed_run_is_told_and_the_others_go_on(
    planned: Planned, work_of: WorkOf, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = benchmarking._command

    def some(arguments: list[str]) -> tuple[float, float]:
        if any("logmel-knn" in word for word in arguments):
            raise benchmarking.BenchmarkError("`offkey fit` ended with 137")
        return ours(arguments)

    monkeypatch.setattr(benchmarking, "_command", some)
    work = work_of(planned(systems=("logmel-knn", "loudness")))
    table = reproduce(work)
    assert work.failures == ["logmel-knn-seed0: `offkey fit` ended with 137"]
    assert table is not None
    assert [column.title for column in table.columns] == ["loudness"]
    assert "Failed: logmel-knn-seed0: `offkey fit` ended with 137" in table.remarks
    with pytest.raises(ReproduceError, match="no run ended well"):
        reproduce(work_of(planned(systems=("logmel-knn",), out=work.plan.out.with_name("none"))))


def test_training_clips_are_recombined_with_a_separator_learnt_first(
    planned: Planned, work_of: WorkOf, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SeparationRecipe.of("tiny").model_copy(
        update={
            "mixing": MixingConfig(batches=2, crop_seconds=0.5, held_out=2),
            "training": TrainingConfig(epochs=1, batch_size=2),
        }
    )
    monkeypatch.setattr(room.SeparationRecipe, "of", lambda size: {"tiny": small}[size])
    plan = planned(systems=("baseline",), remix="tiny")
    work = work_of(plan)
    assert reproduce(work) is not None
    facts = work.facts["separator"]
    assert (facts["mode"], facts["folder"]) == ("supervised", str(plan.separator))
    fitted = next(words for words in commands if words[0] == "fit")
    assert "augmentation.remix.enabled=true" in fitted
    training = json.loads((plan.out / "runs/baseline-seed0/calibration.json").read_text())["facts"]["asked"]
    assert training["separators"] == ["", facts["fingerprint"]]
    assert reproduce(work_of(plan)) is not None
    with pytest.raises(ReproduceError, match="was begun with remix"):
        reproduce(work_of(planned(systems=("baseline",))))


def test_a_run_folder_among_the_data_is_refused(planned: Planned, work_of: WorkOf, dcase_root: Path) -> None:
    out = dcase_root / "dcase2025t2" / "runs"
    try:
        with pytest.raises(ReproduceError, match="lies among the data"):
            reproduce(work_of(planned(out=out)))
    finally:
        shutil.rmtree(out, ignore_errors=True)
