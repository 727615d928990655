"""FLAME behind the interface of the shipped head: a FLAME-form model made from the shipped mesh,
whose truth is known.
"""

import dataclasses

import flame_standin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import HeadError
from caphuman_jax.face import landmark_indices
from caphuman_jax.face.landmark_indices import IBUG_68
from caphuman_jax.head import camera, editing, head_json, texture
from caphuman_jax.head.fitting import fit, head_from_photo
from caphuman_jax.head.hints import render_hints
from caphuman_jax.head.landmarks68 import landmarks_68
from caphuman_jax.head.lighting import posed
from caphuman_jax.head.models import deca, deca_head, flame, flame_files, flame_loading
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.head.pose import rotation_matrix
from caphuman_jax.head.texture import TextureSpace


@pytest.fixture(scope="session")
def shipped():
    return load_head()


@pytest.fixture(scope="session")
def entries(shipped):
    return flame_standin.entries(shipped)


@pytest.fixture(scope="session")
def embedding(shipped):
    return flame_standin.embedding(shipped)


@pytest.fixture(scope="session")
def model(entries, embedding, shipped):
    uv = shipped.mean[:, :2].astype(np.float64) / 4 + 0.5
    template = (uv, shipped.triangles, shipped.triangles)
    made = flame_files.from_arrays(
        entries, shapes=60, vertices=None, embedding=embedding, template=template
    )
    return flame_loading.as_head(made)


@pytest.fixture(scope="session")
def code():
    rng = np.random.default_rng(3)
    number = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return deca.FlameCode(
        shape=0.7 * number(60),
        texture=number(4),
        expression=0.5 * number(50),
        pose=jnp.asarray([0.2, -0.4, 0.1, 0.3, 0.02, 0.0]),
        camera=jnp.asarray([7.5, 0.01, 0.02]),
        light=jnp.asarray(np.eye(9, 3), jnp.float32) * 3 + 0.2 * number(9, 3),
        crop=jnp.asarray([40.0, 25.0, 180.0]),
        size=jnp.asarray([240.0, 260.0]),
    )


@pytest.fixture(scope="session")
def space():
    rng = np.random.default_rng(4)
    return TextureSpace(
        mean=np.full((64, 64, 3), 0.5, np.float32),
        basis=(0.05 * rng.standard_normal((4, 64, 64, 3))).astype(np.float32),
    )


def test_arkit_weights_are_found_again(model, shipped):
    names = ("mouthSmileLeft", "jawOpen", "no such name", "mouthSmileRight")
    weights = np.asarray([[0.8, 0.1, 0, 0.7], [0, 0.5, 0, 0.2]], np.float32)
    for head in (model, shipped):
        found = head.arkit_weights(names, head.expression_from_arkit(names, weights))
        assert np.isnan(found[:, 2]).all() and found.shape == (2, 4)
        np.testing.assert_allclose(found[:, [0, 1, 3]], weights[:, [0, 1, 3]], atol=2e-4)
    some = np.random.default_rng(0).uniform(0, 1, (5, 52)).astype(np.float32)
    picked = shipped.expression_names.index("jawOpen")
    assert (shipped.arkit_weights(("jawOpen",), some)[:, 0] == some[:, picked]).all()


def test_landmarks_are_carried_over(model, shipped):
    """The given 68 are exact; of the others, warped from a head that is the same, every one comes
    back to its place.
    """
    ours, theirs = (np.asarray(m.landmarks(m.mean)) for m in (model, shipped))
    theirs = theirs - model.origin * 10
    assert model.landmark_valid.sum() == 68
    np.testing.assert_allclose(ours[list(IBUG_68)], theirs[list(IBUG_68)], atol=1e-5)
    assert np.abs(ours - theirs)[shipped.landmark_valid].max() < 0.02  # 2 mm
    assert editing.face_height(model) == pytest.approx(editing.face_height(shipped), rel=0.02)


def test_expression_directions_are_derivatives(model):
    """Rows of expression_basis, against differences of the bent head."""
    zero = jnp.zeros(60), jnp.zeros(62)
    rest = model.vertices(*zero)
    np.testing.assert_allclose(rest, model.mean, atol=1e-5)
    step = 1e-2
    for i in (3, 50, 53, 55, 57, 61):
        moved = [model.vertices(zero[0], zero[1].at[i].set(s)) for s in (step, -step)]
        np.testing.assert_allclose(
            (moved[0] - moved[1]) / (2 * step), model.expression_basis[i], atol=1e-3
        )


