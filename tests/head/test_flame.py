"""FLAME against DECA's FLAME in PyTorch, on a synthetic head; and its files."""

import os
import pickle

import flame_landmarks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from caphuman_jax.errors import HeadError
from caphuman_jax.head import texture
from caphuman_jax.head.models import flame, flame_files


@pytest.fixture(scope="module")
def entries(data):
    """The synthetic head as the entries of generic_model.pkl."""
    count = len(data["v_template"])
    shapedirs = np.zeros((count, 3, 400))
    shapedirs[:, :, :100], shapedirs[:, :, 300:350] = (
        data["shapedirs"][:, :, :100],
        data["shapedirs"][:, :, 100:],
    )
    parents = data["parents"].copy()
    parents[0] = 2**32 - 1
    return {
        "v_template": data["v_template"].astype(np.float64),
        "f": data["faces"].astype(np.uint32),
        "shapedirs": shapedirs,
        "posedirs": data["posedirs"].T.reshape(count, 3, 36),
        "J_regressor": data["J_regressor"].astype(np.float64),
        "kintree_table": np.stack([parents, np.arange(5)]),
        "weights": data["lbs_weights"],
    }


@pytest.fixture(scope="module")
def embedding(data):
    return {
        "static_lmk_faces_idx": data["lmk_faces"],
        "static_lmk_bary_coords": data["lmk_bary"],
        "dynamic_lmk_faces_idx": data["dyn_lmk_faces"],
        "dynamic_lmk_bary_coords": data["dyn_lmk_bary"],
        "full_lmk_faces_idx": data["full_lmk_faces"],
        "full_lmk_bary_coords": data["full_lmk_bary"],
    }


@pytest.fixture(scope="module")
def model(entries, embedding, data):
    template = (data["uv"], data["faces"], data["faces"])
    return flame_files.from_arrays(entries, vertices=None, embedding=embedding, template=template)


@pytest.fixture(scope="module")
def posed(model, data):
    pose = flame.full_pose(jnp.asarray(data["pose"]))
    vertices = jax.vmap(lambda s, e, p: flame.vertices(model, s, e, p))(
        jnp.asarray(data["shape"]), jnp.asarray(data["expression"]), pose
    )
    return vertices, pose


def test_vertices(posed, data, relative):
    assert relative(posed[0], data["vertices"]) < 1e-5


def test_landmarks(model, posed, data, relative):
    moving = jax.vmap(lambda v, p: flame_landmarks.landmarks(model, v, p))(*posed)
    shifted = moving + np.pad(data["cam"][:, 1:], ((0, 0), (0, 1)))[:, None]
    assert (
        relative(
            (shifted * data["cam"][:, None, :1])[..., :2] * np.asarray([[[1, -1]]], np.float32),
            data["landmarks2d_projected"],
        )
        < 1e-5
    )
    assert (
        relative(
            jax.vmap(lambda v: flame_landmarks.fixed_landmarks(model, v))(posed[0]),
            data["landmarks3d"],
        )
        < 1e-5
    )


def test_against_plain_rotations(model, data):
    """With one joint turned and no correctives, skinning by hand: neck, jaw and eyes move what
    hangs on them, about their joints.
    """
    from scipy.spatial.transform import Rotation

    plain = jax.tree.map(lambda leaf: leaf, model)
    object.__setattr__(plain, "pose_basis", np.zeros_like(model.pose_basis))
    shape, expression = jnp.asarray(data["shape"][0]), jnp.asarray(data["expression"][0])
    rest = np.asarray(flame.vertices(plain, shape, expression, jnp.zeros(15)))
    places = np.asarray(flame.joints(plain, shape, expression))
    moved_by = {1: (1, 2, 3, 4), 2: (2,), 3: (3,), 4: (4,), 0: (0, 1, 2, 3, 4)}
    for joint, carried in moved_by.items():
        pose = np.zeros(15, np.float32)
        pose[3 * joint : 3 * joint + 3] = (0.3, -0.5, 0.2)
        turned = (
            Rotation.from_rotvec(pose[3 * joint : 3 * joint + 3]).apply(rest - places[joint])
            + places[joint]
        )
        share = data["lbs_weights"][:, list(carried)].sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            flame.vertices(plain, shape, expression, jnp.asarray(pose)),
            rest + share * (turned - rest),
            atol=2e-6,
        )


