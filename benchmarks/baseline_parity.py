"""Lay offkey's DCASE baseline beside the organisers' code: same clips, same first weights, same batches.

python benchmarks/baseline_parity.py --reference FOLDER --train CLIP… --test CLIP… [--epochs 3] [--threads 1] [--json]

FOLDER holds a checkout of nttcslab/dcase2023_task2_baseline_ae, which is not in this repository. Clips are mono; those
with "target" in their name are target clips, as the official code has it. Told are the largest differences of features
(dB), of the loss of every epoch (both trained by their own loops), and of both scores of the test clips: with the
official weights in both nets, and with each one's own. Training magnifies the rounding of the features (1e-5 dB) a
thousandfold in a dozen steps; with --our-features both train on the same numbers and end with the same weights. What
the official code writes goes to a temporary folder.
"""

import argparse
import importlib
import json
import logging
import os
import platform
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offkey.audio.io import AudioConfig, read_clip
from offkey.audio.mel import LogMel, MelConfig
from offkey.models.dense_autoencoder import FLOOR_DB, DenseAutoencoder, SelectiveMahalanobis
from offkey.models.error_pooling import pool_errors
from offkey.objectives.reconstruction import Reconstruction
from offkey.training.config import TrainingConfig
from offkey.training.loop import train
from offkey.training.task import TrainingTask
from offkey.training.windows import EveryWindow, lay_out
from offkey.types import Batch, Labels

AUDIO = AudioConfig()
RATE, MEL = AUDIO.rate, MelConfig(floor_db=FLOOR_DB)
SETTINGS = {"n_mels": 128, "n_frames": 5, "n_fft": 1024, "hop_length": 512, "power": 2.0, "fmin": 0.0, "mono": True}


def load_released(folder: Path) -> Any:
    """The official model class and feature extraction; what only draws, locks or downloads is left out."""
    if not (folder / "networks" / "dcase2023t2_ae").is_dir():
        raise SystemExit(f"{folder} holds no networks/dcase2023t2_ae: it is not a checkout of the official baseline")
    idle = {
        "tools.plot_time_frequency": "TimeFrequencyFigData", "tools.plot_anm_score": "AnmScoreFigData",
        "tools.plot_loss_curve": "csv_to_figdata", "tools.rename_eval_wav": "copy_wav", "pandas": "", "fasteners": "",
    }  # fmt: skip
    sys.modules["tools"] = types.ModuleType("tools")
    for name, attribute in idle.items():
        module = types.ModuleType(name)
        if attribute:
            setattr(module, attribute, lambda *_, **__: None)
        sys.modules[name] = module
    sys.path.insert(0, str(folder.resolve()))
    found = (
        importlib.import_module("networks.dcase2023t2_ae.dcase2023t2_ae").DCASE2023T2AE,
        importlib.import_module("datasets.loader_common").file_to_vectors,
    )
    for name in ("pandas", "fasteners"):  # torch looks for the real one
        del sys.modules[name]
    return found


class TheirLoader:
    """Batches as the official loader has them: the vectors at `orders[epoch]`, with the names of their clips."""

    def __init__(self, vectors: np.ndarray, names: Sequence[str], orders: Sequence[Sequence[Sequence[int]]]) -> None:
        self.error_frames, self.names, self.orders = vectors, names, orders
        self.dataset = vectors
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.orders[self.epoch])

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for rows in self.orders[self.epoch]:
            data = torch.from_numpy(self.error_frames[list(rows)])
            yield data, torch.zeros(len(rows)), torch.ones(len(rows), 1), [self.names[row] for row in rows], rows


def official_model(kind: Any, folder: Path, epochs: int, loader: Any, held_out: Any) -> Any:
    """The official trainer around these loaders, without the files and folders that it would look for."""
    model = kind.__new__(kind)
    model.args = argparse.Namespace(epochs=epochs, log_interval=10**9, learning_rate=0.001, score="MSE")
    model.device, model.epoch, model.block_size = torch.device("cpu"), 0, 128
    model.data = argparse.Namespace(height=128, input_dim=640)
    model.model = model.init_model()
    model.optimizer = torch.optim.Adam([{"params": model.model.parameters()}], lr=model.args.learning_rate)
    model.train_loader, model.valid_loader = loader, held_out
    model.column_heading_list = []
    for name in (
        "log_path",
        "model_path",
        "checkpoint_path",
        "mse_score_distr_file_path",
        "mahala_score_distr_file_path",
    ):
        setattr(model, name, folder / name)
    model.batch_losses = []  # of each epoch; the official code fits its threshold to them, and logs their plain mean
    model.fit_anomaly_score_distribution = lambda y_pred, **_: model.batch_losses.append(list(y_pred))
    return model


