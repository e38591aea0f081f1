"""Charts put every clip where its numbers say."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from offkey.report import EmbeddingMap
from offkey.report.figures import (
    map_figure,
    overview_figure,
    roc_curves,
    roc_figure,
    score_figure,
    trend_figure,
)
from offkey.report.svg import Plot, nice_ticks
from offkey.types import Condition, Domain


def test_curve_area_is_the_challenges_auc_of_each_domain(machine):
    made = machine(clips=120)
    curves = {curve.domain: curve for curve in roc_curves(made)}
    assert set(curves) == {Domain.SOURCE, Domain.TARGET}
    for domain, curve in curves.items():
        used = [c for c in made.clips if c.condition == Condition.ANOMALY or c.domain == domain]
        truth = [c.condition == Condition.ANOMALY for c in used]
        assert curve.area == pytest.approx(roc_auc_score(truth, [c.score for c in used]), abs=1e-12)


def test_threshold_marker_lies_on_its_curve(machine):
    for curve in roc_curves(machine(clips=200)):
        gaps = np.hypot(curve.false_alarms - curve.stands[0], curve.caught - curve.stands[1])
        assert gaps.min() < 1e-12


def test_curve_keeps_its_corners_when_drawn(machine):
    figure = roc_figure(machine(clips=4000), "k")
    assert figure is not None
    for data in re.findall(r'class="curve [a-z]+" d="(M[^"]+)"', figure.drawing):
        assert data.count("L") <= 400


def test_bars_count_every_clip_and_part_at_the_threshold(machine):
    made = machine(clips=200)
    figure = score_figure(made, "k")
    assert figure is not None
    line = float(re.search(r'class="threshold" d="M([\d.]+) ', figure.drawing)[1])
    bars = re.findall(r'class="bar ([a-z ]+)" d="([^"]+)"', figure.drawing)
    assert {style.split()[0] for style, _ in bars} == {"reference", "normal", "anomaly"}
    for style, data in bars:
        for left, right in re.findall(r"M([\d.]+) [\d.]+v-[\d.]+H([\d.]+)v", data):
            if style.endswith("beyond"):
                assert float(left) >= line - 0.2
            else:
                assert float(right) <= line + 0.2


def test_an_outlier_does_not_squeeze_the_histogram(machine):
    made = machine(clips=400)
    wild = dataclasses.replace(made.clips[0], score=1e9)
    figure = score_figure(dataclasses.replace(made, clips=[wild, *made.clips[1:]]), "k")
    assert figure is not None
    outside = re.search(r"(\d+) scores lie beyond the edges", figure.reading)
    assert outside
    assert 1 <= int(outside[1]) <= 10
    assert figure.drawing.count("v-") > 30


def test_map_draws_normal_and_anomalous_clips_with_different_shapes(machine):
    figure = map_figure(machine(clips=40), "k")
    assert figure is not None
    shapes = {
        kind: set(re.findall(rf'class="dot {kind}(?: hollow)?" d="M[^"]*?([AL])', figure.drawing))
        for kind in ("normal", "anomaly", "reference")
    }
    assert shapes == {"normal": {"A"}, "anomaly": {"L"}, "reference": {"A"}}


def test_map_is_bounded_and_says_so(machine):
    made = machine(clips=3000)
    figure = map_figure(made, "k")
    assert figure is not None
    assert figure.drawing.count("<path") < 900
    assert "400 of 3000 scored clips" in figure.reading


def test_map_without_points_is_left_out(machine):
    empty = EmbeddingMap(np.empty((0, 2)), np.empty((0, 2)))
    assert map_figure(dataclasses.replace(machine(clips=0), embedding=empty), "k") is None


def test_trend_keeps_the_highest_clip_of_a_crowd(machine):
    made = machine(clips=2000, labelled=False)
    figure = trend_figure(made, "k")
    assert figure is not None
    strangest = max(made.clips, key=lambda c: c.score)
    assert strangest.file in figure.drawing
    assert "highest of 5 clips" in figure.reading


def test_overview_lists_every_machine_and_needs_two():
    row = {"auc_source": 0.8, "auc_target": 0.6, "pauc": 0.2}
    figure = overview_figure({"fan": row, "pump <2>": row}, "k")
    assert figure is not None
    assert "pump &lt;2&gt;" in figure.drawing
    assert figure.drawing.count("<title>") == 6
    assert overview_figure({"fan": row}, "k") is None
    assert overview_figure({}, "k") is None


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 7.9), (1e-9, 3e-9), (1e6, 1.5e6), (0.98, 1.02)])
def test_ticks_are_round_inside_the_range_and_about_as_many_as_asked(low, high):
    ticks, step = nice_ticks(low, high, 5)
    assert 3 <= len(ticks) <= 8
    slack = 1e-6 * (high - low)
    assert low - slack <= ticks[0]
    assert ticks[-1] <= high + slack
    np.testing.assert_allclose(np.diff(ticks), step, rtol=1e-6)


def test_places_never_leave_the_plot_area():
    plot = Plot(100, 100, 10, 10, 10, 10)
    plot.span((0.0, 1.0), (0.0, 1.0))
    assert plot.x(-5) == 10
    assert plot.x(5) == 90
    assert plot.y(-5) == 90
    assert plot.y(5) == 10
    plot.span((2.0, 2.0), (3.0, 3.0))
    assert plot.x(2.0) == plot.y(3.0) == 50


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_without_a_threshold_there_is_no_line(machine, labelled, spread):
    made = machine(clips=12, labelled=labelled)
    clips = [dataclasses.replace(c, score=1.0 + spread * (c.score - 1.0), is_anomalous=False) for c in made.clips]
    made = dataclasses.replace(made, clips=clips, threshold=float("inf"), reference_scores=np.ones(3))
    drawn = [draw(made, "k") for draw in (score_figure, roc_figure if labelled else trend_figure, map_figure)]
    for figure in drawn:
        assert figure is not None
        assert "nan" not in figure.drawing
        assert 'class="threshold"' not in figure.drawing
        assert "stand source" not in figure.drawing
    for figure in drawn[:2]:
        assert "here is no threshold, since too few normal clips" in figure.reading
    counted = score_figure(made, "k")
    assert counted is not None
    assert "beyond" not in counted.drawing
    assert " alarm" in counted.drawing