def test_fitted_landmarks_are_those_of_the_vertices(model, code):
    expression = jnp.concatenate([code.expression, 0.1 * jnp.arange(12, dtype=jnp.float32)])
    few = model.landmarks_of(code.shape, expression)
    whole = model.landmarks(model.vertices(code.shape, expression))
    np.testing.assert_allclose(few[model.landmark_valid], whole[model.landmark_valid], atol=1e-5)


def test_head_of_deca_code_stands_where_deca_puts_it(model, space, code):
    points = flame.vertices(model.flame, code.shape, code.expression, flame.full_pose(code.pose))
    expected = deca.to_picture(deca.project(points, code.camera), code.crop)
    head = deca_head.head_of_code(model, space, code)
    ours, normals = posed(model, head)
    np.testing.assert_allclose(ours[:, :2], expected[:, :2], atol=2e-3)
    np.testing.assert_allclose(ours[:, 2] - ours[0, 2], expected[:, 2] - expected[0, 2], atol=2e-3)
    back = deca_head.code_of_head(model, head, code.crop, code.texture)
    for field in dataclasses.fields(code):
        np.testing.assert_allclose(
            getattr(back, field.name), getattr(code, field.name), atol=1e-4, err_msg=field.name
        )


def test_hints_are_decas(model, space, code):
    """The same nine channels by the way of every head, with the texture as albedo; raw, as the
    render is beyond 1 where it is bright.
    """
    head = deca_head.head_of_code(model, space, code)
    ours = np.asarray(render_hints(model, head, 120, 130))
    codes = jax.tree.map(lambda leaf: leaf[None], code)
    theirs = np.array(deca.render_hints(model.flame, space, codes, 120, 130)[0])
    assert theirs[..., 6:].max() > 1.05
    assert (np.abs(ours - theirs).max(axis=-1) > 1e-3).mean() < 2e-3
    assert (theirs[..., 3:6] > 0).any(axis=-1).mean() > 0.2


def test_fit_finds_a_bent_head(model, space, code):
    """Landmarks of a head with an open jaw: put back within a fraction of a pixel, jaw and pose
    found.
    """
    wanted = deca_head.head_of_code(model, space, code)
    points, _ = posed(model, wanted)
    found = fit(model, model.landmarks(points), jnp.zeros(62), wanted.size)
    assert float(found.residual) < 0.01
    again, _ = posed(model, found)
    eyes = model.landmarks(points)[np.asarray(landmark_indices.OUTER_EYE_CORNERS), :2]
    unit = float(jnp.linalg.norm(eyes[0] - eyes[1]))
    given, refound = (np.asarray(model.landmarks(p))[list(IBUG_68), :2] for p in (points, again))
    assert np.median(np.linalg.norm(given - refound, axis=-1)) < 0.01 * unit
    assert np.abs(np.asarray(found.angles) - np.asarray(wanted.angles)).max() < 3
    names = model.expression_names
    assert abs(float(found.expression[names.index("jaw_x")]) - 0.3) < 0.12
    held = [i for i, name in enumerate(names) if name.startswith(("neck", "left_eye", "right_eye"))]
    assert not np.asarray(found.expression)[held].any()


def test_everything_downstream_takes_it(model, space, code, tmp_path):
    head = deca_head.head_of_code(model, space, code)
    other = dataclasses.replace(head, rotation=rotation_matrix(20.0, 5.0, 0.0))
    mixed = editing.mix(model, head, other, "pose,expression")
    np.testing.assert_array_equal(mixed.rotation, other.rotation)
    turned = editing.from_numbers(model, head, yaw=-15.0, position=(0.5, 0.55, 0.6))
    np.testing.assert_allclose(turned.angles[0], -15, atol=1e-3)
    np.testing.assert_allclose(editing.position_of(model, turned), (0.5, 0.55, 0.6), rtol=1e-5)
    again = head_json.build(model, head_json.of(model, head))
    np.testing.assert_allclose(
        again.expression, np.where(np.abs(head.expression) > 0.005, head.expression, 0), atol=1e-4
    )
    assert again.albedo.shape == (64, 64, 3)
    assert landmarks_68(model, head, 240, 260).shape == (68, 2)


