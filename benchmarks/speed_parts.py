"""The parts of `speed.py`: what is timed, and beside whom. Each runs in a process of its own."""

import importlib.util
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATE, SECONDS = 16000, 10


def noise(seconds: float = SECONDS, rate: int = RATE, seed: int = 0) -> Any:
    """(T,) float32 at about −20 dBFS."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def wav_files(folder: Path, count: int, seconds: float = SECONDS) -> list[Path]:
    """Files of 16-bit noise at 16 kHz."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.wav" for number in range(count)]
    for number, path in enumerate(paths):
        soundfile.write(path, noise(seconds, seed=number), RATE, subtype="PCM_16")
    return paths


def products() -> tuple[Callable[[], Any], float]:
    """The measured ceiling of float32: five products of 1024 × 1024, and how many operations that is."""
    import torch

    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    out = torch.empty(1024, 1024)
    return lambda: [torch.mm(a, b, out=out) for _ in range(5)], 5 * 2.0 * 1024**3


def operations(run: Callable[[], Any]) -> float:
    """Floating-point operations of the products and convolutions in one call, two for each multiplication and sum.

    What is counted is the network as it is written down, not how it is computed: `run` goes the way of training, where
    a convolution is a plain sum, and both products of attention count.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def both_products(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return sdpa_flop_count(query, key, value)

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # what puts weights together as they are asked for fails under the counter in inference mode
    counter = FlopCounterMode(display=False, custom_mapping={attention: both_products})
    with torch.inference_mode(False), torch.enable_grad(), counter:
        run()
    return float(counter.get_total_flops())


def share_of_peak(watch: Any, name: str, run: Callable[[], Any], audio: float, repeats: int = 0) -> None:
    """A row in which the peer is the time that its products alone would take at the measured peak.

    Products and convolutions count, all else (norms, activations, the filter bank) is time without operations.
    """
    needed = operations(run)
    ceiling, theirs = products()
    cpu = watch.turns(name, {"ours": run, "peak": ceiling}, audio, repeats)
    shares = [needed / own / (theirs / peak) for own, peak in zip(cpu["ours"], cpu["peak"], strict=True)]
    best = needed / min(cpu["ours"]) / (theirs / min(cpu["peak"]))  # of the quietest moments of both
    row = watch.rows[name]
    row |= {"against": "float32 matrix peak", "ratio": best, "low": min(*shares, best), "high": max(*shares, best)}
    row |= {"gflop": needed / 1e9, "peak_gflops": theirs / min(cpu["peak"]) / 1e9}


def start(watch: Any, told: dict[str, Any]) -> None:
    """Cold processes."""

    def python(*arguments: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True)

    watch.turns("import offkey", {"ours": python("-c", "import offkey"), "bare Python": python("-c", "")})
    shown = {"ours": python("-m", "offkey", "--help"), "import typer": python("-c", "import typer.main, rich.table")}
    watch.turns("offkey --help", shown)
    if not told["quick"]:
        loaded = {"ours": python("-c", "import offkey.detector"), "import torch": python("-c", "import torch")}
        watch.turns("import offkey.detector", loaded, repeats=3)


def decode(watch: Any, _: dict[str, Any]) -> None:
    """Files to samples at the model's rate."""
    import soundfile

    from offkey.audio.io import AudioConfig, read_clip

    config, folder = AudioConfig(), Path.cwd()
    for kind, rate in (("wav", 16000), ("flac", 16000), ("wav", 48000)):
        path = folder / f"{rate}.{kind}"
        soundfile.write(path, noise(rate=rate), rate, subtype="PCM_16")

    def ten(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [run() for _ in range(10)]

    for kind in ("wav", "flac"):
        path = folder / f"16000.{kind}"
        ways = {
            "ours": ten(lambda path=path: read_clip(path, config)),
            "soundfile.read alone": ten(lambda path=path: soundfile.read(path, dtype="float32")),
        }
        watch.turns(f"16 kHz {kind.upper()}", ways, 10 * SECONDS)
    path = folder / "48000.wav"
    ours = ten(lambda: read_clip(path, config))
    watch.turns("48 kHz WAV", {"ours": ours, "soundfile.read + scipy.signal.resample_poly": ten(_scipy(path))}, 100)
    try:
        import librosa  # noqa: F401
    except ImportError:
        watch.skip("librosa.load, librosa is not installed")
        return
    watch.turns("48 kHz WAV, HQ", {"ours": ours, "librosa.load (soxr HQ)": ten(_librosa(path))}, 100)


def _scipy(path: Path) -> Callable[[], Any]:
    import soundfile
    from scipy.signal import resample_poly

    return lambda: resample_poly(soundfile.read(path, dtype="float32")[0], 1, 3)


def _librosa(path: Path) -> Callable[[], Any]:
    import librosa

    return lambda: librosa.load(path, sr=RATE, res_type="soxr_hq")


def features(watch: Any, told: dict[str, Any]) -> None:
    """Log-mel and the filter bank of BEATs, 8 clips of 10 s."""
    import torch

    from offkey.audio.fbank import kaldi_fbank
    from offkey.audio.mel import LogMel

    clips = torch.from_numpy(np.stack([noise(seed=number) for number in range(8)]))
    mel = LogMel(RATE)
    try:
        import librosa
    except ImportError:
        watch.turns("log-mel", {"ours": lambda: mel(clips)}, 80)
        watch.skip("librosa's log-mel, librosa is not installed")
    else:

        def theirs() -> None:
            power = librosa.feature.melspectrogram(
                y=clips.numpy(), sr=RATE, n_fft=1024, hop_length=512, n_mels=128, pad_mode="constant"
            )
            librosa.power_to_db(power)

        watch.turns("log-mel", {"ours": lambda: mel(clips), "librosa": theirs}, 80)
    scaled = clips * 2**15
    if told["kaldi"] is None:
        watch.turns("filter bank", {"ours": lambda: kaldi_fbank(scaled)}, 80)
        watch.skip("torchaudio's filter bank, --kaldi was not given")
        return
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")  # named there, and not used by the filter bank
    spec = importlib.util.spec_from_file_location("kaldi", told["kaldi"])
    assert spec is not None
    assert spec.loader is not None
    kaldi = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kaldi)

    def banks() -> None:
        for clip in scaled:
            kaldi.fbank(clip[None], num_mel_bins=128, sample_frequency=RATE, frame_length=25, frame_shift=10)

    watch.turns("filter bank", {"ours": lambda: kaldi_fbank(scaled), "torchaudio": banks}, 80)


