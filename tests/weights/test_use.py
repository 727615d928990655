"""Imported models make pictures: the whole pipeline on stand-ins, with a v-predicting base of zero
terminal SNR, ControlNets and LoRAs.
"""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from weight_standins import TINY, import_model, state_dict, value

from caphuman_jax.person.person import analyze_photo
from caphuman_jax.pipeline import loading

PROMPT = "a photo of a person"


@pytest.fixture(scope="module")
def person(astronaut_png):
    """The astronaut, as a model of TINY's sizes that knows people by FaceNet and CLIP would see
    her.
    """
    from caphuman_jax.head.models.registry import load_head

    measured = analyze_photo(load_head(), astronaut_png, 64)
    rng = np.random.default_rng(0)
    vector = rng.standard_normal((1, 8), np.float32)
    return dataclasses.replace(
        measured,
        vectors=vector / np.linalg.norm(vector),
        image_tokens=rng.standard_normal((1, 5, 24), np.float32),
        known_by="facenet and clip",
    )


@pytest.fixture(scope="module")
def astronaut_png():
    from importlib.resources import files

    return files("caphuman_jax") / "assets" / "astronaut_nasa.png"


def test_everything_together(tmp_path, caphuman, person):
    control = {
        name: tensor
        for name, tensor in state_dict("control_model.").items()
        if "mask_predict" not in name
    }
    first = "control_model.input_hint_block.0.weight"
    control[first] = value(first, (control[first].shape[0], 3, 3, 3))
    torch.save(control, tmp_path / "control_v11p_sd15_openpose.pth")
    layer = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_q"
    save_file(
        {
            f"{layer}.lora_down.weight": torch.ones(2, 64) / 8,
            f"{layer}.lora_up.weight": torch.ones(64, 2),
        },
        tmp_path / "style.safetensors",
    )
    import_model(
        tmp_path / "model",
        caphuman=caphuman,
        config=TINY,
        controlnets=[(tmp_path / "control_v11p_sd15_openpose.pth", None)],
    )
    pipe = loading.load(tmp_path / "model", cache=False)
    call = lambda **more: pipe(reference=person, prompt=PROMPT, steps=2, **more)
    base = call(size=(128, 64))
    assert base.images.shape == (1, 64, 128, 3) and base.images.std() > 5
    controlled = call(
        size=(128, 64), controls=[{"name": "openpose", "picture": "landmarks", "scale": 0.5}]
    )
    assert (controlled.images != base.images).any()
    pipe.use_loras([(tmp_path / "style.safetensors", 0.8)])
    assert (call(size=(128, 64)).images != base.images).any()

    # The same LoRA merged while importing gives the same picture.
    import_model(
        tmp_path / "styled",
        caphuman=caphuman,
        config=TINY,
        loras=[(tmp_path / "style.safetensors", 0.8)],
    )
    styled = loading.load(tmp_path / "styled", cache=False)(
        reference=person, prompt=PROMPT, steps=2, size=(128, 64)
    )
    assert np.abs(styled.images.astype(int) - call(size=(128, 64)).images).max() <= 1


@pytest.fixture(scope="module")
def v_pipe(tmp_path_factory, caphuman):
    path = tmp_path_factory.mktemp("v") / "model"
    import_model(path, caphuman=caphuman, config=TINY, prediction="v", zero_snr=True)
    return loading.load(path, cache=False)


@pytest.mark.parametrize("sampler", ["ddim", "unipc"])
def test_v_prediction_with_zero_terminal_snr(v_pipe, person, sampler):
    made = v_pipe(reference=person, prompt=PROMPT, sampler=sampler, steps=3)
    assert made.settings["spacing"] == "trailing" and made.settings["guidance_rescale"] == 0.7
    assert made.images.std() > 5
