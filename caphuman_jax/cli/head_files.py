"""The files of `caphuman head`."""

from __future__ import annotations

from pathlib import Path

from caphuman_jax.errors import CapHumanError
from caphuman_jax.io import atomic


def write_file(path: Path, how) -> None:
    """Write a file whole or not at all; `how` writes the path that it is given."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(path) as part:
            how(part)
    except OSError as error:
        raise CapHumanError(f"{path} cannot be written ({error.strerror or error})") from error


def save_png(path: Path, picture) -> None:
    from caphuman_jax.io.images import encode_png

    path.write_bytes(encode_png(picture))


def save_hints(path: Path, hints) -> None:
    import numpy as np

    with open(path, "wb") as file:  # NumPy would add .npz to a path
        np.savez_compressed(file, hints=hints)


def scaled(picture, size):
    import numpy as np
    from PIL import Image

    return (
        picture
        if picture.shape[1::-1] == tuple(size)
        else np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    )


def save_gif(path: Path, pictures, fps: float, dither: bool = True) -> None:
    """Pictures (N, H, W, 3) uint8 as an endless GIF, one palette for all of them; skin alone needs
    no dithering.
    """
    import numpy as np
    from PIL import Image

    some = pictures[:: max(1, len(pictures) // 8)]
    palette = Image.fromarray(np.concatenate(list(some), axis=0)).quantize(
        255, Image.Quantize.MEDIANCUT
    )
    method = Image.Dither.FLOYDSTEINBERG if dither else Image.Dither.NONE
    pages = [
        Image.fromarray(picture).quantize(palette=palette, dither=method) for picture in pictures
    ]
    pages[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pages[1:],
        duration=max(20, round(1000 / fps)),
        loop=0,
        optimize=False,
    )
