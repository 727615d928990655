"""`caphuman evaluate`: how well a model follows its requests, on photos of people."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

from caphuman_jax.cli import console
from caphuman_jax.cli.argument_types import positive_int
from caphuman_jax.errors import CapHumanError, DataError
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
        help="directory of photos that each show one person, or of identity files; its "
        "subdirectories are searched too",
    )
    parser.add_argument(
        "--model",
        default="mini",
        metavar="NAME|FOLDER",
        help="a shipped model or a model folder; default: %(default)s",
    )
    parser.add_argument(
        "--report",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory for the report: new, empty, or of the same command that was stopped",
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
        "--training-records",
        type=Path,
        metavar="DIR",
        help="with --photos: the records that the model was trained on. People in them are an "
        "error, and pictures that show one of them are counted; not needed with --records",
    )
    parser.add_argument(
        "--training-people",
        action="store_true",
        help="with --training-records: evaluate people whom training has seen, too",
    )
    parser.add_argument(
        "--no-drawings",
        action="store_true",
        help="skip pictures that the probe for drawings classifies as drawn or painted; it misses "
        "most paintings and may misclassify photos",
    )
    parser.add_argument(
        "--clip",
        type=Path,
        metavar="DIR",
        help="a CLIP of transformers with its two projections, for the CLIP score and prompt "
        "accuracy; default: the model folder's own, if it was imported with one",
    )
    parser.add_argument(
        "--inception",
        type=Path,
        metavar="FILE",
        help="Inception's weights for FID and KID: pt_inception-2015-12-05-6726825d.pth",
    )
    parser.add_argument(
        "--suite",
        default="requests",
        metavar="NAME|FILE.toml",
        help="what is requested: a file, or one of requests (default), quick, heads, prompts, "
        "humaniphc (pictures made from noise), edit, small-faces, people; docs/evaluation.md "
        "describes them",
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        metavar="HEAD",
        help='"own", "random", or entries such as yaw=-20,smile=0.5 or light=left; default: those '
        "of the suite",
    )
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="default: those of the suite")
    parser.add_argument(
        "--per-person",
        type=positive_int,
        metavar="N",
        help="pictures of each person; default: the suite's own, 8 with requests, which takes "
        "about half an hour for 50 people on 2 cores",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--steps", type=positive_int, metavar="N", help="sampling steps; default: the model's own"
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        metavar="G",
        help="how strongly the prompt is followed; default: the model's own",
    )
    parser.add_argument(
        "--batch",
        type=positive_int,
        metavar="B",
        help="pictures at a time on each device; default: 1 on a CPU, else 8",
    )
    parser.add_argument(
        "--ablate",
        metavar="WHAT[,WHAT …]",
        help="also make all pictures with one thing left out or changed: identity-global, "
        "identity-local, hints, or a setting with values, such as control-scale=0.5:1.5, "
        "guidance=1:5, steps=10, sampler=ddim, tau=300",
    )
    parser.add_argument(
        "--detail",
        type=float,
        metavar="X",
        help="share of the steps that small faces are sampled again with; default: the suite's own",
    )
    parser.add_argument(
        "--no-pictures",
        action="store_true",
        help="leave out all pictures of people, the names of photos and paths in report.html, so "
        "that it can be published; the files next to it still have them",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier report; without it, the same command resumes one",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate and write the report: report.html, summary.json, scores.jsonl, both as CSV,
    report.json, index.md, pictures/, people/, heads/ and sheets.

    Returns:
        The exit code: 0, or that of an interruption.

    Raises:
        CapHumanError: wrong arguments, photos or suites.
    """
    with console.notices(once=True):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    # Imported here because they import jax, which `--help` does not need.
    from caphuman_jax.evaluation import (
        ablations,
        asked,
        benchmark,
        bulk,
        judges,
        prompt_suite,
        whole,
    )
    from caphuman_jax.evaluation.suites.kinds import KINDS
    from caphuman_jax.head import head_json
    from caphuman_jax.jobs import multi_device
    from caphuman_jax.weights import model_folder

    if args.seed < 0:
        raise CapHumanError(f"--seed is a whole number from 0 on, not {args.seed}")
    console.check_batch(args.batch)
    suite = _suite(args)
    begun = _check_room(args)
    folder = model_folder.find_model(args.model)
    metadata = model_folder.read_metadata(folder)
    judging = judges.find(folder, args.clip, args.inception)
    photos, source = _photos(args, suite, metadata)
    _check_training(args)
    pipe, batch = multi_device.load(args.model, batch=args.batch)
    variants = ablations.parse(args.ablate, pipe.config) if args.ablate else []
    suite.check_size(len(photos), 1 + len(variants))
    if suite.kind not in KINDS:
        prompt_suite.check_heads(pipe.head_model, head_json.build(pipe.head_model, {}), suite.heads)
    if begun and args.overwrite:
        _remove_report(args.report)  # all that is wrong has been refused by now
    start = time.perf_counter()
    subjects, skipped = benchmark.read_subjects(
        photos, bulk.subject_reader(pipe, drawings=not args.no_drawings)
    )
    if len(subjects) < _FEWEST:
        reasons = "; ".join(list(skipped.values())[:3])
        raise DataError(
            f"only {len(subjects)} of {len(photos)} photos can be used, at least {_FEWEST} people "
            f"are needed ({reasons or 'give more photos'})"
        )
    facts = {
        "format_version": 1,
        "suite": suite.name,
        "settings": {
            "model": str(args.model),
            "suite": suite.name,
            "photos": len(photos),
            **source,
            "drawings": not args.no_drawings,
            "per_person": suite.per_person,
            "seed": args.seed,
        },
        "model": _model(pipe),
        "versions": _versions(),
        "skipped": skipped,
    }
    facts["seconds"] = {"read_a_photo": (time.perf_counter() - start) / len(photos)}
    training = _training(args, subjects)
    shown: list = []
    if (kind := KINDS.get(suite.kind)) is None:
        requests = suite.requests(len(subjects), args.seed)
        wanted = asked.of_requests(pipe.head_model, subjects, requests, args.seed)
    else:
        if kind.edits:
            named = {photo.name: photo for photo in photos}
            shown = [named[subject.name] for subject in subjects]
        more = {"per_person": suite.per_person, "seed": args.seed, "sampling": suite.sampling}
        wanted = kind.ask(pipe, subjects, **more, **suite.parameters)
        if not wanted:
            raise DataError(
                f"the suite {suite.name} asks for nothing of {len(subjects)} people; give photos "
                f"of more people, or a higher --per-person"
            )
    evaluation = whole.Evaluation(
        pipe, batch, suite, subjects, wanted, facts, args.seed, training, shown, judging
    )
    evaluation = dataclasses.replace(evaluation, show_pictures=not args.no_pictures)
    return _evaluate(args, evaluation, variants)


