"""Photos to records for training, as a TFDS dataset. The same call resumes what was interrupted."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from caphuman_jax.errors import CapHumanError, DataError, SettingError
from caphuman_jax.io import files, folder_lock
from data_pipeline.prepare import finalize, splits, workdir, worker_process
from data_pipeline.prepare.error_text import extract_error
from data_pipeline.prepare.progress import Progress
from data_pipeline.prepare.quality_filter import REASONS
from data_pipeline.prepare.settings import PrepareSettings
from data_pipeline.records.manifest import DROPPED, read_manifest, version_folder
from data_pipeline.sources.open import open_source

_LOCAL_NAMES = ("local", "direct", "directrunner", "fnapirunner")
_NEEDED = ("apache_beam", "array_record", "tensorflow_datasets")
_LOG, _LOG_LINES = "log.txt", 2000


def measurer(settings: PrepareSettings):
    """A worker's measurer, with its networks."""
    from caphuman_jax.runtime.compile_cache import keep_compiled
    from data_pipeline.prepare.measure import Measurer

    keep_compiled()  # every worker of every run compiles the same programs
    return Measurer(settings)


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
    """Prepare photos, or resume where an earlier call was interrupted.

    Args:
        photos: the source, see `open_source`.
        out: folder for the records, on this machine or in a bucket.
        settings: decide the records.
        options: further arguments of `open_source`.
        limit: only the first photos by key.
        file_format: "array_record" or "tfrecord".
        workers: processes on this machine; None: one for each core.
        runner: of Apache Beam; "local": processes on this machine.
        beam_options: the runner's own.
        keep_work: keep the work folder.
        make_measurer: a module's function, settings -> measurer, called in every worker.
        stream: where progress is reported; None: standard error.

    Returns:
        The manifest of the records in `out`.

    Raises:
        CapHumanError: the photos cannot be prepared, or `out` holds other records.
    """
    lacking = [name for name in _NEEDED if not importlib.util.find_spec(name)]
    if lacking:
        raise DataError(
            f"photos are prepared with {', '.join(lacking)}, which is not installed: pip install "
            f"'.[data]'"
        )
    out = out.rstrip("/") if not files.is_local(out) else os.path.abspath(os.path.expanduser(out))
    files.check_known(out)
    _check_beam(runner, workers, beam_options or [])
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
        if runner.lower() in _LOCAL_NAMES:
            _check_loopback()
        _check_unfinished(job)
        with _explained(out), _locked(job):
            done = read_manifest(out)  # of a run that ended meanwhile
            if not done:
                listing = _listed(items, job, settings.same_person)
                arguments = _arguments(runner, workers, listing.chunks, beam_options or [])
                _run_pipeline(job, listing, arguments, stream)
                done = finalize.finish(
                    job, listing, {"text": photos, "options": options, "limit": limit}
                )
            if not keep_work:  # before another run can lock it
                files.remove(job.folder)
        say(_summary(done, out))
    if not keep_work:
        files.remove(job.folder)
    return done


def _listed(items: Callable, job: workdir.Job, same_person: str) -> workdir.Listing:
    """Write the listing. Raises DataError if it differs from the one that the work began with; only
    the places of the photos may change. Photos that are refused leave no new work folder.
    """
    before = workdir.read_listing(job.folder)
    if before and workdir.write_listing(items(), None) != before:
        raise DataError(
            f"{job.source} has changed since this work began, when it had {before.photos:,} "
            f"photos; remove {job.folder} to start again"
        )
    try:
        files.write(job.path("settings.json"), json.dumps(job.settings.to_dict()).encode())
        listing = workdir.write_listing(items(), job.folder)
        splits.check_photos(same_person, listing.photos)
    except CapHumanError:
        if before is None:
            files.remove(job.folder)
        raise
    return listing


