"""What one command writes, the next one reads.

Records of `prepare` have tests of their own: inspect in tests/data_pipeline/inspect, train in
tests/training, evaluate in tests/evaluation; what `export` and `import` write in tests/weights.
"""

import json
import re

import pytest

from caphuman_jax.cli import app
from caphuman_jax.io import metadata

PROMPT = ("--prompt", "a photo of a person")
WRITERS = {
    "head": "head --reference {photo} --yaw 15 --expression smile=0.5 --out {here}",
    "heads": "head --reference {photo} --sequence {here}/heads.csv --out {here}",
    "identity": "identity --reference {photo} --out {here}/me.identity",
    "picture": "generate --reference {photo} --yaw 15 --out {here}/made",
    "pictures": "sample --jobs {here}/jobs.jsonl --out {here}/sampled",
}
READERS = {
    "head → generate": "generate --reference {photo} --numbers {here}/head.json",
    "head → generate, its light": "generate --reference {photo} --light {here}/head.json",
    "head → generate, of several": "generate --person ref={photo},numbers={here}/head.json "
    "--person ref={photo}",
    "head → head": "head --numbers {here}/head.json",
    "head → sample": "sample --jobs {here}/by_head.jsonl",
    "heads → generate": "generate --reference {photo} --sequence {here}/sequence.json",
    "heads → sample": "sample --identities {here}/photos.txt --prompts {here}/prompts.txt "
    "--heads {here}/sequence.json",
    "heads → head": "head --reference {photo} --sequence {here}/sequence.json",
    "identity → generate": "generate --reference {here}/me.identity",
    "identity → generate, of several": "generate --person ref={here}/me.identity "
    "--person ref={photo}",
    "identity → sample": "sample --identities {here}/people --prompts {here}/prompts.txt",
    "identity → head": "head --reference {here}/me.identity",
    "generate → generate": "generate --reference {photo} --repeat {here}/made/picture_00.png",
    "sample → generate": "generate --reference {photo} --repeat {here}/sampled/a_00.png",
}
ANGLES = {"head": [15], "heads": [-10, 10], "generate": [15], "sample": [20]}
"""Yaw of the pictures that are made, by what they are made from."""


@pytest.fixture(scope="module")
def here(tmp_path_factory, astronaut_file, tiny_folder):
    """A folder with what every writer writes."""
    here = tmp_path_factory.mktemp("handing_over")
    job = {"reference": str(astronaut_file), "prompt": "a photo"}
    (here / "heads.csv").write_text("yaw,jawOpen\n-10,0.2\n10,\n")
    (here / "jobs.jsonl").write_text(json.dumps({"id": "a", **job, "head": {"yaw": 20}}))
    (here / "by_head.jsonl").write_text(json.dumps({**job, "head": "head.json"}))
    (here / "photos.txt").write_text(f"{astronaut_file}\n")
    (here / "prompts.txt").write_text("a photo\n")
    for text in WRITERS.values():
        assert call(text, here, astronaut_file, tiny_folder) == 0, text
    (here / "people").mkdir()
    (here / "people" / "me.identity").write_bytes((here / "me.identity").read_bytes())
    return here


def call(text, here, photo, model, *more):
    words = [word.format(here=here, photo=photo) for word in text.split()]
    if words[0] == "generate" and "--repeat" not in words:
        words += PROMPT
    return app.main([*words, "--model", str(model), *map(str, more)])


@pytest.mark.slow
@pytest.mark.parametrize("pair", READERS)
def test_the_next_command_reads_it(pair, here, astronaut_file, tiny_folder, tmp_path, capsys):
    code = call(READERS[pair], here, astronaut_file, tiny_folder, "--out", tmp_path / "out")
    assert code == 0, capsys.readouterr().err
    verb = READERS[pair].split()[0]
    if verb == "head":
        return
    made = sorted((tmp_path / "out").glob("*_[0-9][0-9].png"))
    shown = [metadata.read_settings(path)["people"][0]["head"] for path in made]
    writer = re.match(r"\w+", pair)[0]
    if writer in ANGLES and "light" not in pair:
        assert [round(head["yaw"], 1) for head in shown] == ANGLES[writer]
    assert made
