"""The HTTP API, asked as clients ask it."""

import base64
import io
import json
import threading

import jax
import numpy as np
import pytest
from http_server import held, until
from PIL import Image
from starlette.testclient import TestClient

from caphuman_jax.diffusion.sampling_params import FIELDS
from caphuman_jax.head import head_json
from caphuman_jax.jobs import multi_device
from caphuman_jax.studio.app import create_app
from caphuman_jax.studio.options import ServerOptions

BASE = "http://localhost"
JOB = {"reference": "me.png", "prompt": "a photo of a person"}


@pytest.fixture(scope="module")
def served(pipe, tmp_path_factory):
    """A server of the tiny model: (application, folder of its sessions)."""
    folder = tmp_path_factory.mktemp("sessions")
    app = create_app(ServerOptions(queue=4), lambda: (pipe, 1), folder, warm_up=False)
    with TestClient(app, BASE):
        until(lambda: app.state.api.ready)
        yield app, folder


@pytest.fixture
def client(served):
    """A client without a session."""
    return TestClient(served[0], BASE)


@pytest.fixture(scope="module")
def photo(astronaut_file):
    return astronaut_file.read_bytes()


def _form(photo, job=None, path="me.png"):
    return {"files": {"me.png": (path, photo)}, "data": {"job": json.dumps({**JOB, **(job or {})})}}


def _problems(answer):
    return {one["field"]: one["reason"] for one in answer.json()["error"]["fields"]}


def test_pictures_are_those_of_the_pipeline(client, pipe, photo, astronaut_file):
    job = {"head": {"yaw": 20, "expression": "smile=0.8"}, "num_images": 2, "seed": 5, "id": "x"}
    answer = client.post("/v1/images", **_form(photo, job)).json()
    wanted = pipe(
        reference=astronaut_file, prompt=JOB["prompt"], num_images=2, seed=5, head=job["head"]
    )
    assert answer["job"] == "x" and len(answer["pictures"]) == 2
    for number, picture in enumerate(answer["pictures"]):
        image = Image.open(io.BytesIO(base64.b64decode(picture["png"])))
        np.testing.assert_array_equal(np.asarray(image), wanted.images[number])
        settings = json.loads(image.text["caphuman"])
        assert settings == picture["settings"]
        assert settings["index"] == number and image.text["AI-generated"] == "yes"
        person = settings["people"][0]
        assert person["reference"]["name"] == "me.png"
        assert person["asked_head"] == wanted.settings["people"][0]["asked_head"]


@pytest.mark.slow
def test_all_devices_make_them(tiny_folder, pipe, photo, astronaut_file, tmp_path):
    wide, batch = multi_device.load(tiny_folder)
    assert batch == len(jax.devices()) > 1
    app = create_app(ServerOptions(), lambda: (wide, batch), tmp_path, warm_up=False)
    with TestClient(app, BASE) as client:
        until(lambda: app.state.api.ready)
        answer = client.post("/v1/images", **_form(photo, {"num_images": 3})).json()
    wanted = pipe(reference=astronaut_file, prompt=JOB["prompt"], num_images=3).images
    for picture, image in zip(answer["pictures"], wanted, strict=True):
        made = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["png"]))))
        np.testing.assert_allclose(made.astype(int), image.astype(int), atol=2)


def test_one_picture_as_a_file(client, photo):
    answer = client.post("/v1/images", headers={"accept": "image/png"}, **_form(photo))
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)


def test_events(client, photo):
    headers = {"accept": "text/event-stream"}
    with client.stream(
        "POST", "/v1/images", headers=headers, **_form(photo, {"num_images": 2})
    ) as a:
        text = a.read().decode()
    events = [block.split("\n") for block in text.strip().split("\n\n")]
    kinds = [lines[0].removeprefix("event: ") for lines in events]
    assert kinds[0] == "accepted" and kinds[-1] == "done" and kinds.count("picture") == 2
    facts = [json.loads(lines[1].removeprefix("data: ")) for lines in events]
    assert [one["number"] for kind, one in zip(kinds, facts) if kind == "picture"] == [0, 1]


