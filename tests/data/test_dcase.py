"""Names, folders and tables of every year are understood, and what contradicts itself is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offkey.data.dcase import ClipName, format_name, is_dcase, parse_name, scan_dcase, survey_dcase
from offkey.data.source import open_source
from offkey.types import Condition, Content, Domain, OffkeyError, Split

S, T, U = Domain.SOURCE, Domain.TARGET, Domain.UNKNOWN
NORMAL, ANOMALY = Condition.NORMAL, Condition.ANOMALY
TRAIN, TEST, SUPPLEMENTAL = Split.TRAIN, Split.TEST, Split.SUPPLEMENTAL

NAMES = [
    ("normal_id_00_00000000.wav", ClipName("id", "00", "00000000", condition=NORMAL)),
    ("anomaly_id_06_00000123.wav", ClipName("id", "06", "00000123", condition=ANOMALY)),
    ("id_01_00000000.wav", ClipName("id", "01", "00000000")),
    (
        "section_00_source_train_normal_0000_strength_1_ambient.wav",
        ClipName("section", "00", "0000", S, TRAIN, NORMAL, (("strength", "1"), ("note", "ambient"))),
    ),
    (
        "section_01_target_train_normal_0002_A1Spd28VMic1.wav",
        ClipName("section", "01", "0002", T, TRAIN, NORMAL, (("note", "A1Spd28VMic1"),)),
    ),
    ("section_02_source_test_anomaly_0099.wav", ClipName("section", "02", "0099", S, TEST, ANOMALY)),
    ("section_03_target_test_0199.wav", ClipName("section", "03", "0199", T, TEST)),
    ("section_03_test_0000.wav", ClipName("section", "03", "0000", U, TEST)),
    (
        "section_00_source_test_normal_0000_m-n_W.wav",
        ClipName("section", "00", "0000", S, TEST, NORMAL, (("m-n", "W"),)),
    ),
    (
        "section_00_source_train_normal_0000_car_A2_spd_28V_mic_1_noise_1.wav",
        ClipName(
            "section", "00", "0000", S, TRAIN, NORMAL,
            (("car", "A2"), ("spd", "28V"), ("mic", "1"), ("noise", "1")),
        ),
    ),
    (
        "section_00_source_train_normal_0765_noAttribute.wav",
        ClipName("section", "00", "0765", S, TRAIN, NORMAL),
    ),
    ("section_00_source_train_normal_0001_.wav", ClipName("section", "00", "0001", S, TRAIN, NORMAL)),
    (
        "section_00_source_test_anomaly_0001_ac_0.03_.wav",
        ClipName("section", "00", "0001", S, TEST, ANOMALY, (("ac", "0.03"),)),
    ),
    ("section_00_0000.wav", ClipName("section", "00", "0000")),
    ("section_00_test_0000.FLAC", ClipName("section", "00", "0000", U, TEST)),
    (
        "section_00_noise_supplemental_normal_0000.wav",
        ClipName("section", "00", "0000", U, SUPPLEMENTAL, NORMAL, (), Content.NOISE),
    ),
    (
        "section_00_source_supplemental_machine_0007.flac",
        ClipName("section", "00", "0007", S, SUPPLEMENTAL, Condition.UNKNOWN, (), Content.MACHINE),
    ),
    (
        "section_00_machine_source_0000_noAttribute.wav",
        ClipName("section", "00", "0000", S, SUPPLEMENTAL, Condition.UNKNOWN, (), Content.MACHINE),
    ),
    (
        "section_00_supplemental_clean_0003_spd_1.wav",
        ClipName(
            "section", "00", "0003", U, SUPPLEMENTAL, Condition.UNKNOWN, (("spd", "1"),), Content.MACHINE
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "meaning"), NAMES, ids=[name for name, _ in NAMES])
def test_names_of_every_year_are_read(name, meaning):
    assert parse_name(name) == meaning
    assert parse_name(f"fan/train/{name}") == meaning


@pytest.mark.parametrize(
    "name",
    ["pump.wav", "", "section.wav", "section_00.wav", "section_xx_source_train_normal_0000.wav", "id_00.wav",
     "section_00_source_train_normal.wav", "section_00_summer_0001.wav", "normal_section_00_0001.wav",
     "normal_1.wav"],
)  # fmt: skip
def test_other_names_are_not_taken_for_ours(name):
    assert parse_name(name) is None


word = st.text("abcdefgHIJK0123456789.-", min_size=1, max_size=6).filter(
    lambda text: text.lower() != "noattribute" and text != "note"
)


@given(
    name=st.builds(
        ClipName,
        style=st.just("section"),
        section=st.integers(0, 99).map("{:02d}".format),
        number=st.integers(0, 9999).map("{:04d}".format),
        domain=st.sampled_from(Domain),
        split=st.sampled_from([TRAIN, TEST]),
        condition=st.sampled_from(Condition),
        attributes=st.lists(st.tuples(word, word), max_size=4).map(tuple),
        content=st.just(Content.MIXTURE),
    )
    | st.builds(
        ClipName,
        style=st.just("id"),
        section=st.integers(0, 99).map("{:02d}".format),
        number=st.integers(0, 99999999).map("{:08d}".format),
        domain=st.just(U),
        split=st.none(),
        condition=st.sampled_from(Condition),
        attributes=st.just(()),
        content=st.just(Content.MIXTURE),
    )
    | st.builds(
        ClipName,
        style=st.just("section"),
        section=st.just("00"),
        number=st.integers(0, 9999).map("{:04d}".format),
        domain=st.sampled_from(Domain),
        split=st.just(SUPPLEMENTAL),
        condition=st.just(NORMAL),
        attributes=st.lists(st.tuples(word, word), max_size=2).map(tuple),
        content=st.sampled_from([Content.MACHINE, Content.NOISE]),
    ),
    suffix=st.sampled_from([".wav", ".WAV", ".flac"]),
)
def test_a_written_name_is_read_back(name, suffix):
    assert parse_name(format_name(name, suffix)) == name


@given(st.text(max_size=60))
def test_no_name_makes_the_parser_fail(text):
    parse_name(text)


def lay(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


FAN = (
    "fan/train/section_00_source_train_normal_0000_spd_1.wav",
    "fan/train/section_00_target_train_normal_0000_spd_2.wav",
    "fan/test/section_00_source_test_anomaly_0000_spd_1.wav",
    "fan/supplemental/section_00_noise_supplemental_normal_0000.wav",
    "fan/supplemental/section_00_source_supplemental_machine_0000.wav",
)


@pytest.mark.parametrize("above", ["dcase2025t2/dev_data/raw", "dev_data", "15097779/dev_fan", ""])
def test_the_machine_is_found_wherever_it_lies(tmp_path, above):
    lay(tmp_path / above, *FAN, "fan/readme.txt")
    for root in {tmp_path, tmp_path / above, tmp_path / above / "fan"}:
        assert is_dcase(root)
        clips = scan_dcase(root)
        assert {clip.machine for clip in clips} == {"fan"}
        assert [clip.split for clip in clips] == [TRAIN, TRAIN, TEST, SUPPLEMENTAL, SUPPLEMENTAL]
        assert [clip.domain for clip in clips] == [S, T, S, U, S]
        assert [clip.condition for clip in clips] == [NORMAL, NORMAL, ANOMALY, NORMAL, NORMAL]
        assert [clip.content.value for clip in clips] == ["mixture"] * 3 + ["noise", "machine"]
        assert clips[1].attributes == (("spd", "2"),)


def test_a_folder_of_one_split_belongs_to_the_machine_above(tmp_path):
    lay(tmp_path, *FAN)
    clips = scan_dcase(tmp_path / "fan" / "train")
    assert [(clip.machine, clip.split) for clip in clips] == [("fan", TRAIN)] * 2


def test_2020_keeps_ids_as_sections(tmp_path):
    lay(tmp_path, "pump/train/normal_id_00_00000000.wav", "pump/test/normal_id_00_00000000.wav",
        "pump/test/anomaly_id_02_00000000.wav", "pump/test/id_04_00000001.wav")  # fmt: skip
    source = open_source(tmp_path)
    assert source.year == 2020
    found = {(clip.section, clip.split, clip.condition) for clip in source.clips}
    assert found == {
        ("00", TRAIN, NORMAL), ("00", TEST, NORMAL), ("02", TEST, ANOMALY), ("04", TEST, Condition.UNKNOWN)
    }  # fmt: skip


def test_2021_has_a_test_folder_a_domain(tmp_path):
    lay(tmp_path, "fan/train/section_00_source_train_normal_0000_strength_1_ambient.wav",
        "fan/source_test/section_00_source_test_normal_0000.wav",
        "fan/target_test/section_00_target_test_0001.wav",
        "fan/target_test/section_00_0002.wav",
        "fan/test/section_00_source_test_normal_0000.wav")  # fmt: skip
    source = open_source(tmp_path)
    assert source.year == 2021
    assert [(clip.path.parent.name, clip.domain) for clip in source.test()] == [
        ("target_test", T), ("test", S), ("target_test", T)
    ]  # fmt: skip


def test_renamed_test_clips_are_taken_only_alone(tmp_path):
    lay(tmp_path, "fan/test/section_00_0000.wav", "fan/test_rename/section_00_source_test_normal_0000.wav")
    source = open_source(tmp_path)
    assert [clip.path.name for clip in source.clips] == ["section_00_0000.wav"]
    assert "test_rename" in source.remarks[0]
    (tmp_path / "fan/test/section_00_0000.wav").unlink()
    assert [clip.condition for clip in scan_dcase(tmp_path)] == [NORMAL]


def test_clips_without_split_folders_are_split_by_name(tmp_path):
    lay(tmp_path / "fan", "section_00_source_train_normal_0000.wav", "section_00_source_test_anomaly_0000.wav")
    clips = scan_dcase(tmp_path)
    assert [(clip.machine, clip.split, clip.condition) for clip in clips] == [
        ("fan", TRAIN, NORMAL), ("fan", TEST, ANOMALY)
    ]  # fmt: skip


def test_an_anomaly_among_the_training_clips_is_an_error_that_names_it(tmp_path):
    lay(tmp_path, *FAN, "fan/train/section_00_source_train_anomaly_0001.wav")
    with pytest.raises(OffkeyError, match="section_00_source_train_anomaly_0001"):
        scan_dcase(tmp_path)


def test_two_data_sets_below_one_root_are_an_error(tmp_path):
    lay(tmp_path / "dcase2023t2/dev_data/raw", *FAN[:3])
    lay(tmp_path / "dcase2024t2/dev_data/raw", *FAN[:3])
    with pytest.raises(OffkeyError, match="two data sets"):
        scan_dcase(tmp_path)
    assert open_source(tmp_path / "dcase2024t2").year == 2024


def test_links_back_into_the_tree_do_not_loop(tmp_path):
    lay(tmp_path / "a", *FAN)
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(scan_dcase(tmp_path)) == len(FAN)


def test_hidden_and_strange_files(tmp_path):
    lay(tmp_path, *FAN, "fan/train/._section_00_source_train_normal_0000_spd_1.wav", "fan/train/mine.wav",
        "fan/train/Thumbs.db", "__MACOSX/fan/train/section_00_source_train_normal_0000.wav")  # fmt: skip
    source = open_source(tmp_path)
    assert len(source.clips) == len(FAN)
    assert "mine.wav" in source.remarks[0]


NAME = "section_00_source_train_normal_0000_ac_0.03"


@pytest.mark.parametrize(
    "table",
    [
        f"file_name,d1p,d1v\nslider/train/{NAME}.wav,ac,0.05\n",
        f"file_name,d1p,d1v\n{NAME},ac,0.05\n",
        f"\ufefffile_name,d1p,d1v\r\n{NAME}.wav, ac , 0.05 \r\n\r\n",
        f"{NAME}.flac,ac,0.05\n",
        f"file_name,d1p,d1v,d2p,d2v\nslider\\train\\{NAME}.wav,ac,0.05,,\n",
    ],
)
def test_tables_win_over_names(tmp_path, table):
    lay(tmp_path, f"slider/train/{NAME}.wav")
    (tmp_path / "slider/attributes_00.csv").write_text(table, encoding="utf-8")
    scan = survey_dcase(tmp_path)
    assert scan.clips[0].attributes == (("ac", "0.05"),)
    assert (scan.rows_without_file, scan.without_row) == ([], [])


def test_tables_with_more_pairs_and_without_columns(tmp_path):
    lay(tmp_path, "fan/train/section_00_source_train_normal_0000_noAttribute.wav",
        "fan/train/section_01_source_train_normal_0000.wav",
        "fan/train/section_01_source_train_normal_0001.wav")  # fmt: skip
    (tmp_path / "fan/attributes_00.csv").write_text(
        "file_name\nfan/train/section_00_source_train_normal_0000_noAttribute.wav\n"
    )
    (tmp_path / "fan/attributes_01.csv").write_text(
        "file_name,d1p,d1v,d2p,d2v,d3p,d3v\n"
        "section_01_source_train_normal_0000,a,1,b,2,c,x y\nsection_01_source_train_normal_0007,a,1\n"
    )
    scan = survey_dcase(tmp_path)
    assert [clip.attributes for clip in scan.clips] == [(), (("a", "1"), ("b", "2"), ("c", "x y")), ()]
    assert [name for _, name in scan.rows_without_file] == ["section_01_source_train_normal_0007"]
    assert [path.name for path in scan.without_row] == ["section_01_source_train_normal_0001.wav"]


def test_an_unreadable_table_is_an_error_that_names_it(tmp_path):
    lay(tmp_path, *FAN)
    (tmp_path / "fan/attributes_00.csv").write_bytes(b"\xff\xfe\x00\x9d")
    with pytest.raises(OffkeyError, match=r"attributes_00\.csv"):
        scan_dcase(tmp_path)


@pytest.mark.parametrize(
    ("name", "year"),
    [
        ("dcase2023t2/dev_data/raw/fan/train/section_00_source_train_normal_0000_m-n_W.wav", 2023),
        (
            "dcase2020_code/data/dcase2026t2/dev_data/raw/fan/train/section_00_source_train_normal_0000.wav",
            2026,
        ),
        ("shaker/train/section_00_source_train_normal_0000.wav", 2023),
        ("3DPrinter/train/section_00_source_train_normal_0000.wav", 2024),
        ("CoffeeGrinder/train/section_00_source_train_normal_0000.wav", 2025),
        ("Sander/train/section_00_source_train_normal_0000.wav", 2026),
        ("fan/train/section_04_source_train_normal_0000.wav", 2022),
        ("fan/train/section_00_source_train_normal_0000_noAttribute.wav", 2024),
        ("fan/train/section_00_source_train_normal_0000_a_b.wav", None),
    ],
)
def test_the_year_is_recognised(tmp_path, name, year):
    assert open_source(lay(tmp_path, name)).year == year


def test_the_real_set_is_read(shared_data):
    source = open_source(shared_data / "uav")
    assert (source.kind, source.year, source.machines(), source.remarks) == (
        "dcase",
        2025,
        ["UAVPropeller"],
        [],
    )
    assert [len(part) for part in (source.train(), source.test(), source.supplemental())] == [195, 200, 100]
    assert sum(clip.condition is ANOMALY for clip in source.test()) == 100
    assert sum(clip.content is Content.NOISE for clip in source.supplemental()) == 50
    assert {clip.attributes for clip in source.train()} == {
        (("dir", "cw"), ("cfg", "none")), (("dir", "ccw"), ("cfg", "none"))
    }  # fmt: skip
