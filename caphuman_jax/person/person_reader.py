"""Photos and identity files to persons, as one model measures them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import PhotoError
from caphuman_jax.head.base import HeadEstimator, HeadModel
from caphuman_jax.head.models import registry as heads
from caphuman_jax.io.images import PhotoSource
from caphuman_jax.person import identity_file
from caphuman_jax.person.identity import Identifier
from caphuman_jax.person.person import Person, analyze_photo


@dataclasses.dataclass(frozen=True, eq=False)
class PersonReader:
    """Reads persons; call it with a photo, an identity file or a `Person`.

    Attributes:
        model: the model's name.
        size: side of the square around the head in pixels.
        head_model: of the heads.
        head_of: estimates the head in a photo; None: it is fitted to landmarks.
        identify: what knows the persons of photos.
        known_by: `Identifier.name` that persons who were measured before must have.
    """

    model: str
    size: int
    head_model: HeadModel
    head_of: HeadEstimator | None
    identify: Identifier
    known_by: str

    @classmethod
    def of_model(
        cls, config: ModelConfig, networks: Mapping[str, tuple[Any, dict]]
    ) -> PersonReader:
        """As a model measures persons.

        Args:
            config: the model's.
            networks: {network: (graphdef, parameters)}, those that look at photos among them.
        """
        identify = Identifier(
            config,
            {name: params for name, (_, params) in networks.items()},
            {name: graph for name, (graph, _) in networks.items()},
        )
        return cls(
            config.name,
            config.image_size,
            heads.load_head(config.head),
            heads.load_estimator(config.head, networks),
            identify,
            identify.name,
        )

    @property
    def head_name(self) -> str:
        """The head model and what estimates its heads; other persons do not fit."""
        return self.head_model.name + (f" by {self.head_of.name}" if self.head_of else "")

    def __call__(self, photo: PhotoSource | Person, face: int | None = None) -> Person:
        """The person in a photo or an identity file.

        Args:
            photo: a photo, an identity file, or a person, who is returned.
            face: number of the face in a photo, see `analyze_photo`.

        Raises:
            PhotoError: a photo that cannot be read, without a face (NoFaceError), or a person who
                was measured for another model.
        """
        if isinstance(photo, Person):
            if photo.known_by != self.known_by:
                raise PhotoError(
                    f"{photo.name} was measured by {photo.known_by}; the model {self.model} "
                    f"takes {self.known_by}"
                )
            return photo
        if identity_file.is_identity_file(photo):
            return identity_file.load(photo, self.head_name, self.known_by)
        return analyze_photo(self.head_model, photo, self.size, face, self.identify, self.head_of)
