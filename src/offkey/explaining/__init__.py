"""Where a clip departs from normal: when, in which band, by how much, and compared with which normal clips.

`profile` is what a detector keeps of normal clips for this, `scan` finds the strangest region, `anomaly_map` is what
the system itself objects to (by `patches`, its error, or `occlusion`), `contributions` says which bands make a score,
`explanation` puts them together, `picture` draws.
"""

from __future__ import annotations

from offkey.explaining.anomaly_map import AnomalyMap, Asked, PatchGrid
from offkey.explaining.contributions import contributions, nearest_rows
from offkey.explaining.explanation import Evidence, Explanation, explain_waveform
from offkey.explaining.patches import PatchBank
from offkey.explaining.picture import draw
from offkey.explaining.profile import Profile, ProfileBuilder, ProfileError, Reach, Spectra, rows_of
from offkey.explaining.scan import Ordinary, ordinary

__all__ = [
    "AnomalyMap",
    "Asked",
    "Evidence",
    "Explanation",
    "Ordinary",
    "PatchBank",
    "PatchGrid",
    "Profile",
    "ProfileBuilder",
    "ProfileError",
    "Reach",
    "Spectra",
    "contributions",
    "draw",
    "explain_waveform",
    "nearest_rows",
    "ordinary",
    "rows_of",
]
