"""The compiled way to pictures against a plain loop: every network called as it is, for every
branch and person, at every step.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caphuman_jax.config import MINI
from caphuman_jax.diffusion import acceleration, samplers, sampling_loop, tiling
from caphuman_jax.diffusion.guidance import branch_weights, guided_steps, rescale_guidance
from caphuman_jax.diffusion.text_to_image import generate
from caphuman_jax.models import registry
from caphuman_jax.models.capface import gate, scale_control, sum_controls
from caphuman_jax.models.identity_projector import drop_identity
from caphuman_jax.nn import quantization
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.runtime import flops, sharding
from caphuman_jax.weights.lora import Lora, Part, apply

CFG = dataclasses.replace(
    MINI,
    name="tiny",
    image_size=32,
    controlnets=("pose",),
    unet=dataclasses.replace(
        MINI.unet,
        channels=8,
        channel_multipliers=(1, 2),
        attention_resolutions=(1, 2),
        heads=2,
        cross_attention_dim=16,
        groups=4,
    ),
    capface=dataclasses.replace(MINI.capface, hint_widths=(4, 4, 8)),
    controlnet=dataclasses.replace(MINI.controlnet, hint_widths=(4, 4, 8)),
    identity=dataclasses.replace(MINI.identity, recognition_width=6, image_width=5),
    vae=dataclasses.replace(
        MINI.vae, encoder_channels=8, decoder_channels=8, channel_multipliers=(1, 2), groups=4
    ),
    text=dataclasses.replace(
        MINI.text,
        vocabulary=50,
        length=7,
        width=16,
        layers=1,
        heads=2,
        mlp_width=16,
        embed_width=None,
    ),
)
SIZE, STEPS, BATCH = (32, 48), 4, 2
KEYS = sampling_loop.picture_keys(3, range(BATCH))
ALL = ("none", "head", "identity", "text")


@pytest.fixture(scope="module")
def networks():
    """Graphs, and parameters of which none is zero."""
    made = registry.abstract(CFG)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        around = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(
            rng.normal(around, 1.2 * np.prod(leaf.shape[:-1] or 40) ** -0.5, leaf.shape),
            jnp.float32,
        )

    return tuple(
        (name, graph) for name, (graph, _) in made.items()
    ), jax.tree_util.tree_map_with_path(draw, {n: s for n, (_, s) in made.items()})


def conditions(people, controls):
    rng = np.random.default_rng(people)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return {
        "token_ids": jnp.asarray(rng.integers(0, 50, (BATCH, 7))),
        "empty_token_ids": jnp.asarray(rng.integers(0, 50, (BATCH, 7))),
        "hints": normal(BATCH, people, *SIZE, 9),
        "image_tokens": normal(BATCH, people, 2, 3, 5),
        "recognition": normal(BATCH, people, 2, 6),
        "controls": {name: normal(BATCH, *SIZE, 3) for name in controls},
    }


def settings(weights, controls=(), **numbers):
    defaults = {"strength": 0.8, "identity_until": 0.0} | numbers
    return {name: jnp.float32(value) for name, value in defaults.items()} | {
        "weights": {name: jnp.float32(weight) for name, weight in weights.items()},
        "controls": {name: jnp.float32(0.6) for name in controls},
    }


def plain_branch(networks, params, given, numbers, hard_gate, branch, x, t):
    """One branch's prediction, nothing shared with another's."""
    run = lambda name: nnx.merge(dict(networks)[name], params[name])
    times = jnp.full((BATCH,), t)
    text = run("text")(given["token_ids" if branch == "text" else "empty_token_ids"])[0]
    if branch == "none":
        return run("unet")(x, times, text)
    faces = []
    for person in range(given["hints"].shape[1]):
        photos = range(given["recognition"].shape[2])
        tokens = jnp.concatenate(
            [
                run("identity")(
                    given["image_tokens"][:, person, k], given["recognition"][:, person, k]
                )
                for k in photos
            ],
            axis=1,
        )
        tokens = (
            tokens * 0
            if branch == "head"
            else drop_identity(tokens, times, numbers["identity_until"])
        )
        features = run("capface").encode_hints(given["hints"][:, person])
        faces.append(
            gate(
                run("capface")(x, times, tokens, features), run("capface").mask(features), hard_gate
            )
        )
    parts = [scale_control(sum_controls(faces), numbers["strength"])]
    for name, picture in given["controls"].items():
        network = run(f"controlnet_{name}")
        parts.append(
            scale_control(
                network(x, times, text, network.encode_hints(picture)), numbers["controls"][name]
            )
        )
    return run("unet")(x, times, text, sum_controls(parts))


@functools.partial(jax.jit, static_argnames=("networks", "cfg", "hard_gate"))
def plain(networks, params, given, numbers, sampler, guided, cfg, hard_gate=True):
    """Pictures; guided (S,): steps that are."""

    def denoise(x, t, is_guided, _):
        made = {
            name: plain_branch(networks, params, given, numbers, hard_gate, name, x, t)
            for name in {**numbers["weights"], "text": 0}
        }
        total = sum(weight * made[name] for name, weight in numbers["weights"].items())
        if "rescale" in numbers:
            total = rescale_guidance(total, made[list(numbers["weights"])[-1]], numbers["rescale"])
        return jnp.where(is_guided, total, made["text"]), None

    noise = sampling_loop.initial_noise(KEYS, (SIZE[0] // 4, SIZE[1] // 4, 8))
    latents = sampling_loop.sample(
        denoise,
        noise,
        sampler,
        prediction_type=cfg.diffusion.prediction_type,
        keys=KEYS,
        step_constants=guided,
    )
    vae = nnx.merge(dict(networks)["vae"], params["vae"])
    return jnp.clip(vae.decode(latents / cfg.vae.scaling_factor) / 2 + 0.5, 0, 1)


def assert_same(fast, slow):
    assert float(jnp.std(slow)) > 0.05
    np.testing.assert_allclose(fast, slow, atol=2e-4)


@pytest.mark.slow
def test_everything_at_once_is_the_plain_loop(networks):
    """Several people of two photos, a ControlNet, a LoRA on keys and values, scales of their own, a
    soft gate, a late identity, noise predicted.
    """
    graphs, params = networks
    rng = np.random.default_rng(5)
    lora = lambda inputs: Part(
        "layer", {"up": rng.normal(0, 0.3, (16, 2)), "down": rng.normal(0, 0.3, (2, inputs))}, 1.0
    )
    parts = {
        f"encoder.down.1.attention_0.cross_attention.{name}.kernel": lora(16)
        for name in ("key", "value")
    }
    params = apply(params, [(Lora("style", {"unet": parts}), 0.8)])
    cfg = dataclasses.replace(
        CFG,
        diffusion=dataclasses.replace(
            CFG.diffusion, prediction_type="epsilon", zero_terminal_snr=False
        ),
    )
    sampler = samplers.make_sampler("unipc", cfg.diffusion, STEPS)
    given = conditions(2, ["pose"])
    numbers = settings(branch_weights(2.0, 1.5, 1.2), ["pose"], identity_until=500.0)
    assert tuple(numbers["weights"]) == ALL
    fast, mask = generate(
        params,
        given,
        KEYS,
        numbers,
        sampler,
        cfg=cfg,
        graphs=graphs,
        size=SIZE,
        branches=ALL,
        hard_gate=False,
    )
    assert mask.shape == (BATCH, 2, 8, 12)
    assert_same(
        fast,
        plain(
            graphs,
            params,
            given,
            numbers,
            sampler,
            jnp.ones(sampler.steps, bool),
            cfg,
            hard_gate=False,
        ),
    )


@pytest.fixture(scope="module")
def default(networks):
    """Guidance as it is by default, v predicted, noise put back: the sampler, and the arguments of
    `plain` and `generate`.
    """
    sampler = samplers.make_sampler("ddim", CFG.diffusion, STEPS, spacing="trailing", eta=1.0)
    return sampler, (networks[1], conditions(1, []), settings(branch_weights(3.0), rescale=0.5))


@pytest.fixture(scope="module")
def saving(networks, default):
    """Pictures with the savings compiled in, by the steps that are guided and recompute."""
    sampler, (params, given, numbers) = default

    def run(guided, recompute):
        numbers_ = numbers | {
            "guided": jnp.asarray(guided),
            "recompute_mask": jnp.asarray(recompute),
        }
        return generate(
            params,
            given,
            KEYS,
            numbers_,
            sampler,
            cfg=CFG,
            graphs=networks[0],
            size=SIZE,
            shallow=1,
        )[0]

    return run


def test_default_is_the_plain_loop_and_so_are_savings_that_save_nothing(networks, default, saving):
    sampler, (params, given, numbers) = default
    always = np.ones(sampler.steps, bool)
    fast = generate(params, given, KEYS, numbers, sampler, cfg=CFG, graphs=networks[0], size=SIZE)[
        0
    ]
    assert_same(fast, plain(networks[0], params, given, numbers, sampler, always, CFG))
    np.testing.assert_array_equal(guided_steps(sampler, (0, 1000)), always)
    np.testing.assert_array_equal(acceleration.recompute_mask(sampler, 1), always)
    np.testing.assert_allclose(saving(always, always), fast, atol=1e-5)


def test_guidance_in_an_interval(networks, default, saving):
    sampler, (params, given, numbers) = default
    guided = guided_steps(sampler, (300, 800))
    assert guided.tolist() == [False, True, True, False]
    made, slow = (
        saving(guided, np.ones(sampler.steps, bool)),
        plain(networks[0], params, given, numbers, sampler, guided, CFG),
    )
    assert_same(made, slow)
    assert (
        np.abs(
            slow
            - plain(networks[0], params, given, numbers, sampler, np.ones(sampler.steps, bool), CFG)
        ).max()
        > 0.02
    )


@pytest.mark.slow
def test_reuse_of_deep_features(networks, default, saving):
    sampler, (params, given, numbers) = default
    graphs = dict(networks[0])
    guided = np.array([False, True, True, True])
    recompute = acceleration.recompute_mask(sampler, 3, guided)
    assert recompute.tolist() == [True, True, False, False]

    @jax.jit
    def plain_step(x, t, deep, recomputes):
        """Guidance's two predictions apart, deep features of each kept."""
        outputs, kept = [], []
        for branch, old in zip(("empty_token_ids", "token_ids"), deep):
            run = lambda name: nnx.merge(graphs[name], params[name])
            times, text = jnp.full((BATCH,), t), run("text")(given[branch])[0]
            tokens = jnp.concatenate(
                [
                    run("identity")(given["image_tokens"][:, 0, k], given["recognition"][:, 0, k])
                    for k in range(2)
                ],
                axis=1,
            )
            features = run("capface").encode_hints(given["hints"][:, 0])
            control = scale_control(
                gate(run("capface")(x, times, tokens, features), run("capface").mask(features)),
                numbers["strength"],
            )
            whole, new = run("unet").with_features(x, times, text, control, blocks=1)
            outputs.append(
                jnp.where(
                    recomputes,
                    whole,
                    run("unet").from_cached_features(old, x, times, text, control[:1], blocks=1),
                )
            )
            kept.append(jnp.where(recomputes, new, old))
        return outputs, kept

    def denoise(x, t, step, deep):
        (empty, text), deep = plain_step(x, t, deep, step["recompute"])
        return jnp.where(
            step["guided"], rescale_guidance(empty + 3.0 * (text - empty), text, 0.5), text
        ), deep

    noise = sampling_loop.initial_noise(KEYS, (SIZE[0] // 4, SIZE[1] // 4, 8))
    deep = [jnp.zeros((BATCH, 8, 12, 8))] * 2
    latents = sampling_loop.sample(
        denoise,
        noise,
        sampler,
        prediction_type="v",
        keys=KEYS,
        step_constants={"recompute": recompute, "guided": guided},
        carry=deep,
    )
    slow = jnp.clip(nnx.merge(graphs["vae"], params["vae"]).decode(latents) / 2 + 0.5, 0, 1)
    assert_same(saving(guided, recompute), slow)


def test_fewer_operations_than_the_plain_loop(networks, default):
    sampler, (params, given, numbers) = default
    fast = lambda branches: flops.of(
        generate.trace(
            *(params, given, KEYS, numbers, sampler),
            **{"cfg": CFG, "graphs": networks[0], "size": SIZE, "branches": branches},
        ).jaxpr
    )
    always = jnp.ones(sampler.steps, bool)
    slow = flops.of(plain.trace(networks[0], params, given, numbers, sampler, always, CFG).jaxpr)
    assert fast(("identity", "text")) < 0.75 * slow
    # The second half of guidance costs less than the first, since it shares CapFace and what comes
    # before the prompt.
    assert fast(("identity", "text")) < 1.7 * fast(("text",))


@pytest.mark.parametrize("first, second", [("auto", "xla"), ("xla", "auto")])
def test_another_attention_backend_is_another_program(networks, default, first, second):
    """On a TPU "auto" is splash, a Pallas kernel, from 1,024 positions on."""
    sampler, (params, given, numbers) = default
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    given = given | {"hints": jax.ShapeDtypeStruct((BATCH, 1, 128, 128, 9), jnp.float32)}

    def kernels(attention):
        compute = ComputeConfig(jnp.bfloat16, attention, platform="tpu", mesh=mesh)
        graphs = tuple((n, graph) for n, (graph, _) in registry.abstract(CFG, compute).items())
        traced = generate.trace(
            params, given, KEYS, numbers, sampler, cfg=CFG, graphs=graphs, size=(128, 128)
        )
        return str(traced.jaxpr).count("pallas_call")

    found = {attention: kernels(attention) for attention in (first, second)}
    assert found["xla"] == 0 < found["auto"]


def test_int8_kernels(networks, default):
    sampler, (params, given, numbers) = default
    host = jax.tree.map(np.asarray, params)
    packed = params | {
        name: jax.tree.map(jnp.asarray, quantization.in_int8(host[name], jnp.float32))
        for name in ("unet", "capface")
    }
    run = lambda params: generate(
        params, given, KEYS, numbers, sampler, cfg=CFG, graphs=networks[0], size=SIZE
    )[0]
    kernel, found = (
        tree["unet"]["encoder"]["middle"]["res_1"]["conv_1"]["kernel"] for tree in (host, packed)
    )
    assert found.values.dtype == jnp.int8
    assert (np.abs(found.dense() - kernel) <= np.abs(kernel).max((0, 1, 2)) / 253).all()
    rounded = params | {name: quantization.dequantize(packed[name]) for name in ("unet", "capface")}
    np.testing.assert_allclose(run(packed), run(rounded), atol=1e-5)


def test_tiles_are_faded_into_each_other():
    latents = jnp.asarray(np.random.default_rng(0).standard_normal((1, 20, 9, 4)), jnp.float32)
    local = lambda z: jnp.repeat(
        jnp.repeat(z[..., :3], 2, axis=1), 2, axis=2
    )  # a decoder that sees one latent at a time has no seams
    np.testing.assert_allclose(
        tiling.decode_in_tiles(local, latents, 8, 2), local(latents), atol=1e-5
    )
    np.testing.assert_array_equal(tiling.decode_in_tiles(local, latents, 20, 2), local(latents))
    shapes = []
    uneven = lambda z: (shapes.append(z.shape), local(z) * 0 + z.mean())[1]
    made = np.asarray(tiling.decode_in_tiles(uneven, latents, 8, 2))
    assert set(shapes) == {(1, 8, 8, 4)}
    assert np.abs(np.diff(made, axis=1)).max() < 0.4 * np.ptp(made)
