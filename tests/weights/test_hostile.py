"""Hostile and damaged files: nothing of them is run, nothing large is allocated, and every failure
is one clear error.
"""

import argparse
import collections
import datetime
import decimal
import fractions
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import types
import uuid
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.io.pickle_reader import Inert
from caphuman_jax.io.pickles import read_pickle
from caphuman_jax.weights.checkpoint_files import open_checkpoint

TOUCH = "caphuman_was_here"


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args, state=None):
        self.reduction = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduction


def text(opcodes: str) -> bytes:
    return opcodes.encode("latin1")


ATTACKS = {
    "reduce": (pickle.dumps(Call(os.system, f"touch {TOUCH}"), 2), r"posix\.system"),
    "stack global": (pickle.dumps(Call(os.system, f"touch {TOUCH}"), 4), r"posix\.system"),
    "eval": (pickle.dumps(Call(eval, f"open('{TOUCH}', 'w')"), 2), r"builtins\.eval"),
    "eval of python 2": (text("c__builtin__\neval\n(S'1'\ntR."), r"builtins\.eval"),
    "inst": (text(f"(S'touch {TOUCH}'\nios\nsystem\n."), r"os\.system"),
    "obj": (text(f"(cos\nsystem\nS'touch {TOUCH}'\no."), r"os\.system"),
    "dotted name": (
        b"\x80\x04\x8c\x02os\x8c\x0bpath.exists\x93\x8c\x01x\x85R.",
        r"os\.path\.exists",
    ),
    "dotted from a known module": (
        b"\x80\x04\x8c\x0bcollections\x8c\x10_sys.modules.get\x93\x8c\x02os\x85R.",
        r"collections\._sys\.modules\.get",
    ),
    "getattr": (pickle.dumps(Call(getattr, "x", "upper"), 2), r"builtins\.getattr"),
    "newobj": (b"\x80\x02csubprocess\nPopen\n(U\x04truet\x81.", r"subprocess\.Popen"),
    "newobj_ex": (
        b"\x80\x04ccollections\nOrderedDict\n)}X\x01\x00\x00\x00aK\x01s\x92.",
        "keyword arguments",
    ),
    "extension code": (b"\x80\x02\x82\x01.", "extension code 1"),
    "extension code of 4 bytes": (b"\x80\x02\x84\x01\x00\x00\x00.", "extension code 1"),
    "persistent id": (text("Psomething\n."), "persistent ids"),
    "binary persistent id": (b"\x80\x02X\x01\x00\x00\x00aQ.", "persistent ids"),
    "reconstructor of any class": (
        text("ccopy_reg\n_reconstructor\n(cos\nPopen\nc__builtin__\nobject\nNtR."),
        r"os\.Popen",
    ),
    "reconstructor of a marker": (
        text("ccopy_reg\n_reconstructor\n(c__builtin__\ndict\nc__builtin__\nobject\nNtR."),
        r"an object of builtins\.dict",
    ),
    "reconstructor with a base": (
        text("ccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nc__builtin__\ndict\n(dtR."),
        r"an object of chumpy",
    ),
    "call of a marker": (
        text("cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n(tR."),
        "calls .*ModelCheckpoint",
    ),
    "state of a marker": (
        text("cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n(dS'a'\nI1\nsb."),
        "sets the state of .*ModelCheckpoint",
    ),
    "state of a builder": (
        text("ccollections\nOrderedDict\n(dS'call'\ncos\nsystem\nsb."),
        r"os\.system",
    ),
    "state of a list": (text("(l(dS'__class__'\nI1\nsb."), "sets the state of list"),
    "call of what was made": (text("(l(tR."), "list is called"),
    "odd codec": (
        pickle.dumps(Call(__import__("_codecs").encode, "x", "rot13"), 2),
        "encodes text as 'rot13'",
    ),
    "codecs lookup": (text("c_codecs\nlookup\n(S'x'\ntR."), r"_codecs\.lookup"),
    "default factory": (text("ccollections\ndefaultdict\n(cos\nsystem\ntR."), r"os\.system"),
    "numpy load": (text("cnumpy\nload\n(S'x'\ntR."), r"numpy\.load"),
    "numpy runstring": (
        text("cnumpy.testing._private.utils\nrunstring\n(S'1'\n(dtR."),
        "runstring",
    ),
    "object pointers": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntR"
        b"(I3\nS'|'\nNNNI-1\nI-1\nI63\ntbI00\nS'AAAAAAAA'\ntb.",
        "array of objects",
    ),
    "object scalar": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'AAAAAAAA'\ntR.",
        "array of objects",
    ),
    "record type": (pickle.dumps(np.zeros(2, [("a", "f4"), ("b", "O")]), 2), "array"),
    "type by a string with commas": (
        text("cnumpy\ndtype\n(S'f8,O'\nI0\nI1\ntR."),
        "arrays of type",
    ),
    "subclass of array": (
        text("cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nmatrix\n(I0\ntS'b'\ntR."),
        r"numpy\.matrix",
    ),
    "array larger than its data": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(L1152921504606846976L\ntcnumpy\ndtype\n"
        b"(S'f8'\nI0\nI1\ntRI00\nS'AAAAAAAA'\ntb.",
        "not as long as its shape",
    ),
    "huge bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.", "damaged"),
    "huge text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.", "damaged"),
    "huge frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.", None),  # reads what there is
    "huge byte array": (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"x.", "damaged"),
    "huge bytes by number": (
        text("c__builtin__\nbytearray\n(L1152921504606846976L\ntR."),
        "encodes|damaged",
    ),
    "huge integer": (b"L" + b"9" * 100_000 + b"L\n.", "damaged"),
    "huge memo": (b"\x80\x02Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.", None),
    "buffer from outside": (b"\x80\x05\x97.", "buffers outside"),
    "stack underflow": (b"\x80\x020R.", "damaged"),
    "never stops": (b"\x80\x02" + b"N0" * 100, "damaged"),
    "list as key": (text("(d(lI1\ns."), "key is a list"),
    "entries of a list": (text("(lI0\nI1\ns."), "not a dict"),
    "torch from bytes": (text("ctorch.storage\n_load_from_bytes\n(S'x'\ntR."), "_load_from_bytes"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(tmp_path, monkeypatch, name):
    data, message = ATTACKS[name]
    monkeypatch.chdir(tmp_path)
    for file in ("x.pkl", "x.ckpt"):
        (tmp_path / file).write_bytes(data)
        if message is None:
            read_pickle(tmp_path / file)
            continue
        with pytest.raises(ModelFolderError, match=message) as error:
            read_pickle(tmp_path / file) if file == "x.pkl" else open_checkpoint(tmp_path / file)
        assert str(tmp_path / file) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / TOUCH).exists()


