"""Each kind of explanation finds the fault by its own evidence, and what is kept for that is small and survives."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import offkey
from offkey.audio.mel import LogMel
from offkey.explaining import (
    Asked,
    Evidence,
    Ordinary,
    Profile,
    ProfileBuilder,
    ProfileError,
    draw,
    explain_waveform,
    ordinary,
    rows_of,
)
from offkey.types import Batch

RATE = 16000


def hiss(seed: int, seconds: float = 3.0) -> np.ndarray:
    return (0.05 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def burst(samples: np.ndarray, start: float, end: float, hertz: float, size: float) -> np.ndarray:
    time = np.arange(len(samples)) / RATE
    sound = size * np.sin(2 * np.pi * hertz * time) * ((time >= start) & (time < end))
    return (samples + sound).astype(np.float32)


def batch_of(clips: list[np.ndarray]) -> Batch:
    longest = max(map(len, clips))
    padded = np.stack([np.pad(clip, (0, longest - len(clip))) for clip in clips])
    lengths = torch.tensor([len(clip) for clip in clips])
    return Batch(torch.from_numpy(padded), lengths, None, torch.arange(len(clips)))


@pytest.fixture(scope="module")
def mel() -> LogMel:
    return LogMel(RATE)


@pytest.fixture(scope="module")
def profile(mel: LogMel) -> Profile:
    """Even rows: hiss; odd rows: hiss with a steady tone at 1 kHz."""
    builder = ProfileBuilder(mel)
    clips = [burst(hiss(seed), 0.0, 9.0, 1000.0, 0.05 * (seed % 2)) for seed in range(16)]
    builder.add(["fan"] * 16, batch_of(clips))
    return builder.profiles()["fan"]


NAMES = tuple(f"{number}.wav" for number in range(16))
ALL = Evidence("nearest", NAMES, np.arange(16))


def test_against_the_nearest_and_not_against_the_mean_of_all_settings(profile: Profile, mel: LogMel) -> None:
    humming = burst(hiss(99), 0.0, 9.0, 1000.0, 0.05)
    own = explain_waveform(humming, mel, profile, False, Evidence("nearest", NAMES, np.array([1, 3, 5])))
    other = explain_waveform(humming, mel, profile, False, Evidence("nearest", NAMES, np.array([0, 2, 4])))
    band = int(np.abs(np.array(own.level).mean(axis=1)).argmin())
    assert abs(own.decibels[band].mean()) < 1 < 6 < other.decibels[band].mean()
    assert (own.kind, own.nearest, other.nearest) == ("nearest", "1.wav", "0.wav")


def test_words_and_counts(profile: Profile, mel: LogMel) -> None:
    found = explain_waveform(burst(hiss(99), 1.0, 1.6, 3000.0, 0.05), mel, profile, False, ALL)
    assert abs(found.start - 1.0) < 0.15
    assert abs(found.end - 1.6) < 0.15
    assert found.low < 3000 < found.high
    assert (found.like, found.normal_clips, found.map_kind) == (0, 16, "departure")
    said = (
        r"1\.0–1\.[67] s, [\d.]+(–| kHz–)[\d.]+ kHz: \d+ dB( \(up to \d+\))? above normal, seen in 0 of 16 normal clips"
    )
    assert re.fullmatch(said, found.text)
    assert "chance" not in found.text
    assert found.strangeness > 5
    assert "hardly more than chance" in explain_waveform(hiss(98), mel, profile, False, ALL).text


def test_a_gap_is_below_normal(profile: Profile, mel: LogMel) -> None:
    clip = hiss(99)
    clip[RATE : 2 * RATE] *= 0.1
    found = explain_waveform(clip, mel, profile, False, ALL)
    assert found.difference < -10
    assert "below normal" in found.text
    assert abs(found.start - 1.0) < 0.15


def clicking(seed: int, louder: float = 0.0) -> np.ndarray:
    """Faint hiss and four clicks of 3 to 5 kHz, 0.12 s, some 25 dB above it; one of them `louder` by so many dB."""
    rng = np.random.default_rng(seed)
    clip = (0.1 * hiss(seed)).astype(np.float64)
    spectrum = np.fft.rfft(rng.standard_normal(1920))
    hertz = np.fft.rfftfreq(1920, 1 / RATE)
    spectrum[(hertz < 3000) | (hertz > 5000)] = 0
    click = np.fft.irfft(spectrum, 1920)
    for number, beat in enumerate((0.3, 1.0, 1.7, 2.4)):
        start = round((beat + rng.uniform(-0.1, 0.1)) * RATE)
        size = 0.1 * 10 ** ((rng.uniform(-0.5, 0.5) + louder * (number == 2)) / 20)
        clip[start : start + 1920] += size * click / click.std()
    return clip.astype(np.float32)


@pytest.fixture(scope="module")
def clicks(mel: LogMel) -> Profile:
    builder = ProfileBuilder(mel)
    builder.add(["relay"] * 40, batch_of([clicking(seed) for seed in range(40)]))
    return builder.profiles()["relay"]


@pytest.fixture(scope="module")
def tick(clicks: Profile) -> Ordinary:
    return ordinary(clicks, None, False, 0.032)


CLICKS = Evidence("nearest", tuple(f"{number}.wav" for number in range(40)), np.arange(40))


@pytest.mark.parametrize("louder", [6.0, 9.0, 12.0])
def test_above_normal_is_above_what_normal_clips_do(
    clicks: Profile, tick: Ordinary, mel: LogMel, louder: float
) -> None:
    """Normal clicks stand 25 dB above the rest of their clips; that is not what is told of a louder one."""
    drawn = np.zeros(94)
    drawn[52:60] = 1.0
    asked = replace(CLICKS, asked=Asked(frame_error=drawn))
    found = explain_waveform(clicking(105, louder), mel, clicks, False, asked, tick)
    assert 1.5 < found.start < found.end < 2.1
    assert found.low < 4000 < found.high
    assert louder - 3 < found.difference < louder + 1
    assert f"{found.difference:.0f} dB above normal, seen in 0 of 40 normal clips" in found.text


def test_an_ordinary_click_is_hardly_above_normal(clicks: Profile, tick: Ordinary, mel: LogMel) -> None:
    told = [explain_waveform(clicking(seed), mel, clicks, False, CLICKS, tick) for seed in range(200, 206)]
    assert {"chance" in found.text for found in told} == {True}
    for found in told:
        assert abs(found.difference) < 2.5
        side = "below" if " below" in found.text else "above"
        assert (f"hardly {side} normal" in found.text) == (round(abs(found.difference)) == 0)
        assert found.like <= 3 or abs(found.difference) < 0.5  # what 19 of 20 do not reach is seen in few


def test_a_profile_of_an_older_version_is_compared_with_the_rest_of_the_clip(
    clicks: Profile, tick: Ordinary, mel: LogMel
) -> None:
    drawn = np.zeros(94)
    drawn[52:60] = 1.0
    asked = replace(CLICKS, asked=Asked(frame_error=drawn))
    found = explain_waveform(clicking(105, 9.0), mel, replace(clicks, reach=None), False, asked, tick)
    assert re.search(r"kHz: \d+ dB \(up to \d+\) above the rest of the clip, seen in \d+ of 40", found.text)
    assert "above normal" not in found.text


def test_rounding_does_not_keep_a_clip_from_its_own_value(clicks: Profile, tick: Ordinary, mel: LogMel) -> None:
    for seed in (2, 3, 22, 26):
        assert explain_waveform(clicking(seed), mel, clicks, False, CLICKS, tick).like >= 1


def test_a_clip_that_is_one_of_the_normal_clips_is_compared_with_the_others(
    clicks: Profile, tick: Ordinary, mel: LogMel
) -> None:
    for seed in range(0, 40, 13):
        level = mel(torch.from_numpy(clicking(seed))[None])[0].double().numpy()
        assert rows_of(clicks.spectra, level, 3.0).tolist() == [seed]
        assert len(rows_of(clicks.spectra, level, 2.9)) == 0
    others = np.delete(np.arange(40), seed)
    evidence = replace(CLICKS, nearest=others, itself=np.array([seed]))
    found = explain_waveform(clicking(seed), mel, clicks, False, evidence, tick)
    assert found.normal_clips == 39
    assert "of 39 other normal clips" in found.text
    assert found.text.endswith("; this clip is itself one of the normal clips")
    louder = mel(torch.from_numpy(clicking(seed, 3.0))[None])[0].double().numpy()
    assert len(rows_of(clicks.spectra, louder, 3.0)) == 0
    alone = replace(clicks.spectra, levels=clicks.spectra.levels[:1], seconds=clicks.spectra.seconds[:1])
    level = mel(torch.from_numpy(clicking(0))[None])[0].double().numpy()
    assert len(rows_of(alone, level, 3.0)) == 0  # there is nothing else


@pytest.mark.parametrize("sample", [float("nan"), float("inf"), 1e30])
def test_a_clip_without_a_spectrum_is_named(mel: LogMel, sample: float) -> None:
    broken = hiss(1)
    broken[100] = sample
    builder = ProfileBuilder(mel, ["fan/a.wav", "fan/b.wav"])
    with pytest.raises(ProfileError, match=r"fan/b\.wav: its spectrum holds NaN or infinity"):
        builder.add(["fan"] * 2, batch_of([hiss(0), broken]))
    assert builder.profiles() == {}
    with pytest.raises(ProfileError, match="clip 0 of fan"):
        ProfileBuilder(mel).add(["fan"], batch_of([broken]))


def evidence(**asked: Any) -> Evidence:
    return Evidence("nearest", NAMES, np.arange(0, 16, 2), asked=Asked(**asked))


def test_of_two_events_the_one_is_framed_that_the_system_objects_to(profile: Profile, mel: LogMel) -> None:
    clip = burst(burst(hiss(99), 0.5, 1.0, 5000.0, 0.05), 2.0, 2.5, 500.0, 0.05)
    error = np.full(94, 1.0) + 0.05 * np.random.default_rng(0).standard_normal(94)
    error[63:79] += 1.0
    found = explain_waveform(clip, mel, profile, False, evidence(frame_error=error))
    assert (found.map_kind, found.curve_name) == ("reconstruction", "reconstruction error")
    assert abs(found.start - 2.0) < 0.15
    assert abs(found.end - 2.5) < 0.15
    assert found.low < 500 < found.high
    early = error[::-1][15:].tolist() + [1.0] * 15  # the other event
    assert explain_waveform(clip, mel, profile, False, evidence(frame_error=np.array(early))).start < 1.0
    fewer = error.reshape(47, 2).mean(axis=1)  # a model with longer frames
    again = explain_waveform(clip, mel, profile, False, evidence(frame_error=fewer))
    assert abs(again.start - found.start) < 0.1


def test_the_map_is_where_the_system_objects_and_agreement_needs_both(profile: Profile, mel: LogMel) -> None:
    """Of two equal tones the system hears the upper one alone."""
    clip = burst(burst(hiss(99), 1.0, 1.6, 3000.0, 0.05), 1.0, 1.6, 500.0, 0.05)

    def score(waveforms: np.ndarray) -> np.ndarray:
        spectrum = np.abs(np.fft.rfft(waveforms, axis=1))
        place = round(3000 * waveforms.shape[1] / RATE)
        return spectrum[:, place - 20 : place + 20].max(axis=1)

    found = explain_waveform(clip, mel, profile, False, evidence(score=score))
    band, frame = np.unravel_index(int(found.map.argmax()), found.map.shape)
    from offkey.audio.mel import mel_centres

    centres = mel_centres(RATE, mel.config)
    assert found.map_kind == "occlusion"
    assert 2300 < centres[band] < 3900
    assert 1.0 <= frame * 0.032 <= 1.6
    upper, lower = (int(np.abs(centres - hertz).argmin()) for hertz in (3000, 500))
    inside = np.s_[32:50]
    assert found.agreement[upper, inside].mean() > 2 * found.agreement[lower, inside].mean()
    alone = explain_waveform(clip, mel, profile, False, evidence())
    assert alone.agreement[upper, inside].mean() < 2 * alone.agreement[lower, inside].mean()


@pytest.mark.parametrize(
    ("low", "high", "words"), [(3000.0, 5000.0, "3–5 kHz"), (631.0, 1690.0, "630 Hz–1.7 kHz"),
    (47.0, 118.0, "47–120 Hz"), (998.0, 9960.0, "1–10 kHz"), (0.0, 8000.0, "0 Hz–8 kHz")]
)  # fmt: skip
def test_frequencies_in_words(low: float, high: float, words: str) -> None:
    from offkey.explaining.explanation import _span

    assert _span(low, high) == words


def test_padding_and_batches_do_not_change_what_is_kept(mel: LogMel) -> None:
    clips = [hiss(0, 3.0), hiss(1, 1.2), hiss(2, 2.0)]
    errors = [np.random.default_rng(0).random(size).astype(np.float32) for size in (94, 38, 63)]
    together, alone = ProfileBuilder(mel), ProfileBuilder(mel)
    together.add(["fan"] * 3, batch_of(clips), errors)
    for place in (2, 0, 1):
        one = batch_of([clips[place]])._replace(place=torch.tensor([place]))
        alone.add(["fan"], one, [errors[place]])
    a, b = together.profiles()["fan"], alone.profiles()["fan"]
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-4)
    np.testing.assert_allclose(a.spectra.levels.astype(np.float32), b.spectra.levels.astype(np.float32), atol=0.1)
    np.testing.assert_allclose(a.spectra.seconds, [3.0, 1.2, 2.0])
    np.testing.assert_allclose(a.spectra.fluctuation, b.spectra.fluctuation, atol=0.3)
    assert a.frame_error is not None
    np.testing.assert_allclose(a.frame_error, b.frame_error, rtol=1e-5)
    assert a.spectra.levels[0].nbytes == 4096
    assert a.reach is not None
    assert b.reach is not None
    assert a.reach.highest[0].nbytes + a.reach.lowest[0].nbytes == 1536
    np.testing.assert_allclose(a.reach.highest, b.reach.highest, atol=0.1)
    np.testing.assert_allclose(a.reach.lowest, b.reach.lowest, atol=0.1)


def test_the_picture_is_drawn_with_and_without_the_normal_clip(profile: Profile, mel: LogMel, tmp_path: Path) -> None:
    evidence = Evidence("statistics", NAMES, np.array([0]), shares=np.linspace(-0.1, 1.0, 128))
    found = explain_waveform(burst(hiss(99), 1.0, 1.6, 3000.0, 0.05), mel, profile, False, evidence)
    assert "% of the score" in found.text
    bare = draw(found, mel, "a title", tmp_path / "bare.png").read_bytes()
    beside = draw(found, mel, "a title", tmp_path / "beside.png", hiss(0)).read_bytes()
    short = draw(explain_waveform(hiss(1, 0.3), mel, profile, False, ALL), mel, "t", tmp_path / "short.png")
    assert len({bare, beside, short.read_bytes()}) == 3
    assert bare.startswith(b"\x89PNG")


# ---- detectors


@pytest.mark.parametrize(
    ("system", "kind"), [("logmel-mahalanobis", "statistics"), ("loudness", "nearest"), ("discriminative", "nearest")]
)
def test_a_detector_explains_by_its_own_kind(
    fitted: Callable[[str], Any], small_set: Path, system: str, kind: str
) -> None:
    detector, folder = fitted(system)
    clip = min(small_set.glob("fan/test/*.wav"))
    found = detector.explain(clip)
    assert found.kind == kind
    assert found.nearest in detector.machines["fan"].clips
    assert found.normal_clips == 22
    assert (found.shares is not None) == (kind == "statistics")
    assert found.map_kind == "occlusion"
    assert found.map.shape == found.level.shape == found.agreement.shape
    assert found.map.max() == pytest.approx(1.0)
    again = offkey.load(folder).explain(clip)
    assert again.text == found.text
    np.testing.assert_array_equal(again.decibels, found.decibels)
    np.testing.assert_allclose(again.map, found.map, atol=1e-5)


def test_no_normal_clip_is_its_own_neighbour(fitted: Callable[[str], Any], small_set: Path, tmp_path: Path) -> None:
    detector, _ = fitted("logmel-mahalanobis")
    for clip in sorted(small_set.glob("fan/train/*.wav"))[:3]:
        found = detector.explain(clip)
        assert found.nearest != clip.name
        assert found.normal_clips == len(detector.machines["fan"].clips) - 1
        assert "this clip is itself one of the normal clips" in found.text
        assert found.shares is not None
        assert np.abs(found.shares).max() > 0
    later = tmp_path / "fan" / "rang.wav"
    later.parent.mkdir()
    shutil.copy(min(small_set.glob("fan/test/*anomaly*.wav")), later)
    assert "itself" not in detector.explain(later).text
    grown = detector.update([later], workers=0, reason="false-alarm")
    found = grown.explain(later)
    assert (found.nearest != "rang.wav", found.normal_clips) == (True, 22)
    assert "this clip is itself one of the normal clips" in found.text


def test_a_detector_of_an_older_version_explains(fitted: Callable[[str], Any], small_set: Path, tmp_path: Path) -> None:
    detector, _ = fitted("logmel-knn")
    machines = {
        name: replace(known, profile=replace(known.profile, reach=None)) for name, known in detector.machines.items()
    }
    older = offkey.load(replace(detector, machines=machines).save(tmp_path / "older"))
    clip = min(small_set.glob("fan/test/*_normal_*.wav"))
    grown = older.update([clip], workers=0)
    for one in (older, grown):
        assert one.machines["fan"].profile.reach is None
        assert one.explain(clip).text
    for name, known in offkey.load(fitted("logmel-knn").folder).machines.items():
        kept, made = known.profile.reach, detector.machines[name].profile.reach
        assert kept is not None
        np.testing.assert_array_equal(kept.highest, made.highest)
        np.testing.assert_array_equal(kept.lowest, made.lowest)


def test_a_model_that_rebuilds_is_asked_for_its_error(fitted: Callable[[str], Any]) -> None:
    detector, folder = fitted("baseline")
    found = detector.explain(hiss(0), machine="fan")
    assert (found.kind, found.map_kind) == ("reconstruction", "reconstruction")
    assert detector.machines["fan"].profile.band_error.shape == (128, 2)
    np.testing.assert_allclose(offkey.load(folder).explain(hiss(0), machine="fan").map, found.map, atol=1e-4)


def test_explaining_leaves_nothing_in_the_cache_of_frames(tmp_path: Path) -> None:
    from offkey.detector import _without_caches

    network: Any = torch.nn.Sequential(torch.nn.Identity())
    network[0].cache = tmp_path
    with _without_caches(network):
        assert network[0].cache is None
    assert network[0].cache == tmp_path


def test_the_command_draws_and_tells(
    fitted: Callable[[str], Any], small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from offkey.cli.app import run

    model = fitted("logmel-mahalanobis").folder
    folder = tmp_path / "fan"
    folder.mkdir()
    shutil.copy(min(small_set.glob("fan/test/*.wav")), folder / "a.wav")
    (folder / "b.wav").write_text("no sound")
    arguments = ["explain", str(model), str(folder), "--out", str(tmp_path / "why"), "--workers", "0"]
    assert run(arguments) == 1
    said = capsys.readouterr()
    assert said.out.startswith("a.wav: ")
    assert "b.wav" in said.err
    coarse = (tmp_path / "why" / "a.png").read_bytes()
    assert run([*arguments, "--json", "--normal", str(small_set)]) == 1
    told = json.loads(capsys.readouterr().out)["files"]
    assert [entry["error"] is None for entry in told] == [True, False]
    assert told[0]["text"] in said.out
    assert told[0]["nearest"].startswith("section_00_")
    assert {"kind", "map", "start", "end", "low", "high", "difference", "like", "normal_clips", "picture"} < told[
        0
    ].keys()
    assert (tmp_path / "why" / "a.png").read_bytes() != coarse
    assert run([*arguments, "--normal", str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(["explain", str(model), str(tmp_path / "empty")]) == 2
    samples, rate = soundfile.read(folder / "a.wav")
    assert rate == RATE
    assert told[0]["end"] <= len(samples) / rate
