"""Photos to begin with, masks and inpainting bases: step for step what Diffusers' pipelines do with
the same random weights.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from weight_standins import TINY, import_model, state_dict, value

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import samplers, sampling_loop, text_to_image
from caphuman_jax.diffusion.latents import encode_photos
from caphuman_jax.diffusion.sampling_params import SamplingParams
from caphuman_jax.models import registry
from caphuman_jax.weights import model_folder
from caphuman_jax.weights.exporter import export_model
from caphuman_jax.weights.names import PREFIXES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIDE, STEPS, GUIDANCE, DENOISE = 64, 6, 3.0, 0.7
KEYS = sampling_loop.picture_keys(5, [0])
TOKENS = np.array([[49406, 320, 1125, *[49407] * 74]])
EMPTY = np.array([[49406, *[49407] * 76]])


@pytest.fixture(scope="module", params=[4, 9], ids=["plain base", "inpainting base"])
def models(request, tmp_path_factory):
    """A model folder's configuration, graphs and parameters, and the same for Diffusers."""
    place = tmp_path_factory.mktemp("model")
    weights = state_dict(dtype=torch.float32)
    if request.param == 9:
        first = f"{PREFIXES['unet']}input_blocks.0.0.weight"
        weights[first] = value("inpainting", (32, 9, 3, 3))
    base = {name: x for name, x in weights.items() if not name.startswith("control_model.")}
    torch.save({"state_dict": state_dict(dtype=torch.float32)}, place / "caphuman.ckpt")
    parts = tuple(PREFIXES[part] for part in ("unet", "vae", "text"))
    safetensors.torch.save_file(
        {name: x.contiguous() for name, x in base.items() if name.startswith(parts)},
        place / "base.safetensors",
    )
    import_model(
        place / "m",
        caphuman=place / "caphuman.ckpt",
        base=place / "base.safetensors",
        config=TINY,
    )
    export_model(place / "m", place / "out", "diffusers", dtype="float32")
    config = model_folder.read_config(place / "m")
    networks = registry.abstract(config)
    params = model_folder.load_params(place / "m", {n: tree for n, (_, tree) in networks.items()})
    graphs = tuple((name, graph) for name, (graph, _) in networks.items())
    return config, graphs, params, place / "out"