@pytest.mark.parametrize(
    "name", [name for name in ATTACKS if ATTACKS[name][1] and name != "never stops"]
)
@pytest.mark.parametrize("form", ["new", "old"])
def test_attacks_inside_of_torch_files(tmp_path, monkeypatch, name, form):
    """The same, as data.pkl of a zip and as the content of an old file."""
    data, _ = ATTACKS[name]
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "x.pt"
    torch.save({"w": torch.ones(3)}, file, _use_new_zipfile_serialization=form == "new")
    if form == "new":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x/data.pkl", data)
    else:
        raw = file.read_bytes()
        file.write_bytes(raw[: end_of_pickles(raw, 3)] + data + raw[end_of_pickles(raw, 3) :])
    if (name, form) == (
        "default factory",
        "new",
    ):  # where only a part is wanted, the rest may name anything
        assert len(open_checkpoint(file)) == 0
    else:
        with pytest.raises(ModelFolderError, match="x.pt"):
            open_checkpoint(file)
    assert not (tmp_path / TOUCH).exists()


class DictConfig:
    """As omegaconf's: its state is a dict that holds others of its kind."""

    def __init__(self, content):
        self._content = content


DictConfig.__module__ = "omegaconf.dictconfig"


def settings_that_training_leaves() -> dict:
    """Objects of ten classes that nobody needs, next to the weights."""
    state = np.random.RandomState(0)
    return {
        "args": argparse.Namespace(lr=1e-4, out=pathlib.PurePosixPath("/tmp/x"), inner=[1, {}]),
        "date": datetime.datetime(2023, 4, 5),
        "delta": datetime.timedelta(days=2),
        "path": pathlib.PosixPath("/tmp/x"),
        "random": state,
        "generator": np.random.default_rng(0),
        "hyper_parameters": DictConfig({"model": DictConfig({"steps": 3}), "list": [1, 2]}),
        "fraction": fractions.Fraction(1, 3),
        "decimal": decimal.Decimal("0.1"),
        "id": uuid.UUID(int=5),
        "counter": collections.Counter("aab"),
        "callbacks": {datetime.date: 1, datetime.date(2023, 1, 1): {datetime.date(2023, 1, 2)}},
    }


