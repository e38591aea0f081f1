"""The report of a run: one self-contained HTML page that an engineer and a researcher can both read.

`contents` says what a report is made of, `page.write_report` writes it, `figures` draws its charts,
`projection.project` lays embeddings out in two dimensions. Nothing here knows how a detector is stored.
`comparison.write_comparison` writes the table of a benchmark in the same style.
"""

from __future__ import annotations

from offkey.report.comparison import write_comparison
from offkey.report.contents import ClipReport, EmbeddingMap, MachineReport, Reason, ReportData
from offkey.report.page import write_report
from offkey.report.projection import project

__all__ = [
    "ClipReport",
    "EmbeddingMap",
    "MachineReport",
    "Reason",
    "ReportData",
    "project",
    "write_comparison",
    "write_report",
]
