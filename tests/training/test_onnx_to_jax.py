"""The ONNX interpreter against onnxruntime, on every shipped network that it is for."""

from importlib.resources import files

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.training.onnx_to_jax import load_onnx

NETWORKS = {  # name: (batch, side, largest input value)
    "mobilefacenet_192": (2, 112, 1.0),
    "dlib_resnet_128": (2, 150, 255.0),
    "face_landmarks_478": (2, 256, 1.0),
    "blazeface_short_range": (1, 128, 1.0),
}


def network(name):
    return str(files("caphuman_jax") / "assets" / "face" / f"{name}.onnx")


def picture(name):
    batch, side, top = NETWORKS[name]
    return np.random.default_rng(0).random((batch, side, side, 3), dtype=np.float32) * np.float32(
        top
    )


def run_onnxruntime(model, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    values = session.run(None, {session.get_inputs()[0].name: x})
    return dict(zip([o.name for o in session.get_outputs()], values, strict=True))


def assert_close(ours, theirs, tolerance=1e-4):
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        scale = max(
            np.abs(expected).max(), 0.1
        )  # a probability near 0 is compared on the scale of probabilities
        assert np.abs(np.asarray(ours[name]) - expected).max() <= tolerance * scale, name


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_onnxruntime(name):
    params, apply = load_onnx(network(name))
    x = picture(name)
    assert_close(jax.jit(apply)(params, x), run_onnxruntime(network(name), x))


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        (
            "mobilefacenet_192",
            [
                "MobileFaceNet/MobileFaceNet/SeparableConv2d/add",
                "MobileFaceNet/MobileFaceNet/Conv2d_2_InvResBlock_4/Add",
                "MobileFaceNet/MobileFaceNet/Conv2d_7/add",
            ],
        ),
        ("dlib_resnet_128", ["t37", "t76", "t138"]),
    ],
)
def test_inner_tensors_equal_onnxruntime(name, inner):
    model = onnx.load(network(name))
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in inner)
    x = picture(name)
    params, apply = load_onnx(network(name))
    assert_close(
        jax.jit(lambda p, x: apply(p, x, inner))(params, x),
        run_onnxruntime(model.SerializeToString(), x),
    )


def test_gradient_equals_finite_difference():
    params, apply = load_onnx(network("mobilefacenet_192"))
    x = jnp.asarray(picture("mobilefacenet_192")[:1])

    @jax.jit
    def loss(x):
        return jnp.sum(jnp.square(apply(params, x)["embeddings"]))

    gradient = jax.grad(loss)(x)
    slope = jnp.linalg.norm(gradient)
    step = 2e-3 * gradient / slope
    expected = (loss(x + step) - loss(x - step)) / 4e-3
    np.testing.assert_allclose(slope, expected, rtol=1e-2)


def test_bfloat16_follows_params_and_input():
    params, apply = load_onnx(network("dlib_resnet_128"))
    x = picture("dlib_resnet_128")
    small = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    got = jax.jit(apply)(small, x.astype(jnp.bfloat16))["emb"]
    assert got.dtype == jnp.bfloat16
    expected = run_onnxruntime(network("dlib_resnet_128"), x)["emb"]
    assert np.abs(np.asarray(got, np.float32) - expected).max() < 0.1 * np.abs(expected).max()


def test_layers_after_the_last_wanted_tensor_are_not_traced():
    params, apply = load_onnx(network("mobilefacenet_192"))
    x = picture("mobilefacenet_192")
    first = ["MobileFaceNet/MobileFaceNet/Conv2d_0/add"]
    text = jax.jit(lambda p, x: apply(p, x, first)).lower(params, x).as_text()
    assert text.count("stablehlo.convolution") == 1


def save_one_node(path, op_type, **attributes):
    node = onnx.helper.make_node(op_type, ["x"], ["y"], **attributes)
    info = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 1, 4, 4]) for n in "xy"
    ]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:])), path)


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(ModelFolderError, match="no such file"):
        load_onnx(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"this is not a network")
    with pytest.raises(ModelFolderError, match="not an ONNX network"):
        load_onnx(tmp_path / "bad.onnx")
    save_one_node(tmp_path / "erf.onnx", "Erf")
    with pytest.raises(ModelFolderError, match="Erf"):
        load_onnx(tmp_path / "erf.onnx")

    params, apply = load_onnx(network("mobilefacenet_192"))
    with pytest.raises(ModelFolderError, match="nowhere"):
        apply(params, picture("mobilefacenet_192"), outputs=["nowhere"])
    with pytest.raises(ModelFolderError, match="inputs are input"):
        apply(params, {"photo": picture("mobilefacenet_192")})