def test_expressions_by_name(model, shipped):
    """An open mouth opens: the lower lip goes down as on the shipped head; numbers of its own are
    taken as they are.
    """
    rest, opened = (
        np.asarray(
            model.landmarks(
                model.vertices(jnp.zeros(60), jnp.asarray(editing.expression_vector(model, text)))
            )
        )
        for text in ("neutral", "jawOpen=0.8")
    )
    theirs = 0.8 * np.asarray(
        shipped.landmarks(shipped.expression_basis[shipped.expression_names.index("jawOpen")])
    )
    for number in (17, 14, 152):
        assert (opened - rest)[number, 1] == pytest.approx(theirs[number, 1], rel=0.4)
        assert theirs[number, 1] < -0.05
    own = editing.expression_vector(model, {"jaw_x": 0.2, "expression_3": -1.5})
    assert (
        own[model.expression_names.index("jaw_x")] == pytest.approx(0.2)
        and own[3] == -1.5
        and np.count_nonzero(own) == 2
    )
    with pytest.raises(HeadError, match="jaw_x"):
        editing.expression_vector(model, "jaw_y2=1")
    with pytest.raises(HeadError, match="between 0 and 1"):
        editing.expression_vector(model, {"smile": 1.5})
    named = model.expression_from_arkit(("_neutral", "jawOpen"), np.asarray([[0.3, 0.8]]))
    np.testing.assert_allclose(named[0], editing.expression_vector(model, "jawOpen=0.8"), rtol=1e-5)


def test_mirroring_twice(model, space, code):
    head = deca_head.head_of_code(model, space, code)
    once = camera.mirrored(head, model)
    twice = camera.mirrored(once, model)
    np.testing.assert_allclose(once.angles, np.asarray(head.angles) * [-1, 1, -1], atol=1e-3)
    np.testing.assert_allclose(once.albedo, head.albedo[:, ::-1])
    names = model.expression_names
    jaw = [names.index(f"jaw_{axis}") for axis in "xyz"]
    np.testing.assert_allclose(
        once.expression[np.asarray(jaw)], np.asarray([0.3, -0.02, 0]), atol=1e-6
    )
    np.testing.assert_allclose(twice.translation, head.translation, atol=1e-3)
    np.testing.assert_allclose(twice.expression[-12:], head.expression[-12:], atol=1e-6)


def test_photo_to_head(model, space, code):
    """A render of it as the photo: colors by vertex, as from the shipped head."""
    wanted = deca_head.head_of_code(
        model,
        space,
        dataclasses.replace(code, light=jnp.asarray(editing.directional_light((0, 0, 1), 0.3))),
    )
    picture = np.asarray(render_hints(model, wanted, 240, 260))[..., 6:]
    points, _ = posed(model, wanted)
    head = head_from_photo(
        model,
        np.rint(picture * 255).astype(np.uint8),
        np.asarray(model.landmarks(points)),
        np.zeros(62, np.float32),
    )
    assert head.albedo.shape == (len(model.mean), 3)
    seen = np.asarray(render_hints(model, head, 240, 260))
    both = (seen[..., 3:6] > 0).any(-1) & (picture > 0).any(-1)
    assert np.abs(seen[..., 6:] - picture)[both].mean() < 0.06


def test_photo_to_deca_code_without_deca(model, code):
    """The photo is a render; fitted numbers draw nearly the same picture by DECA's way, texture
    included.
    """
    rng = np.random.default_rng(5)
    smooth = np.repeat(np.repeat(rng.standard_normal((4, 4, 4, 3)), 16, 1), 16, 2) * 0.06
    space = TextureSpace(
        mean=np.full((64, 64, 3), 0.5, np.float32), basis=smooth.astype(np.float32)
    )
    light = jnp.asarray(editing.directional_light((0.3, 0.2, 1), 0.2))
    wanted = deca_head.head_of_code(
        model, space, dataclasses.replace(code, light=light, pose=code.pose * 0.5)
    )
    picture = np.asarray(render_hints(model, wanted, 240, 260))[..., 6:]
    points = np.asarray(model.landmarks(posed(model, wanted)[0]))
    found = deca_head.code_from_photo(
        model, space, np.rint(picture * 255).astype(np.uint8), points, np.zeros(62, np.float32)
    )
    drawn = np.asarray(
        deca.render_hints(
            model.flame, space, jax.tree.map(lambda leaf: leaf[None], found), 240, 260
        )[0]
    )[..., 6:]
    both = (drawn > 0).any(-1) & (picture > 0).any(-1)
    assert both.sum() > 0.9 * (picture > 0).any(-1).sum()
    assert np.abs(drawn - picture)[both].mean() < 0.05
    assert found.texture.shape == (4,)


