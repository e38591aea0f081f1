import pytest
import torch
from torch.nn import functional as F

from offkey.encoders.long_convolution import _BLOCKS, LongConvolution


def plain(signal, weight, groups):
    """In double precision, the sum as it is written down."""
    kernel = weight.shape[-1]
    out = F.conv1d(signal.double().transpose(1, 2), weight.double(), padding=kernel // 2, groups=groups)
    return out[..., : signal.shape[1]].transpose(1, 2)


@pytest.mark.parametrize(("kernel", "groups"), [(16, 4), (15, 2), (128, 1), (2, 8), (1, 8)])
def test_it_is_a_convolution(kernel, groups):
    generator = torch.Generator().manual_seed(kernel)
    weight = torch.randn(8, 8 // groups, kernel, generator=generator)
    signals = [torch.randn(clips, moments, 8, generator=generator) for clips, moments in ((2, 300), (1, 1), (3, 17))]
    for own, found in zip(signals, LongConvolution(weight, groups)(signals), strict=True):
        expected = plain(own, weight, groups)
        assert found.shape == own.shape
        assert (found - expected).abs().max() < 3e-6 * expected.abs().max()


def test_more_blocks_than_are_taken_at_a_time():
    generator = torch.Generator().manual_seed(0)
    weight, signal = torch.randn(4, 4, 3, generator=generator), torch.randn(2, 4 * _BLOCKS, 4, generator=generator)
    found, expected = LongConvolution(weight, 1)([signal])[0], plain(signal, weight, 1)
    assert (found - expected).abs().max() < 3e-6 * expected.abs().max()
