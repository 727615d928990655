"""MTCNN: each network and step against PyTorch or brute force; the cascade on planted faces."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from caphuman_jax.errors import ModelFolderError, PhotoError
from caphuman_jax.models import mtcnn
from caphuman_jax.models.network import abstract_network
from caphuman_jax.weights import face_names


class Flatten(nn.Module):
    """Columns first, as the published dense layers were converted from a framework that
    counts so.
    """

    def forward(self, x):
        return x.permute(0, 3, 2, 1).reshape(len(x), -1)


def body(*layers):
    """Layers by name."""
    return nn.Sequential(OrderedDict(layers))


def pool(size):
    return nn.MaxPool2d(size, 2, ceil_mode=True)


BODIES = {
    "pnet": lambda: [
        ("conv1", nn.Conv2d(3, 10, 3)),
        ("prelu1", nn.PReLU(10)),
        ("p1", pool(2)),
        ("conv2", nn.Conv2d(10, 16, 3)),
        ("prelu2", nn.PReLU(16)),
        ("conv3", nn.Conv2d(16, 32, 3)),
        ("prelu3", nn.PReLU(32)),
    ],
    "rnet": lambda: [
        ("conv1", nn.Conv2d(3, 28, 3)),
        ("prelu1", nn.PReLU(28)),
        ("p1", pool(3)),
        ("conv2", nn.Conv2d(28, 48, 3)),
        ("prelu2", nn.PReLU(48)),
        ("p2", pool(3)),
        ("conv3", nn.Conv2d(48, 64, 2)),
        ("prelu3", nn.PReLU(64)),
        ("flat", Flatten()),
        ("dense4", nn.Linear(576, 128)),
        ("prelu4", nn.PReLU(128)),
    ],
    "onet": lambda: [
        ("conv1", nn.Conv2d(3, 32, 3)),
        ("prelu1", nn.PReLU(32)),
        ("p1", pool(3)),
        ("conv2", nn.Conv2d(32, 64, 3)),
        ("prelu2", nn.PReLU(64)),
        ("p2", pool(3)),
        ("conv3", nn.Conv2d(64, 64, 3)),
        ("prelu3", nn.PReLU(64)),
        ("p3", pool(2)),
        ("conv4", nn.Conv2d(64, 128, 2)),
        ("prelu4", nn.PReLU(128)),
        ("flat", Flatten()),
        ("dense5", nn.Linear(1152, 256)),
        ("prelu5", nn.PReLU(256)),
    ],
}
HEADS = {
    "pnet": {"conv4_1": nn.Conv2d(32, 2, 1), "conv4_2": nn.Conv2d(32, 4, 1)},
    "rnet": {"dense5_1": nn.Linear(128, 2), "dense5_2": nn.Linear(128, 4)},
    "onet": {
        "dense6_1": nn.Linear(256, 2),
        "dense6_2": nn.Linear(256, 4),
        "dense6_3": nn.Linear(256, 10),
    },
}


@pytest.fixture(scope="module")
def theirs():
    """The three networks in PyTorch with random weights."""
    torch.manual_seed(0)
    made = {}
    for name, layers in BODIES.items():
        trunk, heads = body(*layers()), nn.ModuleDict(HEADS[name])
        for layer in trunk.modules():
            if isinstance(layer, nn.PReLU):
                layer.weight.data.uniform_(-0.5, 0.5)
        made[name] = (trunk, heads)
    return made


def arrays(trunk, heads):
    return {
        name: value.numpy() for part in (trunk, heads) for name, value in part.state_dict().items()
    }


@pytest.fixture(scope="module")
def networks(theirs):
    return tuple(
        face_names.load(f"mtcnn_{name}", arrays(*theirs[name])) for name in ("pnet", "rnet", "onet")
    )


@pytest.mark.parametrize(
    "number, name, size",
    [(0, "pnet", (31, 40)), (0, "pnet", (12, 12)), (1, "rnet", (24, 24)), (2, "onet", (48, 48))],
)
def test_networks(theirs, networks, number, name, size):
    x = np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)
    trunk, heads = theirs[name]
    with torch.no_grad():
        features = trunk(torch.from_numpy(x.transpose(0, 3, 1, 2)))
        expected = [head(features) for head in heads.values()]
        expected[0] = torch.softmax(expected[0], dim=1)[:, 1]
    for ours, output in zip(mtcnn._run(*networks[number], x), expected):
        output = output.numpy()
        output = output.transpose(0, 2, 3, 1) if output.ndim == 4 else output
        np.testing.assert_allclose(ours, output, atol=2e-5)


def test_wrong_weights_are_named(theirs):
    with pytest.raises(ModelFolderError, match="mtcnn"):
        face_names.load("mtcnn_rnet", arrays(*theirs["onet"]))


@pytest.mark.parametrize("size", [(7, 9), (24, 24), (50, 33), (13, 61)])
def test_area_resize(size):
    image = np.random.default_rng(0).uniform(0, 255, (37, 29, 3)).astype(np.float32)
    expected = nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1))[None], size, mode="area"
    )[0].permute(1, 2, 0)
    np.testing.assert_allclose(mtcnn.area_resize(image, *size), expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("smaller", [False, True])
def test_suppression(smaller):
    """By pairs, in order of the scores."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (60, 2))], axis=1)
    scores = rng.random(60)
    more = int(smaller)

    def overlap(a, b):
        sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + more for i in (0, 1)]
        shared = max(sides[0], 0) * max(sides[1], 0)
        areas = [(box[2] - box[0] + more) * (box[3] - box[1] + more) for box in (a, b)]
        return shared / (min(areas) if smaller else sum(areas) - shared)

    kept = []
    for i in np.argsort(-scores):
        if all(overlap(boxes[i], boxes[k]) <= 0.4 for k in kept):
            kept.append(i)
    np.testing.assert_array_equal(mtcnn.suppress(boxes, scores, 0.4, smaller=smaller), kept)
    assert len(mtcnn.suppress(boxes[:0], scores[:0], 0.5)) == 0


