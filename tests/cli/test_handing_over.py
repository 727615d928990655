"""What one command writes, the next one reads: every pair of commands.

What needs weights of its own kind is elsewhere: records of `prepare` → inspect, train, evaluate in
tests/test_docs_long.py, and a checkpoint of `train` on a base → model folder in tests/training.
"""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import photos_standin
import pytest
from PIL import Image
from records_standin import write_standin
from small_configs import MINI_CONFIG

from caphuman_jax.cli import app
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.io import metadata
from caphuman_jax.runtime import sharding
from caphuman_jax.weights.model_folder import read_config

PROMPT = ("--prompt", "a photo of a person")
MODEL_READERS = {"generate", "edit", "head", "identity", "sample", "evaluate"}
WRITERS = {
    "head.json": {"head": "head --reference {photo} --yaw 15 --expression smile=0.5 --out {here}"},
    "sequence": {"head": "head --reference {photo} --sequence {here}/heads.csv --out {here}"},
    "identity": {"identity": "identity --reference {photo} --out {here}/people/me.identity"},
    "settings": {
        "generate": "generate --reference {photo} --yaw 15 --out {here}/generated",
        "sample": "sample --jobs {here}/jobs.jsonl --out {here}/sampled",
    },
    "settings of an edit": {
        "edit": "edit --photo {photo} --no-person --mask {here}/corner.png --out {here}/edited",
        "sample": "sample --jobs {here}/edits.jsonl --out {here}/sampled_edits",
    },
}
"""By what is written and by which command. An edit of a corner leaves a face in the picture, which
pictures of a model without training have not."""
PICTURES = {
    "generate": "{here}/generated/picture_00.png",
    "sample": "{here}/sampled/a_00.png",
    "edit": "{here}/edited/picture_00.png",
    "sample an edit": "{here}/sampled_edits/a_00.png",
}
AS_A_PHOTO = {
    "generate": "generate --reference {picture}",
    "generate, its head": "generate --reference {photo} --head-from {picture}",
    "edit": "edit --photo {picture} --yaw 5",
    "edit, its person": "edit --into {photo} --reference {picture}",
    "head": "head --reference {picture}",
    "identity": "identity --reference {picture}",
    "sample": "sample --identities {picture_list} --prompts {here}/prompts.txt",
    "evaluate": "evaluate --photos {picture_folder} --per-person 1 --steps 2",
    "prepare": "prepare --photos {picture_folder} --size 64 --min-face 20 --workers 1",
}
READERS = {
    "head.json → generate": "generate --reference {photo} --numbers {here}/head.json",
    "head.json → generate, its light": "generate --reference {photo} --light {here}/head.json",
    "head.json → generate, of several": "generate --person "
    "ref={photo},numbers={here}/head.json --person ref={photo}",
    "head.json → edit": "edit --photo {photo} --numbers {here}/head.json",
    "head.json → head": "head --numbers {here}/head.json",
    "head.json → sample": "sample --jobs {here}/by_head.jsonl",
    "sequence → generate": "generate --reference {photo} --sequence {here}/sequence.json",
    "sequence → sample": "sample --identities {here}/photos.txt --prompts {here}/prompts.txt "
    "--heads {here}/sequence.json",
    "sequence → head": "head --reference {photo} --sequence {here}/sequence.json",
    "identity → generate": "generate --reference {here}/people/me.identity",
    "identity → generate, of several": "generate --person ref={here}/people/me.identity "
    "--person ref={photo}",
    "identity → edit": "edit --into {photo} --reference {here}/people/me.identity",
    "identity → head": "head --reference {here}/people/me.identity",
    "identity → identity": "identity --reference {here}/people/me.identity",
    "identity → sample": "sample --identities {here}/people --prompts {here}/prompts.txt",
    "identity → evaluate": "evaluate --photos {here}/people --per-person 1 --steps 2",
    "generate → generate again": "generate --reference {photo} --repeat " + PICTURES["generate"],
    "sample → generate again": "generate --reference {photo} --repeat " + PICTURES["sample"],
    "edit → edit again": "edit --photo {photo} --mask {here}/corner.png --repeat "
    + PICTURES["edit"],
    "sample → edit again": "edit --photo {photo} --mask {here}/corner.png --repeat "
    + PICTURES["sample an edit"],
} | {
    f"{writer} → {reader}, as a photo": text.replace("{picture}", PICTURES[writer])
    .replace("{picture_list}", "{here}/" + writer.replace(" ", "_") + ".txt")
    .replace("{picture_folder}", "{here}/photos_" + writer.replace(" ", "_"))
    for writer in ("edit", "sample an edit")
    for reader, text in AS_A_PHOTO.items()
}
ANGLES = {"head.json": [15], "sequence": [-10, 10], "generate": [15], "sample": [20]}
"""Yaw of the pictures that are made, by what they are made from."""


