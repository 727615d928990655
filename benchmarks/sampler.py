"""The sampler: pictures a second and latency, memory, utilization; and what its savings cost in
likeness to pictures of 50 steps.

    python benchmarks/sampler.py [--model mini|sd15|FOLDER] [--batch 1 8] [--size 512] [--steps 20] [--guidance-scale 7] [--memory normal]
                                 [--option cache_interval=3 --option sampler=dpmpp_2m,steps=12 …] [--repeats 5] [--json FILE] [--profile DIR]
                                 [--xla NAME=VALUE …]      options of the compiler
    python benchmarks/sampler.py --peak --model sd15 [--memory least] …       compiles only: memory by the compiler's own count, no weights needed
    python benchmarks/sampler.py --likeness 8 --model mini --option …          same seeds: RMSE, PSNR, features and identity

A line for the settings as given, and one for each --option (fields of `SamplingParams` that
differ, guidance_interval as 0:600). All are compiled first and then run in turn, so that a machine
that is busy for a while slows all of them. `sd15` has random weights. "seconds" is the time from
prompts, tokens and hints on the host to pictures on the host, the autoencoder included;
"pictures_a_second" that of batches that follow each other, one begun before the last is fetched, as
`caphuman sample` makes them. Operations are counted on what was traced, in steps that save as in
those that do not, and the limit is how many pictures the chip's peak would allow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import kernels

from caphuman_jax.config import SD15
from caphuman_jax.diffusion.text_to_image import generate
from caphuman_jax.errors import PhotoError
from caphuman_jax.evaluation.measure import recognition_vectors
from caphuman_jax.face import recognition
from caphuman_jax.jobs.multi_device import on_mesh, shard_over
from caphuman_jax.models import registry
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.person.identity import image_token_count
from caphuman_jax.pipeline import loading, pipeline
from caphuman_jax.pipeline.conditioning import Conditioning, Subject
from caphuman_jax.runtime import compiler, flops
from caphuman_jax.runtime.device_specs import peak_flops
from caphuman_jax.runtime.sharding import make_mesh
from caphuman_jax.weights.placement import MEMORY, TILES, packed, put

PROMPT = "a photo of a person"


def main() -> None:
    run(sys.argv[1:])


def run(arguments: list[str], ready: Callable[[], None] = lambda: None) -> list[dict]:
    """The benchmark as the command line says; a line for each variant. ready is called between
    compiling and everything that needs the devices for itself.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="mini", help="mini, a model folder, or sd15: random weights of that size"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--size", type=int, help="pixels a side; default: the model's own")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--memory", choices=MEMORY, default="normal")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE,…")
    parser.add_argument(
        "--devices", type=int, default=1, help="with sd15: how many make --batch pictures each"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="DIR",
        help="trace a run of each variant into a folder in here, and show its kernels",
    )
    parser.add_argument(
        "--xla",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the compiler, for all variants",
    )
    parser.add_argument("--peak", action="store_true")
    parser.add_argument("--likeness", type=int, metavar="N", help="pictures an option")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    base = {"steps": args.steps, "size": args.size} | (
        {} if args.guidance_scale is None else {"guidance_scale": args.guidance_scale}
    )
    variants = {"as given": base} | {text: base | parsed(text) for text in args.option}
    pipe = (
        random_pipeline(args, abstract=args.peak)
        if args.model == "sd15"
        else loading.load(
            args.model, dtype=args.dtype, memory=args.memory, compiler_options=options(args)
        )
    )
    device = jax.devices()[0]
    results = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "model": pipe.config.name,
        **pipe.record,
        "settings": base,
    }
    results.pop("weights", None)
    print(json.dumps(results), flush=True)
    lines = likeness(pipe, variants, args.likeness) if args.likeness else []
    for batch in () if args.likeness else args.batch:
        lines += measure(pipe, variants, batch * args.devices, args, ready)
    if args.json:
        args.json.write_text(json.dumps(results | {"lines": lines}, indent=1) + "\n")
    return lines


