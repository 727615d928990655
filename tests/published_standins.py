"""Stand-ins for all the files that docs/published-weights.md names: true names, true names of
tensors and true shapes, with numbers made so that everything
works.

Tensors of one file are views of a few shared storages, so that 1.7 billion weights take some 300 MB
on the disk; the importer does not know.
"""

import json
import math
from pathlib import Path

import flame_standin
import jax
import numpy as np
import torch
from flax import traverse_util

from caphuman_jax.config import SD15
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.models import deca_encoder, registry
from caphuman_jax.weights import convert, face_names
from caphuman_jax.weights.names import PREFIXES

NAMES = (
    "caphuman.ckpt",
    "Realistic_Vision_V3.0.ckpt",
    "vae-ft-mse-840000-ema-pruned.ckpt",
    "20180402-114759-vggface2.pt",
    "79999_iter.pth",
    "deca_model.tar",
    "flame/generic_model.pkl",
    "flame/FLAME_texture.npz",
)
PARITY = Path(__file__).parent / "parity" / "data"


def write_downloads(folder: Path) -> None:
    """Every file of the page, in `folder`. CAPHUMAN_FLAME must name folder/"flame"."""
    (folder / "flame").mkdir(parents=True)
    flame_standin.write_folder(folder / "flame")
    shapes = json.loads((PARITY / "full_parameters.json").read_text())
    clip = json.loads((PARITY / "clip_parameters.json").read_text())
    shapes |= {PREFIXES["text"] + name: shape for name, shape in clip["clip_text"].items()}
    shapes |= {
        PREFIXES["image_encoder"] + name: shape for name, shape in clip["clip_vision"].items()
    }
    starting = lambda *names: {
        name: shape for name, shape in shapes.items() if name.startswith(tuple(names))
    }
    extras = {"betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000)}
    caphuman = {"state_dict": _tensors(shapes, torch.float16) | extras, "global_step": 1}
    torch.save(caphuman, folder / "caphuman.ckpt")
    base = _tensors(
        starting(PREFIXES["unet"], PREFIXES["vae"], PREFIXES["text"]), torch.float16, seed=1
    )
    torch.save({"state_dict": base | extras}, folder / "Realistic_Vision_V3.0.ckpt")
    vae = _tensors(starting(PREFIXES["vae"]), torch.float32, seed=2)
    vae = {name.removeprefix(PREFIXES["vae"]): tensor for name, tensor in vae.items()}
    torch.save({"state_dict": vae}, folder / "vae-ft-mse-840000-ema-pruned.ckpt")

    write_face_networks(folder)


def write_face_networks(folder: Path) -> None:
    """The files of the networks that read photos. CAPHUMAN_FLAME must name a folder of FLAME."""
    faces = json.loads((PARITY / "face_network_parameters.json").read_text())
    facenet = _tensors(faces["facenet"], torch.float32)
    facenet |= {"logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    torch.save(facenet, folder / "20180402-114759-vggface2.pt")
    torch.save(_everything_is_skin(faces["face_parsing"]), folder / "79999_iter.pth")
    for stage in ("pnet", "rnet", "onet"):
        torch.save(_mtcnn(stage), folder / f"{stage}.pt")
    encoder = _theirs("deca_encoder", _deca_encoder())
    torch.save(
        {"E_flame": encoder, "E_detail": {"layers.0.weight": torch.zeros(2, 2)}},
        folder / "deca_model.tar",
    )


def _tensors(shapes, dtype, seed=0) -> dict[str, torch.Tensor]:
    """Weights of a network at its start: about 1/sqrt(inputs), norms that change nothing."""
    one, zero = torch.ones(1 << 17, dtype=dtype), torch.zeros(1 << 17, dtype=dtype)
    largest: dict[int, int] = {}
    powers = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            powers[name] = round(math.log2(math.prod(shape[1:])) / 2)
            count = math.prod(shape)
            largest[powers[name]] = max(largest.get(powers[name], 0), count)
    rng = np.random.default_rng(seed)
    small = rng.standard_normal(1_000_003, np.float32)
    pools = {
        power: torch.from_numpy(np.resize(small * 2.0**-power, count)).to(dtype)
        for power, count in largest.items()
    }
    tensors = {}
    for name, shape in shapes.items():
        ones = name.endswith((".weight", "running_var"))
        pool = pools[powers[name]] if len(shape) > 1 else one if ones else zero
        tensors[name] = pool[: math.prod(shape)].reshape(shape)
    return tensors


def _everything_is_skin(shapes) -> dict[str, torch.Tensor]:
    """Face parsing that sees class 1 everywhere: its last features are not negative."""
    tensors = _tensors(shapes, torch.float32)
    last = torch.full(tuple(shapes["conv_out.conv_out.weight"]), -0.1)
    last[1] = 0.1
    return tensors | {"conv_out.conv_out.weight": last}


def _mtcnn(stage: str) -> dict[str, torch.Tensor]:
    """A network of MTCNN that finds no face, so that the landmarks decide."""
    name = f"mtcnn_{stage}"
    shapes = traverse_util.flatten_dict(registry.abstract(SD15, only=(name,))[name][1], sep=".")
    names = face_names.table("mtcnn", shapes)
    tensors = _tensors(
        {
            torch_name: convert.shape_of_theirs(path, torch_name, tuple(shapes[path].shape))
            for torch_name, path in names.items()
        },
        torch.float32,
    )
    return tensors | ({"conv4_1.bias": torch.tensor([9.0, -9.0])} if stage == "pnet" else {})


def _deca_encoder():
    """A random encoder whose last layer is nearly all bias: it sees a mean head that looks straight
    ahead, in the middle of its crop of any photo.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if len(leaf.shape) > 1:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "variance"), np.float32)

    params = jax.tree_util.tree_map_with_path(
        draw, registry.abstract(SD15, only=("deca_encoder",))["deca_encoder"][1]
    )
    parts = {name: np.zeros(count, np.float32) for name, count in deca_encoder.PARTS.items()}
    parts["camera"] = flame_standin.frontal_camera(load_head("flame").flame)
    parts["light"] = flame_standin.frontal_light().reshape(-1)
    params["codes"] = {
        "kernel": params["codes"]["kernel"] * np.float32(1e-5),
        "bias": np.concatenate(list(parts.values())).astype(np.float32),
    }
    return params


def _theirs(network: str, params) -> dict[str, torch.Tensor]:
    """Our parameters in PyTorch's names and layout."""
    flat = traverse_util.flatten_dict(params, sep=".")
    tensors = {}
    for name, path in face_names.table(network, flat).items():
        array = np.asarray(flat[path])
        shape = convert.shape_of_theirs(path, name, array.shape)
        tensors[name] = torch.from_numpy(np.array(convert.to_theirs(path, array, shape)))
    return tensors
