"""Remixed clips have the SNR, level, length and labels that they should; only normal clips get in; draws repeat."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.separation.stand_in import RATE, LowPass, sound, write

from offkey.audio.io import AudioConfig, read_clip
from offkey.data.labels import LabelSpace
from offkey.data.loader import ClipReader, Failure, load_batches
from offkey.data.source import open_source
from offkey.files import same_name
from offkey.separation.remix import (
    RECORD,
    TRUTH,
    Remix,
    RemixConfig,
    RemixError,
    active_power,
    loop,
    write_remixes,
)
from offkey.separation.stems import Stems
from offkey.training.randomness import Moment
from offkey.types import Batch, ClipMeta, Condition, Content, Domain, Split

ALWAYS = RemixConfig(enabled=True, probability=1.0)


@pytest.fixture
def clips(tmp_path: Path) -> list[ClipMeta]:
    """Three machines, each with a tone of its own in a noise of its own; two clips of the fan are in the target."""
    tones = {"fan": (200, 2000), "pump": (400, 4000), "valve": (600, 6000)}
    made = []
    for machine, (low, high) in tones.items():
        for number in range(3):
            domain = Domain.TARGET if machine == "fan" and number else Domain.SOURCE
            path = tmp_path / "data" / machine / "train" / f"section_00_{domain.value}_train_normal_{number:04d}.wav"
            wave = sound(low + 20 * number, high + 100 * number, seconds=0.5 + 0.1 * number, loud=0.1 / (number + 1))
            made.append(write(path, wave, machine, domain))
    return made


def batch_of(clips: list[ClipMeta]) -> Batch:
    return next(iter(load_batches(clips, [list(range(len(clips)))], ClipReader(), LabelSpace.of(clips), workers=0)))


def tones(samples: np.ndarray, least: float = 0.05) -> set[int]:
    """Frequencies in hertz (rounded to 20) of the peaks that reach `least` of the strongest."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    inner = spectrum[1:-1]
    peaks = np.flatnonzero((inner > spectrum[:-2]) & (inner >= spectrum[2:]) & (inner > least * spectrum.max())) + 1
    return {int(20 * round(hertz[peak] / 20)) for peak in peaks}


def snr(samples: np.ndarray) -> float:
    """What lies below 1 kHz over what lies above, in dB."""
    low, high = LowPass().separate(samples)
    return 10 * float(np.log10(np.mean(low**2) / np.mean(high**2)))


def test_a_remix_is_its_foreground_in_anothers_background(clips: list[ClipMeta]) -> None:
    remix = Remix(RemixConfig(enabled=True, min_snr_db=3.0, max_snr_db=3.0), clips, Stems(LowPass()))
    for place, clip in enumerate(clips):
        samples = read_clip(clip.path, AudioConfig())
        mixed, recipe = remix.make(clip, samples, np.random.default_rng(place))
        assert recipe.foreground is clip
        assert recipe.background.path != clip.path
        heard, background = tones(mixed), tones(read_clip(recipe.background.path, AudioConfig()))
        assert heard == {f for f in tones(samples) if f < 1000} | {f for f in background if f > 1000}
        assert snr(mixed) == pytest.approx(3.0, abs=0.3)


def test_length_level_and_labels_stay(clips: list[ClipMeta]) -> None:
    batch = batch_of(clips)
    before = batch.waveform.clone()
    remix = Remix(ALWAYS, clips, Stems(LowPass()))
    changed = remix(batch)
    assert torch.equal(batch.waveform, before)
    assert changed.labels is batch.labels
    assert torch.equal(changed.lengths, batch.lengths)
    for row, length in enumerate(batch.lengths.tolist()):
        assert not changed.waveform[row, length:].any()
        assert not torch.equal(changed.waveform[row], before[row])
    level = [before.square().sum(1), changed.waveform.square().sum(1)]
    torch.testing.assert_close(level[0], level[1], rtol=1e-4, atol=0)


def test_snr_is_spread_over_its_range(clips: list[ClipMeta]) -> None:
    remix = Remix(RemixConfig(enabled=True, min_snr_db=-12.0, max_snr_db=-2.0), clips, Stems(LowPass()))
    samples = read_clip(clips[0].path, AudioConfig())
    drawn = [snr(remix.make(clips[0], samples, np.random.default_rng(seed))[0]) for seed in range(60)]
    assert -12.3 < min(drawn) < -10.0
    assert -4.0 < max(drawn) < -1.7