@pytest.mark.parametrize("form", ["new", "old"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_settings_next_to_a_clean_state_dict_become_markers(tmp_path, monkeypatch, form, protocol):
    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = DictConfig
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    monkeypatch.chdir(tmp_path)
    content = {
        **settings_that_training_leaves(),
        "bad": Call(os.system, f"touch {TOUCH}"),
        "worse": Call(getattr, Call(__import__, "os"), "system"),
        "state_dict": {"a.weight": torch.arange(3.0)},
        "global_step": 7,
    }
    torch.save(
        content,
        "x.ckpt",
        _use_new_zipfile_serialization=form == "new",
        pickle_protocol=protocol,
    )
    (tmp_path / TOUCH).unlink(missing_ok=True)
    with open_checkpoint("x.ckpt") as checkpoint:
        assert list(checkpoint) == ["a.weight"] and checkpoint.extra["global_step"] == 7
        np.testing.assert_array_equal(checkpoint["a.weight"], [0, 1, 2])
    for part in ("args", "bad", ""):
        with pytest.raises(ModelFolderError, match="which is neither a tensor nor"):
            open_checkpoint("x.ckpt", part)
    assert not (tmp_path / TOUCH).exists()


def test_a_marker_in_the_wanted_part_is_refused_by_its_name(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1), "b": datetime.date(2023, 1, 1)}}, tmp_path / "x")
    with pytest.raises(ModelFolderError, match=r"b is made of datetime\.date, which is neither"):
        open_checkpoint(tmp_path / "x")


def test_markers_have_no_methods():
    made = Inert("x.y")
    own = {name for name in dir(type(made)) if name not in dir(object)}
    assert own - {"__module__"} == {"__slots__", "name"}
    with pytest.raises(AttributeError):
        made.anything = 1


def end_of_pickles(raw: bytes, count: int) -> int:
    stream = io.BytesIO(raw)
    for _ in range(count):
        pickle._Unpickler(stream).load()
    return stream.tell()


def test_shared_parts_do_not_explode(tmp_path):
    """60 lists, each twice the one before: 2^60 leaves to one who writes them out."""
    bomb = [1.0]
    for _ in range(60):
        bomb = [bomb, bomb]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": bomb}, 2))
    read_pickle(tmp_path / "x.pkl")
    with pytest.raises(ModelFolderError, match="nested without end"):
        open_checkpoint(tmp_path / "x.pkl")

    key = (1,)
    for _ in range(60):
        key = (key, key)
    stream = io.BytesIO()
    pickle._Pickler(stream, 2).save(key)
    (tmp_path / "y.pkl").write_bytes(b"\x80\x02}" + stream.getvalue() + b"K\x01s.")
    with pytest.raises(ModelFolderError, match="key is a tuple"):
        read_pickle(tmp_path / "y.pkl")


