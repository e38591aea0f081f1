"""Machines that work in strokes: solenoid valve and slide rail."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offkey.data.synthetic.faults import FaultKind
from offkey.data.synthetic.rotating import rattle
from offkey.data.synthetic.scene import Machine, Scene, Setting
from offkey.data.synthetic.signals import (
    Array,
    convolve,
    curve_db,
    db,
    expand,
    impulses,
    lookup,
    modes,
    place,
    rms,
    shaped_noise,
    slow,
    wavetable,
)

__all__ = ["Slider", "Valve", "stroke_profile", "valve_strokes"]

PATTERNS: dict[str, tuple[tuple[float, float], ...]] = {
    # (seconds open, seconds shut after it), again and again
    "00": ((0.20, 0.30),),
    "01": ((0.12, 0.18), (0.30, 0.30)),
    "02": ((0.10, 0.15), (0.10, 0.15), (0.25, 0.35)),
    "03": ((0.26, 0.34),),
}


def valve_strokes(pattern: str, seconds: float, start: float = 0.0) -> NDArray[np.float64]:
    """Opening times and durations (K, 2) in seconds of a valve that follows `pattern` from `start` on.

    >>> valve_strokes("00", 1.2).round(2).tolist()
    [[0.0, 0.2], [0.5, 0.2], [1.0, 0.2]]
    """
    strokes: list[tuple[float, float]] = []
    now, step = start, 0
    cycle = PATTERNS[pattern]
    while now < seconds:
        length, pause = cycle[step % len(cycle)]
        strokes.append((now, length))
        now += length + pause
        step += 1
    return np.array(strokes, dtype=np.float64).reshape(-1, 2)


class Valve(Machine):
    """Solenoid valve: click of the armature, hiss of the flow while open, click as the spring shuts it."""

    name: ClassVar[str] = "valve"
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("pat", ("00", "01", "02"), ("00", "03")),
        Setting("pres", ("2bar", "4bar"), ("3bar",)),
    )
    faults: ClassVar[tuple[FaultKind, ...]] = (
        FaultKind("leakage", 1500.0, 8000.0),
        FaultKind("missing_stroke", event_s=(1.2, 2.4)),
        FaultKind("bounce", 300.0, 7500.0),
        FaultKind("slow_closing"),
        FaultKind("contamination", 800.0, 5000.0, event_s=(1.0, 2.5)),
    )

    def render(self, scene: Scene) -> Array:
        """Sound of the valve; `pat` its switching pattern, `pres` the pressure before it."""
        n, rate, rng = scene.n, scene.rate, scene.rng
        pattern, pressure = scene.settings["pat"], scene.value("pres")
        cycle = sum(a + b for a, b in PATTERNS[pattern])
        strokes = valve_strokes(pattern, n / rate, start=-float(rng.uniform(0.0, cycle)))
        opening = strokes[:, 0] + 0.004 * rng.standard_normal(len(strokes))
        lengths = strokes[:, 1] * (1.0 + 0.015 * rng.standard_normal(len(strokes)))
        force = 10.0 ** (0.8 * rng.standard_normal((2, len(strokes))) / 20.0)
        flow = 10.0 ** (0.7 * rng.standard_normal(len(strokes)) / 20.0)

        pitch = 1.0 + 0.08 * scene.unit.standard_normal()
        armature = [1150.0 * pitch, 2450.0 * pitch, 4300.0 * pitch, 420.0]
        click = modes(armature, [0.006, 0.004, 0.002, 0.012], [1.0, 0.9, 0.6, 0.5], rate)
        clack = modes([0.86 * f for f in armature], [0.005, 0.003, 0.002, 0.014], [0.6, 0.5, 0.3, 0.6], rate)

        keep = np.ones(len(strokes), dtype=bool)
        if scene.severity("missing_stroke") is not None and scene.fault is not None:
            first, last = (sample / rate for sample in scene.window(scene.fault))
            keep = ~((opening >= first) & (opening + lengths + 0.05 <= last))
        lag = scene.severity("slow_closing")
        shutting = lengths if lag is None else lengths * (1.0 + 0.10 + 0.20 * lag)
        soft = 1.0 if lag is None else db(-2.0 - 5.0 * lag)

        signal = impulses(opening[keep], force[0, keep], n, rate)
        signal = convolve(signal, click)
        shut = impulses((opening + shutting)[keep], soft * force[1, keep], n, rate)
        signal += convolve(shut, clack)

        tone = 700.0 * (1.0 + 0.04 * (pressure - 3.0))
        hiss = curve_db(
            ((10, -40), (300, -18), (tone, -9), (2200, -4), (3600, 0), (5200, -3), (8000, -11), (50000, -40)),
            n,
            rate,
        )
        gate = np.zeros(n, dtype=np.float32)
        for begin, length, size in zip(opening[keep], shutting[keep], flow[keep], strict=True):
            count = max(round((length + 0.06) * rate), 8)
            t = np.arange(count, dtype=np.float32) / np.float32(rate)
            rise = 1.0 - np.exp(-t / 0.012)
            fall = np.exp(-np.maximum(t - np.float32(length), 0.0) / np.float32(0.012 if lag is None else 0.035))
            surge = 1.0 + 0.6 * np.exp(-t / 0.03)
            place(gate, (size * rise * fall * surge).astype(np.float32), begin, rate)
        strength = 0.10 * (pressure / 3.0) ** 0.8 * scene.jitter(0.8)
        air = shaped_noise(rng, hiss, n)
        signal += np.float32(strength) * gate * air
        coil = lookup(wavetable(np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.5, 0.2]), np.zeros(3)), scene.mains())
        signal += np.float32(0.008 * scene.jitter(1.0)) * coil

        frng = scene.fault_rng
        if scene.severity("leakage") is not None:
            jet = curve_db(((10, -60), (1200, -22), (3000, -3), (5500, 0), (8000, -6), (50000, -30)), n, rate)
            scene.add(signal, "leakage", shaped_noise(frng, jet, n), -24.0, -14.0)
        bouncing = scene.severity("bounce")
        if bouncing is not None:  # a worn armature strikes again, weaker, after some milliseconds
            again = np.zeros(n, dtype=np.float32)
            for strike in (1, 2, 3):
                when = opening + strike * (0.011 + 0.004 * frng.random(len(opening)))
                size = force[0] * db(-3.0 * strike) * frng.lognormal(0.0, 0.3, len(opening))
                again += impulses(when, size, n, rate)
            scene.add(signal, "bounce", convolve(again, click), -7.0, 1.0)
        if scene.severity("contamination") is not None:  # dirt in the seat whistles while air flows
            whistle = 1700.0 * (1.0 + 0.15 * frng.standard_normal())
            wave = np.clip(slow(frng, n, rate, 8.0), -3.0, 3.0)
            turns = np.cumsum(expand(whistle * (1.0 + 0.01 * wave), n).astype(np.float64)) / rate
            tones = lookup(wavetable(np.array([1.0, 2.0]), np.array([1.0, 0.3]), np.zeros(2)), turns)
            scene.add(signal, "contamination", gate * tones, -10.0, 0.0)
        return signal


def stroke_profile(
    length_m: float, speed: float, acceleration: float, rest_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corner times and speeds of one stroke: speed up, run, slow down, rest.

    >>> t, v = stroke_profile(0.1, 0.2, 2.0, 0.1)
    >>> t.round(3).tolist(), v.round(3).tolist()
    ([0.0, 0.1, 0.5, 0.6, 0.7], [0.0, 0.2, 0.2, 0.0, 0.0])
    """
    reached = min(speed, float(np.sqrt(length_m * acceleration)))
    ramp = reached / acceleration
    run = max((length_m - reached * ramp) / reached, 0.0)
    times = np.cumsum([0.0, ramp, run, ramp, rest_s])
    return times, np.array([0.0, reached, reached, 0.0, 0.0])


