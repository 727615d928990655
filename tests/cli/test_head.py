"""`caphuman head`: the same hints as in generating, numbers out and in, sequences, errors in one
line; and doubts about a fit.
"""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from caphuman_jax.cli import app
from caphuman_jax.errors import NoFaceError
from caphuman_jax.head import editing
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.person.fit_warnings import outside_share
from caphuman_jax.person.person import analyze_photo
from caphuman_jax.pipeline.head_target import HeadTarget


@pytest.fixture
def head(tiny_folder, astronaut_file, tmp_path, capsys):
    """Run `caphuman head` in-process: (exit code, lines of stderr); files go to tmp_path/out."""

    def run(*options, reference=astronaut_file, out=tmp_path / "out"):
        arguments = [
            "head",
            "--model",
            tiny_folder,
            "--out",
            out,
            *(() if reference is None else ("--reference", reference)),
            *options,
        ]
        try:
            code = app.main(list(map(str, arguments)))
        except SystemExit as stop:
            code = stop.code
        run.printed, errors = capsys.readouterr()
        return code, errors.splitlines()

    return run


def hints_in(folder, name="hints.npz"):
    with np.load(folder / name) as file:
        return file["hints"]


def look(path):
    """Width and height of a picture, and how many frames it has."""
    with Image.open(path) as picture:
        return *picture.size, getattr(picture, "n_frames", 1)


def test_hints_are_those_of_generate(head, pipe, person, astronaut_file, tmp_path):
    options = (
        "--yaw",
        "20",
        "--expression",
        "smile=0.8",
        "--light",
        "-1,0.2,0.4,0.6",
        "--head-from",
        astronaut_file,
        "--take",
        "expression",
    )
    code, lines = head(*options, "--npz", "--size", "64x96")
    assert code == 0, lines
    assert head.printed.split() == [
        str(tmp_path / "out" / name)
        for name in ("head.json", "hints.png", "overlay.png", "hints.npz")
    ]
    wanted = HeadTarget(
        photo=person, take="expression", yaw=20, expression="smile=0.8", light="-1,0.2,0.4,0.6"
    ).apply(pipe.head_model, person.head, person)
    np.testing.assert_array_equal(
        hints_in(tmp_path / "out"), np.asarray(pipe.hints(wanted, (96, 64)))
    )
    assert look(tmp_path / "out" / "hints.png") == (3 * 64, 96, 1) and look(
        tmp_path / "out" / "overlay.png"
    ) == (64, 64, 1)
    numbers = json.loads((tmp_path / "out" / "head.json").read_text())
    assert (
        numbers["yaw"] == pytest.approx(20, abs=0.01)
        and numbers["fit"]["confidence"] > 0.9
        and numbers["fit"]["warnings"] == []
    )
    assert numbers["reference"]["sha256"] == person.sha256
    assert "yaw 20.0°" in lines[-1] and "fit 0.9" in lines[-1]


def test_numbers_out_and_in(head, person, tmp_path):
    code, lines = head("--npz", "--obj")
    assert code == 0, lines
    first, file = hints_in(tmp_path / "out"), tmp_path / "out" / "head.json"
    assert (tmp_path / "out" / "head.obj").read_text().count("\nv ") == 4801
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert (
        head("--numbers", file, "--npz", reference=None, out=alone)[0] == 0
        and head("--numbers", file, "--npz", out=both)[0] == 0
    )
    for folder in (alone, both):
        off = np.abs(hints_in(folder) - first)
        assert np.median(off) == 0 and off.mean() < 2e-3, folder
    assert not (alone / "overlay.png").exists()
    numbers = json.loads(file.read_text()) | {"yaw": 33}
    file.write_text(json.dumps(numbers))
    code, lines = head("--numbers", file, "--light", file)
    assert code == 0 and "yaw 33.0°" in lines[-1] and any("left as it is" in line for line in lines)
    assert json.loads(file.read_text()) == numbers
    file.write_text('{"yaw": -15, "smile": 1}')
    code, lines = head("--numbers", file, "--turntable", reference=None, out=alone)
    assert code == 0 and "yaw -15.0°" in lines[-1]
    assert look(alone / "turntable.gif") == (256, 256, 36)


