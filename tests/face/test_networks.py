import hashlib
import subprocess
import sys

import numpy as np
import pytest

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.face.onnx_runner import NAMES, OnnxNetwork, network, read_asset

# Of the files as they were handed to us; mobilefacenet_192 is the one with the second output
# (assets/face/NOTICE.md).
SHA256 = {
    "blazeface_short_range.onnx": "bb4c5c1f36c5907e01564c3c14d18250764d6d041b5e1473003c14a55ad5c588",  # noqa: E501
    "dlib_resnet_128.onnx": "a8dc85473d2f3a6a979c380975bb228eff063b7601bb1d50f1e8f3042b055550",
    "face_blendshapes_52.onnx": "7ea49e0969c816115eb66887a8e7fba876d3b8806211e32eff0d3d76b8bf8535",
    "face_landmarks_478.onnx": "2e24c0345077d2af0ee6dce94f1f29e7455c38435ec6a95789b2a953660dc6e1",
    "mobilefacenet_192.onnx": "02454045ec3acc0b4ed95cdeae63b7729d550985decc3690efe11b615cfb5133",
    "person_segmentation.onnx": "8481bb6429bba161ac68313e7227b41d39469934d66587965e6d88606d10fff9",
    "face_blendshapes_52.json": "57f15eabcdf750e8ca0b937129d7112ce59d8ef8d83d7f5585cd19d018d73118",
}


@pytest.mark.parametrize("file_name", SHA256)
def test_files_are_the_ones_that_were_checked(file_name):
    assert hashlib.sha256(read_asset(file_name)).hexdigest() == SHA256[file_name]


def test_every_network_has_its_file():
    assert {f"{name}.onnx" for name in NAMES} == {name for name in SHA256 if name.endswith(".onnx")}


def test_unknown_names_and_missing_files():
    with pytest.raises(ModelFolderError, match="arcface.*blazeface"):
        OnnxNetwork("arcface")
    with pytest.raises(ModelFolderError, match="arcface.onnx is missing"):
        read_asset("arcface.onnx")


def test_batch_and_threads_do_not_change_the_result():
    x = np.random.default_rng(0).uniform(-1, 1, (3, 112, 112, 3))
    together = network("mobilefacenet_192")(x)
    apart = [
        np.concatenate(parts)
        for parts in zip(*(OnnxNetwork("mobilefacenet_192", threads=2)(one[None]) for one in x))
    ]
    assert [part.shape for part in together] == [(3, 192), (3, 7, 7, 512)]
    for a, b in zip(together, apart):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_import_touches_no_device():
    code = (
        "import sys, caphuman_jax.face.face, caphuman_jax.face.onnx_runner as n\n"
        "assert n.network.cache_info().currsize == 0\n"
        "x = sys.modules.get('jax._src.xla_bridge')\n"
        "assert x is None or not x._backends\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
