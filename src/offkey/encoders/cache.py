"""What frozen encoders heard, kept on disk, so that no clip is encoded twice."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offkey.audio.cache import ArrayCache
from offkey.audio.resample import Resample
from offkey.encoders.base import Encoder, EncoderError
from offkey.types import Float, Int

__all__ = ["FeatureCache"]

_FORMAT = 1  # another number where the same entry would hold something else


class FeatureCache:
    """Answers of frozen encoders, one entry a clip and layer in `cache`.

    An entry is found by the samples of the clip alone and by what makes the answer: architecture, weights, layer,
    resampling, precision. So batches may be composed anew and files renamed, and several processes may share the
    folder. Only clips that are not there are encoded, together, each of them once. What comes back is always what
    is stored: the first answer and all later ones are the same to the bit, and the encoder's own but for rounding
    (which differs with a batch's company and with the device).

    `precision` "float16" takes half the space; numbers are then off by at most 5e-4 of their size (3e-8 near zero). An
    answer with numbers beyond 65504 is kept as float32.

    A 10 s clip of BEATs takes 1.5 MB as patches, 0.2 MB as frames. Give `cache` room for one pass over all clips:
    under a lower bound, the entries that go first are the ones that are needed next, and none is ever found. Clips
    that do not come again (random crops, augmentation) only fill it.

    All methods take `resample` where the waveforms are not at the encoder's rate yet: entries are then found by the
    samples before resampling, and only what is encoded is resampled. They raise EncoderError for an encoder
    that may still change, in training mode or with a weight that requires gradients (`unfreeze` "none" in
    `offkey.training` freezes it), for a waveform that requires them, and where the encoder does.
    """

    def __init__(self, cache: ArrayCache, precision: Literal["float32", "float16"] = "float32") -> None:
        self.cache = cache
        self.precision = precision
        self._fingerprints: weakref.WeakKeyDictionary[Encoder, tuple[list[_Stamp], str]] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"FeatureCache({self.cache!r}, {self.precision!r})"

    def patches(
        self,
        encoder: Encoder,
        waveform: Float[Tensor, "B T"],
        lengths: Int[Tensor, " B"] | None = None,
        resample: Resample | None = None,
    ) -> Float[Tensor, "B Pt Pf D"]:
        """The same as `encoder.patches(waveform, lengths)`."""
        return self._fetch(encoder, waveform, lengths, [encoder.depth], resample, averaged=False)[0]

    def frames(
        self,
        encoder: Encoder,
        waveform: Float[Tensor, "B T"],
        lengths: Int[Tensor, " B"] | None = None,
        resample: Resample | None = None,
    ) -> Float[Tensor, "B Pt D"]:
        """The same as `encoder.patches(waveform, lengths).mean(2)`: patches averaged over frequency.

        They are kept as such, `encoder.bands` times smaller than patches, and computed apart from them.
        """
        return self._fetch(encoder, waveform, lengths, [encoder.depth], resample, averaged=True)[0]

    def layers(
        self,
        encoder: Encoder,
        waveform: Float[Tensor, "B T"],
        lengths: Int[Tensor, " B"] | None,
        which: Sequence[int],
        resample: Resample | None = None,
    ) -> list[Tensor]:
        """The same as `encoder.layers(waveform, lengths, which)`; each layer is kept by itself."""
        return self._fetch(encoder, waveform, lengths, which, resample, averaged=False)

    def pooled(
        self,
        encoder: Encoder,
        waveform: Float[Tensor, "B T"],
        lengths: Int[Tensor, " B"] | None,
        which: Sequence[int],
        pool: Callable[[list[Tensor], list[Tensor]], Tensor],
        told: str,
        resample: Resample | None = None,
        heard: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "B D"]:
        """`pool(grids, counts)` of layers `which`: one vector a clip, of which alone is kept what takes a few kB.

        `grids` (B, Pt, Pf, D') a layer and `counts` (B,) the clips' own patches along time in it; `pool` must give
        (B, D), each row from its own clip alone. `told` stands for everything that makes `pool` what it is. `heard`:
        what `layers` gave for these clips, where it is at hand, so that nothing is encoded.
        """
        _refuse_what_changes(encoder, waveform)
        encoder.check_layers(which)
        waveform = waveform.float()
        sizes: list[int] = [waveform.shape[1]] * len(waveform) if lengths is None else lengths.tolist()
        rate = None if resample is None else resample.rate_in
        maker = (_FORMAT, self._fingerprint(encoder), self.precision, "pooled", tuple(which), told, rate)
        clips = _clips(waveform, sizes)
        keys = {clip: _digest(clip + repr(maker).encode()).hex() for clip in clips}
        found: dict[bytes, NDArray[np.float32]] = {}
        missing: dict[bytes, int] = {}
        for clip, place in {clip: clips.index(clip) for clip in clips}.items():
            entry = self.cache.get(keys[clip])
            if entry is None or entry.ndim != 1 or entry.dtype.kind != "f":
                missing[clip] = place
            else:
                found[clip] = np.array(entry, np.float32)
        if missing:
            places = list(missing.values())
            own = torch.tensor([sizes[place] for place in places])
            if heard is None:
                grids = _encode(encoder, waveform, own.tolist(), places, which, resample)
            else:
                grids = [grid[places] for grid in heard]
            own = own if resample is None else resample.lengths(own)
            counts = [encoder.patch_counts(own, layer).to(waveform.device) for layer in which]
            for clip, vector in zip(missing, pool(grids, counts).cpu().numpy(), strict=True):
                kept = self._rounded(vector)
                self.cache.put(keys[clip], kept)
                found[clip] = kept.astype(np.float32)
        return torch.from_numpy(np.stack([found[clip] for clip in clips])).to(waveform.device)

    def _fetch(
        self,
        encoder: Encoder,
        waveform: Tensor,
        lengths: Tensor | None,
        which: Sequence[int],
        resample: Resample | None,
        averaged: bool,
    ) -> list[Tensor]:
        _refuse_what_changes(encoder, waveform)
        encoder.check_layers(which)
        if not len(waveform):
            return encoder.layers(waveform, lengths, which)  # which says what is wrong
        waveform = waveform.float()
        sizes: list[int] = [waveform.shape[1]] * len(waveform) if lengths is None else lengths.tolist()
        heard = torch.tensor([*sizes, waveform.shape[1]])
        heard = heard if resample is None else resample.lengths(heard)
        # patches of each clip in each layer, and of the longest clip that would fit into the batch
        counts = {layer: encoder.patch_counts(heard, layer).tolist() for layer in which}

        rate = None if resample is None else resample.rate_in
        maker = (_FORMAT, self._fingerprint(encoder), self.precision, averaged, rate)
        clips = _clips(waveform, sizes)
        found: dict[tuple[bytes, int], NDArray[np.float32]] = {}
        missing: dict[bytes, int] = {}  # clip: where it stands in the batch first
        absent: set[int] = set()
        for clip, place in {clip: clips.index(clip) for clip in clips}.items():
            for layer in sorted(set(which)):
                entry = self.cache.get(_key(clip, maker, layer))
                if entry is None or not _fits(entry, counts[layer][place], averaged):
                    missing[clip] = place
                    absent.add(layer)
                else:
                    found[clip, layer] = np.array(entry, np.float32)  # a mapped entry would hold a file handle
        if missing:
            places = list(missing.values())
            grids = _encode(encoder, waveform, [sizes[place] for place in places], places, sorted(absent), resample)
            for layer, grid in zip(sorted(absent), grids, strict=True):
                answers = (grid.mean(2) if averaged else grid).cpu().numpy()
                for answer, (clip, place) in zip(answers, missing.items(), strict=True):
                    if (clip, layer) not in found:
                        kept = self._rounded(answer[: counts[layer][place]])
                        self.cache.put(_key(clip, maker, layer), kept)
                        found[clip, layer] = kept.astype(np.float32)
        results = []
        for layer in which:
            own = [found[clip, layer] for clip in clips]
            result = np.zeros((len(own), counts[layer][-1], *own[0].shape[1:]), np.float32)
            for row, answer in zip(result, own, strict=True):
                row[: len(answer)] = answer
            results.append(torch.from_numpy(result).to(waveform.device))
        return results

    def _rounded(self, answer: NDArray[np.float32]) -> NDArray[Any]:
        if self.precision == "float32":
            return answer
        with np.errstate(over="ignore"):
            half = answer.astype(np.float16)
        return half if np.isfinite(half).all() else answer

    def _fingerprint(self, encoder: Encoder) -> str:
        """The encoder's fingerprint, computed again only if a weight may have changed since the last time."""
        stamps = [_stamp(tensor) for tensor in (*encoder.parameters(), *encoder.buffers())]
        known = self._fingerprints.get(encoder)
        if known is not None and known[0] == stamps:
            fingerprint = known[1]
        else:
            fingerprint = encoder.fingerprint()
            self._fingerprints[encoder] = stamps, fingerprint
        return f"{fingerprint} {encoder.bf16}"  # a plain attribute, which leaves no stamp


class _Stamp(NamedTuple):
    """Differs after a tensor was replaced, moved, or changed in place.

    Torch counts changes in place for its gradients; those through `.data` or numpy alone escape it.
    """

    tensor: weakref.ref[Tensor]  # an address alone may be taken by another tensor later
    address: int
    changes: int


def _stamp(tensor: Tensor) -> _Stamp:
    return _Stamp(weakref.ref(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)


def _refuse_what_changes(encoder: Encoder, waveform: Tensor) -> None:
    if any(weights.requires_grad for weights in encoder.parameters()):
        raise EncoderError(f"only a frozen encoder's answers can be kept, but {encoder.name} has weights that learn")
    if any(module.training for module in encoder.modules()):
        raise EncoderError(f"only answers in eval mode can be kept, but {encoder.name} is in training mode")
    if waveform.requires_grad:
        raise EncoderError("gradients for the waveform do not pass through kept answers: call the encoder itself")


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _key(clip: bytes, maker: tuple[object, ...], layer: int) -> str:
    return _digest(clip + repr((*maker, layer)).encode()).hex()


def _clips(waveform: Tensor, sizes: Sequence[int]) -> list[bytes]:
    """What stands for the samples of each clip, of which there are `sizes` in each row of (B, T)."""
    rows = waveform.cpu().contiguous().numpy()
    return [_digest(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _fits(entry: NDArray[Any], count: int, averaged: bool) -> bool:
    return entry.ndim == (2 if averaged else 3) and len(entry) == count and entry.dtype.kind == "f"


@torch.no_grad()
def _encode(
    encoder: Encoder,
    waveform: Tensor,
    sizes: list[int],
    places: list[int],
    which: Sequence[int],
    resample: Resample | None,
) -> list[Tensor]:
    """Layers `which` of the clips at `places`, of `sizes` samples, in a batch as long as the longest of them."""
    clips = waveform[places, : max(sizes)]
    lengths = torch.tensor(sizes, device=waveform.device)
    if resample is not None:
        clips, lengths = resample(clips, lengths), resample.lengths(lengths)
    return encoder.layers(clips, lengths if min(sizes) < max(sizes) else None, which)
