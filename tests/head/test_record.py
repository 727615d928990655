"""Heads in numbers: written, edited by hand, read back; nonsense is named."""

import base64
import json

import jax
import numpy as np
import pytest

from caphuman_jax.errors import HeadError
from caphuman_jax.head import editing, head_json, mesh_export
from caphuman_jax.head.hints import render_hints


@pytest.fixture(scope="module")
def head(make_head):
    return make_head(
        3,
        20,
        -8,
        5,
        expression={"jawOpen": 0.4, "mouthSmileLeft": 0.7},
        light=editing.parse_light("left=0.6"),
    )


def test_round_trip_through_a_file(model, head, tmp_path):
    path = tmp_path / "head.json"
    written = head_json.of(model, head, fit={"confidence": 0.9})
    path.write_text(head_json.text(written), encoding="utf-8")
    assert json.loads(path.read_text()) == json.loads(json.dumps(written)) == head_json.read(path)
    assert written["yaw"] == pytest.approx(20, abs=0.01) and written["expression"][
        "jawOpen"
    ] == pytest.approx(0.4, abs=1e-3)
    assert written["picture"] == [160, 200] and '\n  "yaw": 20' in path.read_text()
    again = head_json.build(model, head_json.read(path))
    for name, tolerance in (
        ("rotation", 1e-4),
        ("expression", 6e-3),
        ("identity", 1e-4),
        ("albedo", 3e-3),
        ("light", 1e-4),
        ("translation", 0.01),
        ("size", 0),
    ):
        np.testing.assert_allclose(
            getattr(again, name), getattr(head, name), atol=tolerance, err_msg=name
        )
    assert float(again.scale) == pytest.approx(float(head.scale), rel=1e-4)
    assert (
        np.median(
            np.abs(
                np.asarray(render_hints(model, again, 64, 48))
                - np.asarray(render_hints(model, head, 64, 48))
            )
        )
        < 1e-3
    )


def test_numbers_go_over_a_head_and_leave_whose_it_is(model, head, make_head):
    other = head_json.of(model, make_head(9, yaw=-30))
    mixed = head_json.apply(model, head, other)
    np.testing.assert_array_equal(mixed.identity, head.identity)
    np.testing.assert_array_equal(mixed.albedo, head.albedo)
    assert (
        np.asarray(mixed.angles)[0] == pytest.approx(-30, abs=0.01)
        and float(np.abs(np.asarray(mixed.expression)).max()) == 0
    )
    assert head_json.apply(model, head, {}) is head
    part = head_json.apply(model, head, {"yaw": 3, "x": 0.25})
    np.testing.assert_allclose(np.asarray(part.angles), [3, -8, 5], atol=0.01)
    x, y, size = editing.position_of(model, part)
    assert x == pytest.approx(0.25) and (y, size) == pytest.approx(
        editing.position_of(model, head)[1:], rel=1e-5
    )


def test_single_expressions_replace_their_own_weight(model, head):
    weight = lambda numbers, name: head_json.apply(model, head, numbers).expression[
        model.expression_names.index(name)
    ]
    assert weight({"jawOpen": 0.1}, "jawOpen") == pytest.approx(0.1) and weight(
        {"jawOpen": 0.1}, "mouthSmileLeft"
    ) == pytest.approx(0.7)
    assert weight({"JawOpen": "0.2"}, "jawOpen") == pytest.approx(
        0.2
    )  # as capture programs write it, from a table
    smile = {"smile": 1.0}
    assert weight(smile, "mouthSmileRight") == pytest.approx(0.9) and weight(
        smile, "jawOpen"
    ) == pytest.approx(0.06)
    assert (
        weight({"neutral": 1, "mouthPucker": 0.5}, "mouthSmileLeft") == 0
        and weight({"neutral": 1, "mouthPucker": 0.5}, "mouthPucker") == 0.5
    )
    assert weight({"expression": "wink", "jawOpen": 0.3}, "eyeBlinkLeft") == 1 and weight(
        {"expression": "wink", "jawOpen": 0.3}, "jawOpen"
    ) == pytest.approx(0.3)


def test_a_head_of_few_numbers(model):
    head = head_json.build(model, {"yaw": 25}, (300, 300))
    assert np.asarray(head.size).tolist() == [300, 300] and editing.position_of(
        model, head
    ) == pytest.approx((0.5, 0.5, 0.5))
    np.testing.assert_allclose(np.asarray(head.angles), [25, 0, 0], atol=1e-3)


BAD = {
    "yaw": ({"yaw": 200}, "yaw"),
    "NaN": ({"pitch": float("nan")}, "pitch"),
    "text": ({"roll": "left"}, "roll"),
    "unknown": ({"smirk": 1}, "smirk"),
    "weight": ({"jawOpen": 3}, "jawOpen"),
    "light": ({"light": [1, 2]}, "27"),
    "position": ({"position": [1, 2]}, "three"),
    "both": ({"position": [0.5, 0.5, 0.5], "x": 0.2}, "not both"),
    "model": ({"model": "flame"}, "flame"),
    "identity": ({"identity": [1, 2]}, "identity"),
    "identity text": ({"identity": "hers"}, "identity"),
    "picture": ({"picture": [-5, 5]}, "picture"),
    "albedo": ({"albedo": "AAAA"}, "albedo"),
    "albedo of another": ({"albedo": base64.b64encode(b"no picture").decode()}, "albedo"),
    "expression": ({"expression": {"jawOpen": 2}}, "jawOpen"),
}


@pytest.mark.parametrize("case", BAD)
def test_nonsense_is_named(case, model):
    numbers, told = BAD[case]
    with pytest.raises(HeadError, match=told):
        head_json.build(model, numbers)


def test_files_that_are_no_numbers(tmp_path):
    for name, text, told in (
        ("gone.json", None, "read"),
        ("broken.json", "{", "JSON"),
        ("list.json", "[1]", "list"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(HeadError, match=told):
            head_json.read(tmp_path / name)


def test_obj(model, head):
    lines = mesh_export.to_obj(model, head).splitlines()
    vertices = np.asarray([line.split()[1:] for line in lines if line.startswith("v ")], float)
    faces = np.asarray([line.split()[1:] for line in lines if line.startswith("f ")], int)
    assert vertices.shape == (len(model.mean), 6) and len(lines) == 1 + len(vertices) + len(faces)
    np.testing.assert_array_equal(faces - 1, model.triangles)
    np.testing.assert_allclose(vertices[:, 3:], head.albedo, atol=1e-4)
    still = mesh_export.to_obj(
        model,
        jax.tree.map(
            lambda leaf: leaf, editing.from_numbers(model, head, yaw=-50, position=(0.1, 0.1, 0.9))
        ),
    )
    assert still.splitlines() == lines  # pose and place are not in it


def test_turntable(model, head):
    pictures = mesh_export.turntable(model, head, side=48, count=8)
    assert pictures.shape == (8, 48, 48, 3) and pictures.dtype == np.uint8
    there = np.abs(pictures.astype(int) - pictures[0, 0, 0]).sum(-1) > 6
    columns = [np.argwhere(one)[:, 1] for one in there]
    assert all(abs(column.mean() - 24) < 5 for column in columns)  # it turns about itself
    assert (
        columns[2].max() > columns[0].max() and columns[6].min() < columns[0].min()
    )  # a quarter to the right, a quarter to the left
