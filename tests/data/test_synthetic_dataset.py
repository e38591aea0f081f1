"""The written data set: layout, truth, equal laws for both classes, same bytes for the same config."""

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import signal as dsp
from scipy import stats

from offkey.data.dcase import scan_dcase
from offkey.data.synthetic import MACHINES, SynthConfig, SynthError, synthesize
from offkey.data.synthetic.dataset import RECORD, render_clip
from offkey.data.synthetic.machines import SIMULATORS
from offkey.data.synthetic.plan import plan_clips

SMALL = SynthConfig(
    machines=("fan", "valve", "bearing"),
    seconds=2.0,
    train_source=6,
    train_target=2,
    test_per_group=3,
    supplemental=4,
    hidden_attributes=("bearing",),
    stems=True,
    seed=5,
    workers=1,
)

NAME = re.compile(
    r"section_00_(?:(?P<domain>source|target)_(?:(?P<split>train|test)_(?P<condition>normal|anomaly)|supplemental_machine)"
    r"|noise_supplemental_normal)_(?P<number>\d{4})(?:_(?P<attributes>noAttribute|[A-Za-z0-9]+_[A-Za-z0-9]+"
    r"(?:_[A-Za-z0-9]+_[A-Za-z0-9]+)*))?\.wav"
)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def clips_in(root: Path) -> list[Path]:
    return [path for path in root.glob("*/*/*.wav") if path.parent.name != "stems"]


