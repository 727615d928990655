"""Photos from anybody: formats by content, files that are not files, color profiles, endings."""

import io
import os
import socket
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, JpegImagePlugin

from caphuman_jax.errors import NoFaceError, PhotoError
from caphuman_jax.io import frames, images, picture_formats
from caphuman_jax.io.files import printable, valid_text
from caphuman_jax.io.images import read_photo
from caphuman_jax.person.person import measure_references

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)
DISPLAY_P3 = np.array(  # SMPTE EG 432-1, to linear sRGB
    [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]
)


@pytest.fixture
def picture():
    y, x = np.mgrid[:40, :60]
    return np.stack([60 + 2 * x, 50 + 3 * y, 200 - x - y], axis=-1).astype(np.uint8)


def encoded(picture, kind, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def display_p3_profile():
    """An ICC v4 matrix profile with sRGB's curve, written here by the specification."""
    number = lambda value: struct.pack(">i", round(value * 65536))
    xyz = lambda values: b"XYZ \0\0\0\0" + b"".join(map(number, values))
    curve = b"para\0\0\0\0\0\3\0\0" + b"".join(
        map(number, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
    )
    text = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 4, 28) + b"\0P\0003"
    tags = {
        b"desc": text,
        b"cprt": text,
        b"wtpt": xyz((0.9642, 1, 0.8249)),
        b"rXYZ": xyz((0.51512, 0.24120, -0.00105)),
        b"gXYZ": xyz((0.29198, 0.69225, 0.04189)),
        b"bXYZ": xyz((0.15710, 0.06657, 0.78407)),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    offset, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += value
    head = b"appl\4\0\0\0mntrRGB XYZ " + struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acspAPPL"
    head += bytes(24) + number(0.9642) + number(1) + number(0.8249) + b"appl"
    return (struct.pack(">I", offset + len(body)) + head).ljust(128, b"\0") + table + body


def as_srgb(picture):
    """Display P3 to sRGB by the formula."""
    coded = picture / 255.0
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ DISPLAY_P3.T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["rgb", "jpeg", "rgba", "palette", "tall"])
def test_display_p3_becomes_srgb(picture, kind):
    options = {"icc_profile": display_p3_profile()}
    if kind == "tall":
        picture = np.repeat(picture, 30, axis=0)
    expected = as_srgb(picture)
    assert np.abs(expected - picture).max() > 5
    if kind == "rgba":
        rgba = np.concatenate([picture, np.full((*picture.shape[:2], 1), 128, np.uint8)], axis=-1)
        data, expected = encoded(rgba, "PNG", **options), expected * 128 / 255 + 127
    elif kind == "palette":
        few = Image.fromarray(picture).quantize(64)
        expected = as_srgb(np.asarray(few.convert("RGB")))
        file = io.BytesIO()
        few.save(file, "PNG", **options)
        data = file.getvalue()
    elif kind == "jpeg":
        data = encoded(picture, "JPEG", quality=98, subsampling=0, **options)
    else:
        data = encoded(picture, "PNG", **options)
    error = np.abs(read_photo(data) - expected)
    assert error.mean() < 1.2 if kind == "jpeg" else error.max() <= 2


@pytest.mark.parametrize(
    "profile, warned",
    [
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), False),
        (b"not a profile", True),
        (display_p3_profile()[:200], True),
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), True),
    ],
)
def test_profiles_that_change_nothing(picture, profile, warned, caplog):
    data = encoded(picture, "PNG", icc_profile=profile)
    np.testing.assert_array_equal(read_photo(data), picture)
    assert ("color profile" in caplog.text) == warned


def test_only_listed_decoders_run(tmp_path, monkeypatch):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n"
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "face.jpg"
    others = b"\xc5\xd0\xd3\xc6" + bytes(100), b"8BPS\0\1" + bytes(50), b"icns" * 9
    for data in (postscript, *others):
        path.write_bytes(data)
        for source in (path, data):
            with pytest.raises(PhotoError, match="not a picture in a format"):
                read_photo(source)
        with pytest.raises(PhotoError):
            list(frames.frames(path))


@pytest.mark.parametrize(
    "ending, kind",
    [
        ("jfif", "JPEG"),
        ("jpe", "JPEG"),
        ("gif", "GIF"),
        ("jp2", "JPEG2000"),
        ("avif", "AVIF"),
        ("mpo", "MPO"),
        ("ppm", "PPM"),
        ("", "JPEG"),
        ("", "WEBP"),
        ("", "TIFF"),
        ("", "BMP"),
        ("dat", "PNG"),
    ],
)
def test_photos_are_found_by_content(tmp_path, picture, ending, kind):
    path = tmp_path / f"a{'.' * bool(ending)}{ending}"
    path.write_bytes(encoded(picture, kind))
    (tmp_path / "notes").write_text("BM and P5 are only letters here, as in BMW")
    (tmp_path / "caption.txt").write_text("GIF89a")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    assert list(picture_formats.photos_in(tmp_path)) == [path]
    assert read_photo(path).shape == picture.shape


