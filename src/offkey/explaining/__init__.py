"""Where a clip departs from normal: when, in which band, by how much, and compared with which normal clips.

`profile` is what a detector keeps of normal clips for this, `scan` finds the strangest region, `contributions` says
which bands make a score, `explanation` puts them together, `picture` draws.
"""

from __future__ import annotations

from offkey.explaining.contributions import contributions, nearest_rows
from offkey.explaining.explanation import Evidence, Explanation, explain_waveform
from offkey.explaining.picture import draw
from offkey.explaining.profile import Profile, ProfileBuilder, Spectra, profile_of
from offkey.explaining.scan import Ordinary, ordinary

__all__ = [
    "Evidence",
    "Explanation",
    "Ordinary",
    "Profile",
    "ProfileBuilder",
    "Spectra",
    "contributions",
    "draw",
    "explain_waveform",
    "nearest_rows",
    "ordinary",
    "profile_of",
]
