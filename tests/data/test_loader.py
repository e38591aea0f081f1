"""Batches hold what the order says, the same every time; the order is fair to both domains."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offkey.audio.cache import ArrayCache
from offkey.audio.io import AudioConfig, AudioError, read_clip
from offkey.data.labels import LabelSpace
from offkey.data.loader import ClipReader, Failure, balanced_order, load_batches
from offkey.types import ClipMeta, Condition, Domain

RATE = 16000


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[ClipMeta]:
    """Ten clips of 0.2 to 0.65 s; every third is target."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for number in range(10):
        path = folder / f"{number}.wav"
        soundfile.write(path, sound(0.2 + 0.05 * number, number), RATE, subtype="FLOAT")
        domain = Domain.TARGET if number % 3 == 0 else Domain.SOURCE
        made.append(
            ClipMeta(path, "fan", domain=domain, condition=Condition.NORMAL, attributes=(("n", str(number % 2)),))
        )
    return made


class Sleepy(ClipReader):
    """Takes a different time for every clip each time."""

    def read(self, path: Path) -> np.ndarray:
        time.sleep(random.random() * 0.01)  # follows no seed of ours
        return super().read(path)


# the order

domain_lists = st.lists(st.sampled_from([-1, 0, 1]), max_size=80)


@given(domain_lists, st.integers(1, 9), st.floats(0, 0.9), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_visits_every_clip_and_every_batch_has_a_target(domains, size, share, seed, epoch):
    identities = [place % 3 for place in range(len(domains))]
    batches = balanced_order(domains, identities, size, share, seed, epoch)
    assert batches == balanced_order(domains, identities, size, share, seed, epoch)
    count = Counter(place for batch in batches for place in batch)
    assert set(count) == set(range(len(domains)))
    targets = [place for place, domain in enumerate(domains) if domain == 1]
    both = len(targets) not in (0, len(domains)) and size > 1
    assert all(count[place] == 1 for place in count if not (both and place in targets))
    if both:
        assert all(any(place in targets for place in batch) for batch in batches)
        drawn = [count[place] for place in targets]
        assert max(drawn) - min(drawn) <= 2  # one for the even passes, one that may fill the last batch
    assert all(len(batch) == size for batch in batches[:-2])
    assert all(1 <= len(batch) <= size + 1 for batch in batches)
    if size > 1 and len(domains) > 1:
        assert all(len(batch) > 1 for batch in batches)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 1, 2), (0.25, 7, 9), (0.5, 15, 17)])
def test_batches_hold_the_wanted_share_of_targets(share, low, high):
    domains = np.array([0] * 990 + [1] * 10)
    batches = balanced_order(domains, np.zeros(1000, int), 32, share, seed=3)
    counts = [int(domains[batch].sum()) for batch in batches[:-1]]
    assert low <= min(counts) <= max(counts) <= high


def test_epochs_and_seeds_differ():
    orders = {
        str(balanced_order([0] * 30 + [1] * 5, [0] * 35, 8, seed=seed, epoch=epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_identities_are_spread_evenly():
    identities = np.repeat([0, 1, 2, 3], [400, 200, 100, 100])
    for batch in balanced_order(np.zeros(800, int), identities, 32):
        counts = np.bincount(identities[batch], minlength=4)
        assert np.abs(counts - [16, 8, 4, 4]).max() <= 2


def test_no_clips_make_no_batches():
    assert balanced_order([], [], 4) == []


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"target_share": 1.0}, {"identities": [0]}])
def test_impossible_orders_are_refused(wrong):
    with pytest.raises(ValueError, match=r"batch_size|identities"):
        balanced_order(**{"domains": [0, 1], "identities": [0, 0], "batch_size": 2, **wrong})


# the batches


