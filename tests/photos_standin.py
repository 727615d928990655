"""Photos of several people for `caphuman prepare`, made from the one that is shipped."""

from pathlib import Path

import numpy as np
from PIL import Image

PHOTO = Path(__file__).parents[1] / "caphuman_jax" / "assets" / "astronaut_nasa.png"


def write_people(folder: Path, count: int = 8) -> None:
    """PERSON/a.png of `count` people: the photo wider or narrower, mirrored, in other colors."""
    with Image.open(PHOTO) as opened:
        photo = opened.convert("RGB")
    for number in range(count):
        width = 512 + 40 * (number - count // 2)
        pixels = np.asarray(photo.resize((width, 512)))
        pixels = pixels[:, :: 1 if number % 2 else -1]
        pixels = (pixels * np.asarray([1, 1 - 0.04 * number, 0.7 + 0.04 * number])).astype(np.uint8)
        (folder / f"person{number}").mkdir(parents=True)
        Image.fromarray(pixels).save(folder / f"person{number}" / "a.png")
