"""Names of the Hugging Face hub: found in its local cache without any connection, and fetched only
if asked for, by huggingface_hub itself from a server of our own."""

import hashlib
import http.server
import json
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from tiny_model import TINY as SMALL
from weight_standins import TINY, import_model, state_dict

import caphuman_jax
from caphuman_jax.cli.app import main
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.weights import hub, model_card, model_folder

pytestmark = pytest.mark.usefixtures("shapes_once")
COMMIT = "c0ffee" + "0" * 34


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` as the repository org/name, and remembers what was asked for."""

    files: dict[str, bytes]
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
        path = self.path.split("?")[0]
        files = self.server.files
        if path.startswith("/api/models/org/name/tree/"):
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for name, data in files.items()
            ]
            return self.answer(json.dumps(tree).encode())
        if path.startswith("/api/models/org/name"):
            info = {
                "id": "org/name",
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
            }
            return self.answer(json.dumps(info).encode())
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/").removeprefix(
            "/org/name/resolve/main/"
        )
        if name in files:
            return self.answer(files[name])
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def answer(self, data: bytes):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub of one repository, and an empty cache."""
    served = Server(("127.0.0.1", 0), Handler)
    served.files, served.asked = {}, []
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{served.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    yield served
    served.shutdown()
    served.server_close()


def serve(server, folder: Path):
    server.files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_name_that_is_not_in_the_cache_is_one_line_and_nothing_is_asked_for(server):
    for given in ("org/name", "org/name@main"):
        with pytest.raises(ModelFolderError, match="the hub's cache does not hold it; --download"):
            hub.locate(given)
        with pytest.raises(ModelFolderError, match=r"no model named org/name.*download=True"):
            caphuman_jax.load(given)
    assert server.asked == []


@pytest.mark.parametrize(
    "given", ["a/b/c", "/org/name", "./name", "org/", "org name/x", "../org", "name", "~/x"]
)
def test_paths_are_no_names_of_the_hub(given):
    assert not hub.is_name(given)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.locate("org/name") == Path("org/name")


def test_a_model_folder_is_fetched_once_if_asked_for(server, tmp_path, tiny_params, monkeypatch):
    model_folder.save_model(tmp_path / "m", SMALL, tiny_params)
    model_card.write(tmp_path / "m")
    serve(server, tmp_path / "m")
    found = model_folder.find_model("org/name", download=True)
    assert model_folder.read_config(found) == SMALL
    model_folder.verify_model(found)
    asked = len(server.asked)
    assert asked
    assert model_folder.find_model("org/name") == found and len(server.asked) == asked
    pipe = caphuman_jax.load("org/name")
    assert pipe.config.name == "tiny" and len(server.asked) == asked


def test_of_a_pipeline_only_what_is_read_is_fetched(server, tmp_path, caphuman):
    from caphuman_jax.weights.exporter import export_model

    import_model(tmp_path / "m", caphuman=caphuman, config=TINY)
    export_model(tmp_path / "m", tmp_path / "base", "diffusers", dtype="float32")
    serve(server, tmp_path / "base")
    server.files |= {
        "unet/diffusion_pytorch_model.fp16.safetensors": b"x",
        "unet/diffusion_pytorch_model.bin": b"x",
        "vae/diffusion_flax_model.msgpack": b"x",
        "safety_checker/model.safetensors": b"x",
        "v1-5-pruned.ckpt": b"x" * 1000,
    }
    with pytest.raises(ModelFolderError, match="--download"):
        import_model(tmp_path / "a", caphuman=caphuman, base="org/name", config=TINY)
    report = import_model(
        tmp_path / "a", caphuman=caphuman, base="org/name", config=TINY, download=True
    )
    fetched = {
        line.split("/resolve/")[1].split(" ")[0] for line in server.asked if "/resolve/" in line
    }
    fetched = {name.split("/", 1)[1] for name in fetched}
    assert "unet/diffusion_pytorch_model.safetensors" in fetched
    assert not fetched & {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_flax_model.msgpack",
        "safety_checker/model.safetensors",
        "v1-5-pruned.ckpt",
    }
    assert any("unet" in line for line in report)
    with pytest.raises(ModelFolderError, match="is a diffusers folder; .*--base org/name"):
        model_folder.find_model("org/name")


def test_the_token_and_the_mirror_are_those_of_huggingface_hub(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.files = {"config.json": b"{}"}
    hub.locate("org/name", download=True)
    assert all("Bearer hf_secret" in line for line in server.asked if line.startswith("GET /api"))


def test_a_hub_that_is_not_reached_or_has_no_such_name_is_one_line(server, monkeypatch):
    with pytest.raises(ModelFolderError, match="org/other cannot be fetched from the hub") as error:
        hub.locate("org/other", download=True)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between attempts
    with pytest.raises(ModelFolderError, match="cannot be fetched from the hub"):
        hub.locate("org/name", download=True)


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    tmp_path, caphuman, capsys, tiny_config
):
    out = tmp_path / "m"
    command = ["import", str(out), "--caphuman", str(caphuman), "--config", str(tiny_config)]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "unet: " in said and "tensors of caphuman.ckpt" in said
    assert "would be refused: " in said and "photos need FaceNet" in said
    assert "noise schedule" in said and "nothing was written (--dry-run)" in said
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "--partial", "--head", "anny"]) == 0
    report = capsys.readouterr().out
    assert main([*command, "--partial", "--head", "anny", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert "exists already; --overwrite replaces it" in dry
    assert [line for line in dry.splitlines() if "tensors of" in line] == [
        line for line in report.splitlines() if "tensors of" in line
    ]
    sd = state_dict()
    sd.pop("img_linear.weight")
    import torch

    torch.save(sd, tmp_path / "bad.ckpt")
    command[3] = str(tmp_path / "bad.ckpt")
    assert main([*command, "--dry-run"]) == 2
    assert "1 missing: img_linear.weight" in capsys.readouterr().err


def test_the_cards_head_is_what_the_hub_understands(tmp_path, caphuman, tiny_params):
    import_model(tmp_path / "a", caphuman=caphuman, config=TINY)
    model_folder.save_model(tmp_path / "b", SMALL, tiny_params, metadata={"steps": 3})
    model_card.write(tmp_path / "b")
    for folder in (tmp_path / "a", tmp_path / "b"):
        card = huggingface_hub.ModelCard.load(folder / "README.md")
        assert card.data.library_name == "caphuman_jax"
        assert card.data.pipeline_tag == "text-to-image" and "caphuman" in card.data.tags
        assert "\n# `tiny`: model card\n" in card.text
    assert "**Imported.** unet from caphuman.ckpt" in (tmp_path / "a" / "README.md").read_text()
    assert "**Training.** 3 steps" in (tmp_path / "b" / "README.md").read_text()