def official_scores(model: Any, tests: list[tuple[np.ndarray, str]], score: str) -> np.ndarray:
    """What the official evaluation gives the test clips, (clips,)."""
    inverse = sys.modules["networks.dcase2023t2_ae.dcase2023t2_ae"].calc_inv_cov(model=model.model)
    model.args.score = score
    model.model.eval()
    loader = [(torch.from_numpy(x), torch.zeros(len(x)), None, [name], None) for x, name in tests]
    with torch.no_grad():
        return np.array(model.eval(loader, [], [], [], [], [], np.inf, True, *inverse)[0])


def our_batch(path: Path, place: int = 0) -> Batch:
    """One clip with its domain."""
    samples = torch.from_numpy(np.array(read_clip(path, AUDIO)))
    domain = torch.tensor([int("target" in path.name)])
    labels = Labels(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64), domain)
    return Batch(samples[None], torch.tensor([len(samples)]), labels, torch.tensor([place]))


@torch.no_grad()
def our_scores(network: DenseAutoencoder, batches: list[Batch]) -> dict[str, np.ndarray]:
    """Both scores of clips, (clips,) each."""
    mahalanobis = SelectiveMahalanobis(network).eval()
    errors = [pool_errors(network(batch).frame_error, network.error_frames(batch.lengths)).item() for batch in batches]
    return {"MSE": np.array(errors), "MAHALA": np.array([mahalanobis(batch).embedding.item() for batch in batches])}


def their_weights(model: Any) -> dict[str, torch.Tensor]:
    """The official weights under our names, which are the same; what we do not have is left out."""
    return {
        name: x for name, x in model.state_dict().items() if not name.startswith("cov_") and "num_batches" not in name
    }


def apart(ours: Any, theirs: Any) -> float:
    """Largest difference, as a share of theirs."""
    theirs = np.asarray(theirs, dtype=np.float64)
    return float(np.max(np.abs(np.asarray(ours, dtype=np.float64) - theirs) / np.abs(theirs)))