def parsed(text: str) -> dict:
    """ "sampler=dpmpp_2m,steps=12,guidance_interval=0:600" → settings."""
    settings = {}
    for entry in text.split(","):
        name, _, value = entry.partition("=")
        if name in ("sampler", "precision"):
            settings[name] = value
        elif name == "guidance_interval":
            settings[name] = [float(end) for end in value.split(":")]
        else:
            settings[name] = float(value) if "." in value else int(value)
    return settings


def options(args) -> dict[str, str] | None:
    """Options of the compiler: the usual ones and those of --xla."""
    given = dict(entry.split("=", 1) for entry in args.xla)
    return {**(compiler.options() or {}), **given} or None


def measure(pipe, variants, batch, args, ready=lambda: None) -> list[dict]:
    """A line for each variant at this batch size."""
    rows = {
        name: [(conditioning(pipe, settings), i) for i in range(batch)]
        for name, settings in variants.items()
    }
    made, lines = {}, {}
    for name in variants:
        started = time.perf_counter()
        compiled, arguments = pipe.program(rows[name])
        lines[name] = {
            "option": name,
            "batch": batch,
            "compile_s": time.perf_counter() - started,
            **memory_of(compiled),
        }
        lines[name]["tflop_a_picture"] = operations(pipe, rows[name]) / batch / 1e12
        made[name] = []
    ready()
    for turn in range(0 if args.peak else args.repeats + 2):
        for name in variants:
            started, cpu = time.perf_counter(), time.process_time()
            np.asarray(pipe.make(rows[name])[0])
            if turn >= 2:
                made[name].append((time.perf_counter() - started, time.process_time() - cpu))
    device = jax.devices()[0]
    peak = peak_flops(device.device_kind)
    for name, line in lines.items():
        if made[name]:
            seconds, cpu = (statistics.median(values) for values in zip(*made[name]))
            line |= {
                "seconds": seconds,
                "pictures_a_second": batch / streamed(pipe, rows[name], args.repeats),
            }
            line |= (
                {"cpu_seconds": cpu}
                if device.platform == "cpu"
                else {"peak_gib_of_the_process": device.memory_stats()["peak_bytes_in_use"] / 2**30}
            )
            if peak:
                limit = args.devices * peak / line["tflop_a_picture"] / 1e12
                line |= {
                    "limit_pictures_a_second": limit,
                    "utilization": line["pictures_a_second"] / limit,
                }
        print(
            json.dumps(
                {
                    key: round(value, 4) if isinstance(value, float) else value
                    for key, value in line.items()
                }
            ),
            flush=True,
        )
        if args.profile and not args.peak:
            where = args.profile / f"{name.replace(' ', '_')}-{batch}"
            with jax.profiler.trace(str(where)):
                np.asarray(pipe.make(rows[name])[0])
            print(kernels.table(where), flush=True)
    return list(lines.values())


def streamed(pipe, rows, repeats: int) -> float:
    """Seconds a batch, the next begun before the last is fetched."""
    started, waiting = time.perf_counter(), pipe.make(rows)[0]
    for _ in range(repeats):
        following = pipe.make(rows)[0]
        np.asarray(waiting)
        waiting = following
    np.asarray(waiting)
    return (time.perf_counter() - started) / (repeats + 1)


def conditioning(pipe, settings):
    """What an image is made from, with random identity tokens and hints."""
    rng, known = np.random.default_rng(0), pipe.config.identity
    tokens = image_token_count(pipe.config)
    person = SimpleNamespace(
        vectors=rng.normal(0, known.recognition_width**-0.5, (1, known.recognition_width)).astype(
            np.float32
        ),
        image_tokens=rng.standard_normal((1, tokens, known.image_width), np.float32),
    )
    request = pipe.request(prompt=PROMPT, reference="nobody", **settings)
    hints = rng.uniform(0, 1, (*request.params.shape, 9)).astype(np.float32)
    return Conditioning(request, (Subject(person, None, None, hints),))


def operations(pipe, rows) -> int:
    """Floating-point operations of a batch without savings, those of attention among them, which
    fused kernels would hide.
    """
    arguments, static = pipe.arguments(rows)
    dtype, names = pipe.record["dtype"], [name for name, _ in pipe.graphs]
    networks = registry.abstract(pipe.config, ComputeConfig(dtype, attention="xla"), only=names)
    graphs = tuple((name, graph) for name, (graph, _) in networks.items())
    return flops.of(generate.trace(*arguments, cfg=pipe.config, graphs=graphs, **static).jaxpr)


