import importlib.resources

import numpy as np
import pytest

from caphuman_jax.face.face import find_faces
from caphuman_jax.io.images import read_photo


@pytest.fixture(scope="session")
def astronaut():
    """The shipped portrait, (512, 512, 3), read-only."""
    picture = read_photo(
        importlib.resources.files("caphuman_jax").joinpath("assets/astronaut_nasa.png")
    )
    picture.flags.writeable = False
    return picture


@pytest.fixture(scope="session")
def astronaut_face(astronaut):
    (face,) = find_faces(astronaut)
    return face


@pytest.fixture(scope="session")
def no_face(astronaut):
    """A picture of clothes and flag, with no face in it."""
    return np.ascontiguousarray(astronaut[250:])