@pytest.fixture(scope="module")
def here(tmp_path_factory, astronaut_file, tiny_folder):
    """A folder with what every writer writes."""
    here = tmp_path_factory.mktemp("handing_over")
    job = {"reference": str(astronaut_file), "prompt": "a photo"}
    (here / "people").mkdir()
    photos_standin.write_people(here / "other", 1)
    shutil.copy(here / "other" / "person0" / "a.png", here / "people" / "other.png")
    (here / "heads.csv").write_text("yaw,jawOpen\n-10,0.2\n10,\n")
    (here / "jobs.jsonl").write_text(json.dumps({"id": "a", **job, "head": {"yaw": 20}}))
    (here / "by_head.jsonl").write_text(json.dumps({**job, "head": "head.json"}))
    (here / "photos.txt").write_text(f"{astronaut_file}\n")
    (here / "prompts.txt").write_text("a photo\n")
    corner = np.zeros((512, 512), np.uint8)
    corner[:128, :128] = 255
    Image.fromarray(corner).save(here / "corner.png")
    changed = {"photo": str(astronaut_file), "mask": "corner.png", "person": False}
    (here / "edits.jsonl").write_text(json.dumps({"id": "a", "prompt": "a wall", "edit": changed}))
    for commands in WRITERS.values():
        for text in commands.values():
            assert call(text, here, astronaut_file, tiny_folder) == 0, text
    for writer, text in PICTURES.items():
        picture, name = Path(text.format(here=here)), writer.replace(" ", "_")
        (here / f"{name}.txt").write_text(f"{picture}\n")
        shutil.copytree(here / "other", here / f"photos_{name}")
        shutil.copy(picture, here / f"photos_{name}")
    return here


def call(text, here, photo, model, *more):
    words = [word.format(here=here, photo=photo) for word in text.split()]
    if words[0] == "generate" and "--repeat" not in words:
        words += PROMPT
    if words[0] in MODEL_READERS:
        words += ["--model", str(model)]
    return app.main([*words, *map(str, more)])


def test_the_table_has_every_pair():
    """Each kind of file has all its readers, and each verb is a reader or a writer."""
    for kind, verbs in {
        "head.json": "generate edit head sample",
        "sequence": "generate head sample",
        "identity": "generate edit head identity sample evaluate",
        "edit": "edit generate head identity sample evaluate prepare",
        "sample an edit": "edit generate head identity sample evaluate prepare",
    }.items():
        readers = {
            text.split()[0] for pair, text in READERS.items() if pair.startswith(f"{kind} →")
        }
        assert readers == set(verbs.split()), kind
    used = {text.split()[0] for text in READERS.values()}
    used |= {verb for commands in WRITERS.values() for verb in commands}
    used |= {"train", "import", "export", "check", "inspect", "compile", "compare"}  # below
    others = {
        "serve",
        "studio",
        "launch",
        "doctor",
        "status",
        "config",
    }  # hand nothing over, or to services
    assert set(app._VERBS) - others <= used


