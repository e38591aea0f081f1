"""Result files come back as they were written; other people's mistakes are named."""

from dataclasses import replace
from pathlib import Path

import pytest

from offkey.evaluation import (
    PROTOCOLS,
    ScoredClip,
    SubmissionError,
    check_label,
    check_scored,
    read_submission,
    read_truth,
    truth_of_name,
    write_package,
    write_submission,
)
from offkey.types import ClipMeta, Condition, Domain

SCORES = "anomaly_score_fan_section_00_test.csv"
DECISIONS = "decision_result_fan_section_00_test.csv"


def clips_of(machine="fan", section="00"):
    return [
        ScoredClip(
            f"section_{section}_{domain}_test_{condition}_{i:04d}_x_1.wav",
            machine,
            section,
            domain,
            condition,
            (0.1 + i) / 3 * (-1) ** i,
            i % 2 == 0,
        )
        for domain in (Domain.SOURCE, Domain.TARGET)
        for condition in (Condition.NORMAL, Condition.ANOMALY)
        for i in range(3)
    ]


def test_comes_back_exactly(tmp_path):
    clips = clips_of() + clips_of("ToyCar") + clips_of("ToyCar", "01")
    paths = write_submission(tmp_path / "new", clips[::-1])
    assert len(paths) == 6
    assert {p.name for p in (tmp_path / "new").iterdir()} == {p.name for p in paths}
    assert sorted(read_submission(tmp_path / "new"), key=repr) == sorted(clips, key=repr)


def test_files_have_no_header_and_one_row_a_clip(tmp_path):
    write_submission(tmp_path, clips_of())
    rows = (tmp_path / SCORES).read_text().splitlines()
    assert len(rows) == 12
    assert rows[0] == "section_00_source_test_anomaly_0000_x_1.wav,0.03333333333333333"
    assert {row.split(",")[1] for row in (tmp_path / DECISIONS).read_text().splitlines()} == {"0", "1"}


def test_decisions_may_be_left_out_only_when_asked(tmp_path):
    clips = [ScoredClip(c.file, c.machine, c.section, c.domain, c.condition, c.score) for c in clips_of()]
    with pytest.raises(SubmissionError, match="no decision"):
        write_submission(tmp_path, clips)
    assert list(tmp_path.iterdir()) == []
    assert [p.name for p in write_submission(tmp_path, clips, decisions=False)] == [SCORES]
    assert all(c.is_anomalous is None for c in read_submission(tmp_path))


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_writes_no_score_that_is_none(tmp_path, score):
    first, *rest = clips_of()
    bad = ScoredClip(first.file, "fan", "00", first.domain, first.condition, score, True)
    with pytest.raises(SubmissionError, match="score the clip again"):
        write_submission(tmp_path, [bad, *rest])
    with pytest.raises(SubmissionError, match="there twice"):
        write_submission(tmp_path, [first, first])
    assert list(tmp_path.iterdir()) == []


def test_old_files_are_replaced_whole(tmp_path):
    (tmp_path / SCORES).write_text("rubbish\n" * 100)
    write_submission(tmp_path, clips_of())
    assert len(read_submission(tmp_path)) == 12
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file stays


def broken(lines):
    def change(folder):
        (folder / SCORES).write_text("\n".join(lines) + "\n")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken(["file,score", "a.wav,1"]), r"line 1: expected file,number and no header"),
        (broken(["a.wav,1", "b.wav"]), r"line 2"),
        (broken(["a.wav,1", "b.wav,2,3"]), r"line 2"),
        (broken(["a.wav,1", "a.wav,2"]), r"line 2: a.wav is there twice"),
        (broken(["a.wav,nan"]), r"the value of a.wav is nan"),
        (broken(["a.wav,-inf"]), r"the value of a.wav is -inf"),
        (broken([""]), r"is empty"),
        (lambda f: (f / SCORES).unlink(), r"holds no anomaly_score"),
        (lambda f: (f / SCORES).write_bytes(b"\xff\xfe\x00"), r"cannot be read"),
    ],
)
def test_names_the_file_and_the_mistake(tmp_path, change, message):
    (tmp_path / SCORES).write_text("a.wav,1\n")
    change(tmp_path)
    with pytest.raises(SubmissionError, match=message) as caught:
        read_submission(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.wav,1\nb.wav,2\n", "only 0 and 1"),
        ("a.wav,1\n", "has 1 clips and .* 2; b.wav stands only in anomaly_score"),
        ("a.wav,1\nb.wav,0\nc.wav,0\n", "c.wav stands only in decision_result"),
    ],
)
def test_decisions_must_belong_to_the_scores(tmp_path, rows, message):
    (tmp_path / SCORES).write_text("a.wav,1.5\nb.wav,2.5\n")
    (tmp_path / DECISIONS).write_text(rows)
    with pytest.raises(SubmissionError, match=message):
        read_submission(tmp_path)


