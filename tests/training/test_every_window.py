"""Every window of frames: the right frames with the right labels, each once."""

import torch

from offkey.audio.mel import LogMel, MelConfig
from offkey.models.config import BaselineConfig
from offkey.models.dense_autoencoder import DenseAutoencoder
from offkey.objectives.reconstruction import Reconstruction
from offkey.training.config import TrainingConfig
from offkey.training.loop import train
from offkey.training.task import TrainingTask
from offkey.training.windows import ClipRow, EveryWindow, lay_out
from offkey.types import Batch, Labels

HOP, WIDTH, FFT = 128, 5, 256
MEL = LogMel(8000, MelConfig(n_fft=FFT, hop=HOP, n_mels=8))
LENGTHS = {4: 2000, 1: 300, 2: 1500}  # samples of the clips by place; the second has three frames only
COUNTS = {4: 2000 // HOP + 1 - 4, 1: 1, 2: 1500 // HOP + 1 - 4}


def make_batch(*places: int) -> Batch:
    waveform = torch.zeros(len(places), max(LENGTHS[place] for place in places))
    for row, place in zip(waveform, places, strict=True):
        noise = torch.randn(LENGTHS[place], generator=torch.Generator().manual_seed(place))
        row[: LENGTHS[place]] = 0.1 * noise
    number = torch.tensor(places)
    labels = Labels(number, torch.zeros(len(places), 0, dtype=torch.int64), number % 2)
    return Batch(waveform, torch.tensor([LENGTHS[place] for place in places]), labels, number)


def clip_row() -> ClipRow:
    return lay_out([make_batch(4, 1), make_batch(2)], MEL, HOP, with_samples=False)


def test_every_window_comes_once_with_its_frames_and_labels() -> None:
    windows = EveryWindow(clip_row(), WIDTH, FFT, batch_size=6)
    expected = {}
    for place in LENGTHS:
        alone = make_batch(place)
        levels = torch.nn.functional.pad(MEL(alone.waveform)[0], (0, max(0, WIDTH - LENGTHS[place] // HOP - 1)))
        expected[place] = [levels[:, v : v + WIDTH] for v in range(COUNTS[place])]
    for batch in windows.epoch(0):
        assert batch.labels is not None
        assert batch.features is not None
        assert len(batch.waveform) == len(batch.features)
        assert torch.equal(batch.labels.identity, batch.place)
        assert torch.equal(batch.labels.domain, batch.place % 2)
        for window, place in zip(batch.features, batch.place.tolist(), strict=True):
            match = [n for n, own in enumerate(expected[place]) if torch.allclose(own, window, atol=1e-4)]
            assert match
            expected[place].pop(match[0])
    assert not any(expected.values())


def test_a_window_is_rebuilt_as_the_same_frames_of_the_whole_clip() -> None:
    network = DenseAutoencoder(MEL, BaselineConfig(width=8, layers=1)).eval()
    whole = {place: network(make_batch(place)).frame_error[0].tolist() for place in LENGTHS}
    for batch in EveryWindow(clip_row(), WIDTH, FFT, batch_size=6).epoch(0):
        error = network(batch).frame_error
        assert error.shape == (len(batch.place), 1)
        for value, place in zip(error[:, 0].tolist(), batch.place.tolist(), strict=True):
            assert min(abs(value / other - 1) for other in whole[place]) < 1e-4


def test_epochs_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [list(batch) for batch in EveryWindow(clip_row(), WIDTH, FFT, 4, seed).epoch(epoch).order]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_a_lone_last_window_is_left_out() -> None:
    count = sum(COUNTS.values())
    sizes = {size: [len(b) for b in EveryWindow(clip_row(), WIDTH, FFT, size).epoch(0).order] for size in (20, 19)}
    assert count == 21
    assert sizes == {20: [20], 19: [19, 2]}


def test_a_share_is_held_out() -> None:
    windows = EveryWindow(clip_row(), WIDTH, FFT, 20, held_out_share=0.1)
    learnt = {number for batch in windows.epoch(0).order for number in batch}
    held = {number for batch in windows.held_out().order for number in batch}
    assert (len(learnt), len(held)) == (18, 3)
    assert not learnt & held
    assert len(EveryWindow(clip_row(), WIDTH, FFT, 20).held_out()) == 0


def test_the_one_loop_trains_the_baseline(tmp_path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DenseAutoencoder(MEL, BaselineConfig(width=8, layers=1))
    windows = EveryWindow(clip_row(), WIDTH, FFT, 6, held_out_share=0.1)
    settings = TrainingConfig(
        epochs=12, batch_size=6, learning_rate=0.02, weight_decay=0.0, warmup_share=0.0, schedule="constant",
        clip_norm=0.0,
    )  # fmt: skip
    task = TrainingTask(network, Reconstruction(network.config.latent, 1))
    losses = [
        record.train["total"] for record in train(task, windows.epoch, windows.held_out, settings, tmp_path).epochs
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert not network.training