def test_sequence_of_numbers(head, pipe, person, tmp_path):
    (tmp_path / "heads.csv").write_text("yaw,smile\n-20,\n,1\n")
    code, lines = head("--sequence", tmp_path / "heads.csv", "--npz", "--roll", "4")
    assert code == 0, lines
    out = tmp_path / "out"
    names = [f"hints_000{i}.{kind}" for i in range(2) for kind in ("npz", "png")]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*names, "sequence.gif", "sequence.json"]
    )
    wanted = editing.from_numbers(
        pipe.head_model, editing.from_numbers(pipe.head_model, person.head, roll=4), yaw=-20
    )
    np.testing.assert_allclose(
        hints_in(out, "hints_0000.npz"), np.asarray(pipe.hints(wanted)), atol=1e-5
    )
    assert [round(one["yaw"]) for one in json.loads((out / "sequence.json").read_text())] == [
        -20,
        round(float(person.head.angles[0])),
    ]
    code, lines = head("--sequence", out / "sequence.json", "--npz", out=tmp_path / "again")
    assert (
        code == 0
        and np.median(
            np.abs(hints_in(tmp_path / "again", "hints_0000.npz") - hints_in(out, "hints_0000.npz"))
        )
        < 1e-4
    )


def test_sequence_of_photos(head, astronaut, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, picture in enumerate((astronaut, np.zeros_like(astronaut), astronaut[:, ::-1])):
        Image.fromarray(picture).save(folder / f"{i}.png")
    code, lines = head("--sequence", folder, "--take", "pose")
    assert code == 0, lines
    assert any("no face found in 1.png; interpolated" in line for line in lines)
    rolls = [one["roll"] for one in json.loads((tmp_path / "out" / "sequence.json").read_text())]
    assert rolls[0] == pytest.approx(-rolls[2], abs=1) and rolls[1] == pytest.approx(0, abs=1)
    assert (
        len(list((tmp_path / "out").glob("overlay_*.png"))) == 3
        and look(tmp_path / "out" / "sequence.gif")[2] == 3
    )
    code, lines = head("--sequence", folder, "--missing", "error")
    assert code == 2 and "1.png" in lines[-1]


BAD = {
    "nothing": ([], "--reference"),
    "no face": (["--reference", "{none}"], "no face found"),
    "missing": (["--reference", "gone.jpg"], "does not exist"),
    "numbers": (["--numbers", "gone.json"], "gone.json"),
    "no numbers": (["--numbers", "{text}"], "JSON"),
    "expression": (["--expression", "smirk=1"], "smirk"),
    "light": (["--light", "[1, 2]"], "27"),
    "light file": (["--light", "gone.json"], "gone.json"),
    "size": (["--size", "8"], "16"),
    "size text": (["--size", "big"], "WIDTHxHEIGHT"),
    "take": (["--take", "pose"], "--sequence"),
    "two": (["--head-from", "a.jpg", "--sequence", "b.mp4"], "not both"),
    "sequence": (["--sequence", "gone.mp4"], "does not exist"),
    "no video": (["--sequence", "{text}"], "not a table, picture or video"),
    "table": (["--sequence", "{table}"], "row 1"),
    "rate": (["--sequence", "{table}", "--fps", "9" * 400], "between 0.01 and 1000, not inf"),
    "every": (["--sequence", "{table}", "--every", "9" * 400], "at most 18 digits"),
    "table and take": (["--sequence", "{table}", "--take", "pose"], "is a table"),
    "head model": (["--head-model", "nobody"], "nobody"),
    "model": (["--model", "nobody"], "nobody"),
    "option": (["--steps", "3"], "steps"),
    "yaw": (["--yaw", "400"], "yaw"),
    "out": (["--out", "/dev/null/out"], "cannot be written"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, head, astronaut, astronaut_file, tmp_path):
    options, told = BAD[case]
    files = {
        "none": tmp_path / "none.png",
        "text": tmp_path / "text.mp4",
        "table": tmp_path / "table.csv",
    }
    Image.fromarray(astronaut[250:]).save(files["none"])
    files["text"].write_text("no picture")
    files["table"].write_text("smirk\n1\n")
    code, lines = head(
        *(option.format(**files) for option in options),
        reference=None if case == "nothing" else astronaut_file,
    )
    errors = [line for line in lines if line.startswith("caphuman: error: ")]
    assert (
        code == 2
        and errors == lines[-1:]
        and told in errors[0]
        and "Traceback" not in "".join(lines)
    )
    assert not (tmp_path / "out").exists() and head.printed == ""


@pytest.fixture(scope="module")
def box(astronaut, person):
    """The face's box in the photo: x0, y0, x1, y1, and how high its eyes are."""
    low, high = person.face.landmarks[:, :2].min(0), person.face.landmarks[:, :2].max(0)
    return (*low.astype(int), *high.astype(int), int(person.face.landmarks[[33, 263], 1].mean()))


def test_a_good_photo_leaves_no_doubt(person):
    assert person.warnings() == []
    assert outside_share(
        np.asarray([[0, 0], [10, 0], [10, 10], [0, 10]]), (10, 5)
    ) == pytest.approx(0.5)


CASES = {
    "left": "outside the photo",
    "right": "outside the photo",
    "top": "outside the photo",
    "bottom": "outside the photo",
    "bar": "eyes are hidden",
    "drawing": "drawing",
    "dark": "very dark",
    "small": "pixels wide",
    "squeezed": "no face",
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_head_is_never_silent(case, astronaut, box):
    x0, y0, x1, y1, eyes = box
    width, height = x1 - x0, y1 - y0
    picture = astronaut.copy()
    if case == "bar":
        picture[eyes - height // 8 : eyes + height // 8, x0:x1] = 0
    elif case == "drawing":
        lines = cv2.dilate(
            cv2.Canny(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 60, 140), np.ones((2, 2))
        )
        picture = np.repeat(255 - lines[..., None], 3, axis=2)
    else:
        picture = {
            "left": picture[:, x0 + width // 4 :],
            "right": picture[:, : x1 - width // 4],
            "top": picture[y0 + height // 4 :],
            "bottom": picture[: y1 - 2 * height // 5],
            "dark": picture // 16,
            "small": cv2.resize(picture, (100, 100), interpolation=cv2.INTER_AREA),
            "squeezed": cv2.resize(picture, (180, 512)),
        }[case]
    try:
        found = analyze_photo(load_head(), np.ascontiguousarray(picture), 256).warnings()
    except NoFaceError:
        found = ["no face"]
    assert any(CASES[case] in doubt for doubt in found), found


def test_a_profile_is_doubted(person):
    import dataclasses

    turned = dataclasses.replace(
        person, head=editing.from_numbers(load_head(), person.head, yaw=-70)
    )
    assert any("turned by 70°" in doubt for doubt in turned.warnings())
    assert any(
        "poorly" in doubt
        for doubt in dataclasses.replace(
            person, head=dataclasses.replace(person.head, residual=0.05 * np.ones(()))
        ).warnings()
    )


def test_black_pictures_and_half_faces_show_no_face(head, astronaut, box, tmp_path):
    for name, picture in (
        ("black", np.zeros_like(astronaut)),
        ("half", astronaut[:, (box[0] + box[2]) // 2 :]),
    ):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        code, lines = head(reference=tmp_path / f"{name}.png")
        assert code == 2 and "no face found" in lines[-1]


def test_doubts_are_told_and_written(head, astronaut, box, tmp_path):
    Image.fromarray(astronaut[:, box[0] + (box[2] - box[0]) // 4 :]).save(tmp_path / "cut.png")
    code, lines = head(reference=tmp_path / "cut.png")
    assert code == 0 and any("notice" in line and "outside the photo" in line for line in lines)
    assert (
        "outside the photo"
        in json.loads((tmp_path / "out" / "head.json").read_text())["fit"]["warnings"][0]
    )


def test_positions_are_parts_of_a_wide_picture(head, tmp_path):
    """One head, a table, and numbers that were written for a square, at 2:1."""
    square, table, out = tmp_path / "square.json", tmp_path / "table.csv", tmp_path / "out"
    square.write_text(json.dumps({"picture": [64, 64], "position": [0.2, 0.5, 0.4]}))
    table.write_text("x,size\n0.25,0.4\n0.75,0.4\n")
    options = ("--size", "128x64", "--numbers", square, "--npz")

    def middle(name):
        columns = np.nonzero(np.abs(hints_in(out, name)[..., 3:6]).sum((0, 2)))[0]
        return (columns.min() + columns.max() + 1) / 2

    assert head(*options, reference=None)[0] == 0
    assert middle("hints.npz") == pytest.approx(0.2 * 128, abs=1)
    written = json.loads((out / "head.json").read_text())
    assert written["picture"] == [128, 64]
    assert written["position"] == pytest.approx([0.2, 0.5, 0.4])
    assert head(*options, "--sequence", table, reference=None)[0] == 0
    assert [middle(f"hints_{i:04d}.npz") for i in range(2)] == pytest.approx([32, 96], abs=1)
    rows = json.loads((out / "sequence.json").read_text())
    assert [row["position"][0] for row in rows] == pytest.approx([0.25, 0.75])