@pytest.fixture
def planted(monkeypatch):
    """Networks that take a window for a face the more, the brighter its middle and the darker its
    rim.
    """

    def run(kind, params, x):
        x = np.asarray(x)[..., 0] / 2 + 0.5
        if kind == "pnet":
            rows, columns = (np.arange(0, n - 11, 2) for n in x.shape[1:3])
            x = np.stack([x[0, r : r + 12, c : c + 12] for r in rows for c in columns])
            score = _middle(x).reshape(1, len(rows), len(columns))
            return score, np.zeros((*score.shape, 4), np.float32)
        score = _middle(x)
        points = np.tile(
            np.asarray([0.3, 0.7, 0.5, 0.35, 0.65, 0.4, 0.4, 0.6, 0.8, 0.8], np.float32),
            (len(x), 1),
        )
        return (score, np.zeros((len(x), 4), np.float32), points)[: 2 if kind == "rnet" else 3]

    monkeypatch.setattr(mtcnn, "_run", run)
    return tuple((name, None) for name in ("pnet", "rnet", "onet"))


def _middle(x):
    n = x.shape[1]
    inner = x[:, n // 4 : n - n // 4, n // 4 : n - n // 4].mean(axis=(1, 2))
    rim = np.stack(
        [x[:, 0].mean(1), x[:, -1].mean(1), x[:, :, 0].mean(1), x[:, :, -1].mean(1)]
    ).mean(0)
    return np.clip(inner - rim, 0, 1).astype(np.float32)


@pytest.fixture
def picture():
    image = np.zeros((200, 240, 3), np.uint8)
    image[40:120, 30:110] = 255  # 80 wide
    image[140:180, 170:210] = 255  # 40 wide
    return image


def test_planted_faces_are_found_largest_first(planted, picture):
    boxes, scores, points = mtcnn.detect(planted, picture)
    assert len(boxes) == len(scores) == len(points) >= 2
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert (np.diff(area) <= 0).all()
    for center in ((70, 80), (190, 160)):
        near = np.abs((boxes[:, :2] + boxes[:, 2:]) / 2 - center).max(axis=1).min()
        assert near < 12
    np.testing.assert_allclose(
        points[0, 2], boxes[0, :2] + (boxes[0, 2:] - boxes[0, :2] + 1) * [0.5, 0.6] - 1, atol=1e-3
    )


def test_the_crop_is_of_the_face_with_these_landmarks(planted, picture):
    small = np.random.default_rng(0).uniform([172, 142], [208, 178], (478, 2))
    crop = mtcnn.face_crop(planted, picture, small)
    assert crop.shape == (160, 160, 3) and crop.dtype == np.uint8
    assert crop[60:100, 60:100].min() == 255
    assert mtcnn.face_crop(planted, picture, small - [140, 0]) is None  # Nothing is there.
    assert mtcnn.face_crop(planted, np.zeros_like(picture), small) is None


def test_crop_is_cut_to_whole_pixels_inside(picture):
    whole = mtcnn.crop(picture, np.asarray([-10.4, 20.9, 260.0, 130.2]))
    np.testing.assert_array_equal(whole, mtcnn.crop(picture, np.asarray([0, 20, 240, 130])))
    with pytest.raises(PhotoError, match="outside"):
        mtcnn.crop(picture, np.asarray([300, 10, 320, 30]))
    with pytest.raises(PhotoError, match="8 bits"):
        mtcnn.detect((None,) * 3, np.zeros((4, 4)))


def test_random_networks_run_through(networks, picture):
    """Shapes, whatever they see; and a picture smaller than a window."""
    boxes, scores, points = mtcnn.detect(
        networks, picture[60:130:2, 60:140:2], thresholds=(0.5, 0.3, 0.3)
    )
    assert (
        boxes.shape == (len(scores), 4)
        and points.shape == (len(scores), 5, 2)
        and np.isfinite(boxes).all()
    )
    assert len(mtcnn.detect(networks, picture[:8, :8])[0]) == 0


def test_shapes_are_known_without_weights():
    _, shapes = abstract_network(lambda rngs: mtcnn.OutputNet(rngs=rngs))
    assert shapes["dense5"]["kernel"].shape == (1152, 256)
    assert jax.tree.leaves(shapes)[0].dtype == jnp.float32
