"""Simulated machines: sound built from physics, with known faults, written as a data set.

`synthesize` writes it, `SynthConfig` says what it holds, `MACHINES` which machines there are.
"""

from __future__ import annotations

from offkey.data.synthetic.config import MACHINES, SynthConfig, SynthError, SynthSummary
from offkey.data.synthetic.dataset import synthesize

__all__ = ["MACHINES", "SynthConfig", "SynthError", "SynthSummary", "synthesize"]
