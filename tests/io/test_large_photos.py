"""Large photos: what they take beside the decoded picture, and what is refused by its header."""

import io

import numpy as np
import pytest
from fuzz import engine
from PIL import Image

from caphuman_jax.errors import PhotoError
from caphuman_jax.io import bands, frames, images, picture_formats
from caphuman_jax.io.images import read_photo


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


LARGE = {
    "turned": lambda: ("RGBA", {"exif": turned()}),
    "16 bits": lambda: ("I;16", {}),
    "grey with alpha": lambda: ("LA", {}),
    "grey": lambda: ("L", {}),
}


@pytest.mark.parametrize("kind", LARGE)
def test_only_the_decoded_picture_is_kept_whole(kind, monkeypatch):
    """30 megapixels, of which four bytes each are 120 MB."""
    mode, options = LARGE[kind]()
    data = encoded(Image.new(mode, (6000, 5000)), "PNG", compress_level=1, **options)
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000_000)
    read_photo(encoded(Image.new("RGBA", (20, 20)), "PNG"))  # imports what it needs
    with engine.limited_memory(160 << 20):
        found = read_photo(data)
    assert found.shape == ((1095, 912, 3) if kind == "turned" else (912, 1095, 3))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("orientation", [1, 5, 8])
def test_bands_give_what_the_whole_gives(mode, orientation, monkeypatch):
    y, x = np.mgrid[:83, :211]
    noise = np.random.default_rng(0).integers(0, 30, (83, 211))
    pixels = np.stack([x, 3 * y, 200 - x // 2, 55 + x - y], axis=-1) // 2 + noise[..., None]
    if mode == "I;16":
        picture = Image.fromarray((pixels[..., 0] * 257).astype(np.uint16))
    elif mode == "F":
        picture = Image.fromarray((pixels[..., 0] / 255).astype(np.float32))
    else:
        picture = Image.fromarray(pixels.astype(np.uint8)).convert(
            "RGB" if mode != "RGBA" else mode
        )
        picture = picture.convert(mode)
    picture.info["exif"] = (lambda exif: (exif.update({0x0112: orientation}), exif.tobytes())[1])(
        Image.Exif()
    )
    monkeypatch.setattr(images, "MAX_PIXELS", 2500)
    whole = read_photo(picture).astype(int)
    monkeypatch.setattr(bands, "_PIXELS", 2000)
    banded = read_photo(picture).astype(int)
    assert banded.shape == whole.shape == ((79, 31, 3) if orientation > 4 else (31, 79, 3))
    assert np.abs(banded - whole).max() <= 1


@pytest.mark.parametrize("size", [(16, 20_000), (40_000, 17)])
def test_strips_are_refused_before_they_are_decoded(size):
    data = encoded(Image.new("L", size), "PNG")
    with pytest.raises(PhotoError, match=f"strip of {size[0]}x{size[1]} pixels"):
        read_photo(data[: len(data) - 30])


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000", "TIFF"])
def test_formats_that_keep_copies_have_limits_of_their_own(kind, monkeypatch):
    options = {"exif": turned()} if kind == "TIFF" else {}
    data = encoded(Image.new("RGB", (40, 50)), kind, **options)
    read_photo(data)
    monkeypatch.setattr(picture_formats, "_COPIES_LIMIT", {kind: 1999})
    monkeypatch.setattr(picture_formats, "_TURNED_TIFF_LIMIT", 1999)
    with pytest.raises(PhotoError, match="is too large"):
        read_photo(data)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "mp4"])
def test_large_frames_are_refused(kind, tmp_path, monkeypatch):
    path = tmp_path / f"a.{kind}"
    if kind == "mp4":
        path.write_bytes((engine.CORPUS / "video" / "mp4").read_bytes())
    else:
        pages = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    assert len(list(frames.frames(path))) >= 2
    monkeypatch.setattr(frames, "_MOST_PIXELS", 255)
    with pytest.raises(PhotoError, match="shrink its frames"):
        list(frames.frames(path))
