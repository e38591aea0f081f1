"""Run the commands that a page shows and write down what they really print.

python docs/record.py docs/tutorial/first-detector.md …

In a block that begins with ```console every line that begins with `$ ` is a command (it goes on where a line ends with
a backslash); what follows it is its output, and is replaced by what the command prints now. All blocks of a page run
one after the other in one new, empty folder. Blocks of another kind (```sh) are left alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

FENCE = "```"
_PROMPT = "$ "


def record(page: Path) -> None:
    """Replace the outputs in one page by fresh ones."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",  # the last digits do not depend on the number of cores
    }
    with tempfile.TemporaryDirectory() as folder:
        written: list[str] = []
        lines = iter(page.read_text(encoding="utf-8").splitlines())
        for line in lines:
            written.append(line)
            if line.strip() == f"{FENCE}console":
                _block(lines, written, Path(folder), environment)
    page.write_text("\n".join(written) + "\n", encoding="utf-8")


def _block(lines: object, written: list[str], folder: Path, environment: dict[str, str]) -> None:
    for line in lines:  # type: ignore[attr-defined]
        if line.strip() == FENCE:
            written.append(line)
            return
        if not line.startswith(_PROMPT):
            continue  # an old output
        command = [line.removeprefix(_PROMPT)]
        written.append(line)
        while command[-1].endswith("\\"):
            more = next(lines)  # type: ignore[call-overload]
            command.append(more)
            written.append(more)
        done = subprocess.run(
            ["bash", "-c", "\n".join(command)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        told = done.stdout.replace(str(folder), "/home/you").rstrip("\n")
        written.extend([text.rstrip() for text in told.splitlines()] if told else [])
        print(f"[{done.returncode}] {command[0]}")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        record(Path(name))
