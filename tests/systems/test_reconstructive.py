"""Systems 3 and 4 and the baseline: what is learnt and kept, refused, and gone on with after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import offkey
from offkey.encoders import load_encoder
from offkey.fitting import fit
from offkey.systems.config import SystemConfig, load_preset
from offkey.systems.settings import SettingsError
from offkey.training import loop
from offkey.training.checkpoint import CheckpointError

CLIPS = 44


def test_the_encoder_stays_as_it_was_published(fitted: Callable[[str], Any], small_beats: Path) -> None:
    published = load_encoder("beats", small_beats, classifier=False).state_dict()
    saved = load_file(fitted("system4").folder / "model.safetensors")
    kept = {name: saved[f"streams.0.encoder.{name}"] for name in published}
    assert all(torch.equal(kept[name], published[name]) for name in published)
    facts = fitted("system4").detector.facts["training"]
    assert facts["encoder"]["learnt"] == []
    assert facts["clips"] + facts["held_out"] == CLIPS
    network = fitted("system4").detector.network
    assert facts["parameters"] - facts["learnt"] == sum(weight.numel() for weight in network.encoder.parameters())


def test_only_windows_that_are_needed_lie_on_disk_and_only_while_it_learns(fitted: Callable[[str], Any]) -> None:
    for system in ("system3", "baseline"):
        folder = fitted(system).folder
        assert not list(folder.rglob("*.bin"))
        assert not list(folder.rglob("*.pt"))


def test_both_scores_of_the_baseline_are_told_and_the_error_alone_decides(
    fitted: Callable[[str], Any], small_set: Path
) -> None:
    detector = fitted("baseline").detector
    verdict = detector.score(min(small_set.glob("valve/test/*.wav")))
    assert set(verdict.parts) == {"error:value", "residual:value"}
    assert verdict.score == verdict.parts["error:value"]
    training = detector.facts["training"]
    assert set(training["machines"]) == {"fan", "valve"}
    assert training["parameters"] == 2 * training["machines"]["fan"]["parameters"]
    assert (training["clips"], training["held_out"]) == (CLIPS, 0)
    assert "too few" not in detector.card()


def test_both_scores_of_system_4_are_blended(fitted: Callable[[str], Any], small_set: Path) -> None:
    detector = fitted("system4").detector
    verdict = detector.score(min(small_set.glob("valve/test/*.wav")))
    assert set(verdict.parts) == {"error:value", "network:mahalanobis"}
    quantiles = detector.machines["valve"].quantiles
    own = [float(to(np.array([part]))[0]) for to, part in zip(quantiles, verdict.parts.values(), strict=True)]
    assert verdict.score == pytest.approx(np.mean(own))


@pytest.mark.parametrize("system", ["system3", "baseline"])
def test_a_killed_run_ends_with_the_same_weights(
    system: str, small_set: Path, quick_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*quick_of(system), "training.epochs=2", "training.batch_size=32", "training.checkpoint_every_steps=1"]

    def weights(name: str) -> dict[str, torch.Tensor]:
        fit(small_set, system, out=tmp_path / name, overrides=overrides, machines=["fan"])
        return load_file(tmp_path / name / "model.safetensors")

    calm = weights("calm")
    plain, steps = loop._Run._optimise, 0

    def stumbles(run: Any, *rest: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return plain(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_optimise", stumbles)
        with pytest.raises(KeyboardInterrupt):
            weights("killed")
    with pytest.raises(CheckpointError, match="data"):  # what is learnt must not change on the way
        fit(small_set, system, out=tmp_path / "killed", overrides=[*overrides, "mel.f_min=50"], machines=["fan"])
    again = weights("killed")
    assert calm.keys() == again.keys()
    assert all(torch.equal(calm[name], again[name]) for name in calm)


@pytest.mark.parametrize(
    ("system", "override", "said"),
    [
        ("system3", "augmentation.mixup.enabled=true", "augmentation.mixup.enabled cannot be used"),
        ("system3", "training.crop_seconds=1", "training.crop_seconds"),
        ("system3", "labels.speeds=[1.0,1.1]", "labels.speeds"),
        ("system3", "encoder.unfreeze=all", "frozen encoder"),
        ("system3", "encoder.lora_rank=2", "frozen encoder"),
        ("system3", "model.name=mobilefacenet", "takes model.name conv-autoencoder or dense-autoencoder"),
        ("system3", "objective.name=multitask", "takes objective.name reconstruction"),
        ("system3", "model.embedding=8", "model.embedding is a setting of another kind of model"),
        ("system3", "model.name=conv", "model.name: there is no 'conv'"),
        ("system3", "scoring.scorers.0.view=residual", "view residual is the dense autoencoder's"),
        ("system3", "scoring.scorers.0.weight=0", "one at least must count"),
        ("system1", "scoring.scorers.0.view=error", "rebuilds nothing"),
        ("system1", "model.latent=8", "model.latent is a setting of another kind of model"),
        ("baseline", "encoder.name=beats", "choose system3"),
        ("loudness", "scoring.scorers.0.view=error", "no network"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(system: str, override: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        load_preset(system, [override])
    assert len(str(caught.value)) < 400


def test_settings_without_names_of_kinds_are_those_of_offkey_0_1() -> None:
    tree = load_preset("discriminative").model_dump(mode="json")
    for table in ("model", "objective"):
        del tree[table]["name"]
    assert SystemConfig.model_validate(tree) == load_preset("discriminative")


def test_an_encoder_is_a_choice(small_set: Path, quick_of: Callable[..., Any], tmp_path: Path) -> None:
    for number, extra in enumerate((["model.use_log_mel=true"], ["model.use_tgram=false", "model.use_log_mel=true"])):
        overrides = [*quick_of("system3"), "encoder.name=none", *extra]
        detector = fit(small_set, "system3", out=tmp_path / str(number), overrides=overrides, machines=["fan"])
        assert detector.network.encoder is None
        clip = min(small_set.glob("fan/test/*.wav"))
        assert offkey.load(tmp_path / str(number)).score(clip) == detector.score(clip)


def test_any_network_can_be_one_a_machine(small_set: Path, quick: Any, tmp_path: Path) -> None:
    """The fan's settings are known, the valve's are not, so one network could not be asked for clusters alone."""
    overrides = [*quick, "networks=machine", "labels.speeds=[1.0,1.1]", "labels.supplemental=false"]
    detector = fit(small_set, "discriminative", out=tmp_path / "m", overrides=overrides)
    assert set(detector.networks) == {"fan", "valve"}
    loaded = offkey.load(tmp_path / "m")
    clips = sorted(small_set.glob("*/test/*.wav"))
    assert [row.verdict for row in loaded.score_files(clips)] == [row.verdict for row in detector.score_files(clips)]
    assert "2" in loaded.card()


def test_what_a_trained_autoencoder_cannot_rebuild_is_found(small_set: Path, quick_of: Callable[..., Any]) -> None:
    overrides = [*quick_of("baseline"), "training.epochs=40", "training.learning_rate=0.003"]
    detector = fit(small_set, "baseline", overrides=overrides, machines=["fan"])
    samples, rate = soundfile.read(min(small_set.glob("fan/test/*.wav")), dtype="float32")
    time = np.arange(len(samples)) / rate
    tone = 0.5 * np.sin(2 * np.pi * 3000 * time) * ((time > 0.8) & (time < 1.3))
    found = detector.explain((samples + tone).astype(np.float32))
    assert found.kind == "reconstruction"
    assert abs(found.start - 0.8) < 0.2
    assert abs(found.end - 1.3) < 0.2
    assert found.low <= 3050
    assert found.high >= 2950
