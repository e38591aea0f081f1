"""Pseudo-classes in a system: who gets them, in which domain, of what they are made, and who is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import offkey
from offkey.audio.cache import ArrayCache
from offkey.audio.io import AudioConfig
from offkey.data.loader import ClipReader
from offkey.data.source import open_source
from offkey.encoders import load_encoder
from offkey.encoders.cache import FeatureCache
from offkey.fitting import fit
from offkey.models.encoder_frames import EncoderMean
from offkey.systems.config import SystemConfig, load_preset
from offkey.systems.lessons import label_clips
from offkey.systems.settings import SettingsError
from offkey.types import Batch, ClipMeta, Content, Domain, Split


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[ClipMeta]:
    """Three machines of 18 source and 12 target clips at two (target: three) pitches: known, hidden, known in part."""
    folder, made = tmp_path_factory.mktemp("tones"), []
    rng, time = np.random.default_rng(0), np.arange(8000) / 16000
    for machine in ("fan", "pump", "valve"):
        for number in range(30):
            domain = Domain.SOURCE if number < 18 else Domain.TARGET
            pitch = (300, 700)[number % 2] if domain is Domain.SOURCE else (1000, 2300)[number % 2]
            path = folder / f"{machine}-{number}.wav"
            soundfile.write(
                path,
                0.02 * sum(np.sin(2 * np.pi * pitch * k * time) for k in (1, 2, 3)) + 0.01 * rng.standard_normal(8000),
                16000,
            )
            told = machine == "fan" or (machine == "valve" and number % 9 > 0)
            made.append(
                ClipMeta(
                    path, machine, domain=domain, split=Split.TRAIN, attributes=(("hz", str(pitch)),) if told else ()
                )
            )
    return made


def settings(*overrides: str) -> SystemConfig:
    return load_preset("discriminative", overrides)


def classes(clips: list[ClipMeta], config: SystemConfig) -> dict[str, set[str]]:
    """Class names of each machine's clips."""
    space = label_clips(clips, config, ClipReader(AudioConfig()), workers=0)
    assert all(space.encode(clip)[0] >= 0 for clip in clips)
    return {
        name: {space.name(clip) for clip in clips if clip.machine == name}
        for name in sorted({c.machine for c in clips})
    }


def test_only_clips_whose_settings_are_not_told_are_grouped(clips: list[ClipMeta]) -> None:
    found = classes(clips, settings("labels.identity=attributes-or-clusters"))
    known = classes(clips, settings())
    assert found["fan"] == known["fan"] == {f"fan/00/hz={pitch}" for pitch in (300, 700, 1000, 2300)}
    assert found["pump"] == {f"pump/00/{domain}#{group}" for domain in ("source", "target") for group in (0, 1)}
    # four clips of the valve are not told: too few for groups, so one a domain
    assert found["valve"] == {
        *(name for name in known["valve"] if "hz=" in name),
        "valve/00/source#0",
        "valve/00/target#0",
    }


def test_groups_are_the_settings_that_were_hidden(clips: list[ClipMeta]) -> None:
    space = label_clips(clips, settings("labels.identity=attributes-or-clusters"), ClipReader(AudioConfig()), workers=0)
    pumps = [clip for clip in clips if clip.machine == "pump"]
    for domain in (Domain.SOURCE, Domain.TARGET):
        mine = [clip for clip in pumps if clip.domain is domain]
        sides = [{space.name(clip) for clip in mine[start::2]} for start in (0, 1)]
        assert len(sides[0]) == len(sides[1]) == 1
        assert sides[0] != sides[1]


def test_clusters_leave_what_is_told_aside_and_no_target_clip_joins_a_source_group(clips: list[ClipMeta]) -> None:
    hidden = [replace(clip, attributes=()) for clip in clips]
    found = classes(clips, settings("labels.identity=clusters"))
    assert found == classes(hidden, settings("labels.identity=clusters"))
    assert found == classes(hidden, settings("labels.identity=attributes-or-clusters"))
    assert found["fan"] == {f"fan/00/{domain}#{group}" for domain in ("source", "target") for group in (0, 1)}
    # even where both domains sound the same
    alike = [replace(clip, domain=(Domain.SOURCE, Domain.TARGET)[place % 2]) for place, clip in enumerate(hidden)]
    assert all(
        len({name.split("#")[0] for name in names}) == 2
        for names in classes(alike, settings("labels.identity=clusters")).values()
    )


