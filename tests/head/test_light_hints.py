"""Light and albedo come back from a picture that our own head made; hints hold what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.head import lighting, topology, visualize
from caphuman_jax.head.editing import directional_light
from caphuman_jax.head.head import stack, unstack
from caphuman_jax.head.hints import (
    fit_to_size,
    from_picture,
    pack_hints,
    render_hints,
    render_hints_batch,
    to_picture,
    unpack_hints,
)


@pytest.fixture(scope="module")
def scene(model, make_head):
    """Heads with a smooth, symmetric albedo under known lights, as photos."""
    x, y, _ = model.mean.T
    smooth = np.stack(
        [0.55 + 0.05 * np.sin(4 * y), 0.42 + 0.04 * np.cos(5 * x), 0.35 + 0.03 * np.sin(3 * y)], -1
    ).astype(np.float32)
    lights = [
        directional_light((-1, 0.3, 0.6), 0.4),
        directional_light((0.8, 0.4, 0.6), 0.4),
        directional_light((0, 0.2, 1), 0.2),
    ]
    heads = [
        dataclasses.replace(
            make_head(i, yaw=yaw), albedo=jnp.asarray(smooth), light=jnp.asarray(lamp)
        )
        for i, (yaw, lamp) in enumerate(zip((0, 20, -25), lights))
    ]
    hints = jnp.stack([render_hints(model, head, 200, 160) for head in heads])
    blank = [
        dataclasses.replace(
            head, albedo=jnp.full_like(head.albedo, 0.5), light=jnp.asarray(lighting.WHITE)
        )
        for head in heads
    ]
    return (
        stack(heads),
        hints,
        stack([estimate(model, *pair) for pair in zip(blank, hints[..., 6:])]),
    )


def estimate(model, head, photo, mask=None):
    """`estimate_appearance` for one head: a batch of 1 in all tests, so compiled once."""
    one = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)
    return unstack(
        lighting.estimate_appearance(
            model, one(head), one(photo), None if mask is None else one(mask)
        )
    )[0]


def test_light_direction_and_albedo(model, scene):
    heads, hints, found = scene
    for i in range(3):
        true, seen = np.asarray(heads.light[i]).mean(1), np.asarray(found.light[i]).mean(1)
        if i < 2:  # the lamp's side
            assert (
                np.sign(seen[1]) == np.sign(true[1])
                and abs(seen[1]) > 0.4 * abs(true[1]) * seen[0] / true[0]
            )
        normals = np.asarray(hints[i, ..., :3])
        face = np.asarray(hints[i, ..., 3:6]).sum(-1) > 0
        made, again = (
            np.asarray(lighting.shading(jnp.asarray(normals[face]), jnp.asarray(lamp))).mean(-1)
            for lamp in (heads.light[i], found.light[i])
        )
        assert np.corrcoef(made, again)[0, 1] > (0.85 if i < 2 else 0.3)
    face = (model.face_weight > 0.9) & (model.parts == topology.SKIN)
    scale = np.asarray(heads.albedo)[:, face].mean(1) / np.asarray(found.albedo)[:, face].mean(1)
    error = np.abs(
        np.asarray(found.albedo)[:, face] * scale[:, None] - np.asarray(heads.albedo)[:, face]
    )
    assert np.median(error) < 0.03 and np.percentile(error, 95) < 0.12


def test_render_of_the_estimate_is_the_photo(model, scene):
    heads, hints, found = scene
    render = lambda heads: np.stack(
        [render_hints(model, head, 200, 160) for head in unstack(heads)]
    )
    again = render(found)[..., 6:]
    weight = jnp.broadcast_to(jnp.asarray(model.face_weight)[:, None], (len(model.mean), 3))
    marked = render(
        dataclasses.replace(found, albedo=jnp.broadcast_to(weight, found.albedo.shape))
    )[..., 3]
    face = (marked > 0.9) & (np.asarray(hints)[..., 2] > 0.5)
    assert face.mean() > 0.03
    assert np.abs(again - np.asarray(hints)[..., 6:])[face].mean() < 0.02


def test_hidden_side_is_the_mirrored_one_and_masked_places_are_not_believed(model, make_head):
    head = make_head(2, yaw=35)
    half = np.where((model.mean[:, 1] > 0)[:, None], [0.8, 0.3, 0.3], [0.3, 0.3, 0.8]).astype(
        np.float32
    )
    painted = dataclasses.replace(head, albedo=jnp.asarray(half))
    photo = np.asarray(render_hints(model, painted, 200, 160))[..., 3:6]
    albedo = np.asarray(estimate(model, head, photo).albedo)
    hidden = (
        (model.mean[:, 0] > 0.35)
        & (model.face_weight > 0.9)
        & (model.parts == topology.SKIN)
        & (np.abs(model.mean[:, 1]) > 0.2)
    )
    assert hidden.sum() > 30
    difference = np.abs(albedo[hidden] - albedo[model.mirror[hidden]])
    assert np.median(difference) < 0.1
    upper = model.mean[hidden, 1] > 0
    assert (albedo[hidden][upper, 0] > albedo[hidden][upper, 2]).mean() > 0.9
    # A green hand over the lower face, told by the mask, leaves no green.
    covered, mask = photo.copy(), np.ones((200, 160), np.float32)
    covered[110:], mask[110:] = [0, 1, 0], 0
    albedo = np.asarray(estimate(model, head, covered, mask).albedo)
    assert (albedo[:, 1] > albedo[:, 0] + 0.1).mean() < 0.01
    assert np.isfinite(albedo).all() and albedo.min() >= 0 and albedo.max() <= 1


def test_no_face_visible_gives_even_light(model, make_head):
    found = estimate(
        model, make_head(0, translation=(-500.0, -500.0)), jnp.full((200, 160, 3), 0.4, jnp.float32)
    )
    np.testing.assert_allclose(found.light, lighting.WHITE, atol=1e-6)
    assert np.isfinite(np.asarray(found.albedo)).all()


def test_hints_channels_ranges_and_batch(model, make_head, landmarks_of):
    lamp = directional_light((0, 0, 1), 1.0)
    heads = [make_head(0, yaw=30, light=lamp), make_head(1, pitch=-20, translation=(30.0, 90.0))]
    together, alpha = (
        np.asarray(a) for a in render_hints_batch(model, stack(heads), 100, 80, with_alpha=True)
    )
    assert together.shape == (2, 100, 80, 9) and alpha.shape == (2, 100, 80, 1)
    for i, head in enumerate(heads):
        np.testing.assert_allclose(
            np.asarray(render_hints(model, head, 100, 80)), together[i], atol=1e-4
        )
    assert (together[alpha[..., 0] == 0] == 0).all()
    normal, rest = together[..., :3], together[..., 3:]
    assert (
        (np.linalg.norm(normal, axis=-1) <= 1 + 1e-5).all() and rest.min() >= 0 and rest.max() <= 1
    )
    column, row = (
        landmarks_of(heads[0])[151, :2] * 0.5
    )  # the forehead of a head turned right faces right
    assert normal[0, int(row), int(column), 0] > 0.3
    np.testing.assert_allclose(
        rest[1, ..., 3:], rest[1, ..., :3], atol=1e-5
    )  # even light: render = albedo


def test_head_keeps_its_place_relative_to_the_picture(model, make_head):
    head = make_head(0)
    large, small = (
        np.asarray(render_hints(model, head, 200, 160)),
        np.asarray(render_hints(model, head, 100, 80)),
    )
    mean = large.reshape(100, 2, 80, 2, 9).mean(axis=(1, 3))
    assert np.abs(mean - small).mean() < 0.02
    moved = fit_to_size(head, 100, 100)
    assert float(moved.scale) == 30 and np.asarray(moved.translation).tolist() == [50, 52.5]


def test_pictures_for_the_eye(model, make_head, landmarks_of):
    head = make_head(0)
    hints = np.asarray(render_hints(model, head, 200, 160))
    normal, albedo, rendered = visualize.hint_pictures(hints)
    background = hints[..., :3].any(-1) == 0
    assert (
        (normal[background] == 128).all()
        and not albedo[background].any()
        and not rendered[background].any()
    )
    assert visualize.hint_strip(hints).shape == (200, 480, 3)
    photo = np.full((200, 160, 3), 90, np.uint8)
    plain = visualize.overlay(model, head, photo, opacity=1.0, wireframe=False)
    np.testing.assert_array_equal(plain[background], photo[background])
    np.testing.assert_allclose(
        plain[~background].astype(int), rendered[~background].astype(int), atol=1
    )
    landmarks = landmarks_of(head)
    dotted = visualize.overlay(model, head, photo, landmarks)
    nose = dotted[int(landmarks[1, 1]), int(landmarks[1, 0])].astype(int)
    assert nose[1] > nose[0] + 50


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_hints_as_8_bits_and_as_a_picture(model, make_head, array):
    hints = array(render_hints(model, make_head(1, 20), 60, 50))
    packed = pack_hints(hints)
    assert packed.dtype == np.uint8 and packed.shape == (60, 50, 9)
    picture = to_picture(packed)
    assert picture.shape == (180, 50, 3) and isinstance(picture, type(hints))
    np.testing.assert_array_equal(from_picture(picture), packed)
    np.testing.assert_array_equal(from_picture(to_picture(packed[None]))[0], packed)
    values = array(np.asarray(packed) / np.float32(255))
    again = unpack_hints(values)
    assert np.abs(again - hints).max() < 1 / 255
    turned = unpack_hints(values, lambda normals: -normals)
    np.testing.assert_array_equal(turned[..., :3], -again[..., :3])


def test_mesh_of_an_overlay_is_posed_to_the_bit(model, make_head):
    head = make_head(1, 20)
    points, normals = lighting.posed(model, head)
    ours, our_normals = visualize._mesh(model, head)
    np.testing.assert_array_equal(ours, np.asarray(points)[:, :2])
    np.testing.assert_array_equal(our_normals, normals)
