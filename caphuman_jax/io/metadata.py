"""What a picture says of itself: how it was made, enough to make it again, and that a machine made
it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np

from caphuman_jax.errors import PhotoError
from caphuman_jax.io.images import read_png_metadata, write_png

DIGITAL_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's digital source type of media made by a trained model."""

XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE}" xmp:CreatorTool="caphuman_jax"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def metadata(settings: dict | None = None) -> dict[str, str]:
    """PNG text entries: the AI-generated mark (plain and XMP) and, with settings, `parameters` for
    people and `caphuman` (JSON).
    """
    entries = {"AI-generated": "yes", "Software": "caphuman_jax", "XML:com.adobe.xmp": XMP}
    if settings is not None:
        entries |= {
            "parameters": summary(settings),
            "caphuman": json.dumps(settings, ensure_ascii=False),
        }
    return entries


def summary(settings: dict) -> str:
    """A few lines for people: the prompt, then what it was made with."""
    width, height = settings["size"]
    people = []
    for person in settings["people"]:
        angles = ", ".join(
            f"{name} {person['head'][name]:.1f}" for name in ("yaw", "pitch", "roll")
        )
        people.append(f"Reference: {person['reference']['name']}, Head: {angles}")
    negative = f"Negative prompt: {settings['negative']}\n" if settings["negative"] else ""
    return (
        f"{settings['prompt']}\n{negative}"
        f"Seed: {settings['seed']}, Picture: {settings['index']}, Sampler: {settings['sampler']}, "
        f"Steps: {settings['steps']}, "
        f"Guidance: {settings['guidance']:g}, Strength: {settings['strength']:g}, Identity until: "
        f"{settings['identity_until']:g}, "
        f"Size: {width}x{height}, Model: {settings['model']}, Version: {settings['version']}\n"
        + "\n".join(people)
        + "\nAI-generated"
    )


def read_settings(path: str | os.PathLike) -> dict:
    """The settings that a picture of ours was made with. Raises PhotoError for any other file."""
    text = read_png_metadata(path).get("caphuman")
    if text is None:
        raise PhotoError(f"{path} does not say how it was made; only pictures made by caphuman do")
    try:
        return json.loads(text)
    except ValueError as error:
        raise PhotoError(f"what {path} says of how it was made is damaged ({error})") from error


def save_pictures(
    out: str | os.PathLike,
    pictures: np.ndarray,
    settings: dict,
    sheet: np.ndarray | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write pictures (N, H, W, 3) as OUT/picture_NN.png, and the sheet; paths of the pictures, then
    of the sheet.

    Numbers go on after pictures that are there already (and the sheet is then sheet_NN.png, NN its
    first picture's number), unless `overwrite`. Raises OSError where the folder cannot be written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    there = [
        int(found[1])
        for name in os.listdir(out)
        if (found := re.fullmatch(r"(?:picture|sheet)_(\d+)\.png", name))
    ]
    start = 0 if overwrite else 1 + max(there, default=-1)
    paths = []
    for i, picture in enumerate(pictures):
        paths.append(out / f"picture_{start + i:02d}.png")
        write_png(paths[-1], picture, metadata({**settings, "index": settings["first"] + i}))
    if sheet is not None:
        paths.append(out / (f"sheet_{start:02d}.png" if start else "sheet.png"))
        write_png(paths[-1], sheet, metadata())
    return paths


def checksums(model_folder: Path) -> dict[str, str]:
    """{network: SHA-256 of its weight file}, as a model folder's config.json has them."""
    return {
        name: entry["sha256"]
        for name, entry in json.loads((model_folder / "config.json").read_text())["files"].items()
    }