@pytest.mark.parametrize(
    "job, field, reason",
    [
        ({"stepz": 3}, "stepz", "did you mean steps"),
        ({"steps": "many"}, "steps", "steps must be"),
        ({"prompt": None}, "prompt", "is missing"),
        ({"head": {"yaw": 200}}, "head.yaw", "between -90 and 90"),
        ({"num_images": 101}, "num_images", "at most 100"),
        ({"size": [1024, 1024]}, "size", "at most 65,536 pixels"),
        ({"product": {"seed": [1]}}, "product", "a request for each"),
        ({"people": [{"head": {}}], "reference": None}, "people[0].reference", "is missing"),
        ({"reference": "/etc/passwd"}, "reference", "was not sent"),
        ({"reference": "../me.png"}, "reference", "was not sent"),
        ({"reference": "file:///etc/passwd"}, "reference", "was not sent"),
        ({"reference": ["me.png", "/proc/self/environ"]}, "reference", "was not sent"),
        ({"head": "/etc/passwd"}, "head", "was not sent"),
        ({"head": "/tmp/head.json"}, "head", "was not sent"),
        ({"head": {"photo": "http://localhost/me.png"}}, "head.photo", "was not sent"),
        ({"people": [{"reference": "~/.ssh/id_rsa"}], "reference": None}, None, "was not sent"),
        ({"edit": {"photo": "/etc/hostname"}, "reference": None}, "edit.photo", "was not sent"),
        ({"edit": {"photo": "me.png", "mask": "/etc/hostname"}}, "edit.mask", "was not sent"),
    ],
)
def test_wrong_jobs_are_explained_and_open_no_file(client, photo, job, field, reason):
    fields = {k: v for k, v in {**JOB, **job}.items() if v is not None}
    form = {"files": {"me.png": ("me.png", photo)}, "data": {"job": json.dumps(fields)}}
    answer = client.post("/v1/images", **form)
    assert answer.status_code == 400, answer.text
    problems = _problems(answer)
    found = problems[field] if field else " ".join(problems.values())
    assert reason in found


@pytest.mark.parametrize(
    "data, status, reason",
    [
        (b"not a picture", 422, "not a picture"),
        (b"", 422, "not a picture"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, 422, "me.png"),
        ("huge", 422, "178 megapixels"),
        ("grey", 422, "no face"),
    ],
)
def test_bad_photos(client, data, status, reason):
    if isinstance(data, str):
        image, file = Image.new("1", (14200, 14200) if data == "huge" else (300, 300)), io.BytesIO()
        image.save(file, "PNG")
        data = file.getvalue()
    answer = client.post("/v1/heads", files={"photo": ("me.png", data)})
    assert answer.status_code == status and reason in answer.text, answer.text
    assert "/tmp" not in answer.text and "sessions" not in answer.text


@pytest.mark.parametrize(
    "kwargs, status",
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"[1]", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"data": {"job": "[]"}, "files": {"a": b"x"}}, 400),
        ({"json": {"prompt": "x" * (2 << 20)}}, 413),
    ],
)
def test_bad_bodies(client, kwargs, status):
    answer = client.post("/v1/images", **kwargs)
    assert answer.status_code == status and answer.json()["error"]["reason"]


def test_heads(client, pipe, person, photo, two_faces):
    answer = client.post("/v1/heads", files={"photo": ("me.png", photo)}).json()
    assert len(answer["faces"]) == 1
    head, model = answer["head"], pipe.head_model
    wanted = head_json.of(model, person.head)
    assert {**head, "fit": None} == {**wanted, "fit": None}
    shape = np.frombuffer(base64.b64decode(answer["shape"]), "<f4").reshape(-1, 3)
    view = client.get("/v1/head-model").json()
    for name, weight in answer["weights"].items():
        i = view["expressions"].index(name)
        offsets = np.frombuffer(base64.b64decode(view["offsets"][i]), "<i2").reshape(-1, 3)
        shape = shape + weight * view["steps"][i] * offsets
    points = np.asarray(model.vertices(person.head.identity, person.head.expression))
    np.testing.assert_allclose(shape, points, atol=2e-2)
    triangles = np.frombuffer(base64.b64decode(view["triangles"]), "<u2").reshape(-1, 3)
    ordered = lambda rows: sorted(map(tuple, np.asarray(rows).tolist()))
    assert ordered(triangles) == ordered(model.triangles)

    file = io.BytesIO()
    Image.fromarray(two_faces).save(file, "PNG")
    answer = client.post(
        "/v1/heads", files={"photo": ("two.png", file.getvalue())}, data={"face": "1"}
    ).json()
    large, small = (one["box"] for one in answer["faces"])
    assert large[2] - large[0] > 1.5 * (small[2] - small[0]) and answer["face"] == 1


def test_sessions_keep_photos_and_pictures_apart(served, photo):
    app, folder = served
    one, other = TestClient(app, BASE), TestClient(app, BASE)
    sent = one.post("/v1/photos", files={"photo": ("me.png", photo)}).json()["photos"][0]
    other.post("/v1/session")
    made = one.post("/v1/images", json={**JOB, "reference": sent["id"]}).json()["pictures"][0]
    assert one.get(made["url"]).content == base64.b64decode(made["png"])
    assert [p["id"] for p in one.get("/v1/session").json()["pictures"]] == [made["id"]]
    assert one.get(f"/v1/photos/{sent['id']}").headers["content-type"] == "image/jpeg"
    for path in (made["url"], f"/v1/photos/{sent['id']}"):
        assert other.get(path).status_code == 404
    assert other.get("/v1/session").json() == {"photos": [], "pictures": []}
    answer = other.post("/v1/images", json={**JOB, "reference": sent["id"]})
    assert "was not sent" in answer.text

    again = one.post("/v1/photos", files={"photo": ("p.png", one.get(made["url"]).content)})
    assert again.json()["photos"][0]["settings"] == made["settings"]

    files = [path for path in folder.rglob("*") if path.name != "starting"]
    assert files and all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert one.delete("/v1/session").status_code == 204
    assert one.get(made["url"]).status_code == 404
    assert other.delete("/v1/session").status_code == 204
    assert not [path for path in folder.rglob("*") if path.suffix in (".png", ".jpg")]


