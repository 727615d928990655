"""Makes docs/images/astronaut.png: the shipped portrait under several heads and prompts, by the
shipped model or another.

python docs/make_astronaut.py [--model FOLDER] [--out FILE.png]
"""

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import caphuman_jax

PHOTO = str(files("caphuman_jax") / "assets" / "astronaut_nasa.png")
CELLS = [
    ("a photo of a person", {}),
    ("a photo of a person", {"yaw": -20, "pitch": 0, "roll": 0}),
    ("a photo of a person", {"yaw": 20, "pitch": 0, "roll": 0}),
    ("a photo of a person, blue background", {"roll": 15}),
    ("a photo of a person, black background", {"pitch": 12}),
    ("a photo of a person", {"expression": "neutral"}),
    ("a photo of a person", {"expression": "jawOpen=0.6"}),
    ("a photo of a person", {"light": "left"}),
    ("a photo of a person, green background", {"yaw": -10}),
    ("a photo of a person in red clothes", {"pitch": -10}),
    ("a black-and-white photo of a person", {"light": "right", "expression": "smile"}),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mini", metavar="NAME|FOLDER")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "images" / "astronaut.png"
    )
    args = parser.parse_args()
    pipe = caphuman_jax.load(args.model)
    person = pipe.person(PHOTO)
    cells = [("the photo", person.square)]
    for prompt, head in CELLS:
        asked = ", ".join(f"{k} {v}" for k, v in head.items()) or "own head"
        asked = f"b/w: {asked}" if "black-and-white" in prompt else asked
        asked = f"{prompt.partition(', ')[2]}: {asked}" if "background" in prompt else asked
        asked = f"{prompt.partition(' in ')[2]}: {asked}" if "clothes" in prompt else asked
        cells.append(
            (asked, pipe(reference=person, prompt=prompt, head=head or None, seed=7).images[0])
        )
    side, label, columns = 256, 22, 6
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + label)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (text, picture) in enumerate(cells):
        x, y = i % columns * side, i // columns * (side + label)
        sheet.paste(Image.fromarray(np.asarray(picture)).resize((side, side)), (x, y + label))
        draw.text((x + 4, y + 3), text, fill="black", font=font)
    sheet.save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
