"""The simulated machines by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from offkey.data.synthetic.cyclic import Slider, Valve
from offkey.data.synthetic.gearing import Gearbox
from offkey.data.synthetic.rotating import Bearing, Fan, Pump
from offkey.data.synthetic.scene import Machine

__all__ = ["SIMULATORS"]

SIMULATORS: Mapping[str, Machine] = MappingProxyType(
    {machine.name: machine for machine in (Fan(), Gearbox(), Bearing(), Valve(), Slider(), Pump())}
)
"""Every machine that can be simulated; the keys are `config.MACHINES`."""
