"""The sampler as `caphuman sample` runs it over several devices, with shapes for numbers: weights
on every device, pictures split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.aot.compile import Target
from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import sampling_loop
from caphuman_jax.diffusion.sampling_params import SamplingParams
from caphuman_jax.diffusion.text_to_image import NETWORKS, generate
from caphuman_jax.models import registry
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.person.identity import image_token_count
from caphuman_jax.runtime import flops, sharding
from caphuman_jax.runtime.device_specs import matrix_unit
from caphuman_jax.training import trainable


def sampler(
    model: ModelConfig,
    target: Target,
    batch: int,
    steps: int | None = None,
    dtype: str = "bfloat16",
    attention: str = "auto",
) -> tuple[Callable[[], Any], float, float, dict[str, Any]]:
    """(lower, operations of one device, the same with the zeros that a TPU fills up with, settings)
    of `generate` for `batch` pictures a device of one person each, with the model's own settings.

    lower() gives the program (`jax.stages.Lowered`): everything from token ids, hints and identity
    tokens to decoded pictures."""
    sampling = SamplingParams.create(model, steps=steps)
    numbers, coefficients, static = sampling.program_inputs(model)
    networks = registry.abstract(model, only=NETWORKS)
    params = trainable.stored(
        {name: shapes for name, (_, shapes) in networks.items()}, jnp.dtype(dtype)
    )
    settings = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), numbers)
    static["cfg"] = model

    def traced(count: int, backend: str, mesh=None):
        compute = ComputeConfig(dtype, backend, platform=target.platform, mesh=mesh)
        graphs = tuple(
            (name, graph)
            for name, (graph, _) in registry.abstract(model, compute, only=NETWORKS).items()
        )
        rows = conditions(model, count)
        keys = jax.eval_shape(lambda: sampling_loop.picture_keys(0, list(range(count))))
        arguments = params, rows, keys, settings, coefficients
        if mesh is not None:
            whole, split = sharding.replicated(mesh), sharding.by_batch(mesh)
            place = lambda tree, there: jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=there),
                tree,
            )
            arguments = (
                place(params, whole),
                place(rows, split),
                place(keys, split),
                place(settings, whole),
                coefficients,
            )
        return generate.trace(*arguments, graphs=graphs, **static)

    mesh = sharding.make_mesh(devices=target.devices)
    program = traced(batch, "xla").jaxpr
    padded = flops.of(program, matrix_unit(target.kind))
    told = {
        "sampler": sampling.sampler,
        "steps": coefficients.steps,
        "size": model.image_size,
        "dtype": dtype,
        "attention": attention,
    }
    lower = lambda: traced(batch * len(target.devices), attention, mesh).lower()
    return lower, flops.of(program), padded, told


def conditions(model: ModelConfig, count: int) -> dict[str, Any]:
    """Shapes of the conditions that `generate` takes, for `count` pictures of one person known by
    one photo.
    """
    side, length = model.image_size, model.text.length
    array = lambda *shape: jax.ShapeDtypeStruct((count, *shape), jnp.float32)
    ids = jax.ShapeDtypeStruct((count, length), jnp.int32)
    return {
        "token_ids": ids,
        "empty_token_ids": ids,
        "controls": {},
        "hints": array(1, side, side, model.capface.hint_channels),
        "image_tokens": array(1, 1, image_token_count(model), model.identity.image_width),
        "recognition": array(1, 1, model.identity.recognition_width),
    }