def test_copies_of_a_large_part_are_counted(tmp_path):
    """One list of a million, made into a set again and again."""
    many = b"(" + b"K\x01" * 1_000_000 + b"l"
    data = b"\x80\x02" + many + b"q\x000(" + b"c__builtin__\nset\nh\x00\x85R" * 2000 + b"l."
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(ModelFolderError, match="more memory than its own size"):
        read_pickle(tmp_path / "x.pkl")


def test_what_contains_itself(tmp_path):
    loop: list = []
    loop.append(loop)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(loop))
    assert read_pickle(tmp_path / "x.pkl")[0] is not None
    with pytest.raises(ModelFolderError, match="nested without end"):
        open_checkpoint(tmp_path / "x.pkl")
    (tmp_path / "y.pkl").write_bytes(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")
    with pytest.raises(ModelFolderError, match="damaged"):
        read_pickle(tmp_path / "y.pkl")


def sparse(**change) -> bytes:
    state = {
        "_shape": (2, 2),
        "data": np.ones(1),
        "indices": np.zeros(1, np.int32),
        "indptr": np.array([0, 1, 1], np.int32),
    } | change
    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, 2)
    pickler.save(state)
    return b"\x80\x02cscipy.sparse.csc\ncsc_matrix\n)\x81" + stream.getvalue() + b"b."


@pytest.mark.parametrize(
    "change",
    [
        {"_shape": (10**9, 10**9)},
        {"_shape": (2, -2)},
        {"_shape": None},
        {"indices": np.array([7], np.int32)},
        {"indices": np.array([-1], np.int32)},
        {"indptr": np.array([0, 9, 9], np.int32)},
        {"indptr": np.array([0, -1, 1], np.int32)},
        {"indptr": np.zeros(0, np.int32)},
        {"data": None},
        {"indices": np.array([0.5])},
        {"data": np.array(["x"])},
    ],
)
def test_impossible_sparse_matrices(tmp_path, change):
    (tmp_path / "x.pkl").write_bytes(sparse())
    assert read_pickle(tmp_path / "x.pkl").tolist() == [[1, 0], [0, 0]]
    (tmp_path / "x.pkl").write_bytes(sparse(**change))
    with pytest.raises(ModelFolderError, match="sparse"):
        read_pickle(tmp_path / "x.pkl")


def zip_of(described: bytes, **parts: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x/data.pkl", described)
        for name, content in parts.items():
            archive.writestr(f"x/data/{name}" if name != "byteorder" else "x/byteorder", content)
    return stream.getvalue()


def tensor_pickle(
    offset=0,
    size="(K\x02t",
    strides="(K\x01t",
    count="K\x04",
    key="0",
    kind="ctorch\nFloatStorage\n",
) -> bytes:
    return text(
        f"\x80\x02}}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage{kind}X\x01\x00\x00\x00{key}X\x03\x00\x00\x00cpu"
        f"{count}tQK{chr(offset)}{size}{strides}\x89ccollections\nOrderedDict\n)RtRs."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": 3}, "larger than its storage"),
        ({"size": "(K\x05t"}, "larger than its storage"),
        ({"strides": "(K\x04t"}, "larger than its storage"),
        ({"strides": "(I-1\nt"}, "negative"),
        ({"size": "(I-2\nt"}, "negative"),
        ({"size": "(t"}, "without storage, size"),
        ({"size": "(L1152921504606846976L\nt", "strides": "(K\x00t"}, "larger than its storage"),
        ({"count": "K\x05"}, "missing or cut short"),
        ({"key": "1"}, "missing or cut short"),
        ({"kind": "cos\nsystem\n"}, r"os\.system"),
        ({"kind": "ctorch\nfloat32\n"}, None),
        ({"kind": "ctorch\nSize\n"}, "without type, key"),
        ({"count": "L1152921504606846976L\n"}, "missing or cut short"),
        (
            {"size": "(L1152921504606846976L\nK\x00t", "strides": "(K\x01K\x01t"},
            "implausibly large",
        ),
    ],
)
def test_impossible_tensors(tmp_path, change, message):
    storage = np.arange(4, dtype=np.float32).tobytes()
    (tmp_path / "x.pt").write_bytes(zip_of(tensor_pickle(), **{"0": storage}))
    assert open_checkpoint(tmp_path / "x.pt")["w"].tolist() == [0, 1]
    (tmp_path / "x.pt").write_bytes(zip_of(tensor_pickle(**change), **{"0": storage}))
    if message is None:
        open_checkpoint(tmp_path / "x.pt")
        return
    with pytest.raises(ModelFolderError, match=message):
        open_checkpoint(tmp_path / "x.pt")