def test_heic_without_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(HEIC)
    with pytest.raises(PhotoError, match="IMG_1.jpg is a HEIC photo.*pillow-heif"):
        read_photo(path)
    assert picture_formats.picture_format(HEIC) == "HEIC"


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "sparse", "folder", "missing", "url"])
def test_what_is_not_a_file_of_a_photo(tmp_path, kind, monkeypatch):
    path, message = tmp_path / "a.jpg", "not a regular file"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("a.jpg")
    elif kind == "device":
        path = "/dev/zero"
    elif kind == "sparse":
        message = "MB; photos have at most"
        with open(path, "wb") as file:
            file.truncate(2 << 30)
    elif kind == "folder":
        path, message = tmp_path, "is a folder"
    else:
        message = "does not exist"
        path = "https://example.org/a.jpg" if kind == "url" else path
    with pytest.raises(PhotoError, match=message):
        read_photo(path)
    if kind not in ("folder",):
        with pytest.raises(PhotoError):
            list(frames.frames(path))


def test_a_large_transparent_picture_needs_no_second_copy(picture, monkeypatch):
    rgba = np.concatenate([picture, picture[..., :1]], axis=-1)
    whole = read_photo(encoded(rgba, "PNG"))
    monkeypatch.setattr("caphuman_jax.io.bands._PIXELS", 7 * 60)
    np.testing.assert_array_equal(read_photo(encoded(rgba, "PNG")), whole)


def test_cmyk_with_a_profile(picture, monkeypatch):
    """No CMYK profile may be shipped, so the conversion stands in for one that inverts."""
    seen = []
    monkeypatch.setattr(
        "caphuman_jax.io.color_profile._transform", lambda data, mode: seen.append((data, mode))
    )
    file = io.BytesIO()
    Image.fromarray(picture).convert("CMYK").save(file, "JPEG", icc_profile=b"cmyk")
    read_photo(file.getvalue())
    assert seen == [(b"cmyk", "CMYK")]


def test_names_for_messages_and_for_files():
    assert printable("caf\udce9\n\u202e") == "caf\\udce9\\n\\u202e"
    assert printable("é 写 🙂") == "é 写 🙂"
    assert valid_text("\udcff.jpg") == "\\udcff.jpg" and valid_text("é") == "é"


def test_one_reference_without_a_face_is_left_out(caplog):
    def measure(photo):
        if photo == "none.jpg":
            raise NoFaceError("none.jpg shows no face")
        if photo == "missing.jpg":
            raise PhotoError("does not exist") from FileNotFoundError()
        return photo

    assert measure_references(["a", "none.jpg", "b"], measure) == ("a", "b")
    assert "left out: none.jpg shows no face" in caplog.text
    for photos in (["none.jpg"], ["none.jpg", "none.jpg"], ["a", "missing.jpg"]):
        with pytest.raises(PhotoError):
            measure_references(photos, measure)


def test_a_gif_that_was_cut_off_is_not_taken_for_whole(tmp_path, picture, caplog):
    path = tmp_path / "a.gif"
    first, *rest = [Image.fromarray(np.roll(picture, 7 * i, axis=1)) for i in range(20)]
    first.save(path, save_all=True, append_images=rest)
    assert len(list(frames.frames(path))) == 20 and not caplog.records
    data = path.read_bytes()
    for size in range(len(data) // 2, len(data) // 2 + 40):
        caplog.clear()
        path.write_bytes(data[:size])
        try:
            assert 0 < len(list(frames.frames(path))) < 20 and "cut off" in caplog.text
        except PhotoError as error:
            assert "incomplete" in str(error)


def test_short_videos_are_noticed(caplog):
    frames._warn_if_short("a.mp4", 11, 20.0)
    assert "20 frames, but only 11" in caplog.text
    caplog.clear()
    for read, announced in ((20, 20.0), (19, 20.0), (20, -1.0), (20, float("nan"))):
        frames._warn_if_short("a.mp4", read, announced)
    assert not caplog.records


def test_mpo_is_read_as_its_first_picture(picture):
    data = encoded(picture, "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40))])
    assert isinstance(Image.open(io.BytesIO(data)), JpegImagePlugin.JpegImageFile)
    assert np.abs(images.read_photo(data).astype(int) - picture).mean() < 4
