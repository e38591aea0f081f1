"""Training-free embeddings against numpy, clip by clip."""

import numpy as np
import pytest
import torch
from torch import nn

from offkey.audio.mel import LogMel, MelConfig
from offkey.models.statistics import LogMelStatistics, Loudness
from offkey.types import Batch

MEL = LogMel(8000, MelConfig(n_fft=256, hop=128, n_mels=16))


def make_batch(*lengths: int) -> Batch:
    rng = np.random.default_rng(0)
    waves = [
        torch.from_numpy((rng.standard_normal(n) * 0.1 * (1 + i)).astype(np.float32)) for i, n in enumerate(lengths)
    ]
    waveform = nn.utils.rnn.pad_sequence(waves, batch_first=True)
    return Batch(waveform, torch.tensor(lengths), None, torch.arange(len(lengths)))


def test_log_mel_statistics_are_numpys_over_each_clips_own_frames() -> None:
    batch = make_batch(4000, 1, 777, 2500)
    model = LogMelStatistics(MEL, mean=True, std=True, change=True, quantiles=(0.0, 0.25, 0.9))
    result = model(batch).embedding.numpy()
    assert result.shape == (4, model.size) == (4, 16 * 6)
    for row, length in enumerate(batch.lengths.tolist()):
        own = MEL(batch.waveform[row : row + 1, :length])[0].double().numpy()
        steps = np.diff(own, axis=1)
        change = np.sqrt((steps**2).mean(1)) if steps.size else np.zeros(16)
        expected = [own.mean(1), own.std(1), change, *np.quantile(own, [0.0, 0.25, 0.9], axis=1)]
        np.testing.assert_allclose(result[row], np.concatenate(expected), atol=2e-4)


def test_loudness_is_the_level_of_the_own_samples() -> None:
    batch = make_batch(4000, 10, 777)
    levels = Loudness()(batch).embedding[:, 0].numpy()
    for row, length in enumerate(batch.lengths.tolist()):
        own = batch.waveform[row, :length].double().numpy()
        assert levels[row] == pytest.approx(10 * np.log10((own**2).mean()), abs=1e-4)


def test_what_lies_past_a_clip_is_not_heard() -> None:
    batch = make_batch(4000, 777)
    dirty = batch.waveform.clone()
    dirty[1, 777:] = 0.5
    for model in (LogMelStatistics(MEL, std=True, change=True, quantiles=(0.5,)), Loudness()):
        torch.testing.assert_close(model(batch).embedding, model(batch._replace(waveform=dirty)).embedding)


def test_silence_has_a_level() -> None:
    silent = Batch(torch.zeros(1, 100), torch.tensor([100]), None, torch.tensor([0]))
    assert float(Loudness()(silent).embedding) == pytest.approx(-120.0)


def test_statistics_that_describe_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="turn one on"):
        LogMelStatistics(MEL, mean=False)
    with pytest.raises(ValueError, match="quantiles"):
        LogMelStatistics(MEL, quantiles=(50.0,))