def test_zips_of_other_makes(tmp_path):
    storage = np.arange(4, dtype=np.float32).tobytes()
    (tmp_path / "x.pt").write_bytes(zip_of(tensor_pickle(), **{"0": storage, "byteorder": b"big"}))
    with pytest.raises(ModelFolderError, match="damaged|big-endian"):
        open_checkpoint(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(
        zip_of(tensor_pickle(), **{"0": storage, "byteorder": b"big   "})
    )
    with pytest.raises(ModelFolderError, match="big-endian"):
        open_checkpoint(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"N0" * 10_000_000 + b"N.")
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    with pytest.raises(ModelFolderError, match="compressed"):
        open_checkpoint(tmp_path / "bomb.pt")
    with zipfile.ZipFile(
        tmp_path / "path.pt", "w"
    ) as archive:  # names are looked up, never written to
        archive.writestr("../../data.pkl", tensor_pickle())
        archive.writestr("/etc/data.pkl", tensor_pickle())
    with pytest.raises(ModelFolderError, match="not one of torch.save"):
        open_checkpoint(tmp_path / "path.pt")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/data.pkl", tensor_pickle())
        archive.writestr("x/data.pkl", tensor_pickle())
    (tmp_path / "twice.pt").write_bytes(stream.getvalue())
    with pytest.raises(ModelFolderError, match="one name"):
        open_checkpoint(tmp_path / "twice.pt")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ("(X\x01\x00\x00\x00vK\x01K\x03t", None),
        ("(X\x01\x00\x00\x00vK\x02K\x03t", "outside of it"),
        ("(X\x01\x00\x00\x00vI-1\nK\x02t", "without place"),
        ("K\x01", "without place"),
    ],
)
def test_parts_of_storages(tmp_path, view, message):
    """Very old files say (key, first element, number of elements) of storages that are parts of
    others.
    """
    described = tensor_pickle(count=f"K\x04{view}")
    (tmp_path / "x.pt").write_bytes(
        zip_of(described, **{"0": np.arange(4, dtype=np.float32).tobytes()})
    )
    if message is None:
        assert open_checkpoint(tmp_path / "x.pt")["w"].tolist() == [1, 2]
        return
    with pytest.raises(ModelFolderError, match=message):
        open_checkpoint(tmp_path / "x.pt")


