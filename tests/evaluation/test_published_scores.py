"""Real scores of DCASE 2025 systems: our numbers are the published ones."""

import csv
import json

import pytest

from offkey.cli.app import run
from offkey.evaluation import PROTOCOLS, evaluate, read_submission

PUBLISHED = {"raw-k1": 58.7259, "ldn-diff-K1": 57.9364, "conf-hard-m0-k1": 58.2585}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_development_scores_give_the_published_numbers(shared_data, variant):
    root = shared_data / "dcase2025_scores"
    result = evaluate(read_submission(root / variant / "dev"), PROTOCOLS["dcase2025"], bootstrap=0)

    assert 100 * result.official_score == pytest.approx(PUBLISHED[variant], abs=5e-5)
    with (root / "published_per_machine.csv").open() as stream:
        rows = [r for r in csv.DictReader(stream) if r["split"] == "dev" and r["config"] == variant]
    assert {row["machine"] for row in rows} == set(result.machines)
    assert len(rows) == 7
    for row in rows:
        values = result.machines[row["machine"]].values
        for name in ("auc_source", "auc_target", "pauc"):  # published in percent with two decimals
            assert 100 * values[name] == pytest.approx(float(row[name]), abs=0.00501)


def test_hidden_truth_is_said_and_not_guessed(shared_data):
    clips = read_submission(shared_data / "dcase2025_scores" / "raw-k1" / "eval")
    assert len(clips) == 8 * 200
    with pytest.raises(Exception, match="condition of none of its test clips is known"):
        evaluate(clips, PROTOCOLS["dcase2025"])


@pytest.mark.parametrize("variant", PUBLISHED)
def test_the_command_judges_them_with_and_without_a_truth_beside(shared_data, tmp_path, capsys, variant):
    """As an evaluation set comes: names that tell nothing, and the organisers' list."""
    dev = shared_data / "dcase2025_scores" / variant / "dev"
    assert run(["evaluate", "--scores", str(dev), "--year", "2025", "--bootstrap", "0", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert round(100 * plain["official_score"], 4) == PUBLISHED[variant]
    hidden, lines = tmp_path / "scores", []
    hidden.mkdir()
    for path in sorted(dev.glob("*.csv")):
        lines.append(path.name.removeprefix("anomaly_score_").removesuffix("_section_00_test.csv"))
        rows = [row.split(",") for row in path.read_text().splitlines()]
        lines += [f"section_00_{number:04d}.wav,{name}" for number, (name, _) in enumerate(rows)]
        told = (f"section_00_{number:04d}.wav,{score}\n" for number, (_, score) in enumerate(rows))
        (hidden / path.name).write_text("".join(told))
    truth = tmp_path / "eval_data_list_2025.csv"
    truth.write_text("\n".join(lines) + "\n")
    arguments = ["evaluate", "--scores", str(hidden), "--year", "2025", "--bootstrap", "0", "--json"]
    assert run([*arguments, "--truth", str(truth)]) == 0
    assert json.loads(capsys.readouterr().out) == plain
    assert run(arguments) == 2
    assert "condition of none of its test clips is known" in capsys.readouterr().err
