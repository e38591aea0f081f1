"""What the commands print: progress bars, tables, complaints. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID

    from offkey.data.loader import Failure

__all__ = ["Bars", "complain", "print_json", "print_table", "report_failures"]


def complain(text: str) -> None:
    """One complaint on stderr."""
    sys.stderr.write(f"offkey: {text}\n")


def print_json(value: Any) -> None:
    """One JSON object on stdout, for programs; NaN and infinity, which JSON lacks, become null."""
    sys.stdout.write(json.dumps(_finite(value), ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on stdout; numbers to the right, words to the left."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for number, name in enumerate(header):
        numbers = all(not row[number] or row[number][0].isdigit() or row[number][0] in "–-" for row in rows)
        table.add_column(name, justify="right" if number and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 140).print(table)


def report_failures(failures: Sequence[Failure]) -> int:
    """Name every input that could not be used; the exit code: 1 if there was one, else 0."""
    for failure in failures:
        complain(f"{failure.path}: {failure.problem}")
    if failures:
        complain(f"{len(failures)} file{'s' * (len(failures) > 1)} could not be used (named above)")
    return 1 if failures else 0


class Bars:
    """A progress bar a stage on stderr, with the loss and the time left; plain lines where it is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._bar: RichBar | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._total = 0
        self._quiet = os.environ.get("RANK", "0") != "0"  # of torchrun's processes only the first one speaks

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Begin a stage."""
        self._stop()
        if self._quiet:
            return
        self._what, self._total = what, total
        if total <= 0:
            return
        if self._console is None and not sys.stderr.isatty():
            sys.stderr.write(f"{what} …\n")
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console or Console(stderr=True),
        )
        self._task = self._bar.add_task(what, total=total, completed=done, note="")
        self._bar.start()

    def step(self, done: int, note: str = "") -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif note and done >= self._total > 0 and not self._quiet:
            sys.stderr.write(f"{self._what}: {done}/{self._total} {note}\n")

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            sys.stderr.write(text + "\n")

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
