"""Shapes that annotations promise are checked while the tests run (jaxtyping + beartype)."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # xdist runs one worker a core

from jaxtyping import install_import_hook

install_import_hook("offkey", "beartype.beartype")

import pytest  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

threadpool_limits(1)  # a plugin has loaded numpy before the line above could tell it

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings that may lie beside the project; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"real recordings are not here: {SHARED} does not exist")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or written to the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFKEY_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OFFKEY_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
        yield


@pytest.fixture(autouse=True)
def own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another test converted is not at hand: `auto` would choose by it."""
    monkeypatch.setenv("OFFKEY_WEIGHTS", str(tmp_path.parent / f"{tmp_path.name}-weights"))


QUICK = ("training.epochs=1", "training.batch_size=8", "model.width=0.125")
QUICK_AUTOENCODER = ("training.epochs=1", "training.batch_size=64", "model.width=16")
"""Overrides with which a network learns in a second or two; enough to see that everything fits together."""


class Fitted(NamedTuple):
    """A detector fitted on `small_set`, as it came from `fit` and as it lies on disk."""

    detector: Any
    folder: Path


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated machines in DCASE layout, 22 + 8 clips of two seconds each; the valve hides its settings."""
    from offkey.data.synthetic import SynthConfig, synthesize

    root = tmp_path_factory.mktemp("small") / "set"
    config = SynthConfig(
        machines=("fan", "valve"), seconds=2.0, train_source=20, train_target=2, test_per_group=2, supplemental=2,
        hidden_attributes=("valve",), seed=3,
    )  # fmt: skip
    synthesize(root, config)
    return root


@pytest.fixture(scope="session")
def small_beats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official file of a BEATs network with random weights, small enough to learn in seconds."""
    import torch

    from offkey.encoders.beats import Beats
    from offkey.encoders.beats_file import official_names

    architecture = {
        "encoder_layers": 4, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4,
        "embed_dim": 24, "conv_pos": 8, "conv_pos_groups": 4,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Beats.build(architecture)
    path = tmp_path_factory.mktemp("beats") / "small.pt"
    weights = encoder.state_dict()
    torch.save(
        {"cfg": encoder.architecture, "model": dict(zip(official_names(weights), weights.values(), strict=True))}, path
    )
    return path


@pytest.fixture(scope="session")
def quick(small_beats: Path) -> tuple[str, ...]:
    """Overrides of `fitted` for systems that tell classes apart."""
    return (*QUICK, f"encoder.weights={small_beats}")


@pytest.fixture(scope="session")
def quick_of(small_beats: Path) -> Callable[[str], tuple[str, ...]]:
    """Overrides of `fitted` for the system of this name."""
    from offkey.systems.config import load_preset

    def overrides(system: str) -> tuple[str, ...]:
        preset = load_preset(system)
        if preset.model.name == "retrieval":  # nothing is trained
            return (f"encoder.weights={small_beats}",)
        rebuilds = preset.kind == "reconstructive"
        return (*(QUICK_AUTOENCODER if rebuilds else QUICK), f"encoder.weights={small_beats}")

    return overrides


@pytest.fixture(scope="session")
def fitted(
    small_set: Path, quick_of: Callable[[str], tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Fitted]:
    """Preset name -> that system fitted on `small_set`, once a session. Nobody writes into the folder."""
    from offkey.fitting import fit

    known: dict[str, Fitted] = {}

    def fit_once(system: str) -> Fitted:
        if system not in known:
            folder = tmp_path_factory.mktemp("fitted") / system
            overrides = quick_of(system)
            known[system] = Fitted(fit(small_set, system, out=folder, overrides=overrides, workers=0), folder)
        return known[system]

    return fit_once


@pytest.fixture
def copied(fitted: Callable[[str], Fitted], tmp_path: Path) -> Callable[[str], Path]:
    """Preset name -> a copy of that detector's folder, to be harmed or written into."""

    def copy(system: str) -> Path:
        return Path(shutil.copytree(fitted(system).folder, tmp_path / system))

    return copy


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs of the benchmark happen in this process (a process each takes seconds), and are noted."""
    from offkey import benchmarking
    from offkey.cli.app import run

    noted: list[list[str]] = []

    def here(arguments: list[str]) -> tuple[float, float]:
        noted.append(arguments)
        code = run(arguments)
        if code not in (0, 1):
            raise benchmarking.BenchmarkError(f"`offkey {arguments[0]}` ended with {code}")
        return 0.25, 100.0

    monkeypatch.setattr(benchmarking, "_command", here)
    return noted


@pytest.fixture
def separators(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders into which a separator was fitted: a low-pass filter, in no time."""
    from tests.separation.stand_in import LowPass

    from offkey.manifest import MANIFEST

    asked: list[Path] = []

    def fit_separator(source: Any, out: Path, recipe: Any, **keywords: Any) -> None:
        asked.append(out)
        LowPass(1000.0).save(out)
        (out / MANIFEST).write_text("{}")
        told = {"mode": "supervised", "reasons": ["they were there"], "history": {"epochs": [{"seconds": 1000.0}] * 2}}
        exam = {"before": -3.0, "after": 3.5, "mixtures": 48}
        (out / "training.json").write_text(json.dumps(told | {"held_out": exam}))

    monkeypatch.setitem(sys.modules, "offkey.separation.separator", SimpleNamespace(Separator=LowPass))
    monkeypatch.setattr("offkey.separation.fitting.fit_separator", fit_separator)
    return asked
