"""A waveform into foreground and background that add up to it, at any length.

A separator on disk is a folder:

    config.json           rate, spectrum and network
    model.safetensors     weights
    manifest.json         format number, and size and sha256 of the other files

Nothing in it can run code, and a file that does not agree with the manifest is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from offkey.files import write_whole
from offkey.manifest import MANIFEST, Kind, ManifestError, read_manifest, write_manifest
from offkey.separation.config import SeparatorConfig
from offkey.separation.locoformer import Moments, TFLocoformer
from offkey.types import Float, Int, OffkeyError

__all__ = ["CHUNK_SECONDS", "Separator", "SeparatorError", "add_up"]

CHUNK_SECONDS = 30.0
"""Longer clips are separated in chunks, unless something else is asked for."""

FORMAT = 1
_KIND = Kind("separator", FORMAT, ("config.json", "model.safetensors"), "offkey fit-separator SOURCE")
_QUIETEST = 1e-12  # level at which a clip counts as silence, of full scale
_FADE_FRAMES = 8
_INAUDIBLE = 1e-8  # power of a bin against 1 for levelled noise, below which nothing is made louder


class SeparatorError(OffkeyError):
    """A separator that cannot be read, or a waveform that it cannot separate."""


class Separator(nn.Module):
    """STFT, TF-Locoformer, and back: waveform (B, T) to foreground and background (B, 2, T), float32.

    A clip is brought to a root mean square of 1 for the network and back afterwards. The network's two spectra need
    not add up to the clip's: what is left over (or too much) is shared equally between them, as mixture consistency
    has it (Wisdom et al., ICASSP 2019). How the waveforms add up: see `add_up`.

    A frame is the Fourier transform of `n_fft` samples under a Hann window; the first begins n_fft − hop samples
    before the clip and the last holds its last sample, so that every sample lies in n_fft / hop frames and padding
    behind a clip changes nothing.
    """

    window: Tensor

    def __init__(self, config: SeparatorConfig | None = None) -> None:
        super().__init__()
        self.config = config or SeparatorConfig()
        self.network = TFLocoformer(self.config.locoformer)
        window = torch.hann_window(self.config.n_fft, periodic=True, dtype=torch.float64).float()
        self.register_buffer("window", window, persistent=False)

    # ---- separation

    def forward(
        self, waveform: Float[Tensor, "B T"], lengths: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B 2 T"]:
        """Separate clips whose real samples are the first `lengths` (None: all); behind them the result is zero.

        Clips with different numbers of frames go through the network one after another, so that a clip's result
        depends neither on its company nor on its padding.
        """
        batch, width = waveform.shape
        if lengths is None:
            own = waveform
            frames = [self.frames(width)] * batch
        else:
            own = torch.where(torch.arange(width, device=waveform.device) < lengths[:, None], waveform, 0.0)
            frames = [self.frames(min(int(length), width)) for length in lengths.tolist()]
        count = own.shape[1] if lengths is None else lengths
        with torch.autocast(waveform.device.type, enabled=False):
            own = own.float()
            level = _level(own, count)
            levelled = own / level.clamp_min(_QUIETEST)[:, None]
        parts: list[Tensor] = []
        places: list[int] = []
        for size in sorted({size for size in frames if size}, reverse=True):
            clips = [clip for clip, other in enumerate(frames) if other == size]
            spectrum = self._analyse(levelled if len(clips) == batch else levelled[clips], 0, size)
            found = self._foreground(spectrum)
            with torch.autocast(waveform.device.type, enabled=False):
                parts.append(self._fit(self._synthesise(found), width))
            places += clips
        if not parts:
            return torch.stack([own, own], dim=1)  # nothing but padding
        foreground = parts[0] if len(parts) == 1 else torch.cat(parts)
        missing = [clip for clip, size in enumerate(frames) if not size]
        if missing:
            foreground = torch.cat([foreground, own[missing]])
        if places + missing != list(range(batch)):
            foreground = foreground[torch.tensor(places + missing, device=own.device).argsort()]
        with torch.autocast(waveform.device.type, enabled=False):
            foreground = foreground * level[:, None]
            if lengths is not None:
                foreground = torch.where(torch.arange(width, device=own.device) < lengths[:, None], foreground, 0.0)
            return add_up(own, foreground)

    @torch.no_grad()
    def separate(
        self, waveform: NDArray[np.float32], chunk_seconds: float = CHUNK_SECONDS, overlap_seconds: float | None = None
    ) -> NDArray[np.float32]:
        """Separate one clip (T,) of any length into (2, T) float32, in chunks where it is longer than one.

        Level and the network's first normalisation come from the whole clip. Neighbouring chunks share
        `overlap_seconds` and are cross-faded in the middle of it. Left out, the overlap is as long as the network
        hears around a frame: the result is then that of the whole clip at once, but for rounding. A network whose
        attention is not bounded (`locoformer.attention_frames` is null) hears all of a chunk, and its result depends on
        where chunks begin; they overlap by a quarter then. Memory for spectra does not grow with the clip.

        The module computes on its own device and is in eval mode meanwhile. Raises SeparatorError for samples that are
        not finite, another shape, or times that do not fit together.
        """
        samples = np.asarray(waveform, dtype=np.float32)
        if samples.ndim != 1:
            raise SeparatorError(f"a clip to separate is mono, (T,) samples, not an array of shape {samples.shape}")
        if not np.isfinite(samples).all():
            raise SeparatorError("the clip holds samples that are not finite: look for them with `offkey data check`")
        plan = self._plan(self.frames(len(samples)), chunk_seconds, overlap_seconds)
        if not len(samples):
            return np.zeros((2, 0), dtype=np.float32)
        device = self.window.device
        own = torch.from_numpy(np.ascontiguousarray(samples))[None]
        trained = self.training
        self.eval()
        try:
            if len(plan) == 1:
                return self(own.to(device))[0].cpu().numpy()
            with torch.autocast(device.type, enabled=False):
                level = _level(own, own.shape[1])
                levelled = own / level.clamp_min(_QUIETEST)[:, None]
                moments = self._moments(levelled, plan)
                found = self._in_chunks(levelled, plan, moments)
                return add_up(own, found * level[:, None])[0].numpy()
        finally:
            self.train(trained)

    def frames(self, samples: int) -> int:
        """How many frames hold a sample of a clip."""
        config = self.config
        return -(-(samples + config.n_fft - config.hop) // config.hop) if samples > 0 else 0

    def _plan(self, frames: int, chunk_seconds: float, overlap_seconds: float | None) -> list[_Chunk]:
        config, reach = self.config, self.network.reach
        per_second = config.rate / config.hop
        grid = config.locoformer.stride  # convolutions step over the same frames in every chunk
        if not (math.isfinite(chunk_seconds) and chunk_seconds > 0):
            raise SeparatorError(f"chunk_seconds must be above 0, not {chunk_seconds}")
        size = max(1, round(chunk_seconds * per_second / grid)) * grid
        if overlap_seconds is None:
            overlap = size // 4 if reach is None else 2 * reach + _FADE_FRAMES
            size = max(size, 2 * overlap)  # else most of the work would be done twice
        else:
            overlap = round(overlap_seconds * per_second)
        if frames <= size:
            return [_Chunk(0, frames, 0, 0)]
        advance = (size - overlap) // grid * grid
        if overlap < 0 or 2 * (size - advance) > size:
            raise SeparatorError(
                f"overlap_seconds ({overlap_seconds}) must lie between 0 and half of chunk_seconds ({chunk_seconds})"
            )
        overlap = size - advance
        count = 1 + -(-(frames - size) // advance)
        starts = [number * advance for number in range(count)]
        return [
            _Chunk(start, min(start + size, frames), overlap if number else 0, overlap if number < count - 1 else 0)
            for number, start in enumerate(starts)
        ]

    def _moments(self, levelled: Tensor, plan: list[_Chunk]) -> Moments:
        """Those of the whole clip, from its chunks; each counts the frames that no earlier one has counted."""
        sums = torch.zeros(1, 3, dtype=torch.float64)
        end, step, around = plan[-1].end, plan[0].end, self.network.entry_reach
        for start in range(0, end, step):
            stop = min(start + step, end)
            low, high = max(0, start - around), min(end, stop + around)
            spectrum = self._analyse(levelled, low, high)
            sums += self.network.moment_sums(self._heard(spectrum), start - low, stop - low).cpu()
        return Moments(*(part.to(self.window.device) for part in self.network.moments(sums)))

    def _in_chunks(self, levelled: Tensor, plan: list[_Chunk], moments: Moments) -> Tensor:
        config, reach = self.config, self.network.reach
        sound = torch.zeros(1, (plan[-1].end + config.n_fft // config.hop - 1) * config.hop)
        for chunk in plan:
            spectrum = self._foreground(self._analyse(levelled, chunk.start, chunk.end), moments)
            weights = chunk.weights(reach).to(spectrum.device)
            part = self._synthesise(spectrum * weights[:, None], trim=False).cpu()
            start = chunk.start * config.hop
            sound[:, start : start + part.shape[1]] += part
        return self._fit(sound[:, config.n_fft - config.hop :], levelled.shape[1])

    def _analyse(self, waveform: Tensor, start: int, end: int) -> Tensor:
        """Frames `start` to `end` (B, F, N) of clips that are zero beyond their ends, on this module's device."""
        config = self.config
        first = start * config.hop - (config.n_fft - config.hop)
        last = (end - 1) * config.hop - (config.n_fft - config.hop) + config.n_fft
        size = waveform.shape[1]
        with torch.autocast(waveform.device.type, enabled=False):
            piece = waveform[:, max(0, first) : min(size, last)].to(self.window.device)
            piece = F.pad(piece, (max(0, -first), max(0, last - size)))
            # both directions scaled by the root of n_fft: levelled noise has bins of about 1
            return torch.fft.rfft(piece.unfold(1, config.n_fft, config.hop) * self.window, norm="ortho")

    def _synthesise(self, spectrum: Tensor, trim: bool = True) -> Tensor:
        """Overlap and add frames (B, F, N); samples that all of their frames were given for come out as analysed."""
        config = self.config
        count = config.n_fft // config.hop
        pieces = torch.fft.irfft(spectrum, config.n_fft, norm="ortho") * self.window
        share = self.window.square().view(count, config.hop).sum(0)  # of a sample's frames together
        pieces = pieces.unflatten(2, (count, config.hop))
        shifted = [F.pad(pieces[:, :, place], (0, 0, place, count - 1 - place)) for place in range(count)]
        total = shifted[0]
        for piece in shifted[1:]:
            total = total + piece
        sound = (total / share).flatten(1)
        return sound[:, config.n_fft - config.hop :] if trim else sound

    def _heard(self, spectrum: Tensor) -> Tensor:
        """The spectrum as the network hears it, its magnitudes compressed and its phases as they are."""
        if self.config.compression == 1.0:
            return spectrum
        with torch.autocast(spectrum.device.type, enabled=False):
            power = spectrum.real.square() + spectrum.imag.square() + _INAUDIBLE
            return spectrum * power ** (0.5 * (self.config.compression - 1.0))

    def _foreground(self, spectrum: Tensor, moments: Moments | None = None) -> Tensor:
        """The foreground's spectrum (B, F, N) of a mixture's."""
        found = self.network.spectra(self._heard(spectrum), moments)
        if self.config.output == "mask":
            found = found * spectrum[:, None]
        if found.shape[1] == 1:
            return found[:, 0]
        return 0.5 * (spectrum + found[:, 0] - found[:, 1])

    @staticmethod
    def _fit(sound: Tensor, width: int) -> Tensor:
        return F.pad(sound, (0, max(0, width - sound.shape[1])))[:, :width]

    # ---- disk

    def fingerprint(self) -> str:
        """Stands for settings and weights: another one separates otherwise."""
        mixed = hashlib.sha256(json.dumps(self.config.model_dump(mode="json"), sort_keys=True).encode())
        for name, value in self.state_dict().items():
            mixed.update(f"{name}{list(value.shape)}".encode())
            mixed.update(value.detach().cpu().contiguous().numpy().tobytes())
        return mixed.hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write the separator into `folder` (made if missing); the manifest comes last: a kill leaves no half one."""
        from safetensors.torch import save as to_bytes

        folder = Path(folder)
        (folder / MANIFEST).unlink(missing_ok=True)
        contents: dict[str, bytes | str] = {
            "config.json": self.config.model_dump_json(indent=1),
            "model.safetensors": to_bytes({name: value.contiguous() for name, value in self.state_dict().items()}),
        }
        for name, content in contents.items():
            write_whole(folder / name, content)
        write_manifest(folder, contents, _KIND)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Separator:
        """Read a separator that `save` wrote, in eval mode and without gradients.

        Raises SeparatorError where the folder holds none, a file is missing, was changed or is damaged, or the format
        is newer than this offkey reads.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            read_manifest(folder, _KIND)
        except ManifestError as error:
            raise SeparatorError(str(error)) from None
        try:
            separator = cls(SeparatorConfig.model_validate_json((folder / "config.json").read_bytes()))
            separator.load_state_dict(load_file(folder / "model.safetensors"))
        except (ValueError, RuntimeError, SafetensorError, OSError) as error:
            raise SeparatorError(f"{folder}: the separator is damaged ({error}); fit it again") from error
        return separator.eval().requires_grad_(False)


