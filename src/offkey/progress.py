"""How long work tells how far it is; the command line shows it as a bar, a library call stays quiet."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["Progress", "Quiet"]


@runtime_checkable
class Progress(Protocol):
    """Told by long work what it does and how far it is; every call is cheap."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """A stage of `total` steps begins, `done` of them finished by an earlier run."""

    def step(self, done: int, note: str = "") -> None:
        """`done` steps of the stage are finished; `note` is a short remark, such as the loss."""

    def say(self, text: str) -> None:
        """One line for people: a decision, a warning."""


class Quiet:
    """Says nothing."""

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Ignore it."""

    def step(self, done: int, note: str = "") -> None:
        """Ignore it."""

    def say(self, text: str) -> None:
        """Ignore it."""
