"""One readable file with absurd values ended a whole batch: it is a row with its reason, and the rest is judged."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import offkey as package
from offkey.audio import io
from offkey.data.loader import Failure
from offkey.detector import Detector, asked_apart
from offkey.ensemble import Ensemble
from offkey.scoring import ScoringError
from offkey.updating import update
from offkey.watching import Unusable, Watch

RATE = 16000
REFUSED = ("b_huge.wav", "c_swapped.wav", "d_denormal.wav", "e_stereo.wav")


def sound(seed: int = 0, seconds: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good clip of the fan at either end, between them files that are readable, and extreme."""
    folder = tmp_path_factory.mktemp("extreme") / "fan"
    folder.mkdir()
    good = sorted(small_set.glob("fan/test/*normal*.wav"))
    shutil.copy(good[0], folder / "a_good.wav")
    shutil.copy(good[1], folder / "z_good.wav")
    noise = sound()
    huge = noise / np.abs(noise).max()
    extreme = {
        "b_huge": np.float32(3e38) * huge,
        "c_swapped": np.nan_to_num(noise.byteswap(), posinf=1.0, neginf=1.0),  # big-endian floats read as little
        "d_denormal": np.float32(1e-40) * huge,
        "e_stereo": np.stack([np.float32(3e38) * np.abs(huge)] * 2, axis=1),
        "m_million": np.float32(1e6) * noise,
        "n_limit": np.float32(io.SOUND_LIMITS[1]) * huge,
        "o_offset": np.float32(1e3) + 0.1 * noise,
        "p_quiet": np.float32(io.SOUND_LIMITS[0] * 1.001) * huge,
        "q_integers": np.float32(2**31) * huge,
    }
    for name, samples in extreme.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="FLOAT")
    return folder


