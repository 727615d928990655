"""`HeadModel`: what every morphable head offers, and `HeadSource`: where a kind of head comes from.

Everything else in this room works with any head through these two. A new head is one module in
`head.models` with a `HeadSource` named SOURCE, and one line in `head.models.registry`.

Coordinates of every model: x to the right of the picture when the head looks at the viewer (so the
person's own left is +x), y up, z towards the viewer; the origin lies between the ears.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from caphuman_jax.head.rasterizer import interpolate
from caphuman_jax.models.network import Network
from caphuman_jax.nn.typing import Array

# Full precision: the 10-bit products that accelerators use by default would move vertices visibly.
_HIGHEST = jax.lax.Precision.HIGHEST
# In a fit: deviation of an expression weight from the one that the blendshape network gives.
_EXPRESSION_NOISE = 0.12


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "mean",
        "identity_basis",
        "identity_bound",
        "expression_basis",
        "triangles",
        "landmark_vertices",
        "landmark_weights",
        "landmark_valid",
        "mirror",
        "parts",
        "vertex_triangles",
        "neighbors",
        "face_weight",
    ],
    meta_fields=["name", "expression_names"],
)
@dataclasses.dataclass(frozen=True)
class HeadModel:
    """A head model; a pytree of arrays (V vertices, T triangles, K identity and E expression
    directions). As it stands it is linear in identity and expression, with colors at vertices;
    other heads override methods.

    Attributes:
        mean: (V,3) float32.
        identity_basis: (K,V,3), each direction one standard deviation of the prior, so that
            identity ~ N(0, 1).
        identity_bound: (K,), the largest |identity| of a fit.
        expression_basis: (E,V,3), weights in [0,1], named by `expression_names`.
        triangles: (T,3) int32, counter-clockwise seen from outside.
        landmark_vertices, landmark_weights: (478,3) int32 and (478,3); a landmark is a weighted
            mean of three vertices where `landmark_valid` (478,) is True.
        mirror: (V,) int32, the vertex at the left-right mirrored place.
        parts: (V,) int32, labels of `head.topology`.
        vertex_triangles: (V,D) int32, the triangles round a vertex, padded with T.
        neighbors: (V,N) int32, padded with the vertex itself.
        face_weight: (V,) in [0,1]: 1 on the face, falling to 0 towards scalp, ears, neck and the
            inside of the mouth.
        name: Of the model, kept in records and identity files.
        expression_names: E names.
        double_sided: Whether hints also show triangles from behind.
    """

    mean: Array
    identity_basis: Array
    identity_bound: Array
    expression_basis: Array
    triangles: Array
    landmark_vertices: Array
    landmark_weights: Array
    landmark_valid: Array
    mirror: Array
    parts: Array
    vertex_triangles: Array
    neighbors: Array
    face_weight: Array
    name: str
    expression_names: tuple[str, ...]

    double_sided: ClassVar[bool] = False

    def vertices(
        self, identity: Float[Array, " k"], expression: Float[Array, " e"]
    ) -> Float[Array, "v 3"]:
        """Vertices (V,3) in the model's own frame and unit, before pose, for identity (K,) and
        expression (E,)."""
        product = functools.partial(jnp.tensordot, axes=1, precision=_HIGHEST)
        return (
            jnp.asarray(self.mean)
            + product(identity, jnp.asarray(self.identity_basis))
            + product(expression, jnp.asarray(self.expression_basis))
        )

    def landmarks(self, points: Float[Array, "*b v 3"]) -> Float[Array, "*b 478 3"]:
        """Landmarks (…,478,3) of vertices (…,V,3); those without a place on the mesh are
        meaningless (see landmark_valid)."""
        corners = jnp.asarray(points)[..., jnp.asarray(self.landmark_vertices), :]
        weights = jax.lax.broadcast_to_rank(
            jnp.asarray(self.landmark_weights)[..., None], corners.ndim
        )
        return jnp.sum(corners * weights, axis=-2)

    def landmark_functions(
        self, origin: Float[Array, "3"]
    ) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """For a fit: landmarks (478,3) minus `origin` (3,), and their derivatives (K+E,478,3), as
        functions of coefficients (K+E,): identity, then expression."""
        mean = self.landmarks(self.mean) - origin[None]
        basis = jnp.concatenate(
            [self.landmarks(self.identity_basis), self.landmarks(self.expression_basis)]
        )
        place = lambda coefficients: mean + jnp.tensordot(coefficients, basis, axes=1)
        return place, lambda coefficients: basis

    def expression_limits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For a fit: deviation, least and largest value (E,) of each expression number."""
        count = len(self.expression_names)
        limit = lambda value: np.full(count, value, np.float32)
        return limit(_EXPRESSION_NOISE), limit(0), limit(1)

    def arkit_basis(self) -> tuple[tuple[str, ...], Float[np.ndarray, "n e"]]:
        """The ARKit expressions that this model can make: N names, and expressions (N,E), each the
        model's own numbers for that name at weight 1."""
        return self.expression_names, np.eye(len(self.expression_names), dtype=np.float32)

    def expression_from_arkit(
        self, names: tuple[str, ...], weights: Float[np.ndarray, "*b m"]
    ) -> Float[np.ndarray, "*b e"]:
        """Expressions (…,E) for weights (…,M) of ARKit expressions `names`; names that the model
        does not have (such as a network's "_neutral") are left out."""
        weights = np.asarray(weights, np.float32)
        known, basis = self.arkit_basis()
        return sum(
            (
                weights[..., names.index(name), None] * row
                for name, row in zip(known, basis)
                if name in names
            ),
            np.zeros((*weights.shape[:-1], basis.shape[1]), np.float32),
        )

    def arkit_weights(
        self, names: tuple[str, ...], expressions: Float[np.ndarray, "*b e"]
    ) -> Float[np.ndarray, "*b m"]:
        """Weights (…,M) of ARKit expressions `names` in expressions (…,E): those whose sum is
        nearest to the expression. NaN for names that the model does not have."""
        expressions = np.asarray(expressions)
        weights = np.full((*expressions.shape[:-1], len(names)), np.nan, expressions.dtype)
        known, basis = self.arkit_basis()
        places = [place for place, name in enumerate(names) if name in known]
        if places:
            rows = basis[[known.index(names[place]) for place in places]]
            products = np.moveaxis(expressions @ rows.T, -1, 0)
            solved = np.linalg.solve(rows @ rows.T, products.reshape(len(places), -1))
            weights[..., places] = np.moveaxis(solved.reshape(products.shape), 0, -1)
        return weights

    def mirrored_expression(self, expression: Float[Array, " e"]) -> Float[Array, " e"]:
        """The expression (E,) of the mirrored face."""
        names = self.expression_names
        return expression[jnp.asarray([names.index(_other_side(name)) for name in names])]

    def mirrored_albedo(self, albedo: Array) -> Array:
        """The albedo of the mirrored face."""
        return albedo[jnp.asarray(self.mirror)]

    def accepts_albedo(self, shape: tuple[int, ...]) -> bool:
        """Whether an albedo of this shape belongs to this model."""
        return shape == (len(self.mean), 3)

    def clips_hints(self, albedo_shape: tuple[int, ...]) -> bool:
        """Whether the render in hints of a head with such an albedo is clipped to [0,1]."""
        return True

    def surface(
        self,
        normals: Float[Array, "v 3"],
        albedo: Array,
        ids: Int[Array, "h w"],
        weights: Float[Array, "h w 3"],
    ) -> tuple[Float[Array, "h w 3"], Float[Array, "h w 3"]]:
        """Normals and albedo (H,W,3) at pixels.

        Args:
            normals: (V,3) at vertices.
            albedo: Of one head.
            ids: (H,W) triangle numbers, -1 outside the head.
            weights: (H,W,3) barycentric weights.
        """
        values = interpolate(
            jnp.concatenate([normals, albedo], axis=-1), self.triangles, ids, weights
        )
        return values[..., :3], values[..., 3:]

    def vertex_colors(self, albedo: np.ndarray) -> Float[np.ndarray, "v 3"]:
        """Colors (V,3) of an albedo at vertices."""
        return np.asarray(albedo)

    def place_by_camera(self, head: Any, camera: Any) -> Any:
        """`head`, a `Head` whose pose or expression was changed, where the camera of the head
        `camera` puts it. Here both are the same: pose turns about the origin."""
        return head