class Slider(Machine):
    """Slide rail with belt drive: strokes to and fro, friction that follows speed, drive whine, end stops."""

    name: ClassVar[str] = "slider"
    rail_m: ClassVar[float] = 0.25
    pitch_m: ClassVar[float] = 0.0012
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("vel", ("300", "500", "700"), ("400", "600")),
        Setting("ac", ("3", "6"), ("4",)),
    )
    faults: ClassVar[tuple[FaultKind, ...]] = (
        FaultKind("friction", 1200.0, 8000.0),
        FaultKind("belt_wear"),
        FaultKind("looseness", 250.0, 3500.0),
        FaultKind("rail_damage", 900.0, 7500.0),
        FaultKind("scrape", 700.0, 8000.0, event_s=(0.6, 2.0)),
    )

    def render(self, scene: Scene) -> Array:
        """Sound of the slide rail; `vel` in mm/s, `ac` in m/s²."""
        n, rate, rng = scene.n, scene.rate, scene.rng
        speed = scene.value("vel") / 1000.0 * (1.0 + 0.006 * float(np.clip(rng.standard_normal(), -2.5, 2.5)))
        acceleration = scene.value("ac") * (1.0 + 0.02 * float(np.clip(rng.standard_normal(), -2.5, 2.5)))
        corner, level = stroke_profile(self.rail_m, speed, acceleration, rest_s=0.12)
        period = float(corner[-1])
        strokes = int(n / rate / period) + 3
        begin = -float(rng.uniform(0.0, 2.0 * period)) + period * np.arange(strokes)
        slack = 0.003 * rng.standard_normal(strokes)
        begin = begin + slack
        coarse = np.arange(0, n + 64, 32) / rate  # 2 ms: fine enough for corners of the profile
        motion = np.zeros(len(coarse))
        toward = np.zeros(len(coarse))
        for number, start in enumerate(begin):
            inside = (coarse >= start) & (coarse < start + period)
            motion[inside] = np.interp(coarse[inside] - start, corner, level)
            toward[inside] = 1.0 if number % 2 == 0 else -1.0
        distance = np.concatenate(([0.0], np.cumsum(motion[:-1]))) * 32 / rate
        moving = np.interp(np.arange(n) / rate, coarse, motion / 0.5).astype(np.float32)
        turns = np.interp(np.arange(n) / rate, coarse, distance / self.pitch_m) + 1.0

        rolling = curve_db(
            ((10, -20), (150, -9), (500, -2), (1200, 0), (2600, -4), (4500, -11), (8000, -21), (50000, -50)),
            n,
            rate,
        )
        friction = shaped_noise(rng, rolling, n) * moving * scene.flutter(0.8, 3.0)
        heading = np.interp(np.arange(n) / rate, coarse, toward).astype(np.float32)
        friction *= 1.0 + np.float32(0.12 * scene.unit.standard_normal()) * heading
        size = 10.0 ** (np.array([0.0, -4.0, -9.0, -10.0, -15.0]) / 20.0) * (1.0 + 0.2 * scene.unit.standard_normal(5))
        worn = scene.severity("belt_wear")
        whine = lookup(wavetable(np.array([1.0, 2.0, 3.0, 4.0, 6.0]), size, np.zeros(5)), turns)
        if worn is not None:  # teeth of the belt jump: the whine is no longer one clean tone
            wow = lookup(wavetable(np.array([1.0]), np.array([0.3 + 0.5 * worn]), np.zeros(1)), turns / 13.0)
            whine = whine * (1.0 + wow)
        drive = whine * np.sqrt(moving)
        signal = np.float32(1.2 * scene.jitter(0.8)) * friction + np.float32(0.5 * scene.jitter(0.8)) * drive

        ends = begin + corner[3]
        force = 10.0 ** (0.8 * rng.standard_normal(strokes) / 20.0) * (acceleration / 4.0) ** 0.7
        thump = modes([95.0, 240.0, 610.0, 1350.0], [0.03, 0.02, 0.010, 0.005], [0.6, 1.0, 0.6, 0.3], rate)
        signal += np.float32(1.8) * convolve(impulses(ends, force, n, rate), thump)
        base = rms(signal)
        hum = lookup(wavetable(np.array([1.0, 2.0, 6.0]), np.array([0.6, 1.0, 0.3]), np.zeros(3)), scene.mains())
        signal += np.float32(0.05 * base * scene.jitter(1.0)) * hum

        self._add_fault(scene, signal, moving, turns, begin, ends)
        return signal

    def _add_fault(
        self,
        scene: Scene,
        signal: Array,
        moving: Array,
        turns: NDArray[np.float64],
        begin: NDArray[np.float64],
        ends: NDArray[np.float64],
    ) -> None:
        """Add what the fault sounds like to `signal` in place."""
        n, rate, rng = scene.n, scene.rate, scene.fault_rng
        if scene.severity("friction") is not None:  # dry rail: hiss, and stick-slip squeal as it slows down
            dry = curve_db(((10, -60), (900, -20), (2500, -2), (4500, 0), (8000, -7), (50000, -30)), n, rate)
            squeal = modes([2350.0, 3900.0], [0.02, 0.015], [1.0, 0.5], rate)
            turning = np.concatenate([ends - f for f in rng.uniform(0.005, 0.05, 5)])
            bursts = convolve(impulses(turning, rng.lognormal(0.0, 0.4, len(turning)), n, rate), squeal)
            hiss = shaped_noise(rng, dry, n) * moving
            mixed = hiss / np.float32(rms(hiss) + 1e-9) + 0.5 * bursts / np.float32(rms(bursts) + 1e-9)
            scene.add(signal, "friction", mixed, -15.0, -6.0)
        if scene.severity("belt_wear") is not None:
            teeth = np.floor(turns / 13.0)
            when = np.flatnonzero(np.diff(teeth) > 0) / rate
            tick = modes([520.0, 1250.0, 2900.0], [0.006, 0.004, 0.002], [1.0, 0.7, 0.5], rate)
            train = impulses(when, rng.lognormal(0.0, 0.4, len(when)), n, rate)
            scene.add(signal, "belt_wear", convolve(train, tick) * np.sqrt(moving), -16.0, -6.0)
        if scene.severity("looseness") is not None:  # the carriage strikes its stop twice and rattles on
            echo = np.concatenate([ends + 0.035 + 0.01 * rng.random(len(ends)), begin + 0.02])
            part = modes([310.0, 720.0, 1800.0], [0.018, 0.010, 0.005], [1.0, 0.8, 0.5], rate)
            train = impulses(echo, rng.lognormal(0.0, 0.3, len(echo)), n, rate)
            hits = convolve(train, part)
            chatter = rattle(scene, 30.0, (450.0, 1100.0, 2300.0), 0.006) * moving
            mixed = hits / np.float32(rms(hits) + 1e-9) + 0.5 * chatter / np.float32(rms(chatter) + 1e-9)
            scene.add(signal, "looseness", mixed, -14.0, -4.0)
        if scene.severity("rail_damage") is not None:  # a dent at one place: a click every time it is passed
            where = 0.3 + 0.4 * rng.random()
            # Slowing down mirrors speeding up: the way back passes it as late as the way there early.
            when = begin + np.where(np.arange(len(begin)) % 2 == 0, where, 1.0 - where) * (ends - begin)
            dent = modes([1300.0, 2700.0, 4900.0], [0.006, 0.004, 0.002], [1.0, 0.9, 0.6], rate)
            train = impulses(when, rng.lognormal(0.0, 0.15, len(when)), n, rate)
            scene.add(signal, "rail_damage", convolve(train, dent), -12.0, -3.0)
        if scene.severity("scrape") is not None:
            rough = curve_db(((10, -50), (600, -18), (1800, -2), (3500, 0), (8000, -9), (50000, -30)), n, rate)
            grate = shaped_noise(rng, rough, n) * expand(np.exp(0.6 * slow(rng, n, rate, 30.0)), n)
            scene.add(signal, "scrape", grate * (0.15 + moving), -7.0, 1.0)
