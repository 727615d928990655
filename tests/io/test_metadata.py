"""The text that other programs read in our pictures, against a parser of its own.

The form of Stable Diffusion web UI: the last line holds "Name: value" pairs separated by commas, a
value may be a JSON string; before it the prompt and, from "Negative prompt:" on, the negative one.
"""

import json

import pytest

from caphuman_jax.diffusion.samplers import SAMPLERS
from caphuman_jax.io import metadata


def parse(text: str) -> dict:
    """Character by character, as the form is described."""
    *lines, last = text.strip().split("\n")
    prompt, negative, at = [], [], None
    for line in lines:
        if line.startswith("Negative prompt:"):
            at, line = negative, line.removeprefix("Negative prompt:").strip()
        (prompt if at is None else negative).append(line)
    found, rest = {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}, last
    while rest:
        name, rest = rest.split(": ", 1)
        if rest.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:].removeprefix(", ")
        else:
            value, _, rest = rest.partition(", ")
        found[name] = value
    return found


SETTINGS = {
    "prompt": "a photo of a person: smiling, in a hat\nsecond line",
    "negative_prompt": "",
    "seed": 7,
    "index": 2,
    "sampler": "dpmpp_2m_karras",
    "steps": 20,
    "guidance_scale": 7.5,
    "control_scale": 1.0,
    "identity_max_timestep": 0.0,
    "size": [512, 384],
    "model": "my, model",
    "version": "0.2.0",
    "weights": {"unet": "0123456789abcdef" * 4},
    "people": [
        {
            "reference": {"name": 'odd, "name": 1.jpg'},
            "head": {"yaw": 20.0, "pitch": -3.25, "roll": 0.0},
        }
    ],
}


@pytest.mark.parametrize("negative", ["", "blurry, bad: hands\nmore"])
def test_the_parameters_are_in_the_form_that_viewers_read(negative):
    found = parse(metadata.summary(SETTINGS | {"negative_prompt": negative}))
    expected = {
        "Prompt": SETTINGS["prompt"],
        "Negative prompt": negative,
        "Steps": "20",
        "Sampler": "DPM++ 2M Karras",
        "CFG scale": "7.5",
        "Seed": "7",
        "Size": "512x384",
        "Model hash": "0123456789",
        "Model": "my, model",
        "Picture": "2",
        "Reference": 'odd, "name": 1.jpg',
        "AI-generated": "yes",
        "Version": "caphuman_jax 0.2.0",
    }
    assert {name: found[name] for name in expected} == expected
    assert found["Head"] == "yaw 20.0 pitch -3.2 roll 0.0"


def test_several_people_and_an_edit():
    settings = SETTINGS | {
        "people": SETTINGS["people"] * 2,
        "denoise": 0.5,
        "edit": {"photo": {"name": "a.jpg", "sha256": "ab"}, "mask": {"name": "m.png"}},
    }
    found = parse(metadata.summary(settings))
    assert found["Reference 2"] == SETTINGS["people"][0]["reference"]["name"]
    assert found["Denoising strength"] == "0.5" and found["Mask"] == "m.png"
    assert found["Edited photo SHA-256"] == "ab"


def test_every_sampler_has_a_name_there():
    assert metadata._SAMPLERS.keys() == SAMPLERS.keys()
