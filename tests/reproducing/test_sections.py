"""2020 to 2022: the same machines in both parts of a year, other sections (machine IDs), and the year's own rules."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from offkey.data.synthetic.years import Miniature, YearConfig, write_year
from offkey.data.truth import take_truth
from offkey.evaluation import PROTOCOLS, ScoredClip, evaluate, read_truth
from offkey.reproducing import Plan, ReproduceError, Work, finished_runs, reproduce, year_of
from offkey.reproducing.clips import find_clips, lacking, without_table
from offkey.reproducing.plan import Unit, count, unit_of
from offkey.types import Condition, Domain, Split

Planned = Callable[..., Plan]
WorkOf = Callable[..., Work]
Made = Callable[[int], Miniature]
YEARS = (2020, 2021, 2022)
DEV = {2020: ("00", "02"), 2021: ("00", "01"), 2022: ("00", "01"), 2023: ("00",)}
HIDDEN = {2020: ("01", "03"), 2021: ("03", "04"), 2022: ("03", "04")}
SMALL = YearConfig(machines=("fan",), train_source=3, train_target=1, test_per_group=1, seconds=2.0, rate=8000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Year -> its miniature with one machine and two sections a part, once. Nobody writes into it."""
    known: dict[int, Miniature] = {}

    def make(year: int) -> Miniature:
        if year not in known:
            known[year] = write_year(tmp_path_factory.mktemp(f"year{year}"), year, SMALL)
        return known[year]

    return make


@pytest.fixture
def planned_of(made: Made, planned: Planned) -> Planned:
    def plan(part: str, year: int, **changes: object) -> Plan:
        settled: dict[str, object] = {"root": made(year).folder.parent, "machines": ("fan",), "bootstrap": 0}
        return planned(f"{part}{year}", **{"systems": ("loudness",), **settled, **changes})

    return plan


def known_to(out: Path) -> dict[str, set[str]]:
    """System -> what its detector has references and thresholds for."""
    return {
        run.name: set(json.loads((run.folder / "calibration.json").read_text())["machines"])
        for run in finished_runs(out)
    }


@pytest.mark.parametrize("year", YEARS)
def test_each_part_sees_its_own_sections_alone(year: int, planned_of: Planned) -> None:
    for part, sections in (("dcase", DEV[year]), ("evaluation", HIDDEN[year])):
        plan = planned_of(part, year)
        clips = find_clips(plan)
        assert {unit_of(clip) for clip in clips} == {Unit("fan", section) for section in sections}
        assert {clip.split for clip in clips} == {Split.TRAIN, Split.TEST}
        assert lacking(plan, clips) == without_table(plan, clips) == []
        found = count(plan, clips)
        assert (found.train, found.additional, found.test, found.told) == (8, 0, 8, "counted")
        joined = replace(plan, additional=frozenset({"loudness"}))
        more = [clip for clip in find_clips(joined) if clip not in clips]
        assert {unit_of(clip).section for clip in more} == {*DEV[year], *HIDDEN[year]} - {*sections}
        assert {clip.split for clip in more} == {Split.TRAIN}
        assert count(joined, [*clips, *more]).additional == 8