class Ch:
    """What a chumpy array is in a pickle: an object of chumpy.ch.Ch with its values in `x`."""

    def __init__(self, x):
        self.x = x


@pytest.fixture
def folder(tmp_path, entries, embedding, data, monkeypatch):
    """The four files as people have them: chumpy arrays, a sparse regressor, tensors in a .npy, uv
    apart from the vertices.
    """
    from scipy import sparse

    package, module = type(os)("chumpy"), type(os)("chumpy.ch")
    module.Ch = package.Ch = Ch
    monkeypatch.setattr(Ch, "__module__", "chumpy.ch")
    monkeypatch.setitem(__import__("sys").modules, "chumpy", package)
    monkeypatch.setitem(__import__("sys").modules, "chumpy.ch", module)
    as_published = entries | {
        "shapedirs": Ch(entries["shapedirs"]),
        "posedirs": Ch(entries["posedirs"]),
        "bs_type": "lrotmin",
        "v_template": Ch(entries["v_template"]),
        "J_regressor": sparse.csc_matrix(entries["J_regressor"]),
    }
    (tmp_path / "generic_model.pkl").write_bytes(pickle.dumps(as_published, protocol=2))
    tensors = {
        name: torch.from_numpy(value) if name.startswith("dynamic") else value
        for name, value in embedding.items()
    }
    np.save(tmp_path / "landmark_embedding.npy", tensors, allow_pickle=True)
    lines = [f"v {x} {y} {z}" for x, y, z in data["v_template"]] + [
        f"vt {u} {v}" for u, v in data["uv"]
    ]
    lines += [
        "# a comment",
        "s off",
        *("f " + " ".join(f"{i + 1}/{i + 1}" for i in face) for face in data["faces"]),
    ]
    (tmp_path / "head_template.obj").write_text("\n".join(lines))
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "FLAME_texture.npz",
        mean=rng.uniform(0, 255, (16, 16, 3)),
        tex_dir=rng.standard_normal((16, 16, 3, 7)),
    )
    return tmp_path


def test_files_as_people_have_them(folder, model):
    loaded = flame_files.load_flame(folder, vertices=None)
    assert loaded.name == "generic_model"
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(model), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", ["FLAME_NEUTRAL.pkl", "flame2023_Open.pkl"])
def test_other_names_of_the_model(name, folder, model):
    (folder / "generic_model.pkl").rename(folder / name)
    loaded = flame_files.load_flame(folder, vertices=None)
    assert loaded.name == name.removesuffix(".pkl")
    np.testing.assert_allclose(loaded.mean, model.mean, atol=1e-6)


def test_npz_without_companions(tmp_path, entries, model):
    np.savez(tmp_path / "flame2023.npz", **entries)
    loaded = flame_files.load_flame(
        tmp_path / "flame2023.npz", vertices=None, shapes=40, expressions=10
    )
    np.testing.assert_allclose(loaded.shape_basis, model.shape_basis[:40], atol=1e-6)
    np.testing.assert_allclose(loaded.expression_basis, model.expression_basis[:10], atol=1e-6)
    assert loaded.static is None and loaded.uv is None


def test_texture_space(folder):
    space = flame_files.load_texture(folder, components=5, size=8)
    file = np.load(folder / "FLAME_texture.npz")
    np.testing.assert_allclose(space.mean[3, 2], file["mean"][6, 4, ::-1] / 255, rtol=1e-6)
    coefficients = jnp.asarray([0, 2, 0, 0, -1], jnp.float32)
    expected = (file["mean"] + 2 * file["tex_dir"][..., 1] - file["tex_dir"][..., 4])[
        ::2, ::2, ::-1
    ] / 255
    np.testing.assert_allclose(texture.texture(space, coefficients), expected, atol=1e-5)
    with pytest.raises(HeadError, match="components"):
        flame_files.load_texture(folder, components=50, size=8)


