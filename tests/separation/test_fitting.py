"""From a data set to a separator on disk: which way it learns, what it hears, and what it leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from offkey.audio.io import read_clip
from offkey.data.loader import Failure
from offkey.data.source import open_source
from offkey.separation.config import LocoformerConfig, SeparatorConfig
from offkey.separation.fitting import FittedSeparator, SeparatorFitError, choose_mode, fit_separator, training_told
from offkey.separation.recipe import MixingConfig, SeparationRecipe
from offkey.separation.separator import Separator
from offkey.training.config import TrainingConfig
from offkey.types import ClipMeta, Content, Split

RECIPE = SeparationRecipe(
    separator=SeparatorConfig(
        n_fft=128,
        hop=64,
        locoformer=LocoformerConfig.of(
            "tiny", blocks=1, width=8, heads=1, attention_width=8, hidden=(8, 8), frequency_stride=8
        ),
    ),
    mixing=MixingConfig(batches=2, crop_seconds=0.25, held_out=3),
    training=TrainingConfig(epochs=2, batch_size=2, keep_memory=False, threads=1),
)


def clip(machine: str, content: Content, number: int = 0) -> ClipMeta:
    split = Split.TRAIN if content is Content.MIXTURE else Split.SUPPLEMENTAL
    return ClipMeta(Path(f"{machine}_{content}_{number}.wav"), machine, split=split, content=content)


class Told:
    """Keeps what a person would have read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, what: str, total: int, done: int = 0) -> None: ...

    def step(self, done: int, note: str = "") -> None: ...

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def supervised(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FittedSeparator, Path, list[str]]:
    out, told = tmp_path_factory.mktemp("separator") / "supervised", Told()
    return fit_separator(small_set, out, RECIPE, workers=0, progress=told), out, told.lines


def test_the_mode_follows_from_what_there_is_and_says_why() -> None:
    clean, noise, normal = (
        clip("fan", Content.MACHINE), clip("saw", Content.NOISE), clip("saw", Content.MIXTURE)
    )  # fmt: skip
    mode, reasons = choose_mode([clean, noise, normal])
    assert mode == "supervised"
    assert "saw: no clean clips" in reasons[1]
    mode, reasons = choose_mode([noise, normal])
    assert mode == "mixtures"
    assert "no clips of a machine alone" in reasons[0]
    assert "noise-only clips of saw" in reasons[1]
    assert choose_mode([normal])[0] == "mixtures"
    assert choose_mode([clean, noise, normal], "mixtures")[0] == "mixtures"
    with pytest.raises(SeparatorFitError, match=r"of noise alone, .* none of noise alone"):
        choose_mode([clean, normal], "supervised")
    for mode_asked in ("auto", "mixtures"):
        with pytest.raises(SeparatorFitError, match="no normal clips"):
            choose_mode([clean], mode_asked)  # type: ignore[arg-type]


def test_a_supervised_separator_on_disk(supervised: tuple[FittedSeparator, Path, list[str]], small_set: Path) -> None:
    fitted, out, told = supervised
    assert fitted.mode == "supervised"
    assert any(line.startswith("supervised: 2 clips of a machine alone (fan, valve)") for line in told)
    wave = read_clip(sorted(small_set.glob("fan/test/*.wav"))[0], replace_rate())
    loaded = Separator.load(out)
    stems = loaded.separate(wave)
    assert stems.shape == (2, len(wave))
    assert np.array_equal(stems, fitted.separator.separate(wave))
    assert not list((out / "training").glob("*.pt"))
    facts = json.loads((out / "training.json").read_text())
    assert facts["mode"] == "supervised"
    assert len(facts["history"]["epochs"]) == 2
    assert small_set.as_posix() not in (out / "training.json").read_text()  # a model travels


def replace_rate() -> object:
    from offkey.audio.io import AudioConfig

    return AudioConfig(rate=RECIPE.separator.rate)