def test_every_machine_lends_its_background_as_often(clips: list[ClipMeta]) -> None:
    few = [clip for clip in clips if clip.machine == "fan"] + clips[3:4]
    remix = Remix(ALWAYS, few, Stems(LowPass()))
    samples = read_clip(few[0].path, AudioConfig())
    drawn = [remix.make(few[0], samples, np.random.default_rng(seed))[1].background for seed in range(200)]
    share = np.mean([clip.machine == "pump" for clip in drawn])
    assert 0.38 < share < 0.62  # one of its clips against the fan's two others
    assert {clip.path for clip in drawn} == {clip.path for clip in few[1:]}


def test_nothing_happens_unless_enabled_and_to_no_more_than_the_share(clips: list[ClipMeta]) -> None:
    batch = batch_of(clips)
    stems = Stems(LowPass())
    assert Remix(RemixConfig(), clips, stems)(batch) is batch
    remix = Remix(RemixConfig(enabled=True, probability=0.5), clips, stems)
    met = []
    for step in range(20):
        remix.seek(Moment(0, 0, step))
        met.append((remix(batch).waveform != batch.waveform).any(1))
    assert 0.35 < torch.stack(met).float().mean() < 0.65


def test_the_same_moment_draws_the_same_and_another_does_not(clips: list[ClipMeta]) -> None:
    batch = batch_of(clips)
    one, other = Remix(ALWAYS, clips, Stems(LowPass())), Remix(ALWAYS, clips, Stems(LowPass()))
    one.seek(Moment(3, 1, 4))
    one(batch)  # what was drawn before does not matter
    other.seek(Moment(3, 1, 4))
    first = other(batch).waveform
    assert torch.equal(one(batch).waveform, first)
    for moment in (Moment(4, 1, 4), Moment(3, 2, 4), Moment(3, 1, 5), Moment(3, 1, 4, 1)):
        other.seek(moment)
        assert not torch.equal(other(batch).waveform, first)


def test_a_loader_that_starts_in_the_middle_of_an_epoch_draws_the_same(clips: list[ClipMeta]) -> None:
    order = [[0, 1], [2, 3], [4, 0]]
    stems = Stems(LowPass())

    def epoch(batches: list[list[int]]) -> list[torch.Tensor]:
        remix = Remix(ALWAYS, clips, stems)
        heard = []
        for batch in load_batches(clips, batches, ClipReader(), None, workers=0):
            remix.seek_batch(7, 2, batch)
            heard.append(remix(batch).waveform)
        return heard

    whole, rest = epoch(order), epoch(order[1:])
    assert all(torch.equal(one, other) for one, other in zip(whole[1:], rest, strict=True))
    assert not torch.equal(whole[0][0, :8000], whole[2][1, :8000])  # clip 0 comes twice, and not alike


