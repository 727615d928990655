"""What people give to commands by mistake, and what is hostile: every one is one line at once, with
exit code 2, and nothing is waited for or unpacked.
"""

import io
import json
import os
import time
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from caphuman_jax.cli.app import main

MID = "mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def lora(value, alpha, width=32):
    up = np.zeros((width, 4), np.float16)
    up[0, 0] = value
    return {
        f"lora_unet_{MID}.lora_up.weight": up,
        f"lora_unet_{MID}.lora_down.weight": np.full((4, width), 0.01, np.float16),
        f"lora_unet_{MID}.alpha": np.array(alpha, np.float16),
    }


def npz_bomb() -> bytes:
    """An array of 200 MB of zeros in 200 KB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (50_000_000,)}
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("v_template.npy", "w") as file:
            file.write(header.getvalue())
            for _ in range(200):
                file.write(bytes(1_000_000))
    return packed.getvalue()


@pytest.fixture
def inputs(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "fifo.jsonl")
    os.mkfifo(tmp_path / "fifo.yaml")
    with open(tmp_path / "sparse.ckpt", "wb") as file:
        file.truncate(4 << 30)
    deep = "[" * 100_000 + "]" * 100_000
    header = ('{"a": ' + deep + "}").encode()
    for name, data in {
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF\n",
        "summary.json": b"",
        "scores.jsonl": b"",
        "me.png": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "page.ckpt": b"<!DOCTYPE html><html>404</html>",
        "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\n",
        "empty.safetensors": b"",
        "deep.safetensors": len(header).to_bytes(8, "little") + header,
        "deep.jsonl": b'{"reference": "me.jpg", "prompt": ' + deep.encode() + b"}\n",
        "deep.json": deep.encode(),
        "surrogate.jsonl": b'{"id": "\\ud800", "reference": "a.jpg", "prompt": "x \\udcff"}\n',
        "product.jsonl": json.dumps(
            {"product": {name: list(range(1000)) for name in ("seed", "steps", "eta", "prompt")}}
        ).encode(),
        "empty.jsonl": b'{"reference": "", "prompt": "x"}\n',
        "place.jsonl": b'{"reference": "folder", "prompt": "x"}\n',
        "latin.jsonl": b'{"prompt": "\xe9"}\n',
        "list.json": b"[1, 2]",
        "digits.json": b'{"image_size": ' + b"9" * 4000 + b"}",
        "bomb.npz": npz_bomb(),
    }.items():
        (tmp_path / name).write_bytes(data)
    for name, value, alpha in (
        ("nan", np.nan, 4),
        ("inf", np.inf, 4),
        ("alpha", 0.01, np.nan),
        ("overflow", 6e4, 6e4),
    ):
        save_file(lora(value, alpha), tmp_path / f"lora_{name}.safetensors")
    save_file(lora(0.01, 4, width=24), tmp_path / "lora_width.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes" / "config.json")
    return tmp_path


CHECK = ["sample", "--check", "--jobs"]
GENERATE = ["generate", "--reference", "postscript.jpg", "--prompt", "x", "--out", "OUT"]
CASES = [
    (CHECK, "deep.jsonl", "nested"),
    (CHECK, "surrogate.jsonl", "lone surrogate"),
    (CHECK, "product.jsonl", "1,000,000,000,000 jobs"),
    (CHECK, "latin.jsonl", "cannot be read"),
    (CHECK, "empty.jsonl", "reference: must not be empty"),
    (CHECK, "place.jsonl", "folder is not a regular file"),
    (CHECK, "fifo.jsonl", "not a regular file but a named pipe"),
    (CHECK, "folder", "not a regular file but a"),
    (CHECK, "sparse.ckpt", "divide it"),
    (["import", "OUT", "--partial", "--caphuman"], "fifo", "named pipe"),
    (["import", "OUT", "--partial", "--caphuman"], "sparse.ckpt", "is damaged or"),
    (["import", "OUT", "--partial", "--caphuman"], "postscript.jpg", "is damaged or"),
    (["import", "OUT", "--partial", "--caphuman"], "page.ckpt", "is a web page"),
    (["import", "OUT", "--partial", "--caphuman"], "pointer.safetensors", "git lfs pull"),
    (["import", "OUT", "--partial", "--caphuman"], "empty.safetensors", "is empty"),
    (["import", "OUT", "--partial", "--caphuman"], "deep.safetensors", "nested"),
    (["import", "OUT", "--partial", "--caphuman"], "folder", "no weight file"),
    (["import", "OUT", "--partial", "--caphuman"], "missing.ckpt", "is missing"),
    (["import", "OUT", "--partial", "--base", "folder", "--config"], "fifo", "named pipe"),
    (["import", "OUT", "--partial", "--base", "folder", "--config"], "deep.json", "nested"),
    (["import", "OUT", "--partial", "--base", "folder", "--config"], "list.json", "not a JSON"),
    (["import", "OUT", "--partial", "--base", "folder", "--config"], "digits.json", "4000 digits"),
    (["check"], "folder", "it has no config.json"),
    (["check"], "fifo", "no model named"),
    (["check"], "pipes", "config.json cannot be read: it is not a regular file but a named pipe"),
    ([*GENERATE, "--model"], "pipes", "it is not a regular file but a named pipe"),
    (["status"], "pipes", "is not the work folder of a run"),
    (["serve", "--port", "0", "--model"], "missing", "no model named"),
    (["serve", "--port", "0", "--lora"], "missing.safetensors", "is missing"),
    (["serve", "--port", "0", "--embedding"], "missing.pt", "is missing"),
    (["studio", "--no-browser", "--port", "0", "--lora"], "lora_width.safetensors", "not fit"),
    (["evaluate", "--photos", ".", "--report", "OUT", "--training-records"], "list.json", "no rec"),
    (["import", "OUT", "--partial", "--base"], "me.png", "is a picture, not weights"),
    (["launch", "--file"], "fifo.yaml", "not a regular file but a named pipe"),
    (["launch", "--file"], "deep.json", "cannot be read"),
    (["compare", "."], "folder", "summary.json is damaged"),
    (["evaluate", "--guidance-scale", "inf", "--report", "OUT", "--photos"], "folder", "not inf"),
    (["compile", "--config", "mini", "--out"], "folder", "the name of a file in a folder"),
    (["compile", "--config", "mini", "--out"], "list.json", "holds no results of caphuman compile"),
    (["train", "--config", "mini", "--config.data=x", "--workdir"], "list.json", "is a file"),
]


@pytest.mark.parametrize(("command", "name", "words"), CASES)
def test_one_line_at_once(inputs, monkeypatch, capfd, command, name, words):
    monkeypatch.chdir(inputs)
    begun = time.monotonic()
    assert main([*command, name]) == 2
    printed, said = capfd.readouterr()
    assert words in said and "Traceback" not in said and "http" not in printed
    # `sample` has a line for each wrong entry, and one at the end.
    assert said.count("\n") <= (2 if command == CHECK else 1) and len(said) < 700
    assert time.monotonic() - begun < 20 and not (inputs / "OUT").exists()


@pytest.mark.parametrize("name", ["nan", "inf", "alpha", "overflow"])
def test_loras_that_are_not_numbers_are_refused_by_name(inputs, tiny_folder, capfd, name):
    """`generate --lora`, before any picture is made."""
    file = inputs / f"lora_{name}.safetensors"
    command = ["generate", "--model", str(tiny_folder), "--reference", str(inputs / "a.jpg")]
    assert main([*command, "--prompt", "x", "--lora", str(file), "--out", str(inputs / "o")]) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said and not list(inputs.glob("o/*.png"))


def test_an_npz_that_unpacks_to_far_more_is_not_unpacked(inputs, tmp_path, capfd):
    (tmp_path / "downloads").mkdir()
    (inputs / "bomb.npz").rename(tmp_path / "downloads" / "generic_model.npz")
    assert main(["import", str(tmp_path / "m"), "--from", str(tmp_path / "downloads")]) == 2
    assert "would unpack to 191 MB" in capfd.readouterr().err
