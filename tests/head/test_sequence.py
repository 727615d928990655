"""Sequences of heads: tables, smoothing and interpolation against known answers, and frames of a
video whose motion is known.
"""

import dataclasses
from importlib.resources import files

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from caphuman_jax.errors import HeadError, NoFaceError, PhotoError
from caphuman_jax.head import editing, pose, sequence
from caphuman_jax.io.images import read_photo

TURNS = (-12, -4, 4, 12)  # degrees that the photo is turned by, frame by frame


@pytest.fixture(scope="module")
def reference(make_head):
    return make_head(2, 5, 3, 1, expression={"jawOpen": 0.3})


@pytest.fixture(scope="module")
def shots():
    """The shipped portrait cut to the head, turned clockwise and moved to the right, 240 × 240
    pixels; an empty one in the middle.
    """
    photo = read_photo(files("caphuman_jax") / "assets" / "astronaut_nasa.png")
    made = []
    for i, degrees in enumerate(TURNS):
        matrix = cv2.getRotationMatrix2D((225, 128), -degrees, 1)
        matrix[:, 2] += [-105 + 8 * i, -20]
        made.append(cv2.warpAffine(photo, matrix, (240, 240), borderMode=cv2.BORDER_REPLICATE))
    return [*made[:2], np.full((240, 240, 3), 120, np.uint8), *made[2:]]


def read(source, model, reference, *, face=None, every=1, fps=None, **options):
    """Heads of a table, or of frames."""
    rows = sequence.read_table(source)
    if rows is not None:
        return sequence.from_table(rows, model, reference)
    track = sequence.fit_frames(source, model, face=face, every=every, fps=fps)
    return sequence.from_track(track, model, reference, **options)