def test_mixup_crosses_domains_of_one_machine(clips: list[ClipMeta]) -> None:
    config = RemixConfig(enabled=True, mixup=1.0, mixup_alpha=5.0, min_snr_db=30, max_snr_db=30)
    remix = Remix(config, clips, Stems(LowPass()))
    samples = read_clip(clips[0].path, AudioConfig())
    for seed in range(10):
        mixed, recipe = remix.make(clips[0], samples, np.random.default_rng(seed))
        assert recipe.partner in clips[1:3]  # the fan's target clips
        assert 0 < recipe.partner_share <= 0.5
        spectrum = np.abs(np.fft.rfft(mixed[:8000]))  # bins of 2 Hz
        other = int(np.median(list(tones(sound(200 + 20 * clips.index(recipe.partner), 3000, noise=0)))))
        heard = spectrum[other // 2 - 3 : other // 2 + 4].max() / spectrum[97:104].max()
        assert heard == pytest.approx(recipe.partner_share / (1 - recipe.partner_share), rel=0.3)
    alone = remix.make(clips[3], read_clip(clips[3].path, AudioConfig()), np.random.default_rng(0))
    assert alone[1].partner is None  # the pump has no target clips


def test_mixup_changes_no_other_draw(clips: list[ClipMeta]) -> None:
    samples = read_clip(clips[0].path, AudioConfig())
    told = [
        Remix(RemixConfig(enabled=True, mixup=share), clips, Stems(LowPass())).make(
            clips[0], samples, np.random.default_rng(5)
        )[1]
        for share in (0.0, 1.0)
    ]
    assert (told[0].snr_db, told[0].background) == (told[1].snr_db, told[1].background)


@pytest.mark.parametrize("condition", [Condition.ANOMALY, Condition.UNKNOWN])
@pytest.mark.parametrize("where", ["clips", "supplemental"])
def test_only_clips_marked_normal_get_in(clips: list[ClipMeta], condition: Condition, where: str) -> None:
    odd = replace(clips[-1], condition=condition)
    given = {"clips": clips[:-1], "supplemental": []}
    given[where] = [*given[where], odd]
    with pytest.raises(RemixError, match=f"condition {condition.value}"):
        Remix(ALWAYS, given["clips"], Stems(LowPass()), given["supplemental"])


def test_test_clips_do_not_get_in_either(clips: list[ClipMeta]) -> None:
    with pytest.raises(RemixError, match="is a test clip"):
        Remix(ALWAYS, [*clips, replace(clips[0], split=Split.TEST)], Stems(LowPass()))


def test_noise_clips_lend_their_background_whole(clips: list[ClipMeta], tmp_path: Path) -> None:
    noise = write(tmp_path / "noise.wav", sound(300, 5000), "fan", content=Content.NOISE)
    remix = Remix(ALWAYS, clips[:1], Stems(LowPass()), [noise])
    samples = read_clip(clips[0].path, AudioConfig())
    drawn = [remix.make(clips[0], samples, np.random.default_rng(seed)) for seed in range(8)]
    assert {recipe.background for _, recipe in drawn} == {noise}
    assert {300, 5000} <= tones(drawn[0][0])
    assert remix.make(noise, read_clip(noise.path, AudioConfig()), np.random.default_rng(0)) is None


def test_machine_clips_are_their_own_foreground_and_lend_none(clips: list[ClipMeta], tmp_path: Path) -> None:
    clean = write(tmp_path / "clean.wav", sound(500, 7000), "fan", content=Content.MACHINE)
    remix = Remix(ALWAYS, [*clips[:2], clean], Stems(LowPass()))
    mixed, recipe = remix.make(clean, read_clip(clean.path, AudioConfig()), np.random.default_rng(1))
    assert {500, 7000} <= tones(mixed)
    assert recipe.background in clips[:2]
    with pytest.raises(RemixError, match="no background"):
        Remix(ALWAYS, [clean], Stems(LowPass()))


def test_where_separation_found_nothing_the_clip_stays(clips: list[ClipMeta], tmp_path: Path) -> None:
    mute = write(tmp_path / "mute.wav", sound(200, 3000, loud=1e-5), "fan")
    remix = Remix(ALWAYS, [mute, *clips], Stems(LowPass()))
    assert remix.make(mute, read_clip(mute.path, AudioConfig()), np.random.default_rng(0)) is None
    clear = write(tmp_path / "clear.wav", sound(200, 3000, noise=1e-5), "fan")
    remix = Remix(ALWAYS, [clips[0], clear], Stems(LowPass()))
    assert remix.make(clips[0], read_clip(clips[0].path, AudioConfig()), np.random.default_rng(0)) is None


def test_changed_clips_are_refused(clips: list[ClipMeta]) -> None:
    remix = Remix(ALWAYS, clips, Stems(LowPass()))
    with pytest.raises(RemixError, match="before speeds and crops"):
        remix.make(clips[0], read_clip(clips[0].path, AudioConfig())[:-1], np.random.default_rng(0))


def test_pauses_do_not_count_as_power() -> None:
    rng = np.random.default_rng(0)
    steady = (0.1 * rng.standard_normal(RATE)).astype(np.float32)
    valve = steady * (np.arange(RATE) % 4096 < 512)
    assert active_power(steady, RATE) == pytest.approx(0.01, rel=0.05)
    assert active_power(valve, RATE) == pytest.approx(0.01, rel=0.1)
    assert active_power(valve * 0, RATE) == 0.0
    assert active_power(steady[:3], RATE) == pytest.approx(float(np.mean(steady[:3] ** 2)), rel=1e-5)
    assert active_power(steady[:0], RATE) == 0.0


@pytest.mark.parametrize("size", [1, 2, 99, 100, 1000, 5000])
@pytest.mark.parametrize("start", [0.0, 0.4, 0.999999])
def test_a_loop_has_no_seam_and_keeps_its_power(size: int, start: float) -> None:
    noise = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    made = loop(noise, 3000, start, 50)
    assert made.shape == (3000,)
    if size >= 1000:
        assert np.mean(made**2) == pytest.approx(np.mean(noise**2), rel=0.1)
    slow = np.linspace(-1, 1, size, dtype=np.float32)  # its ends lie 2 apart
    if size >= 200:
        assert np.abs(np.diff(loop(slow, 3 * size, start, 50))).max() < 0.1
        assert np.abs(np.diff(loop(slow, 3 * size, start, 0))).max() > 1.9


def test_what_is_cropped_is_what_was_there() -> None:
    ramp = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(loop(ramp, 300, 0.5, 50), ramp[475:775])


def test_written_clips_are_a_data_set_of_the_same_layout(clips: list[ClipMeta], tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "fan" / "attributes_00.csv").write_text(
        "file_name,d1p,d1v\n" + "".join(f"{clip.path.name},speed,{n}\n" for n, clip in enumerate(clips[:3]))
    )
    write(root / "fan" / "supplemental" / "section_00_noise_0000.wav", sound(300, 5000), content=Content.NOISE)
    clean = "section_00_source_machine_0000.wav"
    write(root / "fan" / "supplemental" / clean, sound(500, 700), content=Content.MACHINE)
    write(root / "fan" / "test" / "section_00_source_test_anomaly_0000.wav", sound(900, 1500))
    source = open_source(root)
    out = tmp_path / "out"
    summary = write_remixes(source, out, RemixConfig(), Stems(LowPass()), copies=2, originals=True, seed=1)
    assert (summary.written, summary.originals, summary.left_out) == (20, 9, 0)

    made = open_source(out)
    assert made.kind == "dcase"
    assert {clip.split for clip in made.clips} == {Split.TRAIN}
    assert len(made.clips) == 29
    by_name = {f"{clip.machine}/train/{clip.path.name}": clip for clip in made.clips}
    known = {clip.path.relative_to(root).as_posix(): clip for clip in source.clips}
    with (out / TRUTH).open(newline="") as file:
        told = list(csv.DictReader(file))
    assert len(told) == 20
    for row in told:
        clip, origin = by_name[row["file"]], known[row["foreground"]]
        fields = ("machine", "section", "domain", "condition", "attributes")
        assert [getattr(clip, name) for name in fields] == [getattr(origin, name) for name in fields]
        samples, original = (read_clip(one.path, AudioConfig()) for one in (clip, origin))
        assert len(samples) == len(original)
        assert np.mean(samples**2) == pytest.approx(np.mean(original**2), rel=1e-4)
        assert known[row["background"]].content is not Content.MACHINE
        assert known[row["background"]].split is not Split.TEST
    assert sum(row["foreground"].endswith(clean) for row in told) == 2


def test_a_plain_folder_stays_one(tmp_path: Path) -> None:
    root = tmp_path / "press"
    for number in range(3):
        write(root / f"{number}.wav", sound(200 + 50 * number, 3000))
    write(root / "day" / "0.wav", sound(500, 4000))
    (root / "faulty").mkdir()
    out = tmp_path / "out"
    source = open_source(root, subfolders="settings")
    assert write_remixes(source, out, RemixConfig(), Stems(LowPass())).written == 4
    made = open_source(out / "press", subfolders="settings")
    assert {(clip.machine, clip.attributes, clip.path.name) for clip in made.clips} == {
        (clip.machine, clip.attributes, f"{clip.path.stem}_remix1.wav") for clip in source.clips
    }
    assert {clip.machine for clip in open_source(out).clips} == {"press"}


def test_the_same_seed_writes_the_same_and_a_broken_run_goes_on(clips: list[ClipMeta], tmp_path: Path) -> None:
    source = open_source(tmp_path / "data")
    stems = Stems(LowPass())

    def contents(root: Path) -> dict[str, bytes]:
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    roots = [tmp_path / name for name in ("one", "two", "three")]
    for root, seed in zip(roots, (0, 0, 1), strict=True):
        write_remixes(source, root, RemixConfig(), stems, seed=seed)
    assert contents(roots[0]) == contents(roots[1])
    assert contents(roots[0]) != contents(roots[2])
    (roots[1] / TRUTH).unlink()
    next(roots[1].glob("valve/train/*")).unlink()
    write_remixes(source, roots[1], RemixConfig(), stems, seed=0)
    assert contents(roots[0]) == contents(roots[1])


def test_what_is_not_ours_is_left_alone(clips: list[ClipMeta], tmp_path: Path) -> None:
    source, stems = open_source(tmp_path / "data"), Stems(LowPass())
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("dear")
    with pytest.raises(RemixError, match=f"holds no {RECORD}"):
        write_remixes(source, taken, RemixConfig(), stems)
    assert [path.name for path in taken.iterdir()] == ["letter.txt"]
    write_remixes(source, tmp_path / "out", RemixConfig(), stems)
    with pytest.raises(RemixError, match="other settings"):
        write_remixes(source, tmp_path / "out", RemixConfig(min_snr_db=0.0), stems)
    with pytest.raises(RemixError, match="another separator"):
        write_remixes(source, tmp_path / "out", RemixConfig(), Stems(LowPass(edge=500.0)))
    with pytest.raises(RemixError, match="lies inside"):
        write_remixes(source, tmp_path / "data" / "more", RemixConfig(), stems)
    with pytest.raises(RemixError, match="is a file"):
        write_remixes(source, taken / "letter.txt", RemixConfig(), stems)


def test_clips_that_cannot_be_read_are_named_and_the_rest_written(clips: list[ClipMeta], tmp_path: Path) -> None:
    clips[4].path.write_bytes(b"")
    failures: list[Failure] = []
    summary = write_remixes(
        open_source(tmp_path / "data"), tmp_path / "out", RemixConfig(), Stems(LowPass()), failures=failures
    )
    assert summary.written == 8
    assert [failure.path for failure in failures] == [clips[4].path]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="lies above"):
        RemixConfig(min_snr_db=5.0, max_snr_db=4.0)