def test_the_same_again_does_nothing_and_anything_else_is_refused(
    supervised: tuple[FittedSeparator, Path, list[str]], small_set: Path
) -> None:
    fitted, out, _ = supervised
    told = Told()
    again = fit_separator(small_set, out, RECIPE, workers=0, progress=told)
    assert told.lines == [f"{out} already holds this separator; nothing to do"]
    assert again.separator.fingerprint() == fitted.separator.fingerprint()
    with pytest.raises(SeparatorFitError, match="other settings or clips"):
        fit_separator(small_set, out, RECIPE.model_copy(update={"seed": 9}), workers=0)
    with pytest.raises(SeparatorFitError, match="other settings or clips"):
        fit_separator(small_set, out, RECIPE, machines=["fan"], workers=0)


def test_a_record_of_before_tells_nothing_of_what_supervised_learning_passes_by(
    supervised: tuple[FittedSeparator, Path, list[str]], small_set: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(supervised[1], tmp_path / "s"))
    facts = json.loads((out / "training.json").read_text())
    del facts["asked"]["recipe"]["prior"]["clearest_share"]
    facts["asked"]["recipe"]["prior"]["sum_share"] = 0.5
    (out / "training.json").write_text(json.dumps(facts))
    told = Told()
    fit_separator(small_set, out, RECIPE, workers=0, progress=told)
    assert told.lines == [f"{out} already holds this separator; nothing to do"]


def test_what_is_told_of_a_training(supervised: tuple[FittedSeparator, Path, list[str]], tmp_path: Path) -> None:
    out = Path(shutil.copytree(supervised[1], tmp_path / "s"))
    facts = json.loads((out / "training.json").read_text())
    told = training_told(out)
    assert told is not None
    assert (told["mode"], told["before"], told["after"], told["mixtures"]) == ("supervised", None, None, 0)
    assert told["seconds"] == round(sum(epoch["seconds"] for epoch in facts["history"]["epochs"]), 1)
    facts["held_out"] = {"before": -3.0, "after": 3.5, "mixtures": 48}
    (out / "training.json").write_text(json.dumps(facts))
    assert training_told(out) == told | facts["held_out"]
    assert training_told(tmp_path) is None
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(SeparatorFitError, match=r"training\.json is damaged"):
        training_told(tmp_path)


def test_a_killed_run_that_overwrites_goes_on(
    supervised: tuple[FittedSeparator, Path, list[str]], small_set: Path, tmp_path: Path
) -> None:
    fitted, out, _ = supervised
    shutil.copytree(out, tmp_path / "s")

    class Killed(Told):
        """Dies in the second epoch."""

        def start(self, what: str, total: int, done: int = 0) -> None:
            self.training = what == "training"

        def step(self, done: int, note: str = "") -> None:
            if self.training and done > RECIPE.mixing.batches:
                raise KeyboardInterrupt

    for _ in range(2):  # the second time the folder holds what the first has left
        with pytest.raises(KeyboardInterrupt):
            fit_separator(small_set, tmp_path / "s", RECIPE, workers=0, overwrite=True, progress=Killed())
    told = Told()
    again = fit_separator(small_set, tmp_path / "s", RECIPE, workers=0, progress=told)
    assert any("going on after step" in line for line in told.lines)
    assert again.separator.fingerprint() == fitted.separator.fingerprint()