@settings(max_examples=20, deadline=None)
@given(
    order=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=6),
)
def test_thread_timing_does_not_matter(clips, order):
    labels = LabelSpace.of(clips)
    runs = [
        list(load_batches(clips, order, reader, labels, workers))
        for reader, workers in ((ClipReader(), 0), (ClipReader(), 1), (Sleepy(), 4))
    ]
    for run in runs[1:]:
        assert len(run) == len(runs[0]) == len(order)
        for one, other in zip(run, runs[0], strict=True):
            assert torch.equal(one.waveform, other.waveform)
            assert torch.equal(one.lengths, other.lengths)
            assert torch.equal(one.place, other.place)
            assert all(torch.equal(a, b) for a, b in zip(one.labels, other.labels, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_mixed_lengths_are_padded_with_zeros_and_labelled(clips, workers):
    labels = LabelSpace.of(clips)
    (batch,) = load_batches(clips, [[3, 9, 0]], ClipReader(), labels, workers)
    assert batch.waveform.dtype == torch.float32
    assert batch.lengths.tolist() == [5600, 10400, 3200]
    assert batch.place.tolist() == [3, 9, 0]
    for row, length, place in zip(batch.waveform, batch.lengths, [3, 9, 0], strict=True):
        np.testing.assert_array_equal(row[:length].numpy(), read_clip(clips[place].path, AudioConfig()))
        assert (row[length:] == 0).all()
    codes = [labels.encode(clips[place]) for place in (3, 9, 0)]
    assert batch.labels.identity.tolist() == [code[0] for code in codes]
    assert batch.labels.attributes.tolist() == [list(code[1]) for code in codes]
    assert batch.labels.domain.tolist() == [1, 1, 1]
    assert {tensor.dtype for tensor in batch.labels} == {torch.int64}


def test_without_labels_there_are_none(clips):
    (batch,) = load_batches(clips, [[0]], ClipReader())
    assert batch.labels is None


def test_no_attribute_heads_make_an_empty_column(clips):
    plain = [ClipMeta(clips[0].path, "fan"), ClipMeta(clips[1].path, "fan")]
    (batch,) = load_batches(plain, [[0, 1]], ClipReader(), LabelSpace.of(plain))
    assert batch.labels.attributes.shape == (2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_failed_clips_are_left_out_and_noted_once(clips, tmp_path, workers):
    broken, silent = tmp_path / "broken.wav", tmp_path / "silent.wav"
    broken.write_bytes(b"no sound")
    soundfile.write(silent, np.zeros(RATE), RATE)
    mixed = [clips[0], ClipMeta(broken, "fan"), clips[1], ClipMeta(silent, "fan")]
    failures: list[Failure] = []
    batches = list(load_batches(mixed, [[0, 1, 2], [1, 3], [2, 1]], ClipReader(), workers=workers, failures=failures))
    assert [batch.place.tolist() for batch in batches] == [[0, 2], [2]]
    assert [failure.path for failure in failures] == [broken, silent]
    assert "digital silence" in failures[1].problem
    with pytest.raises(AudioError, match=r"broken\.wav"):
        list(load_batches(mixed, [[0, 1]], ClipReader(), workers=workers))


def test_stopping_early_ends_the_threads(clips):
    stream = load_batches(clips, [[place] for place in range(10)] * 50, ClipReader(), workers=2)
    next(stream)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 1.0


# the reader


def test_only_costly_clips_are_cached_by_content_and_settings(tmp_path, monkeypatch):
    quick, costly, copy = tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "c.wav"
    soundfile.write(quick, sound(1.0), RATE)
    soundfile.write(costly, sound(1.0), 44100)
    copy.write_bytes(costly.read_bytes())
    reads = []

    def counted(path: Path, config: AudioConfig) -> np.ndarray:
        reads.append(path.name)
        return read_clip(path, config)

    monkeypatch.setattr("offkey.data.loader.read_clip", counted)
    cache = ArrayCache(tmp_path / "cache", 10**8)
    for config in (AudioConfig(), AudioConfig(level_dbfs=-20.0)):
        reader = ClipReader(config, cache)
        for path in (quick, costly, copy, costly):
            np.testing.assert_array_equal(reader.read(path), read_clip(path, config))
    assert Counter(reads) == {"a.wav": 2, "b.wav": 2}
    costly.unlink()
    with pytest.raises(AudioError, match="no such file"):
        reader.read(costly)


def test_a_broken_clip_is_refused_with_a_cache_too(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"nothing")
    with pytest.raises(AudioError, match=r"a\.wav"):
        ClipReader(AudioConfig(), ArrayCache(tmp_path / "cache", 10**6)).read(path)
