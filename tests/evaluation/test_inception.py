"""Inception v3 for FID and KID, against numbers of pytorch-fid's own network with weights that are
made here; and the distances that follow from its features.
"""

import dataclasses
import hashlib
import zlib

import numpy as np
import pytest
import torch

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.evaluation.inception_judge import InceptionJudge
from caphuman_jax.evaluation.metrics import inception_distance
from caphuman_jax.evaluation.metrics.base import Run
from caphuman_jax.evaluation.outcome import HeadParams, ImageMeasurement, Outcome, Subject
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.models import inception

NAMES = "e22ffc91a09f7caa1af2ce051c7ddf26018012910da85827a0b035b343f00177"
"""SHA-256 of the sorted lines "NAME SHAPE" of pytorch-fid 0.3.0's fid_inception_v3, without fc."""
FEATURES = np.array(
    [
        [0.42177543, 1.7614303, 0, 1.2583779, 0.3676941, 0.0789172, 6.1932693, 0.05841421],
        [0.4244593, 1.8701534, 0, 1.4828209, 0.25458315, 0.09481065, 6.1557465, 0.09110569],
    ]
)
"""Every 256th feature of two pictures by that network, with the weights of `stand_in`."""


def shapes():
    """{PyTorch name: shape} of the weights."""
    found = {}
    for name, layer in inception.LAYERS.items():
        found[f"{name}.conv.weight"] = (layer.outputs, layer.inputs, *layer.kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.bn.{part}"] = (layer.outputs,)
    return found


def stand_in(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("conv.weight"):
        scale = np.float32((2 / np.prod(shape[1:])) ** 0.5)
        return rng.standard_normal(shape, dtype=np.float32) * scale
    if name.endswith(("running_var", "bn.weight")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)


def test_names_and_shapes_are_pytorch_fids():
    lines = sorted(f"{name} {shape}" for name, shape in shapes().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == NAMES


@pytest.mark.slow
def test_features_are_pytorch_fids(tmp_path):
    weights = {name: torch.from_numpy(stand_in(name, shape)) for name, shape in shapes().items()}
    torch.save(weights | {"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "inception.pth")
    blocks = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3))
    pictures = np.kron(blocks, np.ones((1, 10, 12, 1))).astype(np.uint8)
    found = InceptionJudge(tmp_path / "inception.pth").images(list(pictures))
    np.testing.assert_allclose(found[:, ::256], FEATURES, atol=1e-4)
    assert (found.mean(), found.std()) == pytest.approx((2.021831, 2.7632518), rel=1e-5)


def test_other_files_are_refused_by_name(tmp_path):
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ModelFolderError, match=r"1a_3x3.conv.weight is \(64, .* take pt_inception"):
        InceptionJudge(tmp_path / "other.pth")


def test_distances_of_known_features(pipe):
    """Pictures that are the references are at no distance, those that are moved at its square."""
    rng, nothing = np.random.default_rng(0), HeadParams.missing(pipe.head_model)
    features = rng.standard_normal((12, 6))
    value = lambda row: {inception_distance.VALUE: row}
    subjects = [Subject("x", None, None, None, {}, values=value(row)) for row in features]

    def run(moved):
        measured = [ImageMeasurement(0, nothing, {}, value(row + moved)) for row in features]
        requests = [Request(i, i, "own", "", 0) for i in range(12)]
        outcomes = [
            Outcome(request, request.person, nothing, nothing, seen)
            for request, seen in zip(requests, measured)
        ]
        return Run(pipe.head_model, subjects, outcomes)

    found = inception_distance.compute(run(np.array([3, 0, 0, 4, 0, 0])))["inception"]
    assert found["fid"]["value"] == pytest.approx(25)
    assert found["fid"]["copied"] == pytest.approx(0, abs=1e-9)
    assert found["kid"]["value"] > 1 > found["kid"]["copied"]
    without = [dataclasses.replace(one, values={}) for one in subjects]
    absent = inception_distance.compute(dataclasses.replace(run(0), subjects=without))
    assert np.isnan(absent["inception"]["fid"]["value"])
