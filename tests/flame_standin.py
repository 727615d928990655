"""Stand-ins for FLAME's files, made from the shipped head: its shape in FLAME's form, with names
and sizes of the published ones.
"""

import pickle

import flame_landmarks
import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from caphuman_jax.config import MINI
from caphuman_jax.face.face import find_faces
from caphuman_jax.face.landmark_indices import IBUG_68
from caphuman_jax.head import editing
from caphuman_jax.head.models import deca, flame
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.head.topology import LEFT_EYE, RIGHT_EYE
from caphuman_jax.models import deca_encoder as encoder
from caphuman_jax.models import registry


def entries(shipped):
    """The shipped head in FLAME's form and meters: 300 + 100 directions, joints by a regressor, a
    jaw that bends.
    """
    mean = shipped.mean / np.float64(10)
    count = len(mean)
    rng = np.random.default_rng(0)
    shapedirs = np.zeros((count, 3, 400))
    shapedirs[:, :, :90] = np.moveaxis(shipped.identity_basis, 0, 2) / 10
    moves = np.moveaxis(shipped.expression_basis, 0, 2) / 10
    shapedirs[:, :, 300:350] = np.einsum("vxe,ef->vxf", moves, rng.standard_normal((52, 50)) / 7)
    places = (
        np.asarray(
            [
                [0, -1.2, -0.4],
                [0, -0.6, -0.2],
                [0, -0.1, 0.1],
                [0.32, 0.05, 0.9],
                [-0.32, 0.05, 0.9],
            ]
        )
        / 10
    )
    regressor = np.zeros((5, count))
    for joint, near in enumerate(cKDTree(mean).query(places, 12)[1]):
        regressor[joint, near] = 1 / 12
    x, y, z = mean.T
    jaw = np.clip((-0.02 - y) / 0.03, 0, 1) * np.clip((z - 0.01) / 0.03, 0, 1)
    eyes = [(shipped.parts == part).astype(float) for part in (LEFT_EYE, RIGHT_EYE)]
    root = np.clip((-0.08 - y) / 0.04, 0, 1) * (1 - jaw) * (1 - sum(eyes))
    weights = np.stack(
        [root, 1 - root - jaw * (1 - sum(eyes)) - sum(eyes), jaw * (1 - sum(eyes)), *eyes], axis=1
    )
    return {
        "v_template": mean,
        "f": shipped.triangles,
        "shapedirs": shapedirs,
        "posedirs": 1e-4 * rng.standard_normal((count, 3, 36)),
        "J_regressor": regressor,
        "kintree_table": np.stack([np.asarray(flame.PARENTS), np.arange(5)]),
        "weights": weights,
    }


def embedding(shipped):
    """FLAME's 68 landmarks, where the shipped head has the same ones."""
    owner = {tuple(sorted(corner)): i for i, corner in enumerate(shipped.triangles.tolist())}
    faces, weights = [], []
    for number in IBUG_68:
        corner = shipped.landmark_vertices[number]
        face = owner[tuple(sorted(corner.tolist()))]
        faces.append(face)
        weights.append(
            [
                shipped.landmark_weights[number][list(corner).index(v)]
                for v in shipped.triangles[face]
            ]
        )
    faces, weights = np.asarray(faces), np.asarray(weights)
    return {
        "static_lmk_faces_idx": faces[17:],
        "static_lmk_bary_coords": weights[17:],
        "full_lmk_faces_idx": faces[None],
        "full_lmk_bary_coords": weights[None],
        "dynamic_lmk_faces_idx": np.tile(faces[:17], (79, 1)),
        "dynamic_lmk_bary_coords": np.tile(weights[:17], (79, 1, 1)),
    }


