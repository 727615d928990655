"""The face networks from their PyTorch files: FaceNet, MTCNN, face parsing, DECA's coarse encoder.

Names are those of facenet-pytorch's InceptionResnetV1 and MTCNN, of face-parsing.PyTorch's BiSeNet
(79999_iter.pth) and of DECA's `E_flame` (deca_model.tar). Each is derived from our path by the
substitutions below, in their order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from caphuman_jax.config import SD15
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.models import registry
from caphuman_jax.models.network import Network
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.weights.convert import fits, to_ours

_LEAVES = [
    (r"\.kernel$", ".weight"),
    (r"\.scale$", ".weight"),
    (r"\.mean$", ".running_mean"),
    (r"\.variance$", ".running_var"),
]
_RESNET = [
    (r"\bstem\.conv\.", "conv1."),
    (r"\bstem\.norm\.", "bn1."),
    (r"\bshortcut\.conv\.", "downsample.0."),
    (r"\bshortcut\.norm\.", "downsample.1."),
    (r"\bconv_(\d)\.conv\.", r"conv\1."),
    (r"\bconv_(\d)\.norm\.", r"bn\1."),
    (r"\bstages\.(\d)\.", lambda match: f"layer{int(match[1]) + 1}."),
]
_RULES = {
    "facenet": [
        (r"^conv_", "conv2d_"),
        (r"\bembed\.", "last_linear."),
        (r"\bembed_norm\.", "last_bn."),
        (r"\bmix\.", "conv2d."),
        (r"\bbranches\.(\d)\.", r"branch\1."),
        (r"\.norm\.", ".bn."),
    ],
    "face_parsing": [
        (r"^resnet\.", "cp.resnet."),
        *_RESNET,
        (r"^(attend|head)_(\d+)\.", r"cp.\1_\2."),
        (r"^context\.", "cp.conv_avg."),
        (r"\battend_(\d+)\.", r"arm\1."),
        (r"\bhead_(\d+)\.", r"conv_head\1."),
        (r"\bweigh\.conv\.", "conv_atten."),
        (r"\bweigh\.norm\.", "bn_atten."),
        (r"^fuse\.", "ffm.convblk."),
        (r"^narrow\.", "ffm.conv1."),
        (r"^widen\.", "ffm.conv2."),
        (r"^features\.", "conv_out.conv."),
        (r"^classes\.", "conv_out.conv_out."),
        (r"\.norm\.", ".bn."),
    ],
    "mtcnn": [],
    "deca_encoder": [
        (r"^resnet\.", "encoder."),
        *_RESNET,
        (r"^hidden\.", "layers.0."),
        (r"^codes\.", "layers.2."),
    ],
}
_UNUSED = {
    "facenet": r"logits\.",  # The classifier of the people that it was trained on.
    "face_parsing": r"conv_out(16|32)\.",  # Heads for the losses in training.
    "mtcnn": r"$^",
    "deca_encoder": r"encoder\.fc\.",  # ImageNet's classifier, in some files.
}
"""What the files hold besides and inference does not use, as regular expressions."""


def load(name: str, arrays: Mapping[str, Any], dtype=jnp.float32) -> Network:
    """A face network from the arrays of its PyTorch file.

    Args:
        name: One of `registry.OPTIONAL`.
        arrays: PyTorch name → array. DECA's file may be passed whole; its `E_flame` is taken.
        dtype: Compute dtype of FaceNet and face parsing; the others compute in float32.

    Returns:
        (graphdef, params) with float32 parameters.

    Raises:
        ModelFolderError: Names every array that is missing, surplus or misshapen. Parts that
            inference does not use (`_UNUSED`) may be there or not.
    """
    if name == "facenet" and is_casia(arrays):
        raise ModelFolderError(
            "this FaceNet was trained on CASIA-WebFace; CapHuman was trained with "
            "20180402-114759-vggface2.pt"
        )
    graphdef, shapes = registry.abstract(SD15, ComputeConfig(dtype), only=(name,))[name]
    kind = "mtcnn" if name.startswith("mtcnn_") else name
    return graphdef, fill(kind, shapes, _encoder_of(arrays) if kind == "deca_encoder" else arrays)


def is_casia(arrays: Mapping[str, Any]) -> bool:
    """Whether FaceNet's arrays are facenet-pytorch's other file, by the number of people in the
    classifier of its training: 10,575, and 8,631 in VGGFace2. Its vectors do not fit CapHuman."""
    return "logits.weight" in arrays and len(arrays["logits.weight"]) == 10_575


def table(network: str, paths: Iterable[str]) -> dict[str, str]:
    """{PyTorch name: our dotted path} of "facenet", "face_parsing", "deca_encoder" or "mtcnn", for
    its own parameter paths.
    """
    paths = set(paths)
    names = {}
    for path in paths:
        name = path
        # facenet-pytorch numbers the convolutions of a branch only where there is more than one.
        if (
            network == "facenet"
            and (branch := re.search(r"(.*\bbranches\.\d)\.0\.", path))
            and not any(other.startswith(f"{branch[1]}.1.") for other in paths)
        ):
            name = path.replace(branch[0], f"{branch[1]}.", 1)
        for pattern, replacement in [*_RULES[network], *_LEAVES]:
            name = re.sub(pattern, replacement, name)
        names[name] = path
    return names


def fill(network: str, shapes: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Fill one network from PyTorch's names and layout.

    shapes: its parameters as nested dicts of anything with `.shape`; arrays: PyTorch name → array,
    with or without a prefix that stands before every name ("module."). Every array must be used,
    except batch counters and `_UNUSED`. Returns nested dicts of float32 arrays. Raises
    ModelFolderError naming every missing, surplus and misshapen array."""
    wanted: dict[str, Any] = traverse_util.flatten_dict(shapes, sep=".")
    names = table(network, wanted)
    prefix = "module." if arrays and all(name.startswith("module.") for name in arrays) else ""
    given = {name.removeprefix(prefix): name for name in arrays}
    ignored = re.compile(rf"({_UNUSED[network]})|.*\.num_batches_tracked$")
    problems = [f"missing {name}" for name in sorted(names) if name not in given]
    problems += [
        f"surplus {name}" for name in sorted(set(given) - set(names)) if not ignored.match(name)
    ]
    filled = {}
    for name, path in names.items():
        if name not in given:
            continue
        array, shape = np.asarray(arrays[given[name]]), tuple(wanted[path].shape)
        if not fits(path, array.shape, shape):
            problems.append(f"{name} has shape {array.shape}, which does not give {shape}")
        elif not np.isfinite(array).all():
            problems.append(f"{name} holds numbers that are not finite")
        else:
            filled[path] = np.ascontiguousarray(to_ours(path, array, shape), np.float32)
    if problems:
        more = f" and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise ModelFolderError(
            f"these are not the weights of {network}: " + "; ".join(problems[:12]) + more
        )
    return traverse_util.unflatten_dict(filled, sep=".")


def _encoder_of(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The coarse encoder's arrays in deca_model.tar: nested under `E_flame`, or with dotted names
    that begin so; all arrays where there is no `E_flame`."""
    if isinstance(arrays.get("E_flame"), Mapping):
        return arrays["E_flame"]
    return {
        name.removeprefix("E_flame."): arrays[name]
        for name in arrays
        if name.startswith("E_flame.")
    } or arrays
