"""`caphuman prepare`: photos to records for training, as a TFDS dataset."""

from __future__ import annotations

import argparse
import dataclasses

from caphuman_jax.cli.argument_types import number, positive_int
from caphuman_jax.errors import SettingError
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepare.settings import (
    ENCODINGS,
    FACES,
    HINTS,
    KEEP,
    SAME_PERSON,
    PrepareSettings,
    QualityThresholds,
)
from data_pipeline.prepare.splits import ALL_PAIRS
from data_pipeline.records.manifest import ENDINGS

_THRESHOLD_HELP = {
    "min_face": "larger side of the face in pixels; default: 142 at --size 512, 71 at 256 …",
    "min_sharpness": "sharpness of the face; a face in focus is far above it; ",
    "min_presence": "the landmark network's certainty that there is a face; ",
    "max_yaw": "degrees; ",
    "max_pitch": "degrees; ",
    "max_roll": "degrees; ",
    "min_confidence": "confidence of the fitted head; ",
    "max_outside": "part of the face outside the photo; ",
    "min_covered": "part of the square around the head that the photo covers; ",
    "drawing_score": "with --drawings drop: a picture with a higher score is dropped; ",
    "duplicate_bits": "number of the 64 hash bits that may differ between duplicates; ",
}
_EXAMPLES = """examples:
  caphuman prepare --photos photos --out records               a directory, for SD 1.5 at 512 pixels
  caphuman prepare --photos photos --out records --size 256 --min-face 37   smaller faces, for mini
  caphuman prepare --photos people --person folder --out records   people/NAME/*.jpg: named people
  caphuman prepare --photos 'shards/{000..123}.tar' --out records  tars in the webdataset layout
  caphuman prepare --photos list.csv --out records --model my-sd15 --encode moments,text
  caphuman prepare --photos gs://bucket/list.parquet --out gs://bucket/records \\
      --runner DataflowRunner -- --project=P --region=R

Run the same command again to resume after an interruption. docs/data.md describes the records."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman prepare`."""
    default, thresholds = PrepareSettings(), QualityThresholds()
    parser.description = (
        "Find, filter and measure the faces in photos, and write records for training as a TFDS "
        "dataset."
    )
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, _EXAMPLES
    parser.add_argument(
        "--photos",
        required=True,
        metavar="SRC",
        help="a directory; a .tar or a pattern of them; a .csv, .tsv or .parquet with a column "
        "path; the original CapHuman's folder; tfds:NAME or tfds:NAME:SPLIT",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="directory on this machine or in a bucket; the records are in DIR/caphuman_records",
    )
    parser.add_argument(
        "--person",
        metavar="folder|FILE",
        help=(
            "who the photos show, if SRC does not say: folder (the first directory of the "
            "path), or a file of keys and persons"
        ),
    )
    parser.add_argument(
        "--captions-from",
        metavar="FILE",
        help="captions, if SRC has none: JSON {key: text}, or lines of a key and a text",
    )
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="only the first N photos by key"
    )
    _add_content_arguments(parser.add_argument_group("what the records hold"), default)
    _add_threshold_arguments(parser.add_argument_group("which photos are kept"), thresholds)

    how = parser.add_argument_group("how")
    how.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="processes on this machine; default: one for each core",
    )
    how.add_argument(
        "--runner",
        default="local",
        metavar="NAME",
        help="where the Beam pipeline runs: local (default), FlinkRunner, SparkRunner, "
        "DataflowRunner …; its own options come last, after --",
    )
    how.add_argument("--keep-work", action="store_true", help="keep DIR/.work-… at the end")
    parser.add_argument("beam", nargs="*", metavar="-- BEAM OPTIONS", help="the runner's options")


