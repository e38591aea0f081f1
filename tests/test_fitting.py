"""From recordings to a detector: what is heard, what is refused, and what a kill changes (nothing)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import offkey
from offkey.cli.app import run
from offkey.data.labels import LabelSpace
from offkey.data.loader import ClipReader, Failure
from offkey.data.source import Source, open_source
from offkey.detector import Detector, DetectorError
from offkey.files import sha256
from offkey.fitting import FitError, fit
from offkey.manifest import MANIFEST
from offkey.progress import Progress, Quiet
from offkey.systems.config import load_preset
from offkey.systems.lessons import Lessons
from offkey.systems.settings import SettingsError
from offkey.training.checkpoint import CheckpointError
from offkey.types import Condition, OffkeyError, Split

# everything that draws random numbers is on: speeds, windows, augmentation
STEPWISE = (
    "training.epochs=3", "training.checkpoint_every_steps=1", "labels.speeds=[1.0, 1.1]", "training.crop_seconds=1.0",
)  # fmt: skip


class Told(Quiet):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: list[str] = []

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.stages.append(what)

    def say(self, text: str) -> None:
        self.said.append(text)


def noise(path: Path, seed: int = 0, seconds: float = 1.0, rate: int = 16000, level: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = level * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A plain folder of twelve clips without any name that means something."""
    folder = tmp_path / "press 7"
    for number in range(12):
        noise(folder / f"rec-{number}.wav", number, seconds=1.0 + 0.1 * (number % 3))
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- kill and resume