@pytest.mark.parametrize("year", YEARS)
def test_an_evaluation_set_is_judged_by_the_rules_of_its_year(
    year: int, made: Made, planned_of: Planned, work_of: WorkOf, commands: list[list[str]], tmp_path: Path
) -> None:
    root = tmp_path / "elsewhere"  # no folder tells the year
    shutil.copytree(made(year).folder / "eval_data", root)
    plan = planned_of("evaluation", year, root=root)
    work = work_of(plan)
    assert reproduce(work) is None
    assert work.failures == []
    assert known_to(plan.out) == {"loudness": {f"fan/{section}" for section in HIDDEN[year]}}
    assert year_of(plan.out) == year

    place = take_truth(f"dcase{year}", tmp_path / "truth", made(year).truth).folder
    begun = len(commands)
    table = reproduce(work_of(replace(plan, truth=place)))
    assert len(commands) == begun
    assert table is not None

    rules, truth = PROTOCOLS[f"dcase{year}"], read_truth(place)
    with (finished_runs(plan.out)[0].folder / "evaluation" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = evaluate(
        [
            ScoredClip(row["file"], "fan", row["section"], *truth["fan", row["file"]], float(row["score"]))
            for row in rows
        ],
        rules,
        bootstrap=0,
    )
    ours = {key: value.mean / 100 for key, value in table.columns[0].values.items()}
    assert ours["", "official_score"] == pytest.approx(wanted.official_score)
    means = wanted.arithmetic_mean if year == 2020 else wanted.harmonic_mean
    for metric in rules.metrics:
        assert ours["fan", metric] == pytest.approx(wanted.machines["fan"].values[metric])
        assert ours["", metric] == pytest.approx(means[metric])
        for section in HIDDEN[year]:
            assert ours[f"fan/{section}", metric] == pytest.approx(wanted.machines["fan"].sections[section][metric])
    kind = "arithmetic" if year == 2020 else "harmonic"
    assert [name for name, *_ in table.rows()] == [
        "fan", *(f"fan/{section}" for section in HIDDEN[year]), f"{kind} mean, recomputed", "official score, recomputed"
    ]  # fmt: skip
    absent = [f"fan/{unit.section}" for unit in sorted(plan.units) if unit.section not in HIDDEN[year]]
    assert f"Not in the data, nor in the means: {', '.join(absent)}." in table.remarks


@pytest.mark.parametrize("year", YEARS)
def test_the_other_sections_join_where_they_are_asked_to(
    year: int, planned_of: Planned, work_of: WorkOf, commands: list[list[str]]
) -> None:
    plan = planned_of("dcase", year, systems=("loudness", "wide=loudness"), additional=frozenset({"wide"}))
    work = work_of(plan)
    table = reproduce(work)
    assert work.failures == []
    assert table is not None
    own, others = ({f"fan/{section}" for section in part[year]} for part in (DEV, HIDDEN))
    assert known_to(plan.out) == {"loudness": own, "wide": own | others}
    assert [name for name, *_ in table.rows()][:3] == ["fan", *sorted(own)]
    assert table.metrics == PROTOCOLS[f"dcase{year}"].metrics

    view = plan.out / "data" / "joined" / "fan"
    folders = {2021: {"source_test", "target_test"}}.get(year, {"test"}) | {"train"}
    assert {path.name for path in view.iterdir() if path.is_dir()} == folders
    tables = {f"attributes_{section}.csv" for section in (*DEV[year], *HIDDEN[year])} if year == 2022 else set()
    assert {path.name for path in view.glob("*.csv")} == tables
    with (plan.out / "runs-joined" / "wide-seed0" / "evaluation" / "scores.csv").open(newline="") as file:
        assert {row["section"] for row in csv.DictReader(file)} == set(DEV[year])


@pytest.mark.parametrize(
    ("year", "gone", "words"),
    [
        (2020, "test/anomaly_id_02_*", "fan/section_02 cannot be judged by the rules of dcase2020: no anomalous"),
        (2020, "test/*", r"fan/00 has no test clips \(and 1 more\)"),
        (2021, "target_test/section_01_*_anomaly_*", "rules of dcase2021: no anomalous test clip in the target domain"),
        (2021, "train/section_01_*", "fan/01 has no training clips"),
        (2022, "test/section_00_target_test_normal*", "dcase2022: no normal test clip in the target domain"),
        (2022, "test/section_0?_*_anomaly_*", "fan/section_00 .* no anomalous test clip"),
        (
            2023,
            "test/section_00_source_test_normal*",
            "fan cannot be judged .* no normal test clip in the source domain",
        ),
    ],
)
def test_what_the_rules_of_a_year_ask_for_must_be_there(
    year: int, gone: str, words: str, made: Made, planned_of: Planned, work_of: WorkOf, commands: list[list[str]],
    tmp_path: Path,
) -> None:  # fmt: skip
    root = tmp_path / "harmed"
    shutil.copytree(made(year).folder / "dev_data", root / f"dcase{year}t2" / "dev_data")
    harmed = list((root / f"dcase{year}t2" / "dev_data" / "raw" / "fan").glob(gone))
    for path in harmed:
        path.unlink()
    assert harmed
    plan = planned_of("dcase", year, root=root)
    with pytest.raises(ReproduceError, match=words) as caught:
        reproduce(work_of(plan))
    assert f"offkey data fetch dcase{year} --root {root} --machines fan --parts dev" in str(caught.value)
    assert commands == []
    assert not (plan.out / "data").exists()


@pytest.mark.parametrize("year", YEARS)
def test_a_truth_of_one_condition_is_refused_and_the_scores_stay(
    year: int, made: Made, planned_of: Planned, work_of: WorkOf, commands: list[list[str]], tmp_path: Path
) -> None:
    plan = planned_of("evaluation", year)
    truth = read_truth(take_truth(f"dcase{year}", tmp_path / "truth", made(year).truth).folder)

    def told(section: str) -> Path:
        rows = [
            (f"{machine}/{file}", str(domain), str(Condition.NORMAL if f"_{section}_" in file else condition))
            for (machine, file), (domain, condition) in truth.items()
        ]
        path = tmp_path / f"truth{section}.csv"
        path.write_text("\n".join(",".join(row) for row in [("file", "domain", "label"), *rows]) + "\n")
        return path

    first = HIDDEN[year][0]
    with pytest.raises(ReproduceError, match=rf"no metric by .*fan/section_{first}.*no anomalous .* scores are kept"):
        reproduce(work_of(replace(plan, truth=told(first))))
    assert not (plan.out / "table.md").exists()
    assert reproduce(work_of(replace(plan, truth=told("99")))) is not None
    assert len([words for words in commands if words[0] == "fit"]) == 1


def test_a_section_without_its_table_of_attributes_is_told_in_the_table(
    made: Made, planned_of: Planned, work_of: WorkOf, commands: list[list[str]], tmp_path: Path
) -> None:
    root = tmp_path / "bare"
    shutil.copytree(made(2022).folder, root / "dcase2022t2")
    (root / "dcase2022t2" / "dev_data" / "raw" / "fan" / "attributes_01.csv").unlink()
    table = reproduce(work_of(planned_of("dcase", 2022, root=root)))
    assert table is not None
    assert "Without a table of attributes, so that file names alone tell settings: fan/01." in table.remarks
    whole = planned_of("evaluation", 2022, root=root)
    assert without_table(whole, find_clips(whole)) == []


def test_the_folder_of_a_test_clip_tells_its_domain_where_its_name_does_not(
    made: Made, planned_of: Planned, work_of: WorkOf, commands: list[list[str]], tmp_path: Path
) -> None:
    """2021, with names as in later years: both domains would meet in one folder of links."""
    root = tmp_path / "named"
    shutil.copytree(made(2021).folder / "eval_data", root)
    for path in root.glob("*/fan/*_test/*.wav"):
        words = path.name.split("_")
        number = int(words[-1].removesuffix(".wav")) + (100 if "target" in words else 0)
        path.rename(path.with_name(f"section_{words[1]}_test_{number:04d}.wav"))
    plan = planned_of("evaluation", 2021, root=root)
    reproduce(work_of(plan))
    with (plan.out / "runs" / "loudness-seed0" / "evaluation" / "scores.csv").open(newline="") as file:
        domains = [row["domain"] for row in csv.DictReader(file)]
    assert sorted(domains) == [*["source"] * 4, *["target"] * 4]
    assert Domain.UNKNOWN not in domains
