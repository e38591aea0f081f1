"""Detectors that judge together: ranks are kept, order does not matter, and the threshold rests on fresh clips."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy.stats import norm, rankdata, spearmanr

import offkey
from offkey.detector import Detector, DetectorError, _single
from offkey.ensemble import MEMBERS, Ensemble, EnsembleError
from offkey.fitting import fit
from offkey.manifest import MANIFEST
from offkey.scoring import left_out_quantiles
from offkey.scoring.agreement import agreement, agreement_weights
from offkey.scoring.calibrate import clips_needed
from offkey.systems.config import load_preset
from offkey.systems.members import given_settings, member_systems
from offkey.systems.settings import SettingsError

PLAIN = ("logmel-density", "logmel-knn", "logmel-mahalanobis")


@pytest.fixture
def members(fitted: Callable[[str], Any]) -> list[Detector]:
    return [fitted(system).detector for system in PLAIN]


@pytest.fixture
def clips(small_set: Path) -> list[Path]:
    return sorted(small_set.glob("*/test/*.wav"))


def scores(detector: Detector, clips: list[Path], **keywords: Any) -> np.ndarray:
    rows = [row.verdict for row in detector.score_files(clips, workers=0, **keywords)]
    return np.array([row.score for row in rows])


def altered(detector: Detector, **changes: Any) -> Detector:
    """The detector with other facts of its machines."""
    machines = {name: replace(known, **changes) for name, known in detector.machines.items()}
    return replace(detector, machines=machines)


# ---- what it says


def test_the_blend_is_that_of_its_members_ranks_among_normal_clips(members: list[Detector], clips: list[Path]) -> None:
    """Recomputed from the definition: within the normal scores, the mean normal quantile of the interpolated rank."""
    ensemble = Ensemble.of(members)
    checked = 0
    for row in ensemble.score_files(clips):
        expected, inside = [], True
        for member in members:
            own = member.score(row.path)
            known = member.machines[own.machine]
            normal = np.sort(np.asarray(known.calibration.scores))
            inside &= bool(normal[0] < own.score < normal[-1])
            quantiles = norm.ppf((rankdata(normal) - 0.5) / len(normal))
            expected.append(np.interp(own.score, normal, quantiles))
            assert row.verdict.parts[member.config.system] == pytest.approx(own.score, rel=1e-5)
        if inside:
            assert row.verdict.score == pytest.approx(np.mean(expected), abs=1e-4)
            checked += 1
    assert checked >= 3


def test_one_member_keeps_its_ranks_and_decisions(members: list[Detector], clips: list[Path]) -> None:
    alone = Ensemble.of([members[0]])
    theirs = [members[0].score(clip) for clip in clips]
    ours = [alone.score(clip) for clip in clips]
    assert [v.p_value for v in ours] == [v.p_value for v in theirs]
    assert [v.is_anomalous for v in ours] == [v.is_anomalous for v in theirs]


def test_the_order_of_members_does_not_matter(members: list[Detector], clips: list[Path], tmp_path: Path) -> None:
    for weights in ("equal", "agreement"):
        one, other = Ensemble.of(members, weights=weights), Ensemble.of(members[::-1], weights=weights)
        assert scores(one, clips).tolist() == scores(other, clips).tolist()
        assert one.config == other.config
    straight = Ensemble.of(members, weights=[3.0, 2.0, 1.0])
    assert (
        scores(Ensemble.of(members[::-1], weights=[1.0, 2.0, 3.0]), clips).tolist() == scores(straight, clips).tolist()
    )
    assert not np.allclose(scores(Ensemble.of(members), clips), scores(straight, clips))


def test_a_member_that_comes_twice_counts_once(members: list[Detector], clips: list[Path]) -> None:
    twice = Ensemble.of([members[0], members[1], members[0]])
    assert scores(twice, clips).tolist() == scores(Ensemble.of(members[:2]), clips).tolist()
    assert any("twice" in reason for reason in twice.reasons)


def test_weight_0_is_told_without_a_say(members: list[Detector], clips: list[Path]) -> None:
    silent = Ensemble.of(members, weights=[1.0, 0.0, 1.0])
    without = Ensemble.of([members[0], members[2]])
    assert np.allclose(scores(silent, clips), scores(without, clips), rtol=0, atol=1e-12)
    verdict = silent.score(clips[0])
    assert verdict.threshold == pytest.approx(without.score(clips[0]).threshold, abs=1e-12)
    assert verdict.parts[PLAIN[1]] == members[1].score(clips[0]).score
    assert "no say" in silent.card()


def test_an_ensemble_among_the_members_is_taken_apart(members: list[Detector], clips: list[Path]) -> None:
    pair = Ensemble.of(members[:2])
    whole = Ensemble.of([pair, members[2]])
    assert scores(whole, clips).tolist() == scores(Ensemble.of(members, weights=[0.5, 0.5, 1.0]), clips).tolist()


def test_p_values_rest_on_pairs_of_cross_fitted_scores(members: list[Detector]) -> None:
    ensemble = Ensemble.of(members)
    for name, known in ensemble.machines.items():
        columns = [member.machines[name] for member in members]
        assert known.clips == columns[0].clips
        for column, member in enumerate(columns):
            assert np.array_equal(np.sort(known.cross_fitted[:, column]), member.calibration.scores)
        blended = np.mean([left_out_quantiles(column) for column in known.cross_fitted.T], axis=0)
        assert np.allclose(known.calibration.scores, np.sort(blended))


# ---- clips that not all members find fresh


def test_the_threshold_rests_on_clips_that_are_fresh_for_all(members: list[Detector]) -> None:
    count = len(members[0].machines["fan"].clips)
    some, others = np.arange(count) < 16, np.arange(count) >= 4
    pair = [altered(members[0], fresh=some), altered(members[1], fresh=others)]
    ensemble = Ensemble.of(pair)
    assert len(ensemble.machines["fan"].calibration.scores) == 12
    assert not ensemble.reasons
    # a member's scale still rests on all clips that are fresh for it
    assert len(ensemble.machines["fan"].quantiles[0].knots) == 16


def test_too_few_fresh_clips_are_told(members: list[Detector]) -> None:
    count = len(members[0].machines["fan"].clips)
    some = np.arange(count) < 10
    ensemble = Ensemble.of([altered(members[0], fresh=some), altered(members[1], fresh=~some)])
    assert len(ensemble.machines["fan"].calibration.scores) == count
    assert "fan: 0 normal clips are new to all members" in ensemble.reasons[0]
    assert ensemble.reasons[0] in ensemble.card()


def test_members_of_some_clips_in_common_meet_on_those(members: list[Detector]) -> None:
    names = members[1].machines["fan"].clips
    other = altered(members[1], clips=tuple(f"x{n}" if n < 5 else name for n, name in enumerate(names)))
    fan = {"fan": members[0].machines["fan"]}
    pair = [replace(members[0], machines=fan), replace(other, machines={"fan": other.machines["fan"]})]
    known = Ensemble.of(pair).machines["fan"]
    assert known.clips == members[0].machines["fan"].clips[5:]
    assert len(known.profile.spectra) == len(known.clips) == len(known.calibration.scores)
    assert np.array_equal(known.cross_fitted[:, 0], fan["fan"].cross_fitted[5:, 0])
    assert np.array_equal(known.profile.reach.highest, fan["fan"].profile.reach.highest[5:])


def test_members_without_clips_in_common_are_refused(members: list[Detector]) -> None:
    strange = altered(members[1], clips=tuple(f"x{n}" for n in range(22)))
    with pytest.raises(EnsembleError, match=r"learnt from different recordings \(0 normal clips in common\)"):
        Ensemble.of([members[0], strange])


def test_a_detector_of_an_older_offkey_is_refused(members: list[Detector]) -> None:
    with pytest.raises(EnsembleError, match=r"logmel-density does not tell .* fit it again"):
        Ensemble.of([altered(members[0], cross_fitted=None, fresh=None), members[1]])


def test_detectors_of_other_machines_are_refused(members: list[Detector]) -> None:
    fan = replace(members[1], machines={"fan": members[1].machines["fan"]})
    with pytest.raises(EnsembleError, match=r"\(fan, valve\) and logmel-knn \(fan\) do not know the same machines"):
        Ensemble.of([members[0], fan])


def test_weights_that_make_no_sense_are_refused(members: list[Detector]) -> None:
    for weights, words in (
        ([1.0], "1 weights for 3 detectors"), ([0.0, 0.0, 0.0], "every member has weight 0"),
        ([1.0, 1.0, -1.0], "from 0"),
        ([1.0, 1.0, float("nan")], "from 0"), ("best", "must be"),
    ):  # fmt: skip
        with pytest.raises(EnsembleError, match=words):
            Ensemble.of(members, weights=weights)
    with pytest.raises(EnsembleError, match="at least one"):
        Ensemble.of([])


# ---- agreement


def test_agreement_is_spearmans_on_clips_fresh_for_both() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((60, 3)).cumsum(axis=1).round(1)  # with ties
    fresh = rng.random((60, 3)) < 0.7
    found = agreement(values, fresh)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        both = fresh[:, one] & fresh[:, other]
        assert found[one, other] == pytest.approx(spearmanr(values[both, one], values[both, other]).statistic)
    assert np.isnan(agreement(values[:9], np.full((9, 3), True))[0, 1])


def test_agreement_rewards_those_who_agree_and_floors_the_rest() -> None:
    truth = np.arange(40.0)
    noise = np.random.default_rng(1).permutation(40).astype(float)
    table = agreement(np.stack([truth, truth**2, noise], axis=1), np.full((40, 3), True))
    weights = agreement_weights([table])
    assert weights is not None
    assert weights[0] == pytest.approx(weights[1], abs=0.2)
    assert weights[2] == pytest.approx(max(0.1, table[2, :2].mean()))
    assert weights[2] < min(weights[:2])
    assert agreement_weights([table[:2, :2]]) is None


def test_agreement_says_what_it_did(members: list[Detector]) -> None:
    ensemble = Ensemble.of(members, weights="agreement")
    assert "agreement with the other members on normal clips" in ensemble.reasons[-1]
    entries = ensemble.config.scoring.scorers
    pools = [[ensemble.machines[m].cross_fitted[:, n] for n in range(3)] for m in ensemble.machines]
    first = np.mean([[spearmanr(pool[0], pool[n]).statistic for n in (1, 2)] for pool in pools])
    assert entries[0].weight == pytest.approx(max(0.1, first))
    two = Ensemble.of(members[:2], weights="agreement")
    assert "needs three members" in two.reasons[0]
    assert [entry.weight for entry in two.config.scoring.scorers] == [1.0, 1.0]


# ---- members that hear differently


@pytest.fixture
def mixed(small_set: Path) -> Ensemble:
    low = "{system='logmel-knn', settings=['audio.rate=8000', 'mel.f_max=4000']}"
    long = "{system='logmel-mahalanobis', settings=['audio.min_seconds=1.5']}"
    overrides = [f"ensemble.members=[{low}, 'logmel-density', {long}]"]
    made = fit(small_set, "ensemble", overrides=overrides, workers=0)
    assert isinstance(made, Ensemble)
    return made


def test_members_may_hear_at_other_rates(mixed: Ensemble, clips: list[Path], tmp_path: Path) -> None:
    short = tmp_path / "fan" / "short.wav"  # too short for one member alone
    short.parent.mkdir()
    samples, rate = soundfile.read(clips[0], dtype="float32")
    soundfile.write(short, samples[: int(1.2 * rate)], rate)
    asked = [clips[0], short, short, tmp_path / "none.wav", *clips[1:4]]
    rows = list(mixed.score_files(asked, machine="fan", batch_size=2, workers=2))
    assert [row.path for row in rows] == asked
    assert [row.verdict is None for row in rows] == [False, True, True, True, False, False, False]
    assert "short" in str(rows[1].error)
    for row in rows:
        if row.verdict is not None:
            told = {name: member.score(row.path, machine="fan").score for name, member in mixed.members.items()}
            assert row.verdict.parts == pytest.approx(told, rel=1e-5)
    verdict = mixed.score(samples, machine="fan")
    assert verdict.parts == pytest.approx(mixed.score(samples, machine="fan", rate=rate).parts)
    with pytest.raises(EnsembleError, match="hear at different rates"):
        mixed.represent(_single(samples), ["fan"])
    assert mixed.explain(clips[0]).text


def test_equal_members_read_a_clip_once(
    members: list[Detector], clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from offkey.data import loader

    read: list[Path] = []
    real = loader.read_clip
    monkeypatch.setattr(loader, "read_clip", lambda path, config: read.append(path) or real(path, config))
    list(Ensemble.of(members).score_files(clips, workers=0))
    assert sorted(read) == sorted(clips)


def test_the_member_that_finds_a_clip_strangest_explains_it(members: list[Detector], clips: list[Path]) -> None:
    ensemble = Ensemble.of(members)
    for clip in clips[:4]:
        verdict = ensemble.score(clip)
        known = ensemble.machines[verdict.machine]
        heard = [float(q(np.array([part]))[0]) for q, part in zip(known.quantiles, verdict.parts.values(), strict=True)]
        name = list(verdict.parts)[int(np.argmax(heard))]
        assert ensemble.explainer(clip) is ensemble.members[name]
        assert ensemble.explain(clip).text == ensemble.members[name].explain(clip).text
    assert members[0].explainer(clips[0]) is members[0]


# ---- fitting


def test_members_are_fitted_once_and_go_on(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import offkey.fitting as room

    overrides = ["ensemble.members=['logmel-knn', 'loudness', 'logmel-density']"]
    fitted: list[str] = []
    real = room.assemble

    def assemble(clips: Any, config: Any, *rest: Any, **keywords: Any) -> Any:
        if config.system == "logmel-density" and len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(config.system)
        return real(clips, config, *rest, **keywords)

    monkeypatch.setattr(room, "assemble", assemble)
    with pytest.raises(KeyboardInterrupt):
        fit(small_set, "ensemble", out=tmp_path, overrides=overrides, workers=0)
    with pytest.raises(DetectorError, match="no finished detector"):
        offkey.load(tmp_path)
    monkeypatch.setattr(room, "assemble", lambda *a, **k: (fitted.append(a[1].system), real(*a, **k))[1])
    made = fit(small_set, "ensemble", out=tmp_path, overrides=overrides, workers=0)
    assert fitted == ["logmel-knn", "loudness", "logmel-density"]
    again = fit(small_set, "ensemble", out=tmp_path, overrides=overrides, workers=0)
    assert len(fitted) == 3
    assert isinstance(again, Ensemble)
    assert again.config == made.config
    with pytest.raises(DetectorError, match="other settings or clips"):
        fit(small_set, "ensemble", out=tmp_path, overrides=["ensemble.members=['logmel-knn']"], workers=0)


def test_settings_of_the_ensemble_hold_for_all_but_for_a_members_own() -> None:
    config = load_preset(
        "ensemble",
        ["ensemble.members=['logmel-knn', {system='logmel-knn', name='low', settings=['mel.n_mels=16'], weight=2}]",
         "mel.n_mels=32", "calibration.false_alarm_rate=0.05", "seed=7"],
    )  # fmt: skip
    systems = member_systems(config)
    assert [systems[name].mel.n_mels for name in ("logmel-knn", "low")] == [32, 16]
    assert {system.calibration.false_alarm_rate for system in systems.values()} == {0.05}
    assert {system.seed for system in systems.values()} == {7}
    assert [entry.weight for entry in config.scoring.scorers] == [1.0, 2.0]
    assert load_preset("ensemble", ["ensemble.members=['loudness', 'loudness']"]).ensemble.names == [
        "loudness", "loudness-2"
    ]  # fmt: skip


def test_remix_passes_by_members_that_train_nothing() -> None:
    remix = ["augmentation.remix.enabled=true", "augmentation.remix.max_snr_db=9", "separation.model=s"]
    systems = member_systems(load_preset("ensemble", remix))
    on = {name: system.augmentation.remix.enabled for name, system in systems.items()}
    assert on == {"logmel-density": False, "logmel-mahalanobis": False, "discriminative": True}
    assert systems["discriminative"].augmentation.remix.max_snr_db == 9
    own = ["ensemble.members=[{system='discriminative', settings=['augmentation.remix.enabled=false']}, 'auto']"]
    on = {n: s.augmentation.remix.enabled for n, s in member_systems(load_preset("ensemble", [*own, *remix])).items()}
    assert on == {"discriminative": False, "auto": True}
    with pytest.raises(SettingsError, match="no member of this ensemble learns from any"):
        member_systems(load_preset("ensemble", ["ensemble.members=['loudness', 'logmel-knn']", *remix]))


def test_settings_that_were_given_are_told_as_they_could_be_typed() -> None:
    told = ["training.epochs=2", "audio.level_dbfs=null", "labels.speeds=[1.0, 1.3]", "scoring.scorers.0.weight=0.5"]
    given = given_settings(load_preset("auto", told), load_preset("auto"))
    assert load_preset("auto", given) == load_preset("auto", told)
    assert len(given) == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ensemble.members=[]"], "no members"),
        (["ensemble.members=[{system='loudness', name='../x'}]"], "pattern"),
        (["ensemble.weights=best"], "equal"),
    ],
)
def test_settings_that_make_no_ensemble_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_preset("ensemble", overrides)


def test_members_belong_to_ensembles_alone() -> None:
    with pytest.raises(SettingsError, match=r"ensemble\.members is for --system ensemble"):
        load_preset("loudness", ["ensemble.members=['logmel-knn']"])
    with pytest.raises(SettingsError, match="no system 'logmel'"):
        member_systems(load_preset("ensemble", ["ensemble.members=['logmel']"]))


# ---- disk


@pytest.fixture
def saved(members: list[Detector], tmp_path: Path) -> Path:
    return Ensemble.of(members).save(tmp_path / "saved")


def test_a_loaded_ensemble_says_the_same_to_the_bit(saved: Path, members: list[Detector], clips: list[Path]) -> None:
    loaded = offkey.load(saved)
    assert isinstance(loaded, Ensemble)
    assert list(loaded.score_files(clips)) == list(Ensemble.of(members).score_files(clips))
    for name in PLAIN:  # each member is a detector of its own
        member = offkey.load(saved / MEMBERS / name)
        assert member.score(clips[0]).score == loaded.score(clips[0]).parts[name]


def test_a_changed_member_is_refused(saved: Path, fitted: Callable[[str], Any]) -> None:
    card = saved / MEMBERS / PLAIN[0] / "CARD.md"
    text = card.read_bytes()
    card.write_bytes(text + b" ")
    with pytest.raises(DetectorError, match=r"CARD.md is not the file that was saved"):
        offkey.load(saved)
    card.write_bytes(text)
    offkey.load(saved)
    # a member that is whole, but not the one that the ensemble was made of
    shutil.rmtree(saved / MEMBERS / PLAIN[0])
    shutil.copytree(fitted("loudness").folder, saved / MEMBERS / PLAIN[0])
    with pytest.raises(DetectorError, match=r"manifest.json is not the file that was saved"):
        offkey.load(saved)


def test_a_manifest_that_names_files_elsewhere_is_refused(saved: Path) -> None:
    path = saved / MANIFEST
    told = json.loads(path.read_text())
    for bad in ("members/../config.toml", "members/a/b/c", "members/x", "other/a/b", "members//a"):
        path.write_text(json.dumps(told | {"files": told["files"] | {bad: {"bytes": 1, "sha256": ""}}}))
        with pytest.raises(DetectorError, match="outside its folder"):
            offkey.load(saved)


def test_members_that_were_there_before_are_cleared_away(saved: Path, members: list[Detector]) -> None:
    keep = saved / MEMBERS / "notes"
    keep.mkdir()
    Ensemble.of(members[:2]).save(saved)
    assert {path.name for path in (saved / MEMBERS).iterdir()} == {*PLAIN[:2], "notes"}
    assert list(offkey.load(saved).machines) == ["fan", "valve"]


def test_changed_members_are_calibrated_anew(members: list[Detector], clips: list[Path]) -> None:
    ensemble = Ensemble.of(members, weights=[1.0, 2.0, 3.0])
    same = ensemble.with_members(lambda member: member)
    assert scores(same, clips).tolist() == scores(ensemble, clips).tolist()
    fewer = ensemble.with_members(lambda member: altered(member, fresh=np.arange(22) < clips_needed(0.1)))
    assert len(fewer.machines["fan"].calibration.scores) == 9


def test_an_ensemble_learns_more_normal_clips_and_keeps_its_rate(
    members: list[Detector], clips: list[Path], tmp_path: Path
) -> None:
    ensemble = Ensemble.of(members).with_false_alarms("25%")
    new = next(clip for clip in clips if clip.parent.parent.name == "fan" and "normal" in clip.name)
    grown = ensemble.update([new], reason="false-alarm")
    assert isinstance(grown, Ensemble)
    known = grown.machines["fan"]
    assert known.clips == (*ensemble.machines["fan"].clips, new.name)
    assert known.calibration.alpha == 0.25
    assert len(grown.facts["updates"]) == 1
    assert all(new.name in member.machines["fan"].clips for member in grown.members.values())
    assert grown.score(new).score < ensemble.score(new).score
    assert "called false alarms" in offkey.load(grown.save(tmp_path / "grown")).card()
