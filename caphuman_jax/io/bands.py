"""Large pictures, converted and shrunk a band of rows at a time: beside the picture itself, only
the small result and one band take memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from PIL import Image

_PIXELS = 1 << 20  # of a band


def converted(
    picture: Image.Image, size: tuple[int, int], convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """An RGB picture, shrunk to `size` by averaging.

    Args:
        picture: loaded, in any mode.
        size: (width, height), at most the picture's own.
        convert: a band of its rows → the same in RGB. It has the picture's `info`.
    """
    result = Image.new("RGB", size)
    scale = picture.height / size[1]
    rows = max(1, int(_PIXELS / picture.width / scale))
    for top in range(0, size[1], rows):
        bottom = min(top + rows, size[1])
        first, last = top * scale, min(bottom * scale, picture.height)
        begin, end = int(first), min(-int(-last // 1), picture.height)
        band = convert(_rows(picture, begin, end))
        if size != picture.size:
            box = (0, first - begin, picture.width, min(last - begin, end - begin))
            band = band.resize(
                (size[0], bottom - top), Image.Resampling.BOX, box=box, reducing_gap=2.0
            )
        result.paste(band, (0, top))
    return result


def each(picture: Image.Image) -> Iterator[Image.Image]:
    """The bands of a loaded picture, from the top."""
    rows = max(1, _PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        yield _rows(picture, top, min(top + rows, picture.height))


def _rows(picture: Image.Image, begin: int, end: int) -> Image.Image:
    if (begin, end) == (0, picture.height):
        return picture
    band = picture.crop((0, begin, picture.width, end))
    band.info = picture.info.copy()
    return band
