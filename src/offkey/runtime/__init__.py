"""Exported detectors, scored by ONNX Runtime where there is no torch.

Needs onnxruntime, numpy, soundfile, soxr and pydantic; the command line needs typer besides. Nothing else is loaded.
"""

from __future__ import annotations

from offkey.runtime.exported import Exported, RuntimeProblem, is_exported

__all__ = ["Exported", "RuntimeProblem", "is_exported"]
