"""The flags of `SamplingParams`, made from its fields; and those of a model, shared by verbs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from caphuman_jax.diffusion.sampling_params import FIELDS

if TYPE_CHECKING:
    from caphuman_jax.pipeline.pipeline import Pipeline


def add_sampling_arguments(group: argparse._ArgumentGroup) -> None:
    """A flag for each field of `SamplingParams`; what is not given is None."""
    for name, spec in FIELDS.items():
        if spec.flag:
            options: dict[str, Any] = {"help": spec.help, "metavar": spec.metavar}
            if spec.kind == "switch":
                options = {"help": spec.help, "action": argparse.BooleanOptionalAction}
                group.add_argument(f"--{name.replace('_', '-')}", default=None, **options)
                continue
            if spec.choices:
                options |= {"choices": spec.choices}
            if spec.kind == "interval":
                options |= {"nargs": 2}
            elif spec.metavar is None and not spec.choices:
                options["metavar"] = {"int": "N", "float": "X", "text": "TEXT"}[spec.kind]
            group.add_argument(f"--{name.replace('_', '-')}", **options)


def sampling_given(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that the command line gives."""
    values = {name: getattr(args, name) for name, spec in FIELDS.items() if spec.flag}
    return {name: value for name, value in values.items() if value is not None}


def check_files(args: argparse.Namespace) -> None:
    """Check --model, --lora and --embedding without loading a network's weights.

    Raises:
        CapHumanError: a file that is missing, is of another kind, or was made for another model.
    """
    from caphuman_jax.models import registry
    from caphuman_jax.weights import embeddings, lora, model_folder  # bring JAX

    folder = model_folder.find_model(args.model)
    config = model_folder.read_config(folder)
    there = model_folder.file_entries(folder)
    networks = registry.abstract(config)
    networks |= registry.abstract(config, only=[n for n in registry.OPTIONAL if n in there])
    shapes = {name: shape for name, (_, shape) in networks.items()}
    for name, shape in shapes.items():
        model_folder.check_network(folder, name, shape)
    for text in args.lora or ():
        path, strength = lora.parse(text)
        lora.check(shapes, [(lora.read_file(path, config), strength)])
    for text in args.embedding or ():
        path, word = embeddings.parse(text)
        embeddings.read_file(path, config, word)


def use_files(pipe: Pipeline, args: argparse.Namespace) -> None:
    """Add the files of --lora and --embedding to a model. Raises CapHumanError."""
    from caphuman_jax.weights import embeddings, lora  # bring JAX

    if args.lora:
        pipe.use_loras([lora.parse(text) for text in args.lora])
    pipe.add_embeddings([embeddings.parse(text) for text in args.embedding or ()])


def add_model_arguments(group: argparse._ArgumentGroup, batch: str) -> None:
    """--model, --lora, --embedding, --dtype, --batch and --memory; `batch`: help of --batch."""
    group.add_argument(
        "--model",
        default="mini",
        metavar="NAME|FOLDER",
        help="a shipped model or a model folder, default mini",
    )
    group.add_argument(
        "--lora",
        metavar="FILE[:S[,T]]",
        action="append",
        help="a LoRA file at strength S (default 1), or S for the UNet and T for the text encoder; "
        "may be repeated",
    )
    group.add_argument(
        "--embedding",
        metavar="FILE[=WORD]",
        action="append",
        help=(
            "a textual-inversion file; WORD stands for it in prompts (default: the word "
            "that the file names); may be repeated"
        ),
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="default: float32 on a CPU, bfloat16 elsewhere",
    )
    group.add_argument("--batch", type=int, metavar="B", help=batch)
    group.add_argument(
        "--memory",
        choices=("full", "normal", "low", "least"),
        default="normal",
        help=(
            "full: weights in float32; normal: in the compute dtype (default); low: "
            "networks that read photos stay in the computer's memory, one picture at a "
            "time; least: also 8-bit weights"
        ),
    )
