"""Separation inside systems: a front end that travels with the detector, and remixed lessons."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.separation.stand_in import LowPass
from torch import nn

import offkey
from offkey.audio.io import AudioConfig, read_clip
from offkey.cli.explain import pictures
from offkey.data.labels import LabelSpace
from offkey.data.loader import ClipReader
from offkey.data.source import open_source
from offkey.detector import DetectorError
from offkey.fitting import _train, fit
from offkey.progress import Progress, Quiet
from offkey.separation.stems import Stems
from offkey.systems.config import load_preset
from offkey.systems.lessons import Lessons, Outcome
from offkey.systems.settings import SettingsError
from offkey.types import Content, OffkeyError, Split


@pytest.fixture
def separator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Path]:
    """Edge in hertz -> folder of a low-pass "separator"."""
    monkeypatch.setitem(sys.modules, "offkey.separation.separator", SimpleNamespace(Separator=LowPass))

    def make(edge: float = 1000.0) -> Path:
        folder = tmp_path / f"separator {edge:g}"
        LowPass(edge).save(folder)
        return folder

    return make


def test_a_detector_takes_its_front_end_along(
    small_set: Path, tmp_path: Path, separator: Callable[[float], Path]
) -> None:
    place = separator(1000.0)
    first = fit(small_set, "logmel-knn", out=tmp_path / "m", overrides=[f"separation.front_end={place}"], workers=0)
    shutil.rmtree(place)
    moved = tmp_path / "elsewhere"
    (tmp_path / "m").rename(moved)
    detector = offkey.load(moved)
    clips = sorted(small_set.glob("fan/test/*.wav"))[:3]
    rows = [row.verdict for row in detector.score_files(clips, workers=0)]
    for clip, row in zip(clips, rows, strict=True):
        assert row is not None
        samples = read_clip(clip, AudioConfig())
        low = LowPass(1000.0).separate(samples)[0]
        for given in (clip, samples, low):  # what was taken out beforehand changes nothing
            assert detector.score(given, machine="fan").score == pytest.approx(row.score, rel=1e-3)
        assert first.score(clip, machine="fan").score == row.score
    plain = fit(small_set, "logmel-knn", workers=0)
    assert not np.isclose(plain.score(clips[0], machine="fan").score, rows[0].score)
    assert detector.explain(clips[0], machine="fan") is not None

    (moved / "front_end" / "edge.txt").write_text("500.0")
    with pytest.raises(DetectorError, match="is not the file that was saved"):
        offkey.load(moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    for bad in ("../edge.txt", "front_end/../edge.txt", "/edge.txt", "other/edge.txt", "front_end/a/b"):
        told = manifest | {"files": manifest["files"] | {bad: {"bytes": 1, "sha256": ""}}}
        (moved / "manifest.json").write_text(json.dumps(told))
        with pytest.raises(DetectorError, match=r"outside its folder|is not the file"):
            offkey.load(moved)


def test_the_normal_clip_in_a_picture_is_what_the_front_end_makes_of_it(
    small_set: Path, tmp_path: Path, separator: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the recording itself stood beside the foreground of the clip
    overrides = [f"separation.front_end={separator(1000.0)}"]
    detector = fit(small_set, "logmel-knn", machines=["fan"], overrides=overrides, workers=0)
    drawn = []

    def draw(explanation: Any, mel: Any, title: str, out: Path, normal: Any, part: str) -> Path:
        assert part == "foreground"
        drawn.append((explanation.nearest, normal))
        return out

    monkeypatch.setattr("offkey.explaining.draw", draw)
    rows = list(detector.score_files(sorted(small_set.glob("fan/test/*.wav"))[:1], workers=0))
    assert [one.error for one in pictures(detector, rows, tmp_path)] == [None]
    [(nearest, normal)] = drawn
    whole = read_clip(small_set / "fan" / "train" / nearest, detector.config.audio)
    np.testing.assert_array_equal(normal, detector.reader().read(small_set / "fan" / "train" / nearest))
    assert np.abs(np.fft.rfft(normal))[-1000:].max() < 0.01 * np.abs(np.fft.rfft(whole))[-1000:].max()


def test_a_damaged_record_of_a_separator_is_told_before_anything_is_learnt(
    small_set: Path, tmp_path: Path, separator: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = separator(1000.0)
    (place / "training.json").write_text("{")

    def learn(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("clips were embedded first")

    monkeypatch.setattr("offkey.fitting.assemble", learn)
    for system in ("loudness", "ensemble"):
        with pytest.raises(OffkeyError, match=r"training\.json is damaged"):
            fit(small_set, system, out=tmp_path / "m", overrides=[f"separation.front_end={place}"], workers=0)


def test_other_weights_at_the_same_place_are_another_detector(
    small_set: Path, tmp_path: Path, separator: Callable[[float], Path]
) -> None:
    asked = [f"separation.front_end={separator(1000.0)}"]
    fit(small_set, "loudness", out=tmp_path / "m", overrides=asked, workers=0)
    fit(small_set, "loudness", out=tmp_path / "m", overrides=asked, workers=0)
    LowPass(500.0).save(tmp_path / "separator 1000")
    with pytest.raises(DetectorError, match="other settings or clips"):
        fit(small_set, "loudness", out=tmp_path / "m", overrides=asked, workers=0)


def test_remixed_lessons_repeat_and_differ_from_plain_ones(
    small_set: Path, quick: tuple[str, ...], separator: Callable[[float], Path]
) -> None:
    def weights(*more: str) -> dict[str, object]:
        network = fit(small_set, "discriminative", overrides=[*quick, *more], workers=0).network
        assert network is not None
        return network.state_dict()

    remix = ["augmentation.remix.enabled=true", f"separation.model={separator(1000.0)}"]
    one, again = weights(*remix), weights(*remix)
    plain = weights()
    assert all((one[name] == again[name]).all() for name in one)
    assert any((one[name] != plain[name]).any() for name in one)


def test_settings_that_do_not_fit_together_are_refused(separator: Callable[[float], Path]) -> None:
    with pytest.raises(SettingsError, match=r"separation\.model"):
        load_preset("discriminative", ["augmentation.remix.enabled=true"])
    with pytest.raises(SettingsError, match="choose one of the two"):
        load_preset("discriminative", ["augmentation.remix.enabled=true", "separation.front_end=m"])
    with pytest.raises(SettingsError, match="lies above"):
        load_preset("discriminative", ["augmentation.remix.min_snr_db=30"])
    assert issubclass(SettingsError, OffkeyError)


def test_with_a_network_a_machine_the_others_lend_their_backgrounds(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["augmentation.remix.enabled=true", "separation.model=s", "augmentation.remix.mixup=1"]
    config = load_preset("baseline", overrides)
    clips = [clip for clip in open_source(small_set).clips if clip.split is not Split.TEST]
    reader, stems = ClipReader(config.audio), Stems(LowPass(1000.0))
    given: dict[str, Lessons] = {}

    def teach(lessons: Lessons, folder: Path, progress: Progress) -> Outcome:
        given[folder.name] = lessons
        return Outcome(nn.Identity(), frozenset(), {})

    monkeypatch.setattr("offkey.fitting.train_reconstructive", teach)
    _train(Lessons(clips, LabelSpace.of(clips, "machine"), config, reader, 0, stems), tmp_path, Quiet())
    assert set(given) == {"fan", "valve"}
    fan = given["fan"]
    remix = fan.remix(Quiet())
    assert remix is not None
    made = [
        remix.make(fan.learning[0], reader.read(fan.learning[0].path), np.random.default_rng(seed))
        for seed in range(20)
    ]
    told = [recipe for _, recipe in filter(None, made)]
    lent = {(clip.machine, clip.split, clip.content) for clip in (recipe.background for recipe in told)}
    assert ("valve", Split.TRAIN, Content.MIXTURE) in lent
    assert {recipe.partner.machine for recipe in told if recipe.partner is not None} <= {"fan"}
    assert {clip.machine for clip in fan.learning} == {"fan"}
    assert fan.fingerprint() != replace(fan, others=()).fingerprint()
