"""The command line: one file a command group. Exit codes: 0 done, 1 some inputs could not be used, 2 wrong use."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; errors meant for people are printed without a traceback."""
    from offkey.cli.app import run

    raise SystemExit(run())
