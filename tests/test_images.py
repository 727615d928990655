"""Reading photos in every form that people have them in, and PNG files with their metadata."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from caphuman_jax.errors import PhotoError
from caphuman_jax.io import images
from caphuman_jax.io.images import read_photo, read_png_metadata, write_png


@pytest.fixture
def picture():
    """Smooth, without any symmetry, (40, 60, 3)."""
    y, x = np.mgrid[:40, :60]
    return np.stack([4 * x, 6 * y, 255 - 2 * x - 3 * y], axis=-1).astype(np.uint8)


# How a camera held that way stores an upright picture (EXIF 2.3, tag 0x0112).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(tmp_path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "p.png"
    Image.fromarray(np.ascontiguousarray(STORED[orientation](picture))).save(path, exif=exif)
    np.testing.assert_array_equal(read_photo(path), picture)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored(tmp_path, picture):
    path = tmp_path / "p.jpg"
    Image.fromarray(picture).save(
        path, exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\x01\x12", quality=95
    )
    assert np.abs(read_photo(path).astype(int) - picture).mean() < 4


def test_every_kind_of_source(tmp_path, picture):
    path = tmp_path / "p.png"
    Image.fromarray(picture).save(path)
    for source in (
        path,
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        Image.open(path),
        picture,
    ):
        result = read_photo(source)
        np.testing.assert_array_equal(result, picture)
        assert result.dtype == np.uint8 and result.flags.writeable and result.flags.c_contiguous


def test_transparency_goes_over_white(picture):
    alpha = np.full(picture.shape[:2] + (1,), 255, np.uint8)
    alpha[:, :30] = 0
    alpha[:, 30:40] = 128
    expected = np.round(picture * (alpha / 255.0) + 255 * (1 - alpha / 255.0))
    rgba = np.concatenate([picture, alpha], axis=-1)
    assert np.abs(read_photo(Image.fromarray(rgba)) - expected).max() <= 1
    assert np.abs(read_photo(rgba) - expected).max() <= 1
    grey = np.concatenate([picture[..., :1], alpha], axis=-1)
    for source in (Image.fromarray(grey), grey):
        assert np.abs(read_photo(source) - expected[..., :1]).max() <= 1


def test_palette_with_transparent_entry(tmp_path):
    indices = np.zeros((20, 20), np.uint8)
    indices[:, 10:] = 1
    picture = Image.fromarray(indices, "P")
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "p.gif", transparency=0)
    result = read_photo(tmp_path / "p.gif")
    assert tuple(result[5, 5]) == (255, 255, 255) and tuple(result[5, 15]) == (0, 0, 255)


def test_grey_one_bit_and_cmyk(tmp_path, picture):
    grey = Image.fromarray(picture).convert("L")
    np.testing.assert_array_equal(read_photo(grey), np.repeat(np.asarray(grey)[..., None], 3, -1))
    bits = np.indices((20, 20)).sum(0) % 2 == 0
    np.testing.assert_array_equal(read_photo(Image.fromarray(bits))[..., 0], bits * 255)
    path = tmp_path / "p.jpg"
    Image.fromarray(picture).convert("CMYK").save(path, quality=98)
    assert np.abs(read_photo(path).astype(int) - picture).mean() < 4


def test_16_bits(tmp_path, picture):
    deep = picture.astype(np.uint16) * 256 + 100
    for name, array in (
        ("grey.png", deep[..., 0]),
        ("rgb.png", deep[..., ::-1]),
        ("grey.tif", deep[..., 0]),
    ):
        path = str(tmp_path / name)
        assert cv2.imwrite(path, array)
        expected = picture if array.ndim == 3 else np.repeat(picture[..., :1], 3, -1)
        assert np.abs(read_photo(path).astype(int) - expected).max() <= 1, name
    assert np.abs(read_photo(deep).astype(int) - picture).max() <= 1


def test_float_arrays(picture):
    np.testing.assert_array_equal(read_photo(picture / 255.0), picture)
    np.testing.assert_array_equal(read_photo((picture / 255.0).astype(np.float32)), picture)


def test_large_photos_are_shrunk(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 40_000)
    path = tmp_path / "p.jpg"
    Image.fromarray(cv2.resize(picture, (900, 600), interpolation=cv2.INTER_LINEAR)).save(
        path, quality=95
    )
    result = read_photo(path)
    assert result.shape[0] * result.shape[1] <= 40_000 and result.shape[1] == pytest.approx(
        1.5 * result.shape[0], abs=2
    )
    expected = cv2.resize(picture, result.shape[1::-1], interpolation=cv2.INTER_LINEAR).astype(int)
    assert np.abs(result.astype(int) - expected).mean() < 4


def test_very_long_photos_are_shrunk(picture):
    result = read_photo(cv2.resize(picture, (40_000, 60)))
    assert result.shape == (24, 16_384, 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_files_never_end_in_another_error(picture, kind):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
        data = data[: rng.integers(1, len(data))] if rng.random() < 0.5 else data
        try:
            assert read_photo(data.tobytes()).ndim == 3
        except PhotoError:
            pass


def test_decompression_bomb_is_not_unpacked(tmp_path):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(PhotoError, match="bomb.png is too large"):
        read_photo(path)


def test_errors_name_the_photo_and_what_to_do(tmp_path, picture):
    buffer = io.BytesIO()
    Image.fromarray(cv2.resize(picture, (600, 400))).save(buffer, "JPEG")
    whole = buffer.getvalue()
    tiny = io.BytesIO()
    Image.new("RGB", (1, 1)).save(tiny, "PNG")
    for name, data, message in (
        ("short.jpg", whole[: len(whole) // 2], "damaged or incomplete"),
        ("head.jpg", whole[:20], "damaged or incomplete JPEG file"),
        ("heic.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500), "HEIC"),
        ("jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG2000 file"),
        ("notes.txt", b"no picture", "not a picture"),
        ("empty.png", b"", "not a picture"),
        ("dot.png", tiny.getvalue(), "only 1x1"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(PhotoError, match=message) as caught:
            read_photo(path)
        assert name in str(caught.value) and "\n" not in str(caught.value)
        with pytest.raises(PhotoError):
            read_photo(data)
    with pytest.raises(PhotoError, match="does not exist"):
        read_photo(tmp_path / "none.png")
    with pytest.raises(PhotoError, match="is a folder"):
        read_photo(tmp_path)
    with pytest.raises(PhotoError, match="not int"):
        read_photo(7)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((20, 20, 5), np.uint8), "shape"),
        (np.zeros((20,), np.uint8), "shape"),
        (np.zeros((0, 20, 3), np.uint8), "shape"),
        (np.zeros((20, 20, 3), np.int32), "int32"),
        (np.full((20, 20, 3), 7.0), "floats from"),
        (np.full((20, 20, 3), np.nan), "not finite"),
        (np.zeros((8, 200, 3), np.uint8), "only 200x8"),
    ],
)
def test_arrays_that_are_no_pictures(array, message):
    with pytest.raises(PhotoError, match=message):
        read_photo(array)


def test_png_metadata_comes_back(tmp_path, picture):
    metadata = {
        "prompt": "a portrait — 肖像, naïve 🙂",
        "seed": "7",
        "json": '{"steps": 20}',
        "long": "x" * 200_000,
    }
    path = tmp_path / "p.png"
    write_png(path, picture, metadata)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert read_png_metadata(path) == metadata
    write_png(path, picture)
    assert read_png_metadata(path) == {}


def test_failed_write_leaves_what_was_there(tmp_path, picture):
    path = tmp_path / "p.png"
    write_png(path, picture, {"a": "b"})
    with pytest.raises(TypeError):
        write_png(path, np.zeros((4, 4, 7), np.uint8))
    with pytest.raises(OSError):
        write_png(tmp_path / "no folder" / "p.png", picture)
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
    assert read_png_metadata(path) == {"a": "b"}


def test_metadata_of_what_is_no_png(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "p.jpg")
    (tmp_path / "p.png").write_bytes(b"no")
    for name in ("p.jpg", "p.png", "none.png"):
        with pytest.raises(PhotoError, match=name):
            read_png_metadata(tmp_path / name)
