"""How far float32 and bfloat16 lie from the reference at full size (Stable Diffusion 1.5), on the
device at hand.

    python benchmarks/precision.py [--size full|small] [--modes highest default bfloat16] [--pictures 1 8] [--json FILE]

Weights and inputs are those of tests/parity (made by a recipe, nothing is downloaded); errors are
max|a − b| / max|b|. CapFace's residuals are gated by the recorded mask there, since a mask that is
off by 1e-4 moves a threshold somewhere. Then whole pictures: 20 steps of DDIM,
guidance 7: seconds, and how far the latents end from the first mode's.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]

from conftest import FOLDER, Parity

from caphuman_jax.diffusion import guidance, samplers, sampling_loop
from caphuman_jax.models import registry
from caphuman_jax.models.capface import gate
from caphuman_jax.nn.compute_config import ComputeConfig

MODES = {
    "highest": (jnp.float32, "highest"),
    "default": (jnp.float32, "default"),
    "bfloat16": (jnp.bfloat16, "default"),
}
"""Compute dtype and matmul precision."""
NETWORKS = ("unet", "capface", "identity", "vae")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        default=list(MODES),
        help="float32 in full precision or as the device has it, bfloat16",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        nargs="*",
        default=[1, 8],
        help="batch sizes of whole pictures; none: leave them out",
    )
    parser.add_argument("--json", type=Path, help="write the results here too")
    args = parser.parse_args()
    parity = Parity(FOLDER)
    cfg = parity.configs[args.size]
    results = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "size": args.size}
    started = time.perf_counter()
    params = {name: parity.network(name, args.size)[1] for name in NETWORKS}
    jax.block_until_ready(params)
    say(results, args, weights_seconds=time.perf_counter() - started)

    forward, inputs = recorded(parity, cfg, args.size)
    for mode in args.modes:
        dtype, precision = MODES[mode]
        graphs = {
            name: graph
            for name, (graph, _) in registry.abstract(
                cfg, ComputeConfig(dtype), only=NETWORKS
            ).items()
        }
        started = time.perf_counter()
        with jax.default_matmul_precision(precision):
            made = jax.device_get(functools.partial(networks, graphs)(params, inputs))
        errors = {name: parity.error(value, forward[name]) for name, value in made.items()}
        say(results, args, **{mode: errors | {"seconds": time.perf_counter() - started}})

    for batch in args.pictures:
        latents = {}
        for mode in args.modes:
            dtype, precision = MODES[mode]
            graphs = {
                name: graph
                for name, (graph, _) in registry.abstract(
                    cfg, ComputeConfig(dtype), only=NETWORKS
                ).items()
            }
            inputs_ = jax.tree.map(lambda x: jnp.repeat(x[:1], batch, axis=0), inputs)
            inputs_["x"] = sampling_loop.initial_noise(
                sampling_loop.picture_keys(0, range(batch)), inputs["x"].shape[1:]
            )
            with jax.default_matmul_precision(precision):
                started = time.perf_counter()
                run = (
                    jax.jit(functools.partial(pictures, cfg, graphs))
                    .lower(params, inputs_)
                    .compile()
                )
                compiled = time.perf_counter() - started
                times = []
                for _ in range(4):
                    started = time.perf_counter()
                    latents[mode], images = jax.block_until_ready(run(params, inputs_))
                    times.append(time.perf_counter() - started)
            first, now = (np.asarray(latents[name]) for name in (args.modes[0], mode))
            say(
                results,
                args,
                **{
                    f"20 steps, batch {batch}, {mode}": {
                        "seconds": statistics.median(times[1:]),
                        "pictures_per_second": batch / statistics.median(times[1:]),
                        "compile": compiled,
                        f"latents_from_{args.modes[0]}": float(
                            np.abs(now - first).max() / np.abs(first).max()
                        ),
                        f"rms_from_{args.modes[0]}": float(
                            np.sqrt(np.mean((now - first) ** 2) / np.mean(first**2))
                        ),
                        "image_std": float(np.asarray(images).std()),
                    }
                },
            )


def recorded(parity, cfg, size):
    """What the original networks gave, and the inputs of tests/parity."""
    forward = parity.recorded(f"{size}_forward") | parity.recorded(f"{size}_vae")
    batch, channels, height, width = forward["eps"].shape
    latent = forward["moments"].shape
    inputs = {
        "x": parity.image("in/x", (batch, channels, height, width)),
        "t": jnp.asarray(forward["t"], jnp.float32),
        "text": parity.tokens("in/text", (batch, 77, cfg.unet.cross_attention_dim)),
        "hints": parity.image("in/hint", (batch, 9, 8 * height, 8 * width)),
        "empty": parity.tokens("in/uncond_text", (batch, 77, cfg.unet.cross_attention_dim)),
        "image_tokens": parity.tokens("in/image_tokens", (batch, 257, cfg.identity.image_width)),
        "recognition": parity.tokens("in/id", (batch, 1, 512))[:, 0],
        "mask": jnp.asarray(forward["mask"].transpose(0, 2, 3, 1)),
        "image": jnp.tanh(parity.image("in/image", forward["decoded"].shape)),
        "z": parity.image("in/z", (1, channels, *latent[2:])),
    }
    return {name: forward[name] for name in ("eps", "mask", "moments", "decoded")}, inputs


def networks(graphs, params, inputs):
    """Every network once."""
    run = {name: functools.partial(nnx.merge, graph) for name, graph in graphs.items()}

    @jax.jit
    def denoise(params, x):
        capface = run["capface"](params["capface"])
        features = capface.encode_hints(x["hints"])
        mask = capface.mask(features)
        tokens = run["identity"](params["identity"])(x["image_tokens"], x["recognition"])
        control = gate(capface(x["x"], x["t"], tokens, features), x["mask"])
        return {
            "eps": run["unet"](params["unet"])(x["x"], x["t"], x["text"], control),
            "mask": mask,
        }

    @jax.jit
    def autoencode(params, x):
        vae = run["vae"](params["vae"])
        return {
            "moments": jnp.concatenate(vae.encode(x["image"]), axis=-1),
            "decoded": vae.decode(x["z"]),
        }

    return jax.tree.map(
        lambda x: x.astype(jnp.float32), denoise(params, inputs) | autoencode(params, inputs)
    )


def pictures(cfg, graphs, params, x):
    """Latents and pictures: 20 steps of DDIM, guidance 7."""
    run = {name: nnx.merge(graph, params[name]) for name, graph in graphs.items()}
    batch = x["x"].shape[0]
    features = run["capface"].encode_hints(x["hints"])
    mask, tokens = (
        run["capface"].mask(features),
        run["identity"](x["image_tokens"], x["recognition"]),
    )
    texts = {"identity": x["empty"], "text": x["text"]}

    def predict(branches, latents, t, _, carry):
        timesteps = jnp.broadcast_to(t, (batch,))
        control = gate(run["capface"](latents, timesteps, tokens, features), mask)
        text = jnp.concatenate([texts[branch] for branch in branches])
        return run["unet"](latents, timesteps, text, control), carry

    denoise = guidance.guided(predict, guidance.branch_weights(7.0))
    latents = sampling_loop.sample(
        denoise, x["x"], samplers.make_sampler("ddim", cfg.diffusion, 20)
    )
    return latents, run["vae"].decode(latents / cfg.vae.scaling_factor)


def say(results, args, **more):
    """Print and keep what is new."""
    results |= more
    for name, value in more.items():
        print(name, json.dumps(value, default=float), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