class HeadSource:
    """A kind of head model: how it is loaded and how heads are estimated with it.

    `path` is the file or folder that was given in place of a name, or None.
    """

    networks: ClassVar[tuple[str, ...]] = ()
    """Networks of a model folder that `estimator` uses, names as in `models.registry.OPTIONAL`."""
    opens_paths: ClassVar[bool] = False
    """Whether a file or folder may be given in place of the name."""
    setup: ClassVar[str] = ""
    """What the user has to do before the model can be loaded; one clause."""
    import_option: ClassVar[str] = ""
    """The option of `caphuman import` that takes the model's files."""
    networks_option: ClassVar[str] = ""
    """The option of `caphuman import` that takes `networks`."""
    networks_title: ClassVar[str] = ""
    """What `networks` are, for messages."""

    def load(self, path: Path | None) -> HeadModel:
        """The model as NumPy arrays. Raises HeadError where its files are missing or wrong."""
        raise NotImplementedError

    def files(self, path: Path | None) -> dict[str, Path]:
        """{name: file} of every file that decides the model's numbers."""
        raise NotImplementedError

    def check(self, path: Path | None, estimated: bool) -> None:
        """Raises HeadError where the model cannot be loaded or, with `estimated`, its heads cannot
        be estimated by `networks`."""
        self.load(path)

    def estimator(
        self, model: HeadModel, path: Path | None, networks: Mapping[str, Network]
    ) -> HeadEstimator | None:
        """What estimates heads from photos with these networks; None: heads are fitted to
        landmarks."""
        return None

    def estimated_albedo(
        self, model: HeadModel, path: Path | None, networks: tuple[str, ...]
    ) -> tuple[int, ...]:
        """Shape of the albedo of heads that are estimated with the networks of these names."""
        return len(model.mean), 3


@dataclasses.dataclass(frozen=True)
class HeadEstimator:
    """Call it with a photo (H,W,3) uint8 and landmarks (N,2 or more) in its pixels to get a `Head`.

    Attributes:
        name: Kept in records, identity files and pictures' settings.
        function: What is called.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray], Any]

    def __call__(self, photo: np.ndarray, landmarks: np.ndarray) -> Any:
        return self.function(photo, landmarks)


def _other_side(name: str) -> str:
    for one, other in (("Left", "Right"), ("Right", "Left")):
        if name.endswith(one):
            return name[: -len(one)] + other
    return name
