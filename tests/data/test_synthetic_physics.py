"""Simulated machines sound as their mechanics say, and a fault changes what it says it changes."""

import numpy as np
import pytest
from scipy import signal as dsp

from offkey.data.synthetic.config import MACHINES
from offkey.data.synthetic.cyclic import Slider, Valve, stroke_profile, valve_strokes
from offkey.data.synthetic.faults import Fault
from offkey.data.synthetic.gearing import Gearbox
from offkey.data.synthetic.machines import SIMULATORS
from offkey.data.synthetic.rotating import Bearing, Fan, Pump, bearing_orders
from offkey.data.synthetic.scene import Scene
from offkey.data.synthetic.signals import (
    BLOCK,
    impulses,
    lookup,
    phase,
    rms,
    shaped_noise,
    slow,
    times_of_phase,
    wavetable,
)

RATE = 16000
LEAD = RATE // 2
SECONDS = 8.0
N = LEAD + int(SECONDS * RATE)

ALL_FAULTS = [(name, kind) for name in MACHINES for kind in SIMULATORS[name].faults]


def scene(machine, fault=None, seed=0, unit=1, **settings):
    values = {s.name: s.source[0] for s in machine.settings} | settings
    return Scene(
        n=N,
        rate=RATE,
        lead=LEAD,
        settings=values,
        fault=fault,
        unit=np.random.default_rng(unit),
        rng=np.random.default_rng([seed, 1]),
        fault_rng=np.random.default_rng([seed, 2]),
    )


def fault_of(kind, severity):
    """A fault at a fixed time, so that severities can be compared."""
    if kind.event_s is None:
        return Fault(kind.name, severity, 0.0, SECONDS, kind.low_hz, min(kind.high_hz, RATE / 2))
    return Fault(kind.name, severity, 3.0, 5.0, kind.low_hz, min(kind.high_hz, RATE / 2))