@pytest.mark.parametrize("quiet", [0.0, 2e-5])
def test_a_silent_stretch_of_a_background_is_not_made_loud(clips: list[ClipMeta], tmp_path: Path, quiet: float) -> None:
    # three quarters of the recording are silence, or 67 dB fainter than the rest
    wave = np.concatenate([sound(7000, 7000, seconds=3.0, loud=0.0, noise=quiet), sound(5000, 5000, seconds=1.0)])
    noise = write(tmp_path / "noise.wav", wave, "fan", content=Content.NOISE)
    remix = Remix(RemixConfig(enabled=True, min_snr_db=0.0, max_snr_db=0.0), clips[:1], Stems(LowPass()), [noise])
    samples = read_clip(clips[0].path, AudioConfig())
    for seed in range(30):
        mixed, recipe = remix.make(clips[0], samples, np.random.default_rng(seed))
        assert recipe.background is noise
        machine, surroundings = LowPass().separate(mixed)
        ratio = active_power(machine, RATE) / active_power(surroundings, RATE)
        assert 10 * np.log10(ratio) == pytest.approx(0, abs=1)
        assert 7000 not in tones(mixed)
        assert np.mean(mixed**2) == pytest.approx(np.mean(samples**2), rel=1e-4)


def test_other_clips_lend_their_background_and_nothing_else(clips: list[ClipMeta]) -> None:
    config = RemixConfig(enabled=True, mixup=1.0, min_snr_db=0.0, max_snr_db=0.0)
    remix = Remix(config, clips[:1], Stems(LowPass()), lenders=clips[1:6])  # 1 and 2: of the fan, in the other domain
    samples = read_clip(clips[0].path, AudioConfig())
    drawn = [remix.make(clips[0], samples, np.random.default_rng(seed))[1] for seed in range(40)]
    assert {recipe.background.path for recipe in drawn} == {clip.path for clip in clips[1:6]}
    assert {recipe.partner for recipe in drawn} == {None}
    with pytest.raises(RemixError, match="is a test clip"):
        Remix(config, clips[:1], Stems(LowPass()), lenders=[replace(clips[1], split=Split.TEST)])