def _suite(args):
    """The suite, with what the arguments replace."""
    from caphuman_jax.diffusion.sampling_params import SamplingParams
    from caphuman_jax.evaluation.suites import suite_file

    suite = suite_file.load(args.suite)
    given = {name: getattr(args, name) for name in ("heads", "prompts", "per_person")}
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    sampling = {name: getattr(args, name) for name in ("steps", "guidance_scale", "detail")}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    SamplingParams(**sampling)  # refuses a wrong value before a photo is read
    if suite.kind != "requests":
        for name in ("heads", "prompts", "ablate"):
            if getattr(args, name) is not None:
                raise CapHumanError(f"--{name} is not for --suite {args.suite}, which has its own")
    if "per_person" in changes and suite.plan == "every":
        raise CapHumanError(
            f"--per-person is not for --suite {args.suite}, which makes every head with every "
            f"prompt; use --heads, --prompts or --limit"
        )
    return dataclasses.replace(suite, **changes, sampling={**suite.sampling, **sampling})


def _check_room(args) -> bool:
    """Whether the report's directory holds an evaluation that has begun. Raises CapHumanError where
    there is anything else.
    """
    from caphuman_jax.jobs.run_folder import RunFolder

    if not args.report.exists():
        return False
    if not args.report.is_dir():
        raise CapHumanError(f"{args.report} is not a directory; choose another with --report")
    begun = RunFolder.exists(args.report / "pictures")
    if not (args.overwrite or begun or all(map(_is_beginning, args.report.iterdir()))):
        raise CapHumanError(
            f"{args.report} exists already; choose another directory or add --overwrite"
        )
    return begun


