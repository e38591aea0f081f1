"""TgramNet: a spectrogram-like map that is learnt from the waveform itself."""

from __future__ import annotations

from torch import Tensor, nn

from offkey.models.masking import FrameNorm, frame_mask
from offkey.types import Float, Int

__all__ = ["TgramNet"]


class TgramNet(nn.Module):
    """Framing convolution, then layers of normalisation over time, LeakyReLU and convolution.

    After Liu et al., "Anomalous sound detection using spectral-temporal information fusion" (ICASSP 2022),
    with the normalisation freed from one clip length. Frames are those of a centred log-mel of the same hop
    and kernel.
    """

    def __init__(self, channels: int = 128, hop: int = 512, kernel: int = 1024, layers: int = 3) -> None:
        super().__init__()
        if kernel % 2:
            raise ValueError(f"kernel must be even so that frames are centred, not {kernel}")
        self.hop = hop
        self.frame = nn.Conv1d(1, channels, kernel, stride=hop, padding=kernel // 2, bias=False)
        self.norms = nn.ModuleList(FrameNorm(channels) for _ in range(layers))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, channels, 3, padding=1, bias=False) for _ in range(layers)
        )

    def forward(
        self, waveform: Float[Tensor, "B T"], frames: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B C F"]:
        """Map (B, T) samples, zero past each clip's end, to (B, channels, F), F = T // hop + 1.

        `frames` (B,) are each clip's own frames; those past them come out as zero and count nowhere.
        None means that no clip is padded.
        """
        x = self.frame(waveform[:, None, :])
        mask = None if frames is None else frame_mask(frames, x.shape[-1])
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = convolution(nn.functional.leaky_relu(norm(x, mask), 0.2))
        return x if mask is None else x * mask[:, None, :]