def safetensors(header: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            safetensors('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"1234"),
            "size that its shape says",
        ),
        (
            safetensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"12"),
            "bytes where its header says",
        ),
        (
            safetensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"12345678"),
            "overlap or have gaps",
        ),
        (
            safetensors(
                '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
                b"1234",
            ),
            "one name",
        ),
        (
            safetensors('{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"1234"),
            "unknown type F99",
        ),
        (
            safetensors('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}', b"1234"),
            "negative",
        ),
        (
            safetensors(
                '{"a":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}}', b"1234"
            ),
            "size that its shape says",
        ),
        (safetensors('{"a":3}'), "damaged"),
        (safetensors('{"a":'), "damaged"),
        (safetensors("{}") + b"more", "bytes where its header says"),
        (struct.pack("<Q", 90_000_000) + b"{}", "ends before|damaged"),
    ],
)
def test_impossible_safetensors(tmp_path, data, message):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ModelFolderError, match=message):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.fixture(scope="module")
def good() -> dict[str, bytes]:
    """A file of each form, and no larger than it must be."""
    from safetensors.torch import save

    content = {
        "state_dict": {
            "a": torch.arange(6.0).view(2, 3),
            "b": torch.ones(2).half(),
            "s": torch.arange(9)[2:5],
        },
        "epoch": 1,
        "x": {"y": [1, "z"]},
    }
    files = {}
    for name, options in (("new.pt", {}), ("old.pt", {"_use_new_zipfile_serialization": False})):
        stream = io.BytesIO()
        torch.save(content, stream, **options)
        files[name] = stream.getvalue()
    files["x.safetensors"] = save({"a": torch.ones(2, 3), "b": torch.zeros(4).half()})
    files["x.pkl"] = pickle.dumps(
        {"w": np.arange(6.0).reshape(2, 3), "s": {1, 2}, "n": [np.float32(1)], "t": "text"}, 2
    )
    files["4.pkl"] = pickle.dumps(
        {"w": np.arange(6.0).reshape(2, 3), "s": {1, 2}, "n": [np.float32(1)], "t": "text"}, 4
    )
    return files


def read_all(path) -> None:
    """Opens and reads everything; ModelFolderError is the only thing that may be raised."""
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint:
                checkpoint[name]
    except ModelFolderError as error:
        assert str(path) in str(error)


FORMS = ["new.pt", "old.pt", "x.safetensors", "x.pkl", "4.pkl"]


@pytest.mark.parametrize("form", FORMS)
def test_cut_anywhere(tmp_path, good, form):
    data, path = good[form], tmp_path / form
    for end in {*range(0, len(data), max(1, len(data) // 150)), len(data) - 1}:
        path.write_bytes(data[:end])
        with pytest.raises(ModelFolderError), open_checkpoint(path) as checkpoint:
            for name in checkpoint:
                checkpoint[name]


@pytest.mark.parametrize("form", FORMS)
@settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(
    changes=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.integers(0, 255),
            st.sampled_from(["set", "insert", "remove", "repeat"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_changed_anywhere(tmp_path_factory, good, form, changes):
    data = bytearray(good[form])
    for place, byte, how in changes:
        at = min(int(place * len(data)), len(data) - 1)
        data[at : at + (how in ("set", "remove"))] = {
            "set": bytes([byte]),
            "insert": bytes([byte]),
            "remove": b"",
            "repeat": data[at : at + byte],
        }[how]
    path = tmp_path_factory.getbasetemp() / f"changed_{form}"
    path.write_bytes(data)
    read_all(path)


@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="memory is read from Linux's /proc"
)
def test_nothing_large_is_allocated(tmp_path):
    """All attacks one after the other, in a process of their own."""
    for number, (data, _) in enumerate(ATTACKS.values()):
        (tmp_path / f"{number}.pkl").write_bytes(data)
    (tmp_path / "bomb.pkl").write_bytes(
        b"\x80\x02("
        + b"K\x01" * 100_000
        + b"lq\x000("
        + b"c__builtin__\nset\nh\x00\x85R" * 200
        + b"l."
    )
    (tmp_path / "sparse.pkl").write_bytes(sparse(_shape=(10**9, 10**9)))
    program = (
        "import sys, pathlib\n"
        "from caphuman_jax.errors import ModelFolderError\n"
        "from caphuman_jax.weights.checkpoint_files import open_checkpoint\n"
        "for file in pathlib.Path(sys.argv[1]).glob('*.pkl'):\n"
        "    try: open_checkpoint(file).close()\n"
        "    except ModelFolderError: pass\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if "
        "line.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int(done.stdout) < 400_000  # kB