def test_decisions_alone_are_not_enough(tmp_path):
    write_submission(tmp_path, clips_of())
    write_submission(tmp_path, clips_of("valve"))
    (tmp_path / SCORES).unlink()
    with pytest.raises(SubmissionError, match=r"decision_result_fan_section_00_test.csv has no anomaly_score"):
        read_submission(tmp_path)


def test_truth_is_joined_and_must_be_complete(tmp_path):
    (tmp_path / SCORES).write_text("section_00_0000.wav,1.5\nsection_00_0001.wav,2.5\n")
    normal, anomaly = (Domain.SOURCE, Condition.NORMAL), (Domain.TARGET, Condition.ANOMALY)
    truth = {("fan", "section_00_0000.wav"): normal, ("fan", "section_00_0001.wav"): anomaly}
    found = read_submission(tmp_path, {**truth, ("valve", "section_00_0000.wav"): normal})
    assert [(c.domain, c.condition, c.score) for c in found] == [(*normal, 1.5), (*anomaly, 2.5)]
    with pytest.raises(SubmissionError, match=r"1 of 3 test clips have no score, first fan/section_00_0002.wav"):
        read_submission(tmp_path, {**truth, ("fan", "section_00_0002.wav"): normal})
    del truth["fan", "section_00_0001.wav"]
    with pytest.raises(SubmissionError, match=r"knows no clip section_00_0001.wav of fan"):
        read_submission(tmp_path, truth)


def test_names_of_older_years_are_read(tmp_path):
    (tmp_path / "anomaly_score_ToyCar_id_01.csv").write_text(
        "normal_id_01_00000000.wav,1\nanomaly_id_01_00000000.wav,2\n"
    )
    (tmp_path / "anomaly_score_pump_section_03_target_test.csv").write_text("section_03_target_test_0000.wav,2\n")
    old, new = sorted(read_submission(tmp_path), key=lambda c: c.machine)[::2]
    assert (old.machine, old.section, old.condition, old.domain) == ("ToyCar", "01", "normal", "unknown")
    assert (new.machine, new.section, new.condition, new.domain) == ("pump", "03", "unknown", "target")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("section_00_source_test_normal_0000_n_B.wav", ("source", "normal")),
        ("section_02_target_test_anomaly_0199_noAttribute.flac", ("target", "anomaly")),
        ("anomaly_id_05_00000123.wav", ("unknown", "anomaly")),
        ("section_00_0000.wav", ("unknown", "unknown")),
        ("section_00_source_train_normal_0000.wav", ("unknown", "unknown")),
        ("anything.wav", ("unknown", "unknown")),
    ],
)
def test_what_a_name_tells(name, known):
    assert truth_of_name(name) == known


def test_truth_of_the_organisers_folder(tmp_path):
    for kind, rows in (("data", "a.wav,0\nb.wav,1\n"), ("domain", "a.wav,1\nb.wav,0\n")):
        (tmp_path / f"ground_truth_{kind}").mkdir()
        (tmp_path / f"ground_truth_{kind}" / "ground_truth_fan_section_00_test.csv").write_text(rows)
    expected = {("fan", "a.wav"): ("target", "normal"), ("fan", "b.wav"): ("source", "anomaly")}
    assert read_truth(tmp_path) == expected
    (tmp_path / "ground_truth_data" / "ground_truth_fan_section_00_test.csv").write_text("a.wav,7\n")
    with pytest.raises(SubmissionError, match="only 0 and 1"):
        read_truth(tmp_path)


def test_truth_of_one_table(shared_data, tmp_path):
    truth = read_truth(shared_data / "uav")
    tested = {k: v for k, v in truth.items() if "_test_" in k[1]}
    assert len(tested) == 200
    assert all(known == truth_of_name(file.replace(".flac", ".wav")) for (_, file), known in tested.items())
    (tmp_path / "truth.csv").write_text("file,domain\nx/a.wav,source\n")
    with pytest.raises(SubmissionError, match="columns are file,domain,label"):
        read_truth(tmp_path)
    with pytest.raises(SubmissionError, match="neither"):
        read_truth(tmp_path.parent / "nowhere")


def test_files_have_the_names_of_their_year(tmp_path):
    clips = clips_of()
    write_submission(tmp_path / "2021", clips, protocol=PROTOCOLS["dcase2021"])
    assert sorted(p.name for p in (tmp_path / "2021").iterdir()) == [
        f"{kind}_fan_section_00_{domain}_test.csv"
        for kind in ("anomaly_score", "decision_result")
        for domain in ("source", "target")
    ]
    assert sorted(read_submission(tmp_path / "2021"), key=repr) == sorted(clips, key=repr)
    old = [replace(c, file=f"{c.condition}_id_00_{i:08d}.wav", domain=Domain.UNKNOWN) for i, c in enumerate(clips)]
    write_submission(tmp_path / "2020", old, protocol=PROTOCOLS["dcase2020"])
    assert [p.name for p in (tmp_path / "2020").iterdir()] == ["anomaly_score_fan_id_00.csv"]
    assert len(read_submission(tmp_path / "2020")) == 12
    with pytest.raises(SubmissionError, match=r"domain of fan/.* is not known"):
        write_submission(tmp_path / "none", old, protocol=PROTOCOLS["dcase2021"])
    assert not (tmp_path / "none").exists()


