"""What the compiler is told, and how weights lie in memory, where an accelerator is better served
than by the defaults.

Every entry was measured (docs/notes/performance.md, "What made it fast").
"""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.layout import Format, Layout

OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {
        # Queries, keys and values as one product would have to be taken apart again, and their
        # weights joined at every step.
        "xla_gpu_dot_merger_threshold_mb": 0,
    },
}
"""Platform → options of XLA."""

_OUTPUTS_FIRST = Layout(major_to_minor=(3, 0, 1, 2))


def options(platform: str | None = None) -> dict[str, str | bool] | None:
    """For `compile(compiler_options=…)` on a platform ("gpu", "tpu", "cpu"; None: JAX's default);
    None where there is nothing to say.
    """
    return dict(OPTIONS.get(platform or platform_of(jax.devices()[0]), {})) or None


def platform_of(device: jax.Device) -> str:
    return {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)


def formats(shapes: Any, shardings: Any) -> Any:
    """Shardings of a tree of parameters, with the layout beside them where the platform wants
    another than the default.

    On GPUs convolution kernels (height, width, inputs, outputs) lie with the outputs first, as
    cuDNN takes them; in the default layout every one is transposed at every step."""

    def one(path, leaf, where):
        device = next(iter(where.device_set))
        is_kernel = len(leaf.shape) == 4 and str(getattr(path[-1], "key", "")) == "kernel"
        return (
            Format(_OUTPUTS_FIRST, where) if is_kernel and platform_of(device) == "gpu" else where
        )

    return jax.tree_util.tree_map_with_path(one, shapes, shardings)


def laid_out(tree: Any) -> Any:
    """A tree of arrays on devices, with those kernels moved into the layout of `formats`."""
    leaves, structure = jax.tree.flatten(tree)
    wanted = jax.tree.leaves(formats(tree, jax.tree.map(lambda leaf: leaf.sharding, tree)))
    order = lambda form: form.layout.major_to_minor
    moved = [
        i
        for i, where in enumerate(wanted)
        if isinstance(where, Format) and order(leaves[i].format) != order(where)
    ]
    if moved:  # one program for all of them
        move = jax.jit(lambda *arrays: arrays, out_shardings=tuple(wanted[i] for i in moved))
        for i, array in zip(moved, move(*(leaves[i] for i in moved))):
            leaves[i] = array
    return jax.tree.unflatten(structure, leaves)
