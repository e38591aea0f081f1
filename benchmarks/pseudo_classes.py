"""Are pseudo-classes the settings that a data set does not tell? Adjusted Rand index against the truth, on simulations.

    python benchmarks/pseudo_classes.py --folder /tmp/pseudo

Machines are simulated whose settings (speed, load …) are known to this script alone. Normal clips of each domain are
grouped by `offkey.systems.clusters`, and by other ways to choose the number of groups on the same tree:

    offkey       what is built in: the fewest groups with 98 % of what bic gains, or silhouette where bic finds one
    silhouette   the highest mean silhouette of two groups or more: what offkey 0.1 did
    gap          the gap statistic (Tibshirani, Walther and Hastie 2001), with its rule of one standard error
    bic          the lowest BIC of round Gaussians of one width, as in X-means (Pelleg and Moore 2000)
    told         the true number: how well the tree could do

An index of 1 is the true grouping, 0 what chance gives. `one group` is a loss as well: then there is no class to learn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score, silhouette_score

from offkey.audio.io import AudioConfig
from offkey.audio.mel import LogMel, MelConfig
from offkey.data.loader import ClipReader, load_batches
from offkey.data.source import open_source
from offkey.data.synthetic import SynthConfig, synthesize
from offkey.data.synthetic.config import MACHINES
from offkey.models.statistics import LogMelStatistics
from offkey.systems.clusters import MOST_CLUSTERS, SMALLEST_CLUSTER, bic, cluster, components
from offkey.types import ClipMeta, Domain

Points = NDArray[np.float64]


def scatter(points: Points, groups: NDArray[np.int64]) -> float:
    """Sum of squared distances to the means of the groups."""
    members = (points[groups == number] for number in np.unique(groups))
    return float(sum(np.square(own - own.mean(axis=0)).sum() for own in members))


def cuts(points: Points) -> dict[int, NDArray[np.int64]]:
    """The groupings that offkey considers, by their number of groups, and that into one."""
    tree = linkage(points, "ward")
    found = {number: fcluster(tree, number, "maxclust") - 1 for number in range(1, MOST_CLUSTERS + 1)}
    return {n: groups for n, groups in found.items() if n == 1 or np.bincount(groups).min() >= SMALLEST_CLUSTER}


def by_gap(points: Points, seed: int, draws: int = 10) -> NDArray[np.int64]:
    found = cuts(points)
    low, high = points.min(axis=0), points.max(axis=0)
    clouds = [np.random.default_rng([seed, n]).uniform(low, high, points.shape) for n in range(draws)]
    trees = [linkage(cloud, "ward") for cloud in clouds]
    gaps, errors = {}, {}
    for number, groups in found.items():
        null = [math.log(scatter(c, fcluster(t, number, "maxclust") - 1)) for c, t in zip(clouds, trees, strict=True)]
        gaps[number] = statistics.fmean(null) - math.log(max(scatter(points, groups), 1e-12))
        errors[number] = statistics.pstdev(null) * math.sqrt(1 + 1 / draws)
    numbers = sorted(found)
    for number, following in itertools.pairwise(numbers):
        if gaps[number] >= gaps[following] - errors[following]:
            return found[number]
    return found[numbers[-1]]


def by_silhouette(points: Points) -> NDArray[np.int64]:
    several = [groups for number, groups in cuts(points).items() if number > 1]
    alone = np.zeros(len(points), dtype=np.int64)
    return max(several, key=lambda groups: float(silhouette_score(points, groups)), default=alone)


def by_bic(points: Points) -> NDArray[np.int64]:
    return min(cuts(points).values(), key=lambda groups: bic(points, groups))


def statistics_of(clips: Sequence[ClipMeta]) -> Points:
    reader, module = ClipReader(AudioConfig(level_dbfs=-30.0)), LogMelStatistics(LogMel(16000, MelConfig()), std=True)
    order = [[place] for place in range(len(clips))]
    batches = load_batches(clips, order, reader, None, 0)
    return np.stack([module(batch).embedding[0].double().numpy() for batch in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the simulated sets go")
    parser.add_argument("--machines", default=",".join(MACHINES))
    parser.add_argument("--clips", type=int, default=60, help="normal clips of the source domain, a machine")
    parser.add_argument("--target", type=int, default=10, help="normal clips of the target domain, a machine")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip")
    parser.add_argument("--snr", type=float, nargs="+", default=[0.0, 12.0], help="machine against surroundings, dB")
    parser.add_argument("--seeds", type=int, default=1, help="simulations")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, Callable[[Points, int, int], NDArray[np.int64]]] = {
        "offkey": lambda features, _, seed: cluster(features, 0, seed),
        "silhouette": lambda features, _, seed: by_silhouette(components(features, seed)),
        "gap": lambda features, _, seed: by_gap(components(features, seed), seed),
        "bic": lambda features, _, seed: by_bic(components(features, seed)),
        "told": lambda features, number, seed: cluster(features, number, seed),
    }
    indices: dict[tuple[str, str], list[float]] = {}
    if not given.json:
        print(f"{'machine':10s} {'dB':>4s} {'domain':7s} {'true':>5s}", *(f"{way:>18s}" for way in ways))
    for seed in range(given.seeds):
        for snr in given.snr:
            root = given.folder / f"{snr:g}dB-{seed}"
            config = SynthConfig(
                machines=tuple(given.machines.split(",")), seconds=given.seconds, train_source=given.clips,
                train_target=given.target, test_per_group=0, supplemental=0, hidden_attributes=(), snr_db=(snr, snr),
                seed=seed, workers=1,
            )  # fmt: skip
            synthesize(root, config)
            train = open_source(root).train()
            for machine in config.machines:
                for domain in (Domain.SOURCE, Domain.TARGET):
                    clips = [clip for clip in train if clip.machine == machine and clip.domain is domain]
                    truth = [str(clip.attributes) for clip in clips]
                    features = statistics_of(clips)
                    found = {way: choose(features, len(set(truth)), seed) for way, choose in ways.items()}
                    row = {way: adjusted_rand_score(truth, groups) for way, groups in found.items()}
                    for way, value in row.items():
                        indices.setdefault((domain.value, way), []).append(value)
                    numbers = {way: len(set(groups.tolist())) for way, groups in found.items()}
                    if given.json:
                        told = {"machine": machine, "snr_db": snr, "domain": domain.value, "seed": seed}
                        print(json.dumps({**told, "true": len(set(truth)), "groups": numbers, "index": row}))
                        continue
                    cells = [f"{row[way]:12.2f} ({numbers[way]:2d})" for way in ways]
                    print(
                        f"{machine:10s} {snr:4.0f} {domain.value:7s} {len(set(truth)):5d}",
                        *(f"{c:>18s}" for c in cells),
                    )
    if not given.json:
        for domain in ("source", "target"):
            means = [statistics.fmean(indices[domain, way]) for way in ways]
            print(f"{'mean':10s} {'':4s} {domain:7s} {'':5s}", *(f"{mean:18.2f}" for mean in means))


if __name__ == "__main__":
    main()