def test_what_separation_left_over_is_no_partner(clips: list[ClipMeta], tmp_path: Path) -> None:
    faint = write(tmp_path / "faint.wav", sound(900, 3000, loud=1e-5), "fan", Domain.TARGET)
    config = RemixConfig(enabled=True, mixup=1.0, mixup_alpha=5.0, min_snr_db=0.0, max_snr_db=0.0)
    remix = Remix(config, [clips[0], faint], Stems(LowPass()))
    mixed, recipe = remix.make(clips[0], read_clip(clips[0].path, AudioConfig()), np.random.default_rng(0))
    assert recipe.partner is None
    assert 900 not in tones(mixed)


def test_a_foreground_that_is_not_normal_is_refused_when_it_comes(clips: list[ClipMeta]) -> None:
    remix = Remix(ALWAYS, clips, Stems(LowPass()))
    samples = read_clip(clips[0].path, AudioConfig())
    for change in ({"condition": Condition.ANOMALY}, {"condition": Condition.UNKNOWN}, {"split": Split.TEST}):
        with pytest.raises(RemixError, match="only training and supplemental clips marked normal"):
            remix.make(replace(clips[0], **change), samples, np.random.default_rng(0))


def test_a_run_over_other_recordings_of_the_same_names_and_sizes_is_refused(
    clips: list[ClipMeta], tmp_path: Path
) -> None:
    out, stems = tmp_path / "out", Stems(LowPass())
    write_remixes(open_source(tmp_path / "data"), out, RemixConfig(), stems)
    before = {path: path.read_bytes() for path in out.rglob("*.wav")}
    for clip in clips:  # another simulation, as it were
        write(clip.path, read_clip(clip.path, AudioConfig())[::-1].copy())
    with pytest.raises(RemixError, match="made from other clips"):
        write_remixes(open_source(tmp_path / "data"), out, RemixConfig(), stems)
    assert {path: path.read_bytes() for path in out.rglob("*.wav")} == before


