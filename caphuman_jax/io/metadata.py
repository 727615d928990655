"""A picture's metadata: that it is AI-generated, and all that is needed to make it again; and how
pictures are written with it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np

from caphuman_jax.errors import CapHumanError, PhotoError
from caphuman_jax.io.images import read_png_metadata, write_png

DIGITAL_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's digital source type of media made by a trained model."""
EDITED_SOURCE = (
    "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
)
"""The same of a photo in which a trained model made a part."""


def xmp(source: str = DIGITAL_SOURCE) -> str:
    """The XMP packet that says how a picture came about, for any program that reads metadata."""
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    Iptc4xmpExt:DigitalSourceType="{source}" xmp:CreatorTool="caphuman_jax"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def metadata(settings: dict | None = None) -> dict[str, str]:
    """PNG text entries: the AI-generated mark (plain and XMP) and, with settings, `parameters` for
    people and `caphuman` (JSON).
    """
    packet = xmp(source_of(settings))
    entries = {"AI-generated": "yes", "Software": "caphuman_jax", "XML:com.adobe.xmp": packet}
    if settings is not None:
        entries |= {
            "parameters": summary(settings),
            "caphuman": json.dumps(settings, ensure_ascii=False),
        }
    return entries


def source_of(settings: dict | None) -> str:
    """The digital source type of a picture with these settings."""
    return EDITED_SOURCE if settings is not None and "edit" in settings else DIGITAL_SOURCE


def summary(settings: dict) -> str:
    """A few lines for people: the prompt, then what it was made with."""
    width, height = settings["size"]
    people = []
    for person in settings["people"]:
        angles = ", ".join(
            f"{name} {person['head'][name]:.1f}" for name in ("yaw", "pitch", "roll")
        )
        people.append(f"Reference: {person['reference']['name']}, Head: {angles}")
    negative = settings["negative_prompt"]
    negative = f"Negative prompt: {negative}\n" if negative else ""
    return (
        f"{settings['prompt']}\n{negative}"
        f"Seed: {settings['seed']}, Picture: {settings['index']}, Sampler: {settings['sampler']}, "
        f"Steps: {settings['steps']}, Guidance scale: {settings['guidance_scale']:g}, "
        f"Control scale: {settings['control_scale']:g}, "
        f"Identity max timestep: {settings['identity_max_timestep']:g}, Size: {width}x{height}, "
        f"Model: {settings['model']}, Version: {settings['version']}\n"
        + "\n".join(people)
        + _edited(settings)
        + "\nAI-generated"
    )


def _edited(settings: dict) -> str:
    """The line about the photo that was edited; "" without one."""
    if "edit" not in settings:
        return ""
    edit = settings["edit"]
    mask = edit["mask"] if isinstance(edit["mask"], str) else edit["mask"]["name"]
    photo = edit["photo"]
    return (
        f"\nEdited photo: {photo['name']} (SHA-256 {photo['sha256']}), Mask: {mask}, "
        f"Denoise: {settings['denoise']:g}"
    )


def read_settings(path: str | os.PathLike) -> dict:
    """The settings in a picture that this program made. Raises PhotoError for any other file."""
    text = read_png_metadata(path).get("caphuman")
    if text is None:
        raise PhotoError(
            f"{path} does not record how it was made; only pictures made by caphuman do"
        )
    try:
        return json.loads(text)
    except ValueError as error:
        raise PhotoError(f"the settings in {path} are damaged ({error})") from error


class PictureWriter:
    """Writes images as FOLDER/picture_NN.png with their settings, each as soon as it is made.

    Numbers follow those of the pictures and sheets that the folder has, unless `overwrite`.
    """

    def __init__(self, folder: str | os.PathLike, overwrite: bool = False):
        self.folder, self.overwrite, self.paths = Path(folder), overwrite, []
        self._start: int | None = None

    def write(self, image: np.ndarray, settings: dict) -> Path:
        """Write the next image (H, W, 3) uint8 of a request with these settings, of which `index`
        is its number. Raises CapHumanError.
        """
        index = settings["first_image"] + len(self.paths)
        name = f"picture_{self.start + len(self.paths):02d}.png"
        self.paths.append(self._write(name, image, metadata({**settings, "index": index})))
        return self.paths[-1]

    def write_sheet(self, sheet: np.ndarray) -> Path:
        """Write a contact sheet: sheet.png, or sheet_NN.png with the first picture's number. Raises
        CapHumanError.
        """
        name = f"sheet_{self.start:02d}.png" if self.start else "sheet.png"
        return self._write(name, sheet, metadata())

    @property
    def start(self) -> int:
        """Number in the name of the first picture."""
        if self._start is None:
            there = os.listdir(self.folder) if self.folder.is_dir() and not self.overwrite else ()
            found = (re.fullmatch(r"(?:picture|sheet)_(\d+)\.png", name) for name in there)
            self._start = 1 + max((int(match[1]) for match in found if match), default=-1)
        return self._start

    def _write(self, name: str, image: np.ndarray, entries: dict[str, str]) -> Path:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_png(self.folder / name, image, entries)
        except OSError as error:
            raise CapHumanError(f"pictures cannot be written to {self.folder} ({error})") from error
        return self.folder / name


def checksums(model_folder: Path) -> dict[str, str]:
    """{network: SHA-256 of its weight file}, as a model folder's config.json has them."""
    return {
        name: entry["sha256"]
        for name, entry in json.loads((model_folder / "config.json").read_text())["files"].items()
    }
