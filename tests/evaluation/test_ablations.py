"""Ablations: what is changed, that it changes pictures, and the table."""

import json

import numpy as np
import pytest

from caphuman_jax.cli import app
from caphuman_jax.errors import SettingError
from caphuman_jax.evaluation import ablations, estimators


def test_what_is_changed(pipe, person):
    text = "identity-global, hints,control-scale=0.5:1,guidance=3,sampler=ddim,tau=300"
    variants = ablations.parse(text, pipe.config)
    assert [v.label for v in variants] == [
        "without identity-global",
        "without hints",
        "control-scale=0.5",
        "control-scale=1",
        "guidance=3",
        "sampler=ddim",
        "tau=300",
    ]
    assert [dict(v.sampling) for v in variants[2:]] == [
        {"control_scale": 0.5},
        {"control_scale": 1},
        {"guidance_scale": 3},
        {"sampler": "ddim"},
        {"identity_max_timestep": 300},
    ]
    assert [v.hints for v in variants[:3]] == [True, False, True]
    changed = variants[0].change(person)
    assert not changed.vectors.any() and changed.image_tokens is person.image_tokens
    assert variants[1].change(person) is person


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        ("face", "cannot be left out"),
        ("guidence=3", "did you mean guidance"),
        ("seed=3", "no setting 'seed'"),
        ("steps=3:-1", "steps=3:-1: "),
        ("sampler=fast", "sampler"),
        ("tau=3,tau=3", "twice"),
    ],
)
def test_what_cannot_be_changed(pipe, text, message):
    with pytest.raises(SettingError, match=message):
        ablations.parse(text, pipe.config)


def test_one_command_makes_the_table(tiny_folder, astronaut_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimators, "RESAMPLES", 5)
    monkeypatch.setattr(estimators, "SHUFFLES", 5)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(astronaut_file.read_bytes())
    words = ["evaluate", "--photos", str(tmp_path), "--model", str(tiny_folder)]
    words += ["--report", str(tmp_path / "r"), "--per-person", "1", "--heads", "yaw=10"]
    words += ["--prompts", "a photo of a person"]
    assert app.main([*words, "--ablate", "identity-global,hints,guidance=4"]) == 0
    assert "ablations.md compares" in capsys.readouterr().out
    rows = json.loads((tmp_path / "r" / "ablations.json").read_text())["rows"]
    labels = ["unchanged", "without identity-global", "without hints", "guidance=4"]
    assert [row["label"] for row in rows] == labels
    assert all((tmp_path / "r" / row["summary"]).is_file() for row in rows)
    table = (tmp_path / "r" / "ablations.md").read_text()
    assert all(f"| {label} |" in table for label in labels)
    folders = [(tmp_path / "r" / row["summary"]).parent for row in rows]
    pictures = [sorted((folder / "pictures").glob("*.png")) for folder in folders]
    assert [len(found) for found in pictures] == [2] * 4
    assert len({found[0].read_bytes() for found in pictures}) == 4
    lines = [(folder / "scores.jsonl").read_text().splitlines() for folder in folders]
    seeds = [[json.loads(line)["seed"] for line in part] for part in lines]
    assert np.ptp(seeds, axis=0).max() == 0
