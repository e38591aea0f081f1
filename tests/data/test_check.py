"""`check` counts what is there and finds each thing that can be wrong with a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from offkey.data.check import DataReport, check
from offkey.types import OffkeyError

RATE = 16000


def write(path: Path, seed: int, seconds: float = 0.5, rate: int = RATE, channels: int = 1, gain: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(seconds * rate), channels)
    soundfile.write(path, gain * np.random.default_rng(seed).standard_normal(shape), rate)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small data set with nothing wrong."""
    fan, rows = tmp_path / "fan", ["file_name,d1p,d1v"]
    seed = 0
    for split in ("train", "test"):
        for domain in ("source", "target"):
            for condition in ("normal", "anomaly") if split == "test" else ("normal",):
                for number in range(2):
                    seed += 1
                    name = f"section_00_{domain}_{split}_{condition}_{number:04d}_spd_{number}.wav"
                    write(fan / split / name, seed)
                    rows.append(f"fan/{split}/{name},spd,{number}")
    write(fan / "supplemental" / "section_00_noise_supplemental_normal_0000.wav", 99)
    (fan / "attributes_00.csv").write_text("\n".join(rows))
    return tmp_path


def kinds(report: DataReport) -> set[tuple[str, str]]:
    return {(problem.severity, problem.kind) for problem in report.problems}


def test_a_good_set_is_counted_and_has_no_problems(root):
    done = []
    report = check(root, progress=lambda at, of: done.append((at, of)))
    assert report.problems == ()
    (fan,) = report.machines
    assert fan.clips == {
        ("supplemental", "unknown", "noise"): 1,
        ("test", "source", "anomaly"): 2,
        ("test", "source", "normal"): 2,
        ("test", "target", "anomaly"): 2,
        ("test", "target", "normal"): 2,
        ("train", "source", "normal"): 2,
        ("train", "target", "normal"): 2,
    }
    assert fan.attributes == {"spd": {"0": 6, "1": 6}}
    assert (fan.with_attributes, fan.without_attributes, fan.unusable) == (12, 0, 0)
    assert fan.seconds == pytest.approx((6.5, 0.5, 0.5, 0.5))
    assert (fan.rates, fan.channels, fan.formats) == ({RATE: 13}, {1: 13}, {"WAV PCM_16": 13})
    assert done == [(n, 13) for n in range(1, 14)]
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["year"] == 2025
    assert plain["machines"][0]["seconds"]["total"] == pytest.approx(6.5)
    assert sum(row["count"] for row in plain["machines"][0]["clips"]) == 13


def test_workers_do_not_change_the_answer(root):
    assert check(root, workers=1).to_dict() == check(root, workers=4).to_dict()


TRAIN = "fan/train/section_00_source_train_normal_0000_spd_0.wav"


def break_unreadable(root: Path) -> None:
    (root / TRAIN).write_bytes(b"no sound")


def break_silent(root: Path) -> None:
    soundfile.write(root / TRAIN, np.zeros(8000), RATE)


def break_values(root: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    soundfile.write(root / TRAIN, np.float32(3e38) * (noise / np.abs(noise).max()), RATE, subtype="FLOAT")


def break_leak(root: Path) -> None:
    (root / "fan/test/section_00_target_test_normal_0000_spd_0.wav").write_bytes((root / TRAIN).read_bytes())


def break_duplicate(root: Path) -> None:
    (root / "fan/train/section_00_target_train_normal_0000_spd_0.wav").write_bytes((root / TRAIN).read_bytes())


def break_row(root: Path) -> None:
    write(root / "fan/train/section_00_source_train_normal_0009_spd_0.wav", 50)


def break_file(root: Path) -> None:
    (root / "fan/test/section_00_target_test_normal_0000_spd_0.wav").unlink()


def break_table(root: Path) -> None:
    (root / "fan/attributes_00.csv").unlink()


def break_section(root: Path) -> None:
    """A second section, whose table is not there; that of the first is."""
    write(root / "fan/train/section_01_source_train_normal_0000_spd_0.wav", 55)


def break_rate(root: Path) -> None:
    write(root / TRAIN, 51, rate=22050)


def break_low_rate(root: Path) -> None:
    write(root / TRAIN, 51, rate=8000)


def break_channels(root: Path) -> None:
    write(root / TRAIN, 52, channels=2)


def break_short(root: Path) -> None:
    write(root / TRAIN, 53, seconds=0.2)


def break_clipping(root: Path) -> None:
    write(root / TRAIN, 54, gain=9.0)


def break_training(root: Path) -> None:
    write(root / "pump/test/section_00_0000.wav", 55)


def break_target(root: Path) -> None:
    for path in (root / "fan/train").glob("*target*"):
        path.unlink()


def break_condition(root: Path) -> None:
    for path in (root / "fan/test").glob("*anomaly*"):
        path.unlink()


def break_hidden(root: Path) -> None:
    for path in (root / "fan/train").glob("*"):
        path.rename(path.with_name(path.name[: path.name.index("_spd")] + "_noAttribute.wav"))


@pytest.mark.parametrize(
    ("harm", "severity", "kind"),
    [
        (break_unreadable, "error", "unreadable"),
        (break_silent, "error", "silent"),
        (break_values, "error", "unreadable"),
        (break_leak, "error", "duplicate"),
        (break_duplicate, "warning", "duplicate"),
        (break_row, "warning", "file-without-row"),
        (break_file, "warning", "row-without-file"),
        (break_table, "warning", "no-table"),
        (break_section, "warning", "no-table"),
        (break_rate, "warning", "mixed-rate"),
        (break_low_rate, "warning", "low-rate"),
        (break_channels, "warning", "mixed-channels"),
        (break_short, "warning", "short"),
        (break_clipping, "warning", "clipping"),
        (break_training, "error", "no-training"),
        (break_training, "warning", "unlabelled"),
        (break_target, "warning", "no-target"),
        (break_condition, "warning", "one-condition"),
        (break_hidden, "warning", "hidden-attributes"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_harm_is_found(root, harm, severity, kind):
    assert (severity, kind) not in kinds(check(root))
    harm(root)
    report = check(root)
    assert (severity, kind) in kinds(report)
    severities = [problem.severity for problem in report.problems]
    assert severities == sorted(severities)
    assert len(report.errors) + len(report.warnings) == len(report.problems)
    json.dumps(report.to_dict())


def test_the_same_name_twice_in_a_plain_folder(tmp_path):
    for number, day in enumerate(("monday", "tuesday")):
        write(tmp_path / "hall" / "pump" / day / "a.wav", number)
    assert ("warning", "same-name") in kinds(check(tmp_path / "hall"))


def test_an_anomaly_among_training_clips_is_reported_not_raised(root):
    write(root / "fan/train/section_00_source_train_anomaly_0000.wav", 60)
    report = check(root)
    assert kinds(report) == {("error", "order")}
    assert "train_anomaly_0000" in report.problems[0].message


def test_nothing_at_all_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(OffkeyError):
            check(path)


@pytest.mark.slow
def test_the_real_set_has_no_problems(shared_data):
    report = check(shared_data / "uav")
    assert report.problems == ()
    assert report.machines[0].seconds[0] == pytest.approx(4950.0)
