"""`offkey demo`: simulated machines -> train -> score -> table -> report, without a network."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from offkey.cli.output import Bars, print_table

MACHINES = ("fan", "gearbox", "bearing", "valve", "slider")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for data, detectors and the report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Everything random follows from it.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Threads that decode.", min=0)] = 2,
) -> int:
    """Show the whole job in a few minutes: simulate five machines, learn their normal sound, find the faulty clips."""
    from offkey.assessment import FOLDER, assess
    from offkey.data.source import open_source
    from offkey.data.synthetic import SynthConfig, synthesize
    from offkey.detector import DetectorError
    from offkey.fitting import fit
    from offkey.report.assemble import write_run_report

    begun = time.monotonic()
    root = out / "data"
    config = SynthConfig(
        machines=MACHINES,
        seconds=6.0,
        train_source=60,
        train_target=6,
        test_per_group=15,
        supplemental=12,
        seed=seed,
    )
    with Bars() as bars:
        count = len(MACHINES) * (60 + 6 + 4 * 15 + 12)
        bars.start("simulating machines", count)
        synthesize(root, config, lambda done, _: bars.step(done))
        source = open_source(root)
        results = {}
        for system in ("loudness", "auto"):
            learn = partial(
                fit, source, system, out=out / system, seed=seed, workers=workers, progress=bars, overrides=DEMO
            )
            try:
                detector = learn()
            except DetectorError:  # of an earlier demo, by another version or seed: nobody's work is lost
                detector = learn(overwrite=True)
            bars.start(f"scoring with {system}", len(source.test()))
            assessment = assess(detector, source, workers=workers, progress=lambda done, _: bars.step(done))
            assessment.save(out / system / FOLDER)
            results[system] = assessment.result
    loud, ours = results["loudness"], results["auto"]
    if loud is None or ours is None:
        raise RuntimeError("simulated test clips have labels")
    rows = [
        [
            name,
            f"{100 * loud.machines[name].values['auc_source']:.1f}",
            f"{100 * loud.machines[name].values['auc_target']:.1f}",
            *(f"{100 * ours.machines[name].values[key]:.1f}" for key in ours.metrics),
        ]
        for name in ours.machines
    ]
    print_table(
        ["machine (%)", "loudness AUC source", "AUC target", "offkey AUC source", "AUC target", "pAUC"],
        rows,
        "simulated machines: 50 is guessing, 100 is perfect",
    )
    for title, result in (("loudness alone", loud), ("offkey", ours)):
        low, high = result.interval or (float("nan"), float("nan"))
        typer.echo(f"official score, {title}: {100 * result.official_score:.1f} % [{100 * low:.1f}–{100 * high:.1f}]")
    page = write_run_report(out / "auto", out / "report.html", title="offkey demo: five simulated machines")
    typer.echo(f"{time.monotonic() - begun:.0f} s; open the report in a browser: {page}")
    return 0


# fewer and shorter lessons than the preset's, and no separator: the whole demo is to take minutes on a laptop;
# no encoder either, so that it is the same whatever weights are at hand
DEMO = ("training.epochs=6", "model.width=0.25", "auto.retrieval=false", "separation.fit=never")
