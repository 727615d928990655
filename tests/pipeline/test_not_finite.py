"""Numbers that are not finite: named where they are read, and never a picture."""

import jax
import numpy as np
import pytest

from caphuman_jax.config import MINI
from caphuman_jax.errors import CapHumanError, ModelFolderError, PhotoError, SettingError
from caphuman_jax.jobs import jobs
from caphuman_jax.jobs.validate import Checker
from caphuman_jax.person import identity_file
from caphuman_jax.weights import lora

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def test_no_picture_is_made_of_weights_that_are_not_numbers(pipe, person):
    broken = pipe.with_params(
        {**pipe.params, "vae": jax.tree.map(lambda x: x * np.float32("nan"), pipe.params["vae"])}
    )
    written = []
    with pytest.raises(CapHumanError, match="not finite"):
        broken(reference=person, prompt="a photo of a dog", on_image=lambda *x: written.append(x))
    assert not written


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_lora_that_diverged_is_named(value):
    width = MINI.unet.channels * MINI.unet.channel_multipliers[-1]
    up = np.zeros((width, 2), np.float32)
    up[0, 0] = value
    arrays = {
        f"{LAYER}.lora_up.weight": up,
        f"{LAYER}.lora_down.weight": np.full((2, width), 0.1, np.float32),
    }
    read = lora.read(arrays, MINI, name="bad.safetensors")
    ((path, _),) = read.parts["unet"].items()
    with pytest.raises(ModelFolderError, match="bad.safetensors cannot be used.*not finite"):
        read.delta("unet", path, (width, width))


def test_a_huge_lora_is_refused_before_anything_is_multiplied():
    arrays = {
        f"{LAYER}.lora_up.weight": np.zeros((400_000, 1), np.float16),
        f"{LAYER}.lora_down.weight": np.zeros((1, 400_000), np.float16),
    }
    read = lora.read(arrays, MINI, name="huge.safetensors")
    ((path, _),) = read.parts["unet"].items()
    width = MINI.unet.channels * MINI.unet.channel_multipliers[-1]
    with pytest.raises(ModelFolderError, match="160,000,000,000 numbers"):
        read.delta("unet", path, (width, width))


def test_a_changed_identity_file_is_damaged(pipe, person, tmp_path):
    path = tmp_path / "me.identity"
    identity_file.save(path, person, pipe.head_name)
    assert identity_file.load(path, pipe.head_name, pipe.person.known_by).name == person.name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PhotoError, match="damaged"):
        identity_file.load(path, pipe.head_name, pipe.person.known_by)


def test_too_many_jobs_are_counted_before_they_are_made(pipe, tmp_path):
    lists = ", ".join(f'"{name}": {list(range(1000))}' for name in ("seed", "steps", "first_image"))
    file = tmp_path / "jobs.jsonl"
    file.write_text(f'{{"reference": "me.jpg", "prompt": "x", "product": {{{lists}}}}}\n')
    found = jobs.read_jobs(file, Checker(pipe.config), {})
    assert any("makes 1,000,000,000 jobs" in problem for problem in found.problems)


def test_a_prompt_that_is_not_text_is_one_line(pipe, person):
    with pytest.raises(SettingError, match="prompt holds bytes that are not UTF-8"):
        pipe.request(reference=person, prompt="a \udcff dog")
