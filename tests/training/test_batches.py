"""Pictures, masks and hints of a changed sample stay in step: what is rendered from the moved head
is what a warp of the unchanged hints shows.
"""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from records_standin import LAYOUT, write_standin

from caphuman_jax.head import camera
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import render_hints_batch
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.runtime import sharding
from caphuman_jax.training.batches import make_batch
from data_pipeline.loading import augment
from data_pipeline.loading.loader import make_loader

SIZE, STORED, ROWS = 64, 88, 8
RUN = jax.jit(make_batch, static_argnames="size")
CHANGES = {
    "scale": np.float32([1, 1, 1.2, 0.85, 1.1, 1, 1, 0.9]),
    "angle": np.deg2rad(np.float32([0, 0, 20, -15, 25, 0, -30, 10])),
    "shift": np.float32(
        [[0, 0], [0, 0], [0.1, -0.05], [-0.1, 0.1], [0.07, 0.04], [0.1, 0.1], [0, 0], [-0.08, 0]]
    ),
    "mirror": np.array([False, True, False, True, True, False, True, False]),
}


@pytest.fixture(scope="module")
def model():
    return load_head()


@pytest.fixture(scope="module")
def batches(model, tmp_path_factory):
    """One batch of the same records with pictures, and with moments, each with heads."""
    layout = dataclasses.replace(
        LAYOUT,
        size=SIZE,
        stored=STORED,
        albedo=model.mean.shape,
        expression=len(model.expression_names),
        identity=model.identity_basis.shape[0],
        moments=(8, 8, 8),
        hints=False,
    )
    rng = np.random.default_rng(0)

    def believable(record, number):
        """A head that stands where the region is, of smooth colors that differ between
        its halves.
        """
        colors = np.clip(140 + 60 * np.sin(model.mean + rng.uniform(0, 6, 3)), 0, 255)
        return record | {
            "head/albedo": colors.astype(np.uint8),
            "head/scale": np.float32(STORED / 5),
        }

    folder = write_standin(
        tmp_path_factory.mktemp("batches") / "x", ROWS, layout=layout, shards=1, change=believable
    )
    load = lambda **kind: next(
        make_loader(folder, batch=ROWS, one_pass=True, loader="grain", **kind)
    )
    pictures = load(latents="pictures") | {"change": CHANGES}
    moments = load() | {
        "change": jax.device_get(augment.identity_transforms(ROWS)) | {"mirror": CHANGES["mirror"]}
    }
    return pictures, moments


@pytest.fixture(scope="module")
def assembled(model, batches):
    return tuple(jax.device_get(RUN(batch, model, size=SIZE)) for batch in batches)


@pytest.fixture(scope="module")
def unchanged(model, batches):
    """Hints of the stored squares, (B, STORED, STORED, 9)."""
    head = batches[0]["head"]
    heads = Head(
        **head | {"albedo": head["albedo"].astype(np.float32) / 255},
        residual=np.zeros(ROWS, np.float32),
    )
    return heads, np.asarray(render_hints_batch(model, heads, STORED, STORED))


def warped(hints, change):
    """Unchanged hints after a change of picture, by the functions that training on the resident
    data uses.
    """
    coordinates = augment.source_coordinates(change, STORED, SIZE)
    moved = augment.warp(hints, coordinates)
    return np.concatenate([augment.turn_normals(moved[..., :3], change), moved[..., 3:]], axis=-1)


def test_heads_that_were_moved_look_like_hints_that_were_warped(batches, assembled, unchanged):
    for batch, made in zip(batches, assembled):
        expected = warped(unchanged[1], batch["change"])
        head = np.abs(expected[..., 3:6]).sum(-1) > 0
        assert 0.15 < head.mean() < 0.8
        for row in range(ROWS):
            error = np.abs(made.hints[row] - expected[row]).mean()
            others = [
                np.abs(made.hints[other] - expected[row]).mean()
                for other in range(ROWS)
                if other != row
            ]
            assert error < 0.012 and error < 0.3 * min(others), (row, error, min(others))


def test_the_mirror_image_is_exact_and_that_of_the_mirrored_head(
    model, batches, assembled, unchanged
):
    _, batch = batches
    made = assembled[1].hints
    plain = np.asarray(
        RUN(
            batch | {"change": jax.device_get(augment.identity_transforms(ROWS))}, model, size=SIZE
        ).hints
    )
    mirror = CHANGES["mirror"]
    np.testing.assert_array_equal(made[~mirror], plain[~mirror])
    np.testing.assert_array_equal(
        made[mirror], (plain * np.float32([-1] + [1] * 8))[mirror][:, :, ::-1]
    )
    # The head's own mirror image: the same shape as far as identities can be mirrored, another
    # order of triangles at the edges.
    mirrored = jax.vmap(lambda head: camera.mirrored(head, model))(unchanged[0])
    cut = (STORED - SIZE) // 2
    other = np.asarray(render_hints_batch(model, mirrored, STORED, STORED))[:, cut:-cut, cut:-cut]
    assert np.abs(other - made)[mirror].mean() < 0.01