def encode(watch: Any, told: dict[str, Any]) -> None:
    """BEATs at full size and EfficientAT mn04, random weights."""
    import torch

    from offkey.encoders import build_encoder
    from offkey.encoders.checkpoint import Checkpoint

    count = 2 if told["quick"] else 8
    clips = torch.from_numpy(np.stack([noise(seed=number) for number in range(count)]))
    small = build_encoder("efficientat", {"width_mult": 0.4}).eval()
    large = build_encoder("beats", {}).eval()
    features = torch.randn(count * 496, 768)
    with torch.inference_mode():
        share_of_peak(watch, f"mn04, {count} clips", lambda: small.layers(clips, None, [small.depth]), 10 * count)
        repeats = 2 if told["quick"] else 5
        share_of_peak(watch, f"BEATs, {count} clips", lambda: large.patches(clips), 10 * count, repeats)
        block = large.blocks[0]
        wide = [block.attention.q_proj, block.attention.k_proj, block.attention.v_proj, block.attention.out_proj]
        share_of_peak(
            watch, "linear layers of a block alone",
            lambda: [layer(features) for layer in wide] and block.fc2(block.fc1(features)), 0,
        )  # fmt: skip
    if told["beats"] is None or told["kaldi"] is None:
        watch.skip("the released BEATs, --beats and --kaldi were not given")
        return
    from beats_speed import load_released, random_released

    model, cfg = random_released(load_released(told["beats"], told["kaldi"]))
    ours = type(large).from_checkpoint(Checkpoint(Path("random.pt"), cfg, model.state_dict()))
    with torch.inference_mode():
        ways = {"ours": lambda: ours.patches(clips), "released code": lambda: model.extract_features(clips)}
        watch.turns(f"BEATs, {count} clips, beside its authors'", ways, 10 * count, repeats)


