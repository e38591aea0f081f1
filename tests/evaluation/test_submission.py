"""Result files come back as they were written; other people's mistakes are named."""

import pytest

from offkey.evaluation import (
    ScoredClip,
    SubmissionError,
    read_submission,
    read_truth,
    truth_of_name,
    write_submission,
)
from offkey.types import Condition, Domain

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
