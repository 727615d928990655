"""A new head model is one file and one line of the registry."""

import dataclasses
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import HeadError
from caphuman_jax.head import camera, editing, fitting, head_json, mesh_export, pose, visualize
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import render_hints
from caphuman_jax.head.lighting import posed
from caphuman_jax.head.models import registry
from caphuman_jax.head.spherical_harmonics import WHITE


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__.rpartition("/")[0]))
    monkeypatch.setitem(registry.HEADS, "toy", "toy_head")
    registry.load_head.cache_clear()
    yield registry.load_head("toy")
    registry.load_head.cache_clear()
    sys.modules.pop("toy_head", None)


@pytest.fixture
def head(toy):
    return Head(
        identity=jnp.asarray([0.5, -0.3, 0.2]),
        expression=jnp.asarray([0.4]),
        rotation=pose.rotation_matrix(10, 5, 0),
        scale=jnp.float32(50),
        translation=jnp.asarray([80.0, 90.0]),
        size=jnp.asarray([180.0, 160.0]),
        light=jnp.asarray(WHITE),
        albedo=jnp.full((len(toy.mean), 3), 0.6),
        residual=jnp.float32(0),
    )


def test_a_new_head_is_fitted_and_rendered(toy, head):
    points = toy.landmarks(posed(toy, head)[0])
    found = fitting.fit(toy, points, jnp.zeros(1), head.size)
    assert float(found.residual) < 0.05
    np.testing.assert_allclose(found.angles, head.angles, atol=4)
    hints, alpha = render_hints(toy, head, 90, 80, with_alpha=True)
    assert hints.shape == (90, 80, 9) and 0.05 < float(alpha.mean()) < 0.9
    photo = np.full((90, 80, 3), 128, np.uint8)
    assert visualize.overlay(toy, head, photo).shape == photo.shape
    assert mesh_export.to_obj(toy, head).count("\nv ") == len(toy.mean)


def test_a_new_head_is_edited_and_recorded(toy, head):
    turned = editing.from_numbers(toy, head, yaw=-20, expression="jawOpen=0.7", position=(0.5,) * 3)
    assert float(turned.expression[0]) == pytest.approx(0.7)
    mixed = editing.mix(toy, head, turned, "pose,expression")
    np.testing.assert_array_equal(mixed.rotation, turned.rotation)
    again = head_json.build(toy, json.loads(head_json.text(head_json.of(toy, turned))))
    np.testing.assert_allclose(again.angles, turned.angles, atol=1e-2)
    np.testing.assert_allclose(again.identity, turned.identity, atol=1e-4)
    mirrored = camera.mirrored(head, toy)
    np.testing.assert_allclose(mirrored.identity, head.identity, atol=0.05)
    np.testing.assert_allclose(mirrored.angles[0], -head.angles[0], atol=1e-3)
    with pytest.raises(HeadError, match="another head model"):
        head_json.build(toy, head_json.of(toy, dataclasses.replace(head, albedo=head.albedo[:9])))


def test_the_command_line_lists_and_uses_a_new_head(toy, tmp_path):
    import argparse

    from caphuman_jax.cli import app, import_weights

    parser = argparse.ArgumentParser()
    import_weights.add_arguments(parser)
    assert parser.parse_args(["m", "--head", "toy"]).head == "toy"
    (tmp_path / "in.json").write_text('{"yaw": 20, "expression": {"jawOpen": 0.5}}')
    app.main(
        f"head --numbers {tmp_path}/in.json --head-model toy --size 64 --out {tmp_path}/out".split()
    )
    record = json.loads((tmp_path / "out" / "head.json").read_text())
    assert record["model"] == "toy" and record["expression"] == {"chin": 0.5}
    assert (tmp_path / "out" / "hints.png").is_file()


def test_records_of_a_new_head_have_its_shapes(toy, monkeypatch):
    from data_pipeline.prepare.settings import PrepareSettings

    monkeypatch.setattr(PrepareSettings, "head_model", "toy")
    layout = PrepareSettings().layout()
    assert (layout.identity, layout.expression) == (3, 1) and layout.albedo == (len(toy.mean), 3)
    assert "deca_encoder" not in PrepareSettings().networks()


def test_an_unknown_head_is_named_with_those_that_there_are():
    with pytest.raises(HeadError, match="no head model named 'nobody'; known: anny, flame"):
        registry.load_head("nobody")


def test_nothing_else_asks_what_kind_of_head_it_has():
    import re
    from pathlib import Path

    asks = re.compile(
        r"""(has|get)attr\((\w+\.)?(head_)?model\b|albedo\.ndim|(==|!=)\s*["'](anny|flame)["']"""
    )
    root = Path(registry.__file__).parents[3]
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for package in ("caphuman_jax", "data_pipeline")
        for path in (root / package).rglob("*.py")
        if path.parent != Path(registry.__file__).parent
        for line in path.read_text(encoding="utf-8").splitlines()
        if asks.search(line)
    ]
    assert found == []
