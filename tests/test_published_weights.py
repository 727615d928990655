"""docs/published-weights.md from its first command to its last, on stand-ins of full size.

The commands are those of the page; only the size and the number of steps of the picture are made
smaller.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import published_standins
import pytest
import xla_flags
from PIL import Image

from caphuman_jax.face.landmark_indices import IBUG_68
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.io import metadata
from caphuman_jax.io.images import read_photo
from caphuman_jax.person.person import analyze_photo

PAGE = Path(__file__).parents[1] / "docs" / "published-weights.md"
SMALLER = "--size 64 --steps 2"

# Runs the command as `caphuman` does, and notes the most memory that it held.
PROGRAM = """import sys
from caphuman_jax.cli.app import main
code = main(sys.argv[1:])
with open("peak.txt", "a") as file, open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    file.write(f"{sys.argv[1]} {int(peak) / 1e6:.2f}\\n")
sys.exit(code)
"""


def blocks() -> list[str]:
    """The page's command blocks, without the one that names every file by its option."""
    found = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [block for block in found if "--caphuman" not in block]


def test_the_page_has_the_way():
    text = "".join(blocks())
    verbs = re.findall(r"^caphuman (\w+)", text, re.M)
    assert verbs == ["import", "check", "generate", "head"]
    assert text.startswith("export CAPHUMAN_FLAME=$PWD/downloads/flame\n")
    for name in published_standins.NAMES:
        assert f"`{name}`" in PAGE.read_text(encoding="utf-8")


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory as Linux tells it")
def test_from_the_files_to_a_picture(tmp_path, monkeypatch, astronaut_file):
    monkeypatch.setenv("CAPHUMAN_FLAME", str(tmp_path / "downloads" / "flame"))
    photo = read_photo(astronaut_file)
    published_standins.write_downloads(tmp_path / "downloads")
    monkeypatch.delenv("CAPHUMAN_FLAME")
    (tmp_path / "me.jpg").symlink_to(astronaut_file)
    (tmp_path / "run.py").write_text(PROGRAM)
    caphuman = (
        f'caphuman() {{ if [ "$1" = generate ]; then set -- "$@" {SMALLER}; fi; '
        f'"{sys.executable}" run.py "$@"; }}\n'
    )
    done = subprocess.run(
        ["bash", "-e", "-c", caphuman + "".join(blocks())],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "CAPHUMAN_CACHE": str(tmp_path / "cache"),
            "XLA_FLAGS": xla_flags.ONE_DEVICE,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout, (tmp_path / "peak.txt").read_text())
    assert done.returncode == 0, done.stdout

    for option, path in (
        ("caphuman", "caphuman.ckpt"),
        ("base", "Realistic_Vision_V3.0.ckpt"),
        ("vae", "vae-ft-mse-840000-ema-pruned.ckpt"),
        ("facenet", "20180402-114759-vggface2.pt"),
        ("face-parsing", "79999_iter.pth"),
        ("mtcnn", "onet.pt"),
        ("deca", "deca_model.tar"),
        ("flame", "flame"),
    ):
        assert re.search(rf"--{option} +downloads/{re.escape(path)}$", done.stdout, re.M), option
    assert "missing:" not in done.stdout
    assert re.search(r"^  photos +yes$", done.stdout, re.M)
    assert re.search(r"^  heads +flame, from photos by DECA", done.stdout, re.M)

    picture = tmp_path / "pictures" / "picture_00.png"
    with Image.open(picture) as opened:
        pixels, entries = np.asarray(opened), dict(opened.info)
    assert pixels.shape == (64, 64, 3) and pixels.std() > 0
    settings = metadata.read_settings(picture)
    assert settings["prompt"] == "a photo of a person reading a book"
    assert settings["people"][0]["asked_head"]["yaw"] == 15 and settings["head_by"] == "DECA"
    assert entries["AI-generated"] == "yes"

    _check_head(tmp_path, photo, done.stdout)
    peaks = [float(line.split()[1]) for line in (tmp_path / "peak.txt").read_text().splitlines()]
    assert max(peaks) < 12.5, peaks  # GB, of generate, which holds the weights in float32


def _check_head(folder, photo, said):
    """FLAME's mean head, straight ahead in the middle of DECA's crop, lies where the face is: it
    covers the inner landmarks, which are found without it, and little else.
    """
    off = float(re.search(r"landmarks off by ([\d.]+) % of the eye distance", said)[1])
    assert 3 < off < 7  # flame_standin.frontal_camera
    with Image.open(folder / "head" / "hints.png") as opened:
        hints = np.asarray(opened.convert("RGB"))
    side = hints.shape[0]
    assert hints.shape == (512, 3 * 512, 3)
    drawn = hints[:, 2 * side :].any(axis=-1)
    measured = analyze_photo(load_head(), photo, side)
    inner = measured.landmarks[list(IBUG_68[17:]), :2].astype(int)
    assert drawn[inner[:, 1], inner[:, 0]].mean() > 0.95
    middle = np.argwhere(drawn).mean(axis=0)[::-1]
    assert np.linalg.norm(middle - inner.mean(axis=0)) < 0.5 * np.ptp(inner[:, 0])
    assert 0.1 < drawn.mean() < 0.6