def test_texture_of_albedo(model):
    """Colors that a texture gives at the vertices: its coefficients, shrunk a little."""
    rng = np.random.default_rng(6)
    space = TextureSpace(
        mean=rng.random((32, 32, 3), dtype=np.float32),
        basis=rng.standard_normal((5, 32, 32, 3)).astype(np.float32),
    )
    wanted = np.asarray([1, -0.5, 0, 2, 0.3], np.float32)
    colors = texture.sample_texture(
        texture.texture(space, jnp.asarray(wanted)), jnp.asarray(model.flame.uv)
    )
    np.testing.assert_allclose(deca_head.texture_of_albedo(model, space, colors), wanted, atol=0.05)


@pytest.mark.parametrize("shift, words", [(0.0, None), (300.0, "no head where the landmarks")])
def test_head_by_deca_says_how_well_it_fits(model, space, code, monkeypatch, shift, words):
    wanted = deca_head.head_of_code(model, space, code)
    points = np.asarray(model.landmarks(posed(model, wanted)[0])) + np.asarray([shift, 0, 0])
    monkeypatch.setattr(deca, "estimate", lambda *_: code)
    photo = np.zeros((240, 260, 3), np.uint8)
    if words:
        with pytest.raises(HeadError, match=words):
            deca_head.head_by_deca(model, space, None, photo, points)
        return
    for given in (points, points[list(IBUG_68)]):
        assert float(deca_head.head_by_deca(model, space, None, photo, given).residual) < 1e-3
    moved = deca_head.head_by_deca(model, space, None, photo, points + np.asarray([2, 0, 0]))
    assert 0.01 < float(moved.residual) < 0.2


def test_without_landmarks(entries):
    with pytest.raises(HeadError, match="landmark_embedding.npy"):
        flame_loading.as_head(flame_files.from_arrays(entries, vertices=None))


def test_named_by_its_folder(tmp_path, entries, monkeypatch):
    with pytest.raises(HeadError, match="or the file or folder of a model of flame"):
        load_head(str(tmp_path / "none"))
    monkeypatch.delenv(deca_head.VARIABLE, raising=False)
    with pytest.raises(HeadError, match="set CAPHUMAN_FLAME to the folder"):
        load_head("flame")
    monkeypatch.setenv(deca_head.VARIABLE, "")
    with pytest.raises(HeadError, match="set CAPHUMAN_FLAME to the folder"):
        load_head("flame")
    np.savez(tmp_path / "flame2023.npz", **entries)
    monkeypatch.setenv(deca_head.VARIABLE, str(tmp_path))
    for name in (str(tmp_path), "flame"):
        with pytest.raises(HeadError, match="4,801 vertices; FLAME has 5,023"):
            load_head(name)
    monkeypatch.setenv(deca_head.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(HeadError, match="there is no FLAME model at"):
        load_head("flame")


def test_mediapipe_table(entries, embedding, shipped, tmp_path):
    """FLAME's own 105 landmarks of MediaPipe, where they lie beside the model."""
    owner = {tuple(sorted(corner)): i for i, corner in enumerate(shipped.triangles.tolist())}
    numbers = np.flatnonzero(shipped.landmark_valid)[::4][:105]
    faces = np.asarray(
        [owner[tuple(sorted(shipped.landmark_vertices[n].tolist()))] for n in numbers]
    )
    weights = np.full((len(numbers), 3), 1 / 3)
    np.savez(tmp_path / "flame2023.npz", **entries)
    np.save(tmp_path / "landmark_embedding.npy", embedding, allow_pickle=True)
    np.savez(
        tmp_path / flame_loading.MEDIAPIPE,
        landmark_indices=numbers,
        lmk_face_idx=faces,
        lmk_b_coords=weights,
    )
    made = flame_loading.load_flame_head(tmp_path, vertices=None)
    assert set(np.flatnonzero(made.landmark_valid)) == set(numbers) | set(IBUG_68[:17])
    np.testing.assert_array_equal(
        np.sort(made.landmark_vertices[numbers]), np.sort(shipped.landmark_vertices[numbers])
    )
    np.savez(
        tmp_path / flame_loading.MEDIAPIPE,
        landmark_indices=numbers,
        lmk_face_idx=faces[1:],
        lmk_b_coords=weights,
    )
    with pytest.raises(HeadError, match="do not go together"):
        flame_loading.load_flame_head(tmp_path, vertices=None)
