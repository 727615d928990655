"""Configurations: every entry is checked by type, range and by what it has to agree with."""

import dataclasses
import json
import math

import numpy as np
import pytest

from caphuman_jax.config import MINI, SD15, ModelConfig
from caphuman_jax.config import rules as config_rules
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.weights import model_folder


def edited(base: ModelConfig, entry: str, value) -> dict:
    data = base.to_dict()
    *parts, last = entry.split(".")
    place = data
    for part in parts:
        place = place[part]
    place[last] = value
    return json.loads(json.dumps(data))


@pytest.mark.parametrize("config", [MINI, SD15], ids=["mini", "sd15"])
def test_shipped_configurations_are_right(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("entry", "value", "allowed"),
    [
        ("unet.channels", 65, "even"),
        ("unet.channels", 66, "divisible by unet.groups, 16"),
        ("unet.channels", -64, "a whole number from 1 to 65,536"),
        ("unet.channels", 10**12, "a whole number from 1 to 65,536"),
        ("unet.channels", 64.0, "a whole number"),
        ("unet.channels", True, "a whole number"),
        ("unet.groups", 7, "divisible by unet.groups, 7"),
        ("unet.groups", 0, "from 1"),
        ("unet.heads", 3, "must divide"),
        ("unet.channel_multipliers", [], "must not be empty"),
        ("unet.channel_multipliers", [1, "2"], "each must be a whole number"),
        ("unet.channel_multipliers", [1] * 1000, "at most 32"),
        ("unet.channel_multipliers", 2, "a list"),
        ("unet.attention_resolutions", [3], "a power of 2"),
        ("unet.in_channels", 7, "vae.latent_channels, 8"),
        ("unet.out_channels", 4, "vae.latent_channels, 8"),
        ("unet.cross_attention_dim", 768, "text.width, 128"),
        ("unet", None, "an object"),
        ("unet", [1], "an object"),
        ("vae.scaling_factor", 0, "from 1e-06"),
        ("vae.scaling_factor", "0.18", "a number"),
        ("vae.scaling_factor", 1e400, "a number"),
        ("vae.groups", 5, "divisible by vae.groups, 5"),
        ("vae.patch", 0, "from 1"),
        ("image_size", "big", "a whole number from 8 to 8,192"),
        ("image_size", math.nan, "a whole number"),
        ("image_size", 0, "from 8"),
        ("image_size", None, "a whole number"),
        ("image_size", 100, "a multiple of 32"),
        ("text.heads", 5, "must divide text.width"),
        ("text.layers", 0, "from 1"),
        ("text.embed_width", "x", "a whole number"),
        ("capface.hint_widths", [16, 32], "2 times smaller"),
        ("identity.image_tokens", "both", "clip or recognizer"),
        ("identity.image_tokens", "clip", "needs an image_encoder"),
        ("diffusion.prediction_type", "sample", "epsilon or v"),
        ("diffusion.prediction_type", "epsilon", "needs diffusion.prediction_type v"),
        ("diffusion.num_timesteps", 10**9, "to 100,000"),
        ("diffusion.beta_end", 0.0001, "must not exceed beta_end"),
        ("sampling.guidance_scale", -1, "from 0"),
        ("sampling.steps", 5000, "must not exceed num_timesteps"),
        ("controlnets", ["../x"], "names of letters"),
        ("name", 5, "a text"),
        ("name", "x" * 10_000, None),
    ],
)
def test_a_wrong_entry_is_one_line_with_its_name_value_and_what_is_allowed(entry, value, allowed):
    data = edited(MINI, entry, value)
    if allowed is None:
        ModelConfig.from_dict(data)
        return
    with pytest.raises(ModelFolderError) as error:
        ModelConfig.from_dict(data)
    said = str(error.value)
    assert allowed in said and "\n" not in said and len(said) < 300
    assert (
        entry in said
        or entry == "unet"
        or allowed.startswith(("needs", "must not exceed", "divisible"))
    )


@pytest.mark.parametrize(
    ("entry", "value", "allowed"),
    [
        ("image_encoder.heads", 7, "must divide image_encoder.width, 1024"),
        ("image_encoder.patch", 15, "must divide image_encoder.image_size"),
        ("identity.image_width", 512, "image_encoder.width, 1024"),
        ("image_encoder", None, "needs an image_encoder"),
        ("controlnets", ["pose", "pose"], "a name twice"),
    ],
)
def test_entries_of_the_large_model_have_to_agree(entry, value, allowed):
    with pytest.raises(ModelFolderError, match=allowed):
        ModelConfig.from_dict(edited(SD15, entry, value))


def test_inpainting_bases_have_nine_channels():
    unet = dataclasses.replace(SD15.unet, in_channels=9)
    assert ModelConfig.from_dict(dataclasses.replace(SD15, unet=unet).to_dict()).inpainting


@pytest.fixture
def folder(tmp_path):
    model_folder.save_model(tmp_path / "m", MINI, {"vae": {"scale": np.ones(3, np.float32)}})
    return tmp_path / "m"


def change(folder, where, value):
    file = folder / "config.json"
    document = json.loads(file.read_text())
    place = document
    for part in where[:-1]:
        place = place[part]
    place[where[-1]] = value
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("where", "value", "allowed"),
    [
        (["config", "head"], "smpl", "head is 'smpl'; it must be one of anny"),
        (["config", "sampling", "sampler"], "magic", "sampling.sampler is 'magic'"),
        (["config", "sampling", "spacing"], "none", "sampling.spacing is 'none'"),
        (["config", "diffusion", "beta_schedule"], "x", "diffusion.beta_schedule is 'x'"),
        (["config", "identity", "recognition_width"], 512, "it must be 192"),
        (["files", "vae"], "vae.safetensors", "must name a file in the folder itself"),
        (["files", "vae"], 7, "must name a file in the folder itself"),
        (["files", "vae", "file"], "/etc/passwd", "'/etc/passwd'; it must name a file in"),
        (["files", "vae", "file"], "../../x", "must name a file in the folder itself"),
        (["files", "vae", "file"], "..", "must name a file in the folder itself"),
        (["files", "vae", "file"], None, "must name a file in the folder itself"),
        (["files", "vae", "sha256"], 12, "64 hexadecimal digits"),
        (["files", "vae", "bytes"], -1, "a whole number from 0 upwards"),
        (["files", "../x"], {"file": "x", "sha256": "0" * 64}, "must name a file"),
    ],
)
def test_the_description_of_a_folder(folder, where, value, allowed):
    change(folder, where, value)
    with pytest.raises(ModelFolderError) as error:
        model_folder.read_config(folder)
    assert allowed in str(error.value) and str(folder / "config.json") in str(error.value)


def test_ranges_are_those_of_entries_that_there_are():
    def names(data):
        for name, value in data.items():
            yield name
            if isinstance(value, dict):
                yield from names(value)

    assert set(config_rules.MODEL_RANGES) <= set(names(SD15.to_dict()))
