"""`offkey fit-separator` and `offkey separate`: stems on disk that add up, and files that cannot be used."""

from __future__ import annotations

import shutil
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
    soundfile.write(truth / "c_foreground.wav", tone[:-5], 16000, subtype="FLOAT")
    said = offkey("separate", clip, "--model", model, "--out", tmp_path / "out", *told)
    assert said.code == 1
    assert "15995 samples of truth for 16000" in said.err


def test_wrong_use(offkey: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    assert offkey("separate", tmp_path, "--model", model, "--out", tmp_path / "o").code == 2
    soundfile.write(tmp_path / "a.wav", np.ones(16000) * 0.1 * np.sin(np.arange(16000)), 16000)
    said = offkey("separate", tmp_path / "a.wav", "--model", tmp_path / "no model", "--out", tmp_path / "o")
    assert said.code == 2
    assert "no model" in said.err