def memory_of(compiled) -> dict:
    """By the compiler's count, in GiB: the weights and other arguments, what the program needs
    besides, both.
    """
    found = compiled.memory_analysis()
    if found is None:
        return {}
    arguments, besides = (
        found.argument_size_in_bytes,
        found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes,
    )
    return {
        "arguments_gib": arguments / 2**30,
        "besides_gib": besides / 2**30,
        "all_gib": (arguments + besides) / 2**30,
    }


def random_pipeline(args, abstract: bool) -> pipeline.Pipeline:
    """Stable Diffusion 1.5 with CapFace, of random weights, or of shapes alone."""
    config = dataclasses.replace(SD15, head="anny")
    dtype = jax.numpy.dtype(
        args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    )
    networks = registry.abstract(
        config, ComputeConfig(dtype), only=("text", "identity", "capface", "unet", "vae")
    )
    block = np.random.default_rng(0).standard_normal(2**22, np.float32)

    def draw(leaf):
        if len(leaf.shape) == 1:
            return np.ones(leaf.shape, np.float32)
        return np.resize(block, leaf.shape) * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)

    params, mesh = (
        {},
        make_mesh(devices=jax.devices()[: args.devices]) if args.devices > 1 else None,
    )
    for name, (_, shapes) in networks.items():
        host = packed(name, jax.tree.map(draw, shapes), dtype, args.memory)
        if abstract:
            params[name] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), host)
        else:
            params[name] = (
                put(name, host, args.memory)
                if mesh is None
                else on_mesh(mesh, {name: host}, "replicated")[name]
            )
    graphs = tuple((name, graph) for name, (graph, _) in networks.items())
    return pipeline.Pipeline(
        config,
        params,
        graphs,
        {"dtype": dtype.name, "memory": args.memory},
        tile=TILES[args.memory],
        shard_fn=None if mesh is None else shard_over(mesh),
        compiler_options=options(args),
    )


def likeness(pipe, variants, count: int) -> list[dict]:
    """How far each variant's pictures are from those of 50 steps and the same seeds, and how like
    the person both are.
    """
    person = pipe.person(files("caphuman_jax") / "assets" / "astronaut_nasa.png")
    known = recognition_vectors(person.square, person.landmarks)["dlib"]
    reference = None
    lines = []
    for name, settings in {
        "50 steps": next(iter(variants.values())) | {"steps": 50},
        **variants,
    }.items():
        pictures = pipe(reference=person, prompt=PROMPT, num_images=count, **settings).images
        seen = [look(pipe, picture) for picture in pictures]
        reference = reference or (pictures.astype(np.float64), seen)
        difference = pictures - reference[0]
        both = [(a, b) for a, b in zip(seen, reference[1]) if a and b]
        squares = np.square(difference).mean(axis=(1, 2, 3))
        line = {
            "option": name,
            "pictures": count,
            "rmse": float(np.sqrt(squares).mean()),
            "psnr_db": float(np.mean(10 * np.log10(255**2 / np.maximum(squares, 1e-9))))
            if squares.any()
            else None,
            "faces": sum(map(bool, seen)),
            "features_cosine": float(np.mean([np.vdot(a[1], b[1]) for a, b in both]))
            if both
            else None,
            "identity_dlib_distance": float(
                np.mean([np.linalg.norm(a[0] - known) for a in seen if a])
            )
            if any(seen)
            else None,
        }
        lines.append(line)
        print(
            json.dumps(
                {
                    key: round(value, 4) if isinstance(value, float) else value
                    for key, value in line.items()
                }
            ),
            flush=True,
        )
    return lines


def look(pipe, picture):
    """dlib's vector and the recognizer's feature map, at length 1, of the face in a picture; None
    where there is none.
    """
    try:
        seen = pipe.person(picture, face=0)
    except PhotoError:
        return None
    features = recognition.identity(seen.square, seen.landmarks)[1].ravel()
    return recognition_vectors(seen.square, seen.landmarks)["dlib"], features / np.linalg.norm(
        features
    )


if __name__ == "__main__":
    main()
