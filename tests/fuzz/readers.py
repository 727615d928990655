"""What is fuzzed: each reader of files or texts from elsewhere, as a function of bytes.

A reader gives a value, or raises the project's own error. Anything else is a finding.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz import mutations
from fuzz.mutations import Mutation

Run = Callable[[bytes], object]
_FRAMES, _ITEMS = 8, 20


@dataclasses.dataclass(frozen=True)
class Reader:
    """name: also of its folder in the corpus. make: given a scratch folder, imports what it needs
    and returns the function; mutate: of its inputs.
    """

    name: str
    make: Callable[[Path], Run]
    mutate: Mutation = mutations.any_bytes


def _in_file(name: str, read: Callable[[Path], object]) -> Callable[[Path], Run]:
    """A reader of paths."""

    def make(scratch: Path) -> Run:
        path = scratch / name

        def run(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return run

    return make


def _checkpoint(path: Path) -> None:
    from caphuman_jax.weights.checkpoint_files import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        for name in checkpoint:
            checkpoint.shape(name), checkpoint.dtype(name), checkpoint[name]


def _pickle(path: Path) -> object:
    from caphuman_jax.io.pickles import read_pickle

    return read_pickle(path)


def _npz(path: Path) -> object:
    from caphuman_jax.head.models import flame_files

    return flame_files.read_mediapipe(path)


def _template(path: Path) -> object:
    from caphuman_jax.head.models import flame_files

    return flame_files.read_template(path)


def _lora(path: Path) -> object:
    from tiny_model import TINY

    from caphuman_jax.weights import lora

    return lora.read_file(path, TINY)


def _embedding(path: Path) -> object:
    from tiny_model import TINY

    from caphuman_jax.weights import embeddings

    return embeddings.read_files([(path, None)], TINY)


def _onnx(path: Path) -> object:
    from caphuman_jax.face.arcface import SIZE, ArcFace

    return ArcFace(path, 1)(np.full((1, SIZE, SIZE, 3), 100, np.uint8))


def _photo(scratch: Path) -> Run:
    from caphuman_jax.io.images import read_photo

    return read_photo


def _video(path: Path) -> object:
    from caphuman_jax.io.frames import frames

    return list(itertools.islice(frames(path), _FRAMES))


def _metadata(path: Path) -> object:
    from caphuman_jax.cli import generate

    names = ("sequence", "control", "person", "reference", "prompt", "combine", "numbers", "yaw")
    args = dict.fromkeys((*names, *_all_options()), None)
    args |= {"repeat": str(path), "reference": ["me.jpg"]}
    return generate._repeated(types.SimpleNamespace(**args))


@functools.cache
def _all_options() -> tuple[str, ...]:
    from caphuman_jax.cli import head_arguments
    from caphuman_jax.diffusion.sampling_params import FIELDS

    return (*head_arguments.OPTIONS, *FIELDS)


def _jobs(scratch: Path) -> Run:
    from tiny_model import TINY

    from caphuman_jax.jobs.jobs import read_jobs
    from caphuman_jax.jobs.validate import Checker

    (scratch / "me.jpg").write_bytes(b"x")
    path, checker = scratch / "jobs.jsonl", Checker(TINY)

    def run(data: bytes) -> object:
        path.write_bytes(data)
        checker._known.clear()
        checker._bases.clear()
        return read_jobs(path, checker, {})

    return run


def _json(scratch: Path) -> Run:
    from caphuman_jax.errors import SettingError
    from caphuman_jax.io import json_reader

    def run(data: bytes) -> object:
        try:
            return json_reader.parse(data)
        except json_reader.JsonError as error:
            raise SettingError(str(error)) from error
        except ValueError as error:
            if type(error).__name__ != "JSONDecodeError":
                raise
            raise SettingError(str(error)) from error

    return run


def _head(path: Path) -> object:
    from caphuman_jax.head import head_json
    from caphuman_jax.pipeline.head_target import HeadTarget

    model = _head_model()
    record = head_json.read(path)
    head_json.build(model, record)
    target = HeadTarget.of(record)
    target.check(model)
    return target


@functools.cache
def _head_model():
    from caphuman_jax.head.models.registry import load_head

    return load_head("anny")


def _table(path: Path) -> object:
    from caphuman_jax.head import sequence

    return sequence.read_table(path)


def _photo_table(path: Path) -> object:
    from data_pipeline.sources.tables import TableSource

    return list(TableSource(str(path)).items())


def _pairs(path: Path) -> object:
    from data_pipeline.sources.base import look_up, read_pairs

    return look_up(read_pairs(path), "folder/a.jpg")


def _model_config(scratch: Path) -> Run:
    from caphuman_jax.weights import model_folder

    def run(data: bytes) -> object:
        (scratch / "config.json").write_bytes(data)
        model_folder.file_entries(scratch)
        model_folder.read_metadata(scratch)
        return model_folder.read_config(scratch)

    return run


def _override(scratch: Path) -> Run:
    from caphuman_jax.training import run_config

    return lambda data: run_config.read_config("mini", _text(data).split("\n"), "cpu")


def _suite(path: Path) -> object:
    from caphuman_jax.evaluation.suites import suite_file

    return suite_file.load(str(path))


def _manifest(scratch: Path) -> Run:
    from data_pipeline.records.manifest import MANIFEST, read_manifest, records_hash
    from data_pipeline.records.reader import RecordsFolder
    from data_pipeline.records.schema import NAME, VERSION

    folder = scratch / NAME / VERSION
    folder.mkdir(parents=True)
    (folder / "caphuman_records-train.array_record-00000-of-00001").write_bytes(b"")

    def run(data: bytes) -> object:
        (folder / MANIFEST).write_bytes(data)
        found = read_manifest(str(scratch))
        records_hash(found or {})
        return RecordsFolder(scratch).splits

    return run


def _array_record(path: Path) -> object:
    from data_pipeline.records.shard_file import open_file

    file = open_file(path, "array_record")
    return file.read(0, min(file.count, _ITEMS))


def _tfrecord(path: Path) -> object:
    from data_pipeline.records.shard_file import open_file

    file = open_file(path, "tfrecord")
    return file.read(0, min(file.count, _ITEMS))


def _record(scratch: Path) -> Run:
    from data_pipeline.records import tf_example
    from data_pipeline.records.schema import features

    found = features(small_layout())
    texts = [f.name for f in found if f.kind in ("text", "texts")]
    images = [f for f in found if f.kind == "image"]

    def run(data: bytes) -> object:
        tf_example.decode(found, data, texts)
        record = tf_example.decode(found, data)
        return [tf_example.decode_image(f, record[f.name]) for f in images]

    return run


def small_layout():
    """The records of the corpus."""
    from records_standin import LAYOUT

    return dataclasses.replace(LAYOUT, size=8, stored=12, identity=4, albedo=(2, 3))


def _identity(path: Path) -> object:
    from caphuman_jax.person import identity_file

    return identity_file.load(path, "anny", "shipped")


def _tar(path: Path) -> str:
    from caphuman_jax.errors import DataError
    from data_pipeline.sources.tars import TarSource

    source = TarSource(str(path))
    items = list(itertools.islice(source.items(), _ITEMS))
    said = []
    for item in items:
        try:
            said.append(f"read {len(source.read(item)) // 100}")
        except DataError as error:
            said.append(str(error))  # this item is left out, the others are read
    return "; ".join(sorted({line[:60] for line in said}))


def _prompt(scratch: Path) -> Run:
    from caphuman_jax.models.prompt import PromptEncoder
    from caphuman_jax.models.tokenizer import ClipTokenizer

    encode = PromptEncoder(ClipTokenizer()).with_words({"style": 3})

    def run(data: bytes) -> object:
        text = _text(data)
        encode.unknown_words(text)
        return encode([text, ""])

    return run


def _person(scratch: Path) -> Run:
    from caphuman_jax.cli import person_argument
    from caphuman_jax.pipeline.head_target import HeadTarget
    from caphuman_jax.pipeline.request import check_region

    def run(data: bytes) -> object:
        person = person_argument.parse(_text(data))
        region = {name: person[name] for name in ("prompt", "box", "mask") if name in person}
        check_region(region, True)
        HeadTarget.of(person["head"]).check(_head_model())

    return run


def _options(scratch: Path) -> Run:
    """Options of generate, through its own parser."""
    from tiny_model import TINY

    from caphuman_jax.cli import app, argument_types, head_arguments, sampling_arguments
    from caphuman_jax.diffusion.sampling_params import SamplingParams
    from caphuman_jax.errors import SettingError
    from caphuman_jax.pipeline.head_target import HeadTarget
    from caphuman_jax.weights import embeddings, lora

    class Parser(app._Parser):
        def error(self, message):
            raise SettingError(message)

    parser = Parser(add_help=False, exit_on_error=True)
    head_arguments.add_head_arguments(parser)
    sampling_arguments.add_sampling_arguments(parser.add_argument_group("sampling"))
    parser.add_argument("--lora", type=lora.parse)
    parser.add_argument("--embedding", type=embeddings.parse)
    parser.add_argument("--count", type=argument_types.positive_int)

    def run(data: bytes) -> object:
        args = parser.parse_args(_text(data).split("\n"))
        HeadTarget.of(head_arguments.head_target(args)).check(_head_model())
        return SamplingParams.create(TINY, **sampling_arguments.sampling_given(args))

    return run


def _text(data: bytes) -> str:
    """As the command line gives it: bytes that are not UTF-8 are lone surrogates."""
    return data.decode("utf-8", "surrogateescape").replace("\x00", "")


_OF_ZIP = functools.partial(mutations.zipped, inner=mutations.any_bytes)
READERS = {
    reader.name: reader
    for reader in (
        Reader("pickle", _in_file("x.pkl", _pickle)),
        Reader("torch_zip", _in_file("x.pt", _checkpoint), _OF_ZIP),
        Reader("torch_old", _in_file("x.ckpt", _checkpoint)),
        Reader("safetensors", _in_file("x.safetensors", _checkpoint), mutations.safetensors),
        Reader("msgpack", _in_file("x.msgpack", _checkpoint)),
        Reader("npz", _in_file("x.npz", _npz), _OF_ZIP),
        Reader("template", _in_file("x.obj", _template), mutations.any_text),
        Reader("lora", _in_file("x.safetensors", _lora), mutations.safetensors),
        Reader("embedding", _in_file("x.pt", _embedding), _OF_ZIP),
        Reader("onnx", _in_file("w600k_r50.onnx", _onnx), mutations.protobuf),
        Reader("photo", _photo, mutations.png),
        Reader("video", _in_file("x.mp4", _video)),
        Reader("metadata", _in_file("x.png", _metadata), mutations.png_texts),
        Reader("jobs", _jobs, mutations.json_lines),
        Reader("json", _json, mutations.any_json),
        Reader("head", _in_file("head.json", _head), mutations.any_json),
        Reader("table_csv", _in_file("x.csv", _table), mutations.any_text),
        Reader("table_json", _in_file("x.json", _table), mutations.any_json),
        Reader("photo_table", _in_file("x.csv", _photo_table), mutations.any_text),
        Reader("pairs", _in_file("x.txt", _pairs), mutations.any_text),
        Reader("model_config", _model_config, mutations.any_json),
        Reader("override", _override, mutations.any_text),
        Reader("suite", _in_file("x.toml", _suite), mutations.any_text),
        Reader("manifest", _manifest, mutations.any_json),
        Reader("array_record", _in_file("x.array_record", _array_record)),
        Reader("tfrecord", _in_file("x.tfrecord", _tfrecord), mutations.tfrecord),
        Reader("record", _record, mutations.protobuf),
        Reader("identity", _in_file("x.identity", _identity), mutations.safetensors),
        Reader("tar", _in_file("x.tar", _tar), mutations.tar),
        Reader("prompt", _prompt, mutations.any_text),
        Reader("person", _person, mutations.any_text),
        Reader("options", _options, mutations.any_text),
    )
}