def test_texture_look_up_like_grid_sample():
    rng = np.random.default_rng(0)
    image, uv = (
        rng.random((7, 5, 3), dtype=np.float32),
        rng.uniform(-0.1, 1.1, (40, 2)).astype(np.float32),
    )
    grid = torch.from_numpy(np.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], axis=-1))[None, None]
    theirs = torch.nn.functional.grid_sample(
        torch.from_numpy(image.transpose(2, 0, 1))[None], grid, align_corners=False
    )[0, :, 0].T
    np.testing.assert_allclose(
        texture.sample_texture(jnp.asarray(image), jnp.asarray(uv)), theirs.numpy(), atol=1e-5
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"f": None}, "it has no f"),
        ({"J_regressor": np.zeros((24, 240)), "kintree_table": np.zeros((2, 24))}, "24 joints"),
        ({"weights": np.zeros((240, 5))}, "do not add up to 1"),
        ({"posedirs": np.zeros((240, 3, 9))}, r"posedirs has shape \(240, 3, 9\)"),
        ({"shapedirs": np.zeros((240, 3, 150))}, "expression"),
        ({"v_template": np.full((240, 3), np.nan)}, "v_template holds numbers that are not finite"),
        ({"v_template": "a head"}, "not numbers"),
        ({"f": np.full((10, 3), 240)}, "triangles"),
        ({"kintree_table": np.asarray([[-1, 0, 0, 0, 0], [0, 1, 2, 3, 4]])}, "hang together"),
    ],
)
def test_what_is_no_flame(entries, change, words):
    arrays = {name: value for name, value in (entries | change).items() if value is not None}
    with pytest.raises(HeadError, match=words):
        flame_files.from_arrays(arrays, vertices=None)


def test_wrong_files(tmp_path, folder, entries, embedding, data):
    with pytest.raises(HeadError, match="240 vertices; FLAME has 5,023"):
        flame_files.load_flame(folder)
    with pytest.raises(HeadError, match="holds no FLAME model"):
        (tmp_path / "empty").mkdir()
        flame_files.load_flame(tmp_path / "empty")
    with pytest.raises(HeadError, match="there is no FLAME model"):
        flame_files.load_flame(tmp_path / "nothing.pkl")
    (tmp_path / "text.pkl").write_text("not a pickle")
    with pytest.raises(HeadError, match="text.pkl"):
        flame_files.load_flame(tmp_path / "text.pkl")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"f": os.system}))
    with pytest.raises(HeadError, match="refused"):
        flame_files.load_flame(tmp_path / "evil.pkl")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(HeadError, match="no table of arrays"):
        flame_files.load_flame(tmp_path / "list.pkl")
    with pytest.raises(HeadError, match="its triangles differ"):
        flame_files.from_arrays(
            entries, vertices=None, template=(data["uv"], data["faces"], data["faces"][::-1])
        )
    with pytest.raises(HeadError, match="static_lmk_faces_idx"):
        flame_files.from_arrays(
            entries,
            vertices=None,
            embedding={k: v for k, v in embedding.items() if not k.startswith("static")},
        )
    with pytest.raises(HeadError, match="a triangle that there is not"):
        flame_files.from_arrays(
            entries,
            vertices=None,
            embedding=embedding | {"static_lmk_faces_idx": np.full(51, 9_000)},
        )
    np.save(tmp_path / "numbers.npy", np.zeros(4))
    with pytest.raises(HeadError, match="numbers.npy"):
        flame_files.read_embedding(tmp_path / "numbers.npy")
    (tmp_path / "quads.obj").write_text("v 0 0 0\nvt 0 0\nf 1/1 1/1 1/1 1/1\n")
    with pytest.raises(HeadError, match="quads.obj is not a mesh of triangles"):
        flame_files.read_template(tmp_path / "quads.obj")
