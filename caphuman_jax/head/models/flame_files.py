"""FLAME's files → `flame.Flame` and its texture space. No code in a file is executed, and neither
chumpy nor PyTorch is needed.

The model is generic_model.pkl (FLAME 2020; DECA's data), flame2023.pkl, flame2023_Open.pkl, or the
same entries in an .npz.
Next to it, or given, may be landmark_embedding.npy and head_template.obj (both DECA's) and
FLAME_texture.npz."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.errors import HeadError, ModelFolderError
from caphuman_jax.face import landmark_indices
from caphuman_jax.head.models.flame import JOINTS, PARENTS, VERTICES, Flame
from caphuman_jax.head.texture import TextureSpace
from caphuman_jax.head.topology import incident_triangles
from caphuman_jax.io import pickles, tensors_in_pickles
from caphuman_jax.io.files import open_regular
from caphuman_jax.io.npz_file import open_npz

MODEL_NAMES = (
    "generic_model.pkl",
    "flame2023.pkl",
    "flame2023_Open.pkl",
    "FLAME_NEUTRAL.pkl",
    "generic_model.npz",
    "flame2023.npz",
    "flame2023_Open.npz",
    "FLAME_NEUTRAL.npz",
)
EMBEDDING, TEMPLATE, TEXTURE = "landmark_embedding.npy", "head_template.obj", "FLAME_texture.npz"
_SHAPES = 300  # In the files, expression directions follow this many of shape.
_ENTRIES = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights")


def load_flame(
    path: str | Path,
    *,
    embedding: str | Path | None = None,
    template: str | Path | None = None,
    shapes: int = 100,
    expressions: int = 50,
    vertices: int | None = VERTICES,
) -> Flame:
    """FLAME from its file, or from the folder that it is in, as numpy arrays (no device is
    touched).

    embedding, template: landmark_embedding.npy and head_template.obj; if not given, those of these
    names next to the model are taken, and without them the model has no landmarks or no texture
    coordinates. shapes, expressions: how many directions to keep; DECA's are 100 and 50. vertices:
    how many the model must have (None: any number). Raises HeadError where a file is missing, is
    not a FLAME model, or contradicts itself."""
    path = Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in MODEL_NAMES if (path / name).is_file()]
        if len(found) != 1:
            what = (
                f"several FLAME models ({', '.join(file.name for file in found)}): name one"
                if found
                else (
                    f"no FLAME model; it should hold one of {', '.join(MODEL_NAMES)}, or name the "
                    f"file itself"
                )
            )
            raise HeadError(f"{path} holds {what}")
        path = found[0]
    arrays = _read_entries(path)
    nearby = lambda name: path.parent / name if (path.parent / name).is_file() else None
    embedding, template = embedding or nearby(EMBEDDING), template or nearby(TEMPLATE)
    return from_arrays(
        arrays,
        shapes=shapes,
        expressions=expressions,
        vertices=vertices,
        name=path.stem,
        source=str(path),
        embedding=read_embedding(embedding) if embedding else None,
        template=read_template(template) if template else None,
    )


def from_arrays(
    arrays: Mapping[str, Any],
    *,
    shapes: int = 100,
    expressions: int = 50,
    vertices: int | None = VERTICES,
    embedding: Mapping[str, np.ndarray] | None = None,
    template: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    name: str = "flame",
    source: str = "the FLAME model",
) -> Flame:
    """FLAME from the entries of its file; see `load_flame`. embedding, template: as
    `read_embedding` and `read_template` give them.

    Raises HeadError naming what is missing, misshapen, not finite or out of range; `source` names
    the file in it."""
    missing = [entry for entry in _ENTRIES if entry not in arrays]
    if missing:
        raise HeadError(f"{source} is not a FLAME model: it has no {', '.join(missing)}")
    try:
        mean, shapedirs, posedirs, regressor, weights = (
            np.asarray(arrays[entry], np.float64)
            for entry in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")
        )
        triangles, kintree = (
            np.asarray(arrays["f"]).astype(np.int64),
            np.asarray(arrays["kintree_table"]).astype(np.int64),
        )
    except (TypeError, ValueError) as problem:
        raise HeadError(
            f"{source} is not a FLAME model: an entry of it is not numbers ({problem})"
        ) from problem
    count = len(mean) if mean.ndim == 2 else 0
    joints = len(JOINTS)
    if regressor.ndim == 2 and regressor.shape[0] != joints:
        raise HeadError(
            f"{source} is not a FLAME head: it has {regressor.shape[0]} joints, FLAME has "
            f"{joints}; SMPL's files have other numbers"
        )
    if vertices is not None and count != vertices:
        raise HeadError(f"{source} has {count:,} vertices; FLAME has {vertices:,}")
    wanted = {
        "v_template": (mean, (count, 3)),
        "J_regressor": (regressor, (joints, count)),
        "weights": (weights, (count, joints)),
        "posedirs": (posedirs, (count, 3, 9 * (joints - 1))),
    }
    for entry, (array, shape) in wanted.items():
        if array.shape != shape:
            raise HeadError(f"{source}: {entry} has shape {array.shape}, not {shape}")
    if (
        shapedirs.ndim != 3
        or shapedirs.shape[:2] != (count, 3)
        or shapedirs.shape[2] < _SHAPES + expressions
        or not 0 < shapes <= _SHAPES
    ):
        raise HeadError(
            f"{source}: shapedirs has shape {shapedirs.shape}; needed are ({count}, 3, "
            f"{_SHAPES + expressions} or more): "
            f"{_SHAPES} directions of shape, of which {shapes} are used, and {expressions} of "
            f"expression"
        )
    for entry, array in {
        "shapedirs": shapedirs,
        **{entry: array for entry, (array, _) in wanted.items()},
    }.items():
        if not np.isfinite(array).all():
            raise HeadError(f"{source}: {entry} holds numbers that are not finite")
    if (
        triangles.ndim != 2
        or triangles.shape[1] != 3
        or triangles.min() < 0
        or triangles.max() >= count
    ):
        raise HeadError(f"{source}: f does not hold triangles of its {count:,} vertices")
    if kintree.shape != (2, joints) or tuple(kintree[0, 1:]) != PARENTS[1:]:
        raise HeadError(f"{source}: its joints do not hang together as FLAME's do (kintree_table)")
    if np.abs(weights.sum(axis=1) - 1).max() > 1e-3:
        raise HeadError(f"{source}: the skin's weights do not add up to 1")

    directions = lambda first, n: np.moveaxis(shapedirs[:, :, first : first + n], 2, 0)
    shape_basis, expression_basis = directions(0, shapes), directions(_SHAPES, expressions)
    single = lambda array: np.ascontiguousarray(array, np.float32)
    parts = {"static": None, "contour": None, "full": None}
    if embedding is not None:
        parts = {part: _corners(triangles, embedding, part, source) for part in parts}
    uv = uv_triangles = None
    if template is not None:
        uv, uv_triangles, theirs = template
        if not np.array_equal(theirs, triangles):
            raise HeadError(f"the template does not belong to {source}: its triangles differ")
        uv, uv_triangles = single(uv), uv_triangles.astype(np.int32)
    return Flame(
        mean=single(mean),
        shape_basis=single(shape_basis),
        expression_basis=single(expression_basis),
        pose_basis=single(np.moveaxis(posedirs, 2, 0)),
        joints_mean=single(regressor @ mean),
        joints_shape=single(regressor @ shape_basis),
        joints_expression=single(regressor @ expression_basis),
        weights=single(weights),
        triangles=triangles.astype(np.int32),
        vertex_triangles=incident_triangles(triangles, count),
        uv=uv,
        uv_triangles=uv_triangles,
        name=name,
        **parts,
    )


def load_texture(path: str | Path, *, components: int = 50, size: int = 256) -> TextureSpace:
    """FLAME_texture.npz, or the folder that it is in → its mean and first `components` directions
    at size × size (DECA: 256).

    The file's 512² BGR pictures of 0–255 are thinned out (every second pixel), turned to RGB and
    divided by 255. Raises HeadError."""
    path = Path(path).expanduser()
    path = path / TEXTURE if path.is_dir() else path
    arrays = _read_npz(path, ("mean", "tex_dir"))
    missing = [entry for entry in ("mean", "tex_dir") if entry not in arrays]
    if missing:
        raise HeadError(f"{path} is not a FLAME texture space: it has no {', '.join(missing)}")
    mean, basis = np.asarray(arrays["mean"]), np.asarray(arrays["tex_dir"])
    side = mean.shape[0] if mean.ndim == 3 else 0
    if (
        mean.shape != (side, side, 3)
        or basis.ndim != 4
        or basis.shape[:3] != mean.shape
        or side % size
        or basis.shape[3] < components
    ):
        raise HeadError(
            f"{path}: mean {mean.shape} and tex_dir {basis.shape} are not a texture space with "
            f"{components} components "
            f"whose side is a multiple of {size}"
        )
    step = side // size
    thin = lambda array: array[::step, ::step, ::-1].astype(np.float32) / np.float32(255)
    mean, basis = thin(mean), np.ascontiguousarray(np.moveaxis(thin(basis[..., :components]), 3, 0))
    if not (np.isfinite(mean).all() and np.isfinite(basis).all()):
        raise HeadError(f"{path} holds numbers that are not finite")
    return TextureSpace(mean=mean, basis=basis)


def folder_of(path: str | Path) -> Path:
    """The folder that FLAME's files lie in, for its model file or the folder itself."""
    path = Path(path).expanduser()
    return path if path.is_dir() else path.parent