def _remove_report(report: Path) -> None:
    """Remove an earlier report, and nothing else."""
    import shutil

    told = ("report.json", "summary.json", "scores.jsonl", "index.md", "ablations.json")
    for name in (*told, "report.html", "summary.csv", "scores.csv"):
        (report / name).unlink(missing_ok=True)  # of the pictures before
    for name in ("pictures", "people", "heads", "faces", "ablations"):
        shutil.rmtree(report / name, ignore_errors=True)


def _is_beginning(path: Path) -> bool:
    """Whether this is what an evaluation makes before its first picture, on this host or another
    one: people/ with identity files and photos, and pictures/ with nothing that a person sees.
    """
    if path.name == "pictures":
        return all(one.name.startswith(".") for one in path.iterdir())
    return path.name == "people" and all(
        re.fullmatch(r"\.?\d{5}\.(identity|photo).*", one.name) for one in path.iterdir()
    )


def _check_training(args) -> None:
    """Raises CapHumanError where --training-records or --training-people cannot be used."""
    from caphuman_jax.evaluation import photos
    from data_pipeline.records.reader import RecordsFolder

    if args.training_people and args.training_records is None:
        raise CapHumanError("--training-people goes with --training-records")
    if args.training_records is None:
        return
    if args.records is not None:
        raise CapHumanError("--training-records goes with --photos; --records has them itself")
    photos.check_training_records(RecordsFolder(args.training_records))


def _training(args, subjects):
    """Vectors of the faces that training saw, where its records are given. Raises CapHumanError."""
    from caphuman_jax.evaluation import photos
    from data_pipeline.records.reader import RecordsFolder

    if args.training_records is None:
        folder = None if args.records is None else RecordsFolder(args.records)
        return photos.training_vectors(folder) if folder and folder.splits.get("train") else None
    training = photos.training_vectors(RecordsFolder(args.training_records))
    if not args.training_people:
        photos.check_held_out(subjects, training, args.training_records)
    return training


def _evaluate(args, evaluation, variants) -> int:
    """Evaluate a suite and its ablations."""
    from caphuman_jax.evaluation import ablations, report
    from caphuman_jax.runtime.preemption import Preemption

    with console.resumable(), Preemption() as stop:
        for variant in (None, *variants):
            if variant is not None:
                print(f"caphuman: {variant.label}", file=sys.stderr)
            folder = args.report if variant is None else args.report / variant.folder
            document = evaluation.run(folder, variant, lambda: stop.reason is not None)
            if document is None:
                print("caphuman: stopped; rerun the same command to resume", file=sys.stderr)
                return stop.exit_code
            if document["failed"]:
                print(
                    f"caphuman: warning: {document['failed']} of {len(evaluation.asked)} "
                    f"pictures could not be made; {folder / 'pictures' / 'failed.jsonl'} says why",
                    file=sys.stderr,
                )
            if variant is None:
                _print_goals(report, document, 36)
    print(f"{args.report / 'report.html'} has all results, to open in a browser")
    if variants:
        print(f"{ablations.write_table(args.report, variants)} compares the ablations")
    return 0


def _print_goals(report, document, width: int) -> None:
    for name, goal in document["goals"].items():
        print(
            f"{name:{width}} {report.number(goal['value']):>8}   goal {goal['goal']:8} "
            f"{report.verdict(goal, 'reached', 'not reached')}"
        )


def _model(pipe) -> dict:
    weights = pipe.record.get("weights", {})
    return {"name": pipe.config.name, "sha256": _joined(weights), "files": weights}


def _photos(args: argparse.Namespace, suite, metadata: dict) -> tuple[list, dict]:
    """The photos to evaluate on, and what the report says about where they come from."""
    from caphuman_jax.evaluation import photos
    from data_pipeline.records.manifest import records_hash
    from data_pipeline.records.reader import RecordsFolder

    limit = min(filter(None, (args.limit, suite.people)), default=None)
    if args.records is None:
        every = photos.file_name_rule(args.model, metadata) if args.held_out else None
        found = photos.in_folder(args.photos, limit, every, suite.kind != "edit")
        return found, {"held_out": args.held_out}
    if args.held_out:
        raise CapHumanError("--held-out goes with --photos; --records always means held-out people")
    folder = RecordsFolder(args.records)
    found, known = photos.in_records(folder, limit), photos.trained_on(metadata, folder)
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