@pytest.mark.slow
@pytest.mark.parametrize("pair", READERS)
def test_the_next_command_reads_it(pair, here, astronaut_file, tiny_folder, tmp_path, capsys):
    verb = READERS[pair].split()[0]
    option = "--report" if verb == "evaluate" else "--out"
    out = tmp_path / ("out.identity" if verb == "identity" else "out")
    code = call(READERS[pair], here, astronaut_file, tiny_folder, option, out)
    assert code == 0, capsys.readouterr().err
    assert out.exists()
    if verb not in ("generate", "sample", "edit"):
        return
    made = sorted(out.glob("*_[0-9][0-9].png"))
    shown = [metadata.read_settings(path)["people"] for path in made]
    writer = re.match(r"[\w.]+", pair)[0]
    if writer in ANGLES and "light" not in pair and "edit" not in pair:
        assert [round(people[0]["head"]["yaw"], 1) for people in shown] == ANGLES[writer]
    assert made


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, said",
    [
        ("generate --reference {photo} --repeat " + PICTURES["edit"], "caphuman edit --repeat"),
        ("edit --photo {photo} --repeat " + PICTURES["generate"], "caphuman generate --repeat"),
    ],
)
def test_the_other_command_is_named(text, said, here, astronaut_file, tiny_folder, capsys):
    assert call(text, here, astronaut_file, tiny_folder, "--out", here / "nowhere") == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_folder):
    """Model folders that train, export (of a run) and import (of what export wrote) make."""
    here = tmp_path_factory.mktemp("models")
    colors = json.dumps({"kind": "colour", "smile": "smiling"})
    records = write_standin(
        here / "records",
        9,
        test=4,
        size=64,
        stored=88,
        albedo=load_head().mean.shape,
        change=lambda record, number: record | {"attributes": colors},
    )
    (here / "mini.py").write_text(MINI_CONFIG)
    (here / "tiny.json").write_text(json.dumps(read_config(tiny_folder).to_dict()))
    train = f"train --config {here}/mini.py --config.data={records} --workdir {here}/run"
    patch, make_mesh = pytest.MonkeyPatch(), sharding.make_mesh
    patch.setattr(
        sharding, "make_mesh", lambda fsdp=1, devices=None: make_mesh(1, jax.devices()[:1])
    )
    for text in (
        train,
        train,  # its own run, again
        f"export {here}/run {here}/exported",
        f"export {tiny_folder} {here}/tiny.safetensors --to ldm",
        f"import {here}/imported --caphuman {here}/tiny.safetensors --config {here}/tiny.json "
        "--head anny",
    ):
        with jax.numpy_dtype_promotion("standard"):
            assert app.main(text.split()) == 0, text
    patch.undo()
    return {
        "train": here / "run" / "model",
        "export": here / "exported",
        "import": here / "imported",
    }


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["train", "export", "import"])
def test_every_command_takes_the_model(writer, models, here, astronaut_file, tmp_path, capsys):
    model, out = models[writer], tmp_path
    texts = {
        "generate": f"--reference {astronaut_file} --steps 2 --out {out}/generate",
        "edit": f"--photo {astronaut_file} --yaw 5 --steps 4 --out {out}/edit",
        "head": f"--reference {astronaut_file} --out {out}/head",
        "identity": f"--reference {astronaut_file} --out {out}/me.identity",
        "sample": f"--jobs {here}/jobs.jsonl --default steps=2 --out {out}/sample",
        "evaluate": f"--photos {here}/people --per-person 1 --steps 2 --report {out}/evaluate",
    }
    # An identity file belongs to a model's head and recognizers, which are the same here.
    for verb, text in texts.items():
        assert call(f"{verb} {text}", here, astronaut_file, model) == 0, capsys.readouterr().err
    assert app.main(["check", str(model), "--verify"]) == 0, capsys.readouterr().err
    assert app.main(["export", str(model), f"{out}/a.safetensors", "--to", "ldm"]) == 0
    photos = [f"prepare --photos {here}/people --out {out}/records --size 64 --min-face 20"]
    photos += [f"--model {model} --encode moments,text --workers 1 --duplicate-bits 0"]
    assert app.main(" ".join(photos).split()) == 0, capsys.readouterr().err
    assert app.main(["inspect", f"{out}/records"]) == 0
    assert os.listdir(out / "evaluate") and os.listdir(out / "sample")
    runs = [str(out / "evaluate")] * 2
    assert app.main(["compare", *runs, "--names", "a", "b", "--report", str(out / "compared")]) == 0
    assert "No difference between b and a" in capsys.readouterr().out
