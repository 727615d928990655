"""From the shell to the PNG: `caphuman generate` with nothing compiled, and again.

    python benchmarks/first_picture.py [--model mini|sd15|FOLDER] [--runs 3] [--num-images 1] [--steps 20] [--profile FILE] [-- options of generate …]

Every run is a process of its own, timed from its start to its end. The first one starts with an
empty cache folder (`--cache DIR` keeps it), the others find what it compiled. `sd15` is a model
folder of random float16 weights with the shipped head and recognizer, written into a temporary
folder. Weights are in the page cache, as after a first use.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--runs", type=int, default=3, help="after the first one")
    parser.add_argument("--num-images", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cache", type=Path, help="the cache folder; default: a temporary one")
    parser.add_argument("--profile", type=Path, help="cProfile of one more run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", help="of caphuman generate")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = str(write_sd15(Path(folder) / "sd15")) if args.model == "sd15" else args.model
        command = generate_command(args, model, Path(folder) / "out")
        env = os.environ | {
            "CAPHUMAN_CACHE": str(args.cache or Path(folder) / "cache"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        lines = [timed(command, env) for _ in range(args.runs + 1)]
        if args.profile:
            profiled = [command[0], "-m", "cProfile", "-o", str(args.profile), *command[1:]]
            subprocess.run(profiled, env=env, check=True, capture_output=True)
    lines[0]["compiled"] = False
    print(*(json.dumps(line) for line in lines), sep="\n")
    warm = [line["seconds"] for line in lines[1:]]
    if warm:
        print(f"warm: median {statistics.median(warm):.2f} s, {min(warm):.2f} to {max(warm):.2f}")
    if args.json:
        args.json.write_text(json.dumps(lines, indent=1) + "\n")


def generate_command(args: argparse.Namespace, model: str, out: Path) -> list[str]:
    photo = ROOT / "caphuman_jax" / "assets" / "astronaut_nasa.png"
    text = ("--reference", photo, "--prompt", "a photo of a smiling person", "--yaw", 15)
    steps = () if args.steps is None else ("--steps", args.steps)
    images = ("--num-images", args.num_images, "--out", out, "--model", model)
    words = (sys.executable, "-m", "caphuman_jax.cli.app", "generate", *text, *steps, *images)
    return [*map(str, words), *args.options]


def timed(command: list[str], env: dict[str, str]) -> dict:
    """Elapsed and CPU seconds of a command, and the stages that it reports."""
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, os.times()
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    cpu = sum(after[2:4]) - sum(before[2:4])
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "stages": done.stderr.strip().splitlines()[-1],
    }


def write_sd15(path: Path) -> Path:
    """A model folder of Stable Diffusion 1.5's size with random weights."""
    import jax
    import numpy as np

    from caphuman_jax.config import MINI, SD15
    from caphuman_jax.models import registry
    from caphuman_jax.weights import model_folder

    config = dataclasses.replace(
        SD15, head=MINI.head, identity=MINI.identity, image_encoder=None, name="random"
    )
    block = np.random.default_rng(0).standard_normal(2**22, np.float32)

    def draw(leaf):
        if len(leaf.shape) == 1:
            return np.ones(leaf.shape, np.float32)
        return np.resize(block, leaf.shape) * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)

    shapes = registry.abstract(config)
    params = {name: jax.tree.map(draw, tree) for name, (_, tree) in shapes.items()}
    model_folder.save_model(path, config, params, dtype=np.float16)
    return path


if __name__ == "__main__":
    main()
