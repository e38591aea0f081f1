"""Views of a clip: each is what its network or statistic says, and clips meet the network of their own machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offkey.models.dense_autoencoder import DenseAutoencoder, SelectiveMahalanobis
from offkey.models.reconstructive import Reconstructive
from offkey.systems.config import load_preset
from offkey.types import Batch
from offkey.views import SHARED, ViewError, Views


def batch_of(*lengths: int) -> Batch:
    waveform = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveform[row, :length] = 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(row))
    return Batch(waveform, torch.tensor(lengths), None, torch.arange(len(lengths)))


def test_the_error_of_a_clip_is_pooled_as_the_settings_say(fitted: Callable[[str], Any]) -> None:
    detector = fitted("system3").detector
    network = detector.network
    assert isinstance(network, Reconstructive)
    batch = batch_of(20000, 9000)
    with torch.inference_mode():
        error = network(batch).frame_error
    frames = [20000 // 512 + 1, 9000 // 512 + 1]
    for pooling, of in (("mean", np.mean), ("max", np.max), ("top", lambda own: np.sort(own)[-3:].mean())):
        model = detector.config.model.model_copy(update={"pooling": pooling, "top": 3})
        seen = Views(detector.config.model_copy(update={"model": model}), {SHARED: network})(batch, ["fan", "valve"])
        expected = [of(row[:count].numpy()) for row, count in zip(error, frames, strict=True)]
        np.testing.assert_allclose(seen.embeddings["error"][:, 0], expected, rtol=1e-5)
        assert [len(own) for own in seen.errors] == frames


def test_every_machine_meets_its_own_network(fitted: Callable[[str], Any]) -> None:
    detector = fitted("baseline").detector
    assert set(detector.networks) == {"fan", "valve"}
    assert detector.network is None
    batch = batch_of(20000, 9000, 15000)
    together = Views(detector.config, detector.networks)(batch, ["valve", "fan", "valve"])
    for row, name in enumerate(["valve", "fan", "valve"]):
        network = detector.networks[name]
        assert isinstance(network, DenseAutoencoder)
        length = int(batch.lengths[row])
        alone = Batch(batch.waveform[row : row + 1, :length], batch.lengths[row : row + 1], None, batch.place[:1])
        with torch.inference_mode():
            error = network(alone).frame_error[0].numpy()
            residual = SelectiveMahalanobis(network)(alone).embedding[0].numpy()
        np.testing.assert_allclose(together.errors[row], error, rtol=1e-4)
        np.testing.assert_allclose(together.embeddings["error"][row], error.mean(keepdims=True), rtol=1e-4)
        np.testing.assert_allclose(together.embeddings["residual"][row], residual, rtol=1e-3)
    with pytest.raises(ViewError, match="no network for the machine 'pump'"):
        Views(detector.config, detector.networks)(batch, ["valve", "pump", "fan"])


def test_a_view_of_a_network_needs_one() -> None:
    with pytest.raises(ViewError, match="none was trained"):
        Views(load_preset("system4"), {})


def test_a_system_without_errors_tells_of_none(fitted: Callable[[str], Any], small_set: Path) -> None:
    for system in ("loudness", "discriminative"):
        detector = fitted(system).detector
        assert Views(detector.config, detector.networks)(batch_of(9000), ["fan"]).errors is None
