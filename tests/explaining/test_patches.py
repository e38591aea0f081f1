"""The bank of normal patches is a fair, bounded sample, and a patch that it does not know stands out where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import offkey
from offkey.audio.mel import LogMel, mel_centres
from offkey.explaining.patches import BANK, PatchBankBuilder, join_banks, laid_on_mel, patch_distances
from offkey.models.retrieval import Retrieval
from offkey.types import Batch, Representation

BANDS, WIDTH = 4, 12
HOMES = np.random.default_rng(5).standard_normal((BANDS, WIDTH))


def grid(seed: int, times: int = 20) -> np.ndarray:
    """Patches around one place a band."""
    return (HOMES + 0.2 * np.random.default_rng(seed).standard_normal((times, BANDS, WIDTH))).astype(np.float32)


def bank_of(clips: dict[int, np.ndarray]) -> Any:
    builder = PatchBankBuilder()
    for place, one in clips.items():
        builder.add(place, one)
    return builder.bank()


def test_the_bank_is_bounded_and_the_order_of_clips_does_not_matter() -> None:
    clips = {place: grid(place, 40) for place in range(30)}
    bank, other = bank_of(clips), bank_of(dict(reversed(clips.items())))
    assert bank.vectors.shape == (BANDS, BANK, WIDTH)
    assert bank.vectors.dtype == np.float16
    np.testing.assert_array_equal(bank.vectors, other.vectors)
    np.testing.assert_allclose(np.linalg.norm(bank.vectors.astype(float), axis=2), 1.0, atol=2e-3)
    shares = np.bincount(bank.clips[0], minlength=30) / BANK
    assert shares.min() > 0.01
    assert shares.max() < 0.08


def test_distances_agree_with_a_slow_reckoning() -> None:
    clips = {place: grid(place) for place in range(3)}
    bank, asked = bank_of(clips), grid(9)
    found = patch_distances(asked, bank)
    for band in range(BANDS):
        known = np.concatenate([one[:, band] for one in clips.values()]).astype(float)
        cosine = [
            min(1 - own @ one / np.linalg.norm(own) / np.linalg.norm(one) for one in known) for own in asked[:, band]
        ]
        raw = found[:, band] * bank.usual[band, 1] + bank.usual[band, 0]
        np.testing.assert_allclose(raw, cosine, atol=2e-3)


def test_a_strange_patch_stands_out_and_padding_does_not() -> None:
    bank = bank_of({place: grid(place) for place in range(6)})
    asked = grid(9)
    asked[7, 2] = -asked[7, 2]
    asked[15:] = 0.0
    found = patch_distances(asked, bank)
    assert np.unravel_index(int(found.argmax()), found.shape) == (7, 2)
    assert found[7, 2] > 20 > 6 > np.delete(found.ravel(), 7 * BANDS + 2).max()
    assert not found[15:].any()
    padded = bank_of(
        {place: np.concatenate([grid(place), np.zeros((5, BANDS, WIDTH), np.float32)]) for place in (0, 1)}
    )
    assert np.linalg.norm(padded.vectors.astype(float), axis=2).min() > 0.9


def test_a_sound_that_came_later_is_dark_in_a_bank_that_stays_bounded() -> None:
    """One clip among thousands of patches, over and over: none of the sounds that were accepted is forgotten."""
    bank = bank_of({place: grid(place, 40) for place in range(30)})
    before = patch_distances(grid(99), bank)
    rng = np.random.default_rng(1)
    accepted = []
    for number in range(6):
        sound = rng.standard_normal((BANDS, WIDTH))
        first, second = (
            (sound + 0.2 * np.random.default_rng(seed).standard_normal((10, BANDS, WIDTH))).astype(np.float32)
            for seed in (1000 + number, 2000 + number)
        )
        accepted.append((first, second, np.median(patch_distances(second, bank))))
        bank = join_banks(bank, bank_of({0: first}), 0.01)
        assert bank.vectors.shape == (BANDS, BANK, WIDTH)
        assert bank.clips.shape == (BANDS, BANK)
        assert np.isfinite(bank.usual).all()
    for first, second, bright in accepted:
        assert np.median(patch_distances(first, bank)) < 0
        assert np.median(patch_distances(second, bank)) < bright / 20
    after = patch_distances(grid(99), bank)
    assert abs(np.median(after) - np.median(before)) < 0.5


def test_small_banks_are_joined_whole_and_clips_stay_apart() -> None:
    a, b = bank_of({0: grid(0), 1: grid(1)}), bank_of({0: grid(2), 1: grid(3)})
    joined = join_banks(a, b, 0.5)
    np.testing.assert_array_equal(joined.vectors, np.concatenate([a.vectors, b.vectors], axis=1))
    assert [np.bincount(row).tolist() for row in joined.clips] == [[20, 20, 20, 20]] * BANDS
    whole = bank_of({place: grid(place) for place in range(4)})
    np.testing.assert_allclose(joined.usual[:, 0], whole.usual[:, 0], rtol=0.25)


def test_nothing_to_keep_and_a_single_clip() -> None:
    assert PatchBankBuilder().bank() is None
    assert bank_of({0: np.zeros((3, BANDS, WIDTH), np.float32)}) is None
    assert np.isfinite(patch_distances(grid(1), bank_of({0: grid(0)}))).all()


def test_a_patch_lands_at_its_time_and_frequency() -> None:
    mel = LogMel(16000)
    values = np.zeros((10, 8))
    values[3, 5] = 1.0
    drawn = laid_on_mel(values, (0.0, 8000.0), mel, 200)
    band, frame = np.unravel_index(int(drawn.argmax()), drawn.shape)
    assert abs(frame - 70) <= 1
    centre = 700 * np.expm1(5.5 / 8 * np.log1p(8000 / 700))
    assert abs(mel_centres(16000, mel.config)[band] - centre) < 100
    assert not drawn[:20].any()


class Listening(Retrieval):
    """Stands for a retrieval network: a frozen encoder that tells its patches when it is asked."""

    def __init__(self, listener: Any, width: int) -> None:
        nn.Module.__init__(self)
        self.encoder, self.width = listener, width

    def forward(self, batch: Batch, patches: bool = False) -> Representation:
        told = self.encoder.patches(batch.waveform, batch.lengths) if patches else None
        return Representation(torch.full((len(batch.waveform), self.width), 0.1), patch_grid=told)


def test_a_network_that_tells_its_patches_has_a_map_of_them(
    fitted: Callable[[str], Any], small_beats: Path, small_set: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    from offkey.encoders import load_encoder
    from offkey.explaining import ProfileBuilder
    from offkey.views import SHARED

    plain = offkey.load(fitted("discriminative").folder)
    known = plain.machines["fan"]
    network = Listening(load_encoder("beats", small_beats).eval(), known.embeddings["network"].shape[1])
    detector = replace(plain, networks={SHARED: network})
    builder = ProfileBuilder(LogMel(16000))
    files = sorted(small_set.glob("fan/train/*.wav"))[:8]
    for place, file in enumerate(files):
        samples = torch.from_numpy(np.array(detector._reader().read(file)))[None]
        batch = Batch(samples, torch.tensor([samples.shape[1]]), None, torch.tensor([place]))
        seen = detector._views(batch, ["fan"], reasons=True)
        assert detector._views(batch, ["fan"]).patches is None
        builder.add(["fan"], batch, None, None, seen.patches)
    bank = builder.profiles()["fan"].patches
    assert bank is not None
    detector.machines["fan"] = replace(known, profile=replace(known.profile, patches=bank))
    found = detector.explain(files[0], machine="fan")
    assert found.map_kind == "patches"
    assert found.map.shape == found.level.shape

    detector.networks.clear()
    detector.networks.update(plain.networks)
    kept = offkey.load(detector.save(tmp_path / "kept")).machines["fan"].profile.patches
    assert kept is not None
    np.testing.assert_array_equal(kept.vectors, bank.vectors)
    np.testing.assert_array_equal(kept.usual, bank.usual)
