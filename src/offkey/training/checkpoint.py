"""Checkpoints that survive a kill at any moment: two generations, each written whole or not at all.

`checkpoint.pt` is the newest state and `previous.pt` the one before; `best-<epoch>.pt` holds the weights of
the lowest held-out loss. They are read with `weights_only=True`, so a file cannot run code.
"""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from offkey.types import OffkeyError

__all__ = ["CheckpointError", "CheckpointStore", "differences", "forget"]

_NEWEST, _PREVIOUS = "checkpoint.pt", "previous.pt"
_FORMAT = 1
_NAMES = re.compile(r"(checkpoint|previous|best-\d+)\.pt|\.(checkpoint|best-\d+)\.pt\.\d+\.tmp")


class CheckpointError(OffkeyError):
    """A run cannot go on from what its folder holds."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name what differs between two trees of plain values, as `key: old -> new`.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b: 1 -> 3']
    """
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def forget(folder: Path) -> None:
    """Delete the checkpoints of runs in `folder` and below, and what killed ones were writing; other files stay."""
    for path in folder.rglob("*.*"):
        if _NAMES.fullmatch(path.name) and path.is_file():
            path.unlink()


class CheckpointStore:
    """The checkpoints of one run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any]) -> None:
        """Write a state of tensors and plain values; the newest becomes the previous one."""
        newest, previous = self.folder / _NEWEST, self.folder / _PREVIOUS
        fresh = self._write(_NEWEST, {"format": _FORMAT, **state})
        if newest.exists():
            newest.replace(previous)  # killed right here, a run goes on from the previous one
        fresh.replace(newest)
        self._settle()

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the newest whole state (None where the run never saved one) and remarks on damaged files.

        Raises CheckpointError where there are files, but not one of them is whole.
        """
        remarks: list[str] = []
        for name in (_NEWEST, _PREVIOUS):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                state = _read(path)
            except Exception as error:  # whatever a damaged file makes the reader stumble over
                remarks.append(f"{path} is damaged and was left out ({error})")
                continue
            if state.get("format") != _FORMAT:
                raise CheckpointError(
                    f"{path} was written by another version of offkey (format {state.get('format')}, "
                    f"this one reads {_FORMAT}): finish the run with that version, or delete {self.folder} "
                    "to start anew"
                )
            return state, remarks
        if remarks:
            raise CheckpointError(f"{'; '.join(remarks)}: delete {self.folder} to start anew")
        return None, remarks

    def save_best(self, epoch: int, weights: dict[str, Any]) -> None:
        """Write the weights of the best epoch; `forget_best` drops older ones once a checkpoint names it."""
        name = f"best-{epoch}.pt"
        self._write(name, {"format": _FORMAT, "module": weights}).replace(self.folder / name)

    def load_best(self, epoch: int) -> dict[str, Any]:
        """Read the weights of the best epoch; CheckpointError where they are damaged or gone."""
        path = self.folder / f"best-{epoch}.pt"
        try:
            weights: dict[str, Any] = _read(path)["module"]
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read ({error}): delete {self.folder} to train anew") from error
        return weights

    def forget_best(self, keep: int) -> None:
        """Delete the weights of all best epochs but `keep`."""
        for path in self.folder.glob("best-*.pt"):
            if path.name != f"best-{keep}.pt":
                path.unlink(missing_ok=True)

    def _write(self, name: str, state: dict[str, Any]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            with fresh.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise CheckpointError(f"{fresh} cannot be written ({error}): is the disk full?") from error
        return fresh

    def _settle(self) -> None:
        """Drop what killed writers left behind and make the renames last."""
        for stale in self.folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not every system lets a folder be opened
            handle = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch does not check the sums that its files carry
        bad = archive.testzip()
    if bad is not None:
        raise CheckpointError(f"{bad} does not fit its checksum")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
