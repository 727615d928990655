"""What a server does before anybody asks, and that nobody waits for it."""

import pytest
from http_server import until
from starlette.testclient import TestClient

from caphuman_jax.studio.app import create_app
from caphuman_jax.studio.options import ServerOptions


@pytest.mark.parametrize("dropped", [True, False])
def test_a_photo_goes_before_the_first_picture(
    pipe, tmp_path, astronaut_file, monkeypatch, dropped
):
    order, reader, make = [], type(pipe.person), pipe.make
    measure = reader.__call__
    app = create_app(ServerOptions(queue=1), lambda: (pipe, 1), tmp_path)
    api = app.state.api

    def slow_measure(reader, photo, *args):
        if not isinstance(photo, str):  # measured before
            return measure(reader, photo, *args)
        order.append(photo.rpartition("/")[2])
        if dropped and order[-1] == "warm-up.png":
            until(lambda: api.engine._attending)
        elif dropped:
            until(lambda: api.engine._ready or "picture" in order)
        return measure(reader, photo, *args)

    def recorded_make(*args):
        order.append("picture")
        return make(*args)

    monkeypatch.setattr(reader, "__call__", slow_measure)
    monkeypatch.setattr(pipe, "make", recorded_make)
    with TestClient(app, "http://localhost") as client:
        until(lambda: api.engine is not None)
        if dropped:
            files = {"photo": ("me.png", astronaut_file.read_bytes())}
            photo = client.post("/v1/photos", files=files).json()["photos"][0]["id"]
            assert client.post("/v1/heads", json={"photo": photo}).status_code == 200
            assert order == ["warm-up.png", "me.png"] and not api.ready
            job = {"reference": photo, "prompt": "a photo of a person"}
            assert client.post("/v1/images", json=job).status_code == 200
        until(lambda: api.ready)
    assert order == ["warm-up.png", *(["me.png"] if dropped else []), "picture"]
