"""The detector's folder: whole or refused, never a pickle, and every refusal says which file and what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import offkey
import offkey.keeping
from offkey.detector import Detector, DetectorError, machine_key
from offkey.keeping import FORMAT
from offkey.manifest import MANIFEST
from offkey.types import ClipMeta, OffkeyError

SYSTEM = "discriminative"
FILES = ("config.toml", "model.safetensors", "scorer.safetensors", "calibration.json", "CARD.md")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_saved_detector_holds_what_it_says(fitted: Callable[[str], Any]) -> None:
    folder = fitted(SYSTEM).folder
    assert {path.name for path in folder.iterdir() if path.is_file()} == {*FILES, MANIFEST}
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == set(FILES)


def test_there_is_no_pickle_in_a_finished_detector(fitted: Callable[[str], Any]) -> None:
    for path in fitted(SYSTEM).folder.rglob("*"):
        if path.is_file():
            head = path.read_bytes()[:4]
            assert path.suffix not in (".pt", ".pth", ".pkl", ".npy", ".npz")
            assert not head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"))


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_refused(copied: Callable[[str], Path], name: str, where: float) -> None:
    folder = copied(SYSTEM)
    content = bytearray((folder / name).read_bytes())
    content[round(where * (len(content) - 1))] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DetectorError, match=rf"{name}.*its hash differs.*fit the detector again"):
        offkey.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(copied: Callable[[str], Path], name: str) -> None:
    folder = copied(SYSTEM)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DetectorError, match=f"{name}.*fit the detector again"):
        offkey.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copied: Callable[[str], Path], name: str) -> None:
    folder = copied(SYSTEM)
    (folder / name).unlink()
    with pytest.raises(DetectorError, match=rf"{name} is missing.*copy the whole folder"):
        offkey.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_that_keeps_silent_about_a_file_is_refused(copied: Callable[[str], Path], name: str) -> None:
    folder = copied(SYSTEM)
    edit_manifest(folder, lambda manifest: manifest["files"].pop(name))
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(DetectorError):
        offkey.load(folder)


def test_a_newer_format_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied(SYSTEM)
    edit_manifest(folder, lambda manifest: manifest.update(format=FORMAT + 1))
    with pytest.raises(DetectorError, match=rf"newer offkey \(format {FORMAT + 1}.*update offkey"):
        offkey.load(folder)


@pytest.mark.parametrize("name", ["../elsewhere.toml", "sub/config.toml", "/etc/hostname", "..", ""])
def test_a_manifest_that_names_a_file_outside_is_refused(copied: Callable[[str], Path], name: str) -> None:
    folder = copied(SYSTEM)
    (folder.parent / "elsewhere.toml").write_text("")
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: manifest["files"]["config.toml"]}))
    with pytest.raises(DetectorError, match=r"manifest.json names a file outside its folder"):
        offkey.load(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": "x", "files": {}}', '{"format": 1, "files": 3}',
             '{"format": 1, "files": {"config.toml": {}}}', '{"format": 1, "files": {"config.toml": 7}}']
)  # fmt: skip
def test_a_damaged_manifest_is_refused(copied: Callable[[str], Path], text: str) -> None:
    folder = copied("loudness")
    (folder / MANIFEST).write_text(text)
    with pytest.raises(DetectorError, match=r"manifest.json is damaged.*fit the detector again"):
        offkey.load(folder)


def test_bytes_that_are_no_text_are_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("loudness")
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DetectorError, match=r"manifest.json is damaged"):
        offkey.load(folder)


def forge(folder: Path, name: str, content: bytes) -> None:
    """Change a file and make the manifest agree, as somebody with bad intent or an editor's script would."""
    from offkey.files import sha256

    (folder / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": sha256(folder / name)}
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))


@pytest.mark.parametrize("name", ["config.toml", "model.safetensors", "scorer.safetensors", "calibration.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04\x95", b"x" * 40])
def test_nonsense_that_agrees_with_the_manifest_is_an_error_for_people(
    copied: Callable[[str], Path], name: str, content: bytes
) -> None:
    folder = copied(SYSTEM)
    forge(folder, name, content)
    with pytest.raises(OffkeyError, match=str(folder)):
        offkey.load(folder)


def test_weights_of_another_network_are_refused(copied: Callable[[str], Path], fitted: Callable[[str], Any]) -> None:
    folder = copied(SYSTEM)
    text = (folder / "config.toml").read_text()
    forge(folder, "config.toml", text.replace("width = 0.125", "width = 0.25").encode())
    with pytest.raises(DetectorError, match="damaged"):
        offkey.load(folder)


def test_a_network_without_its_weights_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied(SYSTEM)
    (folder / "model.safetensors").unlink()
    edit_manifest(folder, lambda manifest: manifest["files"].pop("model.safetensors"))
    with pytest.raises(DetectorError):
        offkey.load(folder)


def test_a_folder_without_a_detector_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match=r"holds no finished detector.*offkey fit SOURCE --out"):
        offkey.load(tmp_path)
    with pytest.raises(DetectorError, match=r"is not a folder.*offkey fit"):
        offkey.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DetectorError, match="is not a folder"):
        offkey.load(str(tmp_path / "file"))


