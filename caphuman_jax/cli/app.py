"""The command `caphuman`: generate, identity, evaluate, prepare, inspect, train and others.

Only what the chosen subcommand needs is imported, so that help comes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from caphuman_jax.cli import head_arguments
from caphuman_jax.errors import CapHumanError
from caphuman_jax.version import __version__

# Subcommands of other rooms: a module with add_arguments(parser) and run(args), imported when it is
# chosen.
_DELEGATED = {
    "evaluate": (
        "caphuman_jax.cli.evaluate",
        "measure a model on photos: face found, identity, pose, expression",
    ),
    "head": (
        "caphuman_jax.cli.head",
        "show and edit a head: numbers, hints, turntable, OBJ, sequences; makes no pictures",
    ),
    "identity": (
        "caphuman_jax.cli.identity",
        "photos of a person to a file that takes their place",
    ),
    "import": (
        "caphuman_jax.cli.import_weights",
        "weight files (caphuman.ckpt, SD1.5, VAE, LoRA …) to a model folder",
    ),
    "compile": (
        "caphuman_jax.cli.compile",
        "compile the training step and the sampler for TPUs that are not at hand: memory, speed "
        "limits",
    ),
    "export": ("caphuman_jax.cli.export", "a model folder to files for PyTorch programs"),
    "inspect": (
        "caphuman_jax.cli.inspect",
        "what records hold: counts, histograms, a contact sheet; checks every record",
    ),
    "prepare": ("caphuman_jax.cli.prepare", "photos to records for training"),
    "sample": (
        "caphuman_jax.cli.sample",
        "make the pictures of a file of jobs, on all devices and any number of machines",
    ),
    "train": ("caphuman_jax.cli.train", "train a model"),
}
_FAILED, _INTERRUPTED = 2, 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        self.exit(_FAILED, f"caphuman: error: {message}; see {self.prog} --help\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 for an error that is told in one line, 130 when
    interrupted, and those of train and sample.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _spare_libtpu()
    try:
        return _dispatch(arguments) or 0
    except CapHumanError as error:
        print(f"caphuman: error: {' '.join(str(error).split())}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("\ncaphuman: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # whoever read our output has left
        return _INTERRUPTED


def _spare_libtpu():
    """Where libtpu is installed only to compile with, keep JAX from looking for chips with it: that
    takes seconds and prints a page.
    """
    chips = ["/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd"]
    google = lambda path: (
        Path(path).read_text(errors="replace").strip() == "0x1ae0"
    )  # as JAX tells TPUs
    if (
        "JAX_PLATFORMS" in os.environ
        or importlib.util.find_spec("libtpu") is None
        or any(map(glob.glob, chips))
    ):
        return
    with contextlib.suppress(OSError):
        if not any(map(google, glob.glob("/sys/bus/pci/devices/*/vendor"))):
            os.environ["JAX_PLATFORMS"] = "cpu"


def _dispatch(arguments):
    args = _parser(arguments[0] if arguments else None).parse_args(_joined(arguments))
    return args.run(args)


def _parser(chosen):
    parser = _Parser(
        prog="caphuman",
        description="A photo of a face, a sentence and a head in; pictures of that person out.",
    )
    parser.add_argument("--version", action="version", version=f"caphuman {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_generate(
        commands.add_parser(
            "generate",
            help="make pictures of the person in a photo",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=_EXAMPLES,
        )
    )
    for name, (module, text) in _DELEGATED.items():
        command = commands.add_parser(name, help=text)
        if name == chosen:
            module = importlib.import_module(module)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


_EXAMPLES = """examples:
  caphuman generate --reference me.jpg --prompt "a photo of a smiling person" --yaw 20 --expression smile=0.8
  caphuman generate --reference me.jpg --prompt "a portrait photo" --head-from other.jpg --take pose,expression --num 4
  caphuman generate --person ref=me.jpg,yaw=15 --person ref=you.jpg,yaw=-15,expression=smile:0.8 --prompt "two people"
  caphuman generate --reference me.jpg --prompt "a photo" --sampler dpmpp_2m --steps 12
  caphuman generate --repeat out/picture_02.png --reference me.jpg"""


def _add_generate(parser):
    parser.set_defaults(run=_generate)
    parser.add_argument(
        "--reference",
        metavar="PHOTO",
        nargs="+",
        help="photo of the person, or several, or an identity file",
    )
    parser.add_argument(
        "--photos",
        choices=("average", "stack"),
        default=None,
        help="several photos of the person: their identity tokens are averaged (default), or all "
        "of them given",
    )
    parser.add_argument(
        "--person",
        metavar="ref=PHOTO,…",
        action="append",
        help="one of several people, once for each, instead of --reference and the options of the "
        "head: ref=PHOTO (again for more "
        "photos), face=N, head=PHOTO, take=pose+expression, framing=photo, yaw=DEG, pitch=DEG, "
        "roll=DEG, "
        "expression=smile:0.8+jawOpen:0.3, light=left:0.8, position=X/Y/SIZE; without a position "
        "they stand side by side",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what the picture shows")
    parser.add_argument("--negative", metavar="TEXT", help="what the picture does not show")
    parser.add_argument(
        "--repeat",
        metavar="PICTURE",
        help="make this picture again: prompt, head and settings are read from the file",
    )
    parser.add_argument(
        "--face", type=int, metavar="N", help="which face of the photo, 0 the largest"
    )

    head_arguments.add_head_arguments(parser)

    how = parser.add_argument_group("how")
    how.add_argument("--seed", type=int, help="default 0")
    how.add_argument(
        "--num", type=int, help="pictures, default 1; each depends on the seed and its number alone"
    )
    how.add_argument(
        "--sampler",
        metavar="NAME",
        help="ddim, dpmpp_2m, dpmpp_2m_karras, euler_a, unipc or lcm; default: the model's own",
    )
    how.add_argument("--steps", type=int, help="default: the model's own")
    how.add_argument(
        "--eta",
        type=float,
        help="noise put back at each step of ddim, 0 to 1 (as DDPM); default: the model's own",
    )
    how.add_argument(
        "--guidance", type=float, help="how much the prompt counts; default: the model's own"
    )
    how.add_argument(
        "--identity-guidance",
        type=float,
        metavar="G",
        help="the same for the identity, default 1: as trained",
    )
    how.add_argument(
        "--head-guidance",
        type=float,
        metavar="G",
        help="the same for the head, default 1: as trained",
    )
    how.add_argument(
        "--guidance-rescale",
        type=float,
        metavar="PHI",
        help="0 to 1: tames the contrast of strong guidance; default: the model's own",
    )
    how.add_argument("--strength", type=float, help="how much the face and head count, default 1")
    how.add_argument(
        "--identity-until",
        type=float,
        metavar="T",
        help="identity is used from timestep T (of 999) down; 0, the default: always",
    )
    how.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("A", "B"),
        help="guidance only between timesteps A and B (of 999 … 0); the other steps cost half",
    )
    how.add_argument(
        "--reuse",
        type=int,
        metavar="N",
        help="run the deep part of the UNet at every N-th step only and reuse what it made; "
        "default 1",
    )
    how.add_argument(
        "--control",
        metavar="NAME=PICTURE[:S]",
        action="append",
        help="a ControlNet of the model, its picture and its strength S (default 1); the picture "
        "`landmarks` is the wanted heads' 68 "
        "landmarks as dots",
    )
    how.add_argument("--size", metavar="SIDE|WxH", help="pixels; default: the model's own")
    how.add_argument(
        "--gate",
        choices=("hard", "soft"),
        help="CapFace's mask: cut at one half (default), or multiplied",
    )
    how.add_argument(
        "--model",
        default="mini",
        metavar="NAME|FOLDER",
        help="a shipped model or a model folder, default mini",
    )
    how.add_argument(
        "--lora",
        metavar="FILE[:S[,T]]",
        action="append",
        help="a LoRA file at strength S (default 1), or S for the UNet and T for the text encoder; "
        "once for each",
    )
    how.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="default: float32 on a CPU, bfloat16 elsewhere",
    )
    how.add_argument(
        "--batch",
        type=int,
        metavar="B",
        help="pictures at a time; default: 1 on a CPU and with little memory, 8 elsewhere",
    )
    how.add_argument(
        "--memory",
        choices=("full", "normal", "low", "least"),
        default="normal",
        help="full: weights in float32; normal: in the compute dtype; low: networks that look at "
        "photos wait in the computer's memory, "
        "one picture at a time; least: also 8-bit weights",
    )

    output = parser.add_argument_group("output")
    output.add_argument("--out", default="out", metavar="DIR", help="default: out")
    output.add_argument(
        "--overwrite",
        action="store_true",
        help="start at picture_00.png even if it exists; otherwise numbers go on",
    )


def _generate(args):
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "2"
    )  # XLA's own messages are not for the person at the keyboard
    from caphuman_jax.cli.generate import run

    return run(args)


def _joined(arguments):
    """`--light -1,0,0,1` as `--light=-1,0,0,1` and `--config.NAME=VALUE` as
    `--override=NAME=VALUE`, which argparse would both misread.
    """
    joined = []
    for argument in arguments:
        if argument.startswith("--config."):
            argument = "--override=" + argument.removeprefix("--config.")
        if (
            joined
            and joined[-1] in ("--light", "--position", "--expression")
            and argument[:1] == "-"
            and argument[1:2] in set("0123456789.")
        ):
            joined[-1] += "=" + argument
        else:
            joined.append(argument)
    return joined


if __name__ == "__main__":
    sys.exit(main())
