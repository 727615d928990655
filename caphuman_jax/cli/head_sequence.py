"""`caphuman head --sequence`: the heads of a video, of photos or of a table."""

from __future__ import annotations

import sys
from pathlib import Path

from caphuman_jax.cli import head_arguments
from caphuman_jax.cli.console import check_there
from caphuman_jax.cli.head_files import save_gif, save_hints, save_png, scaled, write_file
from caphuman_jax.errors import SettingError

GIF_SIDE = 256
_GIF_FRAMES = 240  # a longer sequence is thinned out in its GIF


def write_sequence(args, read, head, wanted, size) -> list[Path]:
    """Many heads: numbered hints, overlays over the frames where there are any, sequence.gif and
    sequence.json.
    """
    import json

    import numpy as np
    from tqdm import tqdm

    from caphuman_jax.head import head_json, mesh_export, sequence, visualize
    from caphuman_jax.io import frames

    frames.check_rate(args.every, args.fps)
    model, rows = read.head_model, sequence.read_table(args.sequence)
    if rows is None:
        heads, track, fps = _lent_heads(args, read, head, wanted)
    else:
        unused = [name for name in (*head_arguments.OF_THE_PHOTO, "smooth") if getattr(args, name)]
        if unused:
            raise SettingError(
                f"--{unused[0].replace('_', '-')} is for photos and videos; {args.sequence} is a "
                f"table"
            )
        heads, track, fps = (
            sequence.from_table(rows, model, wanted.apply(model, head, None)),
            None,
            args.fps or frames.FPS,
        )
    over = iter(()) if track is None else _overlays(args, model, track, size[0])

    written: list[Path] = []

    def write(name: str, how) -> None:
        write_file(args.out / name, how)
        written.append(args.out / name)

    height, width = size
    small = (max(1, round(width * GIF_SIDE / height)), GIF_SIDE)
    digits, step, gif = max(4, len(str(len(heads)))), -(-len(heads) // _GIF_FRAMES), []
    made = mesh_export.rendered(model, heads, height, width)
    for i, (hints, picture) in enumerate(
        tqdm(made, total=len(heads), unit="head", desc="rendering", file=sys.stderr)
    ):
        write(f"hints_{i:0{digits}}.png", lambda path: save_png(path, visualize.hint_strip(hints)))
        if args.npz:
            write(f"hints_{i:0{digits}}.npz", lambda path: save_hints(path, hints))
        parts = [scaled(picture, small), scaled(visualize.hint_pictures(hints)[0], small)]
        if track is not None:
            overlay = next(over)
            write(f"overlay_{i:0{digits}}.png", lambda path: save_png(path, overlay))
            parts.insert(
                0,
                scaled(overlay, (round(overlay.shape[1] * GIF_SIDE / overlay.shape[0]), GIF_SIDE)),
            )
        if i % step == 0:
            gif.append(np.concatenate(parts, axis=1))
    numbers = [
        json.dumps({"frame": i, **head_json.of(model, one, whose=False)})
        for i, one in enumerate(heads)
    ]
    paths = [args.out / "sequence.gif", args.out / "sequence.json"]
    write(paths[0].name, lambda path: save_gif(path, np.stack(gif), fps / step))
    write(
        paths[1].name,
        lambda path: path.write_text("[\n" + ",\n".join(numbers) + "\n]\n", encoding="utf-8"),
    )
    check_there(written, args.out)
    print(
        f"{len(heads)} heads: hints_{0:0{digits}}.png to hints_{len(heads) - 1:0{digits}}.png in "
        f"{args.out}",
        file=sys.stderr,
    )
    return paths


def _lent_heads(args, read, head, wanted):
    """The heads of a video or of photos, the track that they come from, and frames a second."""
    from tqdm import tqdm

    from caphuman_jax.head import sequence
    from caphuman_jax.io import frames

    with tqdm(unit="frame", desc="fitting", file=sys.stderr) as bar:
        track = sequence.fit_frames(
            args.sequence,
            read.head_model,
            face=args.head_face,
            every=args.every,
            fps=args.fps,
            head_of=read.head_of,
            progress=lambda done, total: bar.update(done - bar.n),
        )
    heads = sequence.from_track(
        track,
        read.head_model,
        head,
        take=wanted.take,
        framing=wanted.framing,
        smooth=args.smooth,
        missing=args.missing,
    )
    heads = [wanted.adjust(read.head_model, one) for one in heads]
    seconds = track.times[-1] - track.times[0]
    return heads, track, (len(heads) - 1) / seconds if seconds > 0 else frames.FPS


def _overlays(args, model, track, height):
    """The fitted heads over the frames of a video, or over the squares around the heads of photos:
    of one shape, so compiled once.
    """
    import numpy as np
    from PIL import Image, ImageOps

    from caphuman_jax.face.crop import crop_square
    from caphuman_jax.head import sequence, visualize
    from caphuman_jax.io import frames

    placed = sequence.place(track, model) if track.still else track.heads
    for head, square, frame in zip(
        placed, track.squares, frames.frames(args.sequence, args.every, args.fps)
    ):
        if not track.still:
            picture = scaled(
                frame.image, (round(frame.image.shape[1] * height / frame.image.shape[0]), height)
            )
        elif head is not None:
            center, side = square
            picture = crop_square(frame.image, center, side, height)[0]
        else:
            picture = np.asarray(ImageOps.pad(Image.fromarray(frame.image), (height, height)))
        yield picture if head is None else visualize.overlay(model, head, picture)
