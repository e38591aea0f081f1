"""Detectors as ONNX files, checked against what they were made from: `export_detector`."""

from __future__ import annotations

from offkey.exporting.problem import ExportError
from offkey.exporting.write import Export, export_detector

__all__ = ["Export", "ExportError", "export_detector"]
