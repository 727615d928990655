"""The small-faces suite: what is made, and what its figures are of."""

import json

import numpy as np
from PIL import Image

from caphuman_jax.cli import app
from caphuman_jax.evaluation import bulk, small_faces
from caphuman_jax.evaluation.photos import Photo


def test_small_faces_are_made_with_and_without_detail(pipe, astronaut_file, tmp_path):
    assert small_faces.conditions((64, 160), 0.5) == [(64, 0.0), (160, 0.0), (64, 0.5)]
    for name in ("a.png", "b.png"):
        Image.open(astronaut_file).save(tmp_path / name)
    photos = [Photo(name, tmp_path / name) for name in ("a.png", "b.png")]
    subjects = [bulk.subject_reader(pipe)(photo) for photo in photos]
    made = small_faces.run_small_faces(
        pipe, photos, subjects, tmp_path, sizes=(64, 160), per_person=2, detail=0.5, steps=2
    )
    assert [(one.size, one.detail) for one in made] == [
        (64, False),
        (160, False),
        (64, True),
        (64, False),
    ]
    sizes = [one.outcome.asked.position[2] for one in made]
    np.testing.assert_allclose(sizes, [0.25, 0.625, 0.25, 0.25], atol=1e-3)
    assert (tmp_path / "small_faces_00.png").exists()
    results = small_faces.compute(pipe, subjects, made)["small_faces"]
    assert results["64"]["pictures"] == 2 and results["160"]["pictures"] == 1
    assert {"faces", "rank1", "distance", "yaw"} <= set(results["64_detail"])


def test_the_command_reports_the_suite(tiny_folder, astronaut_file, tmp_path, capsys):
    (tmp_path / "own.toml").write_text('kind = "small-faces"\nsizes = [64]\n')
    for name in ("a.png", "b.png"):
        Image.open(astronaut_file).save(tmp_path / name)
    words = [
        "evaluate",
        "--suite",
        str(tmp_path / "own.toml"),
        "--model",
        str(tiny_folder),
        "--steps",
        "2",
    ]
    words += ["--photos", str(tmp_path), "--report", str(tmp_path / "r"), "--per-person", "1"]
    assert app.main([*words, "--detail", "0.5"]) == 0
    assert "right person first among 50 (dlib)" in capsys.readouterr().out
    document = json.loads((tmp_path / "r" / "report.json").read_text())
    assert document["settings"]["detail"] == 0.5 and document["results"]["pictures"] == 2
