"""Face parsing with random weights under the true names; its numbers are checked in
tests/parity/test_face_networks.py.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from caphuman_jax.errors import ModelFolderError, PhotoError
from caphuman_jax.models import face_parsing
from caphuman_jax.weights import face_names


@pytest.fixture(scope="module")
def arrays():
    """As in 79999_iter.pth, heads for training and batch counters included."""
    rng = np.random.default_rng(0)
    made = {}

    def conv(name, *shape):
        made[f"{name}.weight"] = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(
            np.float32
        )

    def norm(name, channels):
        for leaf, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            made[f"{name}.{leaf}"] = (value + 0.05 * rng.standard_normal(channels)).astype(
                np.float32
            )
        made[f"{name}.num_batches_tracked"] = np.int64(80_000)

    def conv_norm(name, *shape):
        conv(f"{name}.conv", *shape)
        norm(f"{name}.bn", shape[0])

    conv("cp.resnet.conv1", 64, 3, 7, 7)
    norm("cp.resnet.bn1", 64)
    width = 64
    for layer, channels in ((1, 64), (2, 128), (3, 256), (4, 512)):
        for block in range(2):
            name = f"cp.resnet.layer{layer}.{block}"
            conv(f"{name}.conv1", channels, width, 3, 3)
            conv(f"{name}.conv2", channels, channels, 3, 3)
            norm(f"{name}.bn1", channels)
            norm(f"{name}.bn2", channels)
            if width != channels:
                conv(f"{name}.downsample.0", channels, width, 1, 1)
                norm(f"{name}.downsample.1", channels)
            width = channels
    for arm, channels in ((16, 256), (32, 512)):
        conv_norm(f"cp.arm{arm}.conv", 128, channels, 3, 3)
        conv(f"cp.arm{arm}.conv_atten", 128, 128, 1, 1)
        norm(f"cp.arm{arm}.bn_atten", 128)
        conv_norm(f"cp.conv_head{arm}", 128, 128, 3, 3)
        conv_norm(f"conv_out{arm}.conv", 64, 128, 3, 3)
        conv(f"conv_out{arm}.conv_out", 19, 64, 1, 1)
    conv_norm("cp.conv_avg", 128, 512, 1, 1)
    conv_norm("ffm.convblk", 256, 256, 1, 1)
    conv("ffm.conv1", 64, 256, 1, 1)
    conv("ffm.conv2", 256, 64, 1, 1)
    conv_norm("conv_out.conv", 256, 256, 3, 3)
    conv("conv_out.conv_out", 19, 256, 1, 1)
    return made


@pytest.fixture(scope="module")
def network(arrays):
    return face_names.load("face_parsing", arrays)


def test_labels_of_a_photo_of_any_size(network):
    image = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    labels = face_parsing.parse(network, image)
    assert labels.shape == (70, 90) and labels.dtype == np.uint8 and labels.max() < 19
    assert len(np.unique(labels)) > 1


def test_label_map_is_resized_and_classes_are_the_networks(network):
    """At 512² nothing is resized, and the labels are the largest logits."""
    image = np.random.default_rng(2).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    labels = face_parsing.parse(network, image)
    np.testing.assert_array_equal(
        labels, np.asarray(face_parsing.classify(*network, image[None]))[0]
    )


def test_upsampling_aligns_corners():
    x = torch.randn(1, 3, 5, 7)
    theirs = torch.nn.functional.interpolate(x, (40, 23), mode="bilinear", align_corners=True)
    ours = face_parsing.resize_corners(jnp.asarray(x.numpy().transpose(0, 2, 3, 1)), 40, 23)
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_face_region():
    labels = np.arange(19, dtype=np.uint8)
    kept = [face_parsing.LABELS[i] for i in np.flatnonzero(face_parsing.face_region(labels))]
    assert kept == [
        "skin",
        "left_brow",
        "right_brow",
        "left_eye",
        "right_eye",
        "glasses",
        "nose",
        "mouth",
        "upper_lip",
        "lower_lip",
    ]


def test_normalization():
    image = np.asarray([[[[255, 0, 128]]]], np.uint8)
    np.testing.assert_allclose(
        face_parsing.normalize(image)[0, 0, 0],
        [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225],
        rtol=1e-5,
    )


def test_wrong_weights_and_pictures(arrays, network):
    with pytest.raises(ModelFolderError, match=r"missing cp\.arm16\.conv_atten\.weight"):
        face_names.load(
            "face_parsing",
            {name: array for name, array in arrays.items() if name != "cp.arm16.conv_atten.weight"},
        )
    with pytest.raises(PhotoError, match="8 bits"):
        face_parsing.parse(network, np.zeros((8, 8, 3), np.float32))
