"""Signal-level variants: faster sounds, numbered as classes of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offkey.training.variants import variant_names, vary
from offkey.types import Batch, Labels, OffkeyError

RATE = 16000
SPEEDS = (1.0, 1.05, 1.1)


def tones(
    lengths: list[int], frequency: float = 1000.0, identity: list[int] | None = None, labelled: bool = True
) -> Batch:
    """Clips of one tone, padded with zeros."""
    size = len(lengths)
    waveform = torch.zeros(size, max(lengths))
    for row, length in zip(waveform, lengths, strict=True):
        row[:length] = torch.sin(2 * torch.pi * frequency * torch.arange(length) / RATE)
    numbers = torch.tensor(identity if identity is not None else list(range(size)))
    labels = Labels(numbers, torch.full((size, 1), 2), torch.ones(size, dtype=torch.int64))
    return Batch(waveform, torch.tensor(lengths), labels if labelled else None, torch.arange(size))


def peak(samples: torch.Tensor) -> float:
    """The frequency of the strongest line, Hz, to a fraction of a bin."""
    spectrum = np.abs(np.fft.rfft(samples.numpy() * np.hanning(len(samples)), n=1 << 18))
    return float(spectrum.argmax() * RATE / (1 << 18))


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_line_moves_by_the_speed_and_the_class_says_which() -> None:
    batch = tones([16000] * 24, identity=[n % 4 for n in range(24)])
    varied = vary(batch, SPEEDS, None, draw())
    seen = set()
    for row, length, before, after in zip(
        varied.waveform, varied.lengths, batch.labels.identity, varied.labels.identity, strict=True
    ):
        identity, number = divmod(int(after), len(SPEEDS))
        assert identity == int(before)
        assert peak(row[: int(length)]) == pytest.approx(1000.0 * SPEEDS[number], rel=2e-3)
        seen.add(number)
    assert seen == {0, 1, 2}


def test_names_are_numbered_as_vary_numbers() -> None:
    names = variant_names(["fan", "pump", "valve"], SPEEDS)
    assert names == tuple(f"{n}{s}" for n in ("fan", "pump", "valve") for s in ("", "@1.05", "@1.1"))
    varied = vary(tones([8000] * 30, identity=[n % 3 for n in range(30)]), SPEEDS, None, draw())
    for before, after in zip([n % 3 for n in range(30)], varied.labels.identity.tolist(), strict=True):
        assert names[after].split("@")[0] == ("fan", "pump", "valve")[before]


def test_unknown_classes_stay_unknown_and_other_labels_stay() -> None:
    batch = tones([8000] * 12, identity=[-1] * 12)
    varied = vary(batch, SPEEDS, None, draw())
    assert varied.labels.identity.tolist() == [-1] * 12
    assert torch.equal(varied.labels.attributes, batch.labels.attributes)
    assert torch.equal(varied.labels.domain, batch.labels.domain)
    assert torch.equal(varied.place, batch.place)


def test_length_tells_nothing_of_the_speed() -> None:
    varied = vary(tones([16000] * 30), SPEEDS, None, draw())
    assert set(varied.lengths.tolist()) == {int(16000 / 1.1)}


def test_padding_is_never_played() -> None:
    varied = vary(tones([16000, 5000, 9000, 5000]), SPEEDS, None, draw())
    assert varied.lengths.tolist() == [int(length / 1.1) for length in (16000, 5000, 9000, 5000)]
    for row, length in zip(varied.waveform, varied.lengths.tolist(), strict=True):
        assert (row[:length] ** 2).mean() == pytest.approx(0.5, rel=0.05)
        assert not row[length:].any()


@pytest.mark.parametrize("speeds", [(1.0,), SPEEDS])
def test_windows_have_the_length_that_was_asked_for(speeds: tuple[float, ...]) -> None:
    varied = vary(tones([16000, 3000, 500, 4000]), speeds, 4000, draw())
    assert varied.lengths.tolist() == [4000] * 4
    assert varied.waveform.shape == (4, 4000)
    assert all((row**2).mean() > 0.4 for row in varied.waveform)  # short clips are repeated, not padded


def test_windows_come_from_everywhere_in_the_clip() -> None:
    ramp = torch.arange(10000, dtype=torch.float32)[None].repeat(200, 1)
    none = torch.zeros(200, dtype=torch.int64)
    labels = Labels(none, torch.zeros(200, 0, dtype=torch.int64), none)
    batch = Batch(ramp, torch.full((200,), 10000), labels, torch.arange(200))
    starts = vary(batch, (1.0,), 1000, draw()).waveform[:, 0]
    assert starts.min() < 500
    assert starts.max() > 8500
    assert starts.max() <= 9000


def test_the_same_draws_give_the_same_batch() -> None:
    batch = tones([16000, 9000, 12000])
    first, again, other = (vary(batch, SPEEDS, 6000, draw(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.waveform, again.waveform)
    assert torch.equal(first.labels.identity, again.labels.identity)
    assert not torch.equal(first.waveform, other.waveform)


def test_the_given_batch_is_left_alone() -> None:
    batch = tones([16000, 9000])
    before = batch.waveform.clone(), batch.labels.identity.clone()
    vary(batch, SPEEDS, 6000, draw())
    assert torch.equal(batch.waveform, before[0])
    assert torch.equal(batch.labels.identity, before[1])


def test_one_speed_and_no_window_change_nothing() -> None:
    batch = tones([16000], labelled=False)
    assert vary(batch, (1.0,), None, draw()) is batch


def test_variants_without_labels_are_refused() -> None:
    with pytest.raises(OffkeyError, match="label space"):
        vary(tones([16000], labelled=False), SPEEDS, None, draw())
