"""A year in miniature from download to judged submission: killed at every stage and on full disks, the end is the same.

The benchmark of the same name (`benchmarks/years.py`) does this for every year, with hundreds of kills.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks import years
from offkey.data.synthetic.years import YearConfig, pack_year, write_year

SMALL = {**years.SPARSE, "train_source": 3, "train_target": 1}
SYSTEMS = ("loudness", years.TINY)


@pytest.fixture(scope="module")
def forks() -> Iterator[years.Forks]:
    running = years.Forks()
    yield running
    running.close()


class Walked(NamedTuple):
    """A year's site, its steps, and what a walk that nobody disturbs leaves and prints; `work` is where to walk."""

    site: years.Site
    steps: list[years.Step]
    work: Path
    more: dict[str, str]
    said: dict[str, str]
    left: dict[str, bytes]

    def afresh(self) -> Path:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        self.site.behave()
        return self.work


@pytest.fixture(scope="module")
def walked(forks: years.Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Walked]]:
    sites = []

    def walk(year: int, machines: str, systems: tuple[str, ...]) -> Walked:
        folder = tmp_path_factory.mktemp(f"way{year}")
        mini = write_year(folder / "mini", year, YearConfig(machines=tuple(machines.split(",")), **SMALL))
        site = years.Site(pack_year(mini, folder / "site"), forks)
        sites.append(site)
        steps = years.way(year, machines, site.mirror, systems, both=False)
        more = {"zenodo": f"{site.mirror}/elsewhere"}
        found = Walked(site, steps, folder / "work", more, {}, {})
        work = found.afresh()
        found.said.update(years.quiet(forks, work, steps, **more))
        found.left.update(years.content(work))
        return found

    yield walk
    for site in sites:
        site.close()


@pytest.fixture(scope="module")
def first_shot(walked: Callable[..., Walked]) -> Walked:
    """2023, whose checksums offkey's own catalogue pins: its miniature is had by the catalogue beside its zips."""
    return walked(2023, "Vacuum", SYSTEMS)


def test_killed_at_every_stage_it_ends_the_same(forks: years.Forks, first_shot: Walked) -> None:
    work = first_shot.afresh()
    first_shot.site.misbehave()
    said, times = years.killed(forks, work, first_shot.steps, 2, **first_shot.more)
    assert years.differences(first_shot.left, years.content(work)) == []
    for name in ("evaluate D_U_task2_1", "evaluate D_U_task2_2"):
        assert said[name] == first_shot.said[name]
    assert times["fetch"] >= 7
    assert times["evaluation2023"] >= len(years.SPOTS)
    assert times["submit"] == times["truth"] == 2
    asked = [path for path, _ in first_shot.site.server.asked if path.endswith("Vacuum_test.zip")]
    assert any(first_shot.site.server.ranges(asked[0]))  # what had come was gone on with


def test_a_full_disk_leaves_nothing_half_written(forks: years.Forks, first_shot: Walked) -> None:
    """At every place of the source that writes, from the download to the submission; with room again it goes on."""
    steps = [step for step in first_shot.steps if step.name in ("fetch", "submit", "truth")]
    others = [step for step in first_shot.steps if step.name == "evaluation2023"]
    alone = years.Step(
        "reproduce", tuple(word for word in others[0].arguments if word not in ("--variant", years.TINY))
    )
    alone = years.Step("reproduce", (*alone.arguments[:-1], "runs/alone"))
    submit = years.Step("submit", ("submit", "runs/alone", "--out", "package"))
    by_name = {step.name: step for step in steps}
    work = first_shot.afresh()
    found = years.filled(forks, work, [by_name["fetch"], alone, submit, by_name["truth"]], "write", **first_shot.more)
    assert min(found.values()) >= 2
    assert found["fetch"] >= 5
    assert found["reproduce"] >= 9


@pytest.mark.parametrize(("largest", "words"), [(150_000, "cannot be written"), (50_000, "cannot be unpacked")])
def test_the_system_itself_refuses_to_write(forks: years.Forks, first_shot: Walked, largest: int, words: str) -> None:
    """A limit on the size of files, set for the process: the kernel's own answer, on any machine, for anybody."""
    work, fetch = first_shot.afresh(), first_shot.steps[0]
    own = () if "written" in words else ("--from", "../site")  # own zips are not written again
    ended = forks.run(work, *fetch.arguments, *own, largest=largest, **first_shot.more)
    assert ended.code == 1, ended.err
    assert words in ended.err
    assert "File too large" in ended.err
    assert "Traceback" not in ended.err
    assert not list(work.rglob("*.wav"))
    assert forks.run(work, *fetch.arguments, *own, **first_shot.more).code == 0
    ours = {name: bytes for name, bytes in years.content(work).items() if not name.endswith("fetched.json")}
    assert all(first_shot.left[name] == content for name, content in ours.items())


@pytest.fixture
def small_disk(first_shot: Walked) -> Iterator[Callable[[int], Path]]:
    """A file system of so many bytes, mounted where the walk goes; it takes a privileged user."""
    work = first_shot.afresh()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(work)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            pytest.skip(f"a small disk cannot be made here: {error}")
        if done.returncode:
            pytest.skip(f"a small disk cannot be made here: {done.stderr.strip()}")
        return work

    yield mount
    subprocess.run(["umount", str(work)], capture_output=True, check=False)


@pytest.mark.parametrize("pages", [2, 40, 70, 110])
def test_a_disk_that_is_really_full(
    forks: years.Forks, first_shot: Walked, small_disk: Callable[[int], Path], pages: int
) -> None:
    """A real, small file system, whose room another program took after offkey had looked."""
    work, fetch = small_disk(8_000_000), first_shot.steps[0]
    filler = work / "filler"
    with filler.open("wb") as file:
        file.write(bytes(shutil.disk_usage(work).free - 4096 * pages))
    ended = forks.run(work, *fetch.arguments, roomy=True, **first_shot.more)
    assert ended.code in (1, 2), ended.err
    assert re.search(r"No space left|is full", ended.err)
    assert "Traceback" not in ended.err
    refused = forks.run(work, *fetch.arguments, **first_shot.more)  # now it looks
    assert refused.code in (1, 2)
    assert re.search(r"make room|No space left", refused.err)
    for path in work.rglob("*.wav"):
        assert ".ready/" in str(path)  # whole, and not yet where anybody looks
    filler.unlink()
    assert forks.run(work, *fetch.arguments, **first_shot.more).code == 0
    ours = years.content(work)
    assert all(first_shot.left[name] == content for name, content in ours.items())
    assert len(list(work.rglob("*.wav"))) == 8


def test_an_old_year_goes_all_the_way(walked: Callable[..., Walked]) -> None:
    """2021: sections, a file for each domain; its detector knows machines by section, the challenge does not."""
    way = walked(2021, "fan", ("loudness",))
    names = {Path(name).name for name in way.left if name.startswith("package/")}
    assert {f"anomaly_score_fan_section_0{s}_{d}_test.csv" for s in (3, 4) for d in ("source", "target")} < names
    judged: Any = way.said["evaluate D_U_task2_1"]
    assert '"protocol": "dcase2021"' in judged
