"""Small references that every scoring test may use."""

import numpy as np
import pytest

from offkey.scoring import Reference

WIDTH = 6


def make_reference(seed: int = 0, clips: int = 60, target: int = 9, width: int = WIDTH) -> Reference:
    """Two operating settings in two domains; the target domain is shifted and has few clips."""
    rng = np.random.default_rng(seed)
    identity = np.arange(clips) % 2
    domain = np.where(np.arange(clips) < clips - target, "source", "target")
    centre = 4.0 + 3.0 * identity[:, None] * np.eye(width)[0] + 2.0 * (domain == "target")[:, None] * np.eye(width)[1]
    embedding = centre + rng.normal(size=(clips, width)) @ np.diag(np.linspace(0.3, 1.5, width))
    return Reference(embedding, domain, identity, frame_error=rng.gamma(2.0, size=clips))


@pytest.fixture
def reference() -> Reference:
    return make_reference()
