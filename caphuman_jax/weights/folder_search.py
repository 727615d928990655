"""`find`: which of the files in a folder are weights that a model can be made of, by what is in
them.

Names alone decide nothing: they only choose between several files of one kind, and a file that has
a published file's name but not its content is a problem that is reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.config import SD15, ModelConfig
from caphuman_jax.errors import CapHumanError, HeadError, ModelFolderError, SettingError
from caphuman_jax.face import arcface
from caphuman_jax.head.models import flame, flame_files
from caphuman_jax.io import pickles
from caphuman_jax.io.npz_file import open_npz
from caphuman_jax.weights import face_names, sources
from caphuman_jax.weights.checkpoint_files import Checkpoint, open_checkpoint

_STAGES = ("pnet", "rnet", "onet")
PUBLISHED = {
    "caphuman.ckpt": "caphuman",
    "20180402-114759-vggface2.pt": "facenet",
    "79999_iter.pth": "face_parsing",
    "deca_model.tar": "deca",
    **{f"{stage}.pt": f"mtcnn_{stage}" for stage in _STAGES},
    **dict.fromkeys(flame_files.MODEL_NAMES, "flame"),
    flame_files.EMBEDDING: "landmarks",
    flame_files.TEMPLATE: "template",
    flame_files.TEXTURE: "texture",
}
"""{name that a file is published under: what it has to be}."""
_WORDS = {
    "caphuman": "CapHuman",
    "base": "a Stable Diffusion 1 base",
    "vae": "a VAE",
    "clip": "CLIP",
    "image_encoder": "CLIP's image encoder",
    "controlnet": "a ControlNet",
    "facenet": "FaceNet",
    "face_parsing": "face parsing",
    "deca": "DECA",
    **{f"mtcnn_{stage}": f"MTCNN's {stage}" for stage in _STAGES},
    "flame": "FLAME",
    "landmarks": "FLAME's landmarks",
    "template": "FLAME's template",
    "texture": "FLAME's texture space",
}
_PREFERRED = {"flame": "generic_model"}
"""The stem to take where several have a published name: DECA's numbers belong to this FLAME."""
_COMPANIONS = ("landmarks", "template", "texture")
_WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".tar", ".pkl", ".npz", ".npy")
_OTHERS = (".onnx", ".zip", ".obj", ".7z", ".gz", ".part", ".crdownload")
_DEEPEST, _MOST = 4, 2000
# Kinds of weight files by names of tensors that they alone have; the first that fits.
_SIGNATURES = (
    ("deca", r"E_flame\.layers\.2\.weight"),
    ("facenet", r"conv2d_1a\.conv\.weight"),
    ("face_parsing", r"cp\.resnet\.conv1\.weight"),
    ("mtcnn_onet", r"dense6_1\.weight"),
    ("mtcnn_rnet", r"dense5_1\.weight"),
    ("mtcnn_pnet", r"conv4_2\.weight"),
    ("lora", r".*(lora_(down|up|A|B)|hada_w1_a|lokr_w1).*"),
    ("caphuman", r"(control_model\.)?mask_predict\.0\.weight"),
    ("controlnet", r"(control_model\.|controlnet_)?(input_hint_block|cond_embedding)\..+"),
    ("base", r"(model\.diffusion_model\.|)(time_embed|time_embedding)\..+"),
    ("vae", r"(first_stage_model\.)?post_quant_conv\.weight"),
    ("clip", r"(.*\.)?text_model\.embeddings\..+"),
    ("image_encoder", r"(.*\.)?vision_model\.embeddings\..+"),
)


@dataclasses.dataclass
class Findings:
    """What is in a folder.

    Attributes:
        taken: Argument of `importer.import_model` → file or folder; of "mtcnn" {stage: file}, of
            "controlnets" a list.
        notes: A line for each file that is not taken, with the reason.
        others: How many files are not weights by their names.
    """

    taken: dict[str, Any]
    notes: list[str]
    others: int

    def lines(self) -> list[str]:
        """The report: what was taken for what, and what was not."""
        lines = []
        for argument, taken in self.taken.items():
            option = argument.removesuffix("s").replace("_", "-")
            paths = taken.values() if isinstance(taken, dict) else taken
            for path in [taken] if isinstance(taken, Path) else paths:
                lines.append(f"  --{option:<14} {path}")
        lines += [f"  {note}" for note in self.notes]
        if self.others:
            lines.append(f"  {self.others} other files that are not weights by their names")
        return lines