def spectrum(x):
    """Welch spectrum with 1 Hz bins."""
    return dsp.welch(x, RATE, "hann", nperseg=RATE, noverlap=RATE // 2)


def line(x, hertz, spread=0.02):
    """Where the strongest line near `hertz` stands, and how many dB above its surroundings."""
    f, p = spectrum(x)
    near = np.flatnonzero((f > hertz * (1 - spread)) & (f < hertz * (1 + spread)))
    around = (np.abs(f - hertz) < 0.2 * hertz + 6) & (np.abs(f - hertz) > 0.03 * hertz + 2)
    top = near[np.argmax(p[near])]
    return f[top], 10 * np.log10(p[top] / np.median(p[around]))


@pytest.mark.parametrize("rpm", ["1050", "1350"])
@pytest.mark.parametrize("flow", ["open", "duct"])
def test_fan_has_its_blade_passing_line_where_speed_puts_it(rpm, flow):
    x = Fan().render(scene(Fan(), spd=rpm, flow=flow))
    passing = Fan.blades * float(rpm) / 60
    for harmonic in (1, 2, 3):
        where, above = line(x, harmonic * passing)
        assert where == pytest.approx(harmonic * passing, rel=0.02)
        assert above > 10


def test_pump_has_its_vane_passing_line():
    x = Pump().render(scene(Pump(), spd="1750", head="16m"))
    passing = Pump.vanes * 1750 / 60
    assert line(x, passing)[1] > 10
    assert line(x, 1.31 * passing)[1] < 10


def test_gearbox_meshes_at_teeth_times_shaft_with_sidebands_one_shaft_speed_away():
    machine = Gearbox()
    x = machine.render(scene(machine, volt="12V", wt="50"))
    f, p = spectrum(x)
    expected = machine.teeth[0] * machine.motor_hz(12.0, 50.0)
    mesh, above = line(x, expected)
    assert mesh == pytest.approx(expected, rel=0.02)
    assert above > 12
    shaft = mesh / machine.teeth[0]
    floor = np.median(p[(f > mesh - 4 * shaft) & (f < mesh + 4 * shaft)])
    for side in (-1, 1):
        here = p[np.abs(f - (mesh + side * shaft)) < 2.5].max()
        assert 10 * np.log10(here / floor) > 5
        assert here < p[np.abs(f - mesh) < 2.5].max()


def test_gearbox_slows_under_load():
    machine = Gearbox()
    light, heavy = (
        line(machine.render(scene(machine, volt="12V", wt=w)), 23 * machine.motor_hz(12.0, float(w)), 0.03)[0]
        for w in ("0", "100")
    )
    assert heavy < 0.97 * light


@pytest.mark.parametrize(("kind", "part"), [("outer_race", "outer"), ("inner_race", "inner"), ("ball", "ball")])
def test_bearing_defect_shows_in_the_envelope_at_its_own_frequency(kind, part):
    machine, rpm = Bearing(), 1300
    fault = Fault(kind, 1.0, 0.0, SECONDS, 0.0, RATE / 2)
    expected = bearing_orders(9, 0.235)[part] * rpm / 60

    def envelope_line(x):
        band = dsp.sosfiltfilt(dsp.butter(4, [2200, 4000], "bandpass", fs=RATE, output="sos"), x.astype(float))
        envelope = np.abs(dsp.hilbert(band)) ** 2
        f, p = dsp.welch(envelope - envelope.mean(), RATE, nperseg=2 * RATE)
        near = np.abs(f - expected) < 0.03 * expected
        around = (np.abs(f - expected) < 0.3 * expected) & ~near
        return f[near][np.argmax(p[near])], p[near].max() / np.median(p[around])

    where, faulty = envelope_line(machine.render(scene(machine, fault, vel="1300")))
    _, healthy = envelope_line(machine.render(scene(machine, vel="1300")))
    assert where == pytest.approx(expected, rel=0.03)
    assert faulty > 15
    assert healthy < 8


def test_bearing_orders_follow_from_the_kinematics():
    # Cage and ball speeds summed by hand for one turn of the shaft: contact points roll without slip.
    balls, ball_mm, pitch_mm = 9, 7.94, 39.04  # a common deep-groove bearing
    orders = bearing_orders(balls, ball_mm / pitch_mm)
    race_in, race_out = (pitch_mm - ball_mm) / 2, (pitch_mm + ball_mm) / 2
    cage = race_in / (race_in + race_out)  # mean of the races' surface speeds over the pitch circle
    assert orders["cage"] == pytest.approx(cage)
    assert orders["outer"] == pytest.approx(balls * cage)
    assert orders["inner"] == pytest.approx(balls * (1 - cage))
    assert orders["ball"] == pytest.approx(cage * race_out / (ball_mm / 2))  # spin against the outer race


def count_bursts(x, band, share):
    """How often the short-time level in a band rises above a share of its peak."""
    sos = dsp.butter(4, band, "bandpass", fs=RATE, output="sos")
    level = np.abs(dsp.sosfiltfilt(sos, x.astype(float)))
    smooth = np.convolve(level, np.hanning(640) / 320, "same")
    open_ = smooth > share * np.quantile(smooth, 0.95)
    return int(np.sum(np.diff(open_.astype(int)) == 1))


@pytest.mark.parametrize(("pattern", "a_second"), [("00", 2.0), ("01", 2 / 0.9), ("02", 3 / 1.1)])
def test_valve_strokes_as_often_as_its_pattern_says(pattern, a_second):
    x = Valve().render(scene(Valve(), pat=pattern, pres="4bar"))[LEAD:]
    strokes = count_bursts(x, (2800, 6500), 0.4)
    assert strokes == pytest.approx(a_second * SECONDS, abs=1.5)


def test_valve_without_some_strokes_is_short_of_them():
    sound = {
        name: Valve().render(scene(Valve(), fault, pat="00", pres="4bar"))[LEAD:]
        for name, fault in (("all", None), ("stuck", Fault("missing_stroke", 1.0, 3.0, 5.0, 0.0, RATE / 2)))
    }
    count = {name: count_bursts(x, (2800, 6500), 0.4) for name, x in sound.items()}
    assert 3 <= count["all"] - count["stuck"] <= 4  # two seconds of half a second each


def test_valve_pattern_starts_anew_after_each_cycle():
    strokes = valve_strokes("02", 4.0)
    assert np.allclose(strokes[3:6, 0] - strokes[:3, 0], 1.1)
    assert np.all(strokes[1:, 0] > strokes[:-1].sum(axis=1))  # shut before it opens again


@pytest.mark.parametrize(("speed", "acceleration"), [("300", "3"), ("700", "6")])
def test_slider_strokes_as_often_as_its_speed_profile_says(speed, acceleration):
    x = Slider().render(scene(Slider(), vel=speed, ac=acceleration))[LEAD:]
    times, _ = stroke_profile(Slider.rail_m, float(speed) / 1000, float(acceleration), 0.12)
    assert count_bursts(x, (900, 3000), 0.3) == pytest.approx(SECONDS / times[-1], abs=1.5)


@pytest.mark.parametrize(("length", "speed", "acceleration"), [(0.25, 0.5, 3.0), (0.05, 2.0, 3.0)])
def test_a_stroke_covers_its_rail(length, speed, acceleration):
    times, speeds = stroke_profile(length, speed, acceleration, 0.1)
    assert np.trapezoid(speeds, times) == pytest.approx(length)
    assert np.all(np.diff(times) >= 0)
    assert speeds.max() <= speed


@pytest.mark.parametrize(("name", "kind"), ALL_FAULTS, ids=lambda v: v if isinstance(v, str) else v.name)
class TestEveryFault:
    def test_draws_nothing_from_the_sound_machine(self, name, kind):
        machine = SIMULATORS[name]
        sound, faulty = scene(machine), scene(machine, fault_of(kind, 0.7))
        machine.render(sound)
        machine.render(faulty)
        assert sound.rng.bit_generator.state == faulty.rng.bit_generator.state
        assert sound.unit.bit_generator.state == faulty.unit.bit_generator.state

    def test_is_louder_the_worse_it_is_and_never_drowns_the_machine(self, name, kind):
        machine = SIMULATORS[name]
        x = machine.render(scene(machine))
        change = [rms(machine.render(scene(machine, fault_of(kind, s))) - x) / rms(x) for s in (0.1, 0.9)]
        assert 0.01 < change[0] < 1.0
        # A missing stroke is worse by its length, fixed here; a late click differs as much however late it is.
        if kind.name not in ("missing_stroke", "slow_closing"):
            assert change[0] < change[1]
        assert change[1] < 1.2

    def test_stays_in_the_time_and_band_it_tells(self, name, kind):
        machine = SIMULATORS[name]
        fault = fault_of(kind, 0.8)
        x = machine.render(scene(machine))
        change = machine.render(scene(machine, fault)) - x
        if kind.event_s is not None:
            first, last = LEAD + 3 * RATE, LEAD + 5 * RATE
            outside = np.concatenate([change[:first], change[last:]])
            assert np.abs(outside).max() < 1e-4 * np.abs(x).max()
        f, p = dsp.welch(change[LEAD:], RATE, nperseg=4096)
        inside = (f >= fault.low_hz) & (f <= fault.high_hz)
        assert p[inside].sum() > 0.8 * p.sum()


@pytest.mark.parametrize("name", MACHINES)
def test_same_generators_same_sound_other_clip_other_sound(name):
    machine = SIMULATORS[name]
    x = machine.render(scene(machine))
    assert np.array_equal(x, machine.render(scene(machine)))
    y = machine.render(scene(machine, seed=1))
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.5
    # Another clip of the same unit differs in phase and chance, not in character.
    fx, fy = (10 * np.log10(dsp.welch(v[LEAD:], RATE, nperseg=1024)[1]) for v in (x, y))
    assert np.abs(fx - fy).mean() < 3.0


@pytest.mark.parametrize("name", MACHINES)
def test_settings_change_the_sound(name):
    machine = SIMULATORS[name]
    base = 10 * np.log10(dsp.welch(machine.render(scene(machine))[LEAD:], RATE, nperseg=2048)[1])
    again = 10 * np.log10(dsp.welch(machine.render(scene(machine, seed=1))[LEAD:], RATE, nperseg=2048)[1])
    for setting in machine.settings:
        for value in {*setting.source, *setting.target} - {setting.source[0]}:
            other = machine.render(scene(machine, seed=1, **{setting.name: value}))
            moved = 10 * np.log10(dsp.welch(other[LEAD:], RATE, nperseg=2048)[1])
            if name == "valve" and setting.name == "pat":
                assert rms(other) > 0  # told apart by rhythm: see the stroke counts above
            else:
                assert np.abs(moved - base).mean() > 1.05 * np.abs(again - base).mean(), (setting.name, value)


# Building blocks


def test_wavetable_is_the_sum_of_its_harmonics():
    rng = np.random.default_rng(0)
    orders, sizes, angles = np.array([1.0, 5.0, 40.0]), np.array([1.0, 0.5, 0.2]), rng.uniform(0, 6, 3)
    turns = np.cumsum(rng.uniform(0.0005, 0.002, 5000))
    slowly = sum(a * np.cos(2 * np.pi * k * turns + p) for k, a, p in zip(orders, sizes, angles, strict=True))
    assert np.abs(lookup(wavetable(orders, sizes, angles), turns) - slowly).max() < 1e-3


def test_phase_is_the_integral_of_speed():
    n = 20 * BLOCK
    hertz = np.linspace(40.0, 60.0, n // BLOCK + 2)
    turns = phase(hertz, n, RATE, start=1.0)
    slowly = 1.0 + np.concatenate(([0.0], np.cumsum(np.repeat(hertz, BLOCK)[: n - 1]))) / RATE
    assert np.allclose(turns, slowly)
    marks = np.array([1.5, 2.25, 1000.0])
    at = times_of_phase(turns, marks, RATE)
    assert len(at) == 2
    assert np.interp(at * RATE, np.arange(n), turns) == pytest.approx(marks[:2], abs=1e-4)


def test_shaped_noise_has_unit_power_and_the_asked_spectrum():
    n = 2**17
    gain = np.ones(n // 2 + 1, dtype=np.float32)
    gain[: n // 8] = 0.1
    x = shaped_noise(np.random.default_rng(3), gain, n)
    assert rms(x) == pytest.approx(1.0, rel=0.02)
    f, p = dsp.welch(x, RATE, nperseg=512)
    ratio = np.mean(p[f > 2200]) / np.mean(p[(f > 100) & (f < 1800)])
    assert ratio == pytest.approx(100, rel=0.1)


def test_slow_curves_are_standard_normal_and_slow():
    rng = np.random.default_rng(4)
    curves = np.stack([slow(rng, 8 * RATE, RATE, 2.0) for _ in range(400)])
    assert curves.mean() == pytest.approx(0.0, abs=0.03)
    assert curves.std() == pytest.approx(1.0, abs=0.03)
    power = np.abs(np.fft.rfft(curves, axis=1)) ** 2
    f = np.fft.rfftfreq(curves.shape[1], BLOCK / RATE)
    assert power[:, f > 2.05].sum() < 1e-12 * power.sum()


def test_impulses_keep_area_and_centre_between_samples():
    x = impulses(np.array([10.25, 99.5]) / RATE, np.array([2.0, 1.0]), 200, RATE)
    assert x.sum() == pytest.approx(3.0)
    assert (x[:50] * np.arange(50)).sum() / 2.0 == pytest.approx(10.25)
    assert impulses(np.array([-1.0, 5.0]), np.ones(2), 200, RATE).sum() == 0.0
