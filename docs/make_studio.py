"""Makes docs/images/studio.jpg: the studio's page with the shipped portrait and a grid of heads.

python docs/make_studio.py

Needs the extras `studio` and `test`, and Chromium.
"""

import io
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PHOTO = str(files("caphuman_jax") / "assets" / "astronaut_nasa.png")
BROWSER = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
START = "from caphuman_jax.cli.app import main; raise SystemExit(main())"
STUDIO = [sys.executable, "-c", START, "studio", "--no-browser", "--port", "0"]


def main() -> None:
    studio = subprocess.Popen(STUDIO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = next(
            found[0] for line in studio.stdout if (found := re.search(r"http://[\w.:]+", line))
        )
        shot = photograph(address)
    finally:
        studio.terminate()
        studio.wait()
    out = Path(__file__).parent / "images" / "studio.jpg"
    image = (
        Image.open(io.BytesIO(shot)).convert("RGB").resize((1296, 936), Image.Resampling.LANCZOS)
    )
    image.save(out, quality=88, optimize=True)
    print(out)


def photograph(address: str) -> bytes:
    """The page's first screen as PNG, once the pictures of the grid are made."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=BROWSER
        )
        page = browser.new_page(viewport={"width": 1440, "height": 1040})
        page.set_default_timeout(300_000)
        page.goto(address)
        page.wait_for_selector("#status.ready")
        page.set_input_files("#file", PHOTO)
        page.wait_for_selector("#make:enabled")
        page.fill("#pose-yaw", "25")
        page.get_by_role("button", name="smile", exact=True).click()
        page.fill("#number", "3")
        page.fill("#seed", "3")
        page.click("#grid")
        page.locator("#grid-form button.primary").click()
        page.locator("#gallery img").nth(5).wait_for()
        page.wait_for_selector("#cancel", state="hidden")
        page.mouse.move(5, 5)
        page.wait_for_timeout(1000)
        shot = page.screenshot()
        browser.close()
    return shot


if __name__ == "__main__":
    main()
