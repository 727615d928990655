"""Progress bars: on a terminal they move, in a log they are a few lines."""

import io
import sys

import pytest

from caphuman_jax.runtime import progress


class Stream(io.StringIO):
    """A terminal, or not one."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(("terminal", "fewest", "most"), [(True, 10, 200), (False, 2, 3)])
def test_a_log_gets_few_lines(terminal, fewest, most, monkeypatch):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_OFTEN", 0.0)
    for _ in progress.progress_bar(iterable=range(100), desc="photos"):
        pass
    written = stream.getvalue()
    assert fewest <= written.count("photos") <= most, written
    assert "100/100" in written
