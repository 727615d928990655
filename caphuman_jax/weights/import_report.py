"""What an import did: the description kept in config.json, and the report that is printed."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.errors import HeadError
from caphuman_jax.head.base import HeadSource
from caphuman_jax.head.models import registry as heads
from caphuman_jax.weights.import_plan import Pieces
from caphuman_jax.weights.known_files import PUBLISHED, Identification


def describe(path: Path, identity: Identification) -> dict[str, Any]:
    md5, known = identity.result()
    return {"file": _short(path), "md5": md5, "known": known}


def origin(pieces: Pieces) -> str:
    names = Counter(
        _short(piece.checkpoint.path) if piece.checkpoint else "fresh numbers"
        for piece in pieces.values()
    )
    return " and ".join(names)


def _is_set_up(source: HeadSource, given: str | Path | None) -> bool:
    """Whether the environment already names the head model's files, those of `given` if any."""

    def resolved(path: Path | None) -> dict[str, Path]:
        return {name: file.resolve() for name, file in source.files(path).items()}

    try:
        ready = resolved(None)
        return not given or ready == resolved(Path(given).expanduser())
    except HeadError:
        return False


def _short(path: Path) -> str:
    """A file's name; with that of its folder where all files are called alike."""
    return (
        f"{path.parent.name}/{path.name}"
        if path.name.startswith(("diffusion_", "model.", "model-", "pytorch_model", "flax_model"))
        else path.name
    )


def unused_tensors(opened, used: set, ignore) -> dict[str, dict[str, int]]:
    """File → what of it was left out → how many tensors."""
    unused: dict[str, dict[str, int]] = {}
    for source in opened:
        groups: Counter = Counter()
        for group, keys in source.extras.items():
            groups[group] += sum(
                (c.path, key) not in used for key in keys for c in source.checkpoints if key in c
            )
        for network, found in source.networks.items():
            groups[f"{network}, of which another file's is used"] += sum(
                (found.path, key) not in used for key in found.keys.values()
            )
        groups["left out as asked (--ignore)"] += sum(
            key.startswith(tuple(ignore)) for key in source.unknown
        )
        groups = Counter({group: count for group, count in groups.items() if count})
        if groups:
            unused[source.label] = dict(groups)
    return unused


def dry_run(out, config, plan, unused, loras, faces, lacking, flame, dtype, refusals) -> list[str]:
    """What an import would do, line by line.

    Args:
        faces: {network to read photos with: its file}.
        dtype: that weights would be stored in; None: each in its own.
        refusals: why nothing would be written.
    """
    sizes = {
        network: sum(
            math.prod(piece.shape) * np.dtype(dtype or piece.dtype).itemsize
            for piece in pieces.values()
        )
        for network, pieces in plan.items()
    } | {network: path.stat().st_size for network, path in faces.items()}
    manifest = {network: {"bytes": size} for network, size in sizes.items()}
    lines = report(out, config, plan, [], unused, loras, manifest, lacking, flame)[:-1]
    ending = [f"would be refused: {refusal}" for refusal in refusals]
    return [*lines, *ending, "nothing was written (--dry-run)"]


def report(out, config, plan, files, unused, loras, manifest, lacking, flame) -> list[str]:
    lines = []
    for network, pieces in plan.items():
        types = Counter(str(piece.dtype) for piece in pieces.values())
        lines.append(f"{network}: {len(pieces)} tensors of {origin(pieces)} ({', '.join(types)})")
    measuring = [network for network in manifest if network not in plan]
    if measuring:
        lines.append(f"to read photos with: {', '.join(measuring)}")
    lines += [f"LoRA {Path(path).name} added with strength {strength}" for path, strength in loras]
    for entry in files:
        if entry["known"]:
            lines.append(f"{entry['file']} is {entry['known']}")
        elif entry["file"] in PUBLISHED:
            lines.append(
                f"{entry['file']} has the MD5 {entry['md5']}, which is not the published file's "
                f"({PUBLISHED[entry['file']]})"
            )
    lines += [
        f"not used of {name}: {count} {'tensor' if count == 1 else 'tensors'}, {group}"
        for name, groups in unused.items()
        for group, count in groups.items()
    ]
    size = sum(entry["bytes"] for entry in manifest.values()) / 2**30
    lines.append(
        f"{out}: {config.name}, {size:.2f} GiB, predicts {config.diffusion.prediction_type}, head "
        f"{config.head}"
    )
    lines += [f"missing: {lack}" for lack in lacking]
    source, _ = heads.find(config.head)
    if flame:
        lines.append(f"{flame} holds all that is needed; it is not copied")
    if source.setup and not _is_set_up(source, flame):
        place = f" ({Path(flame).expanduser().resolve()})" if flame else ""
        lines.append(f"before use, {source.setup}{place}")
    lines.append(f"what it can do: caphuman check {out}")
    return lines
