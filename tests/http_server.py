"""A server of an application in this process, for tests that need a real one."""

import contextlib
import socket
import threading
import time

import uvicorn


@contextlib.contextmanager
def running(app):
    """The address of an application whose model is loaded."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        until(lambda: app.state.api.ready)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def until(true, seconds=120):
    """Wait until `true()`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def held(monkeypatch, pipe):
    """Pictures are made only once this event is set."""
    hold, make = threading.Event(), type(pipe).make
    monkeypatch.setattr(type(pipe), "make", lambda *args: (hold.wait(120), make(*args))[1])
    return hold
