"""Cached features are the encoder's own, and nothing is heard twice: not in another batch, process or life."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from offkey.audio.cache import ArrayCache
from offkey.audio.resample import Resample
from offkey.encoders import build_encoder
from offkey.encoders.base import Encoder, EncoderError
from offkey.encoders.cache import FeatureCache
from offkey.encoders.checkpoint import Checkpoint


class Counting(Encoder):
    """100 samples a patch, two bands; layer 1 has a patch every 50 samples. Remembers how many clips it heard."""

    name, usual_weights = "counting", "counting"
    rate, dimension, bands, depth, shortest = 1000, 4, 2, 3, 100
    patch_seconds, patch_offset = 0.1, 0.05

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.coarse, self.last = nn.Linear(50, 8), nn.Linear(100, 8), nn.Linear(4, 4)
        self.register_buffer("offset", torch.ones(4))
        self.heard = 0
        self.calls: list[tuple[int, int, list[int]]] = []  # clips, samples, layers
        self.pause = pause
        self.requires_grad_(False).eval()

    @classmethod
    def build(cls, architecture: Mapping[str, Any]) -> Counting:
        return cls()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, classifier: bool = True) -> Counting:
        raise NotImplementedError

    @property
    def architecture(self) -> dict[str, Any]:
        return {}

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        return [("stem", [self.fine, self.coarse]), ("block.0", [self.last])]

    def patch_counts(self, lengths: Tensor, layer: int | None = None) -> Tensor:
        return lengths // 100 * (2 if layer == 1 else 1)

    def _layers(self, waveform: Tensor, lengths: Tensor | None, which: Sequence[int]) -> list[Tensor]:
        time.sleep(self.pause)
        self.heard += len(waveform)
        self.calls.append((len(waveform), waveform.shape[1], list(which)))
        grids = {}
        for layer, step in ((1, 50), (2, 100), (3, 100)):
            pieces = waveform[:, : waveform.shape[1] // 100 * 100].unflatten(1, (-1, step))
            grid = (self.fine if layer == 1 else self.coarse)(pieces).unflatten(2, (2, 4))
            grid = self.last(grid) + self.offset if layer == 3 else grid
            if lengths is not None:
                own = torch.arange(grid.shape[1]) < (lengths // 100 * (100 // step))[:, None]
                grid = grid * own[:, :, None, None]
            grids[layer] = grid
        return [grids[layer] for layer in which]


def clips(*sizes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A padded batch; clip b is the same in every batch where it stands at place b with that size."""
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal(1000).astype(np.float32)[:size] for size in sizes]
    waveform = torch.zeros(len(sizes), max(sizes))
    for row, samples in zip(waveform, rows, strict=True):
        row[: len(samples)] = torch.from_numpy(samples)
    return waveform, torch.tensor(sizes)


def pick(batch: tuple[Tensor, Tensor], *places: int) -> tuple[Tensor, Tensor]:
    """Another batch of some clips, padded to the longest of them."""
    waveform, lengths = batch[0][list(places)], batch[1][list(places)]
    return waveform[:, : int(lengths.max())].clone(), lengths


@pytest.fixture
def store(tmp_path: Path) -> ArrayCache:
    return ArrayCache(tmp_path / "features", 10**7)


def entries(store: ArrayCache) -> list[Path]:
    return sorted(store.folder.rglob("*.npy"))


def real(name: str) -> Encoder:
    pytest.importorskip(f"offkey.encoders.{name}")
    torch.manual_seed(0)
    small = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2,
             "embed_dim": 16, "conv_pos_groups": 4, "conv_pos": 8}  # fmt: skip
    return build_encoder(name, small if name == "beats" else {"width_mult": 0.1}).requires_grad_(False).eval()


