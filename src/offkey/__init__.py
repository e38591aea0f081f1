"""offkey hears when a machine goes wrong.

>>> import offkey
>>> detector = offkey.fit("recordings/", system="auto")  # doctest: +SKIP
>>> detector.score("new.wav").is_anomalous  # doctest: +SKIP
False

Importing this package loads nothing heavy and has no side effects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from offkey.detector import Detector
    from offkey.fitting import fit

    load = Detector.load

__all__ = ["Detector", "__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    """Import the working parts when they are first asked for."""
    if name == "fit":
        from offkey.fitting import fit

        return fit
    if name in ("Detector", "load"):
        from offkey.detector import Detector

        return Detector if name == "Detector" else Detector.load
    raise AttributeError(f"module 'offkey' has no attribute {name!r}")
