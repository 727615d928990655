"""The small-faces suite: what is made, and what its figures are of."""

import json

from PIL import Image

from caphuman_jax.cli import app
from caphuman_jax.evaluation import estimators, small_faces


def test_small_faces_are_asked_for_with_and_without_detail():
    assert small_faces.conditions((64, 160), 0.5) == [(64, 0.0), (160, 0.0), (64, 0.5)]
    asked = small_faces.ask(
        None, [None, None], sizes=(64, 160), per_person=2, sampling={"detail": 0.5}
    )
    heads = [one.requests[0].head for one in asked]
    assert heads == ["64 px", "160 px", "64 px, detail 0.5", "64 px"]
    assert [one.fields["detail"] for one in asked] == [0, 0, 0.5, 0]
    assert [one.fields["head"]["position"][2] for one in asked] == [0.25, 0.625, 0.25, 0.25]


def test_the_command_reports_the_suite(tiny_folder, astronaut_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimators, "RESAMPLES", 5)
    monkeypatch.setattr(estimators, "SHUFFLES", 5)
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
    assert (
        document["settings"]["sampling"]["detail"] == 0.5 and document["results"]["pictures"] == 2
    )
    sizes = document["results"]["small_faces"]
    assert sizes["64"]["pictures"] == sizes["64_detail"]["pictures"] == 1
    assert {"faces", "rank1", "distance", "yaw"} <= set(sizes["64_detail"])
    lines = [
        json.loads(line) for line in (tmp_path / "r" / "scores.jsonl").read_text().split("\n")[:-1]
    ]
    assert [line["asked"]["position"][2] for line in lines] == [0.25, 0.25]
    assert (tmp_path / "r" / "report.html").exists() and (tmp_path / "r" / "sheet_00.png").exists()
