"""What the threads that make pictures do with a request."""

import collections

from caphuman_jax.studio.engine import Engine, Work
from caphuman_jax.studio.metrics import Metrics
from caphuman_jax.studio.options import ServerOptions


class Unshown:
    """Arrays of a conditioning, whose text takes longer than a picture."""

    def __repr__(self):
        raise AssertionError("written into a message")


def test_a_request_ends_without_being_written_out(pipe):
    engine, told = Engine(pipe, 1, ServerOptions(), Metrics(lambda: 0, lambda: 0)), []
    try:
        tell = lambda kind, facts: told.append(kind)
        work = Work(None, None, tell, collections.deque(), 1, conditioning=Unshown())
        engine._active.add(work)
        engine.cancel(work)
        engine.cancel(work)
    finally:
        engine.close()
    assert told == ["cancelled"]
