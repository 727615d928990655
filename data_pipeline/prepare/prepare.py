"""`caphuman prepare`: photos to records for training, as a TFDS dataset. What is interrupted goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from caphuman_jax.errors import CapHumanError, DataError, SettingError
from caphuman_jax.io import files
from data_pipeline.prepare import finalize, splits, workdir, worker_process
from data_pipeline.prepare.progress import Progress
from data_pipeline.prepare.settings import (
    ENCODINGS,
    FACES,
    HINTS,
    KEEP,
    SAME_PERSON,
    Gate,
    PrepareSettings,
)
from data_pipeline.records.manifest import DROPPED, ENDINGS, read_manifest, version_folder
from data_pipeline.sources.open import open_source

_LOCAL_NAMES = ("local", "direct", "directrunner", "fnapirunner")
_NEEDED = ("apache_beam", "array_record", "tensorflow_datasets")
_LOG, _LOG_LINES = "log.txt", 2000
_GATE_HELP = {
    "min_face": "pixels of the face's height; default: 142 at --size 512, 71 at 256, and so on",
    "min_sharpness": "of the face; in focus it is far above this, ",
    "min_presence": "the landmark network's certainty of a face, ",
    "max_yaw": "degrees, ",
    "max_pitch": "degrees, ",
    "max_roll": "degrees, ",
    "min_confidence": "of the fitted head, ",
    "max_outside": "part of the face outside of the photo, ",
    "min_covered": "part of the square round the head that the photo covers, ",
    "drawing_score": "above it a photo looks drawn, ",
    "duplicate_bits": "in how many of 64 bits of their hashes the same pictures may differ, ",
}
_EXAMPLES = """examples:
  caphuman prepare --photos photos --out records                      a folder, searched through, for SD1.5's 512 pixels
  caphuman prepare --photos photos --out records --size 256 --min-face 37      smaller faces too, to train mini
  caphuman prepare --photos people --person folder --out records      people/NAME/*.jpg: other photos of a person as targets
  caphuman prepare --photos 'shards/{000..123}.tar' --out records     tars as webdataset has them
  caphuman prepare --photos list.csv --out records --model my-sd15 --encode moments,text,image_tokens
  caphuman prepare --photos gs://bucket/list.parquet --out gs://bucket/records --runner DataflowRunner -- --project=P --region=R

The same command again goes on where the last one stopped, however that one ended. docs/data.md says what the records hold."""


def measurer(settings: PrepareSettings):
    """The measurer of a worker, with its networks."""
    from caphuman_jax.runtime.compile_cache import keep_compiled
    from data_pipeline.prepare.measure import Measurer

    keep_compiled()  # every worker compiles the same programs, in every run
    return Measurer(settings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `caphuman prepare`."""
    default, gate = PrepareSettings(), Gate()
    parser.description = (
        "Photos to records for training: found, judged, measured, written as a TFDS dataset."
    )
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, _EXAMPLES
    parser.add_argument(
        "--photos",
        required=True,
        metavar="SRC",
        help="a folder; a .tar or a pattern of them; a .csv, .tsv or .parquet with a column "
        "path; the original CapHuman's folder; tfds:NAME or tfds:NAME:SPLIT",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder, here or in a bucket; the records are in DIR/caphuman_records",
    )
    parser.add_argument(
        "--person",
        metavar="folder|FILE",
        help="who is who, where SRC does not say: its first folders, or a file of keys and persons",
    )
    parser.add_argument(
        "--captions-from",
        metavar="FILE",
        help="captions, where SRC does not have them: JSON {key: text}, or lines of a key and a "
        "text",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N photos by key")

    made = parser.add_argument_group("what is made")
    made.add_argument(
        "--size",
        type=int,
        default=default.size,
        metavar="PIXELS",
        help="side of the pictures to train on, default %(default)s",
    )
    made.add_argument(
        "--margin",
        type=float,
        default=default.margin,
        help="the stored square over it: room for shifts and turns, default %(default)s",
    )
    made.add_argument(
        "--quality",
        type=int,
        default=default.quality,
        help="of the stored JPEG, default %(default)s",
    )
    made.add_argument(
        "--model",
        metavar="NAME|FOLDER",
        help="the model to train: its recognizer, head and identity input are used; default: the "
        "shipped ones",
    )
    made.add_argument(
        "--encode",
        metavar="NAME,…",
        default="",
        help=f"what to compute with the model already: {','.join(ENCODINGS)}",
    )
    made.add_argument(
        "--hints",
        choices=HINTS,
        default=default.hints,
        help="head: as numbers, rendered in training (default); pictures: those too",
    )
    made.add_argument(
        "--captions",
        type=int,
        default=default.captions,
        metavar="N",
        help="captions of a photo, default %(default)s; made of what was "
        "measured where SRC gives none",
    )
    made.add_argument(
        "--caption-model",
        metavar="FOLDER",
        help="an image-to-text model of transformers that writes captions instead",
    )
    made.add_argument(
        "--same-person",
        choices=SAME_PERSON,
        default=default.same_person,
        help=f"whose photos belong together: as SRC or --person says (default), or by recognition "
        f"(up to {splits.ALL_PAIRS:,} photos)",
    )
    made.add_argument(
        "--hold-out",
        type=int,
        default=default.hold_out,
        metavar="N",
        help="one person in N goes to the split test, default %(default)s; 0: nobody",
    )
    made.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="of captions and of the order, default %(default)s",
    )
    made.add_argument(
        "--format",
        choices=tuple(ENDINGS),
        default="array_record",
        help="of the files, default %(default)s",
    )

    good = parser.add_argument_group("which photos are good enough")
    good.add_argument(
        "--faces",
        choices=FACES,
        default=gate.faces,
        help="one: drop photos of several faces (default); largest: take the largest",
    )
    for field in dataclasses.fields(Gate):
        name, value = "--" + field.name.replace("_", "-"), getattr(gate, field.name)
        if isinstance(value, str):
            continue
        text = _GATE_HELP.get(field.name, "")
        good.add_argument(
            name,
            type=_number,
            default=value,
            metavar="N",
            help=text + ("" if value is None else f"default {value:g}"),
        )
    good.add_argument(
        "--drawings",
        choices=KEEP,
        default=gate.drawings,
        help="what looks like a drawing or painting, default %(default)s",
    )
    good.add_argument(
        "--duplicates",
        choices=KEEP,
        default=gate.duplicates,
        help="the same picture again, default %(default)s",
    )

    how = parser.add_argument_group("how")
    how.add_argument(
        "--workers", type=_count, metavar="N", help="processes on this machine, default: one a core"
    )
    how.add_argument(
        "--runner",
        default="local",
        metavar="NAME",
        help="where the Beam pipeline runs: local (default), FlinkRunner, SparkRunner, "
        "DataflowRunner …; their own options stand at the end, after --",
    )
    how.add_argument("--keep-work", action="store_true", help="leave DIR/.work-… when done")
    parser.add_argument("beam", nargs="*", metavar="-- BEAM OPTIONS", help="options for the runner")


def run(args: argparse.Namespace) -> int:
    """The command; 0 also where everything was done already."""
    if args.beam and not args.beam[0].startswith("-"):
        raise SettingError(
            f"what is {args.beam[0]!r} for? photos are named by --photos; Beam's options stand "
            f"after --"
        )
    gate = Gate(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Gate)})
    settings = PrepareSettings(
        size=args.size,
        margin=args.margin,
        quality=args.quality,
        gate=gate,
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


def prepare(
    photos: str,
    out: str,
    settings: PrepareSettings,
    *,
    options: dict | None = None,
    limit: int | None = None,
    file_format: str = "array_record",
    workers: int | None = None,
    runner: str = "local",
    beam_options: list[str] | None = None,
    keep_work: bool = False,
    make_measurer: Callable = measurer,
    stream=None,
) -> dict:
    """Prepare photos; the manifest of what is then in `out`. Raises CapHumanError in one line, also
    for a folder that holds other records.

    photos, options: for `sources.open_source`. make_measurer: a function of a module, settings →
    measurer, in every worker.
    stream: where progress is told, default standard error.
    """
    lacking = [name for name in _NEEDED if not importlib.util.find_spec(name)]
    if lacking:
        raise DataError(
            f"photos are prepared with {', '.join(lacking)}, which is not here: pip install "
            f"'.[data]'"
        )
    out = out.rstrip("/") if not files.is_local(out) else os.path.abspath(os.path.expanduser(out))
    options = {name: value for name, value in (options or {}).items() if value is not None}
    fingerprint = settings.fingerprint()
    job = workdir.Job(
        out,
        files.join(out, f"{workdir.PREFIX}{fingerprint[:16]}"),
        photos,
        options,
        settings,
        file_format,
        make_measurer,
        open_source,
    )
    source = job.open_source()
    items = lambda: itertools.islice(source.items(), limit)
    say = lambda text: print(text, file=stream or sys.stderr, flush=True)
    done = read_manifest(out)
    if done:
        _check_finished(done, job, fingerprint, workdir.write_listing(items(), None))
        say(f"{version_folder(out)} is complete: {_splits_text(done)}")
    else:
        _check_unfinished(job)
        with _explained(out), _locked(job):
            listing = _listed(items, job)
            splits.check_photos(settings.same_person, listing.photos)
            _run_pipeline(
                job,
                listing,
                _arguments(runner, workers, listing.chunks, beam_options or []),
                stream,
            )
            done = finalize.finish(
                job, listing, {"text": photos, "options": options, "limit": limit}
            )
        say(_summary(done, out))
    if not keep_work:
        files.remove(job.folder)
    return done


def _listed(items: Callable, job: workdir.Job) -> workdir.Listing:
    """Write the listing, unless it is not the one that the work began with. Where photos lie may
    have changed.
    """
    before = workdir.read_listing(job.folder)
    if before and workdir.write_listing(items(), None) != before:
        raise DataError(
            f"{job.source} has changed since this work began, when it had {before.photos:,} "
            f"photos; remove {job.folder} to begin anew"
        )
    files.write(job.path("settings.json"), json.dumps(job.settings.to_dict()).encode())
    return workdir.write_listing(items(), job.folder)


def _run_pipeline(job: workdir.Job, listing: workdir.Listing, arguments: list[str], stream) -> None:
    """Run the pipeline in a process by itself, with its workers a group that can be ended, and tell
    how it gets on.
    """
    progress = Progress(job, listing, stream)
    process = subprocess.Popen(
        worker_process.COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    lines: collections.deque = collections.deque(maxlen=_LOG_LINES)
    reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # why it left is told below
            process.stdin.write(pickle.dumps((job, arguments)))
            process.stdin.close()
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            progress.show()
        progress.end()
    except KeyboardInterrupt:
        progress.say("interrupted; the same command goes on from here")
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5)
        process.stderr.close()
    if process.returncode:
        raise _failure(job, process.returncode, b"".join(lines).decode(errors="replace"))


def _failure(job: workdir.Job, code: int, output: str) -> CapHumanError:
    """What went wrong, as the pipeline told it, or where to look."""
    if line := worker_process.told(output):
        return DataError(line)
    with contextlib.suppress(OSError):
        files.write(job.path(_LOG), output.encode())
    last = next(
        (line.strip() for line in reversed(output.splitlines()) if line.strip()),
        f"it ended with {code}",
    )
    return DataError(
        f"the pipeline failed: {last[:300]} (more in {job.path(_LOG)}); the same command goes on "
        f"where it stopped"
    )


def _arguments(runner: str, workers: int | None, chunks: int, options: list[str]) -> list[str]:
    """Beam's options."""
    if runner.lower() not in _LOCAL_NAMES:
        if workers:
            raise SettingError(
                f"--workers is for this machine; how many {runner} has is said with its own "
                f"options, after --"
            )
        return [f"--runner={runner}", *options]
    count = min(workers or os.cpu_count() or 1, max(chunks, 1))
    return ["--direct_running_mode=multi_processing", f"--direct_num_workers={count}", *options]


def _check_finished(
    manifest: dict, job: workdir.Job, fingerprint: str, listing: workdir.Listing
) -> None:
    """Raises DataError if a finished folder is not what is asked for."""
    folder = version_folder(job.out)
    again = f"choose another --out, or remove {folder}"
    if manifest["fingerprint"] != fingerprint:
        raise DataError(
            f"{folder} holds records of other settings "
            f"({_difference(manifest['settings'], job.settings.to_dict())}); {again}"
        )
    if manifest["file_format"] != job.file_format:
        raise DataError(
            f"{folder} holds {manifest['file_format']} files, not {job.file_format}; {again}"
        )
    source = manifest["source"]
    if source["sha256"] != listing.sha256:
        raise DataError(
            f"{folder} holds records of {source['photos']:,} photos of {source['text']}, but "
            f"{job.source} now has {listing.photos:,}, or others, "
            f"or other captions or persons; {again}"
        )


def _check_unfinished(job: workdir.Job) -> None:
    """Raises DataError if there is unfinished work of other settings."""
    for name in files.folders(job.out, workdir.PREFIX):
        folder = files.join(job.out, name)
        if folder == job.folder or not files.exists(files.join(folder, "settings.json")):
            continue
        before = json.loads(files.read(files.join(folder, "settings.json")))
        raise DataError(
            f"{folder} is unfinished work with other settings "
            f"({_difference(before, job.settings.to_dict())}); give those again to go on with it, "
            "choose another --out, or remove it"
        )


def _difference(before: dict, now: dict) -> str:
    flat = lambda settings: (
        {k: v for k, v in settings.items() if k != "gate"} | settings.get("gate", {})
    )
    before, now = flat(before), flat(now)
    named = [
        f"{name} {before.get(name)}, now {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return "; ".join(named) or "the networks are others"


@contextlib.contextmanager
def _explained(out: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise files.explained(error, out) from error


@contextlib.contextmanager
def _locked(job: workdir.Job) -> Iterator[None]:
    """Keep a second run on this machine from the same work."""
    if not files.is_local(job.folder):
        yield
        return
    import fcntl

    os.makedirs(job.folder, exist_ok=True)
    with open(job.path("lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another caphuman prepare is at work in {job.out}; wait for it, or end it"
            ) from error
        yield


def _summary(manifest: dict, out: str) -> str:
    from data_pipeline.prepare.quality_filter import REASONS

    lines = [
        f"{manifest['kept']:,} of {manifest['photos']:,} photos kept: {_splits_text(manifest)}"
    ]
    width = max(map(len, manifest["dropped"]), default=0)
    meaning = REASONS | {"held_out_person": "shows somebody who is held out"}
    most = sorted(manifest["dropped"].items(), key=lambda one: (-one[1], one[0]))
    lines += [
        f"  {number:>8,}  {reason:<{width}}  {meaning.get(reason, '')}".rstrip()
        for reason, number in most
    ]
    if manifest["dropped"]:
        lines.insert(1, "dropped:")
        lines.append(f"{files.join(version_folder(out), DROPPED)} names them")
    if manifest["moved"]:
        lines.append(
            f"{manifest['moved']:,} photos of people who were to be held out are trained on, since "
            f"too many others show the same people"
        )
    return "\n".join([*lines, f"look at them with: caphuman inspect {out}"])


def _splits_text(manifest: dict) -> str:
    parts = [
        f"{split['records']:,} in {name} "
        f"({sum(shard['bytes'] for shard in split['shards']) / 1e6:,.1f} MB, "
        f"{len(split['shards'])} "
        f"file{'s' * (len(split['shards']) > 1)})"
        for name, split in sorted(manifest["splits"].items(), reverse=True)
    ]
    return ", ".join(parts)


def _number(text: str) -> float:
    """A whole number as such, since settings tell them apart."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return number
