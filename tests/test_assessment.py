"""Test clips to the official metric, and the folder that keeps them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from offkey.assessment import AssessmentError, assess, read_assessment
from offkey.data.sessions import SessionError
from offkey.data.source import open_source
from offkey.evaluation.protocol import EvaluationError
from offkey.evaluation.result import Result
from offkey.types import Condition, Domain


@pytest.fixture(scope="module")
def assessed(fitted: Callable[[str], Any], small_set: Path) -> Any:
    return assess(fitted("auto").detector, open_source(small_set), bootstrap=20)


def test_values_are_those_of_the_scores_by_the_rules_of_the_year(assessed: Any) -> None:
    assert assessed.result.protocol == "dcase2025"
    assert set(assessed.result.machines) == {"fan", "valve"}
    for name, found in assessed.result.machines.items():
        rows = [clip for clip in assessed.scored() if clip.machine == name]
        assert len(rows) == 8
        for domain in ("source", "target"):
            judged = [row for row in rows if row.domain == Domain(domain) or row.condition is Condition.ANOMALY]
            truth = [row.condition is Condition.ANOMALY for row in judged]
            assert found.values[f"auc_{domain}"] == pytest.approx(roc_auc_score(truth, [row.score for row in judged]))


def test_alarms_count_as_decisions(assessed: Any) -> None:
    everything = assessed.result.decisions["all"]
    pairs = zip(assessed.clips, assessed.verdicts, strict=True)
    alarms = [clip.condition is Condition.ANOMALY for clip, row in pairs if row.verdict.is_anomalous]
    caught = sum(alarms)
    assert everything.false_positives == len(alarms) - caught
    assert everything.true_positives == caught
    assert everything.true_positives + everything.false_negatives == 8


def test_each_scorer_of_a_blend_is_judged_by_itself(assessed: Any, tmp_path: Path) -> None:
    names = assessed.verdicts[0].verdict.parts.keys()
    assert len(names) == 3
    assert assessed.result.scorers.keys() == names
    conditions = [clip.condition is Condition.ANOMALY for clip in assessed.clips]
    for name, alone in assessed.result.scorers.items():
        scores = [row.verdict.parts[name] for row in assessed.verdicts]
        for machine, found in alone.machines.items():
            mine = [
                place
                for place, clip in enumerate(assessed.clips)
                if clip.machine == machine and (clip.domain is Domain.SOURCE or conditions[place])
            ]
            by_hand = roc_auc_score([conditions[place] for place in mine], [scores[place] for place in mine])
            assert found.values["auc_source"] == pytest.approx(by_hand)
        assert alone.interval is not None
        assert not alone.decisions
    assessed.save(tmp_path)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row[name]) for row in rows for name in names] == [
        row.verdict.parts[name] for row in assessed.verdicts for name in names
    ]
    assert Result.from_dict(assessed.result.to_dict()).scorers.keys() == names


def test_a_lone_scorer_is_not_told_twice(fitted: Callable[[str], Any], small_set: Path) -> None:
    assert assess(fitted("loudness").detector, open_source(small_set), bootstrap=0).result.scorers == {}


def test_what_is_kept_is_read_back(assessed: Any, tmp_path: Path) -> None:
    assessed.save(tmp_path / "evaluation")
    kept = read_assessment(tmp_path / "evaluation")
    assert kept.result == assessed.result.to_dict()
    assert [clip.path for clip in kept.clips] == [clip.path.absolute() for clip in assessed.clips]
    for clip, row in zip(kept.clips, assessed.verdicts, strict=True):
        verdict = row.verdict
        told = (clip.machine, clip.score, clip.p_value, clip.threshold, clip.is_anomalous)
        assert told == (verdict.machine, verdict.score, verdict.p_value, verdict.threshold, verdict.is_anomalous)
    assert set(kept.embeddings) == {"network", "logmel"}
    for view, array in kept.embeddings.items():
        assert np.array_equal(array, assessed.embeddings[view])
        assert len(array) == len(kept.clips)


def test_a_broken_test_clip_is_left_out_and_named(
    fitted: Callable[[str], Any], small_set: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_set, tmp_path / "dcase2025" / "set"))
    victim = sorted(copy.glob("fan/test/*normal*.wav"))[0]
    victim.write_bytes(b"RIFF")
    found = assess(fitted("loudness").detector, open_source(copy), bootstrap=0)
    assert [failure.path for failure in found.failures] == [victim]
    assert len(found.scored()) == 15
    assert all(len(array) == 15 for array in found.embeddings.values())
    kept = read_assessment(found.save(tmp_path / "kept").parent)
    assert len(kept.clips) == 15
    assert kept.facts["failures"][0][0] == str(victim)


def test_machines_that_the_detector_does_not_know_are_named(small_set: Path) -> None:
    from offkey.fitting import fit

    found = assess(fit(small_set, "loudness", machines=["fan"]), open_source(small_set), bootstrap=0)
    assert list(found.result.machines) == ["fan"]
    assert "not known to this detector: valve" in found.no_result


def test_no_test_clips_of_a_known_machine_are_told(
    fitted: Callable[[str], Any], small_set: Path, tmp_path: Path
) -> None:
    other = tmp_path / "set"
    shutil.copytree(small_set / "fan", other / "pump")
    with pytest.raises(AssessmentError, match=r"no test clips of fan, valve \(machines with test clips: pump\)"):
        assess(fitted("loudness").detector, open_source(other))


def test_clips_without_labels_have_scores_and_no_metric(
    fitted: Callable[[str], Any], small_set: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_set, tmp_path / "set"))
    for number, path in enumerate(sorted(copy.glob("*/test/*.wav"))):
        path.rename(path.with_name(f"section_00_{number:04d}.wav"))
    found = assess(fitted("loudness").detector, open_source(copy))
    assert found.result is None
    assert "the condition of no test clip is known" in found.no_result
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "result.json").write_text("{}")  # of an earlier evaluation
    found.save(folder)
    kept = read_assessment(folder)
    assert kept.result is None
    assert len(kept.clips) == 16


def test_groups_are_the_unit_of_the_bootstrap(fitted: Callable[[str], Any], small_set: Path) -> None:
    source, detector = open_source(small_set), fitted("loudness").detector
    groups = {clip.path.name: clip.path.name[:26] for clip in source.test()}
    assert assess(detector, source, bootstrap=10, groups=groups).result.grouped
    groups.popitem()
    with pytest.raises(SessionError, match="do not tell which recording"):
        assess(detector, source, bootstrap=10, groups=groups)


def test_the_year_can_be_chosen(fitted: Callable[[str], Any], small_set: Path) -> None:
    source, detector = open_source(small_set), fitted("loudness").detector
    assert assess(detector, source, year=2021, bootstrap=0).result.protocol == "dcase2021"
    with pytest.raises(EvaluationError, match="no rules for 1999"):
        assess(detector, source, year=1999, bootstrap=0)


@pytest.mark.parametrize("name", ["scores.csv", "embeddings.safetensors", "evaluation.json", "result.json"])
def test_a_damaged_evaluation_is_refused(assessed: Any, tmp_path: Path, name: str) -> None:
    assessed.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(b"\xff" + content[: len(content) // 2])
    with pytest.raises(AssessmentError, match=r"damaged.*run `offkey evaluate` again"):
        read_assessment(tmp_path)


def test_no_evaluation_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(AssessmentError, match="run `offkey evaluate MODEL SOURCE` first"):
        read_assessment(tmp_path)
