"""A set of clips is known again by what is in it, wherever it lies; another one of the same names is not it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from offkey.data.fingerprint import clips_fingerprint
from offkey.types import ClipMeta, Condition, Content, Domain, Split


@pytest.fixture
def clips(tmp_path: Path) -> list[ClipMeta]:
    made = []
    for number, size in enumerate((0, 1, 5000, 1 << 20, (1 << 20) + 1, 3_000_000)):
        path = tmp_path / "one" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([number + 1]) * size)
        made.append(ClipMeta(path, "fan", "00", Domain.SOURCE, Condition.NORMAL, Split.TRAIN))
    return made


def moved(clips: list[ClipMeta], to: Path) -> list[ClipMeta]:
    shutil.copytree(clips[0].path.parent, to)
    return [replace(clip, path=to / clip.path.name) for clip in clips]


def test_neither_order_nor_place_counts(clips: list[ClipMeta], tmp_path: Path) -> None:
    told = clips_fingerprint(clips)
    assert clips_fingerprint(clips[::-1]) == told
    assert clips_fingerprint(moved(clips, tmp_path / "two")) == told
    assert clips_fingerprint(clips[1:]) != told


@pytest.mark.parametrize("place", [0, 0.5, 1])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_other_sound_of_the_same_name_and_size_is_told(
    clips: list[ClipMeta], tmp_path: Path, number: int, place: float
) -> None:
    others = moved(clips, tmp_path / "two")
    content = bytearray(others[number].path.read_bytes())
    changed = max(1, len(content) // 8)  # more than lies between two blocks of a long file
    at = round(place * (len(content) - changed))
    content[at : at + changed] = bytes(changed)
    others[number].path.write_bytes(bytes(content))
    assert clips_fingerprint(others) != clips_fingerprint(clips)


def test_what_is_known_of_a_clip_counts(clips: list[ClipMeta]) -> None:
    changes = (
        {"machine": "pump"}, {"section": "01"}, {"domain": Domain.TARGET}, {"condition": Condition.UNKNOWN},
        {"split": Split.SUPPLEMENTAL}, {"attributes": (("speed", "1"),)}, {"content": Content.NOISE},
    )  # fmt: skip
    told = {clips_fingerprint([replace(clips[2], **change), *clips[3:]]) for change in changes}
    assert len(told | {clips_fingerprint(clips[2:])}) == len(changes) + 1


def test_a_file_that_cannot_be_read_is_left_to_whoever_decodes_it(clips: list[ClipMeta]) -> None:
    told = clips_fingerprint(clips)
    clips[2].path.unlink()
    assert clips_fingerprint(clips) != told