@pytest.mark.parametrize("stop", range(5))
def test_a_save_that_is_broken_off_leaves_no_manifest(
    copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    folder = copied(SYSTEM)
    detector = offkey.load(folder)
    written: list[Path] = []
    real = sys.modules["offkey.keeping"].write_whole

    def write(path: Path, content: bytes | str) -> Path:
        if len(written) == stop:
            raise OSError(28, "No space left on device")
        written.append(path)
        return real(path, content)

    monkeypatch.setattr("offkey.keeping.write_whole", write)
    with pytest.raises(OSError, match="No space left"):
        detector.save(folder)
    assert not (folder / MANIFEST).exists()
    with pytest.raises(DetectorError, match="no finished detector"):
        offkey.load(folder)
    monkeypatch.undo()
    detector.save(folder)
    assert Detector.load(folder).machines.keys() == detector.machines.keys()


def test_a_save_that_is_killed_leaves_no_manifest(copied: Callable[[str], Path]) -> None:
    folder = copied("loudness")
    code = textwrap.dedent(
        """
        import os, signal, sys
        import offkey, offkey.keeping
        real = offkey.keeping.write_whole
        def write(path, content):
            if path.name == "calibration.json":
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path, content)
        detector = offkey.load(sys.argv[1])
        offkey.keeping.write_whole = write
        detector.save(sys.argv[1])
        """
    )
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(DetectorError, match="no finished detector"):
        offkey.load(folder)


def test_an_explanation_needs_no_network(fitted: Callable[[str], Any]) -> None:
    hiss = (0.1 * np.random.default_rng(0).standard_normal(32000)).astype(np.float32)
    explanation = fitted("loudness").detector.explain(hiss, machine="valve")
    assert np.isfinite(explanation.deviation).all()


def test_a_clip_belongs_to_its_section_before_its_machine() -> None:
    clip = ClipMeta(Path("x.wav"), "fan", "01")
    assert machine_key(clip, ["fan/01", "fan/00"]) == "fan/01"
    assert machine_key(clip, ["fan"]) == "fan"
    assert machine_key(clip, ["fan/00", "pump"]) is None


def test_the_card_tells_data_settings_and_limits(fitted: Callable[[str], Any]) -> None:
    for system in (SYSTEM, "auto", "loudness"):
        detector, folder = fitted(system)
        card = (folder / "CARD.md").read_text(encoding="utf-8")
        assert card == detector.card()
        assert f"System `{system}`" in card
        assert "| fan | 22 | 20 | 2 |" in card
        for heading in ("## Learnt from", "## Alarms", "## Limits"):
            assert heading in card
        assert ("## Network" in card) == (detector.network is not None)
        for reason in detector.reasons:
            assert reason in card
        assert "10 %" in card
        assert "nan" not in card.lower()


def test_rows_come_in_the_order_given_whatever_the_clips_length(
    fitted: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = fitted("loudness").detector
    lengths = np.random.default_rng(0).permutation(np.arange(4000, 4000 + 60 * 200, 200))
    folder = tmp_path / "fan"
    folder.mkdir()
    files, bad = [], {3, 4, 40, 59}
    for number, length in enumerate(lengths.tolist()):
        files.append(folder / f"{number}.wav")
        sound = 0.01 * (1 + number) * np.random.default_rng(number).standard_normal(length) / 60
        soundfile.write(files[-1], sound.astype(np.float32), 16000, subtype="FLOAT")
    for number in bad:
        files[number].write_bytes(b"no sound")
    asked: list[str] = []
    known = type(detector).threshold
    monkeypatch.setattr(type(detector), "threshold", lambda self, name: asked.append(name) or known(self, name))
    kept: list[tuple[int, dict[str, np.ndarray]]] = []
    told: list[int] = []
    rows = list(detector.score_files(files, batch_size=4, progress=lambda done, _: told.append(done), embeddings=kept))
    assert asked == ["fan"]  # once, not once a batch: the gamma rule searches for it
    assert [row.path for row in rows] == files
    assert {number for number, row in enumerate(rows) if row.verdict is None} == bad
    assert all(row.error for number, row in enumerate(rows) if number in bad)
    assert told == list(range(1, 61))
    assert [place for place, _ in kept] == [number for number in range(60) if number not in bad]
    for number in (0, 17, 58):
        assert rows[number].verdict == detector.score(files[number])
        assert dict(kept)[number]["loudness"] == pytest.approx(20 * np.log10(0.01 * (1 + number) / 60), abs=0.5)


def test_scoring_holds_no_more_for_more_files(fitted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from offkey.data.loader import ClipReader

    detector = fitted("loudness").detector
    wave = (0.1 * np.random.default_rng(0).standard_normal(2000)).astype(np.float32)
    monkeypatch.setattr(ClipReader, "read", lambda self, path: wave.copy())

    def peak(count: int) -> int:
        metas = [ClipMeta(Path(f"{number}.wav"), machine="fan") for number in range(count)]
        tracemalloc.start()
        scored = sum(row.verdict is not None for row in detector.score_files(metas, machine="fan", workers=1))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert scored == count
        return found

    peak(50)
    # 8 kB a clip: were sounds kept, 1800 more clips would hold 14 MB more
    assert peak(2000) - peak(200) < 1_500_000
