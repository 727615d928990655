import importlib.resources

import pytest

from caphuman_jax.io.images import read_photo


@pytest.fixture(scope="session")
def astronaut():
    """The shipped portrait, (512, 512, 3), read-only."""
    picture = read_photo(
        importlib.resources.files("caphuman_jax").joinpath("assets/astronaut_nasa.png")
    )
    picture.flags.writeable = False
    return picture