def test_every_answer_is_the_encoders_own_and_the_second_is_the_first(store: ArrayCache) -> None:
    encoder, cache = Counting(), FeatureCache(store)
    waveform, lengths = clips(700, 1000, 350)
    for own_lengths in (lengths, None):
        for which in ([3], [1, 3], [2, 1, 2]):
            own = encoder.layers(waveform, own_lengths, which)
            first = cache.layers(encoder, waveform, own_lengths, which)
            heard = encoder.heard
            second = cache.layers(encoder, waveform, own_lengths, which)
            assert encoder.heard == heard
            for a, b, c in zip(own, first, second, strict=True):
                torch.testing.assert_close(b, a)
                assert torch.equal(b, c)
        plain = encoder.patches(waveform, own_lengths)
        torch.testing.assert_close(cache.patches(encoder, waveform, own_lengths), plain)
        torch.testing.assert_close(cache.frames(encoder, waveform, own_lengths), plain.mean(2))


@pytest.mark.parametrize("name", ["beats", "efficientat"])
def test_real_encoders_agree_with_their_cached_answers(store: ArrayCache, name: str) -> None:
    encoder, cache = real(name), FeatureCache(store)
    sizes = [int(encoder.rate * seconds) for seconds in (1.0, 0.4, 1.7)]
    waveform = torch.zeros(3, max(sizes) + encoder.rate // 2)  # padded further than the longest clip needs
    for row, size in zip(waveform, sizes, strict=True):
        row[:size] = 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(size))
    lengths = torch.tensor(sizes)
    for _ in range(2):
        got = cache.patches(encoder, waveform, lengths)
        torch.testing.assert_close(got, encoder.patches(waveform, lengths), rtol=1e-4, atol=1e-5)
        tight = waveform[:, : max(sizes)]
        which = [1, encoder.depth]
        for a, b in zip(
            cache.layers(encoder, tight, lengths, which), encoder.layers(tight, lengths, which), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_no_clip_is_heard_twice_however_batches_are_composed(store: ArrayCache) -> None:
    encoder, cache = Counting(), FeatureCache(store)
    everything = clips(700, 1000, 350, 500)
    whole = encoder.patches(*everything)
    encoder.heard, encoder.calls = 0, []
    for places in ((0, 1), (1, 2, 0), (3, 3, 2), (2,), (3, 0, 1, 2)):
        got = cache.patches(encoder, *pick(everything, *places))
        torch.testing.assert_close(got, whole[list(places)][:, : got.shape[1]])
    # two, then the one that is new, as long as itself, then one that stands twice in its batch
    assert encoder.calls == [(2, 1000, [3]), (1, 350, [3]), (1, 500, [3])]
    assert len(entries(store)) == 4
    padded = torch.nn.functional.pad(everything[0], (0, 300), value=7.0)  # what lies behind a clip is not the clip
    assert cache.patches(encoder, padded, everything[1]).shape[1] == 13
    assert encoder.heard == 4


def test_only_layers_that_are_not_there_are_asked_for(store: ArrayCache) -> None:
    encoder, cache = Counting(), FeatureCache(store)
    batch = clips(700, 600)
    cache.layers(encoder, *batch, [2])
    cache.layers(encoder, *batch, [2, 3])
    cache.layers(encoder, *batch, [3, 2, 3])
    assert [layers for _, _, layers in encoder.calls] == [[2], [3]]


def test_another_object_on_the_same_folder_hears_nothing(store: ArrayCache) -> None:
    batch = clips(700, 600)
    first = FeatureCache(store).patches(Counting(), *batch)
    encoder = Counting()
    again = FeatureCache(ArrayCache(store.folder, 10**7)).patches(encoder, *batch)
    assert encoder.heard == 0
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "change",
    [
        lambda encoder: encoder.last.bias.add_(1.0),
        lambda encoder: setattr(encoder.last, "bias", nn.Parameter(torch.ones(4), requires_grad=False)),
        lambda encoder: setattr(encoder.last.bias, "data", torch.ones(4)),
        lambda encoder: encoder.load_state_dict({k: v + 1 for k, v in encoder.state_dict().items()}),
        lambda encoder: setattr(encoder, "bf16", True),
    ],
    ids=["in place", "replaced", "data", "loaded", "bf16"],
)
def test_changed_weights_are_another_encoder(store: ArrayCache, change: Any) -> None:
    encoder, cache = Counting(), FeatureCache(store)
    batch = clips(700, 600)
    before = cache.patches(encoder, *batch)
    with torch.no_grad():
        change(encoder)
    after = cache.patches(encoder, *batch)
    assert encoder.heard == 4
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, encoder.patches(*batch))
    untouched = Counting()
    assert torch.equal(cache.patches(untouched, *batch), before)
    assert untouched.heard == 0


