"""`caphuman edit`: a photo with the head in it changed, another person's face in it, or a masked
part made again.
"""

from __future__ import annotations

import argparse
from typing import Any

from caphuman_jax.cli import console, generate, head_arguments, repeat, sampling_arguments
from caphuman_jax.diffusion.sampling_params import FIELDS
from caphuman_jax.errors import SettingError

# A head that is taken from another photo stays where the edited photo's is.
_TAKE = "pose,expression"

EXAMPLES = """examples:
  caphuman edit --photo me.jpg --yaw 20 --expression smile=0.8 --light left
  caphuman edit --into team.jpg --face 2 --reference me.jpg
  caphuman edit --photo me.jpg --mask hat.png --prompt "a photo of a person with a hat" --denoise 0.8
  caphuman edit --photo room.jpg --no-person --mask wall.png --prompt "a blue wall"
  caphuman edit --repeat out/picture_00.png --photo me.jpg"""  # noqa: E501


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman edit`."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument(
        "--photo",
        "--into",
        metavar="PHOTO",
        help="the photo to edit; the result has its size, and the same pixels outside the mask",
    )
    parser.add_argument(
        "--face", type=int, metavar="N", help="number of the face in the photo, 0 the largest"
    )
    parser.add_argument(
        "--reference",
        metavar="PHOTO",
        nargs="+",
        help="put this person's face into the photo: a photo or several, or an identity file; "
        "default: the photo's own person",
    )
    parser.add_argument(
        "--reference-face", type=int, metavar="N", help="number of the face in the reference"
    )
    generate.add_combine_argument(parser, default=None)
    parser.add_argument(
        "--mask",
        metavar="auto|face|head|whole|FILE",
        help="what is repainted: auto (default): what the photo does not show, or the face with "
        "--prompt or --reference; face, head: always all of it; whole: the whole photo; FILE: the "
        "white part of a picture of the photo's size",
    )
    parser.add_argument(
        "--no-person",
        action="store_true",
        help="the repainted part shows no person; needs --mask FILE or whole",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what the edited photo shows")
    parser.add_argument(
        "--denoise",
        metavar="X",
        help=f"{FIELDS['denoise'].help}; default: 0.5, or 0.8 with --reference or --mask FILE",
    )
    parser.add_argument(
        "--repeat",
        metavar="PICTURE",
        help="make this edit again; all settings are read from its file, but not its photos",
    )
    head_arguments.add_head_arguments(parser, _TAKE)
    sampling_arguments.add_sampling_arguments(parser.add_argument_group("sampling"))
    batch = "pictures at a time; default: 1 on a CPU or with --memory low or least, else 8"
    sampling_arguments.add_model_arguments(parser.add_argument_group("model"), batch)
    generate.add_output_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Make the edits that the arguments ask for, write them, and print their paths.

    Raises:
        CapHumanError: wrong arguments, photos, masks or files.
    """
    console.quiet_libraries()
    console.check_batch(args.batch)
    console.check_writable(args.out)
    if args.photo is None:
        raise SettingError("--photo PHOTO is required: the photo that is changed")
    asked = _repeated(args) if args.repeat else _asked(args)
    generate.write_pictures(args, lambda pipe, **more: pipe.edit(**asked, **more))


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Pipeline.edit` as the command line has them."""
    head = head_arguments.head_target(args, args.numbers)
    if head.get("photo") is None:
        generate.check_head_photo_options(args)
    else:
        head.setdefault("take", _TAKE)
    mask = args.mask or "auto"
    if not (head or args.reference or args.prompt or args.no_person or args.mask):
        raise SettingError(
            "nothing to change: ask for a head (--yaw 20, --expression smile=0.8, --light "
            "left), a --reference, a --mask or a --prompt"
        )
    asked = {"photo": args.photo, "mask": mask, "face": args.face, "person": not args.no_person}
    if not args.no_person:
        asked |= {"reference": args.reference, "reference_face": args.reference_face, "head": head}
    elif head or args.reference:
        raise SettingError("--no-person takes neither a head nor --reference")
    if args.denoise is not None:
        asked["denoise"] = args.denoise
    return asked | {
        "prompt": args.prompt,
        "combine": args.combine or "mean",
        **sampling_arguments.sampling_given(args),
    }


def _repeated(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Pipeline.edit` as a picture of ours records them; its photos must be given
    again.
    """
    photos = ("head_from", "face", "head_face")
    options = (
        *sampling_arguments.sampling_given(args),
        *("prompt", "combine", "denoise", "reference_face"),
        *head_arguments.OPTIONS,
    )
    given = [name for name in options if name not in photos and getattr(args, name) is not None]
    if given:
        raise SettingError(
            f"--repeat takes its settings from the picture; leave out {generate.flag(given[0])}"
        )
    made = repeat.recorded(args.repeat)
    if "edit" not in made:
        raise SettingError(
            f"{args.repeat} is not an edited photo; repeat it with caphuman generate --repeat"
        )
    edit, people = made["edit"], made["people"]
    mask = edit["mask"]
    if not isinstance(mask, str) and args.mask is None:
        raise SettingError(f"name the mask {mask['name']} with --mask")
    asked = {
        "photo": args.photo,
        "mask": mask if isinstance(mask, str) else args.mask,
        "face": edit["photo"]["face"],
        "person": edit["person"],
        "prompt": made["prompt"],
        "combine": made["combine"],
        **{name: made[name] for name in FIELDS if name in made},
        "num_images": 1,
        "first_image": made["index"],
    }
    if not people:
        return asked
    (person,) = people
    another = person["reference"]["sha256"] != edit["photo"]["sha256"]
    if another and not args.reference:
        raise SettingError(f"name the photo of {person['reference']['name']} with --reference")
    head = repeat.repeated_head(args.repeat, person, args.head_from, "--head-from")
    if not another:
        return asked | {"head": head}
    face = person["reference"]["face"]
    return asked | {"head": head, "reference": args.reference, "reference_face": face}
