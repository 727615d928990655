"""The pictures of a video, a GIF, a folder of photos or a list of photos, one after the other."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from caphuman_jax.errors import HeadError, PhotoError
from caphuman_jax.io.images import PHOTO_ENDINGS, read_photo

FPS = 25.0  # of photos in a folder and of tables, which do not say

Source = str | os.PathLike | Sequence


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a sequence: image (H, W, 3) uint8 RGB, what to call it, and its time in
    seconds.
    """

    name: str
    image: np.ndarray
    time: float


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
    if every < 1:
        raise HeadError(f"every how many frames must be at least 1, not {every}")
    if fps is not None and not 0 < fps <= 1000:
        raise HeadError(f"frames a second must lie between 0 and 1000, not {fps:g}")
    if not isinstance(source, (str, os.PathLike)) or Path(source).is_dir():
        photos = (
            _photos_of(Path(source)) if isinstance(source, (str, os.PathLike)) else list(source)
        )
        if not photos:
            raise PhotoError("the sequence is empty")
        for i, photo in enumerate(photos[::every]):
            named = (
                os.path.basename(photo)
                if isinstance(photo, (str, os.PathLike))
                else f"photo {i * every}"
            )
            yield Frame(named, read_photo(photo), i * every / (fps or FPS))
        return
    path = Path(source)
    if not path.exists():
        raise PhotoError(
            f"{path} does not exist; name a table, a video, a GIF or a folder of photos"
        )
    try:
        with Image.open(path) as picture:
            if picture.format != "MPEG":  # known by its first bytes only
                yield from _pages(picture, path, every, fps)
                return
    except UnidentifiedImageError:
        pass
    yield from _video(path, every, fps)


def _photos_of(folder: Path) -> list[Path]:
    digits = lambda path: [
        (0, int(part), "") if part.isdigit() else (1, 0, part.lower())
        for part in re.split(r"(\d+)", path.name)
    ]
    photos = sorted(
        (
            path
            for path in folder.iterdir()
            if path.suffix.lower() in PHOTO_ENDINGS and not path.name.startswith(".")
        ),
        key=digits,
    )
    if not photos:
        raise PhotoError(f"there are no photos in {folder} ({', '.join(sorted(PHOTO_ENDINGS))})")
    return photos


def _pages(picture, path, every, fps):
    """Frames of a GIF or another picture of several pages."""
    time = 0.0
    try:
        for i, page in enumerate(ImageSequence.Iterator(picture)):
            if i % every == 0:
                yield Frame(
                    f"frame {i}",
                    read_photo(page.convert("RGBA" if "transparency" in page.info else "RGB")),
                    time,
                )
            time += 1 / fps if fps else (page.info.get("duration") or 1000 / FPS) / 1000
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise PhotoError(
            f"{path} is damaged or incomplete ({error}); fetch or save it again"
        ) from error


def _video(path, every, fps):
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise PhotoError(
                f"{path} is not a table, picture or video that can be read; save it as MP4, GIF or "
                f"a folder of photos"
            )
        rate = fps or video.get(cv2.CAP_PROP_FPS)
        rate = rate if np.isfinite(rate) and rate > 0 else FPS
        i = 0
        while video.grab():
            if i % every == 0:
                well, image = video.retrieve()
                if not well:
                    break
                yield Frame(f"frame {i}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB), i / rate)
            i += 1
        if i == 0:
            raise PhotoError(f"{path} is damaged: no frame of it can be read")
    finally:
        video.release()
