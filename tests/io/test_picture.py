"""Pictures say that they are AI-generated in every format, and keep what was written before."""

import json
import threading

import numpy as np
import pytest
from PIL import Image

from caphuman_jax.errors import CapHumanError
from caphuman_jax.io import metadata
from caphuman_jax.io.picture import Picture, PictureWriter

SETTINGS = {
    "prompt": "a café — ж",
    "negative_prompt": "",
    "seed": 3,
    "index": 1,
    "sampler": "ddim",
    "steps": 2,
    "guidance_scale": 3.0,
    "control_scale": 1.0,
    "identity_max_timestep": 0.0,
    "size": [24, 16],
    "model": "tiny",
    "version": "0",
    "people": [
        {
            "reference": {"name": "me.png"},
            "head": {"yaw": 1.0, "pitch": 2.0, "roll": 3.0},
        }
    ],
}


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp"])
def test_every_format_has_the_mark(ending, pixels, tmp_path):
    picture, path = Picture(pixels, SETTINGS), tmp_path / f"me.{ending}"
    assert picture.size == (24, 16) and np.array_equal(np.asarray(picture), pixels)
    picture.save(path)
    with Image.open(path) as read:
        read.load()
        xmp = read.info.get("xmp") or read.info["XML:com.adobe.xmp"].encode()
        assert metadata.DIGITAL_SOURCE.encode() in xmp
        if ending == "png":
            np.testing.assert_array_equal(np.asarray(read), pixels)
        else:  # where Stable Diffusion web UI has the same text
            comment = read.getexif().get_ifd(0x8769)[0x9286]
            assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be") == metadata.summary(
                SETTINGS
            )
        if ending in ("jpg", "jpeg"):
            assert json.loads(read.info["comment"]) == SETTINGS
    if ending == "png":
        assert metadata.read_settings(path) == SETTINGS


def test_other_formats_are_refused(pixels, tmp_path):
    for name in ("me.gif", "me"):
        with pytest.raises(CapHumanError, match="PNG, JPEG or WebP"):
            Picture(pixels).save(tmp_path / name)
    with open(tmp_path / "open.bin", "wb") as file:
        Picture(pixels).save(file, "PNG")
    with Image.open(tmp_path / "open.bin") as read:
        assert read.text["AI-generated"] == "yes"


def test_writers_of_one_folder_take_no_name_twice(pixels, tmp_path):
    """Four writers that begin together keep all that they write."""
    writers = [PictureWriter(tmp_path / "out") for _ in range(4)]
    start, paths = threading.Barrier(4), []

    def work(number):
        start.wait()
        for _ in range(6):
            settings = {**SETTINGS, "seed": number}
            paths.append((writers[number].write(pixels, settings), number))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path for path, _ in paths}) == 24 == len(list((tmp_path / "out").iterdir()))
    assert all(metadata.read_settings(path)["seed"] == number for path, number in paths)
    sheets = {writer.write_sheet(pixels).name for writer in writers}
    assert len(sheets) == 4