def test_table(model, reference, tmp_path):
    path = tmp_path / "heads.csv"
    path.write_text(
        "\ufeffframe,yaw, "
        'pitch,x,size,light,jawOpen,smile\n0,10,,,,,,\n1,,-5,0.25,0.4,"left=0.8",0.9,\n\n2,,,,,"-1,0,0,1",,1\n',
        encoding="utf-8",
    )
    first, second, third = read(path, model, reference)
    np.testing.assert_allclose(np.asarray(first.angles), [10, 3, 1], atol=1e-3)
    np.testing.assert_array_equal(first.expression, reference.expression)
    np.testing.assert_allclose(np.asarray(second.angles), [5, -5, 1], atol=1e-3)
    assert editing.position_of(model, second) == pytest.approx(
        (0.25, editing.position_of(model, reference)[1], 0.4), rel=2e-5
    )
    np.testing.assert_allclose(second.light, editing.parse_light("left=0.8"))
    assert second.expression[model.expression_names.index("jawOpen")] == pytest.approx(0.9)
    np.testing.assert_allclose(third.light, editing.parse_light("-1,0,0,1"))
    assert all(head.identity is reference.identity for head in (first, second, third))
    (tmp_path / "heads.tsv").write_text("yaw\tpitch\n7\t\n")
    (tmp_path / "heads.json").write_text('[{"yaw": 7}, {"expression": {"jawOpen": 1}}]')
    (tmp_path / "europe.csv").write_text("yaw;jawOpen\n7,5;0,25\n")
    for source, count, yaw in (
        (tmp_path / "heads.tsv", 1, 7),
        (tmp_path / "heads.json", 2, 7),
        ([{"yaw": 7}], 1, 7),
        (tmp_path / "europe.csv", 1, 7.5),
    ):
        heads = read(source, model, reference)
        assert len(heads) == count and float(heads[0].angles[0]) == pytest.approx(yaw, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "yaw\n10\nleft\n", "row 2.*yaw"),
        ("a.csv", "yaw,smirk\n1,1\n", "row 1.*smirk"),
        ("a.csv", "yaw,light\n1,0,1,0,1\n", "row 1.*quotes"),
        ("a.csv", "", "no rows"),
        ("a.csv", "yaw\n", "no rows"),
        ("a.csv", "yaw,roll, yaw\n1,2,3\n", "two columns named 'yaw'"),
        ("a.json", "{}", "list of heads"),
        ("a.json", "[", "cannot be read"),
        ("a.csv", None, "cannot be read"),
    ],
)
def test_bad_tables(name, text, told, model, reference, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(HeadError, match=told):
        read(tmp_path / name, model, reference)


def test_interpolation_goes_evenly_from_one_head_to_the_other(make_head):
    first, last = (
        make_head(1, yaw=-20, scale=40, translation=(10, 20)),
        make_head(1, yaw=20, scale=90, translation=(40, 80), expression={"jawOpen": 0.6}),
    )
    heads = sequence.interpolated([None, first, None, None, last, None], [0, 1, 2, 3, 4, 5])
    np.testing.assert_allclose(
        [float(head.angles[0]) for head in heads[1:5]], [-20, -20 / 3, 20 / 3, 20], atol=0.4
    )  # the chord is nearly the arc
    np.testing.assert_allclose(
        [float(head.scale) for head in heads[1:5]], 40 * (90 / 40) ** (np.arange(4) / 3), rtol=1e-5
    )
    np.testing.assert_allclose(heads[2].translation, [20, 40], rtol=1e-5)
    assert heads[0] is first and heads[-1] is last


def test_smoothing_has_the_time_constant_that_is_asked_for(make_head):
    times = np.arange(41) * 0.1
    still = make_head(1, yaw=10)
    same = sequence.smoothed([still] * 41, times, 0.3)
    np.testing.assert_allclose(
        np.stack([head.rotation for head in same]), np.stack([still.rotation] * 41), atol=1e-6
    )
    bump = [
        dataclasses.replace(still, translation=jnp.asarray([100.0 * (i == 20), 5.0]))
        for i in range(41)
    ]
    x = np.asarray([head.translation[0] for head in sequence.smoothed(bump, times, 0.3)])
    np.testing.assert_allclose(x[23] / x[20], np.exp(-1), rtol=0.01)  # three frames are 0.3 s
    np.testing.assert_allclose(x[17:24], x[17:24][::-1], rtol=1e-3)  # to both sides: no lag
    turning = [
        dataclasses.replace(still, rotation=pose.rotation_matrix(float(yaw), 0, 0))
        for yaw in np.linspace(-40, 40, 41) + 3 * (-1) ** np.arange(41)
    ]
    yaws = np.asarray([float(head.angles[0]) for head in sequence.smoothed(turning, times, 0.3)])[
        10:31
    ]
    assert (
        np.abs(np.diff(yaws) - 2).max() < 0.4 and np.abs(yaws - np.linspace(-20, 20, 21)).max() < 1
    )
    assert sequence.smoothed(turning, times, 0)[3] is turning[3]
    with pytest.raises(HeadError, match="time constant"):
        sequence.smoothed(turning, times, -1)


def check(heads, model, reference):
    """Rolls as the frames are turned, the middle of them where the empty frame is; positions move
    to the right.
    """
    rolls = np.asarray([float(head.angles[2]) for head in heads])
    np.testing.assert_allclose(rolls - rolls.mean(), [-12, -4, 0, 4, 12], atol=1.5)
    across = [editing.position_of(model, head)[0] for head in heads]
    assert np.all(np.diff(across) > 0)
    np.testing.assert_array_equal(heads[1].expression, reference.expression)
    np.testing.assert_array_equal(heads[1].identity, reference.identity)
    return across


@pytest.fixture(scope="module")
def video(shots, tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "head.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (240, 240))
    for shot in shots:
        writer.write(cv2.cvtColor(shot, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def test_video(model, reference, video, caplog):
    heads = read(video, model, reference)
    check(heads, model, reference)
    assert "frame 2" in caplog.text and "interpolated" in caplog.text
    whole = read(video, model, reference, framing="photo", every=1)
    moved = check(whole, model, reference)
    assert (
        8 / 240 * 0.5 < np.diff(moved).max() < 8 / 240 * 2
    )  # in the frame itself: 8 of its 240 pixels, the turn besides
    smooth = read(video, model, reference, smooth=10.0)
    assert np.ptp([float(head.angles[2]) for head in smooth]) < 3
    assert [round(frame.time, 3) for frame in sequence.frames(video, every=2)] == [0, 0.2, 0.4]
    assert len(read(video, model, reference, take="expression", every=2)) == 3
    with pytest.raises(NoFaceError, match="frame 2"):
        read(video, model, reference, missing="error")


def test_gif_and_folder(model, reference, shots, tmp_path):
    pages = [Image.fromarray(shot) for shot in (shots[0], shots[2], shots[4])]
    pages[0].save(tmp_path / "head.gif", save_all=True, append_images=pages[1:], duration=200)
    rolls = [float(head.angles[2]) for head in read(tmp_path / "head.gif", model, reference)]
    assert rolls[1] == pytest.approx((rolls[0] + rolls[2]) / 2, abs=0.5) and rolls[2] - rolls[
        0
    ] == pytest.approx(24, abs=2)
    assert [frame.time for frame in sequence.frames(tmp_path / "head.gif")] == pytest.approx(
        [0, 0.2, 0.4]
    )
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, page in (("shot 10.png", pages[2]), ("shot 2.png", pages[0].resize((480, 480)))):
        page.save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    assert [frame.name for frame in sequence.frames(folder)] == ["shot 2.png", "shot 10.png"]
    heads = read(folder, model, reference)
    assert float(heads[1].angles[2] - heads[0].angles[2]) == pytest.approx(24, abs=2)
    sizes = [editing.position_of(model, head)[2] for head in heads]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)  # each framed around its head


def test_a_photo_that_cannot_be_read_is_a_frame_without_a_face(
    model, reference, shots, tmp_path, caplog
):
    for number in (0, 2):
        Image.fromarray(shots[2 * number]).save(tmp_path / f"shot {number}.png")
    (tmp_path / "shot 1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    heads = read(tmp_path, model, reference)
    assert len(heads) == 3 and "shot 1.png is a damaged or incomplete PNG" in caplog.text
    first, between, last = (float(head.angles[2]) for head in heads)
    assert between == pytest.approx((first + last) / 2, abs=1)
    with pytest.raises(NoFaceError, match="shot 1.png"):
        read(tmp_path, model, reference, missing="error")


def test_bad_sources(model, reference, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    Image.new("RGB", (64, 64)).save(tmp_path / "black.gif")
    for source, error, told in (
        (tmp_path / "gone.mp4", PhotoError, "does not exist"),
        (tmp_path / "empty", PhotoError, "no photos"),
        ([], PhotoError, "empty"),
        (tmp_path / "text.mp4", PhotoError, "not a table, picture or video"),
        (tmp_path / "black.gif", NoFaceError, "any of the 1 frames"),
    ):
        with pytest.raises(error, match=told):
            read(source, model, reference)
    track = sequence.Track(["a"], [0.0], [reference], [None], True, "a photo")
    for options, told in (({"take": "nose"}, "nose"), ({"missing": "skip"}, "skip")):
        with pytest.raises(HeadError, match=told):
            sequence.from_track(track, model, reference, **options)
    for options, told in (
        ({"every": 0}, "at least 1"),
        ({"fps": 0}, "second"),
        ({"fps": 1e-300}, "second"),
    ):
        with pytest.raises(HeadError, match=told):
            read(tmp_path / "black.gif", model, reference, **options)