@pytest.fixture
def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any values pass the door, as they did."""
    monkeypatch.setattr(io, "SOUND_LIMITS", (0.0, math.inf))


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {Path(row["file"]).name: row for row in csv.DictReader(file)}


@pytest.fixture(params=["loudness", "logmel-knn", "baseline", "ensemble"])
def model(request: pytest.FixtureRequest, fitted: Callable[[str], Any], tmp_path: Path) -> Path:
    if request.param == "ensemble":
        return Ensemble.of([fitted("loudness").detector, fitted("logmel-knn").detector]).save(tmp_path / "ensemble")
    return Path(fitted(request.param).folder)


def test_every_file_has_a_verdict_or_a_reason(
    offkey: Callable[..., Any], model: Path, folder: Path, tmp_path: Path
) -> None:
    said = offkey("score", model, folder, "--out", tmp_path / "sc.csv")
    assert said.code == 1
    rows = table(tmp_path / "sc.csv")
    assert len(rows) == 11
    assert tuple(name for name, row in rows.items() if row["error"]) == REFUSED
    assert all(str(folder / name) in said.err for name in REFUSED)
    assert "not sound" in rows["b_huge.wav"]["error"]
    assert "silence" in rows["d_denormal.wav"]["error"]
    assert all(math.isfinite(float(row["score"])) for row in rows.values() if not row["error"])
    alone = package.load(model).score(folder / "z_good.wav").score
    assert float(rows["z_good.wav"]["score"]) == pytest.approx(alone, rel=1e-3)


def test_extreme_sound_is_explained(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], folder: Path, tmp_path: Path
) -> None:
    clips = [folder / f"{name}.wav" for name in ("b_huge", "n_limit")]
    said = offkey("explain", fitted("baseline").folder, *clips, "--out", tmp_path / "pictures", "--json")
    assert said.code == 1
    bad, *good = said.json["files"]
    assert "not sound" in bad["error"]
    assert all(Path(row["picture"]).is_file() for row in good)


def test_a_watch_goes_on(offkey: Callable[..., Any], fitted: Callable[[str], Any], folder: Path) -> None:
    said = offkey("watch", fitted("loudness").folder, folder, "--json")
    assert said.code == 1
    unusable = [json.loads(line) for line in said.out.splitlines() if '"unusable"' in line]
    assert {Path(notice["file"]).name for notice in unusable} == set(REFUSED)


def test_data_check_finds_them(offkey: Callable[..., Any], folder: Path) -> None:
    said = offkey("data", "check", folder, "--json")
    assert said.code == 1
    found = {
        Path(file).name: problem["kind"]
        for problem in said.json["problems"]
        if problem["severity"] == "error"
        for file in problem["files"]
    }
    assert found == dict.fromkeys(REFUSED, "unreadable") | {"d_denormal.wav": "silent"}


def test_an_update_and_a_fit_leave_them_out(fitted: Callable[[str], Any], folder: Path, tmp_path: Path) -> None:
    failures: list[Failure] = []
    detector = fitted("logmel-knn").detector
    grown = update(detector, sorted(folder.iterdir()), workers=0, failures=failures)
    assert tuple(failure.path.name for failure in failures) == REFUSED
    assert len(grown.machines["fan"].clips) == len(detector.machines["fan"].clips) + 7
    failures.clear()
    from offkey.fitting import fit

    made = fit(folder, "loudness", workers=0, failures=failures)
    assert {failure.path.name for failure in failures} == set(REFUSED)
    assert len(made.machines["fan"].clips) == 7


# ---- what gets through the door, and stops a scorer all the same


def test_a_clip_that_no_scorer_takes_costs_the_others_nothing(
    offkey: Callable[..., Any], fitted: Callable[[str], Any], folder: Path, tmp_path: Path, unbounded: None
) -> None:
    knn = fitted("logmel-knn")
    ensemble = Ensemble.of([knn.detector, fitted("logmel-density").detector]).save(tmp_path / "ensemble")
    for model in (knn.folder, ensemble):
        out = tmp_path / f"{model.name}.csv"
        said = offkey("score", model, folder, "--out", out)
        assert said.code == 1
        rows = table(out)
        assert rows["b_huge.wav"]["error"].startswith("cannot be judged: query: 1 of 1 embeddings hold NaN")
        assert float(rows["z_good.wav"]["score"]) == pytest.approx(
            package.load(model).score(folder / "z_good.wav").score
        )
        notices = list(Watch(package.load(model)).file(folder / "b_huge.wav"))
        assert [type(notice) for notice in notices] == [Unusable]
        assert "cannot be judged" in str(notices[0])


def test_an_evaluation_names_it_and_judges_the_rest(
    offkey: Callable[..., Any],
    copied: Callable[[str], Path],
    small_set: Path,
    folder: Path,
    tmp_path: Path,
    unbounded: None,
) -> None:
    data = Path(shutil.copytree(small_set, tmp_path / "set"))
    bad = sorted(data.glob("fan/test/*anomaly*.wav"))[0]
    shutil.copy(folder / "b_huge.wav", bad)
    said = offkey("evaluate", copied("logmel-knn"), data, "--json")
    assert said.code == 1
    assert f"{bad}: cannot be judged" in said.err
    assert set(said.json["machines"]) == {"fan", "valve"}


@pytest.mark.parametrize("which", ["*/test/*anomaly*.wav", "*/test/*.wav"])
def test_scores_are_kept_where_too_little_is_left_to_judge(
    offkey: Callable[..., Any], copied: Callable[[str], Path], small_set: Path, folder: Path, tmp_path: Path, which: str
) -> None:
    data, model = Path(shutil.copytree(small_set, tmp_path / "set")), copied("logmel-knn")
    bad = sorted(data.glob(which))
    for path in bad:
        shutil.copy(folder / "b_huge.wav", path)
    said = offkey("evaluate", model, data)
    assert said.code == 1
    assert f"{len(bad)} files could not be used" in said.err
    assert "no metric" in said.err
    assert len(table(model / "evaluation" / "scores.csv")) == 16 - len(bad)


def test_a_clip_that_cannot_be_explained_is_named(
    offkey: Callable[..., Any],
    fitted: Callable[[str], Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    explain = Detector.explain

    def fails(self: Detector, clip: Any, **keywords: Any) -> Any:
        if Path(clip).name == "a_good.wav":
            raise ScoringError("no such luck")
        return explain(self, clip, **keywords)

    monkeypatch.setattr(Detector, "explain", fails)
    model, clips = fitted("loudness").folder, [folder / "a_good.wav", folder / "z_good.wav"]
    said = offkey("explain", model, *clips, "--out", tmp_path / "pictures", "--json")
    assert said.code == 1
    bad, good = said.json["files"]
    assert bad["error"] == "cannot be explained: no such luck"
    assert bad["p_value"] > 0
    assert Path(good["picture"]).is_file()
    said = offkey("score", model, *clips, "--explain", tmp_path / "more")
    assert said.code == 1
    assert len(said.out.splitlines()) == 3
    assert f"{clips[0]}: cannot be explained: no such luck" in said.err
    assert (tmp_path / "more" / "z_good.png").is_file()


def test_an_update_leaves_out_what_has_no_finite_view(
    fitted: Callable[[str], Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offkey import updating

    detector = fitted("logmel-knn").detector

    class Spoilt(updating.Views):
        """Hears nothing finite in the second clip."""

        def __call__(self, batch: Any, *arguments: Any, **keywords: Any) -> Any:
            seen = super().__call__(batch, *arguments, **keywords)
            for array in seen.embeddings.values():
                array[batch.place.numpy() == 1] = np.nan
            return seen

    monkeypatch.setattr(updating, "Views", Spoilt)
    failures: list[Failure] = []
    clips = [folder / "a_good.wav", folder / "m_million.wav", folder / "z_good.wav"]
    grown = update(detector, clips, workers=0, failures=failures)
    assert [failure.path.name for failure in failures] == ["m_million.wav"]
    added = grown.machines["fan"]
    assert added.clips[-2:] == ("a_good.wav", "z_good.wav")
    assert len(added.profile.spectra) == len(added.clips)


def test_halves_are_asked_until_the_bad_one_is_found() -> None:
    asked: list[list[int]] = []

    def ask(places: Any) -> list[int]:
        asked.append(list(places))
        if {5, 6} & set(places):
            raise ScoringError("bad")
        return [10 * place for place in places]

    problems: dict[int, str] = {}
    told = asked_apart([1, 2, 3, 4, 5, 6, 7, 8], ask, problems)
    assert [place for places, _ in told for place in places] == [1, 2, 3, 4, 7, 8]
    assert [answer for _, answers in told for answer in answers] == [10, 20, 30, 40, 70, 80]
    assert problems == {5: "cannot be judged: bad", 6: "cannot be judged: bad"}
    assert len(asked) == 7
    assert asked_apart([], ask, problems) == []
