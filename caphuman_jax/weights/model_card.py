"""README.md of a model folder that a training run or an import wrote, with the head that the
Hugging Face hub reads.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from caphuman_jax.io import atomic
from caphuman_jax.weights import model_folder

NAME = "README.md"
_MARK = "<!-- written by caphuman; a file without this line is never replaced -->"
_HEAD = """---
library_name: caphuman_jax
pipeline_tag: text-to-image
tags:
- caphuman
- face
- identity
- jax
- flax
---
"""


def write(folder: Path, replaced: Path | None = None) -> list[Path]:
    """Write the card of a model folder, unless it has one that somebody else wrote. A recipe of
    one's own may write something else; it gets none.

    The card says what config.json and the files hold, and names what only the model's author can
    say.

    Args:
        folder: the model folder.
        replaced: the folder that it will replace, if it exists; its card counts, too.

    Returns:
        The paths of what was written: one or none.

    Raises:
        ModelFolderError: a damaged model folder.
    """
    if not (folder / "config.json").is_file():
        return []
    for path in (folder / NAME, (replaced or folder) / NAME):
        if path.exists() and _MARK not in path.read_text(encoding="utf-8"):
            return []
    atomic.write_text(folder / NAME, _text(folder))
    return [folder / NAME]


def _text(folder: Path) -> str:
    config, metadata = model_folder.read_config(folder), model_folder.read_metadata(folder)
    with model_folder.stored_networks(folder) as stored:
        sizes = {
            name: sum(math.prod(tensor.shape) for tensor in tensors.values())
            for name, tensors in stored.items()
        }
        types = {t.dtype.name for tensors in stored.values() for t in tensors.values()}
    parts = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in sizes.items())
    identity = config.identity
    trained = "steps" in metadata
    lines = [
        _HEAD,
        f"# `{config.name}`: model card",
        _MARK,
        "",
        f"{sum(sizes.values()) / 1e6:.1f} M parameters ({parts}), stored as "
        f"{', '.join(sorted(types))}; for pictures of {config.image_size} × "
        f"{config.image_size} pixels. It knows people by {identity.recognizer}, and its head model "
        f"is {config.head}.",
        "",
        "```python",
        "import caphuman_jax",
        "",
        'pipe = caphuman_jax.load("this folder, or its name on the hub")',
        'pipe(reference="me.jpg", prompt="a photo of a smiling person").save("pictures")',
        "```",
    ]
    if trained:
        lines += ["", f"**Training.** {metadata['steps']} steps of `caphuman train`."]
    if imported := metadata.get("imported"):
        origins = ", ".join(f"{name} from {file}" for name, file in imported["networks"].items())
        known = [file["known"] for file in imported["files"] if file["known"]]
        lines += [
            "",
            f"**Imported.** {origins}." + (f" Known: {'; '.join(known)}." if known else ""),
        ]
    if settings := metadata.get("training"):
        lines += ["", "```json", json.dumps(settings, indent=1, default=str), "```"]
    if "held_out" in metadata:
        lines += ["", f"**Held out.** {json.dumps(metadata['held_out'], default=str)}"]
    lines += [
        "",
        "**Measured.** Not yet; `caphuman evaluate --model` measures faces, identity, pose and "
        "expression.",
        "",
        "**To be added by its author:** the photos and their license, the license of the weights, "
        "and what the model cannot do.",
        "",
        "**Use.** Only make pictures of people who agree to it. Every picture is marked as "
        "AI-generated.",
    ]
    return "\n".join(lines) + "\n"
