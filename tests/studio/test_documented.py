"""The commands and the client of docs/serve.md, against a real server."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import documentation
import pytest
from http_server import running

from caphuman_jax.io.images import read_photo, read_png_metadata
from caphuman_jax.studio.app import create_app
from caphuman_jax.studio.options import ServerOptions

PAGE = documentation.ROOT / "docs" / "serve.md"
BLOCKS = documentation.blocks(PAGE)


@pytest.fixture(scope="module")
def address(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions")
    app = create_app(ServerOptions(), lambda: (pipe, 1), folder, warm_up=False)
    with running(app) as address:
        yield address


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(address, tmp_path):
    documentation.shelf(tmp_path)
    words = [w for b in BLOCKS for w in documentation.commands(b.text) if w[0] == "curl"]
    paths = {re.sub(".*:8440", "", w) for command in words for w in command if ":8440/" in w}
    called = {"images", "edits", "heads", "identities", "models", "photos", "session"}
    assert paths >= {f"/v1/{name}" for name in called} | {"/health", "/ready", "/metrics"}
    picture = ""
    for command in words:
        command = ["curl", "--silent", "--fail", *command[1:]]
        line = shlex.join(command).replace("http://127.0.0.1:8440", address)
        line = line.replace("/pictures/ID", f"/pictures/{picture}")
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if done.stdout.startswith('{"photos"') and "pictures" in done.stdout:
            picture = json.loads(done.stdout)["pictures"][0]["id"]
    assert read_photo(tmp_path / "picture.png").shape == (64, 64, 3)
    assert read_photo(tmp_path / "edited.png").shape == (512, 512, 3)
    assert (tmp_path / "me.identity").stat().st_size > 1000


def test_the_client(address, tmp_path, monkeypatch):
    documentation.shelf(tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = [b for b in BLOCKS if b.language == "python"]
    assert len(block.text.strip().splitlines()) <= 10
    exec(block.text.replace("http://127.0.0.1:8440", address), {})
    made = [read_png_metadata(path) for path in Path().glob("picture_*.png")]
    assert [one["AI-generated"] for one in made] == ["yes", "yes"]
