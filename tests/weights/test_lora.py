"""LoRA files against diffusers with PEFT: the same file loaded there and here gives the same weights and the same pictures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx, traverse_util
from safetensors.numpy import load_file, save_file

from caphuman_jax import models
from caphuman_jax.config import ModelConfig, TextConfig, UNetConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.weights import lora
from caphuman_jax.weights.convert import to_ours
from caphuman_jax.weights.names import modules, table

TINY = ModelConfig(
    unet=UNetConfig(channels=16, multipliers=(1, 2), res_blocks=1, attention_downsamplings=(1,), heads=2, context_width=16, groups=8),
    text=TextConfig(vocabulary=40, length=12, width=16, layers=2, heads=2, mlp_width=32), image_encoder=None,
)
RANK, ALPHA = 3, 5.0


def normal(name, *shape):
    return np.random.default_rng(list(name.encode())).standard_normal(shape).astype(np.float32) / np.float32(2)


@pytest.fixture(scope="module")
def torch_networks():
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=[16, 32], layers_per_block=1, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], cross_attention_dim=16, attention_head_dim=2, norm_num_groups=8,
    )
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=40, max_position_embeddings=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        bos_token_id=38, eos_token_id=39, pad_token_id=39,
    ))
    return {"unet": unet.eval(), "text": text.eval()}


@pytest.fixture(scope="module")
def shapes():
    return {name: params for name, (_, params) in models.abstract(TINY, only=("unet", "text")).items()}


def ours(network, module, shapes):
    """Our parameters from a PyTorch network, with its LoRAs fused or not."""
    flat = traverse_util.flatten_dict(shapes[network], sep=".")
    top = "" if network == "unet" else "text_model."
    state = {top + key.removeprefix(top).replace(".base_layer.", "."): x.detach().numpy() for key, x in module.state_dict().items()}
    values = {path: to_ours(path, state[name], flat[path].shape).copy() for name, path in table(network, TINY, flat, "diffusers").items()}
    return traverse_util.unflatten_dict(values, sep=".")


@pytest.fixture(scope="module")
def base(torch_networks, shapes):
    return {name: ours(name, module, shapes) for name, module in torch_networks.items()}


@pytest.fixture(scope="module")
def layers(torch_networks):
    """{network: {diffusers name: PyTorch shape of its weight}}: every layer that a LoRA may change."""
    top = {"unet": "", "text": "text_model."}
    return {
        network: {
            top[network] + name.removeprefix(top[network]): tuple(part.weight.shape) for name, part in module.named_modules()
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)
        }
        for network, module in torch_networks.items()
    }


def factors(name, shape):
    """(down, up) of a layer, as PEFT and kohya have them: a convolution's upward part is 1×1."""
    ones = (1,) * (len(shape) - 2)
    return normal(name + "down", RANK, *shape[1:]), normal(name + "up", shape[0], RANK, *ones)


def kohya(layers, networks=("unet", "text"), rename=lambda network, name: name):
    file = {}
    for network in networks:
        for name, shape in layers[network].items():
            key = {"unet": "lora_unet_", "text": "lora_te_"}[network] + rename(network, name).replace(".", "_")
            down, up = factors(name, shape)
            file |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": np.array(ALPHA, np.float32)}
    return file


def fuse(torch_networks, file, scale=1.0, metadata=None):
    """Copies of the networks with a LoRA fused by diffusers."""
    import copy

    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    networks = copy.deepcopy(torch_networks)
    state, alphas = Loader.lora_state_dict({key: torch.from_numpy(np.array(x)) for key, x in file.items()}, unet_config=networks["unet"].config)
    settings = {} if alphas and not metadata else {"metadata": metadata}
    Loader.load_lora_into_unet(state, alphas, networks["unet"], adapter_name="it", **settings)
    networks["unet"].fuse_lora(scale)
    if any(key.startswith("text_encoder.") for key in state):
        Loader.load_lora_into_text_encoder(state, alphas, networks["text"], prefix="text_encoder", adapter_name="it", **settings)
        from diffusers.loaders.lora_base import fuse_text_encoder_lora

        fuse_text_encoder_lora(networks["text"], scale)
        # transformers 5 draws the position embeddings anew when an adapter is loaded.
        networks["text"].embeddings.load_state_dict(torch_networks["text"].embeddings.state_dict())
    return networks


def assert_same(a, b, tolerance=1e-5):
    a, b = traverse_util.flatten_dict(a, sep="."), traverse_util.flatten_dict(b, sep=".")
    assert a.keys() == b.keys()
    for path in a:
        assert np.abs(a[path] - b[path]).max() <= tolerance * np.abs(b[path]).max(), path


def changed(params, base):
    a, b = (traverse_util.flatten_dict(x, sep=".") for x in (params, base))
    return {path for path in a if a[path] is not b[path]}


def test_kohya_file_of_every_layer_gives_diffusers_weights_and_pictures(torch_networks, base, layers, shapes, tmp_path):
    """Linear layers and convolutions, everything that LCM-LoRA changes, in both networks."""
    save_file(kohya(layers), tmp_path / "x.safetensors")
    file = load_file(tmp_path / "x.safetensors")
    theirs = fuse(torch_networks, file, 0.8)
    params = lora.apply(base, [(lora.read(file, TINY), 0.8)])
    for network in ("unet", "text"):
        assert_same(params[network], ours(network, theirs[network], shapes))
        assert len(changed(params[network], base[network])) == len(layers[network])

    latents, t, tokens = normal("latents", 1, 8, 8, 4), np.array([501], np.float32), normal("text", 1, 7, 16)
    with torch.no_grad():
        expected = theirs["unet"](*map(torch.from_numpy, (latents.transpose(0, 3, 1, 2).copy(), t, tokens))).sample.numpy()
    graphdef, _ = models.abstract(TINY, only=("unet",))["unet"]
    run = jax.jit(lambda params: nnx.merge(graphdef, params)(*map(jnp.asarray, (latents, t, tokens))))
    got, before = (np.asarray(run(jax.tree.map(jnp.asarray, x["unet"]))).transpose(0, 3, 1, 2) for x in (params, base))
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(before - expected).max() > 0.1 * np.abs(expected).max()
