import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(own_cache):
    """Nothing is written to the user's cache."""
