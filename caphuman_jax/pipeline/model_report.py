"""What a model folder can do, what it lacks, and whether its files are sound.

No weight is loaded.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from caphuman_jax.config import SD15, ModelConfig
from caphuman_jax.diffusion.samplers import SAMPLERS
from caphuman_jax.diffusion.sampling_field import LARGEST_SIDE, side_step
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.head.models import registry as heads
from caphuman_jax.models import registry
from caphuman_jax.weights import model_folder, requirements

_GIB = 2**30
_SD15_PEAK = {"1": 3.5, "8": 5.3}
"""GiB on a GPU for 1 and 8 pictures of 512² at a time, at Stable Diffusion 1.5's size with CLIP's
image encoder: the compiler's count for an H200 (docs/generate.md)."""


def inspect_model(model: str | os.PathLike, verify: bool = False) -> dict[str, Any]:
    """Describe a model folder.

    Args:
        model: A shipped model's name, or a model folder.
        verify: Read every file and compare its checksum; otherwise only the names, shapes and
            sizes of the weights are compared with the configuration.

    Returns:
        JSON values: "photos", "identity_files" (whether they can be used), "problems" (of the
        files), "lacks" (what is missing and what brings it), and what the model offers.

    Raises:
        ModelFolderError: There is no such folder, or its description cannot be read.
    """
    path = model_folder.find_model(model)
    config, metadata = model_folder.read_config(path), model_folder.read_metadata(path)
    with_shapes, problems = _networks(path, config)
    if verify and not problems:
        problems = _checksums(path, with_shapes)
    lacks = requirements.lacks(config, list(with_shapes), metadata.get("trained_with_head"))
    source, _ = heads.find(config.head)
    estimated = bool(source.networks) and set(source.networks) <= set(with_shapes)
    imported = metadata.get("imported") or {}
    return {
        "model": str(path),
        "name": config.name,
        "photos": not problems and not any(lack.needed_for for lack in lacks),
        "identity_files": not problems and not any(lack.needed_for == "heads" for lack in lacks),
        "problems": problems,
        "checksums": ("equal" if not problems else "not equal") if verify else "not compared",
        "lacks": [dataclasses.asdict(lack) | {"text": str(lack)} for lack in lacks],
        "head": {
            "model": config.head,
            "trained_with": metadata.get("trained_with_head"),
            "from_photos_by": "DECA" if estimated else "a fit to landmarks",
        },
        "identity": {
            "recognizer": config.identity.recognizer,
            "image_tokens": config.identity.image_tokens,
        },
        "samplers": list(SAMPLERS),
        "default": dataclasses.asdict(config.sampling),
        "controlnets": list(config.controlnets),
        "loras": {"merged": [entry["file"] for entry in imported.get("loras", ())]},
        "inpainting_base": config.inpainting,
        "size": {
            "best": config.image_size,
            "multiple_of": side_step(config),
            "largest": LARGEST_SIDE,
        },
        "parameters": sum(with_shapes.values()),
        "memory": _memory(config, with_shapes),
    }


def _networks(path: Path, config: ModelConfig) -> tuple[dict[str, int], list[str]]:
    """({network: number of parameters as configured}, what is wrong with the files)."""
    problems = []
    there = model_folder.file_entries(path)
    wanted = registry.abstract(config)
    known = [name for name in registry.OPTIONAL if name in there]
    wanted |= registry.abstract(config, only=known) if known else {}
    for name, (_, shapes) in wanted.items():
        try:
            model_folder.check_network(path, name, shapes)
        except ModelFolderError as problem:
            problems.append(str(problem))
    return {name: registry.count(shapes) for name, (_, shapes) in wanted.items()}, problems


def _checksums(path: Path, networks: dict[str, int]) -> list[str]:
    problems = []
    for name in networks:
        try:
            model_folder.verify_network(path, name)
        except ModelFolderError as problem:
            problems.append(str(problem))
    return problems


def _memory(config: ModelConfig, networks: dict[str, int]) -> dict[str, Any]:
    """GiB of weights, and of pictures where it was measured. The networks of `registry.OPTIONAL`
    stay float32."""
    large = sum(count for name, count in networks.items() if name not in registry.OPTIONAL)
    small = sum(networks.values()) - large
    memory: dict[str, Any] = {
        "weights_float32": round(4 * (large + small) / _GIB, 2),
        "weights_bfloat16": round((2 * large + 4 * small) / _GIB, 2),
    }
    if (config.unet, config.vae, config.image_encoder) == (
        SD15.unet,
        SD15.vae,
        SD15.image_encoder,
    ):
        memory["gpu_512_pictures_at_a_time"] = _SD15_PEAK
    return memory


def report_lines(found: dict[str, Any]) -> list[str]:
    """`inspect_model`'s result as lines to read."""
    yes = lambda value: "yes" if value else "no"
    head, size, default, memory = (found[key] for key in ("head", "size", "default", "memory"))
    trained = head["trained_with"]
    against = f"; the weights were trained with {trained}" if trained else ""
    peak = memory.get("gpu_512_pictures_at_a_time")
    rows = {
        "photos": yes(found["photos"]),
        "identity files": yes(found["identity_files"]),
        "heads": f"{head['model']}, from photos by {head['from_photos_by']}{against}",
        "recognizer": f"{found['identity']['recognizer']}; image tokens by "
        f"{found['identity']['image_tokens'].replace('recognizer', 'the same')}",
        "sizes": f"{size['best']}² is best; sides are multiples of {size['multiple_of']} up to "
        f"{size['largest']}",
        "samplers": f"{', '.join(found['samplers'])} (default {default['sampler']}, "
        f"{default['steps']} steps, guidance {default['guidance_scale']:g})",
        "ControlNets": ", ".join(found["controlnets"])
        or "none (caphuman import --controlnet FILE)",
        "LoRAs": (
            f"merged: {', '.join(found['loras']['merged'])}; " if found["loras"]["merged"] else ""
        )
        + "caphuman generate --lora FILE adds one",
        "memory": f"weights {memory['weights_float32']:g} GiB on a CPU (float32), "
        f"{memory['weights_bfloat16']:g} GiB on a GPU or TPU (bfloat16)"
        + (
            f"; with a 512² picture {peak['1']} GiB of a GPU, with eight at a time {peak['8']} GiB "
            f"(by the compiler's count for an H200)"
            if peak
            else ""
        ),
        "checksums": found["checksums"]
        + ("" if found["checksums"] != "not compared" else " (--verify compares them)"),
    }
    lines = [f"{found['model']}: {found['name']}, {found['parameters'] / 1e6:,.1f} M parameters"]
    lines += [f"  {name:<16}{text}" for name, text in rows.items()]
    lines += [f"damaged: {problem}" for problem in found["problems"]]
    return lines + [f"missing: {lack['text']}" for lack in found["lacks"]]
