"""JSON from anybody: limits, and what json.loads of the standard library takes, taken alike."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caphuman_jax.io import json_reader

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_values_come_back(value):
    for text in (json.dumps(value), json.dumps(value).encode(), "\ufeff" + json.dumps(value)):
        assert json_reader.parse(text) == value


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested more than 100"),
        ("1" * 400, "400 digits"),
        ('"\\ud800"', "surrogate"),
        (b'"\xff"', "not UTF-8"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        json_reader.parse(text)


def test_brackets_in_texts_and_pairs_of_surrogates_are_fine():
    assert json_reader.parse(json.dumps("[{\\" * 1000)) == "[{\\" * 1000
    assert json_reader.parse('"\\ud83d\\ude42"') == "🙂"
    assert json_reader.parse("[" * 100 + "]" * 100)


def test_files(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert json_reader.read(tmp_path / "a.json") == [1]
    with pytest.raises(OSError, match="at most"):
        json_reader.read(tmp_path / "a.json", limit=5)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="named pipe"):
        json_reader.read(tmp_path / "fifo")
