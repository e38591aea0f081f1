"""The documentation builds without a warning, its links hold, its examples run, and nothing is missing from it."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

from offkey.systems.config import SystemConfig, preset_names

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LOOSE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each fenced block of a language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    text = page.read_text(encoding="utf-8")
    for found in fence.finditer(text):
        yield text[: found.start()].count("\n") + 1, found[1]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- the built site


class Addresses(HTMLParser):
    """What a page names (`id`), links to, and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.quotes = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value for key, value in attrs if value is not None}
        self.names |= {given[key] for key in ("id", "name") if key in given}
        self.quotes += tag == "blockquote"
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("img", "script", "iframe", "source", "video", "audio") and "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload") and "href" in given:
            self.loaded.append(given["href"])


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_every_link_in_it_holds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr

    pages: dict[Path, Addresses] = {}
    for file in site.rglob("*.html"):
        page = pages[file.resolve()] = Addresses()
        page.feed(file.read_text(encoding="utf-8"))
    assert len(pages) > 25
    wrong = []
    for file, page in pages.items():
        if file.name == "404.html":
            continue  # its links are those of the server's root
        for address in [*page.links, *page.loaded]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if target.is_dir():
                target = target / "index.html"
            missing_name = parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names
            if not target.exists() or missing_name:
                wrong.append(f"{file.relative_to(site.resolve())} -> {address}")
        # nobody who reads the documentation asks another server for anything
        wrong += [f"{file.name} loads {address}" for address in page.loaded if urlsplit(address).netloc]
        # an example in a docstring that is not shown as code turns into a quotation
        wrong += [f"{file.name} has an example that is no code"] * page.quotes
    assert not wrong


@pytest.mark.parametrize("page", [*LOOSE, *PAGES], ids=named)
def test_relative_links_in_the_sources_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    made = {DOCS / "reference/command-line.md", DOCS / "reference/settings.md"}
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for address in found:
        parts = urlsplit(address)
        if not parts.netloc and parts.path:
            target = Path(os.path.normpath(page.parent / parts.path))
            assert target.exists() or target in made, f"{page.name}: {address}"


# ---- nothing is missing


def test_the_reference_has_every_command_and_every_option(generator: ModuleType) -> None:
    from typer.main import get_command

    from offkey.cli.app import app

    page = generator.command_line()
    chapters = {part.splitlines()[0].strip("# `"): part for part in re.split(r"^(?=##)", page, flags=re.MULTILINE)}

    def walk(command: object, name: str) -> int:
        assert name in chapters
        for parameter in command.params:  # type: ignore[attr-defined]
            for option in parameter.opts:
                assert option.lower() in chapters[name].lower(), f"{name} {option}"
        members = getattr(command, "commands", {})
        return 1 + sum(walk(member, f"{name} {below}") for below, member in members.items())

    assert walk(get_command(app), "offkey") >= 10


def test_the_reference_has_every_setting_with_a_meaning(generator: ModuleType) -> None:
    page = generator.settings()
    rows = dict(re.findall(r"^\| `([^`]+)` \|(.*)\|$", page, flags=re.MULTILINE))

    def walk(model: type, path: str) -> None:
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            key = f"{path}{name}"
            below = generator._models(field.annotation)
            for kind in below:
                walk(kind, f"{key}.")
            if not below and name != "scorers" and key not in ("model.name", "objective.name"):
                assert key in rows
                if name not in ("kind", "seed"):
                    assert rows[key].split("|")[-1].strip(), f"{key} has no description"

    walk(SystemConfig, "")
    assert all(f"### `{name}`" in page for name in preset_names())


def test_the_readme_and_the_settings_know_the_same_systems() -> None:
    table = re.findall(r"^\| `([a-z][a-z0-9-]*)`", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(table) == preset_names()


def test_every_error_of_the_program_is_in_the_reference() -> None:
    told = (DOCS / "reference/errors.md").read_text(encoding="utf-8")
    classes = re.compile(r"^class (\w+)\((?:OffkeyError|[A-Z]\w*Error)\)", re.MULTILINE)
    defined = {name for file in (ROOT / "src").rglob("*.py") for name in classes.findall(file.read_text())}
    assert len(defined) > 8
    assert {name for name in defined if f".{name}`" not in told} == set()


# ---- what is shown works


@pytest.mark.parametrize("page", [p for p in PAGES if any(">>>" in text for _, text in blocks(p, "python"))], ids=named)
@pytest.mark.slow
def test_python_examples_say_what_they_say_here(page: Path, tmp_path: Path) -> None:
    """All blocks of a page share their names and a folder, like a reader who types them in."""
    lines: list[str] = []
    for number, text in blocks(page, "python"):
        if text.startswith(">>>"):
            lines += [""] * (number - len(lines)) + text.splitlines()
    test = doctest.DocTestParser().get_doctest("\n".join(lines) + "\n", {}, page.name, str(page), 0)
    report: list[str] = []
    with contextlib.chdir(tmp_path):
        result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("page", [*LOOSE, *PAGES], ids=named)
def test_commands_shown_exist_with_their_options(page: Path) -> None:
    from typer.main import get_command

    from offkey.cli.app import app

    for language in ("sh", "console"):
        for number, text in blocks(page, language):
            for line in re.sub(r"\\\n", " ", text).splitlines():
                found = re.search(r"(?:^|\s|-m )offkey ((?:[a-z]+ ?)+)(.*)", line.split("#")[0])
                if not found or (language == "console" and not line.startswith("$ ")):
                    continue
                command, words = get_command(app), found[1].split()
                while getattr(command, "commands", None) and words:
                    assert words[0] in command.commands, f"{page.name}:{number}: offkey {found[1]}"
                    command = command.commands[words.pop(0)]
                known = {option for parameter in command.params for option in parameter.opts}
                for option in re.findall(r"(?<=\s)--[a-z0-9-]+", found[0]):
                    assert option in known, f"{page.name}:{number}: {option}"


def test_systems_shown_as_toml_are_valid() -> None:
    shown = [(page, text) for page in PAGES for _, text in blocks(page, "toml")]
    assert shown
    for page, text in shown:
        assert SystemConfig.model_validate(tomllib.loads(text)).system, page.name
