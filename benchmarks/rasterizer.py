"""Hints per second of the rasterizer: nine channels of the shipped head (9,462 triangles) in
batches, on the device at hand.

python benchmarks/rasterizer.py [--side 512] [--batch 1 16 64]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from caphuman_jax.head import pose
from caphuman_jax.head.head import Head, stack
from caphuman_jax.head.hints import render_hints_batch
from caphuman_jax.head.models.registry import load_head


def heads(model, count: int, side: int, seed: int = 0) -> Head:
    """Heads at random angles that fill half the picture's height."""
    rng = np.random.default_rng(seed)
    vertices = model.mean.shape[0]
    height = float(np.ptp(model.mean[:, 1]))
    light = np.zeros((9, 3), np.float32)
    light[0], light[2] = 2.0, 0.5
    made = []
    for yaw, pitch, roll in rng.uniform([-40, -20, -20], [40, 20, 20], (count, 3)):
        made.append(
            Head(
                identity=jnp.asarray(
                    rng.normal(0, 0.5, model.identity_basis.shape[0]), jnp.float32
                ),
                expression=jnp.asarray(
                    rng.uniform(0, 0.3, len(model.expression_names)), jnp.float32
                ),
                rotation=pose.rotation_matrix(float(yaw), float(pitch), float(roll)),
                scale=jnp.float32(0.6 * side / height),
                translation=jnp.full(2, side / 2, jnp.float32),
                size=jnp.full(2, side, jnp.float32),
                light=jnp.asarray(light),
                albedo=jnp.asarray(rng.uniform(0, 1, (vertices, 3)), jnp.float32),
                residual=jnp.float32(0),
            )
        )
    return stack(made)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    args = parser.parse_args()
    model = jax.tree.map(jnp.asarray, load_head())
    print(jax.devices()[0].device_kind, "jax", jax.__version__, f"{args.side}²", flush=True)
    for batch in args.batch:
        asked = heads(load_head(), batch, args.side)
        asked = dataclasses.replace(asked, albedo=jnp.asarray(asked.albedo))
        run = lambda: jax.block_until_ready(render_hints_batch(model, asked, args.side, args.side))
        started = time.perf_counter()
        hints = run()
        first, times = time.perf_counter() - started, []
        for _ in range(7):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        covered = float((np.abs(np.asarray(hints[0, ..., 3:6])).sum(-1) > 0).mean())
        print(
            f"batch {batch}: {batch / statistics.median(times):.1f} hints/s, "
            f"{1000 * statistics.median(times) / batch:.2f} ms each "
            f"(first call {first:.1f} s; a head covers {100 * covered:.0f} % of its picture)",
            flush=True,
        )


if __name__ == "__main__":
    main()
