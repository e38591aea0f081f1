"""Machines that turn steadily: fan, pump and bearing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offkey.data.synthetic.faults import FaultKind
from offkey.data.synthetic.scene import Machine, Scene, Setting
from offkey.data.synthetic.signals import (
    Array,
    Number,
    convolve,
    curve_db,
    expand,
    impulses,
    lookup,
    modes,
    phase,
    shaped_noise,
    slow,
    times_of_phase,
    wavetable,
)

__all__ = ["Bearing", "Fan", "Pump", "bearing_orders"]

Turns = NDArray[np.float64]


def harmonics(
    scene: Scene, orders: Sequence[int], levels_db: Sequence[Number], highest_hz: float, *, of_fault: bool = False
) -> Array:
    """Wave table of whole orders, levels and phases scattered as this unit has them; none above Nyquist.

    `of_fault` draws from the fault's own generator, so that the sound machine stays what it is.
    """
    unit, rng = (scene.fault_rng, scene.fault_rng) if of_fault else (scene.unit, scene.rng)
    order = np.array(orders, dtype=np.float64)
    level = np.array(levels_db) + 2.0 * unit.standard_normal(len(orders))
    angle = unit.uniform(0.0, 2.0 * np.pi, len(orders))
    level = level + 0.7 * rng.standard_normal(len(orders))
    audible = (order * highest_hz < 0.46 * scene.rate) & (order < 2048)
    return wavetable(order[audible], 10.0 ** (level[audible] / 20.0), angle[audible])


def once_a_turn(scene: Scene, turns: Turns, per_turn: float, slip: float, offset: float) -> NDArray[np.float64]:
    """Scene seconds of strikes that come `per_turn` times a turn, each interval off by a fraction `slip`.

    The error adds up as rolling elements slip, so the train is only quasi-periodic (Randall &
    Antoni 2011, §3).
    """
    count = int((turns[-1] - turns[0]) * per_turn * 1.1) + 8
    steps = 1.0 + slip * scene.fault_rng.standard_normal(count)
    marks = turns[0] + (offset + np.cumsum(steps)) / per_turn
    return times_of_phase(turns, marks, scene.rate)


def rattle(scene: Scene, strikes_per_s: float, hertz: tuple[float, float, float], ring_s: float) -> Array:
    """Loose part that knocks about: irregular strikes of random force on three modes."""
    rng = scene.fault_rng
    count = int(scene.n / scene.rate * strikes_per_s * 1.5) + 4
    gaps = 0.25 / strikes_per_s + rng.exponential(0.75 / strikes_per_s, count)
    train = impulses(np.cumsum(gaps), rng.lognormal(0.0, 0.5, count), scene.n, scene.rate)
    scale = rng.uniform(0.9, 1.1)
    body = modes([f * scale for f in hertz], [ring_s, ring_s * 0.7, ring_s * 0.5], [1.0, 0.8, 0.5], scene.rate)
    return convolve(train, body)


class Fan(Machine):
    """Axial fan: blade passing (7 blades), shaft and motor lines over flow noise that the blades modulate."""

    name: ClassVar[str] = "fan"
    blades: ClassVar[int] = 7
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("spd", ("1050", "1200", "1350"), ("1125", "1275")),
        Setting("flow", ("open", "duct"), ("open", "duct")),
    )
    faults: ClassVar[tuple[FaultKind, ...]] = (
        FaultKind("imbalance"),
        FaultKind("blade_damage"),
        FaultKind("bearing_wear", 2000.0, 7500.0),
        FaultKind("clogging"),
        FaultKind("rub", 700.0, 6000.0, event_s=(0.5, 2.0)),
    )

    def render(self, scene: Scene) -> Array:
        """Sound of the fan; `spd` in turns a minute."""
        n, rate, blades = scene.n, scene.rate, self.blades
        rpm, ducted = scene.value("spd"), scene.settings["flow"] == "duct"
        shaft = scene.speed(rpm / 60.0, spread=0.006, wander=0.002)
        turns = phase(shaft, n, rate, start=scene.rng.uniform(1.0, 2.0))
        top = float(shaft.max())

        clog = scene.boost("clogging", 1.0, 4.0)
        passing = list(range(blades, 13 * blades, blades))
        levels = [-2.8 * k for k in range(len(passing))]
        blade_line = lookup(harmonics(scene, passing, levels, top), turns) * np.float32(clog * scene.jitter(0.8))
        shaft_line = lookup(harmonics(scene, [1, 2, 3, 4, 36, 72], [-4, -10, -14, -18, -16, -22], top), turns)
        hum = lookup(harmonics(scene, [2, 4, 6, 12], [0, -6, -12, -14], 50.0), scene.mains())

        worn = scene.severity("blade_damage")
        if worn is not None:  # unequal blades: energy leaves the blade orders for the orders between them
            between = [k for k in range(1, 6 * blades) if k % blades]
            size = -15.0 + 8.0 * worn
            odd = harmonics(scene, between, [size - 0.25 * k for k in between], top, of_fault=True)
            blade_line = blade_line + lookup(odd, turns)
        heavy = scene.severity("imbalance")
        if heavy is not None:  # the shaft line grows, and the rotor's orbit modulates the tip clearance
            swing = lookup(wavetable(np.array([1.0]), np.array([1.0]), np.zeros(1)), turns)
            shaft_line = shaft_line * np.float32(1.5 + 2.0 * heavy)
            blade_line = blade_line * (1.0 + np.float32(0.15 + 0.35 * heavy) * swing)

        flow = curve_db(
            ((10, -8), (120, -2), (350, 0), (900, -5), (2500, -14), (8000, -30), (50000, -50))
            if not ducted
            else (
                (10, -9),
                (90, -2),
                (180, 3),
                (270, -4),
                (540, 2),
                (900, -8),
                (2500, -19),
                (8000, -36),
                (50000, -60),
            ),
            n,
            rate,
        )
        broadband = shaped_noise(scene.rng, flow, n) * scene.flutter(0.6, 2.0)
        gust = lookup(wavetable(np.array([blades, 1.0]), np.array([0.30, 0.06]), np.zeros(2)), turns)
        if heavy is not None:
            gust = gust + np.float32(0.10 + 0.30 * heavy) * swing
        if worn is not None:
            gust = gust * (1.0 + lookup(wavetable(np.array([1.0, 2.0]), np.array([0.5, 0.3]), np.zeros(2)), turns))
        broadband *= 1.0 + gust
        strength = (rpm / 1200.0) ** 2.5 * scene.jitter(0.8)
        signal = blade_line + 0.5 * shaft_line + 0.12 * hum + np.float32(1.1 * strength) * broadband

        if scene.severity("clogging") is not None:  # stalled flow: low, unsteady rumble
            stall = curve_db(((10, -10), (60, 0), (250, -3), (700, -14), (8000, -40)), n, rate)
            wave = expand(1.0 + 0.5 * slow(scene.fault_rng, n, rate, 6.0), n)
            scene.add(signal, "clogging", shaped_noise(scene.fault_rng, stall, n) * wave, -9.0, -2.0)
        if scene.severity("bearing_wear") is not None:
            strikes = once_a_turn(scene, turns, 3.05, 0.015, scene.fault_rng.uniform())
            force = scene.fault_rng.lognormal(0.0, 0.3, len(strikes))
            body = modes([2900.0, 4200.0], [0.0025, 0.0015], [1.0, 0.7], rate)
            scene.add(signal, "bearing_wear", convolve(impulses(strikes, force, n, rate), body), -27.0, -18.0)
        if scene.severity("rub") is not None:
            strikes = once_a_turn(scene, turns, 1.0, 0.004, scene.fault_rng.uniform())
            train = impulses(strikes, scene.fault_rng.lognormal(0.0, 0.4, len(strikes)), n, rate)
            scrape = curve_db(((10, -60), (600, -30), (1500, 0), (4000, -3), (8000, -20)), n, rate)
            hiss = shaped_noise(scene.fault_rng, scrape, n)
            envelope = convolve(train, np.exp(-np.arange(int(0.05 * rate)) / (0.008 * rate)).astype(np.float32))
            scene.add(signal, "rub", hiss * envelope, -16.0, -7.0)
        return signal


class Pump(Machine):
    """Centrifugal pump: vane passing (6 vanes), motor lines, hydraulic noise; the head throttles it."""

    name: ClassVar[str] = "pump"
    vanes: ClassVar[int] = 6
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("spd", ("1450", "1750", "2050"), ("1600", "1900")),
        Setting("head", ("10m", "16m"), ("13m",)),
    )
    faults: ClassVar[tuple[FaultKind, ...]] = (
        FaultKind("cavitation", 1200.0, 7800.0),
        FaultKind("imbalance"),
        FaultKind("leakage", 2500.0, 7800.0),
        FaultKind("misalignment"),
        FaultKind("air_slug", 150.0, 2500.0, event_s=(0.6, 2.2)),
    )

    def render(self, scene: Scene) -> Array:
        """Sound of the pump; `spd` in turns a minute, `head` in metres."""
        n, rate, vanes = scene.n, scene.rate, self.vanes
        rpm, head = scene.value("spd"), scene.value("head")
        load = head / 13.0
        shaft = scene.speed(rpm / 60.0 * (1.0 - 0.01 * load), spread=0.004, wander=0.0015)
        turns = phase(shaft, n, rate, start=scene.rng.uniform(1.0, 2.0))
        top = float(shaft.max())

        vane_line = lookup(
            harmonics(scene, list(range(vanes, 9 * vanes, vanes)), [-3.5 * k for k in range(8)], top), turns
        )
        vane_line *= scene.flutter(0.7, 3.0)
        lines = [-6.0, -12.0, -15.0, -20.0, -24.0, -14.0, -15.0]
        heavy, askew = scene.boost("imbalance", 4.0, 11.0), scene.boost("misalignment", 4.0, 11.0)
        lines[0] += 20.0 * np.log10(heavy)
        for harmonic in (1, 2, 3, 4):  # misalignment: two and more beats a turn
            lines[harmonic] += 20.0 * np.log10(askew)
        shaft_line = lookup(harmonics(scene, [1, 2, 3, 4, 5, 44, 88], lines, top), turns)
        swing = 0.12 * (heavy - 1.0)
        beat = lookup(wavetable(np.array([1.0, 2.0]), np.array([swing, 0.12 * (askew - 1.0)]), np.zeros(2)), turns)
        vane_line *= 1.0 + beat

        water = curve_db(
            ((10, -16), (100, -8), (400, 0), (1000, -2), (2200, -8), (4000, -15), (8000, -27), (50000, -50)),
            n,
            rate,
        )
        throttle = shaped_noise(scene.rng, water, n) * scene.flutter(0.7, 2.0)
        throttle *= 1.0 + lookup(wavetable(np.array([float(vanes)]), np.array([0.2]), np.zeros(1)), turns) + beat
        signal = (
            np.float32(load**0.5 * scene.jitter(0.8)) * vane_line
            + 0.8 * shaft_line
            + np.float32(0.9 * (rpm / 1750.0) ** 2 / load**0.4 * scene.jitter(0.8)) * throttle
        )

        rng = scene.fault_rng
        if scene.severity("cavitation") is not None:  # bubbles collapse where a vane passes: crackle, not hiss
            count = int(n / rate * 700)
            when = np.sort(rng.uniform(0.0, n / rate, count))
            gate = np.cos(2 * np.pi * vanes * turns[(when * rate).astype(np.int64)])
            force = rng.lognormal(0.0, 0.9, count) * (0.4 + 0.6 * (gate > 0.3))
            pop = modes([2300.0, 3900.0, 6100.0], [0.0006, 0.0005, 0.0004], [0.7, 1.0, 0.8], rate)
            scene.add(signal, "cavitation", convolve(impulses(when, force, n, rate), pop), -20.0, -10.0)
        if scene.severity("leakage") is not None:
            jet = curve_db(((10, -70), (1500, -40), (3500, -4), (5500, 0), (8000, -6), (50000, -30)), n, rate)
            scene.add(signal, "leakage", shaped_noise(rng, jet, n), -24.0, -15.0)
        if scene.severity("air_slug") is not None:  # bubbles ring at their size's pitch (Minnaert)
            count = int(n / rate * 60)
            gurgle = np.zeros(n, dtype=np.float32)
            for second, hertz in zip(
                rng.uniform(0.0, n / rate, count), 300.0 * 2.0 ** rng.uniform(0.0, 2.2, count), strict=True
            ):
                ring = modes([hertz], [6.0 / hertz], [rng.lognormal(0.0, 0.5)], rate)
                first = int(second * rate)
                gurgle[first : first + len(ring)] += ring[: n - first]
            scene.add(signal, "air_slug", gurgle, -6.0, 2.0)
        return signal


def bearing_orders(balls: int, ratio: float, contact_deg: float = 0.0) -> dict[str, float]:
    """Strikes a turn of the shaft by a defect on each part, for the outer race at rest.

    `ratio` is ball over pitch diameter. Keys: outer (BPFO), inner (BPFI), ball (BSF, one race
    struck), cage (FTF).

    >>> {part: round(order, 3) for part, order in bearing_orders(9, 0.2).items()}
    {'outer': 3.6, 'inner': 5.4, 'ball': 2.4, 'cage': 0.4}
    """
    slope = ratio * float(np.cos(np.deg2rad(contact_deg)))
    return {
        "outer": balls / 2.0 * (1.0 - slope),
        "inner": balls / 2.0 * (1.0 + slope),
        "ball": (1.0 - slope**2) / (2.0 * ratio),
        "cage": (1.0 - slope) / 2.0,
    }


class Bearing(Machine):
    """Ball bearing (9 balls, d/D 0.235) on a driven shaft: shaft lines, rolling noise, defect strikes."""

    name: ClassVar[str] = "bearing"
    orders: ClassVar[dict[str, float]] = bearing_orders(9, 0.235)
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("vel", ("900", "1300", "1700"), ("1100", "1500")),
        Setting("load", ("A", "B"), ("A", "B")),
    )
    faults: ClassVar[tuple[FaultKind, ...]] = (
        FaultKind("outer_race", 1500.0, 6000.0),
        FaultKind("inner_race", 1500.0, 6000.0),
        FaultKind("ball", 1500.0, 6000.0),
        FaultKind("cage"),
        FaultKind("lubrication_loss", 2000.0, 8000.0),
        FaultKind("debris", 1500.0, 8000.0, event_s=(0.4, 1.6)),
    )

    def render(self, scene: Scene) -> Array:
        """Sound of the bearing; `vel` in turns a minute, `load` A light or B heavy."""
        n, rate = scene.n, scene.rate
        rpm, heavy = scene.value("vel"), scene.settings["load"] == "B"
        shaft = scene.speed(rpm / 60.0, spread=0.005, wander=0.001)
        turns = phase(shaft, n, rate, start=scene.rng.uniform(1.0, 2.0))
        top = float(shaft.max())
        resonance = float(scene.unit.uniform(2600.0, 3400.0)) * scene.jitter(0.08)

        lines = harmonics(scene, [1, 2, 3, 4, 6, 8, 24, 48, 72], [-8, -6, -10, -13, -14, -16, -9, -15, -19], top)
        motor = lookup(lines, turns) * scene.flutter(0.5, 2.0)
        near = np.log2(resonance / 3000.0)
        rolling = curve_db(
            (
                (10, -14),
                (150, -6),
                (600, -2),
                (1100, -6),
                (2000 * 2**near, -8),
                (3000 * 2**near, -1),
                (4200 * 2**near, -9),
                (7000, -16),
                (50000, -40),
            ),
            n,
            rate,
        )
        noise = shaped_noise(scene.rng, rolling, n) * scene.flutter(0.5, 3.0)
        cage_turns = turns * self.orders["cage"]
        noise *= 1.0 + lookup(wavetable(np.array([1.0]), np.array([0.05]), np.zeros(1)), cage_turns)
        roll = (1.25 if heavy else 1.0) * (rpm / 1300.0) ** 1.2 * scene.jitter(0.8)
        if heavy:
            motor = motor * np.float32(0.8)
        signal = motor + np.float32(0.9 * roll) * noise

        rng = scene.fault_rng
        body = modes([resonance, 1.63 * resonance], [0.0030, 0.0018], [1.0, 0.5], rate)
        zone = 0.75 if heavy else 0.6  # how much of the force the load zone gates
        for kind, part in (("outer_race", "outer"), ("inner_race", "inner"), ("ball", "ball")):
            if scene.severity(kind) is None:
                continue
            strikes = once_a_turn(scene, turns, self.orders[part], rng.uniform(0.01, 0.02), rng.uniform())
            here = turns[(strikes * rate).astype(np.int64)]
            # A defect on the outer race stays in the load zone; one on the inner race passes it once a turn
            # of the shaft, one on a ball once a turn of the cage.
            spin = {"outer": 0.0, "inner": 1.0, "ball": self.orders["cage"]}[part]
            force = 1.0 + (zone * np.cos(2 * np.pi * spin * here) if spin else 0.0)
            force = force * rng.lognormal(0.0, 0.15, len(strikes))
            hits = impulses(strikes, np.asarray(force), n, rate)
            scene.add(signal, kind, convolve(hits, body), -20.0, -8.0)
        rattling = scene.severity("cage")
        if rattling is not None:  # an unsteady cage lets the balls bunch: everything swells once a cage turn
            depth = 0.1 + 0.3 * rattling
            swell = lookup(wavetable(np.array([1.0, 2.0]), np.array([depth, 0.4 * depth]), np.zeros(2)), cage_turns)
            signal = signal * (1.0 + swell)
            strikes = once_a_turn(scene, turns, self.orders["cage"], 0.02, rng.uniform())
            hits = impulses(strikes, rng.lognormal(0.0, 0.3, len(strikes)), n, rate)
            clack = modes([900.0, 1700.0], [0.008, 0.005], [1.0, 0.6], rate)
            scene.add(signal, "cage", convolve(hits, clack), -22.0, -13.0)
        if scene.severity("lubrication_loss") is not None:  # dry contact: high hiss in short crackles
            dry = curve_db(((10, -60), (1500, -25), (3500, -4), (6000, 0), (8000, -4), (50000, -20)), n, rate)
            crackle = expand(np.exp(0.5 * slow(rng, n, rate, 25.0)), n)
            scene.add(signal, "lubrication_loss", shaped_noise(rng, dry, n) * crackle, -22.0, -13.0)
        if scene.severity("debris") is not None:
            count = int(n / rate * 120)
            when = np.sort(rng.uniform(0.0, n / rate, count))
            grit = modes([resonance * 1.2, 5600.0], [0.0012, 0.0008], [1.0, 0.9], rate)
            train = impulses(when, rng.lognormal(0.0, 0.8, count), n, rate)
            scene.add(signal, "debris", convolve(train, grit), -11.0, -2.0)
        return signal
