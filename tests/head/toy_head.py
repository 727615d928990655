"""A head model in one file, as a contributor would write it: a bent sheet, with one way to move."""

import dataclasses

import jax
import numpy as np

from caphuman_jax.face import landmark_indices
from caphuman_jax.head import topology
from caphuman_jax.head.base import HeadModel, HeadSource
from caphuman_jax.head.models import anny

_SIDE = 24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyHead(HeadModel):
    """All that differs from the linear head: expressions have other names."""

    name: str = dataclasses.field(metadata={"static": True})
    expression_names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def arkit_basis(self):
        return ("jawOpen",), np.ones((1, 1), np.float32)

    def mirrored_expression(self, expression):
        return expression


class ToySource(HeadSource):
    def load(self, path):
        x, y = (grid.reshape(-1) for grid in np.meshgrid(*[np.linspace(-1, 1, _SIDE)] * 2))
        mean = np.stack([x, 1.2 * y, 1 - 0.8 * x**2 - 0.3 * y**2], axis=-1).astype(np.float32)
        corner = np.arange(_SIDE * _SIDE).reshape(_SIDE, _SIDE)
        a, b, c, d = (
            corner[rows, columns].reshape(-1)
            for rows in (slice(None, -1), slice(1, None))
            for columns in (slice(None, -1), slice(1, None))
        )
        triangles = np.concatenate([np.stack(t, -1) for t in ((a, b, d), (a, d, c))])
        triangles = triangles.astype(np.int32)
        shipped = anny.load()
        places = np.asarray(shipped.landmarks(shipped.mean))
        corners, weights = topology.nearest_on_mesh(places, mean, triangles)
        chin = np.where(y[:, None] < -0.3, [0, -0.3, 0], 0).astype(np.float32)
        return ToyHead(
            mean=mean,
            identity_basis=0.1 * mean[None] * np.eye(3, dtype=np.float32)[:, None],
            identity_bound=np.full(3, 3, np.float32),
            expression_basis=chin[None],
            triangles=triangles,
            landmark_vertices=corners.astype(np.int32),
            landmark_weights=weights,
            landmark_valid=np.ones(landmark_indices.COUNT, bool),
            mirror=topology.mirror_map(mean),
            parts=np.full(len(mean), topology.SKIN, np.int32),
            vertex_triangles=topology.incident_triangles(triangles, len(mean)),
            neighbors=topology.neighbors(triangles, len(mean)),
            face_weight=np.ones(len(mean), np.float32),
            name="toy",
            expression_names=("chin",),
        )

    def files(self, path):
        return {}


SOURCE = ToySource()
