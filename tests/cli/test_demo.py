"""`offkey demo`, made small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offkey.data import synthetic


def test_the_demo_ends_with_a_table_and_a_page(
    offkey: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(**settings: Any) -> synthetic.SynthConfig:
        less = {"machines": ("fan", "pump"), "seconds": 2.0, "train_source": 12, "train_target": 2}
        return real(**settings | less | {"test_per_group": 2, "supplemental": 2})

    real = synthetic.SynthConfig
    monkeypatch.setattr(synthetic, "SynthConfig", small)
    monkeypatch.setattr("offkey.cli.demo.DEMO", ("training.epochs=1", "model.width=0.125", "training.batch_size=8"))
    said = offkey("demo", "--out", tmp_path / "demo")
    assert said.code == 0, said.err
    assert "official score, loudness alone:" in said.out
    assert "official score, offkey:" in said.out
    page = tmp_path / "demo" / "report.html"
    assert said.out.rstrip().endswith(str(page))
    assert page.stat().st_size > 10_000
    for machine in ("fan", "pump"):
        assert machine in said.out
