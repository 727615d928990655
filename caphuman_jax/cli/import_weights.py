"""`caphuman import`: weight files → a model folder."""

from __future__ import annotations

from pathlib import Path

from caphuman_jax.head.models.registry import HEADS, SHIPPED

_DTYPES = ("keep", "float32", "float16", "bfloat16")
_PARTS = (
    "caphuman",
    "base",
    "vae",
    "clip",
    "image_encoder",
    "facenet",
    "face_parsing",
    "mtcnn",
    "deca",
    "flame",
)
"""The options that each name a part; also arguments of `importer.import_model`."""


def add_arguments(parser) -> None:
    """The command's options."""
    parser.add_argument("out", metavar="OUT", help="the model folder to make")
    parts = parser.add_argument_group(
        "sources (.ckpt, .pth, .bin, .safetensors, .msgpack; folders of diffusers, transformers "
        "and Flax; ORG/NAME of the Hugging Face hub)"
    )
    parts.add_argument(
        "--from",
        dest="folder",
        metavar="DIR",
        help=(
            "find the files in this folder by their content, down to four levels; the "
            "options below override what it finds"
        ),
    )
    parts.add_argument(
        "--caphuman",
        metavar="FILE",
        help="caphuman.ckpt: every network that makes pictures; photos also need --facenet",
    )
    parts.add_argument(
        "--base",
        metavar="FILE|DIR",
        help="another Stable Diffusion 1: its UNet, VAE and text encoder",
    )
    parts.add_argument("--vae", metavar="FILE|DIR", help="another VAE")
    parts.add_argument(
        "--clip",
        metavar="FILE|DIR",
        help="CLIP ViT-L/14: text encoder, and image encoder if the files hold it",
    )
    parts.add_argument("--image-encoder", metavar="FILE|DIR", help="CLIP ViT-L/14's image encoder")
    parts.add_argument(
        "--lora",
        metavar="FILE[:S[,T]]",
        action="append",
        default=[],
        help=(
            "merge a LoRA at strength S (default 1), or S for the UNet and T for the text "
            "encoder; may be repeated"
        ),
    )
    parts.add_argument(
        "--controlnet",
        metavar="FILE[=NAME]",
        action="append",
        default=[],
        help="add a ControlNet; may be repeated",
    )
    parts.add_argument(
        "--facenet",
        metavar="FILE",
        help=(
            "FaceNet, 20180402-114759-vggface2.pt: the recognizer that CapHuman was trained "
            "with; without it no photo can be used"
        ),
    )
    parts.add_argument(
        "--face-parsing",
        metavar="FILE",
        help=(
            "BiSeNet, 79999_iter.pth: finds the pixels of the face; default: the landmarks decide"
        ),
    )
    parts.add_argument(
        "--mtcnn",
        metavar="DIR",
        help=(
            "folder of pnet.pt, rnet.pt and onet.pt, which cut FaceNet's crops; default: "
            "the landmarks decide"
        ),
    )
    parts.add_argument(
        "--deca",
        metavar="FILE",
        help=(
            "DECA, deca_model.tar: estimates heads as in CapHuman's training; implies --head flame"
        ),
    )
    parts.add_argument(
        "--flame",
        metavar="DIR",
        help=(
            "FLAME's folder, which is checked and not copied: CAPHUMAN_FLAME must name it "
            "when the model is used; implies --head flame"
        ),
    )
    parts.add_argument(
        "--init",
        action="store_true",
        help=("without --caphuman: CapFace begins as a copy of the UNet's encoder, to be trained"),
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="keep",
        help="type of the stored weights; default: as in the files",
    )
    how.add_argument(
        "--ema", action="store_true", help="take the moving averages of a training file"
    )
    how.add_argument(
        "--config",
        metavar="sd15|FILE.json",
        help="network sizes; default: Stable Diffusion 1.5's, or what an exported file says",
    )
    how.add_argument(
        "--prediction",
        choices=("epsilon", "v"),
        help="what the UNet predicts; default: what the base says, else epsilon",
    )
    how.add_argument(
        "--zero-snr",
        action="store_true",
        default=None,
        help="the base was trained with zero terminal SNR (needs v)",
    )
    how.add_argument(
        "--head",
        choices=tuple(HEADS),
        help="head model that hints are rendered with; default: the one that the weights were "
        f"trained with (CapHuman's: flame); with --init: {SHIPPED}, which is shipped",
    )
    how.add_argument(
        "--ignore",
        metavar="PREFIX",
        action="append",
        default=[],
        help="leave out tensors whose names begin with PREFIX; may be repeated",
    )
    how.add_argument(
        "--partial",
        action="store_true",
        help="make the folder even if it lacks something that photos or heads need",
    )
    how.add_argument(
        "--download",
        action="store_true",
        help="fetch what is named as ORG/NAME from the Hugging Face hub; without it only the hub's "
        "local cache is used",
    )
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="only report what would be taken from where, what is left out and what is wrong",
    )
    how.add_argument("--name", help="name of the model, default sd15")
    how.add_argument("--overwrite", action="store_true", help="replace an existing model folder")


def run(args) -> None:
    """Makes the folder and prints the report."""
    from caphuman_jax.weights import folder_search, hub, lora
    from caphuman_jax.weights.importer import import_model, read_configuration

    config = read_configuration(args.config) if args.config else None
    parts = {name: getattr(args, name) for name in _PARTS if getattr(args, name)}
    parts |= {"controlnets": [_controlnet(text) for text in args.controlnet]}
    if args.folder:
        given = [name for name, value in parts.items() if value]
        folder = hub.locate(args.folder, args.download)
        found = folder_search.find(folder, config, [*given, *_unused(args.head)])
        print(f"found in {args.folder}:", *found.lines(), sep="\n", flush=True)
        controls = [(path, None) for path in found.taken.pop("controlnets", ())]
        parts = parts | found.taken | {"controlnets": parts["controlnets"] or controls}
    report = import_model(
        args.out,
        **parts,
        loras=[lora.parse(text) for text in args.lora],
        dtype=args.dtype,
        ema=args.ema,
        config=config,
        prediction=args.prediction,
        zero_snr=args.zero_snr,
        name=args.name,
        head=args.head,
        init=args.init,
        ignore=args.ignore,
        partial=args.partial,
        overwrite=args.overwrite,
        download=args.download,
        dry_run=args.dry_run,
    )
    print("\n".join(report))


def _unused(head: str | None) -> tuple[str, ...]:
    """Parts in a folder that a head model has no use for."""
    return () if head in (None, "flame") else ("deca", "flame")


def _controlnet(text: str) -> tuple[Path, str | None]:
    path, equals, name = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), None
    return Path(path), name
