"""Render pictures of a report for the README: light, dark and phone, through a Chromium that is installed.

python docs/make_pictures.py runs/demo/report.html docs/pictures
"""

from __future__ import annotations

import argparse
import html
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def shoot(page: Path, picture: Path, width: int, height: int, theme: str, scale: int = 1) -> None:
    """Take a picture of the top `height` pixels of the page, laid out `width` pixels wide.

    The page is shown in a frame because a headless window cannot be as narrow as a phone.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("no Chromium found; install one, for example with: apt-get install chromium")
    address = html.escape(f"{page.resolve().as_uri()}#theme={theme}")
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        style = f"border:0;width:{width}px;height:{height}px;display:block"
        frame.write_text(f'<body style="margin:0"><iframe style="{style}" src="{address}"></iframe>')
        window = [f"--window-size={max(width, 500)},{height}", f"--force-device-scale-factor={scale}"]
        target = Path(folder) / "picture.png"
        command = [browser, *QUIET, *window, f"--user-data-dir={folder}/profile", f"--screenshot={target}"]
        subprocess.run([*command, frame.as_uri()], check=True, capture_output=True, timeout=120)
        picture.parent.mkdir(parents=True, exist_ok=True)
        _cut(target, picture, width * scale)


def _cut(source: Path, target: Path, width: int) -> None:
    """Keep the left `width` pixels."""
    from PIL import Image

    with Image.open(source) as image:
        left = image.convert("RGB").crop((0, 0, min(width, image.width), image.height))
        left.save(target, optimize=True)


def main() -> None:
    """Read the command line and make the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="a report.html")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--height", type=int, default=1500, help="how much of the page to show, in pixels")
    given = parser.parse_args()
    shoot(given.page, given.folder / "report-light.png", 1280, given.height, "light")
    shoot(given.page, given.folder / "report-dark.png", 1280, given.height, "dark")
    shoot(given.page, given.folder / "report-phone.png", 390, given.height, "light")
    print(*sorted(str(p) for p in given.folder.glob("report-*.png")), sep="\n")


if __name__ == "__main__":
    main()
