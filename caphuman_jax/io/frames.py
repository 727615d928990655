"""The pictures of a video, a GIF, a folder of photos or a list of photos, one after the other."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from caphuman_jax.errors import HeadError, PhotoError
from caphuman_jax.io import checks
from caphuman_jax.io.files import open_regular, printable
from caphuman_jax.io.images import DAMAGE, PhotoSource, read_photo
from caphuman_jax.io.picture_formats import (
    open_picture,
    photos_in,
    picture_format,
    read_head,
    reason,
)

log = logging.getLogger("caphuman_jax")

FPS = 25.0  # of photos in a folder and of tables, which do not say
_LEAST_FPS = 0.01  # a frame of a GIF is shown for 655 seconds at most
_ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")
_MOST_PIXELS = 36_000_000  # of a frame of theirs or of a video: 8K has 35 million

Source = str | os.PathLike | Sequence


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a sequence: image (H, W, 3) uint8 RGB, what to call it, and its time in
    seconds. A photo that cannot be read is a gray picture with a `problem`.
    """

    name: str
    image: np.ndarray
    time: float
    problem: str | None = None


def frames(source: Source, every: int = 1, fps: float | None = None) -> Iterator[Frame]:
    """Read the frames of a sequence.

    Args:
        source: A video, a GIF, a folder of photos (by name, 2 before 10) or a list of photos.
        every: Take every N-th frame.
        fps: Frames per second where the source does not say, at most 1000.

    Raises:
        PhotoError: The source cannot be read or holds no frames.
        HeadError: `every` or `fps` is out of range.
    """
    check_rate(every, fps)
    checks.path("the sequence", source, "a video or a folder of photos", PhotoError)
    if not isinstance(source, (str, os.PathLike)) or Path(source).is_dir():
        photos = (
            _photos_of(Path(source)) if isinstance(source, (str, os.PathLike)) else list(source)
        )
        if not photos:
            raise PhotoError("the sequence is empty")
        for i, photo in enumerate(photos[::every]):
            named = (
                printable(os.path.basename(photo))
                if isinstance(photo, (str, os.PathLike))
                else f"photo {i * every}"
            )
            yield _of_photo(named, photo, i * every / (fps or FPS))
        return
    path = Path(source)
    name = printable(str(path))
    if not os.path.exists(path):  # `Path.exists` raises OSError for a name that is too long
        raise PhotoError(
            f"{name} does not exist; name a table, a video, a GIF or a folder of photos"
        )
    try:
        found = picture_format(read_head(path))
    except OSError as error:
        raise PhotoError(f"{name} cannot be read ({reason(error)})") from error
    if found is None:
        yield from _video(path, name, every, fps)
        return
    try:
        with open_picture(path, name) as picture:
            yield from _pages(picture, path, name, every, fps)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise PhotoError(
            f"{name} is damaged or incomplete ({reason(error)}); fetch or save it again"
        ) from error


def _of_photo(name: str, photo: PhotoSource, time: float) -> Frame:
    """One photo of several: another one that cannot be read must not end them all."""
    try:
        return Frame(name, read_photo(photo), time)
    except PhotoError as error:
        return Frame(name, np.full((64, 64, 3), 128, np.uint8), time, str(error))


def check_rate(every: int, fps: float | None) -> None:
    """Raises HeadError where one of them is out of range, see `frames`."""
    if every < 1:
        raise HeadError(f"--every must be at least 1, not {every}")
    if fps is not None and not _LEAST_FPS <= fps <= 1000:
        raise HeadError(f"frames per second must lie between {_LEAST_FPS:g} and 1000, not {fps:g}")


def _photos_of(folder: Path) -> list[Path]:
    digits = lambda path: [
        (0, int(part), "") if part.isdecimal() else (1, 0, part.lower())
        for part in re.split(r"(\d+)", path.name)
    ]
    photos = sorted(photos_in(folder), key=digits)
    if not photos:
        raise PhotoError(f"there are no photos in {folder}")
    return photos


def _pages(picture, path, name, every, fps):
    """Frames of a GIF or another picture of several pages."""
    time = 0.0
    bounded = picture.format in _ANIMATIONS and getattr(picture, "is_animated", False)
    for i, page in enumerate(ImageSequence.Iterator(picture)):
        if bounded:  # each, since the frames of a GIF may grow
            _check_pixels(page.width * page.height, name)
        if i % every == 0:
            yield Frame(f"frame {i}", read_photo(page, f"frame {i} of {name}"), time)
        time += 1 / fps if fps else (page.info.get("duration") or 1000 / FPS) / 1000
    if picture.format == "GIF" and not _ends_as_gif(path):
        log.warning("%s is cut off: its end is missing after frame %d", name, i)


def _check_pixels(count, name):
    if count > _MOST_PIXELS:
        raise PhotoError(
            f"{name} is too large; shrink its frames to under {_MOST_PIXELS // 10**6} megapixels"
        )


def _ends_as_gif(path: Path) -> bool:
    with open_regular(path) as file:
        file.seek(-min(64, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read().rstrip(b"\0\r\n ").endswith(b";")


def _video(path, name, every, fps):
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise PhotoError(
                f"{name} is not a table, picture or video that can be read; save it as MP4, GIF or "
                f"a folder of photos"
            )
        sides = video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)
        _check_pixels(sides[0] * sides[1], name)
        rate = fps or video.get(cv2.CAP_PROP_FPS)
        rate = rate if np.isfinite(rate) and rate > 0 else FPS
        i = 0
        while video.grab():
            if i % every == 0:
                well, image = video.retrieve()
                if not well or image is None or not image.size:  # OpenCV calls an empty one well
                    break
                yield Frame(f"frame {i}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB), i / rate)
            i += 1
        if i == 0:
            raise PhotoError(f"{name} is damaged: no frame of it can be read")
        _warn_if_short(name, i, video.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        video.release()


def _warn_if_short(name: str, read: int, announced: float) -> None:
    """Containers round their number of frames, so one or two missing ones are not reported."""
    if np.isfinite(announced) and read < announced - max(2, 0.02 * announced):
        log.warning(
            "%s says that it has %d frames, but only %d can be read: it is cut off or damaged",
            name,
            int(announced),
            read,
        )