def test_a_label_has_the_form_that_the_challenge_asks_for():
    assert check_label("O-Neil_UNI_task2_4") == "O-Neil_UNI_task2_4"
    for wrong in ("Doe_UNI_task2_5", "Doe_UNI_task1_1", "_task2_1", "../x_task2_1", "Doe UNI_task2_1", "Döe_task2_1"):
        with pytest.raises(SubmissionError, match="is no label"):
            check_label(wrong)


def data_set(clips):
    return [ClipMeta(Path("set") / c.machine / "test" / c.file, c.machine, c.section, c.domain) for c in clips]


def test_scores_are_checked_against_the_data_set():
    clips = clips_of() + clips_of("valve")
    known = data_set(clips)
    assert check_scored(clips, known, PROTOCOLS["dcase2022"]) == []
    remarks = check_scored(clips, known, PROTOCOLS["dcase2025"])
    assert remarks[0] == "fan, section 00: 12 test clips, and dcase2025 has 200"
    for changed, there, words in (
        (
            clips[1:],
            known,
            "1 test clips of the data set have no score .fan/section_00_source_test_normal_0000_x_1.wav",
        ),
        (clips[:12], known, r"12 test clips of the data set have no score .* and 9 more"),
        ([*clips, clips[0]], known, "1 test clips are there twice"),
        (clips, known[1:], "1 test clips with a score are not in the data set"),
        (clips, [*known, known[0]], "the data set has fan/.* twice"),
    ):
        with pytest.raises(SubmissionError, match=words):
            check_scored(changed, there, PROTOCOLS["dcase2025"])


def test_names_that_repeat_in_the_domains_of_2021_are_two_clips():
    twins = [replace(clips_of()[0], file="section_00_0000.wav", domain=d) for d in (Domain.SOURCE, Domain.TARGET)]
    assert check_scored(twins, data_set(twins), PROTOCOLS["dcase2021"]) == []
    with pytest.raises(SubmissionError, match="twice"):
        check_scored(twins, data_set(twins), PROTOCOLS["dcase2022"])


def test_a_package_is_laid_out_as_the_challenge_asks_for(tmp_path):
    paths = write_package(tmp_path, "Doe_UNI_task2_1", clips_of(), "a: 1\n")
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        f"task2/Doe_UNI_task2_1/{name}" for name in (SCORES, DECISIONS, "Doe_UNI_task2_1.meta.yaml")
    ]
    assert paths[-1].read_text() == "a: 1\n"
    times = [path.stat().st_mtime_ns for path in paths]
    assert write_package(tmp_path, "Doe_UNI_task2_1", clips_of(), "a: 1\n") == paths
    assert [path.stat().st_mtime_ns for path in paths] == times
    for clips, meta in ((clips_of("valve"), "a: 1\n"), (clips_of(), "a: 2\n")):
        with pytest.raises(SubmissionError, match="is not empty, and holds another submission"):
            write_package(tmp_path, "Doe_UNI_task2_1", clips, meta)
        assert [path.stat().st_mtime_ns for path in paths] == times
        assert [path.name for path in (tmp_path / "task2").iterdir()] == ["Doe_UNI_task2_1"]


def test_truth_of_the_organisers_list(tmp_path):
    path = tmp_path / "eval_data_list_2025.csv"
    path.write_text(
        "fan\nsection_00_0000.wav,section_00_target_test_anomaly_0012_spd_2.wav\n3DPrinter,\n"
        "section_00_0000.wav,section_00_source_test_normal_0001_noAttribute.wav\n"
    )
    expected = {
        ("fan", "section_00_0000.wav"): ("target", "anomaly"),
        ("3DPrinter", "section_00_0000.wav"): ("source", "normal"),
    }
    assert read_truth(path) == read_truth(tmp_path) == expected
    path.write_text("fan\nsection_00_0000.wav,section_00_0001.wav\n")
    with pytest.raises(SubmissionError, match="line 2: expected hidden name,telling name"):
        read_truth(path)
    (tmp_path / "eval_data_list_2024.csv").write_text("fan\n")
    with pytest.raises(SubmissionError, match="2 lists"):
        read_truth(tmp_path)
    with pytest.raises(SubmissionError, match="names no clip"):
        read_truth(tmp_path / "eval_data_list_2024.csv")
