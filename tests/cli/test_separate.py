"""`offkey fit-separator` and `offkey separate`: stems on disk that add up, and files that cannot be used."""

from __future__ import annotations

import errno
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

QUICK = (
    *("separator.n_fft=128", "separator.hop=64", "separator.locoformer.blocks=1", "separator.locoformer.width=8"),
    *("separator.locoformer.heads=1", "separator.locoformer.attention_width=8", "separator.locoformer.hidden=[8,8]"),
    *(
        "mixing.batches=2",
        "mixing.crop_seconds=0.25",
        "mixing.held_out=2",
        "training.epochs=1",
        "training.batch_size=2",
    ),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A separator that has learnt nothing yet."""
    from offkey.separation.config import LocoformerConfig, SeparatorConfig
    from offkey.separation.separator import Separator

    network = LocoformerConfig.of("tiny", blocks=1, width=8, heads=1, attention_width=8, hidden=(8, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        separator = Separator(SeparatorConfig(n_fft=128, hop=64, locoformer=network))
    return separator.save(tmp_path_factory.mktemp("model") / "separator")


def read(path: Path | str) -> tuple[np.ndarray, int]:
    samples, rate = soundfile.read(path, dtype="float32")
    return samples, rate


def test_fitting_from_the_command_line(offkey: Callable[..., Any], small_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    settings = [word for text in QUICK for word in ("--set", text)]
    said = offkey(
        "fit-separator", small_set, "--out", out, "--mode", "mixtures", "--machine", "fan", "--workers", 0, *settings
    )
    assert said.code == 0
    assert "separator (mixtures)" in said.out
    assert "2 held-out normal clips with more noise" in said.out
    assert "mixtures, as asked" in said.err
    again = offkey(
        "fit-separator", small_set, "--out", out, "--mode", "mixtures", "--machine", "fan", "--json", *settings
    )
    assert again.json["mode"] == "mixtures"
    assert again.json["held_out"]["mixtures"] == 2
    clip = sorted(small_set.glob("fan/test/*.wav"))[0]
    assert offkey("separate", clip, "--model", out, "--out", tmp_path / "stems").code == 0


def test_an_unknown_setting_names_the_nearest_one(offkey: Callable[..., Any], small_set: Path, tmp_path: Path) -> None:
    said = offkey("fit-separator", small_set, "--out", tmp_path / "m", "--set", "mixing.min_snr=3")
    assert said.code == 2
    assert "did you mean 'mixing.min_snr_db'" in said.err
    assert not (tmp_path / "m").exists()


def test_stems_have_the_clips_rate_and_add_up_to_it(offkey: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for rate, channels in ((16000, 1), (22050, 1), (8000, 2)):
        clip, out = tmp_path / f"clip {rate}.wav", tmp_path / "out"
        wave = 0.1 * rng.standard_normal((rate, channels)).astype(np.float32)
        soundfile.write(clip, wave, rate, subtype="FLOAT")
        assert offkey("separate", clip, "--model", model, "--out", out).code == 0
        (front, one), (back, other) = (read(out / f"clip {rate}_{name}.wav") for name in ("foreground", "background"))
        assert one == other == rate
        assert front.shape == (rate,)
        assert float(np.abs(front).max()) > 0
        assert np.allclose(front + back, wave.mean(1), atol=1e-6)


def test_unusable_files_are_named_and_the_rest_is_done(
    offkey: Callable[..., Any], model: Path, small_set: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    good = sorted(small_set.glob("fan/test/*.wav"))[:2]
    for number, path in enumerate(good):
        shutil.copy(path, folder / f"{2 * number}.wav")
    (folder / "1.wav").write_bytes(good[0].read_bytes()[:2000])
    said = offkey("separate", folder, folder / "none.wav", "--model", model, "--out", tmp_path / "out", "--json")
    assert said.code == 1
    assert [bool(row["error"]) for row in said.json["files"]] == [False, True, False, True]
    assert f"{folder / '1.wav'}: truncated" in said.err
    assert "none.wav: there is no such file" in said.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0_background.wav", "0_foreground.wav", "2_background.wav", "2_foreground.wav", "separation.html"
    ]  # fmt: skip


def test_clips_of_one_name_do_not_overwrite_each_other(
    offkey: Callable[..., Any], model: Path, small_set: Path, tmp_path: Path
) -> None:
    paths = []
    for number, path in enumerate(sorted(small_set.glob("fan/test/*.wav"))[:2]):
        paths.append(tmp_path / str(number) / "a.wav")
        paths[-1].parent.mkdir()
        shutil.copy(path, paths[-1])
    said = offkey("separate", *paths, "--model", model, "--out", tmp_path / "out", "--json")
    assert said.code == 0
    assert len({row["foreground"] for row in said.json["files"]}) == 2


@pytest.mark.parametrize("beside", [False, True])
def test_si_snr_is_told_where_the_truth_is_known(
    offkey: Callable[..., Any], model: Path, tmp_path: Path, beside: bool
) -> None:
    time = np.arange(16000) / 16000
    tone, other = 0.1 * np.sin(2 * np.pi * 500 * time), 0.2 * np.sin(2 * np.pi * 3000 * time)
    clip, truth = tmp_path / "fan" / "test" / "c.wav", tmp_path / "fan" / ("stems" if beside else "truth")
    clip.parent.mkdir(parents=True)
    truth.mkdir()
    soundfile.write(clip, tone + other, 16000, subtype="FLOAT")
    soundfile.write(truth / "c_foreground.wav", tone, 16000, subtype="FLOAT")
    told = () if beside else ("--truth", truth)
    said = offkey("separate", clip, "--model", model, "--out", tmp_path / "out", *told, "--json")
    row = said.json["files"][0]
    assert row["si_snr_before_db"] == pytest.approx(-6.02, abs=0.01)
    front, _ = read(row["foreground"])
    scale = front @ tone / (tone @ tone)
    by_hand = 10 * np.log10(np.sum((scale * tone) ** 2) / np.sum((front - scale * tone) ** 2))
    assert row["si_snr_db"] == pytest.approx(by_hand, abs=0.05)
    assert row["gain_db"] == pytest.approx(row["si_snr_db"] + 6.02, abs=0.01)
    assert "SI-SNR -6.0 ->" in offkey("separate", clip, "--model", model, "--out", tmp_path / "out", *told).out
    bad = {
        "15995 samples of truth for 16000": tone[:-5],
        "too short: no samples": tone[:0],
        "digital silence": 0 * tone,
    }
    for words, samples in bad.items():
        soundfile.write(truth / "c_foreground.wav", samples, 16000, subtype="FLOAT")
        said = offkey("separate", clip, "--model", model, "--out", tmp_path / "out", *told, "--json")
        assert said.code == 1
        row = said.json["files"][0]
        assert row["error"] is None
        assert "gain_db" not in row
        assert row["foreground"]
        assert words in row["truth_error"]
        assert words in said.err


def test_wrong_use(offkey: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    assert offkey("separate", tmp_path, "--model", model, "--out", tmp_path / "o").code == 2
    soundfile.write(tmp_path / "a.wav", np.ones(16000) * 0.1 * np.sin(np.arange(16000)), 16000)
    said = offkey("separate", tmp_path / "a.wav", "--model", tmp_path / "no model", "--out", tmp_path / "o")
    assert said.code == 2
    assert "no model" in said.err


SECOND = 0.1 * np.sin(np.arange(16000) / 5) + 0.05 * np.sin(np.arange(16000))


def record(path: Path, samples: np.ndarray = SECOND, rate: int = 16000, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_recordings_are_never_overwritten(offkey: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "same"
    clip, other = record(folder / "a.wav"), record(folder / "a_foreground.wav", 0.5 * SECOND)
    (tmp_path / "link").symlink_to(folder)
    before = contents(tmp_path)
    for clips, out, words in (
        ([folder], folder, "the folder that recordings are read from"),
        ([tmp_path / "link"], folder, "the folder that recordings are read from"),
        ([clip, other], folder, "would overwrite the recording"),
        ([clip, other], tmp_path / "link", "would overwrite the recording"),
        ([clip, folder / "a_background.wav"], folder, "would overwrite the recording"),  # not there before the run
    ):
        said = offkey("separate", *clips, "--model", model, "--out", out)
        assert said.code == 2
        assert words in said.err
        assert contents(tmp_path) == before
    assert offkey("separate", clip, "--model", model, "--out", tmp_path / "elsewhere").code == 0


def test_a_second_run_does_not_take_stems_for_recordings(
    offkey: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    record(folder / "day" / "a.wav")
    for _ in range(2):
        said = offkey("separate", folder, "--model", model, "--out", folder / "stems of mine", "--json")
        assert [Path(row["file"]).name for row in said.json["files"]] == ["a.wav"]
    above = offkey("separate", folder / "day", "--model", model, "--out", folder, "--json")
    assert above.code == 0
    assert len(above.json["files"]) == 1


def test_true_stems_are_neither_overwritten_nor_made_up(
    offkey: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    clip, stems = record(tmp_path / "fan" / "test" / "c.wav"), tmp_path / "fan" / "stems"
    for told in ((), ("--truth", stems)):
        record(stems / "other_foreground.wav")
        before = contents(stems)
        said = offkey("separate", clip, "--model", model, "--out", stems, *told)
        assert said.code == 2
        assert "choose another" in said.err
        assert contents(stems) == before
    alone = record(tmp_path / "dd" / "wav" / "one.wav")
    said = offkey("separate", alone, "--model", model, "--out", tmp_path / "dd" / "stems", "--json")
    assert said.code == 0
    assert "gain_db" not in said.json["files"][0]
    again = offkey("separate", alone, "--model", model, "--out", tmp_path / "dd" / "stems")
    assert again.code == 0  # its own stems may be written anew, and are nobody's truth
    elsewhere = offkey("separate", alone, "--model", model, "--out", tmp_path / "dd" / "more", "--json")
    assert "gain_db" not in elsewhere.json["files"][0]


def test_no_two_recordings_have_one_name(offkey: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    names = ("x/a.wav", "y/a.wav", "z/0000_a.wav", "b.wav", "y/B.wav", "0004_B.wav")
    clips = [record(tmp_path / name, (0.2 + 0.1 * place) * SECOND) for place, name in enumerate(names)]
    said = offkey("separate", *clips, "--model", model, "--out", tmp_path / "out", "--json")
    rows = said.json["files"]
    written = [row[part] for row in rows for part in ("foreground", "background")]
    assert len({path.casefold() for path in written}) == 12
    for row, clip in zip(rows, clips, strict=True):
        assert np.allclose(read(row["foreground"])[0] + read(row["background"])[0], read(clip)[0], atol=1e-6)


def test_the_truth_belongs_to_one_recording(offkey: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    clips, truth = [record(tmp_path / name) for name in ("x/a.wav", "y/a.wav", "y/b.wav")], tmp_path / "truth"
    call = ("separate", *clips, "--model", model, "--out", tmp_path / "out", "--json")
    said = offkey(*call, "--truth", tmp_path / "nonexistent")
    assert said.code == 2
    assert "nonexistent is no folder" in said.err
    for name in ("a", "b"):
        record(truth / f"{name}_foreground.wav")
    said = offkey(*call, "--truth", truth)
    assert said.code == 1
    assert ["gain_db" in row for row in said.json["files"]] == [False, False, True]
    assert [row.get("truth_error", "").endswith(f"000{place}_a_foreground.wav") for place, row in
            enumerate(said.json["files"])] == [True, True, False]  # fmt: skip
    for number in (0, 1):
        record(truth / f"000{number}_a_foreground.wav", SECOND if number else 0.1 * np.sin(np.arange(16000) / 5))
    said = offkey(*call, "--truth", truth)
    assert said.code == 0
    gains = [row["si_snr_before_db"] for row in said.json["files"]]
    assert gains[0] < 20 < gains[1]


def test_simulated_machines_have_truth_each_of_its_own(offkey: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    for machine in ("fan", "pump"):
        record(tmp_path / machine / "test" / "a.wav")
        record(tmp_path / machine / "stems" / "a_foreground.wav")
    said = offkey("separate", *sorted(tmp_path.glob("*/test")), "--model", model, "--out", tmp_path / "out", "--json")
    assert said.code == 0
    assert all("gain_db" in row for row in said.json["files"])


def test_no_file_ends_the_batch(offkey: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    long, slow = record(tmp_path / "clips" / f"{'n' * 241}.wav"), record(tmp_path / "clips" / "slow.wav", rate=500)
    good = record(tmp_path / "clips" / "z.wav")
    said = offkey("separate", long, slow, good, "--model", model, "--out", tmp_path / "out", "--json")
    assert said.code == 1
    assert [row["error"] for row in said.json["files"]] == [
        "its stems cannot be written: File name too long",
        "recorded at 500 Hz; it can be separated from 1000 to 768000 Hz",
        None,
    ]


@pytest.mark.parametrize(("number", "code", "tried"), [(errno.ENOSPC, 2, 1), (errno.EIO, 1, 3)])
def test_a_full_disk_ends_it(
    offkey: Callable[..., Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int,
    tried: int,
) -> None:  # fmt: skip
    from offkey.cli import separate

    asked = []

    def full(path: Path, *_: object) -> Path:
        asked.append(path)
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(separate, "_write", full)
    clips = [record(tmp_path / f"{name}.wav") for name in "abc"]
    said = offkey("separate", *clips, "--model", model, "--out", tmp_path / "out")
    assert said.code == code
    assert os.strerror(number) in said.err
    assert len(asked) == tried
    assert offkey("separate", *clips, "--model", model, "--out", clips[0]).code == 2


@pytest.mark.parametrize("rate", [48000, 44100, 8000])
def test_stems_of_24_bits_add_up_bit_for_bit_at_any_rate(
    offkey: Callable[..., Any], model: Path, tmp_path: Path, rate: int
) -> None:
    clip = record(tmp_path / "a.wav", 0.3 * np.random.default_rng(0).standard_normal(rate), rate, "PCM_24")
    row = offkey("separate", clip, "--model", model, "--out", tmp_path / "out", "--json").json["files"][0]
    np.testing.assert_array_equal(read(row["foreground"])[0] + read(row["background"])[0], read(clip)[0])


def test_one_channel_can_be_chosen(offkey: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    both = np.stack([SECOND, 0.3 * np.cos(np.arange(16000) / 7)], axis=1)
    clip = record(tmp_path / "a.wav", both)
    record(tmp_path / "truth" / "a_foreground.wav", both[:, 1])  # of one channel, as stems are
    for channel, expected in (("mean", read(clip)[0].mean(1)), ("1", read(clip)[0][:, 1])):
        said = offkey(
            *("separate", clip, "--model", model, "--out", tmp_path / "out", "--channel", channel),
            *("--truth", tmp_path / "truth", "--json"),
        )
        assert "gain_db" in said.json["files"][0]
        row = said.json["files"][0]
        np.testing.assert_allclose(read(row["foreground"])[0] + read(row["background"])[0], expected, atol=1e-6)
    assert offkey("separate", clip, "--model", model, "--out", tmp_path / "out", "--channel", "left").code == 2
    assert (
        "channel 2 was asked for"
        in offkey("separate", clip, "--model", model, "--out", tmp_path / "out", "--channel", 2).err
    )


def test_a_device_that_is_not_there_is_told(offkey: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    call = ("separate", record(tmp_path / "a.wav"), "--model", model, "--out", tmp_path / "out")
    said = offkey(*call, "--device", "nonsense")
    assert said.code == 2
    assert "--device: there is no device 'nonsense'" in said.err
    assert offkey(*call, "--device", "cpu").code == 0


def test_long_clips_are_not_kept_whole(
    offkey: Callable[..., Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offkey.separation.stems import Pair, Stems

    wave = (0.1 * np.sin(np.arange(16000 * 40))).astype(np.float32)
    monkeypatch.setattr(Stems, "pair", lambda self, path: Pair(wave * 0.5, wave * 0.5))
    clips = [record(tmp_path / f"{number}.wav") for number in range(5)]
    peaks = []
    for count in (1, 5):
        tracemalloc.start()
        offkey("separate", *clips[:count], "--model", model, "--out", tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4 * 1.5 * wave.nbytes  # the parts of a clip take three times as much
    text = (tmp_path / "out" / "separation.html").read_text(encoding="utf-8")
    assert text.count("Shown are the first 10 s of 40 s.") == 5


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("mixing.min_snr_db=nan", "mixing.min_snr_db: input should be a finite number"),
        ("mixing.max_gain_db=1e6", "mixing.max_gain_db: input should be less than or equal to 200"),
        ("training.learning_rate=inf", "training.learning_rate: input should be a finite number"),
        ("mixing.crop_seconds=0.000001", "mixing.crop_seconds 1e-06 is shorter than one frame of the separator"),
        ("mixing.crop_seconds=0.03", "(2048 samples at 16000 Hz, 0.128 s)"),
    ],
)
def test_numbers_that_cannot_be_are_an_error_that_says_so(
    offkey: Callable[..., Any], small_set: Path, tmp_path: Path, setting: str, words: str
) -> None:
    said = offkey("fit-separator", small_set, "--out", tmp_path / "m", "--set", setting)
    assert said.code == 2
    assert words in said.err


def test_the_channel_of_the_recordings_is_asked_for(offkey: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        (tmp_path / "clips").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "clips" / f"{number}.wav", 0.1 * rng.standard_normal((8000, 2)), 16000)
    settings = [word for text in QUICK for word in ("--set", text)]
    command = ("fit-separator", tmp_path / "clips", "--workers", 0, *settings)
    weights = {}
    for channel in ("mean", "0", "1"):
        assert offkey(*command, "--out", tmp_path / channel, "--channel", channel).code == 0
        weights[channel] = (tmp_path / channel / "model.safetensors").read_bytes()
    assert len(set(weights.values())) == 3
    said = offkey(*command, "--out", tmp_path / "0", "--channel", "1")
    assert (said.code, "other settings or clips" in said.err) == (2, True)
    said = offkey(*command, "--out", tmp_path / "9", "--channel", "9")
    assert said.code == 2
    assert "too few clips could be read" in said.err
    said = offkey(*command, "--out", tmp_path / "l", "--channel", "left")
    assert (said.code, "fit-separator --channel: channel: " in said.err) == (2, True)