def test_where_no_domain_is_known_there_is_one_to_group(clips: list[ClipMeta]) -> None:
    mine = [replace(clip, domain=Domain.UNKNOWN) for clip in clips if clip.machine == "pump"]
    found = classes(mine, settings("labels.identity=clusters", "labels.clusters=4"))
    assert found["pump"] == {f"pump/00/unknown#{group}" for group in range(4)}


def test_supplemental_clips_are_not_grouped(clips: list[ClipMeta]) -> None:
    extra = replace(
        clips[0], machine="pump", content=Content.MACHINE, attributes=(), path=clips[0].path.with_name("x.wav")
    )
    found = classes([*clips, extra], settings("labels.identity=attributes-or-clusters"))
    assert "pump/00/source" in found["pump"]


def test_groups_can_be_found_in_what_an_encoder_hears(clips: list[ClipMeta], small_beats: Path) -> None:
    told = ("encoder.name=beats", f"encoder.weights={small_beats}", "labels.cluster_on=encoder")
    found = classes(clips, settings("labels.identity=attributes-or-clusters", *told))
    assert len(found["fan"]) == 4
    assert len(found["pump"]) >= 3
    assert found == classes(clips, settings("labels.identity=attributes-or-clusters", "encoder.cache=false", *told))


def test_the_mean_of_an_encoder_is_its_own_and_padding_does_not_matter(small_beats: Path, tmp_path: Path) -> None:
    encoder = load_encoder("beats", small_beats).requires_grad_(False)
    waves = [
        0.1 * torch.randn(length, generator=torch.Generator().manual_seed(length)) for length in (16000, 9000, 100)
    ]
    batch = Batch(
        torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        torch.tensor([16000, 9000, 100]),
        None,
        torch.arange(3),
    )
    plain = EncoderMean(encoder, 16000)(batch).embedding
    kept = EncoderMean(encoder, 16000, FeatureCache(ArrayCache(tmp_path)))
    torch.testing.assert_close(
        plain[:2], encoder.embed(batch.waveform, batch.lengths.clamp_min(encoder.shortest))[:2], atol=1e-5, rtol=1e-4
    )
    for _ in range(2):
        torch.testing.assert_close(kept(batch).embedding, plain, atol=1e-5, rtol=1e-4)
    for row, wave in enumerate(waves):
        alone = Batch(wave[None], torch.tensor([len(wave)]), None, torch.arange(1))
        torch.testing.assert_close(kept(alone).embedding[0], plain[row], atol=1e-5, rtol=1e-4)


def test_an_encoder_to_group_by_has_to_be_named() -> None:
    with pytest.raises(SettingsError, match=r"labels\.cluster_on.*name an encoder"):
        settings("labels.identity=clusters", "labels.cluster_on=encoder")
    assert settings("labels.cluster_on=encoder").labels.cluster_on == "encoder"  # nothing is grouped


@pytest.mark.parametrize("networks", ["shared", "machine"])
def test_the_card_tells_which_classes_were_found(
    small_set: Path, quick: tuple[str, ...], tmp_path: Path, networks: str
) -> None:
    overrides = (
        *quick, "labels.identity=attributes-or-clusters", "objective.head=adacos", "augmentation.featex.enabled=true",
        "augmentation.mixup.enabled=true", f"networks={networks}",
    )  # fmt: skip
    detector = fit(small_set, "discriminative", out=tmp_path / "m", overrides=overrides)
    facts = detector.facts["training"]
    told = (facts if networks == "shared" else facts["machines"]["valve"])["pseudo_classes"]
    assert told["on"] == "logmel"
    assert all(name.startswith("valve/00/") and "#" in name for name in told["clips"])
    assert sum(told["clips"].values()) == sum(clip.machine == "valve" for clip in open_source(small_set).train())
    assert set(told["clips"]) <= set(facts["classes"])
    loaded = offkey.load(tmp_path / "m")
    for name, count in told["clips"].items():
        assert f"{name} ({count} clips)" in loaded.card()
    clip = min(small_set.glob("valve/test/*.wav"))
    assert loaded.score(clip) == detector.score(clip)