def train(watch: Any, told: dict[str, Any]) -> None:
    """A step of every system that is trained, mn04 in BEATs' place, 4 clips; the peer is its own pass forward.

    A step costs at best about three passes: forward, gradients of what goes in, gradients of weights.
    """
    import torch

    from offkey.encoders import build_encoder
    from offkey.objectives.config import MultiTaskConfig
    from offkey.objectives.multitask import MultiTask
    from offkey.objectives.reconstruction import Reconstruction
    from offkey.systems.config import load_preset
    from offkey.systems.network import build_network
    from offkey.training.optimiser import make_optimiser
    from offkey.training.task import TrainingTask
    from offkey.training.unfreeze import unfreeze
    from offkey.types import Batch, Labels

    count = 4
    numbers = torch.arange(count)
    labels = Labels(numbers % 2, (numbers % 2)[:, None], numbers % 2)
    clips = torch.from_numpy(np.stack([noise(seed=number) for number in range(count)]))
    batch = Batch(clips, torch.full((count,), clips.shape[1]), labels, numbers)
    systems = ["discriminative", "baseline"] if told["quick"] else [
        "discriminative", "baseline", "system1", "system2", "system3", "system4"
    ]  # fmt: skip
    for system in systems:
        torch.manual_seed(0)
        config = load_preset(system)
        encoder = None
        if config.encoder.name != "none":
            overrides = ["encoder.name=efficientat", "encoder.checkpointing=false", "encoder.cache=false"]
            config = load_preset(system, overrides)
            encoder = build_encoder("efficientat", {"width_mult": 0.4}).requires_grad_(False)
            unfreeze(encoder, config.encoder)
        network = build_network(config, encoder)
        if isinstance(config.objective, MultiTaskConfig):
            objective: Any = MultiTask(config.model.embedding, 2, [2], config.objective)
        else:
            latent = getattr(config.model, "latent", None) or config.model.bottleneck
            objective = Reconstruction(latent, 1, config.objective)
        task = TrainingTask(network, objective).train()
        optimiser = make_optimiser(task, config.training)

        def step(task: Any = task, optimiser: Any = optimiser) -> None:
            optimiser.zero_grad()
            task(batch)["total"].backward()
            optimiser.step()

        def forward(task: Any = task) -> None:
            with torch.no_grad():
                task(batch)

        watch.turns(system, {"ours": step, "its forward pass": forward}, 10 * count, 3)


def scorers(watch: Any, told: dict[str, Any]) -> None:
    """Fit, and score of 16 clips, 64 dimensions, as references grow; each stops before 20 s a fit, or without memory.

    Peers do the same work, as far as they can: a covariance that is shrunk, EM from as many starts with the same
    limits. Ours also put clips into one order, copy them, and, for a density, measure distances from differences.
    """
    from sklearn.covariance import LedoitWolf
    from sklearn.mixture import GaussianMixture
    from sklearn.neighbors import NearestNeighbors

    from offkey.scoring import (
        DensityOptions,
        LevelOptions,
        MahalanobisOptions,
        MixtureOptions,
        NeighboursOptions,
        Query,
        Reference,
        build_scorer,
    )

    wide = 64
    rng = np.random.default_rng(0)
    asked = rng.standard_normal((16, wide))

    class Near:
        """What a density needs as well: each reference's distance to its nearest other."""

        def __init__(self, others: bool) -> None:
            self.model, self.others = NearestNeighbors(n_neighbors=1, algorithm="brute"), others

        def fit(self, points: Any) -> None:
            self.model.fit(points)
            if self.others:
                self.model.kneighbors(n_neighbors=1)

        def kneighbors(self, points: Any) -> Any:
            return self.model.kneighbors(points)

    def mixture() -> Any:
        options = MixtureOptions()
        return GaussianMixture(
            options.components, n_init=options.restarts, max_iter=options.iterations, tol=1e-8, reg_covar=1e-3
        )

    # options, peer, how it is made, how it is asked, and the power of the number of references that a fit grows with
    peers: dict[str, tuple[Any, str, Callable[[], Any] | None, str, int]] = {
        "neighbours": (NeighboursOptions(metric="euclidean"), "NearestNeighbors", lambda: Near(False), "kneighbors", 1),
        "density": (DensityOptions(metric="euclidean"), "NearestNeighbors", lambda: Near(True), "kneighbors", 2),
        "mahalanobis": (MahalanobisOptions(), "LedoitWolf", LedoitWolf, "mahalanobis", 1),
        "gmm": (MixtureOptions(), "GaussianMixture", mixture, "score_samples", 1),
        "level": (LevelOptions(), "", None, "", 1),
    }
    sizes = [10**power for power in range(2, 5 if told["quick"] else 7)]
    for name, (options, peer, build, ask, power) in peers.items():
        before = 0.0
        for size in sizes:
            if before * 10**power > 20.0:
                watch.skip(f"{name} with {size} references and more (a fit would take over 20 s)")
                break
            if 12 * 8 * size * wide > memory():  # what both ways and their copies of the points take
                watch.skip(f"{name} with {size} references (they and their copies do not fit into memory)")
                break
            points = rng.standard_normal((size, wide))
            reference, query = Reference(points), Query(asked)
            scorer = build_scorer(options)
            ways: dict[str, Callable[[], Any]] = {"ours": lambda s=scorer, r=reference: s.fit(r)}
            model = build() if build is not None else None
            if model is not None:
                ways[peer] = lambda m=model, p=points: m.fit(p)
            once = size >= 10_000
            watch.turns(f"{name}, fit of {size}", ways, repeats=1 if once else 0, warm=not once)
            ways = {"ours": lambda s=scorer, q=query: s.score(q)}
            if model is not None:
                ways[peer] = lambda m=model, a=ask: getattr(m, a)(asked)
            watch.turns(f"{name}, score beside {size}", ways, repeats=2 if once else 0)
            before = watch.rows[f"{name}, fit of {size}"]["cpu"]