def _run_pipeline(job: workdir.Job, listing: workdir.Listing, arguments: list[str], stream) -> None:
    """Run the pipeline in a process of its own, in a group with its workers so that all can be
    killed, and report its progress.
    """
    progress = Progress(job, listing, stream)
    process = subprocess.Popen(
        worker_process.COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stderr is not None, "they are pipes"
    lines: collections.deque = collections.deque(maxlen=_LOG_LINES)
    reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # its exit is explained below
            process.stdin.write(pickle.dumps((job, arguments)))
            process.stdin.close()
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            progress.show()
        progress.end()
    except KeyboardInterrupt as stop:
        stop.args = ("rerun the same command to resume",)
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
    """The error that the pipeline reported, or where to look for it."""
    if line := extract_error(output):
        return DataError(line)
    if "No space left on device" in output:
        return DataError(f"no space is left for {job.out}; make room and rerun the same command")
    if "RESOURCE_EXHAUSTED" in output or "MemoryError" in output:
        return DataError(
            "the memory does not suffice; run the same command with fewer --workers to resume"
        )
    with contextlib.suppress(OSError):
        files.write(job.path(_LOG), output.encode())
    last = next(
        (line.strip() for line in reversed(output.splitlines()) if line.strip()),
        f"it ended with {code}",
    )
    return DataError(
        f"the pipeline failed: {last[:300]} (more in {job.path(_LOG)}); run the same command "
        f"again to resume"
    )


def _check_beam(runner: str, workers: int | None, options: list[str]) -> None:
    """Raises SettingError where the runner or one of its options is wrong."""
    arguments = _arguments(runner, workers, 1, options)
    if not options and runner.lower() in _LOCAL_NAMES:
        return
    checked = subprocess.run(
        worker_process.CHECK, input=json.dumps(arguments), capture_output=True, text=True
    )
    if line := extract_error(checked.stderr):
        raise SettingError(line)


def _arguments(runner: str, workers: int | None, chunks: int, options: list[str]) -> list[str]:
    """Beam's options."""
    if runner.lower() not in _LOCAL_NAMES:
        if workers:
            raise SettingError(
                f"--workers is for this machine; {runner} takes its number of workers from its own "
                f"options, after --"
            )
        return [f"--runner={runner}", *options]
    count = min(workers or os.cpu_count() or 1, max(chunks, 1))
    return ["--direct_running_mode=multi_processing", f"--direct_num_workers={count}", *options]


def _check_finished(
    manifest: dict, job: workdir.Job, fingerprint: str, listing: workdir.Listing
) -> None:
    """Raises DataError if a finished folder holds other records."""
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
            f"({_difference(before, job.settings.to_dict())}); give those settings again to resume "
            f"it, choose another --out, or remove it"
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
    return "; ".join(named) or "the networks differ"


def _check_loopback() -> None:
    """Raises DataError if processes of this machine cannot reach each other. Beam would wait for
    its workers for ever.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise DataError(
            f"the workers talk through this machine's loopback interface, which does not work "
            f"({error.strerror or error}); start it, for example with: ip link set lo up"
        ) from error


@contextlib.contextmanager
def _explained(out: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise files.explained(error, out) from error


@contextlib.contextmanager
def _locked(job: workdir.Job) -> Iterator[None]:
    """Keep a second run on this machine away from the same work."""
    if not files.is_local(job.folder):
        yield
        return
    os.makedirs(job.folder, exist_ok=True)
    taken = f"another caphuman prepare is running in {job.out}; wait for it, or stop it"
    with folder_lock.held(Path(job.path("lock")), taken):
        yield


def _summary(manifest: dict, out: str) -> str:
    lines = [
        f"{manifest['kept']:,} of {manifest['photos']:,} photos kept: {_splits_text(manifest)}"
    ]
    width = max(map(len, manifest["dropped"]), default=0)
    most = sorted(manifest["dropped"].items(), key=lambda one: (-one[1], one[0]))
    lines += [
        f"  {number:>8,}  {reason:<{width}}  {REASONS.get(reason, '')}".rstrip()
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
