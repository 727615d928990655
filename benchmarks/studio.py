"""`caphuman studio` as its user feels it, in headless Chromium with software rendering.

    python benchmarks/studio.py [--model mini] [--pictures 4] [--cold]

Times from the command to the usable page, from the drop of a photo to its head, from the click to
the first picture and to each next one, with the page's own settings; and frames per second while
the head turns. `--cold` begins with an empty cache of compiled programs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parents[1]
PHOTO = str(files("caphuman_jax") / "assets" / "astronaut_nasa.png")
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
TURN = """seconds => new Promise(done => {
  const canvas = document.getElementById('view'), box = canvas.getBoundingClientRect();
  const at = (type, x) => canvas.dispatchEvent(new PointerEvent(type, {
    pointerId: 1, bubbles: true, clientX: box.left + x * box.width, clientY: box.top + box.height / 2}));
  canvas.setPointerCapture = () => {};
  at('pointerdown', 0.5);
  const before = studio.view.frames, started = performance.now();
  const step = now => {
    const passed = (now - started) / 1000;
    at('pointermove', 0.5 + 0.2 * Math.sin(3 * passed));
    if (passed < seconds) return requestAnimationFrame(step);
    at('pointerup', 0.5);
    done((studio.view.frames - before) / passed);
  };
  requestAnimationFrame(step);
})"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--cold", action="store_true")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as cache:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_context(
            viewport={"width": 1440, "height": 900}, bypass_csp=True
        ).new_page()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        env |= {"CAPHUMAN_CACHE": cache} if args.cold else {}
        command = [sys.executable, "-m", "caphuman_jax.cli", "studio", "--no-browser"]
        command += ["--model", args.model, "--port", str(port)]
        started = time.monotonic()
        server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        try:
            measure(page, f"http://127.0.0.1:{port}/", started, args.pictures)
        finally:
            server.terminate()
            server.wait()
            browser.close()


def measure(page, address: str, started: float, pictures: int) -> None:
    """Print each figure as it is known."""
    since = lambda start: time.monotonic() - start
    while True:
        try:
            page.goto(address)
            break
        except Exception:  # not there yet
            time.sleep(0.05)
    page.wait_for_selector("#choose")
    print(f"page shown after {since(started):.2f} s", flush=True)
    page.wait_for_selector("#presets button", state="attached", timeout=120_000)
    print(f"model loaded, all controls there, after {since(started):.2f} s", flush=True)
    dropped = time.monotonic()
    page.set_input_files("#file", PHOTO)
    page.wait_for_function("studio.state.people.length && document.getElementById('busy').hidden")
    print(f"head shown {since(dropped):.2f} s after the drop", flush=True)
    print(f"turning: {page.evaluate(TURN, 3):.1f} frames a second", flush=True)
    page.fill("#number", str(pictures))
    clicked = time.monotonic()
    page.click("#make")
    times = []
    for count in range(1, pictures + 1):
        there = f"document.querySelectorAll('#gallery img').length >= {count}"
        page.wait_for_function(there, timeout=120_000)
        times.append(since(clicked))
    following = [b - a for a, b in zip(times, times[1:])]
    print(
        f"first picture {times[0]:.2f} s after the click, next ones "
        f"{statistics.median(following):.2f} s each"
    )


if __name__ == "__main__":
    main()
