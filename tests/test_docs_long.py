"""Blocks of the pages from their first command to their last, where one command reads what the one
before wrote. Weights, photos and sizes are small; everything else is as the page has it.
"""

import json
import shutil
from pathlib import Path

import jax
import photos_standin
import pytest
import shelf_of_weights
import test_docs
from documentation import PROGRAM, Block, commands, shelf
from small_configs import MINI_CONFIG, SD15_CONFIG, SMALLEST_CONFIG

from caphuman_jax.cli import app
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.runtime import sharding
from caphuman_jax.weights import model_folder

STORIES = {
    "data": ("docs/data.md", "caphuman evaluate --records"),
    "mini": ("docs/training.md", "caphuman train --config mini"),
    "sd15": ("docs/training.md", "caphuman train --config sd15"),
    "import": ("docs/model-folder.md", "caphuman import"),
    "import by name": ("docs/published-weights.md", "--face-parsing 79999_iter.pth"),
    "check": ("docs/model-folder.md", "caphuman check"),
    "export": ("docs/model-folder.md", "caphuman export"),
    "FLAME and DECA": ("docs/flame-and-deca.md", "caphuman import"),
    "compile": ("docs/compile.md", "caphuman compile"),
    "compare": ("docs/evaluation.md", "caphuman compare"),
}
"""Page and a part of a block of it."""

ELSEWHERE = {
    *("head", "identity", "sample", "inspect", "generate", "edit"),
    *("launch", "config", "status", "doctor"),
    *("serve", "studio"),  # tests/studio/test_documented.py
}
"""Verbs whose commands test_docs.py runs one by one."""


def block_of(story: str) -> Block:
    page, part = STORIES[story]
    found = [b for b in test_docs.BLOCKS if b.page == page and part in b.text and b.language == ""]
    assert found, f"{page} has no block with {part!r}"
    return found[0]


def test_every_command_is_run():
    """The commands of the pages are run here, in test_docs.py, or in test_published_weights.py."""
    here = [tuple(words) for story in STORIES for words in commands(block_of(story).text)]
    published = [b for b in test_docs.BLOCKS if b.page == "docs/published-weights.md"]
    here += [tuple(words) for block in published for words in commands(block.text)]
    left = [
        f"{block}: {' '.join(words)}"
        for block, words in test_docs.OURS
        if words[0] not in ELSEWHERE
        and (PROGRAM, *words) not in here
        and not is_pattern(block, words)
    ]
    assert not left, "\n".join(left)


