"""Lessons: what meets what, how loud, and that they follow from the place in the run alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from offkey.audio.io import AudioConfig
from offkey.data.loader import ClipReader
from offkey.separation.mixing import Lesson, MixtureLessons, SupervisedLessons, fixed_lessons, lesson_plan
from offkey.separation.recipe import MixingConfig, PriorConfig, SeparationRecipe
from offkey.training.config import TrainingConfig
from offkey.types import Batch, ClipMeta, Content, Domain, OffkeyError, Split

RECIPE = SeparationRecipe(
    mixing=MixingConfig(batches=6, crop_seconds=0.25),
    prior=PriorConfig(alone_share=0.5, sum_share=0.5),
    training=TrainingConfig(epochs=4, batch_size=8),
)
HERTZ = {("fan", Content.MACHINE): 300, ("fan", Content.MIXTURE): 700, ("pump", Content.MIXTURE): 1100}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[ClipMeta]:
    """Tones that tell by their pitch what they are, and noise; levels differ, for lessons must not mind."""
    folder = tmp_path_factory.mktemp("tones")
    found = []
    rng = np.random.default_rng(0)
    for machine, content in (*HERTZ, ("fan", Content.NOISE), ("saw", Content.NOISE)):
        for number in range(3):
            time = np.arange(8000 + 500 * number) / 16000
            hertz = HERTZ.get((machine, content))
            wave = rng.standard_normal(len(time)) if hertz is None else np.sin(2 * np.pi * hertz * time)
            path = folder / f"{machine}_{content}_{number}.wav"
            soundfile.write(path, 0.02 * (number + 1) * wave, 16000, subtype="FLOAT")
            split = Split.TRAIN if content is Content.MIXTURE else Split.SUPPLEMENTAL
            found.append(ClipMeta(path, machine, split=split, content=content))
    return found


@pytest.fixture
def reader() -> ClipReader:
    return ClipReader(AudioConfig())


def pitch(wave: torch.Tensor) -> int:
    """Frequency in Hz of a tone, 0 for noise."""
    power = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs().square()
    peak = int(power.argmax())
    loud = power[max(0, peak - 2) : peak + 3].sum() / power.sum()
    return round(peak * 16000 / len(wave) / 100) * 100 if loud > 0.9 else 0


def of(clips: Sequence[ClipMeta], *kinds: tuple[str, Content]) -> list[ClipMeta]:
    return [clip for clip in clips if (clip.machine, clip.content) in kinds]


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.waveform, other.waveform) and torch.equal(one.place, other.place)


def test_clean_meets_noise_at_levels_within_the_range(clips: list[ClipMeta], reader: ClipReader) -> None:
    supervised = of(clips, ("fan", Content.MACHINE), ("fan", Content.NOISE), ("saw", Content.NOISE))
    lessons = SupervisedLessons(supervised, reader, RECIPE)
    assert not lessons.needs_teacher
    batches = list(lesson_plan(lessons, RECIPE, 3, workers=0))
    assert len(batches) == 6
    ratios = []
    for batch in batches:
        assert batch.waveform.shape == (8, 2, 4000)
        assert batch.lengths.tolist() == [4000] * 8
        assert batch.place.tolist() == [Lesson.KNOWN] * 8
        for front, back in batch.waveform:
            assert (pitch(front), pitch(back)) == (300, 0)
            ratios.append(10 * float(torch.log10(front.square().mean() / back.square().mean())))
    assert -15.5 < min(ratios) < -11  # the noise of a crop is not quite as loud as that of its clip
    assert 6 < max(ratios) < 10.5
    assert abs(np.mean(ratios) + 2.5) < 4


def test_machines_without_clean_clips_join_once_there_is_a_teacher(clips: list[ClipMeta], reader: ClipReader) -> None:
    lessons = SupervisedLessons(clips, reader, RECIPE)
    assert lessons.needs_teacher
    early = [batch for epoch in (0, 1) for batch in lesson_plan(lessons, RECIPE, epoch, workers=0)]
    assert {int(kind) for batch in early for kind in batch.place} == {Lesson.KNOWN}
    kinds = []
    for batch in lesson_plan(lessons, RECIPE, 2, workers=0):
        for (front, back), kind in zip(batch.waveform, batch.place.tolist(), strict=True):
            kinds.append(kind)
            assert pitch(front) == (300 if kind == Lesson.KNOWN else 1100)
            assert pitch(back) == 0
    assert 0.2 < np.mean(np.array(kinds) == Lesson.EXTRA_NOISE) < 0.8


def test_normal_clips_alone(clips: list[ClipMeta], reader: ClipReader) -> None:
    normal = of(clips, ("fan", Content.MIXTURE), ("pump", Content.MIXTURE))
    lessons = MixtureLessons(normal, reader, RECIPE)
    assert lessons.needs_teacher
    for batch in lesson_plan(lessons, RECIPE, 0, workers=0):
        assert batch.place.tolist() == [Lesson.KNOWN] * 8
        assert {pitch(front) for front in batch.waveform[:, 0]} <= {700, 1100}
    kinds = []
    for batch in lesson_plan(lessons, RECIPE, 3, workers=0):
        for (front, back), kind in zip(batch.waveform, batch.place.tolist(), strict=True):
            kinds.append(kind)
            if kind == Lesson.SUM:
                assert {pitch(front), pitch(back)} == {700, 1100}  # of different machines
                assert abs(10 * float(torch.log10(front.square().mean() / back.square().mean()))) < 6.1
    assert set(kinds) == {Lesson.KNOWN, Lesson.SUM}

    plain = RECIPE.model_copy(update={"prior": PriorConfig(alone_share=0.5)})
    lessons = MixtureLessons(normal, reader, plain)
    assert not lessons.needs_teacher
    late = lesson_plan(lessons, plain, 3, workers=0)
    assert {int(kind) for batch in late for kind in batch.place} == {Lesson.KNOWN}


def test_clips_with_the_deepest_valleys_stand_for_foreground(tmp_path: Path, reader: ClipReader) -> None:
    rng = np.random.default_rng(5)
    found = []
    for number in range(40):  # the softer its noise the higher its tone; those of the target domain are all noisy
        domain = Domain.TARGET if number >= 30 else Domain.SOURCE
        noise = 0.8**number if domain is Domain.SOURCE else 1.0
        time = np.arange(8000) / 16000
        wave = np.sin(2 * np.pi * 100 * (number + 5) * time) + noise * rng.standard_normal(len(time))
        path = tmp_path / f"{number:02d}.wav"
        soundfile.write(path, 0.1 * wave, 16000, subtype="FLOAT")
        found.append(ClipMeta(path, "fan", domain=domain, split=Split.TRAIN, content=Content.MIXTURE))
    chosen = [int(clip.path.stem) for clip in MixtureLessons(found, reader, RECIPE).clearest["fan"]]
    assert chosen[:10] == list(range(20, 30))  # a third of 30
    assert len(chosen) == 18  # and eight of ten: no domain goes without
    assert set(chosen[10:]) <= set(range(30, 40))
    everything = RECIPE.model_copy(update={"prior": PriorConfig(clearest_share=1)})
    assert MixtureLessons(found, reader, everything).clearest["fan"] == found
    assert MixtureLessons(found[:8], reader, RECIPE).clearest["fan"] == found[:8]

    lessons = MixtureLessons(found[:30], reader, RECIPE)
    numbers = np.random.default_rng(6)
    alone = [lessons.draw(numbers, False) for _ in range(60)]
    assert {kind for kind, _, _ in alone} == {Lesson.KNOWN}
    assert {pitch(torch.from_numpy(front)) for _, front, _ in alone} <= {100 * (n + 5) for n in range(20, 30)}
    later = [lessons.draw(numbers, True) for _ in range(120)]
    tones = {pitch(torch.from_numpy(front)) for kind, front, _ in later if kind is Lesson.SUM}
    assert min(tones) < 2400  # sums are made of all of them


def test_clean_clips_are_foregrounds_among_normal_ones(clips: list[ClipMeta], reader: ClipReader) -> None:
    known = of(clips, ("fan", Content.MACHINE), ("fan", Content.MIXTURE), ("pump", Content.MIXTURE))
    lessons = MixtureLessons(known, reader, RECIPE)
    early = [pitch(front) for batch in lesson_plan(lessons, RECIPE, 0, workers=0) for front in batch.waveform[:, 0]]
    assert set(early) == {300, 700, 1100}
    assert 0.1 < np.mean(np.array(early) == 300) < 0.6  # one machine of three
    kinds = set()
    for batch in lesson_plan(lessons, RECIPE, 3, workers=0):
        for (front, _), kind in zip(batch.waveform, batch.place.tolist(), strict=True):
            kinds.add((pitch(front), kind))
    # what is known is not asked of the teacher
    both = {(hertz, kind) for hertz in (700, 1100) for kind in (Lesson.KNOWN, Lesson.SUM)}
    assert kinds == {(300, Lesson.KNOWN)} | both


def test_recorded_noise_takes_the_place_of_the_prior(
    clips: list[ClipMeta], reader: ClipReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a background was made up")

    monkeypatch.setattr("offkey.separation.mixing.stationary_noise", never)
    known = of(clips, ("pump", Content.MIXTURE), ("saw", Content.NOISE))
    assert list(lesson_plan(MixtureLessons(known, reader, RECIPE), RECIPE, 0, workers=0))
    with pytest.raises(AssertionError, match="made up"):
        list(lesson_plan(MixtureLessons(known[:3], reader, RECIPE), RECIPE, 0, workers=0))


def test_lessons_follow_from_seed_epoch_and_batch_alone(clips: list[ClipMeta], reader: ClipReader) -> None:
    lessons = SupervisedLessons(clips, reader, RECIPE)
    whole = list(lesson_plan(lessons, RECIPE, 2, workers=0))
    ahead = list(lesson_plan(lessons, RECIPE, 2, workers=3))
    assert all(map(equal, whole, ahead))
    rest = list(lesson_plan(lessons, RECIPE, 2, workers=1).part(range(4, 6)))
    assert all(map(equal, whole[4:], rest))
    assert not equal(whole[0], whole[1])
    assert not equal(whole[0], next(iter(lesson_plan(lessons, RECIPE, 3, workers=0))))
    other = RECIPE.model_copy(update={"seed": 1})
    assert not equal(whole[0], next(iter(lesson_plan(lessons, other, 2, workers=0))))


def test_a_consumer_may_stop_early(clips: list[ClipMeta], reader: ClipReader) -> None:
    plan = iter(lesson_plan(SupervisedLessons(clips, reader, RECIPE), RECIPE, 0, workers=2))
    next(plan)
    plan.close()  # type: ignore[attr-defined]


def test_the_exam_is_the_same_every_time_and_asks_no_teacher(clips: list[ClipMeta], reader: ClipReader) -> None:
    lessons = SupervisedLessons(clips, reader, RECIPE)
    first, second = (fixed_lessons(lessons, RECIPE, 11) for _ in range(2))
    assert [len(batch.waveform) for batch in first] == [8, 3]
    assert all(map(equal, first, second))
    assert all((batch.place == Lesson.KNOWN).all() for batch in first)


def test_clips_that_are_too_short_are_repeated(clips: list[ClipMeta], reader: ClipReader) -> None:
    recipe = RECIPE.model_copy(update={"mixing": MixingConfig(batches=1, crop_seconds=2.0)})
    batch = next(iter(lesson_plan(SupervisedLessons(clips, reader, recipe), recipe, 0, workers=0)))
    assert batch.waveform.shape[-1] == 32000
    assert float(batch.waveform[:, :, -4000:].abs().amax((0, 2)).min()) > 0


def test_what_is_missing_is_said(clips: list[ClipMeta], reader: ClipReader) -> None:
    with pytest.raises(OffkeyError, match="noise alone"):
        SupervisedLessons(of(clips, ("fan", Content.MACHINE)), reader, RECIPE)
    with pytest.raises(OffkeyError, match="no"):
        MixtureLessons([], reader, RECIPE)
    with pytest.raises(ValueError, match="min_snr_db 5 lies above"):
        MixingConfig(min_snr_db=5, max_snr_db=-5)
    assert PriorConfig().n_fft == 1024
