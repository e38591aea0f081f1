"""The one error of this room."""

from __future__ import annotations

from offkey.types import OffkeyError

__all__ = ["ExportError"]


class ExportError(OffkeyError):
    """A detector that cannot be exported, or whose exported form does not give its scores."""
