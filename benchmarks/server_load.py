"""Many clients at once against a server on this machine: no error but 429, no mix-up, steady memory.

caphuman serve --queue 8 &
python benchmarks/server_load.py --clients 20 --seconds 120
"""

import argparse
import json
import re
import threading
import time
import urllib.parse
from collections import Counter
from importlib.resources import files

import requests

PHOTO = (files("caphuman_jax") / "assets" / "astronaut_nasa.png").read_bytes()


def client(url: str, number: int, end: float, seen: Counter, seconds: list, steps: int) -> None:
    """Ask for pictures until `end`; each answer has to be what this request asked for."""
    request = 0
    while time.monotonic() < end:
        seed, request = 1000 * number + request, request + 1
        prompt, yaw = f"a photo of person {number}", (number % 5 - 2) * 10
        job = {"reference": "photo", "prompt": prompt, "seed": seed, "steps": steps}
        form = {
            "data": {"job": json.dumps(job | {"head": {"yaw": yaw}})},
            "files": {"photo": (f"{number}.png", PHOTO)},
        }
        started = time.monotonic()
        answer = requests.post(f"{url}/v1/images", timeout=600, **form)
        seen[answer.status_code] += 1
        if answer.status_code == 429:
            wait = min(float(answer.headers["Retry-After"]), end - time.monotonic(), 5)
            time.sleep(max(0.0, wait))
        elif answer.status_code == 200:
            seconds.append(time.monotonic() - started)
            (picture,) = answer.json()["pictures"]
            made = picture["settings"]
            person = made["people"][0]
            right = (made["prompt"], made["seed"]) == (prompt, seed)
            right &= person["reference"]["name"] == f"{number}.png"
            right &= abs(person["head"]["yaw"] - yaw) < 0.01
            seen["mixed up"] += not right


def memory(pid: int) -> float:
    """Megabytes that a process holds (Linux)."""
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) / 1024


def main() -> None:
    """Run the clients and print what they saw. Exits with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8440")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pid", type=int, help="of the server, to watch its memory")
    args = parser.parse_args()
    if urllib.parse.urlsplit(args.url).hostname not in ("127.0.0.1", "localhost", "::1"):
        parser.error("only servers on this machine are tested")
    seen, seconds, held = Counter(), [], []
    end = time.monotonic() + args.seconds
    threads = [
        threading.Thread(target=client, args=(args.url, i, end, seen, seconds, args.steps))
        for i in range(args.clients)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if args.pid:
            held.append(memory(args.pid))
        time.sleep(1)
    seconds.sort()
    print("answers:", dict(seen))
    if seconds:
        print(f"seconds: median {seconds[len(seconds) // 2]:.2f}, worst {seconds[-1]:.2f}")
    if held:
        third = held[len(held) // 3]
        print(f"memory: {held[0]:.0f} MB, after a third {third:.0f}, at the end {held[-1]:.0f}")
    raise SystemExit(int(set(seen) - {200, 429, "mixed up"} != set() or seen["mixed up"] > 0))


if __name__ == "__main__":
    main()