def write_folder(folder):
    """generic_model.pkl of 5,023 vertices (those that the shipped head has not lie in no triangle),
    landmark_embedding.npy, head_template.obj and FLAME_texture.npz of 512² and 50 components, in
    `folder`.
    """
    shipped = load_head()
    made, missing = entries(shipped), flame.VERTICES - len(shipped.mean)
    rest = {
        "v_template": 0.0,
        "shapedirs": 0.0,
        "posedirs": 0.0,
        "weights": np.asarray([0, 1.0, 0, 0, 0]),
    }
    for name, fill in rest.items():
        array = made[name]
        made[name] = np.concatenate([array, np.broadcast_to(fill, (missing, *array.shape[1:]))])
    made["J_regressor"] = np.pad(made["J_regressor"], ((0, 0), (0, missing)))
    with open(folder / "generic_model.pkl", "wb") as file:
        pickle.dump(made, file, protocol=2)
    np.save(folder / "landmark_embedding.npy", embedding(shipped), allow_pickle=True)
    uv = shipped.mean[:, :2] / 4 + 0.5
    lines = [f"v {x} {y} {z}" for x, y, z in made["v_template"]] + [f"vt {u} {v}" for u, v in uv]
    lines += [
        "f " + " ".join(f"{corner + 1}/{corner + 1}" for corner in triangle)
        for triangle in shipped.triangles
    ]
    (folder / "head_template.obj").write_text("\n".join(lines) + "\n")
    rng = np.random.default_rng(7)
    smooth = lambda *size: np.repeat(
        np.repeat(rng.standard_normal((16, 16, *size), np.float32), 32, 0), 32, 1
    )
    np.savez(
        folder / "FLAME_texture.npz",
        mean=130 + 20 * smooth(3),
        tex_dir=(6 * smooth(3, 50)).astype(np.float16),
    )


def frontal_camera(model) -> np.ndarray:
    """DECA's camera (3,) of a mean head that looks straight ahead, whatever the photo.

    DECA's crop is centered on the box of the 68 landmarks and 1.25 × 1.1 × its mean side wide, and
    the camera takes meters to [-1, 1] of the crop: scale = 2 / (1.375 × 0.134 m) = 10.9 here (8 to
    11 for FLAME's faces), and the shift is minus the middle of the box, (0, 0.028) m. On the
    astronaut this lies 5 % of the eye distance off the face; a least-squares camera 4 %. The shift
    is in meters: 0.03 too much is a third of the eye distance (0.079 m).
    """
    mean = np.asarray(flame_landmarks.fixed_landmarks(model, jnp.asarray(model.mean)))[:, :2]
    box = np.ptp(mean, axis=0)
    return np.asarray([2 / (1.25 * 1.1 * box.mean()), *-(mean.min(axis=0) + box / 2)], np.float32)


def frontal_light() -> np.ndarray:
    """Warm light (9, 3) from the front and the upper left."""
    return np.outer(editing.directional_light((0.3, 0.2, 1), 0.3)[:, 0], [1, 0.95, 0.9])


def deca_encoder(photo):
    """A random encoder whose numbers are those of a mean head where the face of a photo is, give or
    take a little that depends on the photo: 0.03, which moves the camera by a third of the eye
    distance. CAPHUMAN_FLAME must name the stand-in's folder.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if len(leaf.shape) > 1:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "variance"), np.float32)

    graph, shapes = registry.abstract(MINI, only=("deca_encoder",))["deca_encoder"]
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    model, face = load_head("flame").flame, find_faces(photo)[0]
    crop = deca.crop_of_box(deca.landmark_box(face.landmarks))
    seen = (face.landmarks[list(IBUG_68), :2] - crop[:2]) / crop[2] * 2 - 1
    mean = np.asarray(flame_landmarks.fixed_landmarks(model, jnp.asarray(model.mean)))[:, :2]
    scale = np.ptp(seen[:, 1]) / np.ptp(mean[:, 1])
    camera = np.asarray([scale, *(seen * [1, -1] / scale - mean).mean(axis=0)])
    wanted = np.concatenate([np.zeros(206), camera, frontal_light().reshape(-1)])
    code = encoder.encode(graph, params, deca.crop_photo(photo, crop)[None])
    drawn = np.concatenate([np.asarray(code[name]).reshape(-1) for name in encoder.PARTS])
    factor = 0.15 / drawn.std()
    params["codes"] = {
        "kernel": params["codes"]["kernel"] * factor,
        "bias": (wanted - 0.8 * factor * drawn).astype(np.float32),
    }
    return graph, params
