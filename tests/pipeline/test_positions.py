"""A head's position counts parts of the picture, whatever its aspect ratio: hints, controls,
settings, several people, files of numbers and sequences.
"""

import numpy as np
import pytest

from caphuman_jax.head import editing, head_json, sequence
from caphuman_jax.head.hints import fit_to_aspect, render_hints
from caphuman_jax.head.landmarks68 import landmark_picture
from caphuman_jax.pipeline.head_target import HeadTarget

PROMPT = "a photo of a person"
SIZES = {"3:1": (192, 64), "2:1": (128, 64), "1:1": (64, 64), "1:2": (64, 128), "1:3": (64, 192)}
X, Y = 0.4, 0.55


def silhouette(hints):
    """(left, top, right, bottom) in pixels of where hints (H, W, 9) show the head."""
    rows, columns = np.nonzero(np.abs(np.asarray(hints)[..., 3:6]).sum(-1))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def expected(model, head, width, height, x, y, size):
    """The silhouette of a level head from its vertices alone, with the origin at (x, y)."""
    points = np.asarray(model.vertices(head.identity, head.expression))
    chin, hairline = (
        (
            np.asarray(model.mean)[model.landmark_vertices[i]]
            * np.asarray(model.landmark_weights)[i][:, None]
        ).sum(0)
        for i in (152, 10)
    )
    scale = size * height / np.linalg.norm(chin - hairline)
    across, down = x * width + scale * points[:, 0], y * height - scale * points[:, 1]
    return np.array([across.min(), down.min(), across.max(), down.max()])


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_head_is_where_it_is_asked_for(pipe, person, size):
    (width, height), model = size, pipe.head_model
    part = 0.4 * min(1, width / height)
    level = {"yaw": 0, "pitch": 0, "roll": 0, "position": (X, Y, part)}
    request = pipe.request(reference=person, prompt=PROMPT, size=size, head=level)
    made = pipe.condition(request)
    (subject,) = made.subjects
    wanted = expected(model, subject.head, width, height, X, Y, part)
    np.testing.assert_allclose(silhouette(subject.hints), wanted, atol=1.01)
    # What is written says the same: settings, head.json, and dots for a ControlNet.
    (shown,) = made.settings["people"]
    assert shown["asked_head"]["position"] == [X, Y, part]
    np.testing.assert_allclose(
        np.divide(shown["head"]["translation"], shown["head"]["size"][::-1]), (X, Y), rtol=1e-6
    )
    written = head_json.of(model, subject.head)
    np.testing.assert_allclose(written["position"], (X, Y, part), atol=1e-5)
    dots = landmark_picture(model, [subject.head], height, width)
    left, top, right, bottom = silhouette(subject.hints)
    rows, columns = np.nonzero(dots[..., 0])
    assert left - 1 <= columns.min() < columns.max() <= right
    assert top - 1 <= rows.min() < rows.max() <= bottom
    # Numbers that were written for a square count the parts of this picture.
    again = head_json.build(model, written | {"picture": [64, 64]}, (height, width))
    np.testing.assert_allclose(
        silhouette(render_hints(model, again, height, width)), silhouette(subject.hints), atol=1
    )
    (row,) = sequence.from_table(
        [{"x": X, "y": Y, "size": part, "yaw": 0, "pitch": 0, "roll": 0}],
        model,
        fit_to_aspect(person.head, height, width),
    )
    np.testing.assert_array_equal(render_hints(model, row, height, width), subject.hints)


def test_a_square_keeps_its_bits(pipe, person):
    for side in (64, 96):
        assert fit_to_aspect(person.head, side, side) is person.head


@pytest.mark.parametrize("name", ["3:1", "1:3"])
def test_without_a_position_the_head_keeps_its_height_in_the_middle(pipe, person, name):
    width, height = SIZES[name]
    made = pipe.condition(pipe.request(reference=person, prompt=PROMPT, size=(width, height)))
    x, y, size = editing.position_of(pipe.head_model, made.subjects[0].head)
    own = editing.position_of(pipe.head_model, person.head)
    assert (y, size) == pytest.approx(own[1:], rel=1e-5)
    assert (x - 0.5) * width == pytest.approx((own[0] - 0.5) * height, abs=1e-3)


def test_people_side_by_side_share_the_width(pipe, person):
    width, height = SIZES["3:1"]
    request = pipe.request(people=[{"reference": person}] * 3, prompt=PROMPT, size=(width, height))
    subjects = pipe.condition(request).subjects
    places = [editing.position_of(pipe.head_model, one.head)[0] for one in subjects]
    assert places == pytest.approx([1 / 6, 1 / 2, 5 / 6], abs=1e-6)
    edges = [silhouette(one.hints) for one in subjects]
    assert all(left[2] <= right[0] for left, right in zip(edges, edges[1:]))


def test_the_notice_names_the_place_in_the_picture(pipe, person, caplog):
    pipe.condition(
        pipe.request(
            reference=person,
            prompt=PROMPT,
            size=SIZES["2:1"],
            head={"position": (0.2, 0.5, 0.45)},
        )
    )
    assert "the head at 0.20, 0.50 with size 0.45" in caplog.text


def test_the_head_of_a_whole_photo_keeps_its_height(pipe, person):
    """A wide photo in a narrow picture: its middle is shown."""
    height, width = 192, 64
    head = HeadTarget(photo=person, framing="photo").apply(
        pipe.head_model, fit_to_aspect(person.head, height, width), person
    )
    x, y, size = editing.position_of(pipe.head_model, head)
    in_photo = editing.position_of(pipe.head_model, person.head_in_photo(pipe.head_model))
    photo_height, photo_width = person.photo_size
    assert (y, size) == pytest.approx(in_photo[1:], rel=1e-5)
    assert (x - 0.5) * width / height == pytest.approx(
        (in_photo[0] - 0.5) * photo_width / photo_height, abs=1e-5
    )
