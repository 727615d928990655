"""Who may use a server, how much it takes, and what it leaves behind."""

import os

import pytest
from starlette.testclient import TestClient

from caphuman_jax.cli.app import run
from caphuman_jax.errors import CapHumanError, SettingError
from caphuman_jax.studio.app import create_app
from caphuman_jax.studio.options import ServerOptions
from caphuman_jax.studio.sessions import Sessions

BASE = "http://localhost"


def _client(tmp_path, base=BASE, **options):
    def never():
        raise CapHumanError("no model")

    return TestClient(create_app(ServerOptions(**options), never, tmp_path), base)


def test_keys_and_passwords(tmp_path):
    client = _client(tmp_path, api_key="k1", password="p1")
    path = "/v1/session"
    assert client.get("/health").status_code == 200
    answer = client.post(path)
    assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic")
    for headers, auth in (
        ({"authorization": "Bearer p1"}, None),
        ({}, ("me", "k1")),
        ({"authorization": "Basic !"}, None),
    ):
        assert client.post(path, headers=headers, auth=auth).status_code == 401
    assert client.post(path, headers={"authorization": "Bearer k1"}).status_code == 201
    assert client.post(path, auth=("anyone", "p1")).status_code == 200  # the same session


def test_other_sites_are_refused(tmp_path):
    path = "/v1/session"
    assert _client(tmp_path, "http://evil.example").post(path).status_code == 421
    assert _client(tmp_path, "http://evil.example", host="0.0.0.0").post(path).status_code == 201
    client = _client(tmp_path)
    assert client.post(path, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post(path, headers={"origin": "null"}).status_code == 403
    answer = client.post(path, headers={"origin": BASE})
    assert answer.status_code == 201
    assert "HttpOnly" in answer.headers["set-cookie"] and "strict" in answer.headers["set-cookie"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("announced", [True, False])
def test_uploads_are_limited(tmp_path, announced):
    client = _client(tmp_path, max_upload=1000)
    content = b"x" * 1001 if announced else iter([b"x" * 600, b"x" * 600])
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/images", content=content, headers=headers)
    assert answer.status_code in (413, 503) and (not announced or answer.status_code == 413)
    answer = client.post("/v1/photos", content=content, headers=headers)
    assert answer.status_code == 413 or not announced


def test_while_the_model_loads(tmp_path):
    client = _client(tmp_path)
    answer = client.post("/v1/images", json={})
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert client.get("/ready").status_code == 503


def test_folders_of_killed_servers_are_deleted(tmp_path):
    running = Sessions(ServerOptions(), tmp_path)
    kept = running.create().add_upload("me.png", b"1")
    killed = tmp_path / "killed" / "session"
    killed.mkdir(parents=True)
    (killed / "me.png").write_bytes(b"2")
    (tmp_path / "link").symlink_to("/etc")
    other = Sessions(ServerOptions(), tmp_path)
    assert not killed.exists() and kept.path.exists() and not (tmp_path / "link").is_symlink()
    other.close()
    running.close()
    assert not kept.path.exists() and os.path.exists("/etc")


def test_unused_sessions_end_and_files_are_limited(tmp_path):
    sessions = Sessions(ServerOptions(session_seconds=1e-9, max_files=2), tmp_path)
    session = sessions.create()
    first, *_ = [session.add_upload(f"{i}.png", b"x") for i in range(3)]
    assert not first.path.exists() and len(session.uploads) == 2
    assert session.find("0.png", tmp_path)[0] and session.find("2.png", tmp_path)[0] is None
    sessions.end_unused()
    assert sessions.get(session.id) is None and not session.folder.exists()
    with pytest.raises(CapHumanError, match="has ended"):
        session.add_upload("late.png", b"x")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a\0b.png", "c\\d.png"])
def test_names_of_uploads_stay_in_the_folder(tmp_path, name):
    session = Sessions(ServerOptions(), tmp_path).create()
    stored = session.add_upload(name, b"x")
    assert stored.path.parent.parent == session.folder and stored.path.read_bytes() == b"x"


def test_paths_and_links_lead_nowhere(tmp_path):
    client = _client(tmp_path, page=True)
    session = client.app.state.api.sessions.get(client.post("/v1/session").json()["session"])
    (session.folder / "link.png").symlink_to("/etc/hostname")
    assert client.get("/page/studio.js").status_code == 200
    for path in (
        "/page/%2e%2e/app.py",
        "/page/..%2fapp.py",
        "/page/%2fetc%2fhostname",
        "/page//etc/hostname",
        "/v1/photos/..%2flink.png",
        "/v1/photos/link.png",
        "/v1/pictures/%2e%2e%2flink.png",
        "/v1/pictures/link.png",
    ):
        assert client.get(path).status_code == 404, path
    assert session.find("link.png", session.folder)[0]


@pytest.mark.parametrize("verb", ["serve", "studio"])
def test_flags_and_variables(verb, monkeypatch):
    """This machine only, and no password unless one is given; a flag goes before a variable."""
    started = []
    serve = lambda options, port, *rest: started.append((options, port))
    monkeypatch.setattr("caphuman_jax.studio.server.serve", serve)
    monkeypatch.delenv("CAPHUMAN_PASSWORD", raising=False)
    run([verb])
    monkeypatch.setenv("CAPHUMAN_PASSWORD", "p1")
    run([verb, "--port", "0"])
    run([verb, "--password", "p2", "--api-key", "k", "--host", "0.0.0.0", "--max-upload", "1"])
    first, second, third = (options for options, _ in started)
    assert first == ServerOptions(page=verb == "studio") and first.host == "127.0.0.1"
    assert (second.password, third.password, third.api_key) == ("p1", "p2", "k")
    assert (third.host, third.max_upload) == ("0.0.0.0", 2**20)
    assert [port for _, port in started] == [8440, 0, 8440]


@pytest.mark.parametrize("option", [{"queue": 0}, {"max_upload": -1}, {"api_key": ""}])
def test_wrong_options(option):
    with pytest.raises(SettingError):
        ServerOptions(**option)
