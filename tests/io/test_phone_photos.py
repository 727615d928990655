"""Photos as phones and cameras write them, each made by the library that writes the format: HEIC,
JPEG with further pictures (MPO, gain maps), CMYK with a profile of its own.
"""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from caphuman_jax.io import picture_formats
from caphuman_jax.io.images import read_photo


@pytest.fixture(scope="module")
def picture(astronaut_file):
    with Image.open(astronaut_file) as opened:
        return opened.convert("RGB").resize((160, 120))


def near(found, wanted, limit):
    return np.abs(found.astype(float) - np.asarray(wanted, float)).mean() < limit


@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize("name", ["photo.heic", "photo.jpg", "photo"])
def test_heic_is_read_by_its_content_and_turned(tmp_path, picture, turned, name):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = turned
    heif.from_pillow(picture).save(tmp_path / "x.heic", quality=95, exif=exif.tobytes())
    (tmp_path / "x.heic").rename(tmp_path / name)
    found = read_photo(tmp_path / name)
    wanted = picture if turned == 1 else picture.transpose(Image.Transpose.ROTATE_270)
    assert found.shape == np.asarray(wanted).shape and near(found, wanted, 3)
    assert [path.name for path in picture_formats.photos_in(tmp_path)] == [name]


def test_several_pictures_in_a_heic_are_the_primary_one(tmp_path, picture):
    heif = pytest.importorskip("pillow_heif")
    file = heif.from_pillow(Image.new("RGB", (64, 64), "red"))
    file.add_from_pillow(picture)
    file.save(tmp_path / "x.heic", quality=95, primary_index=1)
    assert near(read_photo(tmp_path / "x.heic"), picture, 3)


@pytest.mark.parametrize("second", ["picture", "gain map"])
def test_jpegs_with_further_pictures_are_their_first(tmp_path, picture, second):
    """An MPO of two views; and a gain map: a small gray picture for HDR screens."""
    other = Image.new("RGB", picture.size, "red")
    if second == "gain map":
        other = picture.convert("L").resize((40, 30))
    picture.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[other], quality=95)
    found = read_photo(tmp_path / "x.jpg")
    assert found.shape == (120, 160, 3) and near(found, picture, 3)


def cmyk_profile() -> bytes:
    """An ICC profile (version 2) of a printer whose inks are a little dull, as a table of 2⁴ Lab
    colors; written after the ICC's specification."""

    def lab(c, m, y, k):
        light = (1 - 0.9 * k) * np.array([1 - 0.9 * c, 1 - 0.85 * m, 1 - 0.8 * y])
        xyz = np.array(
            [[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]]
        ) @ (light**2.2)
        f = np.cbrt(np.maximum(xyz / [0.9642, 1.0, 0.8249], 1e-4))
        return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])

    table = bytearray()
    for c in (0, 1):
        for m in (0, 1):
            for y in (0, 1):
                for k in (0, 1):
                    lightness, a, b = lab(c, m, y, k)
                    numbers = (lightness * 2.55, a + 128, b + 128)
                    table += bytes(int(np.clip(np.rint(n), 0, 255)) for n in numbers)
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *[65536 if i % 4 == 0 else 0 for i in range(9)])
    lut = b"mft1" + b"\0" * 4 + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + bytes(table) + ramp * 3
    text = b"dull inks\0"
    description = b"desc" + b"\0" * 4 + struct.pack(">I", len(text)) + text + b"\0" * 78
    tags = {
        b"desc": description,
        b"A2B0": lut,
        b"wtpt": b"XYZ " + b"\0" * 4 + struct.pack(">3i", 63190, 65536, 54061),
        b"cprt": b"text" + b"\0" * 4 + b"none\0",
    }
    at, entries, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        entries += name + struct.pack(">2I", at + len(data), len(content))
        data += content
    body = struct.pack(">I", len(tags)) + entries + data
    header = bytearray(128)
    header[0:4] = struct.pack(">I", 128 + len(body))
    header[8:12], header[12:24] = b"\x02\x40\0\0", b"prtrCMYKLab "
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    return bytes(header) + body


def test_cmyk_jpegs_are_converted_by_their_profile():
    """Against the colors of the profile's own formula, at the corners of its table."""
    profile = cmyk_profile()
    ImageCms.ImageCmsProfile(io.BytesIO(profile))  # LittleCMS takes it
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    patches = np.repeat(np.array([inks], np.uint8), 64, 0).repeat(64, 1)
    file = io.BytesIO()
    Image.fromarray(patches, "CMYK").save(file, "JPEG", quality=100, icc_profile=profile)
    found = read_photo(file.getvalue())[32, 32::64].astype(float)
    inks = np.array(inks) / 255
    light = (1 - 0.9 * inks[:, 3:]) * (1 - inks[:, :3] * [0.9, 0.85, 0.8])
    wanted = 255 * np.where(
        light**2.2 <= 0.0031308, 12.92 * light**2.2, 1.055 * light ** (2.2 / 2.4) - 0.055
    )
    assert np.abs(found - wanted).max() < 12, (found, wanted)
    plain = io.BytesIO()
    Image.fromarray(patches, "CMYK").save(plain, "JPEG", quality=100)
    assert np.abs(read_photo(plain.getvalue())[32, 32::64] - wanted).max() > 15