def memory() -> float:
    """Bytes that are free, as far as the system tells; else 4 GiB."""
    facts = Path("/proc/meminfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * float(line.split()[1])
    return 4.0 * 2**30


def separate(watch: Any, told: dict[str, Any]) -> None:
    """Target-against-noise separation of 4 s with the preset's network, random weights."""
    import torch

    from offkey.separation.separator import Separator

    seconds = 1 if told["quick"] else 4
    separator = Separator().eval()
    clip = torch.from_numpy(noise(seconds))[None]
    with torch.inference_mode():
        share_of_peak(watch, f"a clip of {seconds} s", lambda: separator(clip), seconds, 3)


def detector(system: str, clips: list[Path], overrides: list[str], random_encoder: bool) -> Any:
    """A detector with untrained weights, which costs as much as a trained one."""
    import torch

    from offkey.audio.mel import LogMel
    from offkey.data.loader import ClipReader, load_by_length
    from offkey.detector import Detector
    from offkey.encoders import build_encoder
    from offkey.explaining.profile import ProfileBuilder
    from offkey.references import fit_machine
    from offkey.systems.config import load_preset
    from offkey.systems.network import build_network, pretrained_encoder
    from offkey.systems.retrieval import settle_parts
    from offkey.types import ClipMeta, Domain
    from offkey.views import Views

    torch.manual_seed(0)
    config = load_preset(system, overrides)
    encoder = None
    if config.encoder.name != "none":
        small = {"width_mult": 0.4} if config.encoder.name == "efficientat" else {}
        encoder = build_encoder(config.encoder.name, small) if random_encoder else pretrained_encoder(config)
        assert encoder is not None
        encoder.requires_grad_(False).eval()
    network = build_network(config, encoder).eval()
    config = settle_parts(config, network)
    views = Views(config, {"": network})
    metas = [
        ClipMeta(path, "machine", domain=Domain.TARGET if number == 0 else Domain.SOURCE)
        for number, path in enumerate(clips)
    ]
    builder = ProfileBuilder(LogMel(config.audio.rate, config.mel))
    found: dict[int, dict[str, Any]] = {}
    for batch in load_by_length(metas, ClipReader(config.audio)):
        names = ["machine"] * len(batch.lengths)
        seen = views(batch, names)
        builder.add(names, batch, seen.errors)
        for row, place in enumerate(batch.place.tolist()):
            found[place] = {view: array[row] for view, array in seen.embeddings.items()}
    embeddings = {view: np.stack([found[place][view] for place in range(len(metas))]) for view in views.names}
    known = fit_machine("machine", metas, embeddings, builder.profiles()["machine"], config, None)
    return Detector(config, {"machine": known}, {"": network})


def score(watch: Any, told: dict[str, Any]) -> None:
    """`score_files`, from 16 kHz WAV on disk to verdicts; the peer is the model alone on the same clips in memory."""
    from offkey.data.loader import ClipReader, load_by_length
    from offkey.types import ClipMeta

    normal = wav_files(Path("normal"), 12)
    systems = {"discriminative": ("discriminative", [], 32, 3)}
    cached = "encoder.cache=false"
    systems["retrieval, mn04"] = ("retrieval", ["encoder.name=efficientat", cached], 32, 3)
    if not told["quick"]:
        systems["retrieval, BEATs"] = ("retrieval", [cached], 8, 2)
    files = wav_files(Path("new"), 32)
    for name, (system, overrides, count, repeats) in systems.items():
        made = detector(system, normal, overrides, random_encoder=True)
        mine = files[:count]
        metas = [ClipMeta(path, "machine") for path in mine]
        batches = list(load_by_length(metas, ClipReader(made.config.audio)))

        def model(made: Any = made, batches: Any = batches) -> None:
            for batch in batches:
                made.represent(batch, ["machine"] * len(batch.lengths))

        ways = {"ours": lambda made=made, mine=mine: list(made.score_files(mine)), "the model alone": model}
        watch.turns(name, ways, SECONDS * count, repeats)
        if system == "discriminative":
            folder = made.save(Path("saved").resolve())
            command = [
                sys.executable,
                "-m",
                "offkey",
                "score",
                str(folder),
                str(Path("new").resolve()),
                "--out",
                "rows.csv",
            ]
            ways = {
                "ours": lambda command=command: subprocess.run(command, capture_output=True, check=True),
                "import torch": lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True),
            }
            watch.turns(f"offkey score, {name}, cold", ways, SECONDS * count, 2)
