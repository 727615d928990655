"""DECA's crop, camera and renders: against the renders of DECA's renderer in PyTorch on a synthetic
head, and known answers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from caphuman_jax.errors import HeadError, PhotoError
from caphuman_jax.head import texture
from caphuman_jax.head.models import deca, flame_files
from caphuman_jax.head.texture import TextureSpace


@pytest.fixture(scope="module")
def model(data):
    count = len(data["v_template"])
    shapedirs = np.zeros((count, 3, 350))
    shapedirs[:, :, :100], shapedirs[:, :, 300:] = (
        data["shapedirs"][:, :, :100],
        data["shapedirs"][:, :, 100:],
    )
    entries = {
        "v_template": data["v_template"],
        "f": data["faces"],
        "shapedirs": shapedirs,
        "posedirs": data["posedirs"].T.reshape(count, 3, 36),
        "J_regressor": data["J_regressor"],
        "kintree_table": np.stack([data["parents"], np.arange(5)]),
        "weights": data["lbs_weights"],
    }
    return flame_files.from_arrays(
        entries, vertices=None, template=(data["uv"], data["faces"], data["faces"])
    )


@pytest.fixture(scope="module")
def codes(data):
    """The recorded heads; their texture is one coefficient of a space of its own for each, their
    crop the whole of a 224² picture.
    """
    batch = len(data["shape"])
    return deca.FlameCode(
        shape=jnp.asarray(data["shape"]),
        texture=jnp.eye(batch, dtype=jnp.float32),
        expression=jnp.asarray(data["expression"]),
        pose=jnp.asarray(data["pose"]),
        camera=jnp.asarray(data["cam"]),
        light=jnp.asarray(data["light"]),
        crop=jnp.broadcast_to(jnp.asarray([0, 0, 223], jnp.float32), (batch, 3)),
        size=jnp.full((batch, 2), 224, jnp.float32),
    )


@pytest.fixture(scope="module")
def space(data):
    textures = data["albedo_texture"].transpose(0, 2, 3, 1)
    return TextureSpace(mean=np.zeros_like(textures[0]), basis=textures)


@pytest.fixture(scope="module")
def drawn(model, space, codes):
    hints, alpha = deca.render_hints(model, space, codes, 96, 96, with_alpha=True)
    return np.asarray(hints), np.asarray(alpha)


def test_projection(data):
    projected = jax.vmap(deca.project)(jnp.asarray(data["vertices"]), jnp.asarray(data["cam"]))
    assert np.abs(projected - data["projected"]).max() / np.abs(data["projected"]).max() < 1e-5


@pytest.mark.parametrize(
    "name, channels", [("normal", slice(0, 3)), ("albedo", slice(3, 6)), ("rendered", slice(6, 9))]
)
def test_hints(drawn, data, name, channels):
    """From the numbers to each picture. Pixels whose center lies on an edge within rounding may
    show the neighboring triangle.
    """
    expected = data[f"{name}_image"].transpose(0, 2, 3, 1)
    error = np.abs(drawn[0][..., channels] - expected).max(axis=-1) / np.abs(expected).max()
    assert (error > 1e-4).mean() < 1e-3
    assert (drawn[1][..., 0] != data["alpha_image"][:, 0]).mean() < 1e-3
    assert not drawn[0][drawn[1][..., 0] == 0].any()


def test_albedo_at_the_recorded_pixels(model, data):
    """The texture look-up alone, where the same triangle is seen."""
    uv = jnp.asarray(data["uv"])
    for i in range(2):
        ids = data["pixel_to_face"][i]
        rows, columns = np.nonzero(ids >= 0)
        triangle = data["faces"][ids[rows, columns]]
        corners = data["projected"][i][triangle][..., :2].astype(np.float64)
        at = np.stack([(2 * columns + 1) / 96 - 1, (2 * rows + 1) / 96 - 1], axis=-1)
        edges = np.stack([corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]], axis=-1)
        second = np.linalg.solve(edges, (at - corners[:, 0])[..., None])[..., 0]
        weights = np.concatenate([1 - second.sum(axis=-1, keepdims=True), second], axis=-1)
        places = (np.asarray(uv)[triangle] * weights[..., None]).sum(axis=1).astype(np.float32)
        image = data["albedo_texture"][i].transpose(1, 2, 0)
        ours = np.asarray(texture.sample_texture(jnp.asarray(image), jnp.asarray(places)))
        theirs = data["albedo_image"][i][:, rows, columns].T
        assert np.quantile(np.abs(ours - theirs).max(axis=-1), 0.99) / np.abs(theirs).max() < 1e-4


def test_hints_at_another_size(model, space, codes):
    """Three times as large, the middle of every 3×3 pixels shows the same; in a wider picture the
    head stays in the middle.
    """
    first = jax.tree.map(lambda leaf: leaf[:1], codes)
    small, large, wide = (
        np.asarray(deca.render_hints(model, space, first, *size)[0])
        for size in ((64, 64), (192, 192), (64, 96))
    )
    for other in (large[1::3, 1::3], wide[:, 16:80]):
        assert (np.abs(other - small).max(axis=-1) > 1e-3).mean() < 5e-3
    assert small.any()


def test_back_projection():
    """The crop's left edge and center, in a photo: the crop spans 224/223 of its side, from its
    left and top.
    """
    points = jnp.asarray([[-1, -1, 0.5], [0, 0, -0.5]], jnp.float32)
    back = deca.to_picture(points, jnp.asarray([30, 40, 223], jnp.float32))
    np.testing.assert_allclose(back, [[30, 40, 56], [142, 152, -56]])


def test_box_and_crop():
    landmarks = np.random.default_rng(0).uniform(100, 300, (478, 3))
    box = deca.landmark_box(landmarks)
    chosen = landmarks[list(deca.IBUG_68), :2]
    np.testing.assert_array_equal(box, [*chosen.min(axis=0), *chosen.max(axis=0)])
    np.testing.assert_array_equal(deca.landmark_box(chosen), box)
    left, top, side = deca.crop_of_box([100, 120, 180, 240])
    assert side == 137  # 1.25 · 1.1 · (80 + 120) / 2, whole pixels
    assert (left, top) == (140 - 68.5, 180 - 68.5)
    with pytest.raises(PhotoError, match="4 pixels"):
        deca.crop_of_box([5, 5, 7, 7])
    with pytest.raises(HeadError, match="68 or 478"):
        deca.landmark_box(np.zeros((5, 2)))


@pytest.mark.parametrize("crop", [(10.5, 3.25, 40), (-20.3, -8.1, 90), (50, 40, 223)])
def test_crop_is_bilinear_with_black_outside(crop):
    """Against scipy's interpolation; corner pixels' centers lie on the square's corners, in pixels
    counted from the center of the first.
    """
    photo = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    left, top, side = crop
    place = np.arange(224) * side / 223
    rows, columns = np.meshgrid(top + place, left + place, indexing="ij")
    expected = (
        np.stack(
            [
                ndimage.map_coordinates(
                    photo[..., c].astype(np.float64), [rows, columns], order=1, mode="grid-constant"
                )
                for c in range(3)
            ],
            axis=-1,
        )
        / 255
    )
    np.testing.assert_allclose(deca.crop_photo(photo, np.asarray(crop)), expected, atol=1e-5)


def test_mix_keeps_shape_and_texture(codes):
    one, other = (jax.tree.map(lambda leaf: leaf[i], codes) for i in (0, 1))
    mixed = deca.mix(one, other, "pose,lighting")
    for name, source in {
        "shape": one,
        "texture": one,
        "expression": one,
        "camera": one,
        "crop": one,
        "light": other,
    }.items():
        np.testing.assert_array_equal(getattr(mixed, name), getattr(source, name))
    np.testing.assert_array_equal(mixed.pose, np.concatenate([other.pose[:3], one.pose[3:]]))
    everything = deca.mix(one, other, "all")
    for field in dataclasses.fields(everything):
        source = one if field.name in ("shape", "texture") else other
        np.testing.assert_array_equal(getattr(everything, field.name), getattr(source, field.name))
    np.testing.assert_array_equal(
        deca.mix(one, other, ["expression"]).pose, np.concatenate([one.pose[:3], other.pose[3:]])
    )
    with pytest.raises(HeadError, match="identity"):
        deca.mix(one, other, "identity")


def test_a_model_without_texture_coordinates(model, space, codes):
    with pytest.raises(HeadError, match="head_template.obj"):
        deca.render_hints(dataclasses.replace(model, uv=None), space, codes, 32, 32)


def test_estimate_from_a_photo():
    """The encoder's numbers of the crop that the landmarks ask for, with the crop and the photo's
    size.
    """
    from caphuman_jax.models import deca_encoder as encoder
    from caphuman_jax.models import registry
    from caphuman_jax.nn.initializers import HostRngs

    network = registry.split(encoder.DecaEncoder(rngs=HostRngs(jax.random.key(0))))
    network[1]["codes"]["bias"] = (
        network[1]["codes"]["bias"].at[206].set(8.0)
    )  # The camera's scale, which training makes positive.
    rng = np.random.default_rng(2)
    photo, landmarks = (
        rng.integers(0, 256, (90, 120, 3), dtype=np.uint8),
        rng.uniform(20, 80, (68, 2)),
    )
    code = deca.estimate(network, photo, landmarks)
    crop = deca.crop_of_box(deca.landmark_box(landmarks))
    np.testing.assert_array_equal(code.crop, crop)
    np.testing.assert_array_equal(code.size, [90, 120])
    expected = encoder.encode(*network, deca.crop_photo(photo, crop)[None])
    for name, part in expected.items():
        np.testing.assert_allclose(getattr(code, name), part[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(HeadError, match="8 bits"):
        deca.estimate(network, photo / 255, landmarks)


def test_numbers_by_decas_own_names(codes):
    one = jax.tree.map(lambda leaf: np.asarray(leaf[:1]), codes)
    numbers = {
        "shape": one.shape,
        "tex": np.zeros((1, 50)),
        "exp": one.expression,
        "pose": one.pose,
        "cam": one.camera,
        "light": one.light,
    }
    code = deca.code_from_numbers(numbers, [10, 20, 100], (200, 300))
    np.testing.assert_array_equal(code.expression, one.expression[0])
    np.testing.assert_array_equal(code.light, one.light[0])
    np.testing.assert_array_equal(code.size, [200, 300])
    for change, words in (
        ({"exp": np.full(50, np.nan)}, "expression holds numbers that are not finite"),
        ({"pose": np.zeros(3)}, "pose has 3 numbers"),
        ({"cam": np.zeros(3)}, "positive"),
    ):
        with pytest.raises(HeadError, match=words):
            deca.code_from_numbers(numbers | change, [10, 20, 100], (200, 300))
    del numbers["light"]
    with pytest.raises(HeadError, match="light is missing"):
        deca.code_from_numbers(numbers, [10, 20, 100], (200, 300))
