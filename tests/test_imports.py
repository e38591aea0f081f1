"""The way of the data has one direction: who may import whom, read from the source; and what importing costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import offkey

SOURCE = Path(offkey.__file__).parent

# A room and the rooms that it may import; `report/assemble.py` stands apart from the rest of its room.
ROOMS: dict[str, set[str]] = {
    "types": set(),
    "files": {"types"},
    "manifest": {"types", "files"},
    "progress": {"types"},
    "audio": {"types"},
    "objectives": {"types"},
    "scoring": {"types"},
    "downloading": {"types", "files", "progress"},
    "encoders": {"types", "files", "progress", "audio", "downloading"},
    "data": {"types", "audio", "files", "progress", "downloading"},
    "models": {"types", "audio", "encoders"},
    "training": {"types", "progress", "encoders", "models", "objectives", "data"},
    "separation": {"types", "files", "manifest", "progress", "audio", "data", "training", "models"},
    "evaluation": {"types", "files", "scoring"},
}
ROOMS["systems"] = {
    "types", "progress", "audio", "data", "encoders", "models", "objectives", "training", "scoring", "separation"
}  # fmt: skip
ROOMS["explaining"] = {"types", "files", "audio", "scoring"}
ROOMS["views"] = {"types", "audio", "models", "systems"}
BELOW = {*ROOMS, "card"}
ROOMS["card"] = {"encoders", "objectives", "scoring", "detector"}  # the detector for an annotation alone
ROOMS["alarms"] = {"types", "scoring", "detector"}  # here too
# keeping writes and reads it, updating extends it, when they are asked to
ROOMS["detector"] = (BELOW | {"alarms", "keeping", "updating"}) - {"evaluation"}
ROOMS["blending"] = {"types", "explaining", "scoring", "systems", "detector"}
ROOMS["ensemble"] = {
    "types", "manifest", "audio", "data", "explaining", "scoring", "systems", "separation", "blending", "detector",
    "keeping", "__init__"
}  # fmt: skip
ROOMS["keeping"] = (BELOW | {"detector", "ensemble"}) - {"evaluation", "card"}
ROOMS["references"] = (BELOW | {"detector", "__init__"}) - {"evaluation", "card"}
ROOMS["fitting"] = (BELOW | {"alarms", "detector", "ensemble", "references", "__init__"}) - {"evaluation", "card"}
ROOMS["updating"] = {
    "types", "manifest", "progress", "audio", "data", "explaining", "views", "detector", "ensemble", "references",
    "__init__"
}  # fmt: skip
ROOMS["watching"] = {"types", "files", "audio", "data", "scoring", "alarms", "detector"}
ROOMS["assessment"] = {"types", "files", "progress", "data", "detector", "evaluation"}
ROOMS["benchmarking"] = {"types", "files", "progress", "manifest", "assessment", "evaluation", "report", "__init__"}
ROOMS["reproducing"] = {
    "types", "files", "progress", "data", "encoders", "systems", "downloading", "benchmarking", "assessment",
    "evaluation", "separation", "__init__"
}  # fmt: skip
ROOMS["report"] = {"types", "files", "evaluation"}
ROOMS["report/assemble"] = {
    "report", "types", "audio", "separation", "systems", "detector", "assessment", "__init__"
}  # fmt: skip
ROOMS["runtime"] = {"types", "manifest", "audio", "data"}
ROOMS["exporting"] = {
    "types", "files", "manifest", "audio", "encoders", "models", "scoring", "systems", "views", "detector", "ensemble",
    "separation", "runtime", "__init__"
}  # fmt: skip
ROOMS["__init__"] = {"detector", "fitting"}
ROOMS["__main__"] = {"cli"}
ROOMS["cli"] = set(ROOMS) - {"__main__"}


def room_of(module: str) -> str:
    """`offkey.report.assemble` -> `report/assemble`, `offkey.data.labels` -> `data`, `offkey` -> `__init__`."""
    parts = module.split(".")[1:]
    if parts[:2] == ["report", "assemble"]:
        return "report/assemble"
    return parts[0] if parts else "__init__"


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports_of(text: str) -> list[tuple[int, str]]:
    """(line, module of ours) of every import in a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            # `from offkey import data` imports a room, `from offkey import __version__` the package itself
            rooms = (SOURCE / alias.name for alias in node.names) if base == "offkey" else ()
            taken = [place.name for place in rooms if place.is_dir() or place.with_suffix(".py").is_file()]
            found += [(node.lineno, f"{base}.{name}") for name in taken] or [(node.lineno, base)]
    return [(line, name) for line, name in found if name.split(".")[0] == "offkey"]


