"""Does remix pay? `discriminative` and `system1` with and without it, on simulated machines and on a real set.

    python benchmarks/remix.py --out FOLDER             # makes the simulated set and tells what to do next
    offkey fit-separator FOLDER/simulated --out SEPARATOR
    python benchmarks/remix.py --out FOLDER --simulated-separator SEPARATOR --weights mn04_as_mAP_432.pt \\
        --real uav --real-separator UAV_SEPARATOR --groups uav/truth.csv:flight --seeds 0,1,2

Remix puts the foreground of a normal training clip into the background of another (`augmentation.remix`); a separator
takes them apart, and it has heard training and supplemental clips alone. Rows with and without differ in nothing
else, seed by seed; what stands under "with − without" is the mean of these differences and their deviation.
Finished runs are kept, a killed script goes on, and a run that fails is named and ends nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offkey.files import write_whole

if TYPE_CHECKING:
    from offkey.benchmarking import BenchmarkRun, Contestant

REMIX = "augmentation.remix.enabled=true"
WITH = "-remix"


def contestants(
    systems: Sequence[str], separator: Path, weights: Path | None, extra: Sequence[str]
) -> list[Contestant]:
    """Each system twice, the second time with remix; `extra` are settings of remix for the second."""
    from offkey.benchmarking import Contestant
    from offkey.systems.config import load_preset

    rows = []
    for name in systems:
        settings: tuple[str, ...] = ()
        if load_preset(name).encoder.name != "none":
            if weights is None:
                continue
            settings = ("encoder.name=efficientat", f"encoder.weights={weights.absolute()}")
        rows.append(Contestant(name, name, settings))
        remixed = (*settings, REMIX, f"separation.model={separator.absolute()}", *extra)
        rows.append(Contestant(name + WITH, name, remixed))
    return rows


def table_of(results: Mapping[str, Sequence[BenchmarkRun]]) -> str:
    """Markdown of the runs of each set: a row a set and system, percent, differences seed by seed."""
    lines = [["set", "system", "seeds", "without", "with", "with − without"], ["---", "---", "---", *["---:"] * 3]]
    for where, runs in results.items():
        scores = {(run.system, run.seed): run.result.official_score for run in runs}
        for name in dict.fromkeys(run.system.removesuffix(WITH) for run in runs):
            seeds = sorted(seed for system, seed in scores if system == name and (name + WITH, seed) in scores)
            if not seeds:
                lines.append([where, name, "none has both", "–", "–", "–"])
                continue
            plain = [scores[name, seed] for seed in seeds]
            remixed = [scores[name + WITH, seed] for seed in seeds]
            change = [b - a for a, b in zip(plain, remixed, strict=True)]
            told = ", ".join(map(str, seeds))
            lines.append([where, name, told, spread(plain), spread(remixed), spread(change, sign="+")])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± deviation in percent.

    >>> spread([0.5, 0.6])
    '55.0 ± 7.1'
    """
    mean = f"{100 * math.fsum(values) / len(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the simulated set, runs and table")
    parser.add_argument("--simulated-separator", type=Path, help="fitted on FOLDER/simulated")
    parser.add_argument("--real", type=Path, help="a data set of recordings with labelled test clips")
    parser.add_argument("--real-separator", type=Path, help="fitted on the training part of --real")
    parser.add_argument("--groups", help="CSV:COLUMN naming a group a file of --real")
    parser.add_argument("--weights", type=Path, help="EfficientAT's weights, for system1")
    parser.add_argument("--systems", default="discriminative,system1")
    parser.add_argument("--seeds", default="0,1,2", help="of training; whole numbers with commas between")
    parser.add_argument("--set-seed", type=int, default=104, help="of the simulated set")
    parser.add_argument("--clips", type=int, default=72, help="normal source clips a simulated machine")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a simulated clip")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="for all rows")
    parser.add_argument("--remix", action="append", default=[], metavar="KEY=VALUE", help="for the rows with remix")
    given = parser.parse_args(arguments)
    from offkey.benchmarking import benchmark
    from offkey.cli.output import Bars
    from offkey.data.synthetic import SynthConfig, synthesize

    seeds = [int(seed) for seed in given.seeds.split(",")]
    simulated = given.out / "simulated"
    config = SynthConfig(
        machines=("fan", "valve", "gearbox"), seconds=given.seconds, snr_db=(-8.0, 2.0), train_source=given.clips,
        train_target=max(1, given.clips // 9), test_per_group=20, supplemental=24, seed=given.set_seed, workers=1,
    )  # fmt: skip
    synthesize(simulated, config)
    plan = {"simulated": (simulated, given.simulated_separator, None)}
    if given.real is not None:
        plan[given.real.name] = (given.real, given.real_separator, given.groups)
    failures: list[str] = []
    results: dict[str, list[BenchmarkRun]] = {}
    for where, (source, separator, groups) in plan.items():
        if separator is None:
            failures.append(
                f"{where}: no separator is given; `offkey fit-separator {source} --out SEPARATOR` makes one"
            )
            continue
        results[where] = []
        for row in contestants(given.systems.split(","), separator, given.weights, given.remix):
            try:
                with Bars() as bars:
                    results[where] += benchmark(
                        source, [row], seeds, given.out / f"runs-{where}", overrides=given.settings, groups=groups,
                        workers=1, progress=bars, failures=failures,
                    )  # fmt: skip
            except Exception as error:  # whatever it was: the other rows go on
                failures.append(f"{where}, {row.name}: {error!r}")
            write(given, results, failures)
    print(write(given, results, failures))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def write(given: argparse.Namespace, results: Mapping[str, Sequence[BenchmarkRun]], failures: Sequence[str]) -> str:
    """Write `remix.md` and `remix.json`; the Markdown."""
    settings = [*given.settings, *(f"with remix {text}" for text in given.remix)]
    text = table_of(results) + "\nOfficial score in percent, mean ± deviation over seeds of training"
    text += f"; settings: {', '.join(settings)}.\n" if settings else ".\n"
    record = {
        where: [
            {
                "system": run.system, "seed": run.seed, "official_score": run.result.official_score,
                "interval": run.result.interval, "fit_seconds": run.fit_seconds,
            }
            for run in runs
        ]
        for where, runs in results.items()
    }  # fmt: skip
    write_whole(given.out / "remix.json", json.dumps({"runs": record, "failed": list(failures)}, indent=1) + "\n")
    write_whole(given.out / "remix.md", text)
    return text


if __name__ == "__main__":
    sys.exit(main())