def digest(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def level(x) -> float:
    return 10 * np.log10(np.mean(np.square(np.asarray(x, dtype=np.float64))))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synth") / "set"
    seen = []
    summary = synthesize(root, SMALL, progress=lambda done, total: seen.append((done, total)))
    total = 3 * (6 + 2 + 12 + 4)
    assert (summary.written, summary.kept, summary.files) == (total, 0, total)
    assert summary.clip_seconds == pytest.approx(2.0 * total)
    assert seen == [(k, total) for k in range(total + 1)]
    return root


def test_layout_and_names_are_those_of_dcase(made):
    for machine in SMALL.machines:
        names = {
            split: sorted(p.name for p in (made / machine / split).iterdir())
            for split in ("train", "test", "supplemental")
        }
        assert {split: len(found) for split, found in names.items()} == {"train": 8, "test": 12, "supplemental": 4}
        for split, found in names.items():
            for name in found:
                parts = NAME.fullmatch(name)
                assert parts is not None, name
                assert (parts["split"] or "supplemental") == split
        counted = [(NAME.fullmatch(n)["domain"], NAME.fullmatch(n)["condition"]) for n in names["test"]]
        assert all(counted.count((d, c)) == 3 for d in ("source", "target") for c in ("normal", "anomaly"))
        assert sum("_noise_" in n for n in names["supplemental"]) == 2
    assert not list(made.rglob("*.part"))


def test_clips_are_16_bit_mono_of_the_asked_rate_and_length(made):
    for path in made.glob("*/t*/*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (16000, 1, 32000, "PCM_16")


def test_attribute_table_names_every_clip_with_a_machine_and_what_its_name_says(made):
    for machine in SMALL.machines:
        table = rows(made / machine / "attributes_00.csv")
        assert {r["file_name"] for r in table} == {
            p.relative_to(made).as_posix() for p in clips_in(made) if p.parts[-3] == machine and "_noise_" not in p.name
        }
        for row in table:
            told = NAME.fullmatch(Path(row["file_name"]).name)["attributes"]
            if machine == "bearing":
                assert list(row) == ["file_name"]
                assert told == "noAttribute"
            else:
                assert told == f"{row['d1p']}_{row['d1v']}_{row['d2p']}_{row['d2v']}"


def test_truth_tells_every_clip_and_only_anomalies_have_faults(made):
    truth = rows(made / "truth.csv")
    assert {r["file"] for r in truth} == {p.relative_to(made).as_posix() for p in clips_in(made)}
    assert len({r["seed"] for r in truth}) == len(truth)
    for row in truth:
        name = NAME.fullmatch(Path(row["file"]).name)
        assert row["split"] == (name["split"] or "supplemental")
        assert (row["condition"] == "anomaly") == (name["condition"] == "anomaly") == bool(row["fault"])
        if row["fault"]:
            kinds = {kind.name: kind for kind in SIMULATORS[row["machine"]].faults}
            start, end = float(row["fault_start_s"]), float(row["fault_end_s"])
            assert 0.0 <= start < end <= 2.0
            assert (kinds[row["fault"]].event_s is not None) == (end - start < 2.0)
            assert 0.0 <= float(row["fault_low_hz"]) < float(row["fault_high_hz"]) <= 8000.0
            assert SMALL.severity[0] <= float(row["severity"]) <= SMALL.severity[1]
        if "_noise_" not in row["file"]:
            assert re.fullmatch(r"\w+=\w+;\w+=\w+", row["attributes"])  # the truth keeps what names hide


def test_a_dcase_reader_sees_the_clips_and_not_their_stems(made):
    truth = {made / r["file"]: r for r in rows(made / "truth.csv")}
    seen = scan_dcase(made)
    assert {clip.path for clip in seen} == truth.keys()
    for clip in seen:
        row = truth[clip.path]
        assert (clip.machine, clip.split.value) == (row["machine"], row["split"])
        assert clip.condition.value == row["condition"]
        told = ";".join(f"{name}={value}" for name, value in clip.attributes)
        assert told == ("" if clip.machine == "bearing" else row["attributes"])


def test_target_settings_differ_from_source_settings(made):
    for machine in SMALL.machines:
        seen = {"source": set(), "target": set()}
        for row in rows(made / "truth.csv"):
            if row["machine"] == machine and row["split"] != "supplemental":
                seen[row["domain"]].add(row["attributes"])
        assert seen["target"]
        assert not seen["source"] & seen["target"]


def test_stems_add_up_to_the_clip_and_have_the_told_snr(made):
    truth = {r["file"]: r for r in rows(made / "truth.csv")}
    clips = sorted(made.glob("*/test/*.wav"))
    assert len(clips) == 36
    for path in clips:
        stem = made / path.parts[-3] / "stems" / path.stem
        front, back = (
            soundfile.read(f"{stem}_{part}.wav", dtype="float32")[0] for part in ("foreground", "background")
        )
        coarse, _ = soundfile.read(path, dtype="int16")
        assert np.array_equal(coarse, np.rint((front + back) * np.float32(32768)).astype(np.int16))
        told = float(truth[path.relative_to(made).as_posix()]["snr_db"])
        assert level(front) - level(back) == pytest.approx(told, abs=0.01)


def test_same_config_same_bytes_whatever_the_number_of_workers(made, tmp_path):
    synthesize(tmp_path / "again", SMALL.model_copy(update={"workers": 2}))
    assert digest(tmp_path / "again") == digest(made)


def test_another_seed_changes_every_clip(made, tmp_path):
    config = SMALL.model_copy(update={"seed": 6, "machines": ("fan",), "stems": False})
    synthesize(tmp_path / "other", config)
    old, new = digest(made), digest(tmp_path / "other")
    assert not [name for name in new if name.endswith(".wav") and new[name] == old[name]]


def test_other_counts_and_machines_do_not_change_a_clip():
    def plans(config):
        return {clip.path: clip for clip in plan_clips(config)}

    few = plans(SMALL)
    many = plans(SMALL.model_copy(update={"train_source": 20, "test_per_group": 7, "machines": MACHINES}))
    assert few.items() <= many.items()
    assert len(many) > len(few)


def test_a_run_that_was_broken_off_goes_on(made, tmp_path):
    root = tmp_path / "set"

    class Stopped(Exception):
        pass

    def stop(done, total):
        if done == 20:
            raise Stopped

    with pytest.raises(Stopped):
        synthesize(root, SMALL, progress=stop)
    lost = next(root.glob("fan/train/*.wav"))
    kept = {p: p.stat().st_mtime_ns for p in clips_in(root) if p != lost}
    lost.unlink()
    summary = synthesize(root, SMALL)
    assert summary.kept == len(kept) >= 18
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items())
    assert digest(root) == digest(made)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(SynthError, match="not empty"):
        synthesize(tmp_path, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(SynthError, match="is a file"):
        synthesize(tmp_path / "thesis.txt", SMALL)


def test_an_earlier_run_with_other_settings_is_refused(tmp_path):
    tiny = SMALL.model_copy(update={"machines": ("fan",), "train_source": 1, "train_target": 0, "test_per_group": 0})
    synthesize(tmp_path, tiny)
    with pytest.raises(SynthError, match="other settings"):
        synthesize(tmp_path, tiny.model_copy(update={"seed": 9}))
    assert json.loads((tmp_path / RECORD).read_text())["config"]["seed"] == 5
    assert synthesize(tmp_path, tiny.model_copy(update={"workers": 2})).written == 0


@pytest.fixture(scope="module")
def two_classes():
    """Source test clips of both classes, rendered: {machine: (normal, anomalous)}."""
    config = SynthConfig(
        machines=("valve", "fan"), seconds=2.0, train_source=0, train_target=0, test_per_group=50, supplemental=0
    )
    found = {machine: ([], []) for machine in config.machines}
    for clip in plan_clips(config):
        if clip.domain == "source":
            sound = render_clip(clip, config.rate, 1)
            found[clip.machine][clip.condition == "anomaly"].append((clip, sound))
    return config, found


def test_loudness_follows_the_same_law_for_both_classes(two_classes):
    config, found = two_classes
    for machine, (normal, anomalous) in found.items():
        levels = [[level(sound.mixture) for _, sound in clips] for clips in (normal, anomalous)]
        assert stats.ks_2samp(*levels).pvalue > 0.2, machine
        auc = np.mean(np.array(levels[1])[:, None] > np.array(levels[0])[None])
        assert 0.45 < auc < 0.55, machine
        for values in levels:
            low, high = config.level_dbfs
            assert low - 0.01 <= min(values) < low + 1
            assert high - 1 < max(values) <= high + 0.01


def test_levels_snr_length_and_settings_are_drawn_alike_for_both_classes():
    config = SynthConfig(machines=("gearbox",), seconds=(5.0, 12.0), test_per_group=200, train_source=0, supplemental=0)
    clips = [c for c in plan_clips(config) if c.split == "test"]
    for domain in ("source", "target"):
        normal, anomalous = (
            [c for c in clips if c.domain == domain and c.condition == condition] for condition in ("normal", "anomaly")
        )
        for what in ("snr_db", "level_dbfs", "seconds"):
            pair = [[getattr(c, what) for c in group] for group in (normal, anomalous)]
            assert stats.ks_2samp(*pair).pvalue > 0.05, what
        assert [c.attributes for c in normal] == [c.attributes for c in anomalous]
    anomalous = [c for c in clips if c.condition == "anomaly"]
    met = {(c.fault.name, c.attributes) for c in anomalous if c.domain == "source"}
    assert len(met) == len(SIMULATORS["gearbox"].faults) * 9  # every fault at every setting


def test_no_clip_is_cut_off_and_both_classes_use_the_same_code_range(two_classes):
    _, found = two_classes
    for groups in found.values():
        for clips in groups:
            assert max(np.abs(sound.mixture).max() for _, sound in clips) < 1.0
            assert all(np.abs(np.mean(sound.mixture)) < 0.01 for _, sound in clips)


def test_domains_sound_different(tmp_path):
    """The noise of the target hall is not the source's, and neither is the machine."""
    config = SynthConfig(machines=("slider",), seconds=2.0, train_source=8, train_target=8, test_per_group=0)
    spectra = {"source": [], "target": []}
    for clip in plan_clips(config):
        if clip.split == "train":
            x = render_clip(clip, 16000, 1).background[:, 0]
            p = 10 * np.log10(dsp.welch(x, 16000, nperseg=512)[1][4:])
            spectra[clip.domain].append(p - p.mean())
    means = {domain: np.mean(found, axis=0) for domain, found in spectra.items()}
    within = np.mean([np.std(found, axis=0).mean() for found in spectra.values()])
    assert np.abs(means["source"] - means["target"]).mean() > within / np.sqrt(2)


def test_far_microphone_hears_the_machine_later_and_in_more_noise():
    config = SynthConfig(
        machines=("valve",), seconds=2.0, train_source=4, train_target=0, test_per_group=0, supplemental=0, channels=2
    )
    for clip in plan_clips(config):
        sound = render_clip(clip, config.rate, config.channels)
        assert sound.mixture.shape == (32000, 2)
        snr = level(sound.foreground[:, 0]) - level(sound.background[:, 0])
        assert snr == pytest.approx(clip.snr_db, abs=0.01)
        assert level(sound.foreground[:, 1]) - level(sound.background[:, 1]) < snr - 2
        cross = dsp.correlate(sound.foreground[:, 1], sound.foreground[:, 0])
        lag = (np.argmax(np.abs(cross)) - 31999) / config.rate
        assert 0.004 < lag < 0.014


def test_two_microphones_are_written_as_two_channels_of_any_length(tmp_path):
    config = SynthConfig(
        machines=("pump",),
        seconds=(2.0, 3.5),
        rate=8000,
        channels=2,
        train_source=5,
        train_target=0,
        test_per_group=0,
        supplemental=2,
    )
    summary = synthesize(tmp_path, config)
    infos = [soundfile.info(path) for path in tmp_path.glob("pump/*/*.wav")]
    assert {(i.channels, i.samplerate) for i in infos} == {(2, 8000)}
    assert len({i.frames for i in infos}) > 3
    assert all(16000 <= i.frames <= 28000 for i in infos)
    assert sum(i.frames for i in infos) / 8000 == pytest.approx(summary.clip_seconds)


def test_supplemental_clips_are_machine_alone_or_noise_alone():
    config = SynthConfig(
        machines=("valve",), seconds=2.0, train_source=0, train_target=0, test_per_group=0, supplemental=4
    )
    sounds = {clip.name: render_clip(clip, 16000, 1) for clip in plan_clips(config)}
    for name, sound in sounds.items():
        silent, heard = (
            (sound.foreground, sound.background) if "_noise_" in name else (sound.background, sound.foreground)
        )
        assert not silent.any()
        assert np.array_equal(heard, sound.mixture)
        assert heard.any()


@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_renders_at_every_length_and_rate(machine):
    for rate, seconds in ((8000, 2.0), (44100, 2.37)):
        config = SynthConfig(
            machines=(machine,),
            seconds=seconds,
            rate=rate,
            train_source=1,
            train_target=1,
            test_per_group=6,
            supplemental=2,
        )
        for clip in plan_clips(config):
            x = render_clip(clip, rate, 1).mixture
            assert x.dtype == np.float32
            assert x.shape == (round(seconds * rate), 1)
            assert np.isfinite(x).all()
            assert level(x) == pytest.approx(clip.level_dbfs, abs=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"machines": ("lathe",)},
        {"machines": ()},
        {"machines": ("fan", "fan")},
        {"hidden_attributes": ("lathe",)},
        {"snr_db": (5.0, 1.0)},
        {"severity": (0.0, 1.5)},
        {"seconds": 0.5},
        {"seconds": (8.0, 6.0)},
        {"level_dbfs": (-20.0, -3.0)},
        {"colour": "red"},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="SynthConfig"):
        SynthConfig(**wrong)
