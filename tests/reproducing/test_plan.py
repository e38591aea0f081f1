"""What is to be reproduced, and what it is said to cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from offkey.benchmarking import Contestant
from offkey.reproducing import EXPERIMENTS, Plan, ReproduceError, experiment
from offkey.reproducing.clips import find_clips
from offkey.reproducing.plan import COSTS, count, estimate
from offkey.types import Split

Planned = Callable[..., Plan]


def test_every_year_has_both_parts_and_table1_is_the_development_set_of_2025() -> None:
    assert set(EXPERIMENTS) == {
        "table1", *(f"dcase{year}" for year in range(2020, 2027)), *(f"evaluation{year}" for year in range(2020, 2027))
    }  # fmt: skip
    assert experiment("table1").machines == experiment("dcase2025").machines
    for entry in EXPERIMENTS.values():
        assert not set(entry.units) & set(entry.others)
        others = {unit.machine for unit in entry.others}
        if entry.year >= 2023:  # first shot
            assert not set(entry.machines) & others
            assert len(entry.units) == len(entry.machines)
        else:
            assert set(entry.machines) == others
    assert len(experiment("dcase2020").units) == 23
    assert len(experiment("evaluation2020").units) == len(experiment("evaluation2022").units) - 3 == 18
    with pytest.raises(ReproduceError, match="did you mean evaluation2025"):
        experiment("evaluation205")


def test_impossible_plans_are_refused(planned: Planned) -> None:
    plan = planned()
    for changes, words in (
        ({"machines": ("pump",)}, "no machine 'pump'; it has ToyCar"),
        ({"seeds": (0, 0)}, "seed 0 is named twice"),
        ({"seeds": ()}, "at least one system"),
        ({"contestants": (Contestant("a", "loudness"), Contestant("a", "loudness"))}, "system a is named twice"),
        ({"additional": frozenset({"x"})}, "--additional names x"),
    ):
        with pytest.raises(ReproduceError, match=words):
            replace(plan, **changes)


def test_clips_of_other_machines_join_without_their_tests(planned: Planned) -> None:
    alone = find_clips(planned())
    assert {clip.machine for clip in alone} == {"fan", "valve"}
    joined = find_clips(planned(additional=frozenset({"baseline"})))
    others = [clip for clip in joined if clip.machine in ("AutoTrash", "ToyPet")]
    assert others
    assert all(clip.split is not Split.TEST for clip in others)
    assert len(joined) == len(alone) + len(others)


def test_the_fetch_command_names_what_is_needed(planned: Planned) -> None:
    assert planned().fetch_command().endswith("--machines fan,valve --parts dev")
    assert planned(additional=frozenset({"baseline"})).fetch_command().endswith("--parts dev,additional")
    assert planned("evaluation2025").fetch_command().startswith("offkey data fetch dcase2025 --root ")
    assert planned("evaluation2025").fetch_parts() == ("additional", "eval")


def test_clips_are_counted_or_the_years_usual_ones(planned: Planned, tmp_path: Path) -> None:
    plan = planned()
    clips = find_clips(plan)
    found = count(plan, clips)
    assert (found.train, found.supplemental, found.test, found.told) == (44, 4, 16, "counted")
    assert found.bytes == sum(clip.path.stat().st_size for clip in clips)
    nowhere = replace(plan, root=tmp_path / "none")
    assert find_clips(nowhere) == []
    usual = count(replace(nowhere, machines=()), [])
    assert usual[:5] == (7000, 0, 700, 0, 1400)
    assert 2.5e9 < usual.bytes < 3.5e9  # 7 machines, 1300 clips of 10 s each


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("dcase2020", (23_000, 18_000, 0, 0, 9_200)),
        ("evaluation2020", (18_000, 23_000, 0, 0, 7_200)),
        ("evaluation2021", (21_063, 21_063, 0, 0, 8_400)),
        ("dcase2022", (21_000, 21_000, 0, 0, 4_200)),
        ("evaluation2026", (5_000, 7_000, 500, 700, 1_000)),
    ],
)
def test_the_usual_numbers_are_the_years_own(
    name: str, wanted: tuple[int, ...], planned: Planned, tmp_path: Path
) -> None:
    plan = planned(name, root=tmp_path / "none", machines=(), additional=frozenset({"baseline"}))
    found = count(plan, [])
    assert found[:5] == wanted
    assert found.bytes == sum(wanted) * 320_000 * (2 if "2026" in name else 1)
    assert plan.fetch_parts() == (("dev", "additional") if name.startswith("d") else ("additional", "eval", "dev"))


def test_estimates_grow_with_epochs_clips_and_encoder(planned: Planned) -> None:
    systems = ("system1", "system2", "system3", "logmel-knn")
    plan = planned(systems=systems, machines=())
    counts = count(plan, [])
    configs = plan.configs()
    found = {name: estimate(name, configs[name], counts, additional=False) for name in systems}
    assert found["logmel-knn"].cpu_seconds < 600
    assert found["system2"].gpu_seconds > found["system1"].gpu_seconds > found["logmel-knn"].gpu_seconds
    assert found["system1"].uses == ("read", "network", "beats learns, some", "beats hears")
    twice = plan.configs()["system2"].model_copy(update={"training": configs["system2"].training.model_copy(
        update={"epochs": 32})})  # fmt: skip
    longer = estimate("system2", twice, counts, additional=False)
    lessons = 16 * (counts.train + counts.supplemental)
    more = lessons * (COSTS["beats learns, all"].cpu + COSTS["network"].cpu)
    assert longer.cpu_seconds - found["system2"].cpu_seconds == pytest.approx(more)
    assert all(" " in cost.origin and min(cost.cpu, cost.gpu) > 0 for cost in COSTS.values())
