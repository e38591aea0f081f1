"""A detector behind separators: its page and those of its stems lead to one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from tests.report.outline import Outline
from tests.separation.stand_in import LowPass

from offkey.assessment import FOLDER, assess
from offkey.data.source import open_source
from offkey.detector import Detector
from offkey.ensemble import Ensemble
from offkey.report import assemble
from offkey.separation.front_end import FrontEnd
from offkey.separation.stems import Pair


@pytest.fixture
def behind(fitted: Callable[[str], Any]) -> Callable[[str, float], Detector]:
    """System and edge in hertz -> that detector behind a low-pass "separator"; it learnt from the whole clips."""

    def make(system: str, edge: float) -> Detector:
        detector = fitted(system).detector
        separation = detector.config.separation.model_copy(update={"front_end": f"{edge:g}"})
        config = detector.config.model_copy(update={"separation": separation})
        return replace(detector, config=config, front_end=FrontEnd(LowPass(edge)))

    return make


@pytest.fixture
def pages(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Outline]]:
    """Detector -> the pages of its report, by name."""

    def write(detector: Detector, name: str = "report.html") -> dict[str, Outline]:
        assess(detector, open_source(small_set), bootstrap=0, workers=0).save(tmp_path / "run" / FOLDER)
        monkeypatch.setattr(assemble.Detector, "load", lambda _: detector)
        assemble.write_run_report(tmp_path / "run", tmp_path / "pages" / name, examples=1)
        return {page.name: Outline(page.read_text(encoding="utf-8")) for page in (tmp_path / "pages").iterdir()}

    return write


def links(outline: Outline) -> list[str]:
    found = [tag["href"] or "" for tag in outline.all("a")]
    return [unquote(place.removeprefix("./")) for place in found if not place.startswith("#")]


def test_report_and_stems_lead_to_each_other(
    pages: Callable[..., dict[str, Outline]], behind: Callable[[str, float], Detector]
) -> None:
    name = "a: <b> & 100%.html"
    made = pages(behind("loudness", 500.0), name)
    assert set(made) == {name, "a: <b> & 100%-separation.html"}
    assert links(made[name]) == ["a: <b> & 100%-separation.html"]
    assert links(made["a: <b> & 100%-separation.html"]) == [name]


def test_pictures_of_a_foreground_say_so(
    pages: Callable[..., dict[str, Outline]], behind: Callable[[str, float], Detector], fitted: Callable[[str], Any]
) -> None:
    said = "Nearest normal clip, its foreground, which is what the system hears: "
    shown = pages(behind("logmel-knn", 500.0))["report.html"].text
    assert shown.count(said) == shown.count("Nearest normal clip") > 0
    shown = pages(fitted("logmel-knn").detector)["report.html"].text
    assert "Nearest normal clip: " in shown
    assert "which is what the system hears" not in shown


def test_an_ensemble_shows_each_front_end(
    pages: Callable[..., dict[str, Outline]], behind: Callable[[str, float], Detector], fitted: Callable[[str], Any]
) -> None:
    members = [behind("loudness", 500.0), behind("logmel-knn", 500.0), behind("logmel-density", 2000.0)]
    ensemble = Ensemble.of([*members, fitted("logmel-mahalanobis").detector])
    made = pages(ensemble)
    assert set(made) == {"report.html", "report-separation.html", "report-separation-2.html"}
    assert set(links(made["report.html"])) == {"report-separation.html", "report-separation-2.html"}
    told = [made[place].text for place in links(made["report.html"])]
    both = "heard by " + ", ".join(name for name in ensemble.members if name in ("loudness", "logmel-knn"))
    assert sorted(both in text for text in told) == [False, True]
    assert sorted("heard by logmel-density" in text for text in told) == [False, True]


def test_clips_of_the_stems_page_are_not_kept_whole(
    pages: Callable[..., dict[str, Outline]], behind: Callable[[str, float], Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = np.sin(np.arange(16000 * 30)).astype(np.float32) / 4
    monkeypatch.setattr(assemble.Stems, "pair", lambda self, path: Pair(wave, wave))
    kept = []
    write = assemble.write_separation_report

    def noted(clips: Any, *rest: Any, **keywords: Any) -> Path:
        kept.extend(clip.mixture.nbytes for clip in clips if clip.mixture.base is None)
        return write(clips, *rest, **keywords)

    monkeypatch.setattr(assemble, "write_separation_report", noted)
    made = pages(behind("loudness", 500.0))
    assert kept == [wave.nbytes // 3] * 4
    assert made["report-separation.html"].text.count("Shown are the first 10 s of 30 s") == 4