class _Chunk(NamedTuple):
    """Frames `start` to `end` of a clip, of which `before` and `after` are shared with the neighbours."""

    start: int
    end: int
    before: int
    after: int

    def weights(self, reach: int | None) -> Tensor:
        """(F,) what each frame counts; over all chunks a frame's weights add up to 1."""
        parts = [_rise(self.before, reach), torch.ones(self.end - self.start - self.before - self.after)]
        return torch.cat([*parts, 1.0 - _rise(self.after, reach)])


def _rise(size: int, reach: int | None) -> Tensor:
    """Weights (size,) from 0 to 1 over an overlap: nothing near the chunk's edge, all of it near the neighbour's."""
    margin = size // 4 if reach is None else min(reach, size // 2)
    middle = size - 2 * margin
    ramp = (torch.arange(middle, dtype=torch.float64) + 1) / (middle + 1)
    return torch.cat([torch.zeros(margin), ramp.float(), torch.ones(margin)])


def add_up(mixture: Float[Tensor, "B T"], foreground: Float[Tensor, "B T"]) -> Float[Tensor, "B 2 T"]:
    """Foreground and background (B, 2, T), background = mixture − foreground, so that their sum is the mixture.

    Where a part is far louder than the mixture, float32 has no two numbers with that sum and these loudnesses.
    The foreground is therefore rounded to a multiple of the last place of the loudest of the three: the sum is then
    exact, bit for bit, wherever the mixture is such a multiple too. That is so for every recording of up to 24 bits
    while no part is beyond twice full scale; elsewhere the sum is off by at most half a last place of the loudest.
    Rounding lets gradients through.
    """
    with torch.no_grad():
        loudest = torch.maximum(torch.maximum(mixture.abs(), foreground.abs()), (mixture - foreground).abs())
        # the exponent bits alone are a float's power of two; 2**-23 of it is its last place
        power = (loudest.clamp_min(1e-30).view(torch.int32) & 0x7F800000).view(torch.float32)
        place = power * 2.0**-23
        rounded = (foreground / place).round() * place
    foreground = rounded + (foreground - foreground.detach())
    return torch.stack([foreground, mixture - foreground], dim=1)


def _level(waveform: Tensor, count: Tensor | int) -> Tensor:
    """Root mean square (B,) over `count` samples of each clip; 0 for silence."""
    power = waveform.double().square().sum(1) / (count if isinstance(count, int) else count.clamp_min(1))
    return (power.clamp_min(_QUIETEST**2).sqrt() * (power > _QUIETEST**2)).float()  # the root has no slope at 0
