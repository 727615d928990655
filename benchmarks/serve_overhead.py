"""What a request over HTTP takes on top of the sampler: decoding, the queue, hints, PNG, HTTP.

    python benchmarks/serve_overhead.py [--model mini] [--requests 30] [--steps N]

Starts the server in this process, with a resident model, and asks it for one picture at a time on
localhost, all of one person with another seed and yaw each. The sampler's time is that of its
program alone, from its arguments on the device to its finished output. Prints medians, the
quartiles of the difference and what its parts take on average; then the same where each request
brings its photo.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import socket
import tempfile
import threading
import time
from importlib.resources import files
from pathlib import Path

import jax
import numpy as np
import uvicorn

from caphuman_jax.jobs import multi_device
from caphuman_jax.studio.app import create_app
from caphuman_jax.studio.options import ServerOptions

PHOTO = (files("caphuman_jax") / "assets" / "astronaut_nasa.png").read_bytes()
EDGE = "----overhead"


def timed(pipe, seconds: list[float]):
    """`pipe.make`, which waits for the picture and notes how long its program ran."""

    def make(rows, progress=None):
        program, arguments = pipe.program(rows, progress)
        jax.block_until_ready(arguments)
        started = time.perf_counter()
        made = jax.block_until_ready(program(*arguments))
        seconds.append(time.perf_counter() - started)
        return made

    return make


def form(fields: dict, photo: bool) -> tuple[bytes, dict[str, str]]:
    """A request's body and headers: JSON, or a form with the photo."""
    if not photo:
        return json.dumps(fields).encode(), {"Content-Type": "application/json"}
    head = f'--{EDGE}\r\nContent-Disposition: form-data; name="'
    body = (
        f'{head}job"\r\n\r\n{json.dumps(fields)}\r\n{head}photo"; filename="me.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    ).encode()
    end = f"\r\n--{EDGE}--\r\n".encode()
    return body + PHOTO + end, {"Content-Type": f"multipart/form-data; boundary={EDGE}"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    args = parser.parse_args()
    pipe, batch = multi_device.load(args.model)
    sampler: list[float] = []
    pipe.make = timed(pipe, sampler)
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(ServerOptions(), lambda: (pipe, batch), Path(folder))
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not app.state.api.ready:
                time.sleep(0.05)
            client = http.client.HTTPConnection(*listening.getsockname())
            for photo in (False, True):
                measure(client, args, sampler, photo, app.state.api.metrics)
        finally:
            server.should_exit = True
            thread.join()
            listening.close()


def spent(metrics) -> dict[str, float]:
    """Milliseconds of all requests by stage, as the server counts them."""
    pattern = r'caphuman_seconds_sum\{stage="(\w+)"\} (\S+)'
    return {stage: 1000 * float(n) for stage, n in re.findall(pattern, metrics.text().decode())}


def measure(client, args, sampler: list[float], photo: bool, metrics) -> None:
    """Ask for pictures, one after another, and print what they took."""

    def ask(path: str, body: bytes, headers: dict[str, str]) -> bytes:
        client.request("POST", path, body, headers)
        answer = client.getresponse()
        content = answer.read()
        assert answer.status in (200, 201), content
        return content

    session = {}
    named = "photo"
    if not photo:
        stored = json.loads(ask("/v1/photos", *form({}, photo=True)))
        session, named = {"X-CapHuman-Session": stored["session"]}, stored["photos"][0]["id"]
    walls, programs, before = [], [], {}
    for number in range(args.requests + 3):
        job = {"reference": named, "prompt": "a photo of a person", "seed": number}
        job |= {"head": {"yaw": number % 20 - 10}}
        job |= {"steps": args.steps} if args.steps else {}
        body, headers = form(job, photo)
        sampler.clear()
        before = spent(metrics) if number <= 3 else before
        started = time.perf_counter()
        png = ask("/v1/images", body, {"Accept": "image/png", **headers, **session})
        wall = time.perf_counter() - started
        assert png.startswith(b"\x89PNG")
        if number >= 3:  # the first ones compile
            walls.append(1000 * wall)
            programs.append(1000 * sum(sampler))
    over = np.subtract(walls, programs)
    low, middle, high = np.percentile(over, [25, 50, 75])
    each = {stage: (ms - before[stage]) / len(walls) for stage, ms in spent(metrics).items()}
    around = each["pictures"] - np.mean(programs)
    rest = np.mean(over) - each["queue"] - each["prepare"] - around
    print(
        f"{'the photo comes along' if photo else 'the person is known'}: "
        f"request {np.median(walls):.1f} ms, sampler {np.median(programs):.1f} ms, "
        f"overhead {middle:.1f} ms (quartiles {low:.1f} and {high:.1f}); "
        f"queue {each['queue']:.1f}, photo and hints {each['prepare']:.1f}, arguments and copies "
        f"{around:.1f}, PNG and HTTP {rest:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
