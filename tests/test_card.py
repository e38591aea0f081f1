"""The card: a person can decide from it whether to trust a detector, and every number in it is the detector's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta
from tests.separation.stand_in import LowPass

from offkey.card import write_card
from offkey.scoring import Calibration
from offkey.separation.front_end import FrontEnd


@pytest.mark.parametrize(("n", "alpha"), [(60, 0.1), (300, 0.1), (19, 0.05), (22, 0.1)])
def test_the_true_rate_lies_where_the_beta_law_says(n: int, alpha: float) -> None:
    rank = int(np.ceil((n + 1) * (1 - alpha) - 1e-9))
    low, high = Calibration(np.arange(n), alpha=alpha).true_rate()
    assert (low, high) == pytest.approx(tuple(beta.ppf([0.025, 0.975], n + 1 - rank, rank)))
    rng = np.random.default_rng(0)  # thresholds of normal scores, whose true rate is known
    rates = [1 - Calibration(rng.random(n), alpha=alpha).threshold() for _ in range(400)]
    assert np.mean([low <= rate <= high for rate in rates]) == pytest.approx(0.95, abs=0.035)


def test_no_rate_is_promised_where_none_can_be() -> None:
    assert Calibration(np.arange(5.0), alpha=0.01).true_rate() == (0.0, 0.0)
    assert Calibration(np.arange(1.0, 50.0), "gamma").true_rate() == (0.0, 1.0)


def test_the_card_has_the_detectors_own_numbers(fitted: Callable[[str], Any]) -> None:
    detector = fitted("discriminative").detector
    card = detector.card()
    for heading in (
        "Learnt from",
        "Network",
        "Settings that matter",
        "Alarms",
        "Measured",
        "Limits",
        "Use",
        "Versions",
    ):
        assert f"\n## {heading}\n" in card
    assert "| fan | 22 | 20 | 2 | 0.7 | 2.0 | spd (" in card
    assert "| valve | 22 | 20 | 2 | 0.7 | 2.0 | none told |" in card
    assert "Recorded at 16000 Hz." in card
    assert detector.facts["asked"]["clips"][:16] in card
    low, high = detector.machines["fan"].calibration.true_rate()
    assert f"{100 * low:.2g}–{100 * high:.2g} %" in card
    assert "-30 dBFS" in card
    assert "2 of 22 normal clips are of the target domain" in card
    assert "No pretrained weights are in it." in card
    assert "rests on clips that a network learnt from" in card
    assert "rests on clips" not in fitted("logmel-knn").detector.card()


def test_nothing_is_heard_above_what_a_separator_hears(fitted: Callable[[str], Any]) -> None:
    plain = fitted("logmel-knn").detector
    audio = plain.config.audio.model_copy(update={"rate": 32000})
    separation = plain.config.separation.model_copy(update={"front_end": "s"})
    config = plain.config.model_copy(update={"audio": audio, "separation": separation})
    low = replace(plain, config=config, front_end=FrontEnd(LowPass(rate=16000)))
    card = low.card()
    assert "heard at 32000 Hz, nothing above 8 kHz" in card
    assert "What sounds above 8 kHz" in card
    card = replace(low, front_end=FrontEnd(LowPass(rate=16000), "background")).card()  # what it cannot hear is that
    assert "heard at 32000 Hz, nothing above 16 kHz" in card
    assert "What sounds above 16 kHz" in card


def test_licences_of_weights_are_told(fitted: Callable[[str], Any]) -> None:
    detector = fitted("logmel-knn").detector

    def with_encoder(**settings: Any) -> str:
        encoder = detector.config.encoder.model_copy(update=settings)
        return write_card(replace(detector, config=detector.config.model_copy(update={"encoder": encoder})))

    assert "weights mn04_as: licence MIT" in with_encoder(name="efficientat", weights=None)
    assert "a file of the user's own" in with_encoder(name="beats", weights="mine/own.pt")


def test_what_was_measured_is_told_with_its_intervals(fitted: Callable[[str], Any]) -> None:
    told = {
        "protocol": "dcase2025", "official_score": 0.615, "interval": [0.5, 0.7],
        "machines": {"fan": {
            "auc_source": 0.7, "auc_target": 0.6, "pauc": 0.55, "intervals": {"pauc": [0.5, 0.6]}, "sections": {},
            "counts": {}, "decisions": {"all": {"true_positives": 3, "false_positives": 1, "false_negatives": 2,
                                                "true_negatives": 9}},
        }},
    }  # fmt: skip
    card = write_card(fitted("logmel-knn").detector, told, "m")
    assert "Official score (dcase2025): 61.5 [50.0, 70.0] %." in card
    assert "| fan | 70.0 | 60.0 | 55.0 [50.0, 60.0] | 1 of 10 | 3 of 5 |" in card
    assert "`offkey score m NEW.wav …`" in card
    plain = {"protocol": "plain", "official_score": 0.6, "interval": None,
             "machines": {"fan": {"auc": 0.7, "pauc": 0.5, "intervals": {}, "decisions": {}}}}  # fmt: skip
    assert "| fan | 70.0 | 50.0 | ? | ? |" in write_card(fitted("logmel-knn").detector, plain)


def test_what_was_added_later_is_told(fitted: Callable[[str], Any]) -> None:
    detector = fitted("logmel-knn").detector
    update = {"when": "2026-11-22T10:00:00", "machine": "fan", "reason": "false-alarm", "clips": list("abcdefg")}
    card = write_card(replace(detector, facts=detector.facts | {"updates": [update]}))
    assert "2026-11-22, fan: 7 called false alarms (`a`, `b`, `c`, `d`, `e`, …)" in card


def test_what_a_separator_gained_is_told(fitted: Callable[[str], Any]) -> None:
    plain = fitted("logmel-knn").detector
    separation = plain.config.separation.model_copy(update={"front_end": "s"})
    detector = replace(
        plain, config=plain.config.model_copy(update={"separation": separation}), front_end=FrontEnd(LowPass(1000.0))
    )
    assert "- through a separator first, which passes on its foreground\n" in write_card(detector)
    told = {"mode": "supervised", "before": -3.0, "after": 3.5, "mixtures": 48}
    card = write_card(replace(detector, facts=detector.facts | {"separator": told}))
    assert "on 48 mixtures of clips of the machine alone and of noise alone that it had not learnt from" in card
    assert "the machine came -3.0 -> 3.5 dB out of the noise (+6.5 dB SI-SNR)" in card
