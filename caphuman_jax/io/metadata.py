"""A picture's metadata: that it is AI-generated, and all that is needed to make it again."""

from __future__ import annotations

import json
import os
from pathlib import Path

from caphuman_jax.errors import PhotoError
from caphuman_jax.io import json_reader
from caphuman_jax.io.images import read_png_metadata

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
        return json_reader.parse(text)
    except ValueError as error:
        raise PhotoError(f"the settings in {path} are damaged ({error})") from error


def checksums(model_folder: Path) -> dict[str, str]:
    """{network: SHA-256 of its weight file}, as a model folder's config.json has them."""
    return {
        name: entry["sha256"]
        for name, entry in json_reader.read(model_folder / "config.json")["files"].items()
    }
