"""What a number was computed with: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import offkey

__all__ = ["commit", "hardware", "versions"]


def versions() -> dict[str, str]:
    """Versions of Python, offkey and what it computes with."""
    found = {"python": platform.python_version(), "offkey": offkey.__version__}
    for name in ("torch", "numpy", "scipy", "scikit-learn", "soundfile", "soxr", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the working copy that offkey runs from, with `+` where files differ from it; None elsewhere."""
    copy = Path(offkey.__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (copy / ".git").exists():
        return None
    said = [
        subprocess.run([git, "-C", str(copy), *words], capture_output=True, text=True, check=False)  # noqa: S603
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    ]
    if any(done.returncode for done in said):
        return None
    return said[0].stdout.strip() + ("+" if said[1].stdout.strip() else "")


def hardware() -> dict[str, Any]:
    """System, processors, GPUs and the interpreter."""
    import torch

    cards = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    return {"system": platform.platform(), "processors": os.cpu_count(), "gpus": cards, "executable": sys.executable}
