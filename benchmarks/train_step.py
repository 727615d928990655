"""How fast the training step of Stable Diffusion 1.5's size is on the devices at hand: the loop's
own program, with stored moments, text and image tokens.

    python benchmarks/train_step.py [--batch 16 32] [--remat none products] [--attention auto xla 4096=cudnn,64=xla] [--devices 1 2 4]
        [--set training.accumulate=2] [--xla NAME=VALUE] [--json FILE] [--profile DIR] [--peer "python torch_peer.py train --batch 32 --compile"]

Every combination is compiled and measured: seconds a step (median after warm-up, each step waited
for; and of a run that is not waited for, as the loop runs), pictures a second, the share of the
devices' peak (MFU, on the operations of the networks without any that are done again), memory.
Weights and batches are random and lie on the devices already. --peer runs a command of yours
afterwards, on the same devices, and shows what it prints beside our figures. --size tiny rehearses
everything on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import kernels

from caphuman_jax.config import SD15, ModelConfig, UNetConfig
from caphuman_jax.models import registry
from caphuman_jax.runtime import compiler, sharding
from caphuman_jax.runtime.device_specs import peak_flops
from caphuman_jax.training import compiled_step
from caphuman_jax.training.batches import stored_batch
from caphuman_jax.training.recipes.sd15 import CapFaceRecipe, CapFaceTraining
from caphuman_jax.training.run_config import read_config

MODELS = {
    "full": SD15,
    "tiny": ModelConfig(
        name="tiny",
        image_size=64,
        unet=UNetConfig(
            channels=32,
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            attention_resolutions=(1, 2),
            heads=2,
            cross_attention_dim=32,
            groups=8,
        ),
    ),
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=MODELS, default="full")
    parser.add_argument("--batch", type=int, nargs="+", default=[32], help="pictures a device")
    parser.add_argument("--remat", nargs="+", default=["none"])
    parser.add_argument("--attention", nargs="+", default=["auto"])
    parser.add_argument("--devices", type=int, nargs="+", default=[len(jax.devices())])
    parser.add_argument("--sharding", choices=sharding.MODES, nargs="+", default=["replicated"])
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="training.NAME=VALUE",
        help="other entries of the configuration sd15",
    )
    parser.add_argument(
        "--xla", action="append", default=[], metavar="NAME=VALUE", help="an option of the compiler"
    )
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--profile",
        type=Path,
        help="write a trace of three steps of each variant to a folder in here, and show its "
        "kernels",
    )
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--peer", help="a command to run afterwards, shown beside")
    return parser


def random_base(model: ModelConfig) -> dict:
    """Random weights of a base and of what is trained on it."""
    networks = registry.abstract(model, only=("unet", *registry.TRAINABLE))
    block = np.random.default_rng(0).standard_normal(2**22, np.float32)
    random = lambda leaf: (
        np.resize(block, leaf.shape) / np.float32(max(1.0, np.prod(leaf.shape[:-1])) ** 0.5)
    )
    return {name: jax.tree.map(random, shapes) for name, (_, shapes) in networks.items()}


def main() -> None:
    args = parser().parse_args()
    model = MODELS[args.size]
    base = random_base(model)
    results = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "size": args.size,
        "variants": [],
    }
    print(
        f"{results['device']}, jax {jax.__version__}, "
        f"{registry.count({n: base[n] for n in registry.TRAINABLE}):,} trained parameters",
        flush=True,
    )

    for variant in itertools.product(
        args.devices, args.sharding, args.remat, args.attention, args.batch
    ):
        found = measure(model, base, args, *variant)
        results["variants"].append(found)
        print(
            " ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in found.items()
            ),
            flush=True,
        )
        write(args.json, results)
    if args.peer:
        results["peer"] = {"command": args.peer, "printed": run_peer(args.peer)}
        write(args.json, results)


def measure(
    model: ModelConfig,
    base: dict,
    args,
    devices: int,
    mode: str,
    remat: str,
    attention: str,
    batch: int,
    ready: Callable[[], None] = lambda: None,
) -> dict:
    """One variant: compiled, warmed up, timed. What does not fit is a result too.

    ready is called between compiling and everything that needs the devices for itself.
    """
    config = read_config("sd15", args.set)
    config.training.update(
        {
            "batch_size": batch * devices * config.training.accumulate,
            "remat": remat,
            "attention": attention,
            "init_from": "base",
        }
    )
    found = {
        "devices": devices,
        "sharding": mode,
        "batch_per_device": batch,
        "remat": remat,
        "attention": attention,
        "set": " ".join(args.set),
    }
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    cfg = CapFaceTraining(**config.training)
    shapes = stored_batch(model, cfg.batch_size)
    empty = {
        "ids": np.zeros(model.text.length, np.int32),
        "text": np.zeros((model.text.length, model.unet.cross_attention_dim), np.float32),
    }
    recipe = CapFaceRecipe(model, cfg, base, shapes, mesh=mesh, empty_text=empty, hashes={})
    state = frozen = rows = None
    try:
        with jax.set_mesh(mesh):
            began = time.perf_counter()
            compiled = compiled_step.compile_step(
                recipe,
                mesh,
                mode,
                recipe.frozen,
                shapes,
                dict(entry.split("=", 1) for entry in args.xla),
            )
            found["compile_s"] = time.perf_counter() - began
            ready()
            memory = compiled.memory_analysis()
            if memory is not None:
                found["program_GiB"] = (
                    memory.argument_size_in_bytes
                    + memory.output_size_in_bytes
                    - memory.alias_size_in_bytes
                    + memory.temp_size_in_bytes
                    + memory.generated_code_size_in_bytes
                ) / 2**30
            state = compiled_step.init_sharded_state(
                recipe, sharding.state_shardings(mesh, recipe.abstract_state(), mode)
            )
            frozen = compiler.laid_out(
                sharding.place(recipe.frozen, sharding.frozen_shardings(mesh, recipe.frozen, mode))
            )
            rows = sharding.place_batch(random_rows(shapes, jax.process_count()), mesh)
            for _ in range(args.warm_up):
                state, metrics = compiled(state, frozen, rows)
            jax.block_until_ready(state)
            times = []
            for _ in range(args.steps):
                began = time.perf_counter()
                state, metrics = jax.block_until_ready(compiled(state, frozen, rows))
                times.append(time.perf_counter() - began)
            began = time.perf_counter()
            for _ in range(args.steps):
                state, metrics = compiled(state, frozen, rows)
            jax.block_until_ready(state)
            running = (time.perf_counter() - began) / args.steps
            if args.profile:
                where = (
                    args.profile / f"{devices}-{mode}-{remat}-{attention.replace(',', '_')}-{batch}"
                )
                with jax.profiler.trace(str(where)):
                    for _ in range(3):
                        state, metrics = jax.block_until_ready(compiled(state, frozen, rows))
                print(kernels.table(where, per=3), flush=True)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return found | {"failed": "does not fit"}
    peak = peak_flops(jax.devices()[0].device_kind)
    found |= {
        "median_s": statistics.median(times),
        "running_s": running,
        "pictures_per_s": cfg.batch_size / running,
        "tflop_per_picture": recipe.flops / cfg.batch_size / 1e12,
    }
    if peak:
        found["mfu"] = recipe.flops / running / (peak * devices)
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        found["peak_so_far_GiB"] = stats["peak_bytes_in_use"] / 2**30
    return found | {"loss": float(metrics["loss"])}


def random_rows(shapes: dict, processes: int = 1) -> dict:
    """A batch of noise, or the share of it that one of several processes feeds."""
    rng = np.random.default_rng(1)
    shapes = {
        name: jax.ShapeDtypeStruct((s.shape[0] // processes, *s.shape[1:]), s.dtype)
        for name, s in shapes.items()
    }
    return {
        name: np.zeros(s.shape, bool)
        if s.dtype == bool
        else (0.5 * rng.standard_normal(s.shape, np.float32)).astype(s.dtype)
        for name, s in shapes.items()
    }


def run_peer(command: str) -> list[str]:
    """Lines that a command prints, shown as they come."""
    jax.clear_caches()
    print(f"peer: {command}", flush=True)
    lines = []
    with subprocess.Popen(
        command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            lines.append(line.rstrip())
    return lines + ([f"exit code {process.returncode}"] if process.returncode else [])


def write(path: Path | None, results: dict) -> None:
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
