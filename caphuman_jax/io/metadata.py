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


_SAMPLERS = {
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "euler_a": "Euler a",
    "lcm": "LCM",
    "unipc": "UniPC",
}
"""Samplers as Stable Diffusion web UI calls them."""
_HASH = 10  # digits of a model's hash there


def summary(settings: dict) -> str:
    """How a picture was made, in the form of Stable Diffusion web UI, which many viewers read: the
    prompt, "Negative prompt: …" if there is one, and one line of "Name: value" separated by commas;
    values with commas or colons are JSON strings.
    """
    width, height = settings["size"]
    sampler = settings["sampler"]
    entries = {
        "Steps": settings["steps"],
        "Sampler": _SAMPLERS.get(sampler, sampler),
        "CFG scale": f"{settings['guidance_scale']:g}",
        "Seed": settings["seed"],
        "Size": f"{width}x{height}",
        "Model hash": settings.get("weights", {}).get("unet", "")[:_HASH],
        "Model": settings["model"],
    }
    if "edit" in settings:
        edit, mask = settings["edit"], settings["edit"]["mask"]
        entries |= {
            "Denoising strength": f"{settings['denoise']:g}",
            "Edited photo": edit["photo"]["name"],
            "Edited photo SHA-256": edit["photo"]["sha256"],
            "Mask": mask if isinstance(mask, str) else mask["name"],
        }
    entries |= {
        "Picture": settings["index"],
        "Control scale": f"{settings['control_scale']:g}",
        "Identity max timestep": f"{settings['identity_max_timestep']:g}",
    }
    for number, person in enumerate(settings["people"], 1):
        more = f" {number}" if number > 1 else ""
        # Without commas: some viewers divide at every comma, inside of quotation marks, too.
        angles = " ".join(f"{name} {person['head'][name]:.1f}" for name in ("yaw", "pitch", "roll"))
        entries |= {f"Reference{more}": person["reference"]["name"], f"Head{more}": angles}
    entries |= {"Version": f"caphuman_jax {settings['version']}", "AI-generated": "yes"}
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in entries.items() if value != "")
    negative = settings["negative_prompt"]
    negative = f"Negative prompt: {negative}\n" if negative else ""
    return f"{settings['prompt']}\n{negative}{line}"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text


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
