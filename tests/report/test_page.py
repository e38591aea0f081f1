"""The page is complete in itself, says what it should, and takes anything that a run may hold."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tests.report.outline import Outline

from offkey.evaluation.protocol import ScoredClip, choose_protocol, evaluate
from offkey.report import ClipReport, EmbeddingMap, MachineReport, Reason, write_report
from offkey.types import Condition, Domain


@pytest.fixture
def page(tmp_path, report, audio):
    """A function that writes a report and reads it back, with every general law checked on it."""

    def make(*machines, **changes):
        options = {key: changes.pop(key) for key in ("examples", "max_bytes", "explain") if key in changes}
        out = write_report(report(*machines, **changes), tmp_path / "out" / "report.html", audio, **options)
        text = out.read_text(encoding="utf-8")
        assert_laws(text)
        return text

    return make


def assert_laws(text: str) -> None:
    outline = Outline(text)
    for tag, attributes in outline.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:")), f"<{tag} {name}={address[:80]}>"
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not [name for name in attributes if name.startswith("on")], f"inline handler in <{tag}>"
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    assert style
    assert not re.search(r"url\(|@import|@font-face", style)
    identifiers = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers)), "an id stands twice"
    for drawing in outline.all("svg"):
        if drawing.get("aria-hidden") != "true":
            assert drawing.get("role") == "img"
            for reference in (drawing["aria-labelledby"] or "").split():
                assert reference in identifiers
    for player in outline.all("audio"):
        assert player["aria-label"]
    for link in outline.all("a"):
        assert (link["href"] or "")[1:] in identifiers
    assert "None" not in outline.text
    assert not re.search(r"\bnan\b", outline.text)


def test_every_section_and_number_is_on_the_page(page):
    text = Outline(page()).text
    for words in (
        "Trial run",
        "Official score",
        "64.1\u202f%",
        "58.0 to 70.0\u202f%",
        "AUC source",
        "81.0\u202f%",
        "pAUC",
        "55.0\u202f%",
        "The trade-off (ROC curve)",
        "Scores and the alarm threshold",
        "Map of how the clips sound",
        "Most anomalous clips",
        "Least anomalous clips",
        "All clips",
        "Files that could not be used",
        "0 samples",
        "Learnt from",
        "Two settings are enough",
        "A note of the run",
        "seed = 0",
        "Words",
    ):
        assert words in text, words
    assert text.count("How to read it.") >= 4


def test_page_is_one_file_that_asks_for_nothing(page, tmp_path):
    text = page()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.html"]
    without_data = re.sub(r"data:[a-z]+/[a-z]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|file:|//[a-z]", without_data.replace("// ", ""))
    assert str(tmp_path) not in text


def test_policy_admits_only_the_pages_own_script(page):
    text = page()
    script = re.search(r"<script>(.*?)</script>", text, re.S)
    assert script
    assert text.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_same_data_gives_the_same_bytes(report, audio, tmp_path, machine):
    first = write_report(report(machine()), tmp_path / "a.html", audio).read_bytes()
    second = write_report(report(machine()), tmp_path / "b.html", audio).read_bytes()
    assert first == second


NASTY = "<script>alert('&')</script>\"><img src=x onerror=alert(1)>"


def test_names_and_texts_from_outside_stay_text(page, machine):
    plain = machine()
    clips = [dataclasses.replace(c, file=f"{NASTY}{i}.wav") for i, c in enumerate(plain.clips)]
    hostile = dataclasses.replace(plain, name=NASTY, clips=clips)
    other = machine("pump")
    text = page(
        hostile,
        other,
        title=NASTY,
        system=NASTY,
        problems=[(NASTY, NASTY)],
        reasons=[NASTY],
        facts=[(NASTY, NASTY)],
        notes=[NASTY],
        config_toml=NASTY,
    )
    assert "<script>alert" not in text
    outline = Outline(text)
    assert not outline.all("img")
    assert len(outline.all("script")) == 1
    assert outline.text.count(NASTY) > 2 * len(clips)


def test_names_that_are_no_text_do_not_stop_the_page(report, audio, tmp_path, machine):
    plain = machine()
    odd = ["line\nbreak\x00\x1b.wav", "byte\udcff.wav", "\u202egpj.wav"]
    clips = [dataclasses.replace(plain.clips[i], file=name, score=9.0 + i) for i, name in enumerate(odd)]
    data = report(dataclasses.replace(plain, clips=clips, embedding=None))
    content = write_report(data, tmp_path / "r.html", audio).read_bytes().decode("utf-8")
    assert_laws(content)
    assert "\x00" not in content
    assert "\x1b" not in content
    assert "\\udcff" in content


def test_without_labels_scores_and_alarms_remain(page, machine):
    text = Outline(page(machine(labelled=False, domains=(Domain.UNKNOWN,)), result=None)).text
    assert "It is not known which of these clips are faulty" in text
    assert "Scores in order" in text
    assert "if all were normal" in text
    for absent in ("The trade-off (ROC curve)", "64.1", "caught anomaly", "Caught"):
        assert absent not in text


def test_without_target_domain_one_curve_and_no_hollow_marks(page, machine):
    text = page(machine(domains=(Domain.SOURCE,)))
    assert "hollow: target" not in text
    assert "source domain: area under the curve" in text
    assert "target domain: area under the curve" not in text


def test_clips_that_cannot_be_read_say_so_in_place_of_the_player(page, machine):
    plain = machine()
    gone = dataclasses.replace(plain, clips=[dataclasses.replace(c, path=Path("gone.wav")) for c in plain.clips])
    text = page(gone)
    outline = Outline(text)
    assert not outline.all("audio")
    assert outline.text.count("could not be read: gone.wav: no such file") == 8
    nowhere = dataclasses.replace(plain, clips=[dataclasses.replace(c, path=None) for c in plain.clips])
    assert Outline(page(nowhere)).text.count("was not at hand") == 8


def test_the_strangest_clips_are_explained(page, machine):
    asked = []

    def explain(name, clip):
        asked.append((name, clip.file))
        if len(asked) == 2:
            return None
        strength = np.zeros((32, 60))
        strength[10, 20] = 1.0
        normal = np.random.default_rng(0).random((32, 16))
        return Reason(
            "0.5–0.9 s, 3–5 kHz: 9 dB above <normal>", strength, "a distance", normal,
            f"near_{len(asked)}.wav", np.linspace(0.0, 8000.0, 33), 2.0, (0.5, 0.9, 3000.0, 5000.0),
        )  # fmt: skip

    text = page(machine(), examples=2, explain=explain)
    assert [name for name, _ in asked] == ["fan", "fan"]
    shown = Outline(text).text
    assert shown.count("9 dB above <normal>") >= 1
    assert shown.count("Nearest normal clip: near_1.wav") == 1
    assert "near_2.wav" not in shown
    assert text.count("data:image/png") == 4 + 2
    assert text.count("<rect") - page(machine(), examples=2).count("<rect") == 2
    assert Outline(page(machine(), examples=2, explain=lambda *_: None)).text.count("Nearest") == 0


def test_players_hold_the_clips_own_sound(page, machine, audio):
    plain = machine()
    players = Outline(page(plain, examples=1)).all("audio")
    strangest = max(plain.clips, key=lambda c: c.score)
    kind, content = (players[0]["src"] or "").split(",", 1)
    assert kind == "data:audio/flac;base64"
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    told, _ = audio(strangest.path)
    gain = 2.0 ** round(np.log2(np.abs(heard).max() / np.abs(told).max()))
    assert rate == 16000
    assert gain >= 2
    np.testing.assert_allclose(heard, told * gain, atol=1 / 32768)


def test_tables_keep_the_order_of_scores(page, machine):
    orders = [float(v) for v in re.findall(r'data-order="([^"]+)"', page(machine()))]
    assert len(orders) == 40
    assert orders == sorted(orders, reverse=True)


def test_result_may_lack_anything(page, machine):
    page(machine(), result={})
    page(machine(), result={"machines": {"fan": {}}})
    page(machine(), result={"machines": {"fan": {"auc_source": None, "pauc": 0.5}}, "interval": None})
    page(
        machine(),
        result={"official_score": 0.5, "interval": [None, None], "machines": {"elsewhere": {"auc": 0.6}}},
    )
    page(
        machine(),
        result={"machines": {"fan": {"auc_source": float("nan"), "intervals": {"auc_source": [0.1, None]}}}},
    )


def test_what_evaluation_says_is_shown_whole(page, machine):
    machines = [machine("fan", seed=1), machine("pump", seed=2)]
    scored = [
        ScoredClip(c.file, m.name, "00", c.domain, c.condition, c.score, c.is_anomalous)
        for m in machines
        for c in m.clips
    ]
    for year in (2020, 2021, 2025):
        result = evaluate(scored, choose_protocol(year), bootstrap=20)
        text = Outline(page(*machines, result=result.to_dict())).text
        mean = result.arithmetic_mean if year == 2020 else result.harmonic_mean
        assert f"{100 * result.official_score:.1f}\u202f%" in text
        assert f"Counted by the rules of DCASE {year}." in text
        assert ("Arithmetic mean" if year == 2020 else "Harmonic mean") in text
        for value in (*mean.values(), *result.machines["pump"].values.values()):
            assert f"{100 * value:.1f}\u202f%" in text
        low, high = result.machines["fan"].intervals["auc" if year == 2020 else "auc_target"]
        assert f"{100 * low:.1f}–{100 * high:.1f}" in text
        assert f"{100 * result.machines['fan'].decisions['all'].f1:.1f}\u202f%" in text


def test_too_many_false_alarms_are_spoken_of(page, machine):
    plain = machine()
    loud = [dataclasses.replace(c, is_anomalous=True) for c in plain.clips]
    words = "so they differ from those it learnt from"
    assert words in page(dataclasses.replace(plain, clips=loud))
    quiet = [dataclasses.replace(c, is_anomalous=False) for c in plain.clips]
    assert words not in page(dataclasses.replace(plain, clips=quiet))


def test_empty_and_broken_numbers_are_borne(page, machine):
    page(MachineReport("idle", [], 1.0, 0.05))
    one = ClipReport("only.wav", None, 1.0, False)
    page(MachineReport("one", [one], 1.0, 0.05, np.array([1.0])))
    bad = ClipReport("nan.wav", None, float("nan"), False, float("nan"), Domain.SOURCE, Condition.NORMAL)
    page(MachineReport("bad", [bad, bad], 1.0, 0.05, np.array([np.nan])), result=None)
    places = EmbeddingMap(np.full((3, 2), np.nan), np.full((2, 2), np.nan))
    page(MachineReport("lost", [one, bad], 1.0, 0.05, np.ones(3), places), result=None)


def test_many_machines_and_clips_stay_within_the_size(page, machine):
    machines = [machine(f"machine{i}", clips=1500, seed=i) for i in range(15)]
    text = page(*machines, max_bytes=6_000_000)
    assert len(text.encode()) < 6_000_000
    outline = Outline(text)
    assert outline.all("audio")
    assert "further clips with lower scores are left out" in outline.text
    assert "Every machine at a glance" in outline.text


def test_a_small_page_compresses_sounds_then_leaves_them_out_and_says_so(page, machine):
    full = page(machine())
    assert full.count("data:audio/flac") == 8
    bare = len(page(machine(), examples=0).encode())
    tight = page(machine(), max_bytes=bare + 560_000)
    assert tight.count("data:audio/mpeg") == 8
    assert "stored as MP3" in tight
    tighter = page(machine(), max_bytes=bare + 360_000)
    assert 0 < tighter.count("data:audio/mpeg") < 8
    assert "without their sound" in tighter
    assert len(tighter.encode()) <= bare + 360_000
    nothing = page(machine(), max_bytes=1000)
    assert "data:" not in nothing.split("</head>")[1]
    assert "further clips are not shown" in nothing


def test_a_write_that_fails_leaves_the_old_page(report, audio, tmp_path, monkeypatch):
    out = write_report(report(), tmp_path / "r.html", audio)
    before = out.read_bytes()

    def refuse(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(report(title="Another"), out, audio)
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_machine_without_a_threshold_is_said_to_raise_no_alarm(page, machine):
    made = machine(clips=12, labelled=False)
    quiet = [dataclasses.replace(clip, is_anomalous=False) for clip in made.clips]
    text = Outline(page(dataclasses.replace(made, clips=quiet, threshold=float("inf")))).text
    assert "There is no threshold: too few normal clips stand behind" in text
    assert "about 0.0" in text  # of the alarms, none is expected by chance
    assert "would if all were normal" not in text
    assert "inf" not in re.findall(r"threshold (\S+)", text)
