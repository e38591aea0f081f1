"""Gearbox: two stages of gears driven by a small DC motor."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from offkey.data.synthetic.faults import FaultKind
from offkey.data.synthetic.rotating import harmonics, once_a_turn, rattle
from offkey.data.synthetic.scene import Machine, Scene, Setting
from offkey.data.synthetic.signals import (
    Array,
    convolve,
    curve_db,
    expand,
    impulses,
    lookup,
    modes,
    phase,
    shaped_noise,
    slow,
    wavetable,
)

__all__ = ["Gearbox"]


class Gearbox(Machine):
    """Two-stage spur gearbox (23:57, then 17:43): meshing harmonics with sidebands at the shafts' speeds.

    The DC motor turns at a speed set by its voltage and droops under load; load presses the teeth together.
    """

    name: ClassVar[str] = "gearbox"
    teeth: ClassVar[tuple[int, int, int, int]] = (23, 57, 17, 43)
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("volt", ("10V", "12V", "14V"), ("11V", "13V")),
        Setting("wt", ("0", "50", "100"), ("0", "75")),
    )
    faults: ClassVar[tuple[FaultKind, ...]] = (
        FaultKind("tooth_crack", 600.0, 7500.0),
        FaultKind("pitting", 1000.0, 7500.0),
        FaultKind("misalignment"),
        FaultKind("looseness"),
        FaultKind("lubrication_loss", 1500.0, 8000.0),
        FaultKind("foreign_object", 500.0, 5000.0, event_s=(0.4, 1.6)),
    )

    @staticmethod
    def motor_hz(volt: float, weight: float) -> float:
        """Turns a second of the motor: 2.2 a volt, 6 % less under a load of 100."""
        return 2.2 * volt * (1.0 - 0.0006 * weight)

    def render(self, scene: Scene) -> Array:
        """Sound of the gearbox; `volt` at the motor, `wt` the load lifted."""
        n, rate = scene.n, scene.rate
        z1, z2, z3, _ = self.teeth
        volt, weight = scene.value("volt"), scene.value("wt")
        shaft = scene.speed(self.motor_hz(volt, weight), spread=0.007, wander=0.002)
        turns = phase(shaft, n, rate, start=scene.rng.uniform(1.0, 2.0))
        turns2 = turns * (z1 / z2) + 3.0
        top = float(shaft.max())
        rng = scene.fault_rng

        press = 0.55 + 0.45 * weight / 100.0
        askew = scene.severity("misalignment")
        pitted = scene.severity("pitting")
        orders: list[int] = []
        levels: list[float] = []
        for k in range(1, 9):  # meshing harmonics, each with sidebands one and two shaft speeds away
            level = -2.4 * (k - 1)
            if askew is not None and k in (2, 3):
                level += 2.0 + 4.5 * askew
            if pitted is not None and k >= 3:
                level += 1.5 + 4.0 * pitted
            side = -12.0 if askew is None else -9.0 + 3.0 * askew
            for j, drop in ((0, 0.0), (-1, side), (1, side - 1.0), (-2, side - 8.0), (2, side - 8.0)):
                orders.append(k * z1 + j)
                levels.append(level + drop)
        mesh1 = lookup(harmonics(scene, orders, levels, top), turns)
        orders2 = [k * z3 + j for k in range(1, 7) for j in (0, -1, 1)]
        levels2 = [-2.6 * k - (9.0 if j else 0.0) for k in range(6) for j in (0, -1, 1)]
        mesh2 = lookup(harmonics(scene, orders2, levels2, top * z1 / z2), turns2)
        eccentric = 0.12 if askew is None else 0.18 + 0.25 * askew
        mesh1 *= 1.0 + lookup(wavetable(np.array([1.0]), np.array([eccentric]), np.zeros(1)), turns2)
        mesh1 *= scene.flutter(0.6, 4.0)
        motor = lookup(harmonics(scene, [1, 2, 3, 12, 24, 36], [-10, -9, -14, -10, -14, -18], top), turns)

        skin = curve_db(
            ((10, -20), (120, -8), (500, -3), (1200, 0), (2400, -5), (4500, -13), (8000, -24), (50000, -50)),
            n,
            rate,
        )
        friction = shaped_noise(scene.rng, skin, n) * scene.flutter(0.5, 3.0)
        friction *= 1.0 + lookup(wavetable(np.array([float(z1), 1.0]), np.array([0.2, 0.05]), np.zeros(2)), turns)
        signal = (
            np.float32(press * scene.jitter(0.8)) * (mesh1 + 0.6 * mesh2)
            + 0.6 * motor
            + np.float32(0.75 * (volt / 12.0) ** 1.5 * scene.jitter(0.8)) * friction
        )

        cracked = scene.severity("tooth_crack")
        if cracked is not None:  # one weak tooth: the mesh gives way there, and rings, once a turn
            dip = np.exp(-0.5 * (((turns + 0.37) % 1.0 - 0.5) / (0.8 / z1)) ** 2).astype(np.float32)
            signal = signal * (1.0 + np.float32(0.3 + 0.7 * cracked) * dip)
            strikes = once_a_turn(scene, turns, 1.0, 0.001, 0.13)
            force = rng.lognormal(0.0, 0.2, len(strikes))
            ring = modes([1900.0, 3300.0, 4700.0], [0.004, 0.003, 0.002], [1.0, 0.9, 0.5], rate)
            scene.add(signal, "tooth_crack", convolve(impulses(strikes, force, n, rate), ring), -19.0, -8.0)
        if pitted is not None:  # rough flanks: noise in the rhythm of the mesh
            rough = curve_db(((10, -50), (800, -15), (2000, 0), (4500, -3), (8000, -14), (50000, -40)), n, rate)
            grind = shaped_noise(rng, rough, n)
            gate = lookup(wavetable(np.array([float(z1), 1.0]), np.array([0.6, 0.5]), np.zeros(2)), turns)
            scene.add(signal, "pitting", grind * (1.0 + gate), -22.0, -12.0)
        loose = scene.severity("looseness")
        if loose is not None:  # play in the seats: half orders, and level that jumps about
            halves = harmonics(
                scene,
                [k for k in range(1, 40) if k % 2],
                [-0.4 * k for k in range(20)],
                top / 2,
                of_fault=True,
            )
            scene.add(signal, "looseness", lookup(halves, turns / 2.0), -11.0, -2.0)
            signal *= expand(np.exp((0.05 + 0.12 * loose) * slow(rng, n, rate, 14.0)), n)
        if scene.severity("lubrication_loss") is not None:
            dry = curve_db(((10, -60), (1000, -22), (2800, -2), (5000, 0), (8000, -9), (50000, -30)), n, rate)
            hiss = shaped_noise(rng, dry, n) * expand(np.exp(0.35 * slow(rng, n, rate, 12.0)), n)
            scene.add(signal, "lubrication_loss", hiss, -22.0, -12.0)
        if scene.severity("foreign_object") is not None:
            knock = rattle(scene, 14.0, (750.0, 1600.0, 3100.0), 0.009)
            scene.add(signal, "foreign_object", knock, -6.0, 3.0)
        return signal