def test_normal_clips_alone_with_held_out_ones(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: set[Path] = set()
    original = read_clip

    def listening(path: Path, config: object) -> object:
        heard.add(path)
        return original(path, config)  # type: ignore[arg-type]

    monkeypatch.setattr("offkey.data.loader.read_clip", listening)
    told = Told()
    state = torch.random.get_rng_state()
    out = tmp_path / "out"
    fitted = fit_separator(small_set, out, RECIPE, mode="mixtures", machines=["fan"], workers=0, progress=told)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fitted.mode == "mixtures"
    assert {path.parent.name for path in heard} == {"train"}
    assert {path.parent.parent.name for path in heard} == {"fan"}
    assert fitted.measured is not None
    assert fitted.measured.clips == 3
    shown = [line for line in told.lines if "held-out SI-SNR" in line]
    assert len(shown) == 2
    assert shown[0].startswith("epoch 1: ")
    assert f"{fitted.measured.gain:+.1f} dB" in shown[1]
    assert not any("running mean" in line for line in told.lines)
    # a run with fewer threads or another folder ends the same
    again = fit_separator(small_set, tmp_path / "again", RECIPE, mode="mixtures", machines=["fan"], workers=2)
    assert again.separator.fingerprint() == fitted.separator.fingerprint()
    summing = RECIPE.model_copy(update={"prior": RECIPE.prior.model_copy(update={"sum_share": 1.0})})
    told = Told()
    taught = fit_separator(
        small_set, out, summing, machines=["fan"], mode="mixtures", workers=0, overwrite=True, progress=told
    )
    assert any("running mean" in line for line in told.lines)
    assert taught.separator.fingerprint() != fitted.separator.fingerprint()


def test_broken_clips_are_named_and_the_rest_is_used(small_set: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_set / "fan", tmp_path / "set" / "fan")).parent
    broken = sorted(folder.glob("fan/train/*.wav"))[3]
    broken.write_bytes(broken.read_bytes()[:1000])
    failures: list[Failure] = []
    fit_separator(folder, tmp_path / "out", RECIPE, mode="mixtures", workers=1, failures=failures)
    assert [failure.path for failure in failures] == [broken]
    for path in folder.glob("fan/supplemental/*_machine_*.wav"):
        path.write_bytes(b"")
    with pytest.raises(SeparatorFitError, match="too few clips could be read for supervised"):
        fit_separator(folder, tmp_path / "other", RECIPE, workers=1)


def test_unknown_machines_and_other_models_are_refused(small_set: Path, tmp_path: Path) -> None:
    with pytest.raises(SeparatorFitError, match="no machine 'saw'; it has fan, valve"):
        fit_separator(small_set, tmp_path, RECIPE, machines=["saw"])
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(SeparatorFitError, match="another model"):
        fit_separator(small_set, tmp_path, RECIPE)


def test_noise_of_a_machine_without_clean_clips_helps(small_set: Path, tmp_path: Path) -> None:
    source = open_source(small_set)
    kept = [one for one in source.clips if not (one.machine == "valve" and one.content is Content.MACHINE)]
    told = Told()
    fitted = fit_separator(replace(source, clips=kept), tmp_path / "out", RECIPE, workers=0, progress=told)
    assert fitted.mode == "supervised"
    assert any(line.startswith("valve: no clean clips") for line in told.lines)


def test_other_recordings_of_the_same_names_and_sizes_are_other_clips(tmp_path: Path) -> None:
    def simulate(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number in range(3):
            path = tmp_path / "press" / f"{number}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(8000), 16000)

    simulate(0)
    fit_separator(tmp_path / "press", tmp_path / "out", RECIPE, workers=0)
    simulate(1)
    with pytest.raises(SeparatorFitError, match="other settings or clips"):
        fit_separator(tmp_path / "press", tmp_path / "out", RECIPE, workers=0)
    simulate(0)
    told = Told()
    fit_separator(tmp_path / "press", tmp_path / "out", RECIPE, workers=0, progress=told)
    assert told.lines == [f"{tmp_path / 'out'} already holds this separator; nothing to do"]


def test_clean_clips_without_noise_are_foregrounds_and_it_says_so(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: set[str] = set()
    original = read_clip
    monkeypatch.setattr(
        "offkey.data.loader.read_clip", lambda path, config: (heard.add(path.name), original(path, config))[1]
    )
    source = open_source(small_set)
    kept = [one for one in source.clips if one.content is not Content.NOISE]
    fitted = fit_separator(replace(source, clips=kept), tmp_path / "out", RECIPE, workers=0)
    assert fitted.mode == "mixtures"
    assert "2 clips of a machine alone (fan, valve) are foregrounds as they are" in fitted.reasons[-1]
    assert any("_machine_" in name for name in heard)
    assert fitted.measured is not None  # two clean clips, of which none is held out, once left nothing to examine by
