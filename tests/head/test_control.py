"""Whose numbers end up in a mixed head, heads in words, and the messages for words that are not
known.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import HeadError
from caphuman_jax.head import editing
from caphuman_jax.head.spherical_harmonics import sh_basis, shading


@pytest.fixture(scope="module")
def pair(make_head):
    reference = make_head(0, 1, 2, 3, expression={"jawOpen": 0.2})
    wanted = make_head(
        9,
        -20,
        10,
        -5,
        expression={"mouthSmileLeft": 0.9},
        light=editing.parse_light("left"),
        scale=30.0,
        translation=(20.0, 40.0),
    )
    return reference, wanted


FIELDS = {
    "position": ("scale", "translation"),
    "pose": ("rotation",),
    "expression": ("expression",),
    "lighting": ("light",),
}


@pytest.mark.parametrize(
    "take",
    ["position", "pose", "expression", "lighting", "position,pose", "all", ["expression", "pose"]],
)
def test_who_gives_what(model, pair, take):
    reference, wanted = pair
    mixed = editing.mix(model, reference, wanted, take)
    names = (
        set(FIELDS) if take == "all" else set(take.split(",") if isinstance(take, str) else take)
    )
    for part, fields in FIELDS.items():
        for field in fields:
            source = wanted if part in names else reference
            np.testing.assert_array_equal(
                getattr(mixed, field), getattr(source, field), err_msg=field
            )
    for field in ("identity", "albedo", "size"):
        np.testing.assert_array_equal(getattr(mixed, field), getattr(reference, field))


def test_default_is_position_and_pose_and_position_is_relative(model, pair):
    import dataclasses

    reference, wanted = pair
    np.testing.assert_array_equal(editing.mix(model, reference, wanted).light, reference.light)
    twice = dataclasses.replace(
        wanted, size=wanted.size * 2, scale=wanted.scale * 2, translation=wanted.translation * 2
    )
    mixed = editing.mix(model, reference, twice)
    np.testing.assert_allclose(mixed.translation, wanted.translation, atol=1e-4)
    assert float(mixed.scale) == pytest.approx(30)


def test_from_numbers(model, pair):
    reference, _ = pair
    head = editing.from_numbers(
        model,
        reference,
        yaw=25,
        expression="smile=0.5,jawOpen=0.3",
        light="right",
        position=(0.5, 0.4, 0.5),
    )
    np.testing.assert_allclose(head.angles, [25, 2, 3], atol=0.01)
    weights = editing.expression_numbers(model, head)
    assert weights["mouthSmileLeft"] == pytest.approx(0.45) and weights["jawOpen"] == pytest.approx(
        0.33
    )
    assert (
        float(shading(jnp.asarray([1.0, 0, 0], jnp.float32), head.light)[0])
        > 1.0
        > float(shading(jnp.asarray([-1.0, 0, 0], jnp.float32), head.light)[0])
    )
    np.testing.assert_allclose(editing.position_of(model, head), (0.5, 0.4, 0.5), atol=1e-5)
    for field in ("identity", "albedo"):
        np.testing.assert_array_equal(getattr(head, field), getattr(reference, field))


def test_every_preset_has_known_names(model):
    for name, weights in editing.PRESETS.items():
        assert set(weights) <= set(model.expression_names), name
        assert (editing.expression_vector(model, name).max() > 0) == (name != "neutral")
    for name in editing.LIGHTS:
        assert editing.parse_light(name).shape == (9, 3)


def test_lamp_is_the_clamped_cosine():
    """Against the cosine lobe integrated numerically: the best nine-term approximation over the
    sphere.
    """
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    direction = np.asarray([0.5, -0.3, 0.8]) / np.linalg.norm([0.5, -0.3, 0.8])
    basis = np.asarray(sh_basis(jnp.asarray(points, jnp.float32)))
    best = np.linalg.lstsq(basis, 1.4 * np.maximum(points @ direction, 0), rcond=None)[0]
    np.testing.assert_allclose(editing.directional_light(direction, 1.0)[:, 0], best, atol=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, h: editing.mix(m, h, h, "position,poze"), "near it: .*pose"),
        (lambda m, h: editing.mix(m, h, h, ""), "nothing to take"),
        (lambda m, h: editing.from_numbers(m, h, expression="smlie=0.8"), "near it: smile"),
        (lambda m, h: editing.from_numbers(m, h, expression="jawopen=0.8"), "near it: .*jawOpen"),
        (lambda m, h: editing.from_numbers(m, h, expression="smile=much"), "must be a number"),
        (lambda m, h: editing.from_numbers(m, h, expression="smile=nan"), "between 0 and 1"),
        (lambda m, h: editing.from_numbers(m, h, expression="smile=1.5"), "between 0 and 1"),
        (lambda m, h: editing.from_numbers(m, h, expression="smile=0.1,smile=0.2"), "given twice"),
        (lambda m, h: editing.from_numbers(m, h, expression=" , "), "no expression"),
        (
            lambda m, h: editing.from_numbers(m, h, yaw=float("nan")),
            "yaw must lie between -90 and 90",
        ),
        (lambda m, h: editing.from_numbers(m, h, pitch=75), "pitch must lie"),
        (lambda m, h: editing.from_numbers(m, h, roll="steep"), "roll must be a number"),
        (lambda m, h: editing.from_numbers(m, h, light="lefft"), "near it: left"),
        (lambda m, h: editing.from_numbers(m, h, light="1,2,3"), "four numbers"),
        (lambda m, h: editing.from_numbers(m, h, light="0,0,0,0.5"), "length 0"),
        (lambda m, h: editing.from_numbers(m, h, light="0,1,0,7"), "strength"),
        (lambda m, h: editing.from_numbers(m, h, light=[1.0] * 26), "27"),
        (lambda m, h: editing.from_numbers(m, h, position=(0.5, 0.5)), "three numbers"),
        (lambda m, h: editing.from_numbers(m, h, position=(0.5, 0.5, 0)), "size of position"),
    ],
)
def test_messages(model, pair, call, message):
    with pytest.raises(HeadError, match=message):
        call(model, pair[0])
