"""The arguments for the head that is wanted, shared by `caphuman generate` and `caphuman head`."""

from __future__ import annotations

import argparse
from typing import Any

from caphuman_jax.errors import SettingError
from caphuman_jax.io import json_reader
from caphuman_jax.io.files import read_regular

OPTIONS = (
    "face",
    "head_from",
    "numbers",
    "take",
    "framing",
    "head_face",
    "yaw",
    "pitch",
    "roll",
    "expression",
    "light",
    "position",
)
OF_THE_PHOTO = ("take", "framing", "head_face")
"""Those that say how a head photo is used."""
_LARGEST_LIGHT = 2**20  # bytes


def add_head_arguments(
    parser: argparse.ArgumentParser, take: str = "position,pose"
) -> argparse._ArgumentGroup:
    """Adds the group of arguments and returns it; what is not given is None. `take`: the default of
    --take, for its help.
    """
    head = parser.add_argument_group("head (default: as in the reference photo)")
    head.add_argument(
        "--head-from",
        metavar="PHOTO",
        help="take the head from this photo",
    )
    head.add_argument(
        "--numbers",
        metavar="FILE.json",
        help=(
            "a head.json of `caphuman head`, or any of its entries; the options below override it"
        ),
    )
    head.add_argument(
        "--take",
        default=None,
        metavar="PARTS",
        help=(
            "what is taken from the head of --head-from: position,pose,expression,lighting "
            f"or all; default {take}"
        ),
    )
    head.add_argument(
        "--framing",
        choices=("head", "photo"),
        default=None,
        help=(
            "head: crop the photo of --head-from around its head (default); photo: keep the "
            "head at its place in that photo"
        ),
    )
    head.add_argument(
        "--head-face", type=int, metavar="N", help="number of the face in the photo of --head-from"
    )
    head.add_argument(
        "--yaw", type=float, metavar="DEG", help="positive: towards the right of the picture"
    )
    head.add_argument("--pitch", type=float, metavar="DEG", help="positive: up")
    head.add_argument("--roll", type=float, metavar="DEG", help="positive: clockwise")
    head.add_argument(
        "--expression",
        metavar="NAME=W,…",
        help="ARKit names and presets with weights from 0 to 1: smile=0.8,jawOpen=0.3; "
        "presets: neutral, smile, laugh, surprised, sad, angry, wink, eyes-closed, mouth-open, "
        "kiss",
    )
    head.add_argument(
        "--light",
        metavar="LIGHT",
        help=(
            "soft, front, left, right, top, bottom, top-left, top-right or back, with a "
            "strength from 0 to 1 (left=0.8); or X,Y,Z,STRENGTH, a direction to the right, "
            "up and towards the viewer; or 27 SH coefficients (9 × red, green, blue) as a "
            "list or a JSON file"
        ),
    )
    head.add_argument(
        "--position",
        metavar="X,Y,SIZE",
        help=(
            "center of the head (X in widths of the picture, Y in heights) and height of "
            "the face (in heights): 0.5,0.5,0.5"
        ),
    )

    return head


def head_target(args: argparse.Namespace, numbers: str | None = None) -> dict[str, Any]:
    """The fields of the `HeadTarget` that the arguments ask for; `numbers` is a file of them.
    Raises SettingError, HeadError.
    """
    head = {
        "photo": args.head_from,
        "take": args.take,
        "framing": args.framing,
        "photo_face": args.head_face,
        "yaw": args.yaw,
        "pitch": args.pitch,
        "roll": args.roll,
        "expression": args.expression,
        "light": light(args.light),
        "position": None if args.position is None else floats(args.position, "--position", ","),
    }
    given = {name: value for name, value in head.items() if value is not None}
    return with_numbers(given, numbers)


def with_numbers(head: dict[str, Any], path: str | None) -> dict[str, Any]:
    """Fields of a `HeadTarget`, in which those that are missing come from a file of numbers.
    Raises SettingError, HeadError.
    """
    photo = head.get("photo")
    if photo is not None and photo.lower().endswith(".json"):
        raise SettingError(f"{photo} is not a photo; give the numbers of a head with --numbers")
    if path is None:
        return head
    from caphuman_jax.head import head_json  # brings JAX, which `--help` does not need

    numbers = head_json.read(path)
    if "position" in head:
        numbers = {name: numbers[name] for name in numbers if name not in head_json.PLACE}
    return numbers | head


def light(text: str | None):
    """--light as a list, where it is a JSON list, or a JSON file of one or with an entry "light";
    otherwise unchanged.
    """
    if text is None:
        return None
    source = text.strip()
    if not source.startswith("["):
        if not source.lower().endswith(".json"):
            return text
        try:
            source = read_regular(source, _LARGEST_LIGHT).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise SettingError(f"--light {text} cannot be read ({error})") from error
    try:
        found = json_reader.parse(source)
        found = found["light"] if isinstance(found, dict) else found
        flat = [
            float(number) for row in found for number in (row if isinstance(row, list) else [row])
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise SettingError(f"--light {text[:60]} holds no list of numbers ({error})") from error
    if len(flat) != 27:
        raise SettingError(
            f"--light takes 27 numbers (9 functions × red, green, blue), not {len(flat)}"
        )
    return [flat[i : i + 3] for i in range(0, 27, 3)]


def floats(text: str, option: str, separator: str) -> list[float]:
    """ "0.5,0.4,0.6" → the numbers. Raises SettingError."""
    try:
        return [float(part) for part in text.split(separator)]
    except ValueError:
        raise SettingError(
            f"{option} takes numbers separated by {separator!r}, not {text!r}"
        ) from None
