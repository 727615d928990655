"""ArcFace's packs: found where insightface keeps them, run as insightface does, errors that say
where was looked.

The network is a small stand-in with the true input and output: 1x3x112x112 -> 512, a fixed linear
map of the average-pooled picture."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from caphuman_jax.errors import ModelFolderError, PhotoError
from caphuman_jax.face import arcface

WEIGHTS = np.random.default_rng(0).standard_normal((3 * 14 * 14, 512)).astype(np.float32)


def save_network(path, batch="N", side=112, width=512, node="pool"):
    shapes = [
        helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [batch, 3, side, side]),
        helper.make_tensor_value_info("683", TensorProto.FLOAT, [batch, width]),
    ]
    nodes = [
        helper.make_node(
            "AveragePool", ["input.1"], ["p"], name=node, kernel_shape=[8, 8], strides=[8, 8]
        ),
        helper.make_node("Flatten", ["p"], ["f"], name="_mulscalar0"),
        helper.make_node("MatMul", ["f", "w"], ["683"]),
    ]
    weights = numpy_helper.from_array(WEIGHTS[: 3 * (side // 8) ** 2, :width], "w")
    graph = helper.make_graph(nodes, "arcface", shapes[:1], shapes[1:], [weights])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    return path


def expected(crops, scaled=True):
    pixels = crops.astype(np.float64)
    pixels = (pixels - 127.5) / 127.5 if scaled else pixels
    pooled = (
        pixels.reshape(len(crops), 14, 8, 14, 8, 3)
        .mean((2, 4))
        .transpose(0, 3, 1, 2)
        .reshape(len(crops), -1)
    )
    vectors = pooled @ WEIGHTS
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def crops():
    return np.random.default_rng(1).integers(0, 256, (35, 112, 112, 3), np.uint8)


@pytest.fixture(autouse=True)
def nothing_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv("CAPHUMAN_ARCFACE", raising=False)
    monkeypatch.setenv("INSIGHTFACE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("batch", ["N", 1, 8])
def test_vectors(crops, tmp_path, batch):
    network = arcface.ArcFace(save_network(tmp_path / "w600k_r50.onnx", batch), threads=1)
    vectors = network(crops)
    assert vectors.dtype == np.float32 and network.name == "w600k_r50" and len(network.sha256) == 64
    np.testing.assert_allclose(vectors, expected(crops), atol=1e-5)
    assert network(crops[:0]).shape == (0, 512)


def test_networks_of_mxnet_scale_pixels_themselves(crops, tmp_path):
    network = arcface.ArcFace(
        save_network(tmp_path / "model.onnx", node="_minusscalar0"), threads=1
    )
    np.testing.assert_allclose(network(crops), expected(crops, scaled=False), atol=1e-5)


def test_found_where_insightface_keeps_them(nothing_of_the_user, monkeypatch, tmp_path):
    home, pack = nothing_of_the_user, arcface.PACKS
    with pytest.raises(
        ModelFolderError, match="buffalo_l.w600k_r50.onnx.*antelopev2.*CAPHUMAN_ARCFACE"
    ) as problem:
        arcface.find()
    assert "\n" not in str(problem.value) and str(home) in str(problem.value)
    nested = save_network(home / "models" / "antelopev2" / "antelopev2" / pack["antelopev2"])
    assert arcface.find().path == nested and arcface.find() is arcface.find()
    flat = save_network(home / "models" / "buffalo_l" / pack["buffalo_l"])
    assert arcface.find().path == flat and arcface.find("antelopev2").path == nested
    assert arcface.find(home / "models" / "antelopev2").path == nested
    bare = save_network(tmp_path / "mine.onnx")
    monkeypatch.setenv("CAPHUMAN_ARCFACE", str(bare))
    assert arcface.find().path == bare and arcface.find(flat).path == flat
    monkeypatch.delenv("CAPHUMAN_ARCFACE")
    monkeypatch.setenv("INSIGHTFACE_HOME", str(home / "models"))
    assert arcface.find().path == flat
    monkeypatch.delenv("INSIGHTFACE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    own = save_network(
        tmp_path / "me" / ".insightface" / "models" / "buffalo_l" / pack["buffalo_l"]
    )
    assert arcface.find().path == own
    with pytest.raises(ModelFolderError, match="gone.onnx"):
        arcface.find(tmp_path / "gone.onnx")


def test_what_is_no_arcface_network(crops, tmp_path):
    integers = [helper.make_tensor_value_info(name, TensorProto.INT32, [1, 512]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", integers[:1], integers[1:]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        tmp_path / "integers.onnx",
    )
    for path in (
        save_network(tmp_path / "detector.onnx", side=64),
        save_network(tmp_path / "narrow.onnx", width=128),
        tmp_path / "integers.onnx",
    ):
        with pytest.raises(ModelFolderError, match="w600k_r50"):
            arcface.ArcFace(path)
    changed = onnx.load(save_network(tmp_path / "a.onnx"))
    del changed.graph.output[:]
    onnx.save(changed, tmp_path / "mute.onnx")
    with pytest.raises(ModelFolderError, match="to nothing; an ArcFace"):
        arcface.ArcFace(tmp_path / "mute.onnx")
    changed = onnx.load(tmp_path / "a.onnx")
    changed.graph.node[2].CopyFrom(helper.make_node("Reshape", ["f", "shape"], ["683"]))
    changed.graph.initializer.append(numpy_helper.from_array(np.array([7, 512]), "shape"))
    onnx.save(changed, tmp_path / "fails.onnx")
    with pytest.raises(ModelFolderError, match="fails.onnx cannot be run; download it again"):
        arcface.ArcFace(tmp_path / "fails.onnx")(crops[:1])
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ModelFolderError, match="damaged"):
        arcface.find(tmp_path / "text.onnx")
    network = arcface.ArcFace(save_network(tmp_path / "a.onnx"), threads=1)
    for wrong in (crops[0], crops[:, :100], crops.astype(np.float32)):
        with pytest.raises(PhotoError, match="112"):
            network(wrong)
    dead = np.zeros_like(WEIGHTS)
    graph = onnx.load(tmp_path / "a.onnx")
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(dead, "w"))
    onnx.save(graph, tmp_path / "dead.onnx")
    with pytest.raises(PhotoError, match="no vector"):
        arcface.find(tmp_path / "dead.onnx")(crops)
