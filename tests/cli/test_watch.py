"""`offkey watch`, `offkey update`, and `--false-alarms` wherever a rate is set."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import offkey as package
from offkey.watching import Confirmation, Watch, WatchSettings, follow

RATE = 16000


def noise(seconds: float, seed: int, level: float = 0.1) -> np.ndarray:
    return level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))


@pytest.fixture(scope="module")
def press(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of loudness from sixty clips of half a second, a little different in level."""
    root = tmp_path_factory.mktemp("press")
    folder = root / "press"
    folder.mkdir()
    for number in range(60):
        soundfile.write(folder / f"{number}.wav", noise(0.5, number, 0.1 * 1.02 ** (number % 7)), RATE)
    from offkey.fitting import fit

    fit(folder, "loudness", out=root / "model", workers=0)
    return root / "model"


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """Twenty seconds; from 8 to 11 s something is loud."""
    sound = noise(20, 1000)
    sound[8 * RATE : 11 * RATE] *= 8
    path = tmp_path / "night.wav"
    soundfile.write(path, sound, RATE)
    return path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_long_recording_has_one_alarm_with_its_beginning_and_end(
    offkey: Callable[..., Any], press: Path, night: Path
) -> None:
    said = offkey("watch", press, night, "--confirm", "2/3", "--false-alarms", "2%", "--json")
    assert said.code == 0, said.err
    begun, ended = lines(said.out)
    assert begun["kind"] == "alarm"
    assert ended["kind"] == "end"
    assert begun["start"] == ended["start"] == {"file": str(night), "at": 8.0, "seconds": 0.5}
    assert ended["end"]["at"] == 10.5
    assert ended["clips"] == 6
    assert ended["score"] >= begun["score"] > begun["threshold"]
    assert begun["why"]
    assert "40 clips judged, 1 alarm, 0 drift warnings, 0 unusable" in said.err
    assert "if normal clips are independent of each other, at most" in said.err
    plain = offkey("watch", press, night, "--confirm", "2/3", "--false-alarms", "2%")
    assert plain.out.startswith("ALARM press: since ")
    assert "end of alarm press" in plain.out


def test_clips_of_a_folder_come_in_the_order_of_their_numbers(
    offkey: Callable[..., Any], press: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "press"
    folder.mkdir()
    for number in range(1, 13):
        soundfile.write(folder / f"c{number}.wav", noise(0.5, number, 2.0 if number in (9, 10) else 0.1), RATE)
    (folder / "c6.wav").write_bytes(b"RIFF")
    said = offkey("watch", press, folder, "--confirm", "2/2", "--json")
    assert said.code == 1
    told = lines(said.out)
    assert [notice["kind"] for notice in told] == ["unusable", "alarm", "end"]
    assert [Path(told[2][key]["file"]).name for key in ("start", "end")] == ["c9.wav", "c10.wav"]


def test_a_stream_is_watched_to_its_end(
    offkey: Callable[..., Any], press: Path, night: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stdin:
        buffer = io.BytesIO(night.read_bytes()[: 44 + 2 * RATE * 10])  # it ends in the middle of the alarm

    monkeypatch.setattr("sys.stdin", Stdin)
    said = offkey("watch", press, "-", "--confirm", "2/3", "--json")
    assert said.code == 0, said.err
    begun, ended = lines(said.out)
    assert (begun["kind"], ended["kind"], ended["ended"]) == ("alarm", "end", False)
    assert begun["noticed"]
    Stdin.buffer = io.BytesIO(night.read_bytes()[44:])
    raw = offkey("watch", press, "-", "--pcm", "s16le", "--rate", RATE, "--confirm", "2/3", "--json")
    assert [notice["kind"] for notice in lines(raw.out)] == ["alarm", "end"]


def test_a_watch_goes_on_where_it_was_stopped(press: Path, night: Path, tmp_path: Path) -> None:
    detector = package.load(press)
    settings = WatchSettings(confirm=Confirmation(2, 3))
    expected = [str(notice) for notice in Watch(detector, settings).file(night)]
    for stopped_after in (3, 18, 21):
        told: list[str] = []
        first = Watch(detector, settings)

        def stop(watch: Watch = first, place: int = stopped_after) -> None:
            if watch.judged == place:
                watch.save(tmp_path / "state.json", "m")
                raise KeyboardInterrupt

        first.checkpoint = stop
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("offkey.watching.watch._CHECKPOINT_EVERY", 1)
            with pytest.raises(KeyboardInterrupt):
                told += [str(notice) for notice in first.file(night)]
        told = told or expected[: stopped_after > 17]
        second = Watch(detector, settings)
        assert second.resume(tmp_path / "state.json", "m") is None
        told += [str(notice) for notice in second.file(night)]
        assert told == expected
        assert second.judged == 40


def test_follow_waits_for_whole_files(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0.5, 0), RATE)
    whole = (tmp_path / "a.wav").read_bytes()
    done: set[Path] = set()
    clock = 0

    def sleep(_: float) -> None:
        nonlocal clock
        clock += 1
        if clock <= 5:
            (tmp_path / "b.wav").write_bytes(whole[: 1000 * clock])  # grows
        elif clock == 8:
            (tmp_path / "b.wav").write_bytes(whole)

    got = []
    for path in follow([tmp_path], done.__contains__, poll=1.0, idle=6.0, sleep=sleep):
        got.append((path.name, clock, path.stat().st_size == len(whole)))
        done.add(path)
    assert [(name, good) for name, _, good in got] == [("a.wav", True), ("b.wav", True)]
    assert got[1][1] >= 8


def test_follow_and_state_on_the_command_line(offkey: Callable[..., Any], press: Path, tmp_path: Path) -> None:
    folder, state = tmp_path / "press", tmp_path / "state.json"
    folder.mkdir()
    soundfile.write(folder / "1.wav", noise(0.5, 1), RATE)

    def record() -> None:
        time.sleep(0.5)
        soundfile.write(tmp_path / "2.wav", noise(0.5, 2), RATE)
        shutil.move(tmp_path / "2.wav", folder / "2.wav")

    recorder = threading.Thread(target=record)
    recorder.start()
    arguments = ("watch", press, folder, "--follow", "--poll", "0.1s", "--idle", "1.5s", "--state", state)
    said = offkey(*arguments)
    recorder.join()
    assert "2 clips judged" in said.err
    soundfile.write(folder / "3.wav", noise(0.5, 3), RATE)
    again = offkey(*arguments)
    assert "3 clips judged" in again.err
    assert sorted(Path(name).name for name in json.loads(state.read_text())["done"]) == ["1.wav", "2.wav", "3.wav"]
    other = offkey(*arguments, "--confirm", "2/2")
    assert "what was judged stays judged" in other.err
    state.write_text("{}")
    assert offkey(*arguments).code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--false-alarms", "1/year"), "no alarm could ever be raised"),
        (("--false-alarms", "often"), "no rate of false alarms"),
        (("--confirm", "3"), "no confirmation"),
        (("--window", "0s"), "no length of time"),
        (("--machine", "pump"), "does not know the machine 'pump'"),
        (("--drift-warnings", "5%"), "no frequency"),
        (("--pcm", "s16le"), "name it as -"),
        (("--follow",), "no folder"),
    ],
)
def test_wrong_use_says_what(
    offkey: Callable[..., Any], press: Path, night: Path, options: tuple[str, ...], said: str
) -> None:
    told = offkey("watch", press, night, *options)
    assert told.code == 2
    assert said in told.err


