"""`caphuman export`: a model folder → files for PyTorch programs."""

from __future__ import annotations


def add_arguments(parser) -> None:
    """The command's options."""
    parser.add_argument("model", metavar="MODEL", help="a model folder, or a shipped model's name")
    parser.add_argument("out", metavar="OUT", help="ldm: a file .safetensors; diffusers: a folder")
    parser.add_argument("--to", choices=("ldm", "diffusers"), required=True,
                        help="ldm: one file with caphuman.ckpt's names; diffusers: a folder for StableDiffusionPipeline")
    parser.add_argument("--dtype", choices=("keep", "float32", "float16", "bfloat16"), default="keep", help="default: each weight as it is stored")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(args) -> None:
    """Writes and prints the report."""
    from caphuman_jax.weights.exporter import export_model

    print("\n".join(export_model(args.model, args.out, args.to, dtype=args.dtype, overwrite=args.overwrite)))