def is_pattern(block, words) -> bool:
    """Or needs a bucket, of which tests/io has a stand-in."""
    bucket = any("gs://" in word for word in words)
    return words == ["--version"] or words[-1] in ("P", "STEPS") or "…" in words or bucket


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder to work in, on one device."""
    make_mesh, one = sharding.make_mesh, jax.devices()[:1]
    monkeypatch.setattr(sharding, "make_mesh", lambda fsdp=1, devices=None: make_mesh(fsdp, one))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CAPHUMAN_FLAME", str(tmp_path / "flame"))
    (tmp_path / "mini.py").write_text(MINI_CONFIG)
    (tmp_path / "sd15.py").write_text(SD15_CONFIG)
    load_head.cache_clear()
    yield shelf(tmp_path)
    load_head.cache_clear()


def run(story: str, change, capsys) -> str:
    """What the commands of a block print; `change`: words of a command → those that are run."""
    said = ""
    for words in commands(block_of(story).text):
        if words[0] == PROGRAM:
            with jax.numpy_dtype_promotion("standard"):
                code = app.main(change(words[1:]))
            out, error = capsys.readouterr()
            said += out
            assert code == 0, f"{story}: {words}\n{error}"
    return said


def small(words: list[str]) -> list[str]:
    """A command with small configurations and sizes."""
    other = {"sd15": "sd15.py", "sd15_tpu": "sd15.py", "mini": "mini.py"}
    words = [word for word in words if word]
    for option in ("--config", "--model", "--size"):
        if option in words[:-1]:
            at = words.index(option) + 1
            words[at] = {
                "--config": other.get(words[at], "mini.py"),
                "--model": words[at] if Path(words[at]).exists() else "tiny",
                "--size": "64",
            }[option]
    if words[0] == "prepare":
        more = [
            "--person",
            "folder",
            "--hold-out",
            "2",
            "--min-face",
            "20",
            "--duplicate-bits",
            "0",
        ]
        size = [] if "--size" in words else ["--size", "64"]
        words = [w for w in words if w not in ("--same-person", "recognition")] + more + size
    if words[0] == "train":
        words += ["--workdir", "run"] if "--workdir" not in words else []
    if words[0] == "evaluate":
        words += ["--per-person", "1", "--limit", "2", "--steps", "2"]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("story", ["data", "mini"])
def test_photos_to_records_to_a_model(story, desk, tiny_folder, capsys):
    photos_standin.write_people(desk / "PHOTOS")
    (desk / "tiny").symlink_to(tiny_folder)
    said = run(story, small, capsys)
    assert "step 2/2 · loss" in said
    work = desk / ("run" if story == "data" else "runs/mini")
    assert model_folder.verify_model(work / "model") is None
    if story == "data":
        report = json.loads((desk / "report" / "report.json").read_text())
        assert report["results"]["people"] == 2


@pytest.mark.slow
def test_two_evaluations_are_compared(desk, tiny_folder, capsys):
    photos_standin.write_people(desk / "DIR")
    (desk / "tiny").symlink_to(tiny_folder)
    tiny = lambda words: [*small(words), *(["--model", "tiny"] if words[0] == "evaluate" else [])]
    said = run("compare", tiny, capsys)
    assert "Evaluate more people" in said and "comparison/comparison.html" in said
    assert (desk / "comparison" / "comparison.html").is_file()


def with_size(words: list[str]) -> list[str]:
    """Imports of small files say how small they are; an earlier model makes room."""
    if words[0] == "import":
        shutil.rmtree(words[1], ignore_errors=True)
        return [*words, "--config", "tiny.json"]
    return small(words)


@pytest.mark.slow
def test_capface_on_a_base_of_ones_own(desk, capsys):
    photos_standin.write_people(desk / "PHOTOS")
    shelf_of_weights.write(desk)
    said = run("sd15", with_size, capsys)
    assert "step 2/2 · loss" in said and (desk / "runs/sd15/model/config.json").is_file()


@pytest.mark.slow
def test_imports_and_exports(desk, capsys):
    shelf_of_weights.write(desk)
    for story in ("import", "import by name"):
        run(story, with_size, capsys)
        assert model_folder.verify_model(desk / "capsd") is None
    assert {"facenet", "deca_encoder", "mtcnn_pnet"} <= set(
        json.loads((desk / "capsd" / "config.json").read_text())["files"]
    )
    assert "photos" in run("check", list, capsys)
    run("export", list, capsys)
    assert (desk / "capsd.safetensors").is_file() and (desk / "capsd_diffusers").is_dir()


@pytest.mark.slow
def test_a_picture_by_flame_and_deca(desk, capsys):
    shelf_of_weights.write(desk)
    smaller = lambda words: [
        *with_size(words),
        *(["--steps", "2"] if words[0] == "generate" else []),
    ]
    run("FLAME and DECA", smaller, capsys)
    assert (desk / "out" / "picture_00.png").is_file()


@pytest.mark.slow
def test_compilations(desk, capsys):
    """Of the smallest model, with little effort; the largest batch is not looked for."""
    pytest.importorskip("libtpu")
    (desk / "sd15.py").write_text(SMALLEST_CONFIG)

    def one(words):
        words = small(words)
        if "--batch" in words:
            first = words.index("--batch") + 1
            words[first:] = ["1", *(word for word in words[first + 1 :] if word != "auto")]
        if "h100" in words:  # wants JAX's CUDA plugin
            words[words.index("h100")] = "local"
        return words if "local" in words else [*words, "--effort=-1", "--steps=2"]

    said = run("compile", one, capsys)
    assert "train on v5e:4x4" in said and (desk / "found.json").is_file()
    assert {"train", "sample"} <= {line.split()[0] for line in said.splitlines() if "v6e" in line}
