"""Photos to shards as one Apache Beam pipeline, for any of its runners. Only the numbers of chunks
and shards go through it:

    listing files → their chunks → measured, a chunk a file → (all done) → plan → shards, each
    written by one worker

The work itself is passed on in files of the work folder (data_pipeline.prepare.workdir), so another
run resumes from there. On one machine the workers are processes that this one starts;
data_pipeline.prepare.worker_process makes sure that they end with it.
"""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import sys
import threading
from typing import NoReturn

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import create_runner

from caphuman_jax.errors import CapHumanError, SettingError
from caphuman_jax.io import files
from data_pipeline.prepare import plan, shards, workdir
from data_pipeline.prepare.error_text import extract_error, wrap_error

# Beam's "DirectRunner" now downloads a program; this runner is part of the package, and can use
# several processes.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_MEASURING = threading.Lock()
# One thread each, since results must not depend on how many workers share the cores, and the
# threads of several workers would compete.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
_XLA_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def check_arguments(arguments: list[str]) -> None:
    """Check what `run` is given, before anything is read or written.

    Args:
        arguments: Beam's own, as of `run`.

    Raises:
        SettingError: a runner that there is not or that cannot be imported; an option that Beam
            does not know, a value that an option does not take, or an option that is missing.
            What Beam does not know is passed on where the runner has a job server, which has
            options of its own.
    """
    name = _parse(arguments)[0].runner or LOCAL_RUNNER
    try:
        runner = FnApiRunner() if name == LOCAL_RUNNER else create_runner(name)
    except Exception as error:  # whatever the import of a runner raises
        text = " ".join(str(error).split())
        raise SettingError(f"--runner {name} cannot be used: {text or type(error).__name__}") from (
            error
        )
    unknown = _parse(arguments)[1]  # again, since the runner's module may define options
    if unknown and not isinstance(runner, PortableRunner):
        raise SettingError(
            f"{unknown[0]!r} after -- is not an option of Apache Beam; check its spelling, or "
            f"leave it out"
        )
    if problems := PipelineOptionsValidator(PipelineOptions(arguments), runner).validate():
        raise SettingError(f"Beam's options, after --: {'; '.join(map(str, problems))}")


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Beam's options, and what it does not know. Raises SettingError for a wrong value."""
    parsers: list[argparse.ArgumentParser] = []
    # Without arguments: Beam would log the unknown ones.
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)

    def refuse(message: str) -> NoReturn:
        raise SettingError(f"Beam's options, after --: {message}")

    parsers[0].error = refuse
    return parsers[0].parse_known_args(arguments)


def run(job: workdir.Job, arguments: list[str]) -> None:
    """Run the pipeline to its end.

    Args:
        job: what to do.
        arguments: Beam's own (`--runner` and the runner's options); without a runner, the local
            runner in this process.

    Raises:
        CapHumanError: a worker raised it. Other errors of the runner are raised as they are.
    """
    options = PipelineOptions(arguments)
    name = options.get_all_options()["runner"] or LOCAL_RUNNER
    runner = _local_runner(options) if name == LOCAL_RUNNER else create_runner(name)
    try:
        with beam.Pipeline(runner=runner, options=options) as pipeline:
            build(pipeline, job)
    except Exception as error:
        if line := extract_error(str(error)):
            raise CapHumanError(line) from error
        raise


def build(pipeline: beam.Pipeline, job: workdir.Job) -> beam.PCollection:
    """Add the steps to a pipeline. Returns what `shards.write_shard` returns for each shard."""
    listing = workdir.read_listing(job.folder)
    assert listing is not None, "`prepare` writes it first"
    measured = (
        pipeline
        | "listing files" >> beam.Create(range(-(-listing.chunks // workdir.LINES)))
        | "chunks" >> beam.FlatMap(workdir.chunk_places, folder=job.folder)
        | "spread chunks" >> beam.Reshuffle()
        | "measure" >> beam.ParDo(_Measure(job))
        | "all measured" >> beam.CombineGlobally(sum)
    )
    return (
        measured
        | "plan" >> beam.ParDo(_Plan(job, listing.chunks))
        | "spread shards" >> beam.Reshuffle()
        | "write" >> beam.ParDo(_Write(job))
    )


class _Step(beam.DoFn):
    """A step of a job. Messages for the user are wrapped, since runners pass on only text."""

    def __init__(self, job: workdir.Job):
        self.job = job

    def setup(self):
        one_thread()

    def process(self, element):
        try:
            yield from self.do(element)
        except CapHumanError as error:
            raise RuntimeError(wrap_error(error)) from error
        except OSError as error:
            explained = files.explained(error, self.job.out)
            raise RuntimeError(
                wrap_error(explained) if isinstance(explained, CapHumanError) else str(error)
            ) from error


class _Measure(_Step):
    def do(self, place):
        number = place[0]
        if not workdir.is_measured(self.job.folder, number):
            with (
                _MEASURING
            ):  # some runners have several threads a process, which share the networks
                source, item_type, measurer, features = _tools(pickle.dumps(self.job))
                items = workdir.read_items(place, self.job.folder, item_type)
                workdir.measure_chunk(items, number, self.job.folder, features, source, measurer)
        yield 1


class _Plan(_Step):
    def __init__(self, job: workdir.Job, chunks: int):
        super().__init__(job)
        self.chunks = chunks

    def do(self, measured):
        if measured != self.chunks:
            raise RuntimeError(f"{measured} of {self.chunks} chunks were measured")
        yield from plan.make_plan(self.job)


class _Write(_Step):
    def do(self, shard):
        yield shards.write_shard(self.job, shard)


@functools.lru_cache(maxsize=1)
def _tools(pickled: bytes) -> tuple:
    """Source, type of its items, measurer and features of a job, made once in a process."""
    from data_pipeline.sources.base import Item

    job = pickle.loads(pickled)
    return job.open_source(), Item, job.measurer(job.settings), job.features()


def one_thread() -> None:
    """Make numerical libraries that are loaded from now on use one thread."""
    os.environ.update(ONE_THREAD)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Several workers share an accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags = os.environ.get("XLA_FLAGS", "")
    if _XLA_ONE_THREAD not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_XLA_ONE_THREAD}".strip()
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


class _LoopbackGrpc:
    """The module grpc for Beam's local runner: its servers listen on loopback interfaces only.

    Beam has no setting for it. Its servers listen on all interfaces, without a password, though
    its local workers connect to localhost.
    """

    def __getattr__(self, name: str):
        return getattr(grpc, name)

    @staticmethod
    def server(*args, **named) -> grpc.Server:
        """As `grpc.server`; the address that the server is given must be `[::]:PORT`."""
        server = grpc.server(*args, **named)
        listen = server.add_insecure_port
        server.add_insecure_port = lambda address: listen(address.replace("[::]", "localhost"))
        return server


def _local_runner(options: PipelineOptions):
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability import local_job_service
    from apache_beam.runners.portability.fn_api_runner import fn_runner, worker_handlers
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    # The runner's four servers, and one for the log of each worker.
    worker_handlers.grpc = local_job_service.grpc = _LoopbackGrpc()
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    return fn_runner.FnApiRunner(
        provision_info=fn_runner.ExtendedProvisionInfo(
            beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
        )
    )