@pytest.mark.parametrize("steps", [1, 7])
def test_a_killed_fit_ends_with_the_weights_of_an_undisturbed_one(
    small_set: Path, quick: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    settings = [part for text in (*quick, *STEPWISE) for part in ("--set", text)]
    command = ["fit", str(small_set), "--system", "discriminative", "--seed", "5", *settings]
    killed = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-m", "offkey", *command, "--out", str(killed)], stderr=subprocess.DEVNULL, env=os.environ
    )
    seen: set[int] = set()
    begun = time.monotonic()
    try:
        while len(seen) < steps and child.poll() is None and time.monotonic() - begun < 120:
            newest = killed / "training" / "checkpoint.pt"
            if newest.exists():
                seen.add(newest.stat().st_mtime_ns)
            time.sleep(0.002)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (killed / MANIFEST).exists()

    assert run([*command, "--out", str(killed), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    resumed_at = again["facts"]["training"]["history"]["resumed_at"]
    assert resumed_at is not None
    assert 1 <= resumed_at < again["facts"]["training"]["history"]["epochs"][-1]["step"]

    straight = tmp_path / "straight"
    assert run([*command, "--out", str(straight)]) == 0
    for name in ("model.safetensors", "scorer.safetensors", "config.toml"):
        assert sha256(killed / name) == sha256(straight / name), name


def test_another_start_of_an_unfinished_run_with_other_settings_is_refused(
    small_set: Path, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("offkey.fitting.assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(small_set, "discriminative", out=tmp_path, overrides=quick)
    assert (tmp_path / "training" / "checkpoint.pt").exists()
    other = [*quick, "training.learning_rate=0.5"]
    with pytest.raises(CheckpointError, match="learning_rate"):
        fit(small_set, "discriminative", out=tmp_path, overrides=other)
    fit(small_set, "discriminative", out=tmp_path, overrides=other, overwrite=True)
    assert Detector.load(tmp_path).config.training.learning_rate == 0.5
    assert not list(tmp_path.rglob("*.pt"))


def test_a_finished_run_is_not_done_again(copied: Callable[[str], Path], small_set: Path, quick: Any) -> None:
    folder = copied("discriminative")
    before = bytes_of(folder)
    told = Told()
    fit(small_set, "discriminative", out=folder, overrides=quick, progress=told)
    assert told.said == [f"{folder} already holds this detector; nothing to do"]
    assert told.stages == []
    assert bytes_of(folder) == before


def test_leftovers_of_a_run_killed_after_saving_are_cleared(
    copied: Callable[[str], Path], small_set: Path, quick: Any
) -> None:
    folder = copied("discriminative")
    (folder / "training").mkdir(exist_ok=True)
    (folder / "training" / "checkpoint.pt").write_bytes(b"PK")
    fit(small_set, "discriminative", out=folder, overrides=quick)
    assert not list(folder.rglob("*.pt"))


@pytest.mark.parametrize("change", [{"seed": 1}, {"overrides": ["calibration.folds=4"]}, {"machines": ["fan"]}])
def test_a_folder_of_another_detector_is_not_touched(
    copied: Callable[[str], Path], small_set: Path, quick: Any, change: dict[str, Any]
) -> None:
    folder = copied("loudness")
    before = bytes_of(folder)
    arguments: dict[str, Any] = {"overrides": quick} | change
    if "overrides" in change:
        arguments["overrides"] = [*quick, *change["overrides"]]
    with pytest.raises(DetectorError, match=r"other settings or clips.*--overwrite"):
        fit(small_set, "loudness", out=folder, **arguments)
    assert bytes_of(folder) == before


def test_overwrite_replaces_the_detector_and_drops_its_evaluation(
    copied: Callable[[str], Path], small_set: Path, quick: Any
) -> None:
    folder = copied("discriminative")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "scores.csv").write_text("of the old detector")
    (folder / "mine.txt").write_text("not yours")
    fit(small_set, "loudness", out=folder, overrides=quick, overwrite=True)
    assert offkey.load(folder).config.system == "loudness"
    assert not (folder / "evaluation").exists()
    assert (folder / "mine.txt").read_text() == "not yours"


def test_overwrite_in_a_folder_without_a_detector_deletes_nothing(recordings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    keepsake = noise(out / "training" / "keep.wav")
    weights, left = out / "training" / "other" / "model.pt", out / "training" / "best-3.pt"
    weights.parent.mkdir()
    for path in (weights, left):
        path.write_bytes(b"x")
    (out / "evaluation").mkdir()
    fit(recordings, "loudness", out=out, overwrite=True)
    assert keepsake.exists()
    assert weights.exists()  # somebody's own; only what a killed run of offkey left is deleted
    assert not left.exists()
    assert (out / "evaluation").exists()


def test_new_clips_make_another_detector(recordings: Path, tmp_path: Path) -> None:
    fit(recordings, "loudness", out=tmp_path / "out")
    noise(recordings / "more.wav", 99)
    with pytest.raises(DetectorError, match="other settings or clips"):
        fit(recordings, "loudness", out=tmp_path / "out")


# ---- what is heard and what is refused


def test_without_out_nothing_stays_on_disk(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    detector = offkey.fit(recordings, system="logmel-knn")
    assert set(tmp_path.rglob("*")) == before
    assert list(detector.machines) == ["press 7"]


def test_a_plain_folder_is_learnt_and_scored(recordings: Path, tmp_path: Path) -> None:
    detector = fit(recordings, out=tmp_path / "out")
    assert detector.config.kind == "training-free"
    same = detector.score(recordings / "rec-0.wav")
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    other = detector.score(0.1 * tone)
    assert other.score > same.score
    assert other.is_anomalous
    assert not same.is_anomalous
    assert offkey.load(tmp_path / "out").score(0.1 * tone) == other


def test_discriminative_learns_from_a_plain_folder_too(recordings: Path, quick: tuple[str, ...]) -> None:
    detector = fit(recordings, "discriminative", overrides=[*quick, "labels.speeds=[1.0, 1.1]"])
    assert detector.facts["training"]["classes"] == ["press 7/00/unknown", "press 7/00/unknown@1.1"]
    assert np.isfinite(detector.score(recordings / "rec-1.wav").score)


def test_noise_recordings_that_are_asked_for_and_missing_are_told(recordings: Path, quick: tuple[str, ...]) -> None:
    overrides = [*quick, "labels.speeds=[1.0, 1.1]", 'augmentation.noise.kinds=["pool"]']
    with pytest.raises(OffkeyError, match="there is no noise recording"):
        fit(recordings, "discriminative", overrides=overrides)


def test_one_class_alone_is_refused_with_a_way_out(recordings: Path, quick: tuple[str, ...]) -> None:
    with pytest.raises(OffkeyError, match=r"one class only.*labels\.speeds.*training-free"):
        fit(recordings, "discriminative", overrides=quick)


def test_known_anomalies_among_the_training_clips_are_refused(small_set: Path) -> None:
    source = open_source(small_set)
    clips = list(source.clips)
    place = next(n for n, clip in enumerate(clips) if clip.split is Split.TRAIN)
    clips[place] = replace(clips[place], condition=Condition.ANOMALY)
    with pytest.raises(FitError, match=rf"{clips[place].path.name} is known to be faulty.*normal recordings only"):
        fit(Source(source.root, source.kind, source.year, clips), "loudness")


def test_test_clips_are_never_heard(small_set: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_set, tmp_path / "set"))
    for path in copy.glob("*/test/*.wav"):
        path.write_bytes(b"")  # reading one would be noticed
    failures: list[Failure] = []
    detector = fit(copy, "logmel-knn", failures=failures)
    assert failures == []
    assert all("_train_" in name for known in detector.machines.values() for name in known.clips)


@pytest.mark.parametrize("system", ["loudness", "discriminative"])
def test_broken_training_clips_are_left_out_and_named(
    small_set: Path, quick: tuple[str, ...], tmp_path: Path, system: str
) -> None:
    copy = Path(shutil.copytree(small_set, tmp_path / "set"))
    victims = sorted(copy.glob("fan/train/*.wav"))[:2] + sorted(copy.glob("fan/supplemental/*noise*.wav"))[:1]
    for path in victims:
        path.write_bytes(path.read_bytes()[:20])
    failures: list[Failure] = []
    detector = fit(copy, system, overrides=quick, failures=failures)
    assert sorted(failure.path for failure in failures) == sorted(victims)
    assert all(failure.problem for failure in failures)
    assert len(detector.machines["fan"].clips) == 20


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_clips_are_refused(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "broken.wav").write_bytes(b"nothing")
    for number in range(count):
        noise(folder / f"{number}.wav", number)
    words = "too few" if count else "no training clip could be read"
    with pytest.raises(FitError, match=words):
        fit(folder, "loudness")


def test_few_clips_give_no_threshold_and_say_so(tmp_path: Path) -> None:
    for number in range(3):
        noise(tmp_path / "few" / f"{number}.wav", number)
    told = Told()
    detector = fit(tmp_path / "few", "logmel-knn", progress=told)
    verdict = detector.score(noise(tmp_path / "few" / "loud.wav", 7, level=0.5))
    assert verdict.threshold == float("inf")
    assert not verdict.is_anomalous
    assert any("few" in text and "clips" in text for text in told.said)
    assert "none: too few clips" in detector.card()


def test_a_machine_that_the_source_lacks_is_named(small_set: Path) -> None:
    with pytest.raises(FitError, match="no machine 'pump'; it has fan, valve"):
        fit(small_set, "loudness", machines=["pump"])
    assert list(fit(small_set, "loudness", machines=["valve"]).machines) == ["valve"]


def test_unknown_systems_and_settings_are_refused(recordings: Path) -> None:
    with pytest.raises(SettingsError, match=r"no system 'discriminativ'; known: auto, baseline, discriminative"):
        fit(recordings, "discriminativ")
    with pytest.raises(SettingsError, match=r"unknown setting 'training.epoch' \(did you mean 'training.epochs'\?\)"):
        fit(recordings, "auto", overrides=["training.epoch=3"])


def test_sections_of_a_machine_are_kept_apart(tmp_path: Path) -> None:
    for section, level in (("00", 0.01), ("01", 0.3)):
        for number in range(12):
            name = f"section_{section}_source_train_normal_{number:04d}_.wav"
            noise(tmp_path / "set" / "fan" / "train" / name, number, level=level)
    detector = fit(tmp_path / "set", "loudness")
    assert list(detector.machines) == ["fan/00", "fan/01"]
    quiet = noise(tmp_path / "quiet.wav", 50, level=0.01)
    assert not detector.score(quiet, machine="fan/00").is_anomalous
    assert detector.score(quiet, machine="fan/01").is_anomalous
    test = noise(tmp_path / "set" / "fan" / "test" / "section_01_source_test_normal_0000_.wav", 51, level=0.3)
    assert detector.score(test).machine == "fan/01"


def test_settings_decide_and_not_their_place(small_set: Path, tmp_path: Path) -> None:
    config = load_preset("logmel-density", ["scoring.scorers.0.scorer.k=2"])
    file = tmp_path / "mine.toml"
    from offkey.systems.settings import to_toml

    file.write_text(to_toml(config))
    first, second = fit(small_set, config, machines=["fan"]), fit(small_set, file, machines=["fan"])
    assert first.config == second.config
    assert np.array_equal(first.machines["fan"].calibration.scores, second.machines["fan"].calibration.scores)


def test_seeds_differ(small_set: Path, quick: tuple[str, ...], fitted: Callable[[str], Any]) -> None:
    other = fit(small_set, "discriminative", overrides=quick, seed=1).network.state_dict()
    first = fitted("discriminative").detector.network.state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_global_random_state_is_given_back(recordings: Path, quick: tuple[str, ...]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - what users may rely on
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fit(recordings, "discriminative", overrides=[*quick, "labels.speeds=[1.0, 1.1]"])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_held_out_clips_are_normal_and_of_every_class_that_can_spare_one(
    small_set: Path, quick: tuple[str, ...]
) -> None:
    overrides = [*quick, "labels.identity=machine", "training.held_out_share=0.3"]
    facts = fit(small_set, "discriminative", overrides=overrides).facts["training"]
    assert facts["held_out"] == 2 * int(0.3 * 20)  # two target clips give up none
    assert facts["clips"] + facts["held_out"] == 44 + 4


def test_progress_is_a_protocol_that_quiet_obeys() -> None:
    assert isinstance(Quiet(), Progress)
    assert not isinstance(object(), Progress)


def test_other_recordings_of_the_same_names_and_sizes_are_other_clips(recordings: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    fit(recordings, "loudness", out=out, workers=0)
    first = (recordings / "rec-4.wav").read_bytes()
    noise(recordings / "rec-4.wav", 99, seconds=1.1)
    with pytest.raises(DetectorError, match="other settings or clips"):
        fit(recordings, "loudness", out=out, workers=0)
    (recordings / "rec-4.wav").write_bytes(first)  # to make it again would not do: libsndfile writes the time into it
    told = Told()
    fit(recordings, "loudness", out=out, workers=0, progress=told)
    assert told.said == [f"{out} already holds this detector; nothing to do"]


def test_a_killed_run_does_not_go_on_with_other_recordings(recordings: Path) -> None:
    config = load_preset("discriminative")
    clips = open_source(recordings).train()
    lessons = Lessons(clips, LabelSpace.of(clips), config, ClipReader(), 0)
    before = lessons.fingerprint()
    noise(recordings / "rec-4.wav", 99, seconds=1.1)
    assert lessons.fingerprint() != before
