"""Arrays that are kept between processes."""

import numpy as np
import pytest

from caphuman_jax.head.models import anny
from caphuman_jax.runtime.kept_arrays import kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPHUMAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never():
    raise AssertionError("computed again")


def test_computed_once_per_content_of_the_sources(cache, tmp_path):
    source, arrays = tmp_path / "source", {"a": np.arange(3.0), "b": np.eye(2, dtype=np.int32)}
    source.write_text("one")
    kept("name", [source], lambda: arrays)
    again = kept("name", [source], never)
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype
    source.write_text("two")
    with pytest.raises(AssertionError, match="computed again"):
        kept("name", [source], never)


def test_damaged_file_and_folder_that_cannot_be_made(cache, tmp_path, monkeypatch):
    arrays = {"a": np.arange(3.0)}
    kept("name", [], lambda: arrays)
    [file] = (cache / "arrays").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    np.testing.assert_array_equal(kept("name", [], lambda: arrays)["a"], arrays["a"])
    np.testing.assert_array_equal(kept("name", [], never)["a"], arrays["a"])
    (tmp_path / "file").touch()
    monkeypatch.setenv("CAPHUMAN_CACHE", str(tmp_path / "file"))
    np.testing.assert_array_equal(kept("name", [], lambda: arrays)["a"], arrays["a"])


def test_shipped_head_is_the_same_from_the_cache(cache):
    computed = anny.load.__wrapped__()
    stored = anny.load.__wrapped__()
    for name, value in vars(computed).items():
        np.testing.assert_array_equal(getattr(stored, name), value)
        assert type(getattr(stored, name)) is type(value)