def test_a_file_of_the_right_size_with_other_sound_is_written_again(clips: list[ClipMeta], tmp_path: Path) -> None:
    source, out, stems = open_source(tmp_path / "data"), tmp_path / "out", Stems(LowPass())
    write_remixes(source, out, RemixConfig(), stems)
    victim = min(out.rglob("*.wav"))
    kept = victim.read_bytes()
    victim.write_bytes(kept[:-4000] + bytes(4000))
    write_remixes(source, out, RemixConfig(), stems)
    assert victim.read_bytes() == kept


@pytest.mark.parametrize("originals", [True, False])
def test_no_clip_is_lost_to_one_of_a_like_name(tmp_path: Path, originals: bool) -> None:
    root = tmp_path / "press"
    for number, name in enumerate(
        ["a.flac", "a_flac.wav", "b.wav", "b_remix1.wav", "B.wav", "\u00fc.wav", "u\u0308.wav"]
    ):
        path = write(root / "a.wav", sound(200 + 60 * number, 3000 + 200 * number)).path
        if name == "a.flac":
            soundfile.write(root / name, soundfile.read(path)[0], RATE)
            path.unlink()
        else:
            path.rename(root / name)
    out = tmp_path / "out"
    made = write_remixes(open_source(root), out, RemixConfig(), Stems(LowPass()), copies=2, originals=originals)
    assert (made.written, made.originals) == (14, 7 if originals else 0)
    files = [path.relative_to(out).as_posix() for path in out.rglob("*.wav")]
    assert len(files) == len({same_name(name) for name in files}) == made.written + made.originals
    with (out / TRUTH).open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = {row["file"]: row["foreground"] for row in rows}
    assert len(told) == made.written
    for name, foreground in told.items():  # and each is what it is said to be
        low = {hertz for hertz in tones(read_clip(out / name, AudioConfig())) if hertz < 1000}
        assert low == {hertz for hertz in tones(read_clip(root / foreground, AudioConfig())) if hertz < 1000}


def test_dcase_clips_of_one_name_both_come_through(clips: list[ClipMeta], tmp_path: Path) -> None:
    wav = clips[3].path
    soundfile.write(wav.with_suffix(".flac"), soundfile.read(wav)[0], RATE)
    out = tmp_path / "out"
    made = write_remixes(open_source(tmp_path / "data"), out, RemixConfig(), Stems(LowPass()), copies=2, originals=True)
    assert (made.written, made.originals) == (20, 10)
    assert len(list(out.rglob("*.wav"))) == 30
    assert len(open_source(out).clips) == 30


def test_levels_that_no_sound_has_are_refused() -> None:
    for told in (float("nan"), float("-inf"), -100000.0):
        with pytest.raises(ValueError, match="min_snr_db"):
            RemixConfig(min_snr_db=told)


@pytest.mark.parametrize("far", [-200.0, 200.0])
def test_the_farthest_levels_give_sound(clips: list[ClipMeta], far: float) -> None:
    remix = Remix(RemixConfig(enabled=True, min_snr_db=far, max_snr_db=far), clips, Stems(LowPass()))
    samples = read_clip(clips[0].path, AudioConfig())
    mixed, _ = remix.make(clips[0], samples, np.random.default_rng(0))
    assert np.mean(mixed**2) == pytest.approx(np.mean(samples**2), rel=1e-4)
