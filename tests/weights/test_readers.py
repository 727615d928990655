"""Every form of weight file, written by those who write them, comes back bit for bit."""

import copyreg
import json
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import scipy.sparse
import torch

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.io.pickles import read_pickle
from caphuman_jax.io.safetensors_file import write
from caphuman_jax.weights.checkpoint_files import open_checkpoint

NEW, OLD = {}, {"_use_new_zipfile_serialization": False}


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(60, dtype=torch.float32)
    return {
        "a.weight": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "bf16": torch.randn(2, 3, 2).bfloat16(),
        "double": torch.randn(2).double(),
        "int": torch.arange(4),
        "bool": torch.tensor([True, False]),
        "byte": torch.arange(3, dtype=torch.uint8),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "transposed": torch.randn(4, 3).t(),
        "slice": base[10:20],
        "strided": base[::7],
        "column": base.view(6, 10)[:, 3],
        "expanded": torch.tensor([3.0]).expand(4),
        "channels_last": torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "convolution": torch.randn(4, 3, 2, 2),
    }


def assert_same(checkpoint, expected, prefix=""):
    assert set(checkpoint) == {prefix + name for name in expected}
    for name, tensor in expected.items():
        tensor, array = tensor.detach(), checkpoint[prefix + name]
        assert (
            checkpoint.shape(prefix + name) == tuple(tensor.shape)
            and checkpoint.dtype(prefix + name) == array.dtype
        )
        if tensor.dtype == torch.bfloat16:
            assert array.dtype == ml_dtypes.bfloat16
            tensor, array = tensor.view(torch.int16), array.view(np.int16)
        np.testing.assert_array_equal(array, tensor.numpy())
        assert array.dtype == tensor.numpy().dtype


@pytest.mark.parametrize(
    "options",
    [
        NEW,
        OLD,
        {"pickle_protocol": 4},
        {"_use_new_zipfile_serialization": False, "pickle_protocol": 3},
    ],
)
def test_torch_files(tmp_path, options):
    sd = tensors()
    torch.save(sd, tmp_path / "x.pt", **options)
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.format == (
            "old torch" if "_use_new_zipfile_serialization" in options else "torch"
        )
        assert_same(checkpoint, sd)


@pytest.mark.parametrize("options", [NEW, OLD])
def test_a_module_and_what_training_leaves(tmp_path, options):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": net.state_dict(),
        "epoch": 3,
        "name": "x",
        "optimizer_states": [optimizer.state_dict()],
        "size": torch.Size([1, 2]),
        "kind": torch.float16,
        "device": torch.device("cpu"),
        "score": np.float64(0.5),
        "none": None,
        7: {"lr": [1e-4]},
    }
    torch.save(content, tmp_path / "x.ckpt", **options)
    with open_checkpoint(tmp_path / "x.ckpt") as checkpoint:
        assert_same(checkpoint, net.state_dict())
        assert checkpoint.extra["epoch"] == 3
    with open_checkpoint(tmp_path / "x.ckpt", part="") as checkpoint:
        assert (
            "optimizer_states.0.state.0.exp_avg" in checkpoint
            and "state_dict.0.weight" in checkpoint
        )
        assert (
            checkpoint.extra["7.lr.0"] == 1e-4
            and checkpoint.extra["score"] == 0.5
            and checkpoint.extra["size.1"] == 2
        )


def test_parts_are_picked_by_name(tmp_path):
    torch.save(
        {"E_flame": {"encoder.w": torch.ones(2)}, "opt": {"inner": {"w": torch.zeros(3)}}},
        tmp_path / "deca_model.tar",
        **OLD,
    )
    assert set(open_checkpoint(tmp_path / "deca_model.tar")) == {"E_flame.encoder.w", "opt.inner.w"}
    assert set(open_checkpoint(tmp_path / "deca_model.tar", part="E_flame")) == {"encoder.w"}
    assert set(open_checkpoint(tmp_path / "deca_model.tar", part="opt.inner")) == {"w"}
    with pytest.raises(ModelFolderError, match="no part D_detail; it has E_flame, opt"):
        open_checkpoint(tmp_path / "deca_model.tar", part="D_detail")


