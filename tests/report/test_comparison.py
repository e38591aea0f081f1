"""The table of a benchmark as a page: whole, safe, sortable, and the best marked."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from offkey.evaluation.tables import Cell, Table
from offkey.report import write_comparison


@pytest.fixture
def page(tmp_path: Path) -> str:
    columns = (("", "official_score"), ("a<b", "auc_source"), ("", "fit_seconds"))
    table = Table(
        ("knn", "<script>alert(1)</script>"),
        columns,
        (
            (Cell(0.6, 0.01, (0.5, 0.7), 2), Cell(0.9, 0.02, None, 2), Cell(3.0, 1.0, None, 2)),
            (Cell(0.7, None, (0.6, 0.8), 1), None, Cell(40.0, None, None, 1)),
        ),
    )
    first = write_comparison(table, tmp_path / "a.html", protocol="dcase2025", seeds=[0, 1], version="0.1").read_bytes()
    assert (
        first
        == write_comparison(table, tmp_path / "b.html", protocol="dcase2025", seeds=[0, 1], version="0.1").read_bytes()
    )
    return first.decode()


def test_nothing_is_loaded_and_the_script_is_allowed(page: str) -> None:
    class Loaded(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [f"{tag} {key}={value}" for key, value in attrs if key in ("src", "srcset")]
            self.found += [str(dict(attrs))] if tag == "link" else []

    reader = Loaded()
    reader.feed(page)
    assert not reader.found
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert page.count("<script") == 1


def test_names_are_text(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a&lt;b AUC source" in page


def test_cells_sort_by_number_and_the_best_is_marked(page: str) -> None:
    cells = re.findall(r'<td class="n( best)?" data-order="([^"]*)">([^<]*)(?:<small>([^<]*)</small>)?</td>', page)
    assert cells == [
        ("", "0.6", "60.0", "± 1.0 · 50.0 to 70.0"),
        ("", "0.9", "90.0", "± 2.0"),
        (" best", "3.0", "3.0", ""),
        (" best", "0.7", "70.0", "60.0 to 80.0"),
        ("", "", "–", ""),
        ("", "40.0", "40", ""),
    ]
    assert 'table class="sortable"' in page
    assert "DCASE 2025" in page
