"""`caphuman export`: a model folder → files for PyTorch programs; the work folder of a training run
→ a model folder, or those files.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path


def add_arguments(parser) -> None:
    """The command's options."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model folder, a shipped model's name, or the work folder of `caphuman train`",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="with --to ldm a .safetensors file, otherwise a folder",
    )
    parser.add_argument(
        "--to",
        choices=("model", "ldm", "diffusers"),
        help="model: a model folder, from a training run (the default there); ldm: one file with "
        "caphuman.ckpt's names; diffusers: a folder "
        "for StableDiffusionPipeline",
    )
    parser.add_argument(
        "--step",
        default="newest",
        metavar="newest|best|N",
        help="which checkpoint of a training run: newest (default), best, or a number",
    )
    parser.add_argument(
        "--dtype",
        choices=("keep", "float32", "float16", "bfloat16"),
        default="keep",
        help="type of the weights; default: as they are stored",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(args) -> None:
    """Writes and prints the report."""
    # Orbax warns that a folder which is only read is not written to.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    from caphuman_jax.io import buckets

    with buckets.local_folder(str(args.model), keep=lambda name: False) as (model, _):
        _export(args, model)


def _export(args, model: Path) -> None:
    from caphuman_jax.errors import ModelFolderError, SettingError
    from caphuman_jax.training.run import export_run
    from caphuman_jax.training.run_folder import is_run
    from caphuman_jax.weights.exporter import export_model

    if not is_run(str(model)):
        if args.to in (None, "model"):
            raise SettingError("--to ldm or --to diffusers says what to make of a model folder")
        print(
            "\n".join(
                export_model(
                    str(model), args.out, args.to, dtype=args.dtype, overwrite=args.overwrite
                )
            )
        )
    elif args.to in (None, "model"):
        if Path(args.out).exists() and not args.overwrite:
            raise ModelFolderError(
                f"{args.out} exists already; choose another folder or add --overwrite"
            )
        print("\n".join(export_run(str(model), args.out, args.step)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            export_run(str(model), Path(folder) / "model", args.step)
            print(
                "\n".join(
                    export_model(
                        Path(folder) / "model",
                        args.out,
                        args.to,
                        dtype=args.dtype,
                        overwrite=args.overwrite,
                    )
                )
            )