@pytest.fixture(scope="module")
def photo():
    """A photo (H, W, 3) in [0, 1], its latents, and a mask of latents' size."""
    rng = np.random.default_rng(3)
    mask = np.zeros((1, SIDE // 8, SIDE // 8, 1), np.float32)
    mask[:, 2:6, 1:5] = 1
    latents = rng.standard_normal((1, SIDE // 8, SIDE // 8, 4), np.float32)
    return rng.uniform(0, 1, (1, SIDE, SIDE, 3)).astype(np.float32), latents, mask


def ours(config: ModelConfig, graphs, params, photo, sampler, masked, monkeypatch):
    """Latents after every step (S, 1, h, w, 4); those of steps that are skipped are the start."""
    seen, sample = [], sampling_loop.sample

    def recorded(*args, **more):
        final, after_each = sample(*args, **more, trajectory=True)
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), after_each)
        return final

    monkeypatch.setattr(sampling_loop, "sample", recorded)
    _, latents, mask = photo
    own = {"eta": 0.0} if sampler == "ddim" else {}
    request = SamplingParams.create(
        config,
        steps=STEPS,
        sampler=sampler,
        spacing="leading",
        guidance_scale=GUIDANCE,
        denoise=DENOISE,
        control_scale=0.0,
        **own,
    )
    numbers, table, static = request.program_inputs(config, photo="masked" if masked else "whole")
    known = np.ones_like(mask) if config.inpainting or not masked else mask
    zeros = lambda *shape: jnp.zeros((1, 1, *shape), jnp.float32)
    conditions = {
        "token_ids": jnp.asarray(TOKENS),
        "empty_token_ids": jnp.asarray(EMPTY),
        "hints": zeros(SIDE, SIDE, 9),
        "image_tokens": zeros(1, 5, 24),
        "recognition": zeros(1, 8),
        "controls": {},
        "known": {"latents": jnp.asarray(latents), "mask": jnp.asarray(known)},
    }
    if config.inpainting:
        conditions["visible"] = {"latents": jnp.asarray(-latents), "mask": jnp.asarray(mask)}
    used = {name: params[name] for name in ("text", "identity", "capface", "unet", "vae")}
    make = text_to_image.generate.__wrapped__
    run = jax.jit(lambda *args: make(*args, cfg=config, graphs=graphs, **static))
    jax.block_until_ready(run(used, conditions, KEYS, numbers, table))
    jax.effects_barrier()
    return seen[0]


def theirs(folder, config: ModelConfig, photo, sampler, masked, monkeypatch):
    """Latents after every step that their pipeline computes."""
    import diffusers
    from diffusers.pipelines.stable_diffusion import (
        pipeline_stable_diffusion_img2img,
        pipeline_stable_diffusion_inpaint,
    )
    from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm

    kinds = (diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionInpaintPipeline)
    pipeline = kinds[masked].from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    schedulers = {
        "ddim": diffusers.DDIMScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
        "dpmpp_2m_karras": diffusers.DPMSolverMultistepScheduler,
        "lcm": diffusers.LCMScheduler,
        "unipc": diffusers.UniPCMultistepScheduler,
        "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    }
    settings = {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False}
    if sampler == "dpmpp_2m_karras":
        settings["use_karras_sigmas"] = True
    pipeline.scheduler = schedulers[sampler].from_config(pipeline.scheduler.config, **settings)
    to_torch = lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    shape = (SIDE // 8, SIDE // 8, 4)
    first = STEPS - int(STEPS * DENOISE)
    number = iter([0, *range(first + 1, STEPS + 1)])

    def draw(*_, **__):
        return to_torch(np.asarray(sampling_loop._normal(KEYS, next(number), shape)))

    for module in (
        pipeline_stable_diffusion_img2img,
        pipeline_stable_diffusion_inpaint,
        scheduling_euler_ancestral_discrete,
        scheduling_lcm,
    ):
        monkeypatch.setattr(module, "randn_tensor", draw)
    after_each = []

    def keep(pipe, index, timestep, given):
        scale = 1.0
        if sampler == "euler_a":
            scale = (pipe.scheduler.sigmas[pipe.scheduler.step_index] ** 2 + 1) ** 0.5
        after_each.append((given["latents"] / scale).numpy().transpose(0, 2, 3, 1))
        return given

    _, latents, mask = photo
    with torch.no_grad():
        text = [pipeline.text_encoder(torch.from_numpy(ids))[0] for ids in (TOKENS, EMPTY)]
        given = {"image": to_torch(latents)}
        if masked:
            given |= {
                "mask_image": to_torch(mask.repeat(8, axis=1).repeat(8, axis=2)),
                "masked_image_latents": to_torch(-latents),
                "height": SIDE,
                "width": SIDE,
            }
        pipeline(
            prompt_embeds=text[0],
            negative_prompt_embeds=text[1],
            strength=DENOISE,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="latent",
            callback_on_step_end=keep,
            **given,
        )
    return after_each


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("sampler", "masked"),
    [
        ("unipc", True),
        pytest.param("unipc", False, marks=slow),
        *(
            pytest.param(sampler, masked, marks=slow)
            for sampler in ("ddim", "dpmpp_2m", "dpmpp_2m_karras", "euler_a", "lcm")
            for masked in (False, True)
        ),
    ],
)
def test_every_step_is_diffusers(models, photo, sampler, masked, monkeypatch):
    config, graphs, params, folder = models
    if config.inpainting and (not masked or sampler not in ("ddim", "unipc")):
        pytest.skip("an inpainting base is for masks; two samplers are enough")
    expected = theirs(folder, config, photo, sampler, masked, monkeypatch)
    after_each = ours(config, graphs, params, photo, sampler, masked, monkeypatch)
    assert len(expected) == int(STEPS * DENOISE)
    for a, b in zip(after_each[STEPS - len(expected) :], expected, strict=True):
        assert np.abs(a - b).max() <= 2e-4 * np.abs(b).max()


def test_photos_are_encoded_as_diffusers_does(models, photo):
    from diffusers import AutoencoderKL

    config, graphs, params, folder = models
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        picture = torch.from_numpy(photo[0].transpose(0, 3, 1, 2)) * 2 - 1
        expected = vae.encode(picture).latent_dist.mean * vae.config.scaling_factor
    got = encode_photos(params["vae"], jnp.asarray(photo[0]), cfg=config, graph=dict(graphs)["vae"])
    expected = expected.numpy().transpose(0, 2, 3, 1)
    assert np.abs(np.asarray(got) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_shapes_of_an_inpainting_base(models):
    config, _, params, _ = models
    channels = params["unet"]["encoder"]["conv_in"]["kernel"].shape[2]
    assert config.inpainting == (channels == 9)
    assert params["capface"]["encoder"]["conv_in"]["kernel"].shape[2] == 4


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "dpmpp_2m_karras", "euler_a", "unipc", "lcm"])
def test_first_step_is_an_argument(name):
    """Any first step runs in the program of the first, and equals the table cut to what is left."""
    config, shape = TINY.diffusion, (1, 3, 2, 4)
    table = samplers.make_sampler(name, config, 8)
    latents = sampling_loop.initial_noise(KEYS, shape[1:])
    predict = lambda x, t, step, carry: (jnp.tanh(x + t / 500), carry)

    @jax.jit
    def run(table, first):
        return sampling_loop.sample(predict, latents, table, keys=KEYS, first=first)

    for first in (0, 3, 7):
        changed = samplers.start_at(table, first)
        cut = jax.tree.map(lambda column: column[first:], changed)
        if cut.noise is not None:  # drawn for the step's own number
            cut = cut._replace(noise=jnp.zeros_like(cut.noise))
            changed = changed._replace(noise=jnp.zeros_like(changed.noise))
        expected = sampling_loop.sample(predict, latents, cut, keys=KEYS)
        np.testing.assert_allclose(run(changed, first), expected, rtol=2e-5, atol=2e-5)
    assert run._cache_size() == 1


def test_control_branches_of_a_new_capface_see_the_latents_alone(tmp_path):
    weights = state_dict(*(PREFIXES[part] for part in ("unet", "vae", "text")))
    first = f"{PREFIXES['unet']}input_blocks.0.0.weight"
    weights[first] = value("inpainting", (32, 9, 3, 3))
    safetensors.torch.save_file(weights, tmp_path / "base.safetensors")
    identity = dataclasses.replace(TINY.identity, image_tokens="recognizer")
    config = dataclasses.replace(TINY, image_encoder=None, identity=identity)
    import_model(tmp_path / "m", base=tmp_path / "base.safetensors", init=True, config=config)
    shapes = {"capface": registry.abstract(model_folder.read_config(tmp_path / "m"))["capface"][1]}
    made = model_folder.load_params(tmp_path / "m", shapes)["capface"]
    kernel = made["encoder"]["conv_in"]["kernel"]
    expected = weights[first].float().numpy().transpose(2, 3, 1, 0)[:, :, :4]
    np.testing.assert_array_equal(kernel, expected)
