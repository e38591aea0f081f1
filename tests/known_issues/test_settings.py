"""Past bugs of settings."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import soundfile

import offkey
from offkey.cli.app import run
from offkey.systems.settings import to_toml


def test_the_delete_character_in_a_text_made_a_file_that_is_no_toml() -> None:
    assert tomllib.loads(to_toml({"about": "a\x7fb"})) == {"about": "a\x7fb"}


def test_the_default_of_the_seed_option_beat_the_seed_of_the_settings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "clips" / f"{number}.wav", 0.1 * rng.standard_normal(16000), 16000)
    command = ["fit", str(tmp_path / "clips"), "--system", "loudness", "--out", str(tmp_path / "model")]
    assert run([*command, "--set", "seed=4"]) == 0
    assert offkey.load(tmp_path / "model").config.seed == 4