def test_identities(client, photo):
    form = {"files": {"me.png": ("me.png", photo)}}
    identity = client.post("/v1/identities", **form).content
    files = {"me.identity": ("me.identity", identity)}
    by_file = client.post(
        "/v1/images", files=files, data={"job": json.dumps({**JOB, "reference": "me.identity"})}
    ).json()["pictures"][0]
    by_photo = client.post("/v1/images", **_form(photo)).json()["pictures"][0]
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(p["png"])))) for p in (by_file, by_photo)
    ]
    np.testing.assert_array_equal(*pixels)


def test_edits_keep_the_photo_outside_the_mask(client, photo, astronaut):
    job = {"edit": {"photo": "me.png"}, "head": {"yaw": 10}}
    form = {"files": {"me.png": ("me.png", photo)}, "data": {"job": json.dumps(job)}}
    answer = client.post("/v1/edits", headers={"accept": "image/png"}, **form)
    made = np.asarray(Image.open(io.BytesIO(answer.content)))
    changed = (made != astronaut).any(axis=-1)
    assert made.shape == astronaut.shape and 0 < changed.mean() < 0.6
    assert _problems(client.post("/v1/edits", **_form(photo)))["edit"].startswith("is missing")


def test_a_full_queue_and_a_client_that_leaves(served, client, photo, monkeypatch):
    """Four requests are taken, the fifth is refused; cancelled ones make room."""
    api, answers = served[0].state.api, []
    hold = held(monkeypatch, api.engine.pipe)
    cancelled = lambda: float(
        client.get("/metrics").text.split("\ncaphuman_cancelled_total ")[1].split()[0]
    )
    before = cancelled()

    def ask():
        headers = {"accept": "text/event-stream"}
        one = TestClient(served[0], BASE)
        with one.stream("POST", "/v1/images", headers=headers, **_form(photo)) as answer:
            answers.append(answer.read().decode())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: api.engine.waiting == 4)
    full = client.post("/v1/images", **_form(photo))
    assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
    for work_id in list(api._works)[:3]:
        assert client.delete(f"/v1/images/{work_id}").status_code == 204
    until(lambda: api.engine.waiting == 1)
    hold.set()
    for thread in threads:
        thread.join()
    ends = [text.strip().split("\n\n")[-1].split("\n")[0] for text in answers]
    assert sorted(ends) == ["event: cancelled"] * 3 + ["event: done"]
    assert cancelled() == before + 3
    assert client.delete("/v1/images/none").status_code == 404


def test_requests_of_several_clients_share_batches(pipe, photo, tmp_path, monkeypatch):
    """Eight clients at once, four pictures at a time: each gets its own pictures."""
    wide = pipe.with_params(pipe.params)
    wide.batch = 4
    app = create_app(ServerOptions(), lambda: (wide, 4), tmp_path, warm_up=False)
    with TestClient(app, BASE) as client:
        until(lambda: app.state.api.ready)
        answers = {}

        def ask(seed):
            answers[seed] = client.post("/v1/images", **_form(photo, {"seed": seed})).json()

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        hold = held(monkeypatch, pipe)
        for thread in threads:
            thread.start()
        prepared = lambda: 'seconds_count{stage="prepare"} 8.0' in client.get("/metrics").text
        until(prepared)
        hold.set()
        for thread in threads:
            thread.join()
        metrics = client.get("/metrics").text
    for seed, answer in answers.items():
        assert [one["settings"]["seed"] for one in answer["pictures"]] == [seed]
    batches = float(metrics.split("\ncaphuman_batch_count ")[1].split()[0])
    assert "caphuman_batch_sum 8.0" in metrics and batches <= 3
    assert not [p for p in tmp_path.rglob("*") if p.name != "starting"]


def test_openapi_names_every_field(client):
    document = client.get("/openapi.json").json()
    job = document["components"]["schemas"]["Job"]["properties"]
    assert set(FIELDS) < set(job) and job["steps"]["type"] == "integer"
    assert job["guidance_scale"]["maximum"] == 100 and job["gate"]["enum"] == ["hard", "soft"]
    routes = {path for path in document["paths"]}
    assert routes == {route.path for route in client.app.routes} - {"/openapi.json"}


def test_models_and_health(client):
    model = client.get("/v1/models").json()["models"][0]
    assert model["name"] == "tiny" and model["sampling"]["steps"] == 2
    assert client.get("/health").json()["status"] == "ok"
    missing = client.get("/nowhere")
    assert missing.status_code == 404 and missing.json()["error"]["reason"]