def test_overlapping_windows_ask_for_the_worst_case(offkey: Callable[..., Any], press: Path, night: Path) -> None:
    wanted = ("--confirm", "3/5", "--false-alarms", "20/hour")
    assert offkey("watch", press, night, *wanted).code == 0
    said = offkey("watch", press, night, *wanted, "--step", "0.25s")
    assert said.code == 2
    assert "windows overlap" in said.err


def test_score_and_fit_take_rates(offkey: Callable[..., Any], press: Path, night: Path, tmp_path: Path) -> None:
    """The same table as with the detector's rate, but for threshold and alarms."""
    plain = offkey("score", press, night, "--json").json["files"][0]
    strict = offkey("score", press, night, "--false-alarms", "2%", "--json").json["files"][0]
    assert strict["p_value"] == plain["p_value"]
    assert strict["threshold"] > plain["threshold"]
    often = offkey("score", press, night, "--false-alarms", "1/hour", "--clip-every", "5min")
    assert often.code == 0
    assert offkey("score", press, night, "--false-alarms", "12/hour", "--clip-every", "5min").code == 2
    never = offkey("score", press, night, "--false-alarms", "1/week")
    assert "this rate takes 1.209599e+06" not in never.err
    assert "1209599 normal clips (7 days of normal recordings), and there are 60" in never.err
    assert "The lowest rate within reach is 0.0164, 118 an hour" in never.err

    folder = tmp_path / "press"
    folder.mkdir()
    for number in range(20):
        soundfile.write(folder / f"{number}.wav", noise(0.5, number), RATE)
    arguments = ("fit", folder, "--system", "loudness", "--out", tmp_path / "m", "--false-alarms", "12/hour")
    said = offkey(*arguments, "--clip-every", "30s")
    assert said.code == 0, said.err
    assert "12 an hour, with a clip every 30 s, is a false-alarm rate of 0.1" in said.err
    detector = package.load(tmp_path / "m")
    assert detector.machines["press"].calibration.alpha == pytest.approx(0.1)
    assert detector.config.calibration.false_alarm_rate == pytest.approx(0.1)
    assert "already holds this detector" in offkey(*arguments, "--clip-every", "30s").err
    assert "other settings" in offkey(*arguments, "--clip-every", "60s").err
    assert "true rate, 95 % range" in detector.card()


def test_update_in_place_and_beside(offkey: Callable[..., Any], press: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(press, tmp_path / "model"))
    for name in ("new.wav", "other.wav"):
        soundfile.write(tmp_path / name, noise(0.5, 500, 0.2), RATE)
    (tmp_path / "half.wav").write_bytes(b"RIFF")
    said = offkey("update", model, tmp_path / "new.wav", tmp_path / "half.wav", "--as", "false-alarm", "--json")
    assert said.code == 1
    assert "half.wav" in said.err
    assert said.json["machines"][0]["clips"] == 61
    assert len(package.load(model).machines["press"].clips) == 61
    assert "called false alarms" in (model / "CARD.md").read_text()
    assert offkey("update", model, tmp_path / "other.wav").code == 2  # the same sound: known already
    beside = offkey("update", press, tmp_path / "new.wav", "--out", tmp_path / "beside")
    assert beside.code == 0
    assert "1 clips added, 61 in all" in beside.out
    assert len(package.load(press).machines["press"].clips) == 60
    assert offkey("update", press, tmp_path / "new.wav", "--out", tmp_path / "beside").code == 2
    (tmp_path / "anomaly_1.wav").write_bytes((tmp_path / "new.wav").read_bytes())
    refused = offkey("update", model, tmp_path / "anomaly_1.wav")
    assert refused.code == 2
    assert "known to be faulty" in refused.err
