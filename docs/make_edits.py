"""Makes docs/images/edits.jpg, the shipped portrait edited, with before, mask and after in a row,
and docs/images/edits_row.jpg, before and every after in one row. In the mask, pixels of the photo
that move are gray, and what the model paints is white.

python docs/make_edits.py [--out DIR]
"""

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

import caphuman_jax
from caphuman_jax.face import align

PHOTO = str(files("caphuman_jax") / "assets" / "astronaut_nasa.png")
HEADS = (
    {"yaw": 20},
    {"pitch": 10, "expression": "neutral"},
    {"yaw": -15, "light": "left"},
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    args = parser.parse_args()
    pipe, rows = caphuman_jax.load("mini"), []
    for head in HEADS:
        result = pipe.edit(PHOTO, head=head, seed=7)
        canvas = result.canvas
        shown = 0.4 * (canvas.changed > 0) + 0.6 * canvas.mask
        mask = np.repeat(np.rint(shown * 255).astype(np.uint8)[..., None], 3, axis=-1)
        after = align.warp(result.images[0], canvas.place, mask.shape[:2], border="repeat")
        rows.append(np.concatenate([canvas.image, mask, after], axis=1))
    Image.fromarray(np.concatenate(rows)).save(args.out / "edits.jpg", quality=88)
    side = rows[0].shape[0]
    row = [rows[0][:, :side], *(row[:, 2 * side :] for row in rows)]
    Image.fromarray(np.concatenate(row, axis=1)).save(args.out / "edits_row.jpg", quality=88)


if __name__ == "__main__":
    main()