def find(
    folder: str | Path, config: ModelConfig | None = None, given: Sequence[str] = ()
) -> Findings:
    """Look at every file in a folder, four levels deep; tensors are not read.

    Args:
        folder: Where the downloads are.
        config: What a base must fit; None: Stable Diffusion 1.5.
        given: Arguments of `import_model` that are decided already: files for them are not taken.

    Raises:
        SettingError: There is no such folder; nothing in it can be used; several files could be the
            same part; or a file with a published name holds something else.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise SettingError(f"--from {folder} is not a folder")
    found: dict[str, list[Path]] = {}
    notes, problems, others = [], [], 0
    for path in _candidates(folder):
        try:
            kind = kind_of(path, config or SD15)
        except CapHumanError as error:
            reason = str(error).removeprefix(f"{path} ").removeprefix(f"{path}: ")
            expected = PUBLISHED.get(path.name)
            if expected and _argument(expected) not in given:
                problems.append(f"{path} should be {_WORDS[expected]}, but: {reason}")
            else:
                notes.append(f"not recognized: {path} ({reason})")
            continue
        if kind is None:
            others += 1
            continue
        expected = PUBLISHED.get(path.name, kind)
        if kind != expected and _argument(expected) not in given:
            problems.append(f"{path} should be {_WORDS[expected]}, but is {_words(kind)}")
        elif kind.startswith("not "):
            notes.append(f"not taken: {path} is {_words(kind)}")
        elif _argument(kind) in given:
            notes.append(f"not taken: {path}, {_words(kind)}, as its option is given")
        else:
            found.setdefault(kind, []).append(path)
    if problems:
        raise SettingError(
            f"{'; '.join(problems)}. Download it again, move it out of {folder}, or name the right "
            f"file with its own option"
        )
    taken = _choose(found, notes)
    if not taken:
        raise SettingError(
            f"--from {folder}: none of its files are weights of CapHuman or of what goes with it"
            + (f"; {'; '.join(notes[:5])}" if notes else "")
        )
    return Findings(taken, notes, others)


def kind_of(path: Path, config: ModelConfig = SD15) -> str | None:
    """What a file or folder is: a key of `_WORDS`, "not …" with what it is instead, or None for a
    file that nobody would take for weights.

    Raises:
        CapHumanError: It cannot be read, or its content is not known.
    """
    if path.is_dir():
        return _kind_of_folder(path, config)
    suffix = path.suffix.lower()
    if path.name == flame_files.TEMPLATE:
        flame_files.read_template(path)
        return "template"
    if suffix == ".onnx":
        if path.name in arcface.PACKS.values():
            return "not part of a model folder: CAPHUMAN_ARCFACE names this ArcFace network"
        return None
    if suffix in (".zip", ".7z", ".gz"):
        raise ModelFolderError("an archive; unpack it first")
    if suffix in (".part", ".crdownload"):
        raise ModelFolderError("a download that is not finished")
    if suffix == ".npy":
        flame_files.read_embedding(path)
        return "landmarks"
    if suffix == ".npz":
        return _kind_of_arrays(path)
    if suffix == ".pkl":
        return _kind_of_pickle(path)
    if suffix not in _WEIGHTS:
        return None
    with open_checkpoint(path) as checkpoint:
        return _kind_of_tensors(checkpoint, path, config)


def _kind_of_folder(path: Path, config: ModelConfig) -> str:
    """Of a folder of diffusers or transformers (`_candidates` gives no others)."""
    if (path / "unet").is_dir():
        return "caphuman" if (path / "capface").is_dir() else "base"
    with open_checkpoint(path) as checkpoint:
        return _kind_of_tensors(checkpoint, path, config)


def _kind_of_tensors(checkpoint: Checkpoint, path: Path, config: ModelConfig) -> str:
    names = list(checkpoint)
    kind = next(
        (kind for kind, form in _SIGNATURES if any(re.fullmatch(form, name) for name in names)),
        None,
    )
    if kind is None:
        shown = ", ".join(names[:3]) or "nothing"
        raise ModelFolderError(f"its tensors are not known: {shown}, …")
    if kind == "facenet" and face_names.is_casia(
        {name: np.empty(checkpoint.shape(name)) for name in names if name == "logits.weight"}
    ):
        return "not CapHuman's FaceNet: it was trained on CASIA-WebFace, not on VGGFace2"
    if kind == "lora":
        return (
            "not part of the base: a LoRA, which --lora adds for good, or generate --lora for once"
        )
    if kind in ("base", "controlnet"):
        with contextlib.closing(sources.read(kind, path)) as source:
            network = source.networks.get("unet" if kind == "base" else "controlnet")
            other = network and sources.another_kind(network, config)
            if other and not (kind == "base" and other == "an inpainting model"):
                return f"not Stable Diffusion 1: {other}"
    return kind


def _kind_of_arrays(path: Path) -> str:
    def read():
        with open_npz(path) as file:
            return set(file.files), file["v_template"].shape if "v_template" in file.files else ()

    names, shape = pickles.guarded(path, read)
    if {"mean", "tex_dir"} <= names:
        return "texture"
    if {"lmk_face_idx", "lmk_b_coords"} <= names:
        return "not asked for: FLAME's MediaPipe landmarks, used if they lie next to FLAME"
    return _flame_or_else(names, shape)


def _kind_of_pickle(path: Path) -> str:
    content = pickles.read_pickle(path)
    if not isinstance(content, dict):
        raise ModelFolderError("a pickle without named arrays")
    return _flame_or_else(
        {str(name) for name in content}, getattr(content.get("v_template"), "shape", ())
    )


def _flame_or_else(names: set[str], shape: tuple[int, ...]) -> str:
    if not {"v_template", "shapedirs", "J_regressor", "weights"} <= names:
        raise HeadError(f"its arrays are not known: {', '.join(sorted(names)[:3])}, …")
    if shape != (flame.VERTICES, 3):
        return f"not FLAME: a body or hand model of {shape[0]:,} vertices"
    return "flame"


def _candidates(folder: Path) -> Iterator[Path]:
    """Files, and folders that are one part as a whole (diffusers', transformers')."""
    seen = 0
    for root, folders, files in os.walk(folder):
        here = Path(root)
        depth = len(here.relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) * (
            depth < _DEEPEST
        )
        if _is_model_folder(here):
            folders.clear()
            continue
        if _is_part(here):
            folders.clear()
            yield here
            continue
        for name in sorted(files):
            seen += 1
            if seen > _MOST:
                raise SettingError(
                    f"--from {folder} holds more than {_MOST:,} files; name the folder that the "
                    f"downloads are in"
                )
            if not name.startswith("."):
                yield here / name


def _is_model_folder(folder: Path) -> bool:
    """Whether a folder was made by `caphuman import` or comes with a shipped model."""
    config = folder / "config.json"
    return config.is_file() and '"caphuman_jax"' in config.read_text(errors="replace")[:200]


def _is_part(folder: Path) -> bool:
    if (folder / "unet").is_dir():
        return True
    return (folder / "config.json").is_file() and any(
        file.suffix in (".safetensors", ".bin") for file in folder.iterdir()
    )


def _choose(found: dict[str, list[Path]], notes: list[str]) -> dict:
    """One file for each part. Raises SettingError where several could be it."""
    taken: dict[str, Any] = {
        kind: _best(kind, paths, notes)
        for kind, paths in found.items()
        if kind not in ("controlnet", *_COMPANIONS)
    }
    stages = {stage: taken.pop(f"mtcnn_{stage}", None) for stage in _STAGES}
    if all(stages.values()):
        taken["mtcnn"] = stages
    elif any(stages.values()):
        missing = " and ".join(f"{stage}.pt" for stage, path in stages.items() if path is None)
        notes.append(f"not taken: MTCNN, of which {missing} is missing")
    if "controlnet" in found:
        taken["controlnets"] = found["controlnet"]
    if "flame" in taken:
        taken["flame"] = _flame(taken["flame"], found, notes)
    else:
        notes += [
            f"not taken: {path}, {_WORDS[kind]}, without FLAME itself"
            for kind in _COMPANIONS
            for path in found.get(kind, ())
        ]
    order = ("caphuman", "base", "vae", "clip", "image_encoder", "controlnets", "facenet", "mtcnn")
    rank = {kind: number for number, kind in enumerate(order)}
    return dict(sorted(taken.items(), key=lambda item: rank.get(item[0], len(rank))))


def _flame(model: Path, found: dict[str, list[Path]], notes: list[str]) -> Path:
    """What --flame names for a FLAME model: its folder, or the file where the folder holds several
    models."""
    for kind in _COMPANIONS:
        paths = found.get(kind, [])
        if beside := [path for path in paths if path.parent == model.parent]:
            notes.append(f"with FLAME: {beside[0]}")
        elif paths:
            notes.append(
                f"not taken: {paths[0]}, {_WORDS[kind]}: it has to lie next to {model}; copy it "
                f"there"
            )
    models = [name for name in flame_files.MODEL_NAMES if (model.parent / name).is_file()]
    return model.parent if models == [model.name] else model


def _best(kind: str, paths: list[Path], notes: list[str]) -> Path:
    """The file to take: the one with the published name, else the only one; of a .ckpt and a
    .safetensors of the same name, the latter."""
    named = [path for path in paths if PUBLISHED.get(path.name) == kind]
    named = [path for path in named if path.stem == _PREFERRED.get(kind)] or named
    left = named or paths
    safe = {path.with_suffix("") for path in left if path.suffix == ".safetensors"}
    left = [
        path for path in left if path.suffix == ".safetensors" or path.with_suffix("") not in safe
    ]
    if len(left) > 1:
        option = _argument(kind).replace("_", "-")
        raise SettingError(
            f"several files could be {_WORDS[kind]}: {', '.join(map(str, left))}; name one with "
            f"--{option}"
        )
    notes += [
        f"not taken: {path}, {_WORDS[kind]}, as {left[0]} is" for path in paths if path != left[0]
    ]
    return left[0]


def _words(kind: str) -> str:
    return _WORDS.get(kind, kind)


def _argument(kind: str) -> str:
    """The argument of `import_model` that a kind of file is for."""
    return {"controlnet": "controlnets", **dict.fromkeys(_COMPANIONS, "flame")}.get(
        kind, "mtcnn" if kind.startswith("mtcnn_") else kind
    )
