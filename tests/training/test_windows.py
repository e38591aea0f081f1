"""Window batches: every clip, target in each batch, the numbers that scoring sees, and the same again after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from offkey.audio.mel import LogMel, MelConfig
from offkey.models.reconstructive import Reconstructive, ReconstructiveConfig
from offkey.models.windows import cover, cut_frames, cut_samples, own_frames
from offkey.objectives.reconstruction import Reconstruction
from offkey.training.loop import TrainingConfig, train
from offkey.training.task import TrainingTask
from offkey.training.windows import ClipRow, WindowBatches, lay_out
from offkey.types import Batch, Labels, OffkeyError

RATE, HOP, KERNEL, WINDOW = 4000, 100, 250, 8
LENGTHS = (4000, 350, 2777, 1, 799, 800, 4000, 1999)  # samples; clip 5 alone is of the target domain
PLACES = 10 * np.arange(len(LENGTHS))


def clip_batches(size: int = 3) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    waves = [0.1 * torch.randn(length, generator=generator) for length in LENGTHS]
    domain = torch.tensor([0, 0, 0, 0, 0, 1, 0, 0])
    for at in range(0, len(waves), size):
        part = slice(at, at + size)
        count = len(waves[part])
        yield Batch(
            torch.nn.utils.rnn.pad_sequence(waves[part], batch_first=True), torch.tensor(LENGTHS[part]),
            Labels(torch.arange(len(waves))[part] % 2, torch.zeros(count, 0, dtype=torch.int64), domain[part]),
            torch.from_numpy(PLACES[part]),
        )  # fmt: skip


def make_model() -> Reconstructive:
    torch.manual_seed(0)
    config = ReconstructiveConfig(
        window=WINDOW, latent=4, width=16, halvings=2, tgram_channels=6, tgram_layers=1, use_log_mel=True
    )
    return Reconstructive(LogMel(RATE, MelConfig(n_fft=KERNEL, hop=HOP, n_mels=12)), config)


def row_of(folder: Path | None = None) -> ClipRow:
    return lay_out(clip_batches(), make_model().fixed_features, HOP, folder)


def batches(row: ClipRow | None = None, size: int = 6, seed: int = 0) -> WindowBatches:
    return WindowBatches(row or row_of(), WINDOW, KERNEL, size, 0.25, seed)


def test_held_out_windows_are_those_of_scoring() -> None:
    model = make_model()
    (whole,) = clip_batches(len(LENGTHS))
    windows = cover(model.mel.frames(whole.lengths), WINDOW)
    fixed = cut_frames(model.fixed_features(whole.waveform, whole.lengths), windows, WINDOW)
    samples = cut_samples(whole.waveform, whole.lengths, windows, WINDOW, HOP, KERNEL)
    parts = list(batches().cover())
    torch.testing.assert_close(torch.cat([part.features for part in parts]), fixed, atol=1e-4, rtol=1e-5)
    found = torch.cat([part.waveform for part in parts])
    assert torch.equal(found, samples)
    assert torch.equal(own_frames(torch.cat([part.lengths for part in parts]), HOP, KERNEL), windows.frames)
    assert torch.equal(torch.cat([part.place for part in parts]), torch.from_numpy(PLACES)[windows.clip])
    identity = torch.cat([part.labels.identity for part in parts])
    assert torch.equal(identity, whole.labels.identity[windows.clip])


def test_a_random_window_is_the_one_of_its_number() -> None:
    (whole,) = clip_batches(len(LENGTHS))
    row = row_of()
    frames = row.frames
    offsets = np.cumsum(frames) - frames
    made = batches(row)
    plan = made.epoch(3)
    seen = 0
    for numbers, batch in zip(plan.order, plan, strict=True):
        for line, number in enumerate(numbers):
            clip = int(batch.place[line]) // 10
            start = number - offsets[clip]
            assert 0 <= start <= max(frames[clip] - WINDOW, 0)
            own = min(frames[clip], WINDOW)
            expected = row.features[number : number + own].T
            assert np.array_equal(batch.features[line, :, :own].numpy(), expected)
            assert (batch.features[line, :, own:] == 0).all()
            reach = np.arange(start * HOP - KERNEL // 2, start * HOP - KERNEL // 2 + batch.waveform.shape[1])
            wave = whole.waveform[clip, : LENGTHS[clip]].numpy()
            inside = (reach >= 0) & (reach < len(wave))
            assert np.array_equal(batch.waveform[line].numpy()[inside], wave[reach[inside]])
            assert (batch.waveform[line].numpy()[~inside] == 0).all()
            seen += start > 0
    assert seen > 3


def test_an_epoch_holds_every_clip_by_its_length_and_target_in_every_batch() -> None:
    made = batches()
    plan = made.epoch(0)
    place = torch.cat([batch.place for batch in plan]) // 10
    counts = torch.bincount(place, minlength=len(LENGTHS))
    wanted = [-(-(length // HOP + 1) // WINDOW) for length in LENGTHS]
    source = [clip for clip in range(len(LENGTHS)) if clip != 5]
    assert [int(counts[clip]) for clip in source] == [wanted[clip] for clip in source]
    assert counts[5] > wanted[5]
    assert all((batch.labels.domain == 1).any() for batch in plan)
    assert all(len(numbers) <= 7 for numbers in plan.order)
    # repeated windows of the target clip, 9 frames long, begin at either of its two starts
    starts = {number for numbers in plan.order for number in numbers} | {
        number for epoch in range(1, 6) for numbers in made.epoch(epoch).order for number in numbers
    }
    first = int((made.clips.frames[:5]).sum())
    assert {first, first + 1} <= starts


def test_every_start_of_a_clip_is_as_likely_as_any_other() -> None:
    row = ClipRow(
        np.zeros((15, 1), np.float32), None, np.array([1400]),
        Labels(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1).long()),
        np.array([0]), HOP,
    )  # fmt: skip
    made = batches(row)
    starts = np.concatenate([np.concatenate(made.epoch(epoch).order) for epoch in range(600)])
    counts = np.bincount(starts.astype(int))
    assert len(counts) == 8  # 15 frames, windows of 8
    assert counts.min() > 0.75 * counts.mean()


def test_an_epoch_follows_from_seed_and_number_and_is_taken_in_part() -> None:
    row = row_of()
    plan = batches(row).epoch(2)
    assert plan.order == batches(row).epoch(2).order
    assert plan.order != batches(row).epoch(3).order
    assert plan.order != batches(row, seed=1).epoch(2).order
    whole, part = list(plan), list(plan.part(range(1, len(plan), 2)))
    assert len(part) == len(whole) // 2 > 0
    for one, other in zip(part, whole[1::2], strict=True):
        assert torch.equal(one.waveform, other.waveform)
        assert torch.equal(one.features, other.features)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_arrays_on_disk_are_mapped_and_hold_the_same(tmp_path: Path, precision: str) -> None:
    here = row_of()
    there = lay_out(clip_batches(2), make_model().fixed_features, HOP, tmp_path / "rows", precision)
    assert isinstance(there.features, np.memmap)
    assert isinstance(there.samples, np.memmap)
    assert np.array_equal(there.samples, here.samples)
    np.testing.assert_allclose(there.features, here.features, atol=1e-4, rtol=1e-3 if precision == "float16" else 1e-5)
    assert there.features.dtype == precision
    copied = next(iter(batches(there).cover()))
    assert copied.features.dtype == torch.float32
    assert copied.waveform.is_contiguous()


def test_clips_without_samples_or_fixed_features_are_cut_too(tmp_path: Path) -> None:
    mute = lay_out(clip_batches(), make_model().fixed_features, HOP, with_samples=False)
    batch = next(iter(batches(mute).cover()))
    assert batch.waveform.shape == (6, 0)
    assert batch.features.shape == (6, 12, WINDOW)

    def nothing(waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return waveform.new_zeros(len(waveform), 0, waveform.shape[1] // HOP + 1)

    bare = lay_out(clip_batches(), nothing, HOP, tmp_path)
    assert next(iter(batches(bare).cover())).features.shape == (6, 0, WINDOW)


def test_what_cannot_be_laid_out_is_refused(tmp_path: Path) -> None:
    describe = make_model().fixed_features
    with pytest.raises(OffkeyError, match="no training clip"):
        lay_out([], describe, HOP)
    with pytest.raises(OffkeyError, match="labels"):
        lay_out((batch._replace(labels=None) for batch in clip_batches()), describe, HOP)
    (tmp_path / "file").write_text("")
    with pytest.raises(OffkeyError, match="cannot be kept in"):
        lay_out(clip_batches(), describe, HOP, tmp_path / "file")


def test_training_on_windows_learns_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    class Kill(Exception):
        pass

    class Stop:
        def start(self, what: str, total: int, done: int = 0) -> None: ...

        def say(self, text: str) -> None: ...

        def step(self, done: int, note: str = "") -> None:
            if done == 17:
                raise Kill

    row = row_of()

    def task() -> TrainingTask:
        model = make_model()
        model.fit_normalisation(clip_batches())
        return TrainingTask(model, Reconstruction(4, 2))

    made, held = batches(row), batches(row)
    config = TrainingConfig(epochs=6, learning_rate=5e-3, device="cpu", checkpoint_every_steps=2)
    calm = task()
    history = train(calm, made.epoch, lambda _: held.cover(), config, tmp_path / "calm")
    assert history.epochs[-1].train["reconstruction"] < history.epochs[0].train["reconstruction"] - 0.1
    assert history.epochs[-1].held_out["reconstruction"] < history.epochs[0].held_out["reconstruction"]
    with pytest.raises(Kill):
        train(task(), made.epoch, lambda _: held.cover(), config, tmp_path / "killed", Stop())
    resumed = task()
    train(resumed, made.epoch, lambda _: held.cover(), config, tmp_path / "killed")
    for name, tensor in calm.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
