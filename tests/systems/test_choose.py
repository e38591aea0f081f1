"""`auto` settles every open setting by what there is to learn from, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from offkey.systems.choose import FEWEST_CLIPS, choose, trains_behind_separator
from offkey.systems.config import load_preset, preset_names
from offkey.systems.settings import SettingsError
from offkey.types import ClipMeta, Content, Domain, Split


def clips(machine: str, count: int, settings: int = 0, content: Content = Content.MIXTURE) -> list[ClipMeta]:
    """`count` normal clips, evenly over that many known settings (0: none is told)."""
    return [
        ClipMeta(
            Path(f"{machine}/{content}-{number}.wav"), machine, domain=Domain.SOURCE, split=Split.TRAIN,
            attributes=(("spd", str(number % settings)),) if settings else (), content=content,
        )
        for number in range(count)
    ]  # fmt: skip


AUTO = load_preset("auto")


def test_known_settings_become_classes() -> None:
    config, reasons = choose(AUTO, clips("fan", 30, 3) + clips("pump", 30, 2))
    assert (config.kind, config.labels.identity, config.labels.speeds) == ("discriminative", "attributes", (1.0,))
    assert "5 combinations of machine and known setting" in reasons[0]
    assert not config.labels.supplemental


def test_a_lone_folder_gets_clusters_and_variants() -> None:
    config, reasons = choose(AUTO, clips("press", FEWEST_CLIPS))
    assert (config.kind, config.labels.identity) == ("discriminative", "clusters")
    assert config.labels.speeds[0] == 1.0
    assert len(config.labels.speeds) > 1
    text = " ".join(reasons)
    assert "settings of press are not told" in text
    assert "faster" in text


def test_machines_without_names_are_clustered_and_the_others_keep_theirs() -> None:
    # one nameless machine used to make clusters of them all
    for settings in (1, 2):
        config, reasons = choose(AUTO, clips("fan", 30, settings) + clips("press", 30))
        assert config.labels.identity == "attributes-or-clusters"
        text = " ".join(reasons)
        assert "settings of press are not told" in text
        assert "the other machines keep their known settings" in text
    config, reasons = choose(AUTO, clips("fan", 30, 6) + clips("press", 30))
    assert config.labels.identity == "attributes"  # enough classes: the nameless machine is one of its own
    config, reasons = choose(AUTO, clips("pump", 30) + clips("press", 30))
    assert config.labels.identity == "clusters"
    assert "settings of press, pump are not told" in " ".join(reasons)
    assert "other machines" not in " ".join(reasons)


def test_too_few_clips_train_no_network() -> None:
    config, reasons = choose(AUTO, clips("press", FEWEST_CLIPS - 1))
    assert config.kind == "training-free"
    assert all(entry.view != "network" for entry in config.scoring.scorers)
    assert len(config.scoring.scorers) > 0
    assert f"{FEWEST_CLIPS - 1} normal clips are too few" in reasons[0]


def test_a_setting_of_few_clips_is_no_class() -> None:
    config, _ = choose(AUTO, clips("fan", 60, 30))  # two clips each
    assert len(config.labels.speeds) > 1
    assert config.labels.identity == "attributes"


def test_supplemental_clips_join_and_noise_is_mixed_in() -> None:
    known = clips("fan", 60, 3)
    noise, clean = clips("fan", 4, content=Content.NOISE), clips("fan", 4, content=Content.MACHINE)
    config, reasons = choose(AUTO, known, noise + clean)
    assert config.labels.supplemental
    assert "pool" in config.augmentation.noise.kinds
    assert "8 supplemental clips (4 of noise alone)" in " ".join(reasons)
    assert "noise recordings are mixed in" in " ".join(reasons)
    config, reasons = choose(AUTO, known, clean)
    assert config.labels.supplemental
    assert "noise recordings are mixed in" not in " ".join(reasons)


def test_clips_in_any_order_are_settled_alike() -> None:
    known = clips("fan", 30, 3) + clips("pump", 30)
    assert choose(AUTO, known) == choose(AUTO, known[::-1])


@pytest.mark.parametrize("name", [name for name in preset_names() if load_preset(name).kind != "auto"])
def test_other_systems_are_left_as_they_are(name: str) -> None:
    config = load_preset(name)
    assert choose(config, clips("fan", 3)) == (config, [])


@pytest.mark.parametrize("count", [5, 60])
def test_what_is_chosen_is_not_open_any_more(count: int) -> None:
    config, reasons = choose(AUTO, clips("fan", count, 2))
    assert config.kind != "auto"
    assert reasons
    assert choose(config, clips("fan", count)) == (config, [])
    assert config.system == "auto"


def test_label_settings_that_somebody_gave_are_kept() -> None:
    told = load_preset("auto", ["labels.speeds=[1.0, 1.3]", "labels.identity=machine"])
    config, reasons = choose(told, clips("press", 60))
    assert (config.labels.identity, config.labels.speeds) == ("machine", (1.0, 1.3))
    assert "labels.identity, labels.speeds" in reasons[-1]


def test_remix_is_switched_off_where_no_network_is_trained_and_it_says_so() -> None:
    asked = load_preset("auto", ["augmentation.remix.enabled=true", "separation.model=s"])
    config, reasons = choose(asked, clips("fan", FEWEST_CLIPS - 1))
    assert config.kind == "training-free"
    assert not config.augmentation.remix.enabled
    assert any("augmentation.remix is switched off" in reason for reason in reasons)
    config, reasons = choose(asked, clips("fan", 60, 3))
    assert config.augmentation.remix.enabled
    assert not any("switched off" in reason for reason in reasons)
    assert not any("switched off" in reason for reason in choose(AUTO, clips("fan", 5))[1])


def test_behind_a_separator_log_mel_statistics_judge_alone() -> None:
    def settled(count: int, *overrides: str) -> tuple[str, list[str], list[str]]:
        config, reasons = choose(load_preset("auto", overrides), clips("fan", count, 3))
        return config.kind, [f"{entry.view}:{entry.scorer.name}" for entry in config.scoring.scorers], reasons

    usual = ["network:density", "logmel:mahalanobis", "logmel:mahalanobis"]
    assert settled(60)[:2] == ("discriminative", usual)
    for count in (10, 60):
        kind, scorers, reasons = settled(count, "separation.front_end=x")
        assert (kind, scorers) == ("training-free", [*usual[1:], "logmel:density"])
        assert len(reasons) == 1
        assert "behind a separator three scores of log-mel statistics judge, and no network" in reasons[0]
    own = "scoring.scorers=[{view = 'loudness', scorer = {name = 'level'}}]"
    assert settled(10, "separation.front_end=x", own)[1] == ["loudness:level"]
    network = "scoring.scorers=[{view = 'network', scorer = {name = 'gmm'}}]"
    assert settled(60, "separation.front_end=x", network)[:2] == ("discriminative", ["network:gmm"])


def test_scorers_that_somebody_set_decide_whether_a_network_is_trained() -> None:
    network, logmel = (
        f"scoring.scorers=[{{view = '{view}', scorer = {{name = 'gmm'}}}}]" for view in ("network", "logmel")
    )
    for front_end in ("", "s"):
        told = [f"separation.front_end={front_end}"]
        single, reasons = choose(load_preset("auto", [logmel, *told]), clips("fan", 60, 3))
        assert (single.kind, len(single.scoring.scorers)) == ("training-free", 1)
        assert reasons == ["no scorer that was asked for looks at a network, so none is trained"]
        with pytest.raises(SettingsError, match="all look at a network"):
            choose(load_preset("auto", [network, *told]), clips("fan", FEWEST_CLIPS - 1, 3))


@pytest.mark.parametrize(
    ("system", "overrides", "trains"),
    [
        ("auto", [], False),
        ("auto", ["scoring.scorers=[{view = 'network', scorer = {name = 'gmm'}}]"], True),
        ("logmel-knn", [], False),
        ("discriminative", [], True),
        ("ensemble", [], True),
    ],
)
def test_who_trains_behind_a_separator(system: str, overrides: list[str], trains: bool) -> None:
    assert trains_behind_separator(load_preset(system, overrides)) is trains
