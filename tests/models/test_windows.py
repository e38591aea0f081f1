"""Windows hold every frame, are cut the same way wherever they are cut, and find their way back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offkey.models.tgram import TgramNet
from offkey.models.windows import cover, cut_frames, cut_samples, lay_back, own_frames, window_samples


@settings(max_examples=40, deadline=None)
@given(frames=st.lists(st.integers(1, 40), min_size=1, max_size=4), width=st.integers(1, 12))
def test_every_frame_is_in_a_window_and_no_window_leaves_its_clip(frames: list[int], width: int) -> None:
    windows = cover(torch.tensor(frames), width)
    seen: list[set[int]] = [set() for _ in frames]
    for clip, start, own in zip(*(numbers.tolist() for numbers in windows), strict=True):
        assert own == min(width, frames[clip])
        seen[clip] |= set(range(start, start + own))
    assert seen == [set(range(count)) for count in frames]
    assert len(windows.clip) == sum(-(-count // width) for count in frames)


@settings(max_examples=40, deadline=None)
@given(frames=st.lists(st.integers(1, 40), min_size=1, max_size=4), width=st.integers(1, 12))
def test_what_is_cut_is_laid_back_where_it_was(frames: list[int], width: int) -> None:
    counts, longest = torch.tensor(frames), max(frames)
    x = torch.randn(len(frames), 1, longest)
    windows = cover(counts, width)
    back = lay_back(cut_frames(x, windows, width)[:, 0], windows, counts, longest)
    for row, own, count in zip(back, x[:, 0], frames, strict=True):
        torch.testing.assert_close(row[:count], own[:count])
        assert (row[count:] == 0).all()


def test_frames_seen_twice_get_the_mean_of_both() -> None:
    counts = torch.tensor([5])
    windows = cover(counts, 4)  # frames 0 to 3, and 1 to 4
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [12.0, 13.0, 14.0, 15.0]])
    assert lay_back(values, windows, counts, 5).tolist() == [[1.0, 7.0, 8.0, 9.0, 15.0]]


@pytest.mark.parametrize(("hop", "kernel"), [(64, 128), (60, 128), (50, 250), (128, 64)])
def test_frames_of_a_windows_samples_are_those_of_the_clip(hop: int, kernel: int) -> None:
    net = TgramNet(6, hop, kernel, layers=0)  # framing alone: no neighbour speaks
    waves = [torch.randn(1500), torch.randn(333)]
    lengths = torch.tensor([1500, 333])
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    batch[1, 333:] = 9.0  # what lies in the padding is not the clip's
    windows = cover(lengths // hop + 1, 8)
    samples = cut_samples(batch, lengths, windows, 8, hop, kernel)
    assert samples.shape[1] == window_samples(8, hop, kernel)
    found = torch.nn.functional.conv1d(samples[:, None], net.frame.weight, stride=hop)
    for row, clip, start, own in zip(found, *(numbers.tolist() for numbers in windows), strict=True):
        whole = net(waves[clip][None])[0]
        torch.testing.assert_close(row[:, :own], whole[:, start : start + own], atol=1e-5, rtol=1e-5)


def test_own_frames_is_the_inverse_of_window_samples() -> None:
    counts = torch.arange(1, 9)
    lengths = torch.tensor([window_samples(count, 60, 128) for count in counts.tolist()])
    assert torch.equal(own_frames(lengths, 60, 128), counts)
