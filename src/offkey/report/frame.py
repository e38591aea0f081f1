"""The frame that all pages share: one look, one script, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from importlib import resources

from markupsafe import Markup, escape

__all__ = ["breakable", "render_page"]


def render_page(
    template: str, title: str, version: str, filters: Mapping[str, Callable[..., object]], **told: object
) -> str:
    """The text of a page: a template of this room, which extends `frame.html`; `told` are the names it uses.

    Control characters, which file names may hold and HTML forbids, are replaced.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    files = resources.files("offkey.report")
    script = files.joinpath("script.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("offkey", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": breakable, **filters}
    page = environment.get_template(template).render(
        title=title,
        version=version,
        style=Markup(files.joinpath("style.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **told,
    )
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", page)


def breakable(name: str) -> Markup:
    """A file name that may be broken after its underscores and slashes."""
    return Markup(re.sub(r"(?<=[_/])(?=[^_/])", "<wbr>", str(escape(name))))  # noqa: S704 - escaped first