def read_embedding(path: str | Path) -> dict[str, np.ndarray]:
    """DECA's landmark_embedding.npy → its arrays by name: static_, dynamic_ and full_lmk_faces_idx
    and _bary_coords.

    Some of them are PyTorch tensors in the published file. Raises HeadError.
    """
    path = Path(path).expanduser()

    def read():
        with open_regular(path) as file:
            version = np.lib.format.read_magic(file)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = header(file)
            if shape != () or not dtype.hasobject:
                raise pickles.Damaged("an array instead of a table of landmarks")
            data = file.read()
        return pickles.load(io.BytesIO(data), len(data), tensors_in_pickles.NAMES).item()

    table = _heads_error(lambda: pickles.guarded(path, read))
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise HeadError(f"{path} is not a table of landmarks")
    return {key: value for key, value in table.items() if isinstance(value, np.ndarray)}


def read_mediapipe(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FLAME's mediapipe_landmark_embedding.npz → numbers (N,) of MediaPipe's landmarks, triangles
    (N,), barycentric weights (N,3).

    Raises HeadError.
    """
    names = ("landmark_indices", "lmk_face_idx", "lmk_b_coords")
    arrays = _read_npz(Path(path), names)
    try:
        numbers, faces, weights = (np.asarray(arrays[name]) for name in names)
    except KeyError as problem:
        raise HeadError(
            f"{path} is not a table of MediaPipe's landmarks: it has no {problem}"
        ) from problem
    if any(array.dtype.kind not in "iuf" for array in (numbers, faces, weights)):
        raise HeadError(f"{path} is damaged: its landmarks are not numbers")
    numbers, faces, weights = (
        numbers.astype(np.int64),
        faces.astype(np.int64),
        weights.astype(np.float32),
    )
    if not (
        numbers.ndim == 1
        and numbers.size
        and faces.shape == numbers.shape
        and weights.shape == (*numbers.shape, 3)
        and np.isfinite(weights).all()
        and numbers.min() >= 0
        and numbers.max() < landmark_indices.COUNT
        and len(set(numbers)) == len(numbers)
        and faces.min() >= 0
    ):
        raise HeadError(
            f"{path} is damaged: its landmarks, triangles and weights do not go together"
        )
    return numbers, faces, weights


def read_template(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """head_template.obj → uv (U,2) with v up, triangles of uv (T,3), triangles of vertices (T,3).
    Raises HeadError.
    """
    path = Path(path).expanduser()
    uv, corners = [], []
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            kind, *values = line.split() or [""]
            if kind == "vt":
                uv.append([float(value) for value in values[:2]])
            elif kind == "f":
                corners.append(
                    [[int(number) for number in value.split("/")[:2]] for value in values]
                )
        corners = np.asarray(corners, np.int64)
        if corners.ndim != 3 or corners.shape[1:] != (3, 2):
            raise ValueError("faces that are not triangles with texture coordinates")
        uv = np.asarray(uv, np.float64)
        if corners.min() < 1 or corners[..., 1].max() > len(uv) or not np.isfinite(uv).all():
            raise ValueError("a face with a corner that does not exist")
    except OSError as problem:
        raise HeadError(f"{path} cannot be read: {problem.strerror or problem}") from problem
    except (ValueError, OverflowError) as problem:
        raise HeadError(
            f"{path} is not a mesh of triangles with texture coordinates: {problem}"
        ) from problem
    return uv, corners[..., 1] - 1, corners[..., 0] - 1


def _read_entries(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise HeadError(
            f"there is no FLAME model at {path}; it comes from flame.is.tue.mpg.de, after "
            f"registration"
        )
    if zipfile.is_zipfile(path):
        return _read_npz(path, _ENTRIES)
    arrays = _heads_error(lambda: pickles.read_pickle(path))
    if not isinstance(arrays, Mapping):
        raise HeadError(f"{path} is not a FLAME model: it holds no table of arrays")
    return arrays


def _read_npz(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those of the arrays that the file has."""

    def read():
        with open_npz(path) as file:
            return {name: file[name] for name in names if name in file.files}

    return _heads_error(lambda: pickles.guarded(path, read))


def _heads_error(read):
    try:
        return read()
    except ModelFolderError as problem:
        raise HeadError(str(problem)) from problem


def _corners(triangles: np.ndarray, embedding: Mapping[str, np.ndarray], part: str, source: str):
    """Landmarks given as triangle and barycentric weights → vertices (…,3) int32 and weights (…,3)
    float32.
    """
    stem, shape = {
        "static": ("static", (51,)),
        "contour": ("dynamic", (79, 17)),
        "full": ("full", (68,)),
    }[part]
    names = f"{stem}_lmk_faces_idx", f"{stem}_lmk_bary_coords"
    if part == "full" and names[0] not in embedding:
        return None
    missing = [name for name in names if name not in embedding]
    if missing:
        raise HeadError(f"the table of landmarks has no {', '.join(missing)}")
    faces, weights = (
        np.asarray(embedding[names[0]]).astype(np.int64),
        np.asarray(embedding[names[1]], np.float32),
    )
    if (
        faces.size != np.prod(shape)
        or weights.size != 3 * faces.size
        or not np.isfinite(weights).all()
    ):
        raise HeadError(
            f"the table of landmarks is damaged: {names[0]} {faces.shape}, {names[1]} "
            f"{weights.shape}"
        )
    if faces.min() < 0 or faces.max() >= len(triangles):
        raise HeadError(
            f"the table of landmarks does not belong to {source}: it names a triangle that there "
            f"is not"
        )
    return triangles[faces.reshape(shape)].astype(np.int32), weights.reshape(*shape, 3)
