"""Past bugs of judging test clips."""

from __future__ import annotations

from pathlib import Path

from offkey.assessment import scored_clips
from offkey.detector import FileVerdict
from offkey.evaluation.protocol import PROTOCOLS, evaluate
from offkey.systems.config import load_preset
from offkey.types import ClipMeta, Condition, Verdict


def test_the_same_name_in_two_folders_was_taken_for_one_clip_twice() -> None:
    clips, rows = [], []
    for folder, condition, score in (("normal", Condition.NORMAL, 1.0), ("faulty", Condition.ANOMALY, 2.0)):
        for number in range(2):
            path = Path("pump/test") / folder / f"{number}.wav"
            clips.append(ClipMeta(path, "pump", condition=condition))
            rows.append(FileVerdict(path, Verdict(score + number / 10, 0.5, 1.5, score > 1.5, "pump"), None))
    scored = scored_clips(clips, rows)
    assert [clip.file for clip in scored][::3] == ["test/normal/0.wav", "test/faulty/1.wav"]
    assert evaluate(scored, PROTOCOLS["plain"], bootstrap=0).official_score == 1.0


def test_two_scorers_of_one_kind_hid_one_of_their_scores() -> None:
    names = load_preset("auto").scoring.names
    assert len(set(names)) == len(names) == 3
