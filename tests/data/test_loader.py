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
from offkey.data.loader import ClipReader, Failure, balanced_order, load_batches, load_by_length
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


# batches of like length


class Counting(ClipReader):
    """Clips of made-up lengths; knows which were read, how many are held at once, and refuses some."""

    def __init__(self, lengths: list[int], bad: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.lengths, self.bad = lengths, bad
        self.read_places: list[int] = []

    def read(self, path: Path) -> np.ndarray:
        place = int(path.stem)
        self.read_places.append(place)
        if place in self.bad:
            raise AudioError(path, "broken")
        return np.full(self.lengths[place], place + 1, np.float32)


def numbered(count: int) -> list[ClipMeta]:
    return [ClipMeta(Path(f"{place}.wav"), "fan") for place in range(count)]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 50), max_size=60),
    st.sets(st.integers(0, 59)),
    st.integers(1, 5),
    st.sampled_from([0, 1, 3]),
)
def test_every_clip_comes_once_whole_and_soon(lengths, bad, size, workers):
    reader = Counting(lengths, frozenset(bad))
    problems: dict[int, str] = {}
    seen: list[int] = []
    for batch in load_by_length(numbered(len(lengths)), reader, size, workers, problems):
        assert 1 <= len(batch.lengths) <= size
        assert batch.waveform.shape[1] == int(batch.lengths.max())
        for row, length, place in zip(batch.waveform, batch.lengths.tolist(), batch.place.tolist(), strict=True):
            assert length == lengths[place]
            assert (row[:length] == place + 1).all()
            assert not row[length:].any()
        seen += batch.place.tolist()
    good = sorted(set(range(len(lengths))) - bad)
    assert sorted(seen) == good
    assert problems == dict.fromkeys(sorted(bad & set(range(len(lengths)))), "broken")
    assert sorted(reader.read_places) == list(range(len(lengths)))  # none is decoded twice
    # a clip is at most one window of four batches away from its turn
    assert all(abs(came - good.index(place)) < 4 * size for came, place in enumerate(seen))


def test_batches_of_like_length_are_padded_less_and_do_not_depend_on_threads():
    lengths = np.random.default_rng(0).integers(100, 10_000, 200).tolist()

    def batches(workers: int) -> list[list[int]]:
        return [b.place.tolist() for b in load_by_length(numbered(200), Counting(lengths), 8, workers)]

    def padding(order: list[list[int]]) -> float:
        padded = sum(len(places) * max(lengths[p] for p in places) for places in order)
        return padded / sum(lengths) - 1

    alone = batches(0)
    assert alone == batches(1) == batches(3)
    as_given = [list(range(start, start + 8)) for start in range(0, 200, 8)]
    assert padding(alone) < 0.4 * padding(as_given)


def test_long_clips_go_alone_and_hold_back_the_decoding(monkeypatch):
    monkeypatch.setattr("offkey.data.loader._BATCH_SAMPLES", 1000)
    monkeypatch.setattr("offkey.data.loader._HELD_SAMPLES", 4000)
    reader = Counting([900] * 40)
    stream = load_by_length(numbered(40), reader, 8, 1)
    for number, batch in enumerate(stream):
        assert len(batch.lengths) == 1
        # a window is full with 5 clips (4000 samples), and 4 more may be on their way, one of them just begun
        assert max(reader.read_places) <= number + 5 + 5
    assert number == 39


def test_an_unreadable_clip_raises_where_nobody_asks_and_threads_end_with_their_reader():
    with pytest.raises(AudioError, match="broken"):
        list(load_by_length(numbered(9), Counting([5] * 9, frozenset({4})), 2, 2))
    reader = Counting([5] * 10_000)
    stream = load_by_length(numbered(10_000), reader, 4, 2)
    next(stream)
    stream.close()
    assert len(reader.read_places) < 100
    with pytest.raises(ValueError, match="at least one"):
        next(load_by_length(numbered(1), reader, 0))


def test_memory_does_not_grow_with_the_number_of_clips():
    import tracemalloc

    def peak(count: int) -> int:
        clips, reader = numbered(count), Counting([4000] * count)
        tracemalloc.start()
        for batch in load_by_length(clips, reader, 8, 1):
            del batch
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    # 16 kB a clip: were arrays kept, the second would hold 30 MB more
    assert peak(2000) - peak(200) < 2_000_000