def test_files_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors(), tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(list(open_checkpoint(tmp_path / "x.pt").items())) == len(tensors())


def test_lightning_classes_as_keys_are_no_reason_to_refuse(tmp_path):
    kind = type(
        "ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"}
    )
    data = pickle_naming(
        {kind: {"monitor": "loss"}, "w": np.ones(2)},
        {kind: "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint"},
    )
    (tmp_path / "x.pkl").write_bytes(data)
    assert list(open_checkpoint(tmp_path / "x.pkl").extra.values()) == ["loss"]


def pickle_naming(value, names, protocol=2) -> bytes:
    """A pickle in which classes are named as `names` says, though they are not importable."""

    class Pickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            if obj in names:
                self.write(b"c" + names[obj].replace(" ", "\n").encode() + b"\n")
                self.memoize(obj)
            else:
                super().save_global(obj, name)

        dispatch = dict(pickle._Pickler.dispatch) | {type: save_global}

    import io

    stream = io.BytesIO()
    Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def test_safetensors(tmp_path):
    sd = {name: x.detach().clone().contiguous() for name, x in tensors().items()}
    safetensors.torch.save_file(sd, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert checkpoint.format == "safetensors" and checkpoint.metadata == {"format": "pt"}
        assert_same(checkpoint, sd)


def test_our_safetensors_are_everyones(tmp_path):
    sd = {
        name: x.detach().clone().contiguous()
        for name, x in tensors().items()
        if x.dtype != torch.bfloat16
    }
    specs = {name: (x.numpy().dtype, tuple(x.shape)) for name, x in sd.items()}
    from caphuman_jax.io.safetensors_file import order

    written = write(
        tmp_path / "x.safetensors", specs, (sd[name].numpy() for name in order(specs)), {"a": "b"}
    )
    loaded = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert set(loaded) == set(sd) and all(torch.equal(loaded[name], x) for name, x in sd.items())
    assert written["bytes"] == (tmp_path / "x.safetensors").stat().st_size


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "model.safetensors",
        "pytorch_model.bin",
        "diffusion_pytorch_model.bin",
    ],
)
def test_folders(tmp_path, name):
    sd = {"w": torch.randn(2, 2)}
    (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(
        sd, tmp_path / name
    )
    assert_same(open_checkpoint(tmp_path), sd)


def test_sharded(tmp_path):
    sd = tensors()
    halves = [dict(list(sd.items())[:8]), dict(list(sd.items())[8:])]
    for number, half in enumerate(halves):
        safetensors.torch.save_file(
            {k: x.detach().clone().contiguous() for k, x in half.items()},
            tmp_path / f"model-{number}.safetensors",
        )
    index = {
        "weight_map": {
            name: f"model-{number}.safetensors"
            for number, half in enumerate(halves)
            for name in half
        }
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(checkpoint, sd)
        assert len(checkpoint.files) == 2
    for bad, message in (
        ({"w": "../x.safetensors"}, "outside of its folder"),
        ({"w": "model-0.safetensors"}, "lacks w"),
        ({"half": "model-0.safetensors"}, "does not name"),
        (["x"], "damaged"),
        ({"w": "model-9.safetensors"}, "missing"),
    ):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(ModelFolderError, match=message):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays(tmp_path, protocol):
    shared = np.arange(3)
    content = {
        "float": np.random.default_rng(0).standard_normal((3, 4)),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "int": np.arange(4, dtype=">i2"),
        "text": np.array(["a", "bcd"]),
        "objects": np.array([{"a": shared}, None], dtype=object),
        "nested": [(shared, {"x": {1, 2}}), b"bytes", 1 << 80],
        "scalar": np.float32(2.5),
        "complex": 1 + 2j,
        "flag": True,
        "none": None,
        "frozen": frozenset({3}),
        "empty": np.zeros((0, 2)),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    read = read_pickle(tmp_path / "x.pkl")
    objects = read.pop("objects")
    assert objects.dtype == object and objects[1] is None
    np.testing.assert_equal(objects[0], content.pop("objects")[0])
    np.testing.assert_equal(read, content)
    assert read["int"].dtype == content["int"].dtype and read["nested"][0][0] is objects[0]["a"]


def test_flame_of_python_2(tmp_path):
    """chumpy arrays and sparse matrices with text strings as bytes, as in generic_model.pkl."""

    class Ch:
        def __init__(self, x):
            self.__dict__ = {"x": x, "_dirty_vars": set(), "_itr": None, "_status": "new"}

    joints = scipy.sparse.random(5, 40, 0.2, format="csc", random_state=0)
    vertices = np.random.default_rng(0).standard_normal((40, 3))
    for protocol in (1, 2):
        data = pickle_naming(
            {
                "v_template": Ch(vertices),
                "J_regressor": joints,
                "f": np.arange(6, dtype=np.uint32).reshape(2, 3),
                "bs_type": "lrotmin",
            },
            {Ch: "chumpy.ch Ch", scipy.sparse.csc_matrix: "scipy.sparse.csc csc_matrix"},
            protocol,
        )
        (tmp_path / "generic_model.pkl").write_bytes(data)
        read = read_pickle(tmp_path / "generic_model.pkl")
        np.testing.assert_array_equal(read["v_template"], vertices)
        np.testing.assert_allclose(read["J_regressor"], joints.toarray())
        assert read["bs_type"] == "lrotmin" and read["f"].dtype == np.uint32
    assert copyreg  # protocol 1 goes through copyreg._reconstructor
    rows = scipy.sparse.csr_matrix(joints)
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(rows, 2))
    np.testing.assert_allclose(read_pickle(tmp_path / "rows.pkl"), joints.toarray())


@pytest.mark.parametrize(
    "raw",
    [
        b"(dp0\nS'w'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR"
        b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntbs."
    ],
)
def test_text_pickle_of_python_2(tmp_path, raw):
    (tmp_path / "x.pkl").write_bytes(raw)
    np.testing.assert_array_equal(
        read_pickle(tmp_path / "x.pkl")["w"], np.array([1, 2], np.float32)
    )


def test_npy_with_a_dict_inside(tmp_path):
    """landmark_embedding.npy is one."""
    np.save(tmp_path / "x.npy", {"lmk": np.arange(3), "bary": [np.ones(2)]}, allow_pickle=True)
    np.testing.assert_equal(
        read_pickle(tmp_path / "x.npy"), {"lmk": np.arange(3), "bary": [np.ones(2)]}
    )
    np.save(tmp_path / "y.npy", np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(read_pickle(tmp_path / "y.npy"), np.arange(6).reshape(2, 3))


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path):
    """Lazy: a file cut after it was opened fails at the tensor, with the file named, not before."""
    torch.save({"a": torch.randn(100), "b": torch.randn(100)}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:700])
    assert checkpoint.shape("b") == (100,)
    with pytest.raises(ModelFolderError, match="x.pt is damaged"):
        checkpoint["b"]


def test_a_changed_number_is_noticed_by_the_checksum(tmp_path):
    torch.save({"a": torch.ones(64), "slice": torch.full((64,), 2.0)[3:9]}, tmp_path / "x.pt")
    raw = bytearray((tmp_path / "x.pt").read_bytes())
    for pattern in (np.float32(1).tobytes() * 8, np.float32(2).tobytes() * 64):
        raw[raw.index(pattern)] ^= 1
    (tmp_path / "x.pt").write_bytes(raw)
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    for name in checkpoint:
        with pytest.raises(ModelFolderError, match="checksum"):
            checkpoint[name]


def test_what_is_no_weight_file_is_said(tmp_path):
    for content, message in (
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"hello world", "damaged"),
    ):
        (tmp_path / "x.ckpt").write_bytes(content)
        with pytest.raises(ModelFolderError, match=message):
            open_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ModelFolderError, match="is missing"):
        open_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelFolderError, match="no weight file"):
        open_checkpoint(tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelFolderError, match="not one of torch.save"):
        open_checkpoint(tmp_path / "y.pt")
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"z/{name}", "")
    with pytest.raises(ModelFolderError, match="TorchScript"):
        open_checkpoint(tmp_path / "z.pt")
