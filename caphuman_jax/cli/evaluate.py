"""`caphuman evaluate`: how well a model follows its requests, on photos of people."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

from caphuman_jax.cli.argument_types import positive_int
from caphuman_jax.errors import CapHumanError, DataError
from caphuman_jax.evaluation import prompt_suite
from caphuman_jax.runtime.versions import versions
from caphuman_jax.version import __version__

_FEWEST = 2  # people: identity is compared with that of others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman evaluate`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--records",
        type=Path,
        metavar="DIR",
        help="records of caphuman prepare: the people that it held out (split test)",
    )
    source.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="directory of photos of one person each, or of identity files; its subdirectories are "
        "searched too",
    )
    parser.add_argument(
        "--model", default="mini", help="shipped model or model folder; default: %(default)s"
    )
    parser.add_argument(
        "--report",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory for the report; must be new or empty unless --overwrite",
    )
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="only the first N photos by name"
    )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="with --photos: only photos that the model's training left out, by the rule on file "
        "names in the model's metadata (mini has one); use --records for models without it",
    )
    parser.add_argument(
        "--no-drawings",
        action="store_true",
        help="skip pictures that the probe for drawings takes for drawn or painted (it misses most "
        "paintings and may take a photo for one)",
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        default=list(prompt_suite.HEADS),
        metavar="HEAD",
        help='"own", "random", or entries such as yaw=-20,smile=0.5 or light=left; default: '
        "%(default)s",
    )
    parser.add_argument(
        "--prompts",
        nargs="+",
        default=list(prompt_suite.PROMPTS),
        metavar="TEXT",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--per-person",
        type=positive_int,
        default=8,
        metavar="N",
        help="pictures of each person; default: %(default)s, which takes about half an hour for 50 "
        "people on 2 cores",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=positive_int, help="sampling steps; default: the model's own"
    )
    parser.add_argument(
        "--guidance-scale", type=float, help="guidance scale; default: the model's own"
    )
    parser.add_argument(
        "--batch",
        type=positive_int,
        help="pictures at a time; default: the model's own for this machine",
    )
    parser.add_argument(
        "--suite",
        choices=("requests", "edit", "small-faces", "people"),
        default="requests",
        help="requests: pictures made from noise (default); edit: the photos themselves with "
        "their heads changed, as caphuman edit does; small-faces: faces of 48 to 192 pixels, the "
        "small ones with and without --detail; people: 2, 3 and 4 people in one picture, each with "
        "words of their own (--heads, --prompts and --batch are for requests)",
    )
    parser.add_argument(
        "--detail",
        type=float,
        metavar="X",
        help="share of the steps that small faces are sampled again with; default: 0.45 with "
        "--suite small-faces, and 0 with people",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report")


def run(args: argparse.Namespace) -> int:
    """Evaluate and write the report: report.json, index.md, summary.json, scores.jsonl,
    pictures/, people/ and sheets. Raises CapHumanError.
    """
    # Imported here because they import jax, which `--help` does not need.
    from caphuman_jax.evaluation import benchmark, bulk, report, statistics, summary
    from caphuman_jax.evaluation.metrics.base import Run
    from caphuman_jax.pipeline.loading import load
    from caphuman_jax.weights import model_folder

    if args.seed < 0:
        raise CapHumanError(f"--seed is a whole number from 0 on, not {args.seed}")
    if args.report.exists() and (
        not args.report.is_dir() or (any(args.report.iterdir()) and not args.overwrite)
    ):
        raise CapHumanError(
            f"{args.report} exists already; choose another directory or add --overwrite"
        )
    metadata = model_folder.read_metadata(model_folder.find_model(args.model))
    photos, source = _photos(args, metadata)
    pipe = load(args.model)
    sampling, model = pipe.config.sampling, pipe.head_model
    steps, batch = args.steps or sampling.steps, args.batch or pipe.batch
    scale = sampling.guidance_scale if args.guidance_scale is None else args.guidance_scale

    start = time.perf_counter()
    subjects, skipped = benchmark.read_subjects(
        photos, bulk.subject_reader(pipe, drawings=not args.no_drawings)
    )
    if len(subjects) < _FEWEST:
        reasons = "; ".join(list(skipped.values())[:3])
        raise DataError(
            f"only {len(subjects)} of {len(photos)} photos can be used, at least {_FEWEST} people "
            f"are needed "
            f"({reasons or 'give more photos'})"
        )
    if args.suite != "requests":
        return _suite(args, pipe, photos, subjects, source, skipped)
    read_seconds = (time.perf_counter() - start) / len(photos)
    heads, prompts = tuple(args.heads), tuple(args.prompts)
    prompt_suite.check_heads(model, subjects[0].head, heads)
    requests = prompt_suite.plan_requests(len(subjects), heads, prompts, args.per_person, args.seed)

    args.report.mkdir(parents=True, exist_ok=True)
    outcomes, seconds = benchmark.run_requests(
        model,
        bulk.bulk_generator(pipe, steps, scale),
        subjects,
        requests,
        args.report,
        seed=args.seed,
        batch=batch,
        head_of=pipe.head_of,
    )
    floor = benchmark.run_measurement_floor(
        model, subjects, seed=args.seed, batch=batch, head_of=pipe.head_of
    )
    results = statistics.compute(model, subjects, outcomes, args.seed)
    weights = pipe.record.get("weights", {})
    document = {
        "format": "caphuman_jax evaluation",
        "format_version": 1,
        "settings": {
            "model": str(args.model),
            "photos": len(photos),
            **source,
            "drawings": not args.no_drawings,
            "heads": heads,
            "prompts": prompts,
            "per_person": args.per_person,
            "seed": args.seed,
            "steps": steps,
            "guidance_scale": scale,
            "batch": batch,
            "random_head": prompt_suite.RANDOM_RANGE,
        },
        "model": {"name": pipe.config.name, "sha256": _joined(weights), "files": weights},
        "versions": _versions(),
        "goals": statistics.goals(results),
        "results": results,
        "measurement_floor": statistics.compute(model, subjects, floor, args.seed),
        "seconds": {
            "read_a_photo": read_seconds,
            "first_batch_with_compilation": seconds["generate_first"],
            "generate_a_picture": seconds["generate"],
            "measure_a_picture": seconds["measure"],
        },
        "skipped": skipped,
        "sheets": report.write_sheets(args.report, subjects, outcomes, args.report),
    }
    report.write_json(args.report / "report.json", document)
    summary.write(
        args.report,
        Run(model, subjects, outcomes, args.seed),
        results,
        document["measurement_floor"],
        {name: document[name] for name in ("model", "settings", "versions")},
    )
    report.write_index(args.report / "index.md", document)
    for name, goal in document["goals"].items():
        print(
            f"{name:34} {report.number(goal['value']):>8}   goal {goal['goal']:8} "
            f"{report.verdict(goal, 'reached', 'not reached')}"
        )
    print(f"{args.report / 'index.md'} has all results")
    return 0


def _suite(args, pipe, photos, subjects, source, skipped) -> int:
    """Evaluate one of `suites.SUITES`: report.json and sheets."""
    from caphuman_jax.evaluation import report, statistics
    from caphuman_jax.evaluation.suites import SUITES

    suite = SUITES[args.suite]
    named = {photo.name: photo for photo in photos}
    shown = [named[subject.name] for subject in subjects]
    taken = ("steps", "guidance_scale", *suite.samples)
    sampling = {name: getattr(args, name) for name in taken}
    args.report.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    made = suite.run(
        pipe,
        shown,
        subjects,
        args.report,
        per_person=args.per_person,
        seed=args.seed,
        **{name: value for name, value in sampling.items() if value is not None},
    )
    results = suite.compute(pipe, subjects, made)
    document = {
        "format": f"caphuman_jax evaluation of {args.suite}",
        "format_version": 1,
        "settings": {"model": str(args.model), **source, "per_person": args.per_person, **sampling},
        "versions": _versions(),
        "goals": statistics.goals(results, suite.goals),
        "results": results,
        "seconds": {"make_and_measure": (time.perf_counter() - start) / len(made)},
        "skipped": skipped,
    }
    report.write_json(args.report / "report.json", document)
    for name, goal in document["goals"].items():
        print(
            f"{name:36} {report.number(goal['value']):>8}   goal {goal['goal']:8} "
            f"{report.verdict(goal, 'reached', 'not reached')}"
        )
    print(f"{args.report / 'report.json'} has all results")
    return 0


def _photos(args: argparse.Namespace, metadata: dict) -> tuple[list, dict]:
    """The photos to evaluate on, and what the report says about where they come from."""
    from caphuman_jax.evaluation import photos
    from data_pipeline.records.manifest import records_hash
    from data_pipeline.records.reader import RecordsFolder

    if args.records is None:
        every = photos.file_name_rule(args.model, metadata) if args.held_out else None
        found = photos.in_folder(args.photos, args.limit, every, args.suite != "edit")
        return found, {"held_out": args.held_out}
    if args.held_out:
        raise CapHumanError("--held-out goes with --photos; --records always means held-out people")
    folder = RecordsFolder(args.records)
    found, known = photos.in_records(folder, args.limit), photos.trained_on(metadata, folder)
    if not known:
        print(
            f"caphuman: warning: {args.model} does not say that it was trained on {args.records}; "
            f"its training may have seen people of their split test",
            file=sys.stderr,
        )
    records = {"sha256": records_hash(folder.manifest), "split": "test"}
    return found, {"held_out": known, "records": records}


def _joined(checksums: dict[str, str]) -> str:
    """One checksum of all weight files."""
    import hashlib

    return hashlib.sha256(
        "".join(f"{name}:{value}\n" for name, value in sorted(checksums.items())).encode()
    ).hexdigest()


def _versions() -> dict[str, str]:
    return {
        "caphuman_jax": __version__,
        "python": platform.python_version(),
        **versions("jax", "flax", "numpy", "onnxruntime", "opencv-python-headless"),
    }
