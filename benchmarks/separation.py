"""Train a separator on simulated machines within a time budget, and tell its SI-SNR gain on held-out mixtures.

python benchmarks/separation.py --out FOLDER [--minutes 20] [--size tiny] [--modes supervised,mixtures] [--set K=V]

The truth (clean-machine and noise-only clips) is split: three quarters for supervised training, one quarter for the
held-out mixtures. Mixture-invariant training hears the normal training clips alone. Machines, seed, clips and SNRs of
the held-out mixtures are the same for both. Writes result.json, spectrograms and both models into FOLDER.
"""

import argparse
import dataclasses
import json
import platform
import resource
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offkey.audio.io import AudioConfig, read_clip
from offkey.cli.output import Bars
from offkey.data.source import Source, open_source
from offkey.data.synthetic import SynthConfig, synthesize
from offkey.separation.fitting import fit_separator
from offkey.separation.losses import si_snr
from offkey.separation.mixing import Lesson, by_machine, to_batch
from offkey.separation.recipe import SeparationRecipe
from offkey.separation.separator import Separator
from offkey.separation.training import SeparationTask
from offkey.systems.settings import apply_overrides, validate
from offkey.types import ClipMeta, Content

Sound = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A held-out mixture with its truth."""

    machine: str
    snr_db: float
    foreground: Sound
    background: Sound


def split_truth(source: Source) -> tuple[Source, list[ClipMeta]]:
    """The source without every fourth supplemental clip of each kind and machine, and those."""
    held: list[ClipMeta] = []
    for content in (Content.MACHINE, Content.NOISE):
        for clips in by_machine(source.supplemental(), content).values():
            held += clips[3::4]
    rest = [clip for clip in source.clips if clip not in held]
    return dataclasses.replace(source, clips=rest), held


def held_out_mixtures(clips: Sequence[ClipMeta], limits: tuple[float, float], rate: int, seed: int) -> list[Mixture]:
    """Each held-out clean clip with a held-out noise clip, every second time of its own machine; SNRs evenly spread."""
    rng = np.random.default_rng([seed, 41])
    clean, noise = by_machine(clips, Content.MACHINE), by_machine(clips, Content.NOISE)
    every = [clip for found in noise.values() for clip in found]
    mixtures = []
    for machine, found in clean.items():
        shift = rng.random()
        for number, clip in enumerate(found):
            snr = limits[0] + (limits[1] - limits[0]) * ((shift + number) / len(found) % 1.0)
            pool = noise.get(machine, every) if number % 2 else every
            front = read_clip(clip.path, AudioConfig(rate=rate))
            back = read_clip(pool[int(rng.integers(len(pool)))].path, AudioConfig(rate=rate))
            back = np.resize(back, len(front))
            scale = np.sqrt(np.mean(front**2) / np.mean(back**2)) * 10.0 ** (-snr / 20.0)
            mixtures.append(Mixture(machine, float(snr), front, (back * scale).astype(np.float32)))
    return mixtures


def examine(separator: Separator, mixtures: Sequence[Mixture]) -> dict[str, Any]:
    """Mean SI-SNR gain of the foreground, in all, per machine and per band of SNR; and how quick separation is."""
    rows, seconds, heard = [], 0.0, 0.0
    for mixture in mixtures:
        mixed = mixture.foreground + mixture.background
        start = time.perf_counter()
        front = separator.separate(mixed)[0]
        seconds += time.perf_counter() - start
        heard += len(mixed) / separator.config.rate
        before, after = (
            float(si_snr(torch.from_numpy(wave), torch.from_numpy(mixture.foreground))) for wave in (mixed, front)
        )
        rows.append((mixture.machine, mixture.snr_db, before, after, after - before))
    gains = np.array([row[4] for row in rows])
    snrs = np.array([row[1] for row in rows])
    edges = np.linspace(snrs.min(), snrs.max() + 1e-9, 4)
    bands = [(low, high, gains[(snrs >= low) & (snrs < high)]) for low, high in pairwise(edges)]
    machines = sorted({row[0] for row in rows})
    return {
        "mixtures": len(rows),
        "si_snr_before_db": float(np.mean([row[2] for row in rows])),
        "si_snr_db": float(np.mean([row[3] for row in rows])),
        "gain_db": float(gains.mean()),
        "gain_standard_error_db": float(gains.std(ddof=1) / np.sqrt(len(gains))),
        "gain_db_by_machine": {name: float(np.mean([r[4] for r in rows if r[0] == name])) for name in machines},
        "gain_db_by_snr": [
            {"from_db": float(low), "to_db": float(high), "gain_db": float(values.mean())}
            for low, high, values in bands
            if len(values)
        ],
        "seconds_a_second_of_sound": seconds / heard,
    }


def within_reach(mixtures: Sequence[Mixture], n_fft: int) -> dict[str, float]:
    """Mean SI-SNR gain, dB, of two filters that know the truth, with frames of `n_fft` samples.

    `spectra_db`: one gain a frequency and clip, from the mean power of foreground and background over the clip
    (Wiener's filter): what can be done about two steady noises. `mask_db`: one gain a frequency and frame, which
    knows how the noise falls in each.
    """
    window = torch.hann_window(n_fft).sqrt()

    def analyse(wave: torch.Tensor) -> torch.Tensor:
        return torch.stft(wave, n_fft, n_fft // 4, window=window, return_complex=True)

    gains: dict[str, list[float]] = {"spectra_db": [], "mask_db": []}
    for mixture in mixtures:
        front, back = torch.from_numpy(mixture.foreground), torch.from_numpy(mixture.background)
        powers = [analyse(wave).abs().square() for wave in (front, back)]
        for name, (own, other) in {
            "spectra_db": [power.mean(1, keepdim=True) for power in powers],
            "mask_db": powers,
        }.items():
            filtered = analyse(front + back) * (own / (own + other + 1e-12))
            found = torch.istft(filtered, n_fft, n_fft // 4, window=window, length=len(front))
            gains[name].append(float(si_snr(found, front) - si_snr(front + back, front)))
    return {name: float(np.mean(values)) for name, values in gains.items()}


def seconds_a_step(recipe: SeparationRecipe, steps: int = 3) -> float:
    """How long a step takes on lessons of noise; the first one does not count."""
    task = SeparationTask(Separator(recipe.separator), recipe).train()
    optimiser = torch.optim.AdamW(task.parameters(), 1e-6)
    rng = np.random.default_rng(0)
    samples = round(recipe.mixing.crop_seconds * recipe.separator.rate)
    parts = [rng.standard_normal((2, samples)).astype(np.float32) for _ in range(recipe.training.batch_size)]
    batch = to_batch([(Lesson.KNOWN, part[0], part[1]) for part in parts])
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        task(batch)["total"].backward()
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def draw(separator: Separator, mixture: Mixture, path: Path) -> None:
    """Spectrograms of mixture, true foreground, separated foreground and separated background."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mixed = mixture.foreground + mixture.background
    front, back = separator.separate(mixed)
    panels = {"mixture": mixed, "true foreground": mixture.foreground, "foreground": front, "background": back}
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.6), sharey=True, constrained_layout=True)
    loudest = None
    for axis, (title, wave) in zip(axes, panels.items(), strict=True):
        power = torch.stft(torch.from_numpy(wave), 1024, 256, window=torch.hann_window(1024), return_complex=True).abs()
        level = 20.0 * torch.log10(power + 1e-8)
        loudest = float(level.max()) if loudest is None else loudest
        span = (0, len(wave) / separator.config.rate, 0, separator.config.rate / 2000)
        axis.imshow(level, origin="lower", aspect="auto", extent=span, vmin=loudest - 80, vmax=loudest, cmap="magma")
        axis.set(title=title, xlabel="seconds")
    axes[0].set_ylabel("kHz")
    figure.suptitle(f"{mixture.machine}, {mixture.snr_db:.1f} dB SNR")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Simulate, train, examine, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0, help="budget of each training")
    parser.add_argument("--steps", type=int, help="steps of each training, instead of a budget")
    parser.add_argument("--size", default="tiny", choices=["tiny", "small", "medium"])
    parser.add_argument("--modes", default="supervised,mixtures")
    parser.add_argument("--machines", default="fan,gearbox,bearing,valve,slider,pump")
    parser.add_argument("--clips", type=int, default=100, help="normal training clips a machine")
    parser.add_argument("--supplemental", type=int, default=100, help="clean and noise clips a machine")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a simulated clip")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tree = SeparationRecipe.of(given.size).model_dump(mode="json") | {"seed": given.seed}
    recipe = validate(SeparationRecipe, apply_overrides(tree, given.settings), "--set")
    simulated = SynthConfig(
        machines=tuple(given.machines.split(",")),
        seconds=given.seconds,
        rate=recipe.separator.rate,
        train_source=given.clips - given.clips // 10,
        train_target=given.clips // 10,
        test_per_group=0,
        supplemental=given.supplemental,
        seed=given.seed,
        workers=given.threads,
    )
    synthesize(given.out / "set", simulated)
    source, held = split_truth(open_source(given.out / "set"))
    limits = recipe.mixing.min_snr_db, recipe.mixing.max_snr_db
    mixtures = held_out_mixtures(held, limits, recipe.separator.rate, given.seed)
    step = seconds_a_step(recipe)
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}",
        "size": given.size,
        "budget_minutes": None if given.steps else given.minutes,
        "snr_range_db": limits,
        "seconds_a_step": step,
        "within_reach": {size: within_reach(mixtures, size) for size in (1024, 2048, 4096)},
    }
    for mode in given.modes.split(","):
        # lessons with a teacher take about half as long again; held-out mixtures are judged once an epoch
        taught = mode == "mixtures" and recipe.prior.sum_share > 0
        share = 1.0 + (0.5 * (1.0 - recipe.prior.alone_share) if taught else 0.0)
        judging = 0.4 * recipe.mixing.held_out / recipe.training.batch_size
        epochs = max(2, int(given.minutes * 60 / (step * (recipe.mixing.batches * share + judging))))
        if given.steps:
            epochs = max(2, round(given.steps / recipe.mixing.batches))
        planned = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": epochs})})
        start, busy = time.perf_counter(), time.process_time()
        with Bars() as bars:
            fitted = fit_separator(
                source, given.out / f"{mode}", planned, mode=mode, workers=1, overwrite=True, progress=bars
            )
        spent, busy = time.perf_counter() - start, time.process_time() - busy
        told = examine(fitted.separator, mixtures)
        result[mode] = told | {
            "minutes": spent / 60,
            "processor_minutes": busy / 60,
            "steps": epochs * recipe.mixing.batches,
            "parameters": fitted.facts["parameters"],
        }
        for name in simulated.machines:
            own = [mixture for mixture in mixtures if mixture.machine == name]
            middle = min(own, key=lambda mixture: abs(mixture.snr_db))
            draw(fitted.separator, middle, given.out / f"{mode}_{name}.png")
    result["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    text = json.dumps(result, indent=1)
    (given.out / "result.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
