"""Each year's rules, recomputed clip by clip with scikit-learn; intervals that cover what they promise."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import hmean
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from offkey.evaluation import PROTOCOLS, EvaluationError, Result, ScoredClip, choose_protocol, evaluate
from offkey.evaluation.bootstrap import resamples
from offkey.evaluation.protocol import lacks
from offkey.types import Condition, Domain, OffkeyError

SOURCE, TARGET, UNKNOWN = Domain.SOURCE, Domain.TARGET, Domain.UNKNOWN
NORMAL, ANOMALY = Condition.NORMAL, Condition.ANOMALY


def clips_of(machines=("fan", "valve"), sections=("00",), each=12, seed=0, gap=1.0, decided=True):
    rng = np.random.default_rng(seed)
    clips = []
    for machine in machines:
        for section in sections:
            for domain in (SOURCE, TARGET):
                for condition in (NORMAL, ANOMALY):
                    for i in range(each):
                        shift = gap * (condition == ANOMALY) + 0.7 * (domain == TARGET)
                        score = round(float(rng.normal(shift)), 1)  # rounded, so that there are ties
                        file = f"section_{section}_{domain}_test_{condition}_{i:04d}.wav"
                        alarm = score > 0.8 if decided else None
                        clips.append(ScoredClip(file, machine, section, domain, condition, score, alarm))
    order = rng.permutation(len(clips))
    return [clips[i] for i in order]


def split(clips, **wanted):
    chosen = [c for c in clips if all(getattr(c, k) == v for k, v in wanted.items())]
    return [c.condition == ANOMALY for c in chosen], [c.score for c in chosen], chosen


def joint(clips, machine, section):
    """AUC source, AUC target, pAUC by the rules of 2022 to 2026."""
    own = [c for c in clips if (c.machine, c.section) == (machine, section)]
    values = []
    for domain in (SOURCE, TARGET):
        kept = [c for c in own if c.domain == domain or c.condition == ANOMALY]
        values.append(roc_auc_score([c.condition == ANOMALY for c in kept], [c.score for c in kept]))
    return [
        *values,
        roc_auc_score([c.condition == ANOMALY for c in own], [c.score for c in own], max_fpr=0.1),
    ]


@pytest.mark.parametrize("year", [2023, 2024, 2025, 2026])
def test_rules_since_2023(year):
    clips = clips_of()
    result = evaluate(clips, choose_protocol(year), bootstrap=0)
    expected = {m: joint(clips, m, "00") for m in ("fan", "valve")}
    for machine, values in expected.items():
        assert list(result.machines[machine].values.values()) == pytest.approx(values, abs=1e-12)
    table = np.array(list(expected.values()))
    assert result.official_score == pytest.approx(hmean(table.ravel()))
    assert list(result.harmonic_mean.values()) == pytest.approx(hmean(table, axis=0))
    assert list(result.arithmetic_mean.values()) == pytest.approx(table.mean(axis=0))
    assert result.protocol == f"dcase{year}"


def test_rules_of_2022_have_sections():
    clips = clips_of(sections=("00", "01", "02"))
    result = evaluate(clips, choose_protocol(2022), bootstrap=0)
    rows = {(m, s): joint(clips, m, s) for m in ("fan", "valve") for s in ("00", "01", "02")}
    assert result.official_score == pytest.approx(hmean(np.ravel(list(rows.values()))))
    for (machine, section), values in rows.items():
        assert list(result.machines[machine].sections[section].values()) == pytest.approx(values)
    fan = hmean([rows["fan", s] for s in ("00", "01", "02")], axis=0)
    assert list(result.machines["fan"].values.values()) == pytest.approx(fan)


def test_rules_of_2021_keep_domains_apart():
    clips = clips_of(sections=("00", "01"))
    result = evaluate(clips, choose_protocol(2021), bootstrap=0)
    values = []
    for machine in ("fan", "valve"):
        for section in ("00", "01"):
            row = {}
            for domain in (SOURCE, TARGET):
                truth, scores, _ = split(clips, machine=machine, section=section, domain=domain)
                row[f"auc_{domain}"] = roc_auc_score(truth, scores)
                row[f"pauc_{domain}"] = roc_auc_score(truth, scores, max_fpr=0.1)
            assert dict(result.machines[machine].sections[section]) == pytest.approx(row)
            values += list(row.values())
    assert result.official_score == pytest.approx(hmean(values))


@pytest.mark.parametrize(("name", "average"), [("dcase2020", np.mean), ("plain", hmean)])
def test_rules_without_domains(name, average):
    clips = [replace(c, domain=UNKNOWN) for c in clips_of(sections=("00", "01", "02"))]
    clips = [c for c in clips if (c.machine, c.section) != ("valve", "02")]
    clips = list({(c.machine, c.section, c.file): c for c in clips}.values())
    result = evaluate(clips, PROTOCOLS[name], bootstrap=0)
    rows = {"fan": [], "valve": []}
    for machine, section in sorted({(c.machine, c.section) for c in clips}):
        truth, scores, _ = split(clips, machine=machine, section=section)
        rows[machine].append([roc_auc_score(truth, scores), roc_auc_score(truth, scores, max_fpr=0.1)])
    for machine, values in rows.items():
        assert list(result.machines[machine].values.values()) == pytest.approx(average(values, axis=0))
    if name == "dcase2020":  # a machine counts once, however many IDs it has
        assert result.official_score == pytest.approx(np.mean([np.mean(v) for v in rows.values()]))
    else:
        assert result.official_score == pytest.approx(hmean(np.ravel(rows["fan"] + rows["valve"])))


def test_a_machine_without_what_is_needed_is_named_and_left_out():
    clips = clips_of(machines=("fan", "valve", "pump", "bearing", "slider", "gearbox"))
    clips = [c for c in clips if not (c.machine == "pump" and c.condition == ANOMALY)]
    clips = [c for c in clips if not (c.machine == "valve" and c.domain == TARGET)]
    clips = [replace(c, condition=Condition.UNKNOWN) if c.machine == "bearing" else c for c in clips]
    clips = [replace(c, file=f"{i}.wav", domain=UNKNOWN) if c.machine == "slider" else c for i, c in enumerate(clips)]
    clips = [c for c in clips if not (c.machine == "gearbox" and c.condition == NORMAL)]
    result = evaluate(clips, PROTOCOLS["dcase2025"], bootstrap=20)
    assert list(result.machines) == ["fan"]
    reasons = dict(result.left_out)
    assert reasons.pop("pump") == "no anomalous test clip"
    assert reasons.pop("gearbox") == "no normal test clip"
    assert reasons.pop("valve") == "no normal test clip in the target domain"
    assert "condition" in reasons.pop("bearing")
    assert "plain" in reasons.pop("slider")
    assert not reasons
    assert result.remarks == ["48 clips whose condition is not known were not counted"]
    alone = evaluate([c for c in clips if c.machine == "fan"], PROTOCOLS["dcase2025"], bootstrap=0)
    assert result.official_score == alone.official_score

    assert lacks(clips, PROTOCOLS["dcase2025"]) == result.left_out

    with pytest.raises(EvaluationError, match="pump: no anomalous"):
        evaluate([c for c in clips if c.machine == "pump"], PROTOCOLS["dcase2025"])
    silent = [replace(c, condition=Condition.UNKNOWN) for c in clips if c.machine != "pump"]
    with pytest.raises(EvaluationError, match=r"dcase2025\. bearing and 4 more: the condition of none[^:]*$"):
        evaluate(silent, PROTOCOLS["dcase2025"])


def test_a_section_without_anomalies_is_named():
    clips = [c for c in clips_of(sections=("00", "01")) if not (c.section == "01" and c.condition == ANOMALY)]
    result = evaluate(clips, PROTOCOLS["dcase2022"], bootstrap=0)
    assert set(result.left_out) == {"fan/section_01", "valve/section_01"}
    assert set(result.machines["fan"].sections) == {"00"}


@pytest.mark.parametrize("domain", [SOURCE, TARGET, None])
def test_decisions_are_scikit_learns(domain):
    clips = clips_of()
    result = evaluate(clips, PROTOCOLS["dcase2025"], bootstrap=50)
    for machine in ("fan", "valve", None):
        wanted = {k: v for k, v in {"machine": machine, "domain": domain}.items() if v}
        truth, _, chosen = split(clips, **wanted)
        alarm = [c.is_anomalous for c in chosen]
        precision, recall, f1, _ = precision_recall_fscore_support(truth, alarm, average="binary")
        table = result.decisions if machine is None else result.machines[machine].decisions
        found = table["all" if domain is None else str(domain)]
        assert (found.precision, found.recall, found.f1) == pytest.approx((precision, recall, f1))
        assert found.true_positives == sum(t and a for t, a in zip(truth, alarm, strict=True))
        assert found.true_negatives == sum(not t and not a for t, a in zip(truth, alarm, strict=True))
        low, high = found.intervals["f1"]
        assert low <= found.f1 <= high


def test_no_alarm_at_all_is_zero_and_no_error():
    clips = [replace(c, is_anomalous=False) for c in clips_of()]
    found = evaluate(clips, PROTOCOLS["dcase2025"], bootstrap=5).decisions["all"]
    assert (found.precision, found.recall, found.f1) == (0.0, 0.0, 0.0)


def test_without_decisions_there_are_none():
    result = evaluate(clips_of(decided=False), PROTOCOLS["dcase2025"], bootstrap=5)
    assert result.decisions == {}
    assert result.machines["fan"].decisions == {}


def test_order_of_clips_changes_no_value():
    clips = clips_of()
    forth = evaluate(clips, PROTOCOLS["dcase2025"], bootstrap=0).to_dict()
    assert evaluate(clips[::-1], PROTOCOLS["dcase2025"], bootstrap=0).to_dict() == forth


def test_json_holds_what_is_promised_and_comes_back():
    result = evaluate(clips_of(), PROTOCOLS["dcase2025"], bootstrap=30, seed=4)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["protocol"] == "dcase2025"
    assert 0 <= data["interval"][0] <= data["official_score"] <= data["interval"][1] <= 1
    assert {"auc_source", "auc_target", "pauc"} <= set(data["machines"]["fan"])
    assert data["machines"]["fan"]["counts"]["target_anomaly"] == 12
    assert Result.from_dict(data) == result
    assert Result.from_dict(data).to_dict() == data
    with pytest.raises(OffkeyError, match="evaluate again"):
        Result.from_dict({"protocol": "dcase2025"})


def test_same_seed_same_intervals():
    clips = clips_of()
    first = evaluate(clips, PROTOCOLS["dcase2025"], bootstrap=40, seed=1)
    assert evaluate(clips, PROTOCOLS["dcase2025"], bootstrap=40, seed=1) == first
    assert evaluate(clips, PROTOCOLS["dcase2025"], bootstrap=40, seed=2).interval != first.interval


def test_intervals_are_those_of_a_slow_bootstrap():
    clips = clips_of(machines=("fan",), each=25, decided=False)
    result = evaluate(clips, PROTOCOLS["dcase2025"], bootstrap=2000)
    rng = np.random.default_rng(9)
    strata = [
        [c for c in clips if (c.domain, c.condition) == (d, k)] for d in (SOURCE, TARGET) for k in (NORMAL, ANOMALY)
    ]
    rows = []
    for _ in range(600):
        drawn = [own[i] for own in strata for i in rng.integers(len(own), size=len(own))]
        rows.append(joint(drawn, "fan", "00"))
    slow = np.quantile(rows, [0.025, 0.975], axis=0).T
    for ours, expected in zip(result.machines["fan"].intervals.values(), slow, strict=True):
        assert ours == pytest.approx(expected, abs=0.02)
    assert result.interval == pytest.approx(np.quantile(hmean(rows, axis=1), [0.025, 0.975]), abs=0.02)


def test_clips_of_one_flight_widen_the_interval():
    clips = clips_of(machines=("fan",), each=10)
    copies = [replace(c, file=f"{i}_{c.file}") for c in clips for i in range(8)]
    flights = [c.file for c in clips for _ in range(8)]
    alone = evaluate(copies, PROTOCOLS["dcase2025"], bootstrap=400)
    grouped = evaluate(copies, PROTOCOLS["dcase2025"], bootstrap=400, groups=flights)
    once = evaluate(clips, PROTOCOLS["dcase2025"], bootstrap=400)
    assert grouped.official_score == alone.official_score
    assert grouped.grouped
    width = [r.interval[1] - r.interval[0] for r in (alone, grouped, once)]
    assert width[1] > 2 * width[0]  # eight copies would pretend to √8 times the certainty
    assert width[1] == pytest.approx(width[2], rel=0.15)


def test_counts_keep_strata_and_groups():
    strata = ["a"] * 6 + ["b"] * 4
    counts = np.concatenate(list(resamples(strata, None, 50, 0)))
    assert counts.shape == (50, 10)
    assert (counts[:, :6].sum(axis=1) == 6).all()
    assert (counts[:, 6:].sum(axis=1) == 4).all()
    groups = ["x", "x", "y", "y", "z", "z", "p", "p", "q", "q"]
    grouped = np.concatenate(list(resamples(strata, groups, 50, 0)))
    assert (grouped[:, ::2] == grouped[:, 1::2]).all()
    assert (grouped[:, :6].sum(axis=1) == 6).all()


def test_a_challenge_is_resampled_in_seconds():
    clips = clips_of(machines=tuple("abcdefg"), each=50)
    start = time.perf_counter()
    evaluate(clips, PROTOCOLS["dcase2025"], bootstrap=1000)
    assert time.perf_counter() - start < 6  # under 3 s on a quiet core; tests run beside others


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [*c, c[0]], "there twice"),
        (lambda c: [replace(c[0], score=float("nan")), *c[1:]], "is nan"),
        (lambda c: [replace(c[0], score=float("inf")), *c[1:]], "is inf"),
        (lambda c: [], "no scores"),
    ],
)
def test_refuses_scores_that_cannot_be_right(change, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate(change(clips_of()), PROTOCOLS["dcase2025"])


def test_groups_name_every_clip():
    with pytest.raises(EvaluationError, match="one group a clip"):
        evaluate(clips_of(), PROTOCOLS["dcase2025"], groups=["a"])


def test_the_protocol_is_chosen_by_year_and_data():
    clips = clips_of()
    assert choose_protocol(2023).name == "dcase2023"
    assert choose_protocol(None, clips).clips == "joint"
    assert choose_protocol(None, [replace(clips[0], domain=UNKNOWN), *clips[1:]]).name == "plain"
    with pytest.raises(EvaluationError, match="2019"):
        choose_protocol(2019)


def test_years_differ_in_files_and_channels():
    assert [PROTOCOLS[f"dcase{year}"].files for year in range(2020, 2027)] == ["id", "domain", *["section"] * 5]
    assert [name for name, rules in PROTOCOLS.items() if not rules.decisions] == ["dcase2020"]
    assert [name for name, rules in PROTOCOLS.items() if rules.channels == 2] == ["dcase2026"]
    first_shot = [name for name, rules in PROTOCOLS.items() if rules.clips_a_section == 200]
    assert first_shot == [f"dcase{year}" for year in range(2023, 2027)]