def test_weights_are_read_once_while_they_stay_the_same(store: ArrayCache, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, cache, reads = Counting(), FeatureCache(store), []
    monkeypatch.setattr(Counting, "fingerprint", lambda self: reads.append(1) or Encoder.fingerprint(self))
    for seed in range(3):
        cache.patches(encoder, *clips(700, 600, seed=seed))
    assert len(reads) == 1


def test_forms_precisions_and_rates_never_mix(store: ArrayCache) -> None:
    encoder, batch = Counting(), clips(800, 600)
    exact, half = FeatureCache(store), FeatureCache(store, "float16")
    twice, thrice = Resample(500, 1000), Resample(333, 1000)
    heard = []
    for _ in range(2):
        for cache in (exact, half):
            for resample in (None, twice, thrice):
                cache.patches(encoder, *batch, resample)
                cache.frames(encoder, *batch, resample)
                cache.layers(encoder, *batch, [2], resample)
        heard.append(encoder.heard)
    assert heard == [2 * 2 * 3 * 3] * 2
    assert len(entries(store)) == heard[0]


def test_half_precision_keeps_its_promise(store: ArrayCache) -> None:
    encoder, cache = Counting(), FeatureCache(store, "float16")
    batch = clips(1000, 1000)
    own = encoder.patches(*batch)
    for _ in range(2):
        error = (cache.patches(encoder, *batch) - own).abs()
        assert error.max() > 0
        assert (error <= 5e-4 * own.abs() + 3e-8).all()
    assert {np.load(path).dtype for path in entries(store)} == {np.dtype("float16")}
    loud = (batch[0] * 1e7, batch[1])
    for _ in range(2):
        torch.testing.assert_close(cache.patches(encoder, *loud), encoder.patches(*loud))


def test_resampling_is_of_the_clip_alone(store: ArrayCache, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, cache, resample = Counting(), FeatureCache(store), Resample(441, 1000)
    everything = clips(441, 300, 350)
    everything[0][1, 300:] = 7.0  # what lies behind a clip is not the clip
    own = encoder.patches(resample(*everything), resample.lengths(everything[1]))
    encoder.heard = 0
    for places in ((1,), (0, 1), (2, 1, 0)):
        got = cache.patches(encoder, *pick(everything, *places), resample)
        torch.testing.assert_close(got, own[list(places)][:, : got.shape[1]], rtol=1e-4, atol=1e-5)
    assert encoder.heard == 3
    monkeypatch.setattr(Resample, "forward", lambda *_: pytest.fail("resampled for nothing"))
    cache.patches(encoder, *everything, resample)


def test_what_may_still_change_is_refused(store: ArrayCache) -> None:
    cache, batch = FeatureCache(store), clips(700, 600)
    learning = Counting()
    learning.last.bias.requires_grad_(True)
    with pytest.raises(EncoderError, match="weights that learn"):
        cache.patches(learning, *batch)
    noisy = Counting()
    noisy.last.train()
    with pytest.raises(EncoderError, match="training mode"):
        cache.frames(noisy, *batch)
    with pytest.raises(EncoderError, match="gradients"):
        cache.patches(Counting(), batch[0].requires_grad_(True), batch[1])
    assert not entries(store)


def test_the_encoders_own_refusals_come_through(store: ArrayCache) -> None:
    encoder, cache = Counting(), FeatureCache(store)
    with pytest.raises(EncoderError, match="too short"):
        cache.patches(encoder, *clips(700, 60))
    for which in ([], [4], [0, 3]):
        with pytest.raises(EncoderError, match="layers 1 to 3"):
            cache.layers(encoder, *clips(700), which)
    assert encoder.heard == 0
    assert not entries(store)


@pytest.mark.parametrize("harm", ["cut", "rubbish", "empty", "another shape", "another kind"])
def test_damaged_entries_are_heard_again_and_mended(store: ArrayCache, harm: str) -> None:
    encoder, cache = Counting(), FeatureCache(store)
    batch = clips(700, 600)
    sound = cache.patches(encoder, *batch)
    victim = entries(store)[0]
    content = victim.read_bytes()
    if harm.startswith("another"):
        np.save(victim, np.zeros((3, 2, 4)) if harm == "another shape" else np.zeros(np.load(victim).shape, int))
    else:
        victim.write_bytes({"cut": content[:-5], "rubbish": b"\x00" * len(content), "empty": b""}[harm])
    for _ in range(2):
        torch.testing.assert_close(cache.patches(encoder, *batch), sound)
        assert encoder.heard == 3
    assert victim.stat().st_size == len(content)


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    encoder, cache = Counting(), FeatureCache(ArrayCache(tmp_path / "file"))
    batch = clips(700, 600)
    with pytest.warns(RuntimeWarning, match="nothing can be cached"):
        got = cache.patches(encoder, *batch)
    torch.testing.assert_close(cache.patches(encoder, *batch), got)
    torch.testing.assert_close(got, encoder.patches(*batch))


def test_the_folder_stays_within_its_bound(tmp_path: Path) -> None:
    encoder, store = Counting(), ArrayCache(tmp_path, 20_000)
    cache = FeatureCache(store)
    for seed in range(60):
        cache.patches(encoder, *clips(1000, 1000, seed=seed))
    assert sum(path.stat().st_size for path in entries(store)) <= 21_000
    encoder.heard = 0
    cache.patches(encoder, *clips(1000, 1000, seed=59))  # the newest are still there
    assert encoder.heard == 0


def _hear(folder: str, seeds: Sequence[int], pause: float) -> tuple[int, list[bytes]]:
    """How many clips a process heard, and what it was told."""
    encoder, cache = Counting(pause), FeatureCache(ArrayCache(Path(folder), 10**7))
    told = [cache.patches(encoder, *clips(500, 400, seed=seed)).numpy().tobytes() for seed in seeds]
    return encoder.heard, told


def test_two_processes_share_a_folder_and_one_that_was_killed_leaves_its_work(tmp_path: Path) -> None:
    store, spawn = ArrayCache(tmp_path, 10**7), multiprocessing.get_context("spawn")
    killed = spawn.Process(target=_hear, args=(str(tmp_path), range(1000), 0.01))
    killed.start()
    until = time.monotonic() + 60
    while len(entries(store)) < 6 and time.monotonic() < until:
        time.sleep(0.01)
    killed.kill()
    killed.join()
    done = len(entries(store))
    assert 6 <= done < 2000
    seeds = list(range(-(-done // 2) + 10))
    with spawn.Pool(2) as pool:
        (one, told), (other, backwards) = pool.starmap(
            _hear, [(str(tmp_path), seeds, 0.001), (str(tmp_path), seeds[::-1], 0.001)]
        )
    # every clip that was not there is heard at least once; both may meet the same clip at the same moment
    assert len(seeds) * 2 - done <= one + other <= (len(seeds) * 2 - done) * 2
    assert [np.frombuffer(x, np.float32).tolist() for x in told] == [
        pytest.approx(np.frombuffer(x, np.float32).tolist(), rel=1e-4, abs=1e-5) for x in backwards[::-1]
    ]
    assert _hear(str(tmp_path), seeds, 0.0)[0] == 0