FILES = sorted(SOURCE.rglob("*.py"))


def test_every_file_is_in_a_room_of_the_table() -> None:
    assert {room_of(module_of(path)) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_in_one_direction(path: Path) -> None:
    here = room_of(module_of(path))
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} imports {name}"
        for line, name in imports_of(path.read_text(encoding="utf-8"))
        if room_of(name) not in ROOMS[here] | {here}
    ]
    assert not wrong, f"{here} may import {', '.join(sorted(ROOMS[here])) or 'nothing of ours'}"


def test_the_reader_of_imports_sees_all_kinds() -> None:
    text = (
        "import offkey.cli.app as x\nfrom offkey.data import labels\nfrom offkey import scoring, __version__\n"
        "import numpy\ndef f():\n    from offkey.types import Clip\n"
    )
    assert sorted(room_of(name) for _, name in imports_of(text)) == ["cli", "data", "scoring", "types"]


def test_nothing_imports_the_command_line() -> None:
    assert [room for room, allowed in ROOMS.items() if "cli" in allowed] == ["__main__"]


def test_there_are_no_drawers() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in SOURCE.rglob("*") if path.stem.lower() in drawers]


def modules_after(*arguments: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running Python with `arguments`."""
    code = (
        "import sys, runpy, contextlib, io\n"
        "sys.argv = ['offkey', *sys.argv[1:]]\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    runpy.run_module('offkey', run_name='__main__') if sys.argv[1:] else __import__('offkey')\n"
        "print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert not said.stderr
    return set(said.stdout.split())


def best_of(times: int, arguments: list[str]) -> float:
    """Least wall time of a Python process, less that of one that does nothing."""

    def once(given: list[str]) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, *given], capture_output=True, check=True)
        return time.perf_counter() - begun

    return min(once(arguments) for _ in range(times)) - min(once(["-c", ""]) for _ in range(times))


HEAVY = {"torch", "numpy", "scipy", "sklearn", "pydantic", "matplotlib", "soundfile", "typer", "jaxtyping"}


def test_importing_offkey_loads_nothing_heavy() -> None:
    assert not modules_after() & HEAVY


def test_help_loads_no_torch() -> None:
    loaded = modules_after("--help")
    assert "typer" in loaded  # it did run
    assert not loaded & {"torch", "scipy", "sklearn", "matplotlib", "soundfile"}


def test_import_takes_less_than_300_ms() -> None:
    assert best_of(3, ["-c", "import offkey"]) < 0.3


def test_help_takes_less_than_600_ms() -> None:
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)  # other work on the machine is not ours to pay for
    assert best_of(3, ["-m", "offkey", "--help"]) < (1.2 if busy else 0.6)


def test_importing_says_nothing() -> None:
    code = "import offkey, offkey.detector, offkey.fitting, offkey.cli.app"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (said.stdout, said.stderr) == (b"", b"")


def test_the_public_names_are_there() -> None:
    from offkey.detector import Detector
    from offkey.fitting import fit

    assert offkey.fit is fit
    assert offkey.load.__func__ is Detector.load.__func__  # type: ignore[attr-defined]
    assert set(offkey.__all__) == {"Detector", "__version__", "fit", "load"}
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = offkey.fitt
