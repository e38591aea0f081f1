"""Settings: what is written is read back, overrides land where they say, faults name the nearest known key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from offkey.systems.config import LabelConfig, SystemConfig, load_preset, preset_names
from offkey.systems.settings import SettingsError, apply_overrides, parse_override, read_toml, to_toml, validate

KNOWN = ["auto", "discriminative", "logmel-density", "logmel-knn", "logmel-mahalanobis", "loudness"]


def test_the_presets_are_those_that_the_documents_name() -> None:
    assert set(KNOWN) <= set(preset_names())
    assert preset_names() == sorted(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_called_by_its_name_and_says_what_it_does(name: str) -> None:
    config = load_preset(name)
    assert config.system == name
    assert len(config.about) > 20


# ---- writing and reading

changes = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**31),
        "about": st.text(st.characters(blacklist_categories=("Cs",)), max_size=40),
        "labels.speeds": st.lists(st.floats(0.51, 1.99).filter(lambda x: x != 1.0), max_size=3, unique=True).map(
            lambda rest: [1.0, *rest]
        ),
        "labels.identity": st.sampled_from(["attributes", "attributes-or-clusters", "domain", "machine", "clusters"]),
        "audio.level_dbfs": st.none() | st.floats(-80, 0),
        "audio.rate": st.integers(8000, 48000),
        "training.learning_rate": st.floats(1e-12, 10, exclude_min=True),
        "training.held_out_share": st.floats(0, 1, exclude_max=True),
        "calibration.false_alarm_rate": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "augmentation.noise.kinds": st.lists(st.sampled_from(["white", "pink", "brown", "pool"]), min_size=1),
        "augmentation.gain.enabled": st.booleans(),
    },
)


def changed(config: SystemConfig, values: dict[str, Any]) -> SystemConfig:
    tree = config.model_dump()
    for key, value in values.items():
        *path, last = key.split(".")
        place = tree
        for part in path:
            place = place[part]
        place[last] = value
    return SystemConfig.model_validate(tree)


@settings(deadline=None)
@given(name=st.sampled_from(preset_names()), values=changes)
def test_settings_survive_a_file(name: str, values: dict[str, Any]) -> None:
    preset = load_preset(name)
    if preset.kind == "reconstructive":  # which learns from clips as they are
        kept = {key: value for key, value in values.items() if not key.startswith("augmentation.")}
        values = {key: value for key, value in kept.items() if key != "labels.speeds"}
    config = changed(preset, values)
    assert SystemConfig.model_validate(tomllib.loads(to_toml(config))) == config


keys = st.text(st.sampled_from("abcdefgh_-0189"), min_size=1, max_size=6)
plain = (
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False)
    | st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)
)  # fmt: skip
trees = st.recursive(
    st.dictionaries(keys, plain | st.lists(plain, max_size=3), max_size=4),
    lambda inner: st.dictionaries(keys, plain | inner | st.lists(inner, min_size=1, max_size=3), max_size=4),
    max_leaves=12,
)


@given(trees)
def test_any_tree_survives_toml(tree: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(tree)) == tree


def test_what_has_no_value_is_left_out() -> None:
    assert tomllib.loads(to_toml({"a": None, "b": {"c": None, "d": 1}})) == {"b": {"d": 1}}


# ---- overrides


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("a.b=3", ("a", "b"), 3), ("a=1e-3", ("a",), 1e-3), ("a = true", ("a",), True), ("a=mean", ("a",), "mean"),
        ('a="mean"', ("a",), "mean"), ("a=[1, 2]", ("a",), [1, 2]), ("a={b = 1}", ("a",), {"b": 1}),
        ("a=", ("a",), ""), ("a=x=y", ("a",), "x=y"), ("a=../b.toml", ("a",), "../b.toml"),
    ],
)  # fmt: skip
def test_an_override_is_a_path_and_a_value(text: str, path: tuple[str, ...], value: Any) -> None:
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["", "a", "=3", "a..b=3", ".a=3", "a.=3"])
def test_what_is_no_override_is_told(text: str) -> None:
    with pytest.raises(SettingsError, match=r"expected KEY=VALUE, for example training\.epochs=5"):
        parse_override(text)


def test_the_last_override_wins_and_the_given_tree_is_left_alone() -> None:
    tree = {"a": {"b": 1}, "c": [{"d": 2}, {"d": 3}]}
    assert apply_overrides(tree, ["a.b=5", "a.b=6", "c.1.d=7", "e.f=8"]) == {
        "a": {"b": 6}, "c": [{"d": 2}, {"d": 7}], "e": {"f": 8},
    }  # fmt: skip
    assert tree == {"a": {"b": 1}, "c": [{"d": 2}, {"d": 3}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.b.c=1", "a.b is a value"), ("c.2.d=1", "list of 2"), ("c.x.d=1", "list of 2"), ("c.-1.d=1", "list of 2"),
        ("c.2=1", "list of 2"),
    ],
)  # fmt: skip
def test_an_override_that_leads_nowhere_is_told(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        apply_overrides({"a": {"b": 1}, "c": [{"d": 2}, {"d": 3}]}, [text])


def test_overrides_reach_into_a_preset() -> None:
    config = load_preset("auto", ["scoring.scorers.0.scorer.k=7", "audio.channel=0", "labels.speeds=[1.0, 1.2]"])
    assert config.scoring.scorers[0].scorer.k == 7
    assert config.audio.channel == "0"
    assert config.labels.speeds == (1.0, 1.2)


# ---- faults


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epoch=3", r"unknown setting 'training.epoch' \(did you mean 'training.epochs'\?\)"),
        ("training.lerning_rate=3", r"did you mean 'training.learning_rate'"),
        ("sead=3", r"unknown setting 'sead' \(did you mean 'seed'\?\)"),
        ("epochs=3", r"unknown setting 'epochs' \(did you mean '(training\.)?epochs'\?\)"),
        ("augmentation.nose.enabled=true", r"unknown setting 'augmentation.nose'"),
        ("zzzzzz=1", r"unknown setting 'zzzzzz'$"),
        ("training.epochs=many", r"training.epochs: .*integer.*\(got 'many'\)"),
        ("training.epochs=0", r"training.epochs: .*greater than or equal to 1.*\(got 0\)"),
        ("labels.speeds=[1.1]", r"speeds must begin with 1.0"),
        ("labels.speeds=[1.0, 1.1, 1.1]", r"no value twice"),
        ("calibration.false_alarm_rate=1", r"calibration.false_alarm_rate"),
        ("scoring.scorers=[]", r"scoring.scorers"),
        ("scoring.scorers.0.scorer.name=nearest", r"scoring.scorers.0.scorer"),
    ],
)
def test_a_fault_names_the_setting_and_the_nearest_known_one(override: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_preset("discriminative", [override])


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"training\.epochs.*training\.batch_size"):
        load_preset("auto", ["training.epochs=0", "training.batch_size=0"])


def test_a_training_free_system_has_no_network() -> None:
    with pytest.raises(SettingsError, match="no network for a scorer to look at"):
        load_preset("loudness", ["scoring.scorers.0.view=network"])


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        load_preset("auto").seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        LabelConfig().speeds = (1.0,)  # type: ignore[misc]


def test_a_file_is_a_system_too(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(to_toml(load_preset("logmel-knn", ["seed=4"])))
    assert load_preset(file, ["calibration.folds=3"]) == load_preset("logmel-knn", ["seed=4", "calibration.folds=3"])
    file.write_text('system = "x"\nkid = "auto"\n')
    with pytest.raises(SettingsError, match=r"my\.toml.*unknown setting 'kid' \(did you mean 'kind'"):
        load_preset(file)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: cannot be read"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = 1\nb = = 2\n")
    with pytest.raises(SettingsError, match=r"bad\.toml: is not valid TOML.*line 2"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(SettingsError, match=r"binary\.toml: cannot be read"):
        read_toml(tmp_path / "binary.toml")


def test_an_unknown_system_lists_the_known() -> None:
    with pytest.raises(SettingsError, match="there is no system 'aut'; known: " + ", ".join(preset_names())):
        load_preset("aut")


def test_validate_says_where_the_settings_came_from() -> None:
    with pytest.raises(SettingsError, match=r"^somewhere: "):
        validate(LabelConfig, {"identity": "colour"}, "somewhere")


def tables() -> list[type[BaseModel]]:
    """Every table of settings in the package."""
    import offkey.data.synthetic.config
    import offkey.separation.recipe  # noqa: F401

    found, waiting = [], [BaseModel]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("offkey.") and kind.model_config.get("extra") == "forbid":
                found.append(kind)
    return found


def test_no_setting_takes_a_number_that_is_none() -> None:
    found = tables()
    assert len(found) > 30
    assert [kind.__name__ for kind in found if kind.model_config.get("allow_inf_nan") is not False] == []
    for text in (
        "training.learning_rate=inf", "augmentation.gain.min_db=nan", "objective.margin=nan",
        "labels.speeds=[1.0, nan]", "audio.level_dbfs=-inf",
        "mel.floor_db=nan", "scoring.scorers.0.weight=inf", "encoder.layer_decay=nan",
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=r"finite number|less than|greater than"):
            load_preset("discriminative", [text])


def test_a_crop_shorter_than_a_frame_is_an_error_that_says_so() -> None:
    with pytest.raises(SettingsError, match=r"training\.crop_seconds 1e-06 is shorter than one frame \(1024 samples"):
        load_preset("discriminative", ["training.crop_seconds=0.000001"])
    assert load_preset("discriminative", ["training.crop_seconds=0.064"]).training.crop_seconds == 0.064


@pytest.mark.parametrize("told", [{"snr_db": (-1e5, 0)}, {"snr_db": (0, 1e5)}, {"level_dbfs": (-1e5, -30)}])
def test_a_simulation_of_levels_that_no_sound_has_is_refused(told: dict[str, Any]) -> None:
    from offkey.data.synthetic.config import SynthConfig

    with pytest.raises(ValidationError, match="200 dB"):
        SynthConfig(**told)