def compare(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Everything that is told."""
    kind, file_to_vectors = load_released(options.reference)
    torch.manual_seed(options.seed)
    network = DenseAutoencoder(LogMel(RATE, MEL))
    extracted = [file_to_vectors(str(path), **SETTINGS) for path in options.train]
    counts = [len(vectors) for vectors in extracted]
    vectors = np.concatenate(extracted)
    names = np.repeat([path.name for path in options.train], counts).tolist()
    clips = lay_out(
        (our_batch(path, n) for n, path in enumerate(options.train)), network.mel, MEL.hop, with_samples=False
    )
    windows = EveryWindow(clips, 5, MEL.n_fft, seed=options.seed, held_out_share=0.1)
    # a window is known by its first frame, an official vector by its row: four frames of every clip begin no window
    numbers = np.sort(np.concatenate([windows.learnt, windows.waiting]))
    rows = {number: row for row, number in enumerate(numbers.tolist())}
    ours = next(iter(windows.load([numbers.tolist()]))).features.transpose(1, 2).flatten(1).numpy()
    orders = [[[rows[n] for n in batch] for batch in windows.epoch(e).order] for e in range(options.epochs + 1)]
    held = [[[rows[n] for n in batch] for batch in windows.held_out().order]]
    told_apart = float(np.abs(ours - vectors).max())
    if options.our_features:
        vectors = ours
    loader = TheirLoader(vectors, names, orders)
    model = official_model(kind, scratch, options.epochs, loader, TheirLoader(vectors, names, held))
    started = their_weights(model.model)
    network.load_state_dict({**network.state_dict(), **{name: x.clone() for name, x in started.items()}})

    began = time.perf_counter()
    their_seconds = 0.0
    for epoch in range(1, options.epochs + 2):
        loader.epoch = epoch - 1
        model.train(epoch)
        if epoch == options.epochs:
            their_seconds = time.perf_counter() - began
    torch.set_grad_enabled(True)
    torch.autograd.set_detect_anomaly(False)
    log = [
        [np.average(part, weights=[len(rows) for rows in order]) for part, order in ((a, orders[e]), (b, held[0]))]
        for e, losses in enumerate(model.batch_losses[: options.epochs])
        for a, b in [(losses[: len(orders[e])], losses[len(orders[e]) :])]
    ]
    log = np.array(log)  # a clip's or window's share, as ours are

    config = TrainingConfig(
        epochs=options.epochs, batch_size=256, weight_decay=0.0, warmup_share=0.0, schedule="constant", clip_norm=0.0,
        precision="float32", threads=options.threads, device="cpu",
    )  # fmt: skip
    task = TrainingTask(network, Reconstruction(network.config.latent, 1))
    began = time.perf_counter()
    history = train(task, windows.epoch, windows.held_out, config, scratch / "ours", seed=options.seed)
    our_seconds = time.perf_counter() - began
    network.fit_residuals(windows.epoch(options.epochs))

    tests = [(file_to_vectors(str(path), **SETTINGS), path.name) for path in options.test]
    batches = [our_batch(path) for path in options.test]
    theirs = {score: official_scores(model, tests, score) for score in ("MSE", "MAHALA")}
    own = our_scores(network, batches)
    own_losses = [record.train["total"] for record in history.epochs]
    twin = DenseAutoencoder(network.mel).eval()
    twin.load_state_dict({**twin.state_dict(), **their_weights(model.model)})
    twin.fit_residuals(windows.epoch(options.epochs))
    same = our_scores(twin, batches)
    data = torch.from_numpy(vectors[:256]).float()
    with torch.no_grad():
        outputs = twin.decoder(twin.encoder(data)), model.model.eval()(data)[0]
    official = np.stack([model.model.cov_source.numpy(), model.model.cov_target.numpy()])
    return {
        "machine": platform.processor() or platform.machine(),
        "clips": [len(options.train), len(options.test)],
        "vectors": len(vectors),
        "features_db": told_apart,
        "losses": {"theirs": log[:, 0].tolist(), "ours": own_losses},
        "losses_apart": apart(own_losses, log[:, 0]),
        "held_out_losses": {
            "theirs": log[:, 1].tolist(),
            "ours": [record.held_out["total"] for record in history.epochs],
        },
        "seconds_of_training": {"theirs": their_seconds, "ours": our_seconds},
        "same_weights": {
            "outputs": float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max()),
            "covariance": float(
                np.abs(twin.covariance.numpy() - official).max(axis=(1, 2)).max()
                / np.abs(official).max(axis=(1, 2)).min()
            ),
            **{score: apart(same[score], theirs[score]) for score in theirs},
        },
        "own_weights": {score: apart(own[score], theirs[score]) for score in theirs},
        "scores": {
            score: {"theirs": theirs[score].tolist(), "same weights": same[score].tolist(), "ours": own[score].tolist()}
            for score in theirs
        },
    }


def main() -> None:
    """Read the options, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="checkout of the official baseline")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="normal clips to learn from")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="clips to score")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--our-features", action="store_true", help="train the official net on our features as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.train, options.test = ([path.resolve() for path in paths] for paths in (options.train, options.test))
    options.reference = options.reference.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # the official code logs into the folder that it runs in
        stdout, sys.stdout = sys.stdout, sys.stderr
        try:
            found = compare(options, Path(scratch))
        finally:
            sys.stdout = stdout
            logging.shutdown()
            os.chdir("/")
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['clips'][0]} training and {found['clips'][1]} test clips, {found['vectors']} vectors")
    print(f"features: {found['features_db']:.2e} dB apart at most")
    print(f"loss an epoch: theirs {_row(found['losses']['theirs'])}, ours {_row(found['losses']['ours'])}")
    held = found["held_out_losses"]
    print(f"held-out loss: theirs {_row(held['theirs'])}, ours {_row(held['ours'])}")
    seconds = found["seconds_of_training"]
    print(f"training: theirs {seconds['theirs']:.1f} s, ours {seconds['ours']:.1f} s")
    for weights in ("same_weights", "own_weights"):
        print(f"{weights.replace('_', ' ')}, largest share apart: {found[weights]}")
    for score, columns in found["scores"].items():
        for name, values in columns.items():
            print(f"{score:6} {name:12} {_row(values)}")


def _row(values: list[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


if __name__ == "__main__":
    main()
