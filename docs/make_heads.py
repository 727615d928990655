"""Makes docs/images/heads.png: the shipped portrait's head, fitted, edited and turned, as `caphuman
head` shows it.

python docs/make_heads.py
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from caphuman_jax.head import editing, mesh_export, visualize
from caphuman_jax.head.hints import render_hints
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.person.person import analyze_photo

PHOTO = str(files("caphuman_jax") / "assets" / "astronaut_nasa.png")
SIDE, LABEL, COLUMNS = 192, 20, 6
EDITS = {
    "--yaw -35": {"yaw": -35},
    "--yaw 35 --pitch 12": {"yaw": 35, "pitch": 12},
    "--roll 20": {"roll": 20},
    "--expression surprised": {"expression": "surprised"},
    "--expression kiss": {"expression": "kiss"},
    "--light left": {"light": "left"},
}


def main() -> None:
    model = load_head()
    person = analyze_photo(model, PHOTO, 256)
    cells = [
        ("the photo", person.square),
        ("overlay.png", visualize.overlay(model, person.head, person.square, person.landmarks)),
    ]
    cells += zip(
        ("hints: normals", "albedo", "render"),
        visualize.hint_pictures(render_hints(model, person.head, 256, 256)),
    )
    edited = {"on grey": {}} | EDITS
    heads = [editing.from_numbers(model, person.head, **edit) for edit in edited.values()]
    cells += zip(edited, (picture for _, picture in mesh_export.rendered(model, heads, 256, 256)))
    cells += [
        ("turntable.gif" if i == 0 else "", picture)
        for i, picture in enumerate(mesh_export.turntable(model, person.head, 256, COLUMNS))
    ]
    sheet = Image.new("RGB", (COLUMNS * SIDE, len(cells) // COLUMNS * (SIDE + LABEL)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (text, picture) in enumerate(cells):
        x, y = i % COLUMNS * SIDE, i // COLUMNS * (SIDE + LABEL)
        sheet.paste(
            Image.fromarray(np.asarray(picture)).resize((SIDE, SIDE), Image.Resampling.LANCZOS),
            (x, y + LABEL),
        )
        pen.text((x + 4, y + 2), text, fill="black", font=font)
    out = Path(__file__).parent / "images" / "heads.png"
    sheet.save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    main()
