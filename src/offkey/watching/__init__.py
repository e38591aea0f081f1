"""Watching machines over hours and weeks: confirmed alarms, drift that is noticed, windows cut from streams."""

from __future__ import annotations

from offkey.watching.confirmation import Confirmation, Hysteresis, Terms, WatchError, agree
from offkey.watching.drift import DriftMonitor
from offkey.watching.following import by_time, follow, recordings
from offkey.watching.watch import (
    AlarmBegan,
    AlarmEnded,
    Drift,
    Notice,
    Place,
    Unusable,
    Watch,
    WatchSettings,
    plain,
)
from offkey.watching.windows import PCM_FORMATS, Pcm, Window, cut, windows_of_file, windows_of_stream

__all__ = [
    "PCM_FORMATS",
    "AlarmBegan",
    "AlarmEnded",
    "Confirmation",
    "Drift",
    "DriftMonitor",
    "Hysteresis",
    "Notice",
    "Pcm",
    "Place",
    "Terms",
    "Unusable",
    "Watch",
    "WatchError",
    "WatchSettings",
    "Window",
    "agree",
    "by_time",
    "cut",
    "follow",
    "plain",
    "recordings",
    "windows_of_file",
    "windows_of_stream",
]