def _add_content_arguments(group, default: PrepareSettings) -> None:
    group.add_argument(
        "--size",
        type=int,
        default=default.size,
        metavar="PIXELS",
        help="side of the images to train on; default %(default)s",
    )
    group.add_argument(
        "--margin",
        type=float,
        default=default.margin,
        metavar="X",
        help="side of the stored square divided by --size; more than 1 leaves room for shifts and "
        "rotations; default %(default)s",
    )
    group.add_argument(
        "--quality",
        type=int,
        default=default.quality,
        metavar="N",
        help="quality of the stored JPEG; default %(default)s",
    )
    group.add_argument(
        "--model",
        metavar="NAME|FOLDER",
        help="the model to train, for its recognizer, head and identity input; default: the "
        "shipped ones",
    )
    group.add_argument(
        "--encode",
        metavar="NAME,…",
        default="",
        help=f"what to precompute with the model: {','.join(ENCODINGS)}",
    )
    group.add_argument(
        "--hints",
        choices=HINTS,
        default=default.hints,
        help="head: only the head's parameters, from which training renders hints (default); "
        "pictures: rendered hints too",
    )
    group.add_argument(
        "--captions",
        type=int,
        default=default.captions,
        metavar="N",
        help="captions for each photo; default %(default)s; composed from measured attributes "
        "where SRC has none",
    )
    group.add_argument(
        "--caption-model",
        metavar="FOLDER",
        help="an image-to-text model of transformers that writes the captions instead",
    )
    group.add_argument(
        "--same-person",
        choices=SAME_PERSON,
        default=default.same_person,
        help="who decides which photos show the same person: given: SRC or --person (default); "
        f"recognition: face recognition (up to {ALL_PAIRS:,} photos)",
    )
    group.add_argument(
        "--hold-out",
        type=int,
        default=default.hold_out,
        metavar="N",
        help="one person in N goes to the split test; default %(default)s; 0: nobody",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        metavar="N",
        help="of the captions and the order of the records; default %(default)s",
    )
    group.add_argument(
        "--format",
        choices=tuple(ENDINGS),
        default="array_record",
        help="file format; default %(default)s",
    )


def _add_threshold_arguments(group, default: QualityThresholds) -> None:
    group.add_argument(
        "--faces",
        choices=FACES,
        default=default.faces,
        help="one: drop photos of several faces (default); largest: take the largest face",
    )
    for field in dataclasses.fields(QualityThresholds):
        name, value = "--" + field.name.replace("_", "-"), getattr(default, field.name)
        if isinstance(value, str):
            continue
        text = _THRESHOLD_HELP.get(field.name, "")
        group.add_argument(
            name,
            type=number,
            default=value,
            metavar="N",
            help=text + ("" if value is None else f"default {value:g}"),
        )
    group.add_argument(
        "--drawings",
        choices=KEEP,
        default=default.drawings,
        help="pictures that the probe for drawings classifies as drawn or painted; it misses most "
        "paintings and may misclassify photos; default %(default)s",
    )
    group.add_argument(
        "--duplicates",
        choices=KEEP,
        default=default.duplicates,
        help="copies of another photo; default drop",
    )


def run(args: argparse.Namespace) -> int:
    """Prepare the photos; 0 also where everything was done before. Raises CapHumanError."""
    if args.beam and not args.beam[0].startswith("-"):
        raise SettingError(
            f"unexpected argument {args.beam[0]!r}: name photos with --photos, and give Beam's "
            f"options after --"
        )
    names = [field.name for field in dataclasses.fields(QualityThresholds)]
    settings = PrepareSettings(
        size=args.size,
        margin=args.margin,
        quality=args.quality,
        thresholds=QualityThresholds(**{name: getattr(args, name) for name in names}),
        captions=args.captions,
        captioner=args.caption_model,
        hints=args.hints,
        model=args.model,
        encode=tuple(name for name in args.encode.replace(" ", "").split(",") if name),
        same_person=args.same_person,
        hold_out=args.hold_out,
        seed=args.seed,
    )
    prepare(
        args.photos,
        args.out,
        settings,
        options={"person": args.person, "captions": args.captions_from},
        limit=args.limit,
        file_format=args.format,
        workers=args.workers,
        runner=args.runner,
        beam_options=args.beam,
        keep_work=args.keep_work,
    )
    return 0