def test_hints_that_are_stored_as_pictures_stay_in_step_too(batches, unchanged):
    hints = unchanged[1]
    eight_bits = np.round(
        np.concatenate([hints[..., :3] / 2 + 0.5, hints[..., 3:]], -1) * 255
    ).astype(np.uint8)
    stacked = np.concatenate([eight_bits[..., 3 * i : 3 * i + 3] for i in range(3)], axis=1)
    batch = {name: value for name, value in batches[0].items() if name != "head"} | {
        "hints": stacked
    }
    made = np.asarray(RUN(batch, None, size=SIZE).hints)
    expected = warped(hints, CHANGES)
    inside = np.abs(expected[..., 3:6]).sum(-1) > 0.1
    assert (
        np.abs(made - expected)[inside].max() < 0.012
        and np.abs(made[..., 3:] - expected[..., 3:]).max() < 0.01
    )
    assert not made[np.abs(expected[..., 3:6]).sum(-1) == 0].any()


def test_pictures_and_masks_are_warped_alike(batches):
    """A picture that shows the region, and covered up to the same line."""
    batch = dict(batches[0])
    region = np.stack([cv2.GaussianBlur(mask, (0, 0), 9) for mask in batch["region"][..., 0]])
    where = (np.arange(STORED) + 0.5) * 256 / STORED - 0.5
    index = jnp.asarray(np.stack(np.meshgrid(where, where), -1), jnp.float32)[None].repeat(ROWS, 0)
    picture = (
        np.asarray(augment.warp(region[..., None].astype(np.float32), index))
        .round()
        .astype(np.uint8)
        .repeat(3, -1)
    )
    picture[:, :20] = 255
    batch |= {
        "region": region[..., None],
        "picture": picture,
        "covered": np.tile(np.float32([0, 20 / STORED, 1, 1]), (ROWS, 1)),
        "light": np.full(ROWS, 0.8, np.float32),
    }
    batch = {name: value for name, value in batch.items() if name != "head"} | {
        "hints": np.zeros((ROWS, 3 * STORED, STORED, 3), np.uint8)
    }
    made = jax.device_get(RUN(batch, None, size=SIZE))
    shown = (made.photo[..., 0] + 1) / 2 / 0.8
    # Away from the line by more than a pixel, which mixes both sides.
    thick = lambda where: (
        np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) for mask in where])
        > 0
    )
    covered = made.area[..., 0] > 0
    inside, outside = ~thick(~covered), ~thick(covered)
    assert inside.mean() > 0.4 and outside.mean() > 0.03
    assert np.abs(shown - made.region[..., 0])[inside].max() < 0.03
    assert (
        shown[outside] > 0.99
    ).mean() > 0.8  # the rest lies beyond the other edges of the stored square
    assert made.region.mean(axis=(1, 2, 3)).min() > 0.05


def test_what_is_passed_on_and_what_is_named(batches, assembled):
    for batch, made in zip(batches, assembled):
        for name in ("index", "weight", "recognition", "without_text", "without_identity"):
            np.testing.assert_array_equal(getattr(made, name), batch[name])
        np.testing.assert_array_equal(made.token_ids, batch["caption_ids"])
        np.testing.assert_allclose(made.identity_input * 255, batch["identity_input"], atol=1e-4)
        assert made.region.shape == made.area.shape == (ROWS, SIZE, SIZE, 1)
        assert 0 <= made.region.min() and made.region.max() <= 1
    pictures, moments = assembled
    assert (
        pictures.photo.shape == (ROWS, SIZE, SIZE, 3)
        and pictures.moments is None
        and moments.photo is None
    )
    np.testing.assert_array_equal(moments.moments, batches[1]["moments"])
    assert moments.moments.dtype == np.float16


@pytest.mark.slow
def test_a_mesh_gives_every_device_its_rows(model, batches, assembled):
    mesh = sharding.make_mesh()
    run = jax.jit(sharding.over_batch(mesh, lambda model, batch: make_batch(batch, model, SIZE)))
    made = jax.device_get(
        run(jax.tree.map(jnp.asarray, model), jax.device_put(batches[1], sharding.by_batch(mesh)))
    )
    for name, value in vars(assembled[1]).items():
        if value is None:
            continue
        np.testing.assert_allclose(getattr(made, name), value, atol=1e-5, err_msg=name)


def test_light_makes_picture_and_colors_brighter_alike(batches, model, assembled):
    batch = batches[0] | {"light": np.full(ROWS, 1.1, np.float32)}
    brighter = jax.device_get(RUN(batch, model, size=SIZE))
    plain = assembled[0]
    np.testing.assert_array_equal(brighter.hints[..., :3], plain.hints[..., :3])
    np.testing.assert_allclose(
        brighter.hints[..., 3:], np.minimum(plain.hints[..., 3:] * 1.1, 1), atol=1e-5
    )
    np.testing.assert_allclose(
        brighter.photo, np.minimum((plain.photo + 1) / 2 * 1.1, 1) * 2 - 1, atol=1e-5
    )
