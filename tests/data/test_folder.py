"""Plain folders: what the names of folders say, and nothing else, decides what is learned from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offkey.data.folder import scan_folder
from offkey.data.source import open_source
from offkey.types import Condition, Content, Domain, OffkeyError, Split

TRAIN, TEST = Split.TRAIN, Split.TEST
NORMAL, ANOMALY, UNKNOWN = Condition.NORMAL, Condition.ANOMALY, Condition.UNKNOWN


def lay(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def facts(root: Path, **how: str) -> list[tuple]:
    return [
        (str(c.path.relative_to(root)), c.machine, c.section, c.split, c.condition) for c in scan_folder(root, **how)
    ]


def test_recordings_right_in_a_folder_are_one_machine(tmp_path):
    root = lay(tmp_path / "Pump 3", "b.WAV", "a.flac", "notes.txt", "c.mp3")
    assert facts(root) == [(name, "Pump 3", "00", TRAIN, NORMAL) for name in ("a.flac", "b.WAV", "c.mp3")]


def test_subfolders_are_machines(tmp_path):
    root = lay(tmp_path / "hall", "pump/a.wav", "fan/monday/a.wav", "fan/tuesday/a.wav")
    assert [(name, machine) for name, machine, *_ in facts(root)] == [
        ("fan/monday/a.wav", "fan"), ("fan/tuesday/a.wav", "fan"), ("pump/a.wav", "pump")
    ]  # fmt: skip


def test_subfolders_can_be_settings_of_one_machine(tmp_path):
    root = lay(tmp_path / "pump", "slow/a.wav", "fast/warm/a.wav", "b.wav", "test/anomaly/slow/x.wav")
    clips = scan_folder(root, "settings")
    assert {clip.machine for clip in clips} == {"pump"}
    assert [clip.attributes for clip in clips] == [
        (), (("setting", "fast/warm"),), (("setting", "slow"),), (("setting", "slow"),)
    ]  # fmt: skip


def test_train_and_test_folders_with_conditions(tmp_path):
    root = lay(tmp_path / "pump", "train/a.wav", "test/normal/b.wav", "test/anomaly/c.wav", "test/d.wav")
    assert facts(root) == [
        ("test/anomaly/c.wav", "pump", "00", TEST, ANOMALY),
        ("test/d.wav", "pump", "00", TEST, UNKNOWN),
        ("test/normal/b.wav", "pump", "00", TEST, NORMAL),
        ("train/a.wav", "pump", "00", TRAIN, NORMAL),
    ]


def test_machines_may_hold_the_parts_or_the_parts_the_machines(tmp_path):
    one = lay(tmp_path / "one", "pump/train/a.wav", "pump/test/abnormal/b.wav")
    two = lay(tmp_path / "two", "train/pump/a.wav", "test/abnormal/pump/b.wav")
    assert [fact[1:] for fact in facts(one)] == [fact[1:] for fact in facts(two)] == [
        ("pump", "00", TEST, ANOMALY), ("pump", "00", TRAIN, NORMAL)
    ]  # fmt: skip


def test_mimii_layout_keeps_the_last_normal_clips_for_testing(tmp_path):
    root = lay(
        tmp_path / "fan",
        *(f"id_{unit}/normal/{n:08d}.wav" for unit in ("00", "02") for n in range(5)),
        *(f"id_00/abnormal/{n:08d}.wav" for n in range(3)),
    )
    source = open_source(root)
    kept = [(c.section, c.path.name) for c in source.test() if c.condition is NORMAL]
    assert kept == [("00", "00000003.wav"), ("00", "00000004.wav")]
    assert source.machines() == ["fan"]
    assert len(source.train()) == 3 + 5
    assert all(clip.condition is NORMAL for clip in source.train())
    assert len(source.remarks) == 1
    assert "the last 2 of 5" in source.remarks[0]


def test_faulty_recordings_in_a_training_folder_are_an_error_that_names_one(tmp_path):
    with pytest.raises(OffkeyError, match=r"x\.wav is a faulty recording"):
        scan_folder(lay(tmp_path, "train/abnormal/x.wav"))


def test_a_name_that_says_anomaly_is_never_learned_from(tmp_path):
    root = lay(tmp_path / "fan", "anomaly_01.wav", "fan-abnormal-2.wav", "a.wav", "normalised.wav")
    by_name = {clip.path.name: (clip.split, clip.condition) for clip in scan_folder(root)}
    assert by_name["anomaly_01.wav"] == by_name["fan-abnormal-2.wav"] == (TEST, ANOMALY)
    assert by_name["a.wav"] == (TRAIN, NORMAL)


def test_a_telling_word_at_the_root_is_not_the_machine(tmp_path):
    lay(tmp_path, "pump/train/normal/a.wav", "pump/test/a.wav")
    assert facts(tmp_path / "pump/train/normal") == [("a.wav", "pump", "00", TRAIN, NORMAL)]
    assert facts(tmp_path / "pump/test") == [("a.wav", "pump", "00", TEST, UNKNOWN)]


def test_domains_and_supplemental_clips(tmp_path):
    root = lay(tmp_path / "fan", "train/source/a.wav", "train/target/b.wav", "supplemental/noise/c.wav",
               "supplemental/clean_01.wav")  # fmt: skip
    clips = {clip.path.name: clip for clip in scan_folder(root)}
    assert (clips["a.wav"].domain, clips["b.wav"].domain) == (Domain.SOURCE, Domain.TARGET)
    assert clips["c.wav"].content is Content.NOISE
    assert clips["clean_01.wav"].content is Content.MACHINE
    assert {clip.split for clip in clips.values()} == {TRAIN, Split.SUPPLEMENTAL}


def test_hidden_files_and_loops_of_links_are_passed_by(tmp_path):
    root = lay(tmp_path / "fan", "a.wav", ".b.wav", "._a.wav", ".git/c.wav", "__MACOSX/d.wav", "sub/e.wav")
    (root / "sub" / "loop").symlink_to(root, target_is_directory=True)
    (root / "gone.wav").symlink_to(root / "nowhere.wav")
    (root / "folder.wav").mkdir()
    assert [fact[0] for fact in facts(root)] == ["a.wav", "sub/e.wav"]


def test_recordings_in_unreadable_formats_are_named(tmp_path):
    source = open_source(lay(tmp_path, "a.wav", "b.m4a", "c.m4a"))
    assert "2 recordings in formats that cannot be read" in source.remarks[0]
    assert "b.m4a" in source.remarks[0]


@pytest.mark.parametrize(("names", "words"), [((), "no files at all"), (("a.txt", "b.txt", "c.m4a"), "2 .txt, 1 .m4a")])
def test_nothing_found_says_what_was_looked_for_and_seen(tmp_path, names, words):
    with pytest.raises(OffkeyError, match=words) as caught:
        open_source(lay(tmp_path, *names))
    assert ".flac" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_file_or_nothing_is_no_source(tmp_path):
    lay(tmp_path, "a.wav")
    with pytest.raises(OffkeyError, match="is a file"):
        open_source(tmp_path / "a.wav")
    with pytest.raises(OffkeyError, match="there is no folder"):
        open_source(tmp_path / "none")


@given(
    names=st.lists(st.sampled_from(["a.wav", "x/b.wav", "x/y/c.flac", "train/d.wav", "z.ogg"]), unique=True, min_size=1)
)
def test_the_order_is_that_of_the_paths_whatever_was_written_first(tmp_path_factory, names):
    root = lay(tmp_path_factory.mktemp("order"), *names)
    found = [clip.path for clip in scan_folder(root)]
    assert found == sorted(found, key=lambda path: path.parts)
    assert len(found) == len(names)
